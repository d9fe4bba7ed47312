"""The target of a graph: a CPU, a GPU or a converter to another format; parallel parts of a batch; compilation by
XLA."""

import contextlib
import contextvars
import functools
import os
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import config as determinism  # no public function says whether it is on

from pipelines.options import one_line

# What XLA raises if it cannot compile; the last two if it lacks parts of CUDA.
XLA_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.InternalError,
    tf.errors.NotFoundError,
)

_exporting_to = contextvars.ContextVar("exporting_to", default="")


@contextlib.contextmanager
def exporting(to: str = "tensorflow") -> Iterator[None]:
    """A context for graphs that are exported and run on any device: without cuDNN, parallel parts and gradients. For
    another format than TensorFlow's, they have only operations that converters support, which may be slower."""
    token = _exporting_to.set(to)
    try:
        yield
    finally:
        _exporting_to.reset(token)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """A context in which a GPU does not round the factors of products to 10 bits (TF32), so that results can be
    compared with those of a CPU. TensorFlow has only one such setting for all threads."""
    rounds = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(rounds)


def is_exporting() -> bool:
    """Whether this is within `exporting`."""
    return bool(_exporting_to.get())


def is_converting() -> bool:
    """Whether this is within `exporting` to another format than TensorFlow's."""
    return _exporting_to.get() not in ("", "tensorflow")


def on_gpu() -> bool:
    """Whether TensorFlow computes on a GPU."""
    return bool(tf.config.list_logical_devices("GPU"))


def is_deterministic() -> bool:
    """Whether all operations are deterministic: bit-identical in each run."""
    return determinism.is_op_determinism_enabled()


def threads() -> int:
    """How many operations can run in parallel, at most 16."""
    return min(16, tf.config.threading.get_inter_op_parallelism_threads() or len(os.sched_getaffinity(0)))


def parts_of_batch() -> int:
    """The number of parts of a batch that are computed in parallel, each by its own core or cores.

    If the program has set threads (`tf.config.threading`), it is the number of inter-op threads divided by the number
    of intra-op threads: the operations of a recurrent step are too small to be divided further. The command line sets
    them for 2 parts (1 on a single core, 3 on three cores). It is 1 if they are not set, on a GPU and in exports.
    """
    if is_exporting() or on_gpu():
        return 1
    threads = tf.config.threading.get_inter_op_parallelism_threads()
    each = tf.config.threading.get_intra_op_parallelism_threads()
    return max(1, threads // each) if each else 1


def side_by_side(
    run: Callable, parts: int, *tensors: tf.Tensor, join: Callable = lambda *parts: tf.concat(parts, axis=0)
) -> Any:
    """Call a function with parts of the rows of tensors, and join its results, nests of tensors. `join` makes one
    tensor of those of all parts; by default it concatenates them."""
    if parts == 1:
        return run(*tensors)
    rows = tf.shape(tensors[0])[0]
    missing = tf.maximum(parts - rows, 0)  # as not every layer takes an empty batch
    padded = [tf.concat([tensor, tf.repeat(_first_row(tensor), missing, axis=0)], axis=0) for tensor in tensors]
    sizes = [(rows + missing) // parts] * (parts - 1)
    sizes.append(rows + missing - sum(sizes))
    done = [run(*part) for part in zip(*(tf.split(tensor, sizes) for tensor in padded), strict=True)]
    return tf.nest.map_structure(lambda *parts: join(*parts)[:rows], *done)


def _first_row(tensor):
    """The first row `[1, ...]`, or zeros if there is none."""
    nothing = tf.zeros(tf.concat([[1], tf.shape(tensor)[1:]], axis=0), tensor.dtype)
    return tf.concat([tensor[:1], nothing], axis=0)[:1]


def compiled_by_xla(what: str, run: Callable, specs: Sequence[tf.TensorSpec]) -> Callable | None:
    """A function compiled by XLA, for arguments of constant shapes.

    Args:
        what: a description of the function, for the warning.
        run: the function, of tensors of these `specs`.

    Returns:
        The function; None, with a warning, if XLA refuses some operation in it.
    """
    compiled = tf.function(run, list(specs), jit_compile=True, autograph=False)
    try:
        compiled.get_concrete_function()
        with tf.init_scope():  # out of the graph that is being made
            arguments = [tf.zeros(spec.shape, spec.dtype) for spec in specs]
            compiled.experimental_get_compiler_ir(*arguments)(stage="hlo")  # compiles, but runs nothing
    except Exception as error:
        said = textwrap.shorten(one_line(error), 300)
        warnings.warn(f"{what} are not compiled, because XLA refuses them: {said}", stacklevel=2)
        return None
    return compiled


@functools.cache
def xla_works(probe: Callable = tf.exp) -> bool:
    """Return whether XLA can compile at all; warn once if it cannot, as when parts of CUDA are missing."""
    try:
        with tf.init_scope():
            tf.function(probe, jit_compile=True)(tf.ones([]))
    except tf.errors.OpError as error:
        warnings.warn(f"training is slower, because XLA cannot compile here: {one_line(error)}", stacklevel=2)
        return False
    return True


def rounded_up(size: tf.Tensor, least: int = 16) -> tf.Tensor:
    """`least`, doubled until it is at least `size`, so that XLA compiles few shapes."""
    return tf.bitwise.left_shift(least, tf.math.count_nonzero(size > least * 2 ** tf.range(20), dtype=tf.int32))


def padded(tokens: tf.Tensor, rows: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Ids `[B, T]`, or their one-hot form, padded to this many rows and tokens."""
    more = [rows, length] - tf.shape(tokens)[:2]
    return tf.pad(tokens, [[0, more[0]], [0, more[1]], *[[0, 0]] * (tokens.shape.rank - 2)])


def join_rows(*parts: tf.Tensor) -> tf.Tensor:
    """All rows of ids `[b, T]`, of which each part has another T."""
    longest = tf.reduce_max([tf.shape(ids)[1] for ids in parts])
    return tf.concat([padded(ids, tf.shape(ids)[0], longest) for ids in parts], axis=0)
