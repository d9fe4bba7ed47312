"""LiteRT (TensorFlow Lite) graphs of a trained model, for phones and small devices."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from pipelines import check_number
from pipelines.options import extra
from pipelines.tokens import END, PADDING
from seq2seq.onnx_exporting import describe, write_graphs


def export_litert(model: keras.Model, folder: Path, probe: Sequence[str] = (), source_length: int = 128) -> None:
    """Write a folder that translates with LiteRT, one text at a time, by greedy search.

    It is the folder of `export_onnx`, with the graphs `encoder.tflite` and `decoder.tflite`. All sizes are fixed: one
    source, padded to S ids, and one hypothesis. They are in `vocabulary.json`: S is `longest_source`, and a translation
    has at most `steps` tokens.

    Args:
        model, folder: as in `export_onnx`.
        probe: texts for which the exported model must give the same translations as the model; those with more than S
            tokens are left out.
        source_length: S, in tokens; longer sources are truncated. The encoder always takes S steps.

    Raises:
        RunError: if the model cannot be converted, or translations differ.
        OptionError: if `source_length` is not a whole number of at least 1.
        MissingExtra: if the package of the extra `litert` is not installed.
    """
    check_number("source_length", source_length, least=1)
    with extra("litert"):
        import ai_edge_litert  # noqa: F401 (what was written is tried with it)

    longest = tf.fill([1, source_length], END)
    vocabulary = describe(model) | {"longest_source": source_length, "steps": model.limits(longest).numpy().item()}
    tokens = model.source_tokenizer.tokenize(list(probe)).numpy() if probe else []
    short = [text for text, ids in zip(probe, tokens, strict=True) if (ids != PADDING).sum() <= source_length]
    write_graphs(model, folder, "LiteRT", lambda function: _converted(model, function), vocabulary, short)


def _converted(model, function):
    """A function of tensors by name as the content of a .tflite file, in which it is the only signature."""
    module = tf.Module()
    module.weights = [weight.value for weight in model.variables]
    with tempfile.TemporaryDirectory() as saved:
        tf.saved_model.save(module, saved, signatures=function)
        return tf.lite.TFLiteConverter.from_saved_model(saved).convert()
