"""ONNX graphs of a trained model, and the runtime that translates with them: for programs without TensorFlow.

Graphs of other formats, such as LiteRT, are also written by `write_graphs`.
"""

import contextlib
import functools
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from pipelines.columns import ColumnsTokenizer
from pipelines.options import extra
from pipelines.subwords import SubwordTokenizer
from pipelines.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    LetterTokenizer,
    SeparatorTokenizer,
    WhitespaceTokenizer,
)
from pipelines.tokens import END, START, Tokenizer
from seq2seq import onnx_runtime
from seq2seq.compilation import exporting
from seq2seq.contract import encode, start
from seq2seq.decoding import LONGEST_SOURCE
from seq2seq.exporting import cannot_export, check_same
from seq2seq.records import RunError
from seq2seq.startup import without_stderr
from seq2seq.strategies import BeamSearch

OPSET = 17  # of 2022, which onnxruntime reads since 1.12
_SUFFIXES = {"ONNX": "onnx", "LiteRT": "tflite"}
_KINDS: dict[type[Tokenizer], str] = {
    CharTokenizer: "characters",
    LetterTokenizer: "letters",
    ByteTokenizer: "bytes",
    WhitespaceTokenizer: "whitespace",
    SeparatorTokenizer: "separator",
    SubwordTokenizer: "subwords",
}


def export_onnx(model: keras.Model, folder: Path, probe: Sequence[str] = ()) -> None:
    """Write a folder that translates without TensorFlow; it includes a copy of `seq2seq/onnx_runtime.py`.

    Its graphs take ids and return scores, so that every ONNX runtime has their operations:

    - `encoder.onnx`: `source` int32 `[B, S]`, and `steps`, the maximum number of tokens, if the state needs room for
      them -> the inputs of each decoder step, `encoded_*` `[B, ...]`, and the initial `state_*` `[B, ...]`.
    - `decoder.onnx`, one step: `token` int32 `[R]`, `encoded_*`, `state_*` `[R, ...]` -> `logits` `[R, V]`,
      `next_state_*`, and `attention` `[R, S]` if the decoder has any. R is B times the number of hypotheses of each
      source, which are adjacent.
    - `vocabulary.json`: both tokenizers, and the limits of translations. `probe.json`: the probe's greedy translations.

    Args:
        model: a `Seq2Seq`.
        folder: the folder to make.
        probe: texts for which the exported model must give the same translations as the model, by greedy search and by
            beam search.

    Raises:
        RunError: if the model cannot be converted, or translations differ.
        MissingExtra: if the packages of the extra `onnx` are not installed.
    """
    with extra("onnx"):
        import onnx  # noqa: F401 (tf2onnx needs it)
        import onnxruntime  # noqa: F401 (what was written is tried with it)
        import tf2onnx

    for part in (model.encoder, model.decoder):  # of an ensemble, they have the precision of the least precise member
        if part.compute_dtype != "float32":
            raise RunError(f"a model of {part.dtype_policy.name} cannot be exported to ONNX with the same results")

    def convert(function):
        graph, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=OPSET)
        return graph.SerializeToString()

    write_graphs(model, folder, "ONNX", convert, describe(model), probe)


def write_graphs(
    model: keras.Model,
    folder: Path,
    form: str,
    convert: Callable[[Any], bytes],
    vocabulary: dict[str, Any],
    probe: Sequence[str],
) -> None:
    """Write both graphs and their runtime, and check that they translate the probe as the model does.

    Args:
        model, folder: as in `export_onnx`.
        form: "ONNX" or "LiteRT".
        convert: the content of a graph's file, for a function of tensors by name.
        vocabulary: the result of `describe`; with `steps` if all sizes are to be fixed.
        probe: texts.

    Raises:
        RunError: if the model cannot be converted, or translations differ.
    """
    folder.mkdir(parents=True)
    sizes = (vocabulary["longest_source"], vocabulary["steps"]) if "steps" in vocabulary else None
    try:
        with exporting(to=form), _quietly():
            for name, function in zip(("encoder", "decoder"), _functions(model, sizes), strict=True):
                (folder / f"{name}.{_SUFFIXES[form]}").write_bytes(convert(function))
    except (RunError, OSError, MemoryError):
        raise
    except Exception as error:  # TensorFlow and the converters raise exceptions of any class
        raise cannot_export(model, error, form) from error
    (folder / "vocabulary.json").write_bytes(json.dumps(vocabulary, ensure_ascii=False, allow_nan=False).encode())
    shutil.copy(onnx_runtime.__file__, folder / "translator.py")
    translations = _compare(model, folder, list(probe), form)
    (folder / "probe.json").write_bytes(json.dumps(translations, ensure_ascii=False, indent=1).encode())


