"""Sequence to sequence with Keras: `Seq2Seq`, its `Encoder` and `Decoder`."""

import sys
from pathlib import Path

__all__ = ["Decoder", "Encoder", "Perplexity", "Seq2Seq", "teacher_forcing"]

# The console script `seq2seq` passes through here on its way to seq2seq.cli, and its `--help` shall not take the three
# seconds of importing TensorFlow. Everyone else gets the names, and with them the classes that Keras needs to know to
# load a model.
if Path(sys.argv[0] if sys.argv else "").stem != "seq2seq":
    from seq2seq.layers import Decoder, Encoder
    from seq2seq.metrics import Perplexity
    from seq2seq.model import Seq2Seq, teacher_forcing
