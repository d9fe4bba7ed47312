"""Check what `fit`, `evaluate` and their like are given, for which Keras has no helpful message."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from pipelines import OptionError
from pipelines.tokens import PADDING, START, Tokenizer
from seq2seq.layers import token_ids


def checked_batch(data: Any) -> tuple[tf.Tensor, ...]:
    """What Keras gives a step, as (source, target), or as (source, target, weights `[B, T]`) if there are weights.

    Raises:
        OptionError: for data of another form.
    """
    source, target, weights = keras.utils.unpack_x_y_sample_weight(data)
    sides = tuple(
        None if isinstance(side, tuple | list | dict | tf.RaggedTensor | None) else tf.convert_to_tensor(side)
        for side in (source, target)
    )
    if any(side is None or side.dtype == tf.string or side.shape.rank not in (2, 3) for side in sides):
        raise OptionError(
            "fit, evaluate: expected (source, target), ids [B, S] and [B, T + 1] or their one-hot rows, as batch_pairs "
            "makes them; the decoder's input and labels are made from the target"
        )
    for side in sides:
        if side is not None and (side.shape.rank == 2) != side.dtype.is_integer:
            raise OptionError(
                "fit, evaluate: expected ids [B, S] of an integer type, or one-hot rows [B, S, V] of floats, not "
                f"{side.dtype.name} {side.shape}"
            )
    if weights is None:
        return sides
    rows, length = tf.unstack(tf.shape(sides[1])[:2])
    each = tf.reshape(tf.cast(weights, tf.float32), [rows, -1])  # of pairs `[B, 1]`, or of labels
    return *sides, tf.broadcast_to(each, [rows, length - 1])


def check_data(place: str, tokenizers: tuple[Tokenizer, Tokenizer], source: Any, target: Any = None, *_: Any) -> None:
    """Check data for a model with these tokenizers: two arrays, or a dataset. No batch of a dataset is read.

    Raises:
        OptionError: for texts, one-hot rows of other sizes, and what `with_checks` finds in arrays.
    """
    refuse_texts(place, source)
    if target is None:
        sides = getattr(source, "element_spec", None)
        check_sizes(place, tokenizers, sides if isinstance(sides, tuple) else ())
        return
    check_sizes(place, tokenizers, (source, target))
    with tf.device("CPU"):
        for wrong, fault in _faults(checked_batch((source, target)), tokenizers):
            if wrong:
                raise OptionError(f"{place}: {fault}")


def check_sizes(place: str, tokenizers: tuple[Tokenizer, Tokenizer], sides: tuple) -> None:
    """Check that one-hot rows have a place for each token of the vocabulary.

    Args:
        place: the method that was called.
        tokenizers: those of the model.
        sides: source and target, tensors or what describes them; what follows is ignored.

    Raises:
        OptionError: if not.
    """
    for name, side, tokenizer in zip(("source", "target"), sides, tokenizers, strict=False):
        shape, size = tf.TensorShape(getattr(side, "shape", None)), tokenizer.vocabulary_size
        if shape.rank == 3 and shape[2] not in (None, size):
            raise OptionError(
                f"{place}: one-hot {name} rows of {shape[2]} tokens, but the {name} vocabulary has {size}; "
                "make batches with the tokenizers of the model, after `adapt`"
            )


def _faults(batch, tokenizers):
    """Yield (whether a batch has it, fault) for each fault that training would not notice, or not name."""
    source, target, *_ = batch
    short = (tf.shape(source)[1] < 1) | (tf.shape(target)[1] < 2)
    yield short, "expected one source token or more, and START with one target token or more"
    for name, side, tokenizer in zip(("source", "target"), (source, target), tokenizers, strict=True):
        ids = token_ids(side)
        unknown = tf.reduce_any(ids >= tokenizer.vocabulary_size)
        yield unknown, f"a {name} has an id that its vocabulary lacks; make batches with the tokenizers of the model"
        real = ids != PADDING
        early = tf.reduce_any(real[:, 1:] & ~real[:, :-1])
        yield early, f"a {name} has padding before a token; expected it after the last one"
    first = token_ids(target[:, :1])
    begun = tf.reduce_all((first == START) | (first == PADDING))
    yield ~begun, "a target does not begin with START; `tokenize` adds it with start_end=True"


def with_checks(data: Any, tokenizers: tuple[Tokenizer, Tokenizer]) -> Any:
    """The data of a step; reading it fails if the batch has a fault, so before anything changes. `refused_batches`
    turns the error into an `OptionError`."""
    checks = [tf.debugging.Assert(~wrong, [fault]) for wrong, fault in _faults(checked_batch(data), tokenizers)]
    with tf.control_dependencies(checks):
        return tf.nest.map_structure(lambda part: None if part is None else tf.identity(part), data)


@contextlib.contextmanager
def refused_batches(tokenizers: tuple[Tokenizer, Tokenizer]) -> Iterator[None]:
    """Raise an `OptionError` for a fault that `with_checks` has found."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        nothing = tf.ones([1, 1], tf.int32)
        for _, fault in _faults((nothing, nothing), tokenizers):
            if fault in error.message:
                raise OptionError(f"fit: {fault}") from None
        raise


def refuse_class_weight(class_weight: Any) -> None:
    """Refuse what Keras would apply to rows of labels."""
    if class_weight is not None:
        raise OptionError("class_weight: pairs have no classes; weight them, or their labels, with sample_weight")


def refuse_texts(method: str, x: Any) -> None:
    """Refuse texts instead of batches, for which Keras has no helpful message."""
    found = tf.nest.flatten(getattr(x, "element_spec", x))
    if not found:
        raise OptionError(f"{method}: expected batches of ids or one-hot rows, not {x!r}")
    first = found[0]
    kind = getattr(first, "dtype", None)
    if isinstance(first, str | bytes) or kind == tf.string or getattr(kind, "kind", "") in ("U", "S", "O"):
        translates = method in ("predict", "call")
        instead = "`translate` takes texts" if translates else "batch_pairs makes them of pairs of texts"
        raise OptionError(f"{method}: expected batches of ids or one-hot rows, not texts; {instead}")
