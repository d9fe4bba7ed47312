"""Check texts, turn them into tensors and back, and group them into batches of similar length."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines import OptionError
from pipelines.options import one_line
from pipelines.tokens import PADDING
from seq2seq.decoding import LIMITED, NEG_INF, STOPPED
from seq2seq.layers import row_lengths

_BATCH_LENGTH = 256  # from this length on, a batch holds fewer texts, so that memory does not grow with it


def in_batches(
    run: Callable[[np.ndarray], Any], lengths: np.ndarray, batch_size: int, what: str = "texts"
) -> tuple[list, np.ndarray]:
    """Call a function with the places of texts of similar length, so that short ones do not wait for long ones.

    Return the result for each batch, and the order that restores the original order of the texts.
    """
    order = np.argsort(lengths, kind="stable")
    sizes = np.maximum(np.asarray(lengths)[order], _BATCH_LENGTH)
    done, first = [], 0
    while first < len(order):
        rows = sizes[first : first + batch_size]
        fit = np.arange(1, len(rows) + 1) * rows <= batch_size * _BATCH_LENGTH
        batch = order[first : first + max(1, int(np.count_nonzero(fit)))]
        try:
            done.append(run(batch))
        except tf.errors.ResourceExhaustedError as error:
            together = f"out of memory for {len(batch)} {what} together"
            raise MemoryError(f"{together}; lower batch_size={batch_size}") from error
        first += len(batch)
    return done, np.argsort(order)


def as_strings(argument: str, texts: Any) -> tf.Tensor:
    """Texts as a string tensor `[N]`, or `[]` for a single string."""
    if not tf.executing_eagerly():
        raise OptionError(f"{argument}: not in a graph (tf.function, Dataset.map); call `translate_batch` there")
    if isinstance(texts, set | frozenset | dict):
        raise OptionError(f"{argument}: a {type(texts).__name__} has no order; expected a list of strings")
    if isinstance(texts, Iterable) and not isinstance(texts, str | bytes) and not hasattr(texts, "shape"):
        texts = list(texts)  # such as a generator or a dataset
    try:
        found = tf.convert_to_tensor(texts, tf.string)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise OptionError(f"{argument}: expected a string, or a list of strings ({one_line(error)})") from None
    if found.shape.rank > 1:
        raise OptionError(f"{argument}: expected a string, or a list of strings, not an array of shape {found.shape}")
    return found


def as_targets(targets: Any, sources: tf.Tensor, vocabulary_size: int) -> tf.Tensor:
    """Targets of sources `[N]`: N strings, or ids `[N, T]` as they are."""
    axes = getattr(targets, "ndim", 0)
    if axes < 2:
        found = tf.reshape(as_strings("targets", targets), [-1])
    else:
        ids = np.asarray(targets)
        padding = ids == PADDING
        if axes > 2 or ids.dtype.kind not in "iu" or np.any((ids < 0) | (ids >= vocabulary_size)):
            raise OptionError(f"targets: expected strings, or ids [N, T] below {vocabulary_size}, as found.ids[:, 0]")
        if np.any(padding[:, :-1] & ~padding[:, 1:]):
            raise OptionError("targets: expected ids that are padded on the right only")
        found = tf.cast(ids, tf.int32)
    if len(found) != len(sources):
        raise OptionError(f"targets: expected as many as sources, {len(sources)}, not {len(found)}")
    return found


def bytes_or_tokens(texts: tf.Tensor) -> np.ndarray:
    """The length of each of texts `[N]` in bytes, or of each row of ids `[N, T]` in tokens: an array `[N]`."""
    return (tf.strings.length(texts) if texts.dtype == tf.string else row_lengths(texts)).numpy()


def as_python(strings: tf.Tensor) -> Any:
    """A tensor of strings as `str`, or lists of it."""
    return tf.nest.map_structure(bytes.decode, np.array(strings.numpy(), object).tolist())


def first_different(count: int, texts: tf.Tensor, *known: tf.Tensor) -> list[tf.Tensor]:
    """Of the texts of N hypotheses of each source, `[B, N]`, and the other parts of `Translations` if they are known,
    the first so many with different texts.

    If there are fewer, empty hypotheses follow, as in `BeamSearch`.
    """
    equal = tf.cast(texts[:, :, None] == texts[:, None], tf.int32)
    repeated = tf.argmax(equal, axis=2, output_type=tf.int32) < tf.range(tf.shape(texts)[1])
    order = tf.argsort(tf.cast(repeated, tf.int32), axis=1, stable=True)[:, :count]
    nothing = "", NEG_INF, NEG_INF, STOPPED[LIMITED], PADDING
    found = zip((texts, *known), nothing, strict=False)
    where = {2: repeated, 3: repeated[:, :, None]}
    return [tf.gather(tf.where(where[each.shape.rank], empty, each), order, batch_dims=1) for each, empty in found]