def describe(model: keras.Model) -> dict[str, Any]:
    """Everything that is not in the graphs, for `vocabulary.json`: both tokenizers, and the length limit of
    translations.

    Raises:
        RunError: for a tokenizer that cannot be used outside TensorFlow.
    """
    if isinstance(model.target_tokenizer, ColumnsTokenizer):
        raise RunError(
            "target_tokenizer=ColumnsTokenizer: targets of several columns cannot be used outside TensorFlow"
        )
    sides = {side: describe_tokenizer(side, getattr(model, side)) for side in ("source_tokenizer", "target_tokenizer")}
    return {
        "source": sides["source_tokenizer"],
        "target": sides["target_tokenizer"],
        "limit": model.longest_ratio().numpy().item(),
        "longest_source": LONGEST_SOURCE,
    }


def describe_tokenizer(side: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """The description of a tokenizer for a runtime; `side` is its name in messages."""
    if type(tokenizer) is ColumnsTokenizer:
        parts = [describe_tokenizer(side, part) for part in tokenizer.tokenizers]
        ids = [table.tolist() for table in tokenizer.ids_of_columns]
        return {"kind": "columns", "names": tokenizer.column_names, "columns": list(zip(parts, ids, strict=True))}
    if type(tokenizer) not in _KINDS:
        known = ", ".join(kind.__name__ for kind in _KINDS)
        raise RunError(f"{side}={type(tokenizer).__name__}: cannot be used outside TensorFlow; these can: {known}")
    saved: dict[str, Any] = {"kind": _KINDS[type(tokenizer)], "normal_form": tokenizer.normal_form}
    if tokenizer.lowercase:
        saved["fold"] = _case_folding()
    if isinstance(tokenizer, SeparatorTokenizer):
        saved["separator"] = tokenizer.separator
    if isinstance(tokenizer, SubwordTokenizer):
        with extra("subword"):
            from sentencepiece import sentencepiece_model_pb2

        pieces = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model).pieces
        saved["scores"] = [piece.score for piece in pieces[len(pieces) - len(tokenizer.tokens) :]]
    if not isinstance(tokenizer, ByteTokenizer):
        saved["tokens"] = tokenizer.tokens
    return saved


@functools.cache
def _case_folding():
    """NFKC_Casefold of each character that it changes (The Unicode Standard, section 3.13): JavaScript has no such
    function, and Python's has other tables."""
    characters = [chr(point) for point in (*range(0xD800), *range(0xE000, 0x110000))]
    folded = tf_text.case_fold_utf8(characters).numpy().tolist()
    pairs = zip(characters, (text.decode() for text in folded), strict=True)
    return {character: text for character, text in pairs if text != character}


