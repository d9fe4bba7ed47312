"""Sequence to sequence with Keras: `Seq2Seq`, its `Encoder` and `Decoder`."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import lazy_loader

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

# The names in __init__.pyi, imported on first use. The console script passes through here on its way to seq2seq.cli,
# and its `--help` shall not take the three seconds of importing TensorFlow.
__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"

if not (find_spec("rapidfuzz") and find_spec("sacrebleu")):  # `help` and `import *` import all names of `__all__`
    __all__ = [name for name in __all__ if name not in ("Evaluation", "compare", "evaluate")]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if not _IS_COMMAND:  # Keras loads only classes that are imported
    from seq2seq import ensembles, metrics, optimizers, transformer  # noqa: F401
