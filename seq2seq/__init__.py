"""Sequence to sequence with Keras: `Seq2Seq`, its `Encoder` and `Decoder`."""

import importlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

__all__ = [
    "Alignment",
    "Attention",
    "BeamSearch",
    "Config",
    "Constraints",
    "Decoder",
    "Encoded",
    "Encoder",
    "Evaluation",
    "Greedy",
    "Hypotheses",
    "InverseSqrt",
    "Perplexity",
    "Sampling",
    "Seq2Seq",
    "Strategy",
    "TokenVectors",
    "TransformerDecoder",
    "TransformerEncoder",
    "Translations",
    "average",
    "compare",
    "configure",
    "ensemble",
    "evaluate",
    "extend_each",
    "load_run",
    "mask_logits",
    "rows_by_hypothesis",
    "rows_by_source",
    "source_mask",
    "sweep",
    "table",
    "teacher_forcing",
    "token_losses",
    "train",
]

_IS_COMMAND = Path(sys.argv[0] if sys.argv else "").stem == "seq2seq" or sys.orig_argv[1:3] == ["-m", "seq2seq"]


def _backend() -> str:
    """The backend that Keras will choose. It is read without importing Keras, which fails if that backend is not
    installed."""
    settings = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"), "keras.json")
    try:
        chosen = json.loads(settings.read_text()).get("backend")
    except (OSError, ValueError, AttributeError):
        chosen = None
    return os.environ.get("KERAS_BACKEND") or chosen or "tensorflow"


if (_found := _backend()) != "tensorflow":
    _message = f"this library needs Keras on TensorFlow, not on {_found}: set KERAS_BACKEND=tensorflow"
    if _IS_COMMAND:
        print(f"seq2seq: {_message}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(_message)

# The console script `seq2seq` passes through here on its way to seq2seq.cli, and its `--help` shall not take the three
# seconds of importing TensorFlow. Everyone else gets the names, and with them the classes that Keras needs to know to
# load a model.
if not _IS_COMMAND:
    from seq2seq.attention import Attention, Encoded, rows_by_hypothesis, rows_by_source
    from seq2seq.config import Config
    from seq2seq.decoding import Constraints, Hypotheses
    from seq2seq.ensembles import ensemble
    from seq2seq.layers import Decoder, Encoder, TokenVectors, source_mask
    from seq2seq.metrics import Perplexity, token_losses
    from seq2seq.model import Seq2Seq, teacher_forcing
    from seq2seq.optimizers import InverseSqrt
    from seq2seq.strategies import BeamSearch, Greedy, Sampling, Strategy, extend_each, mask_logits
    from seq2seq.transformer import TransformerDecoder, TransformerEncoder
    from seq2seq.translation import Alignment, Translations


_LATER = {  # what needs an extra, or many modules that a model alone does not
    "Evaluation": "evaluation",
    "average": "runs",
    "compare": "evaluation",
    "configure": "building",
    "evaluate": "evaluation",
    "load_run": "runs",
    "sweep": "sweeps",
    "table": "tables",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: those of `_LATER`, and, in the command line, those that a custom module
    imports from here."""
    if name == "__version__":
        return importlib.metadata.version("keras-seq2seq")
    modules = "attention config decoding ensembles layers metrics model optimizers strategies transformer translation"
    for module in [_LATER[name]] if name in _LATER else modules.split() if name in __all__ else []:
        if hasattr(importlib.import_module(f"seq2seq.{module}"), name):
            return getattr(importlib.import_module(f"seq2seq.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