def _functions(model, sizes):
    """The encoder and a step of the decoder: functions of tensors by name, as described in `export_onnx`.

    The encoder is traced once, to learn the names of everything that `start` returns, in the order of the flattened
    nests (`every`). Each names None, a constant of the model, or a tensor that a step takes (`taken`). The exported
    encoder returns only these tensors. The exported step puts everything back in order.

    `sizes` are S and the maximum number of steps, if all sizes are to be fixed, for a single source and hypothesis;
    otherwise None. A `RunError` is raised if a tensor that the decoder prepares does not have a row for each source.
    """
    nests: dict[str, Any] = {}  # what the decoder's `start` returns; tracing `encoder` fills it
    looks = {"return_attention": True} if model.has_attention else {}

    def encoder(source, steps):
        encoded, state = start(model.decoder, encode(model.encoder, source), steps)
        nests.update(encoded=encoded, state=state)
        return {name: tf.identity(tensor) for name, tensor in _named(**nests).items() if tensor is not None}

    source, steps = tf.TensorSpec([None, None], tf.int32, "source"), tf.TensorSpec([], tf.int32, "steps")
    encode_all: Any = tf.function(encoder, input_signature=[source, steps], autograph=False)
    traced = encode_all.get_concrete_function().structured_outputs
    every = list(_named(**nests))
    constants = _constants(encode_all, traced)
    taken = [name for name in traced if name not in constants]

    def decoder(token, *tensors):
        given = dict(zip(taken, tensors, strict=True)) | {name: tf.constant(x) for name, x in constants.items()}
        encoded, state = tf.nest.pack_sequence_as(list(nests.values()), [given.get(name) for name in every])
        logits, state, *weights = model.decoder(token[:, None], encoded, state, **looks)
        after = {f"next_{name}": tf.identity(tensor) for name, tensor in _named(state=state).items()}
        scores = zip(("logits", "attention"), (logits, *weights), strict=False)
        return {name: tf.cast(tensor[:, 0], tf.float32) for name, tensor in scores} | after

    def encoder_without_constants(source, steps=sizes and sizes[1]):
        return {name: tensor for name, tensor in encoder(source, steps).items() if name in taken}

    rows = 1 if sizes else None
    signature = [tf.TensorSpec([rows, sizes[0]], tf.int32, "source")] if sizes else [source, steps]
    encode_some: Any = tf.function(encoder_without_constants, input_signature=signature, autograph=False)
    found = encode_some.get_concrete_function().structured_outputs
    specs = [tf.TensorSpec([rows, *found[name].shape[1:]], found[name].dtype, name) for name in taken]
    signature = [tf.TensorSpec([rows], tf.int32, "token"), *specs]
    return [encode_some, tf.function(decoder, input_signature=signature, autograph=False)]


def _named(**nests):
    """The tensors of nests by their names in the graphs."""
    return {f"{name}_{number}": x for name, nest in nests.items() for number, x in enumerate(tf.nest.flatten(nest))}


def _constants(encode_all, traced):
    """The encoder's results that are the same for all sources, such as products of two weights.

    Raises:
        RunError: if a result is neither constant nor has one row for each source, so a runtime could not use it.
    """
    two, three = (encode_all([[token] * rows] * rows, 3) for rows, token in ((2, START), (3, END)))
    constants = {}
    for name, tensor in traced.items():
        if tensor.shape.rank and tensor.shape[0] is None:
            if (len(two[name]), len(three[name])) == (2, 3):
                continue
        elif two[name].shape == three[name].shape and np.array_equal(two[name], three[name]):
            constants[name] = two[name].numpy()
            continue
        raise RunError(f"start: a tensor {tensor.shape} of the decoder is neither constant nor has one row per source")
    return constants


def _compare(model, folder, probe, form):
    """Check that the exported model translates as the model does; return the greedy translations by source."""
    try:
        translator, beam = onnx_runtime.Translator(folder), BeamSearch()
    except ValueError as error:  # an operation that tf2onnx leaves as it is
        raise cannot_export(model, error, form) from None
    if not probe:
        return {}
    greedy = [text.decode() for text in model.translate(probe).numpy()]
    same = [one == other for one, other in zip(greedy, translator.translate(probe), strict=True)]
    if beam.width <= model.target_tokenizer.vocabulary_size - END and not translator.one_by_one:
        best = model.translate(probe, beam, details=True)
        found = translator.search(probe, beam_width=beam.width, length_penalty=beam.length_penalty)
        right = zip(best.texts.numpy()[:, 0], best.ranked_by.numpy()[:, 0], strict=True)
        for number, ((text, rank), (other, *_)) in enumerate(zip(right, found, strict=True)):
            # The last digit of a rank breaks ties between hypotheses, whose texts may differ.
            same[number] &= abs(rank - other.ranked_by) < (1e-3 if text.decode() == other.text else 1e-5)
    check_same(probe, same)
    return dict(zip(probe, greedy, strict=True))


@contextlib.contextmanager
def _quietly():
    """Suppress warnings and logs of the converters, which are meant for their developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), without_stderr():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
