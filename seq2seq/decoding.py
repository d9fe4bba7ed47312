"""Decode loops on the device, step by step until every hypothesis has stopped; their inputs and their results.

Shapes: B sources, b of them still being decoded, K hypotheses of each in parallel, R = b x K rows in a step, T steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from pipelines.tokens import END, PADDING
from seq2seq.compilation import padded, rounded_up

# Why a hypothesis stopped: it emitted END, reached its limit, or repeated one phrase over and over.
STOPPED = ("end", "limit", "repetition")
ENDED, LIMITED, REPEATED = range(3)
RUNNING = -1

LONGEST_SOURCE = 1024  # tokens of a text that are translated; the rest is truncated

NEG_INF = float("-inf")  # the log-likelihood of an empty beam slot


State: TypeAlias = Any  # a nest of tensors
Step: TypeAlias = Callable[[tf.Tensor, State], tuple[tf.Tensor, State]]
StepFor: TypeAlias = Callable[[tf.Tensor], Step]
Loop: TypeAlias = Callable[..., tuple[Any, list[tf.Tensor]]]


class Constraints(NamedTuple):
    """The limits that a search for B sources must respect."""

    limits: tf.Tensor  # int32 [B], at least 1: the maximum length of hypotheses in tokens, END included
    min_length: int | tf.Tensor  # the minimum length, a scalar, END not included
    seeds: tf.Tensor  # int32 or int64 [B]; use all bits: a sample depends on no other randomness
    prefixes: tf.Tensor | None = None  # int32 [B, P], padded: the tokens that hypotheses begin with, below the limit

    def forced(self, t: tf.Tensor, sources: tf.Tensor, width: int) -> tf.Tensor | None:
        """The next token of the prefix of each row, PADDING after its end: int32 `[R]`; None without prefixes."""
        if self.prefixes is None:
            return None
        prefixes = tf.pad(self.prefixes, [[0, 0], [0, 1]])
        following = tf.gather(prefixes, tf.minimum(t, tf.shape(prefixes)[1] - 1), axis=1)
        return tf.repeat(tf.gather(following, sources), width)


class Hypotheses(NamedTuple):
    """The result of a search for each source, the best hypothesis first."""

    ids: tf.Tensor  # int32 [B, N, T] tokens up to and with END, then padding
    scores: tf.Tensor | None  # float32 [B, N] log-likelihoods in nats, END included; if None, `translate` computes them
    ranked_by: tf.Tensor | None  # float32 [B, N] what they are ordered by, see `BeamSearch`; None if scores are None
    stopped: tf.Tensor  # int32 [B, N] why: 0 ended with END, 1 reached the limit, 2 repeated itself; see STOPPED


def shrinking_loop(
    step_for: StepFor,
    extend: Callable,
    running: Callable,
    per_source: Any,
    per_row: Any,
    limits: tf.Tensor,
    width: int,
    recorded: int,
) -> tuple[Any, list[tf.Tensor]]:
    """Take steps until all sources have stopped: the fast loop on a CPU, where every row costs time.

    Whenever half of the sources in the batch have stopped, they are removed from it. So shapes change, which XLA cannot
    compile; on the other hand, a state may grow from step to step.

    Args:
        step_for: as in `Strategy.search`.
        extend: a function that takes a step: (t, step, sources `[b]`, per_source, per_row) -> (per_source, per_row,
            a list of tensors int32 `[b, K]` for the history). `sources` are the places of the b sources among all B.
        running: a function of per_source -> bool `[b]`, which sources continue.
        per_source: the search state of each source, a nest of tensors `[B, ...]`.
        per_row: the search state of each row, such as the decoder's, a nest of tensors `[R, ...]`.
        limits: int32 `[B]`, as in `Constraints`.
        width: K.
        recorded: the number of tensors that a step adds to the history.

    Returns:
        The search state of each source when it stopped, and the history: each recorded tensor, `[T, B, K]` over all
        steps taken, 0 for a source that had been removed.
    """
    batch = tf.shape(limits)[0]
    longest = tf.maximum(1, tf.reduce_max(limits))

    def some_are_left(t, sources, *_):
        return (t == 0) | (tf.size(sources) > 0)

    def decode_until_half_have_stopped(t, sources, per_source, per_row, final, arrays):
        step = step_for(sources)

        def most_run(t, per_source, *_):
            return (t == 0) | (2 * tf.math.count_nonzero(running(per_source), dtype=tf.int32) > tf.size(sources))

        def extend_all(t, per_source, per_row, arrays):
            per_source, per_row, found = extend(t, step, sources, per_source, per_row)
            found = [tf.scatter_nd(sources[:, None], some, [batch, width]) for some in found]
            return t + 1, per_source, per_row, _write(arrays, t, found)

        t, per_source, per_row, arrays = _while_sizes_change(most_run, extend_all, (t, per_source, per_row, arrays))
        final = tf.nest.map_structure(
            lambda all_of_them, some: tf.tensor_scatter_nd_update(all_of_them, sources[:, None], some),
            final,
            per_source,
        )
        left = tf.cast(tf.where(running(per_source))[:, 0], tf.int32)
        per_row = gather_rows(per_row, row_numbers(left, tf.range(width), width))
        return t, tf.gather(sources, left), gather_rows(per_source, left), per_row, final, arrays

    arrays = [tf.TensorArray(tf.int32, longest, element_shape=[None, width]) for _ in range(recorded)]
    variables = tf.constant(0), tf.range(batch), per_source, per_row, per_source, arrays
    steps, *_, final, arrays = _while_sizes_change(some_are_left, decode_until_half_have_stopped, variables)
    return final, [array.gather(tf.range(steps)) for array in arrays]


STEPS_PER_CHECK = 16  # steps that a `masking_loop` takes on a GPU between checks whether any source is still running


def masking_loop(steps: int | tf.Tensor, steps_per_check: int = STEPS_PER_CHECK) -> Loop:
    """Make a loop of fixed shapes that XLA can compile: the fast loop on a GPU, where a wait costs more than a row.

    Sources that have stopped stay in the batch, and their further tokens are masked. A check whether to continue makes
    a GPU wait, so the loop takes several steps without one. The shapes of the decoder's state must stay constant.

    Args:
        steps: the number of steps in the history, a multiple of `steps_per_check` and at least the highest limit. For
            compilation, it must be a number or the size of a tensor.
        steps_per_check: the number of steps between checks. On a CPU, a check costs nothing.

    Returns:
        A function like `shrinking_loop`, whose history always has `steps` steps.
    """

    def loop(step_for, extend, running, per_source, per_row, limits, width, recorded):
        batch = tf.shape(limits)[0]
        sources = tf.range(batch)
        step = step_for(sources)

        def some_run(t, per_source, *_):
            return (t < steps) & tf.reduce_any(running(per_source))

        def extend_unasked(t, *variables):
            def extend_all(i, per_source, per_row, arrays):
                per_source, per_row, found = extend(t + i, step, sources, per_source, per_row)
                return i + 1, per_source, per_row, _write(arrays, t + i, found)

            _, *variables = tf.while_loop(lambda i, *_: i < steps_per_check, extend_all, (0, *variables))
            return t + steps_per_check, *variables

        nothing = tf.zeros([steps, batch, width], tf.int32)
        arrays = [tf.TensorArray(tf.int32, steps).unstack(nothing) for _ in range(recorded)]
        _, final, _, arrays = tf.while_loop(some_run, extend_unasked, (0, per_source, per_row, arrays))
        return final, [array.stack() for array in arrays]

    return loop


def padded_to_few_shapes(
    source: tf.Tensor, constraints: Constraints, least_rows: int = 16
) -> tuple[tf.Tensor, Constraints, tf.Tensor]:
    """Pad a batch to one of few shapes, of `least_rows` rows or more, for a search that XLA compiles.

    Returns:
        The sources, their constraints, and a tensor whose size is the largest limit, rounded up. XLA knows sizes when
        it compiles, but not values.
    """
    with tf.device("CPU"):  # where all sizes are known
        rows, length = tf.unstack(tf.shape(source)[:2])
        all_rows = rounded_up(rows, least_rows)
        source = padded(source, all_rows, rounded_up(length))
        # Rows that only fill the batch up are done after one step.
        missing = [[0, all_rows - rows]]
        limits, seeds = (tf.pad(x, missing, constant_values=1) for x in (constraints.limits, constraints.seeds))
        prefixes = constraints.prefixes
        if prefixes is not None:
            prefixes = padded(prefixes, all_rows, rounded_up(tf.shape(prefixes)[1]))
        room = tf.zeros([rounded_up(tf.reduce_max(limits))])
    return source, constraints._replace(limits=limits, seeds=seeds, prefixes=prefixes), room


def first_rows(found: Hypotheses, rows: tf.Tensor) -> Hypotheses:
    """The hypotheses of the first sources, as long as the longest of all."""
    with tf.device("CPU"):
        longest = tf.reduce_max(tf.math.count_nonzero(found.ids, axis=2, dtype=tf.int32))
        found = found._replace(ids=found.ids[:, :, :longest])
        return Hypotheses(*(part if part is None else part[:rows] for part in found))


def _write(arrays, t, tensors):
    return [array.write(t, tensor) for array, tensor in zip(arrays, tensors, strict=True)]


def _while_sizes_change(running, extend, variables):
    """`tf.while_loop` over variables whose shapes may change, but not their ranks."""

    def any_size(variable):
        return tf.TensorShape(None if isinstance(variable, tf.TensorArray) else [None] * variable.shape.rank)

    return tf.while_loop(running, extend, variables, shape_invariants=tf.nest.map_structure(any_size, variables))


def row_numbers(sources: tf.Tensor, slots: tf.Tensor, width: int) -> tf.Tensor:
    """The rows `[b x n]` of hypotheses in slots `[n]` or `[b, n]` among the `width` of each of the sources `[b]`."""
    return tf.reshape(sources[:, None] * width + slots, [-1])


def gather_rows(tensors: Any, rows: tf.Tensor) -> Any:
    """Some rows of each tensor of a nest; None stays None."""
    return tf.nest.map_structure(lambda tensor: None if tensor is None else tf.gather(tensor, rows), tensors)


# Degenerate output repeats one phrase until it reaches the limit. The longest phrase that is detected, in
# tokens, and how many tokens of repetition are allowed, or half the limit if that is more.
PHRASE = 8
LEAST_REPETITION = 16


class Repetition(NamedTuple):
    """The state of each hypothesis that is needed to detect repetition; column p - 1 is for phrases of p tokens."""

    recent: tf.Tensor  # int32 [R, 8] the token p places back
    runs: tf.Tensor  # int32 [R, 8] how many tokens in a row have equalled the one p places before them

    @classmethod
    def none(cls, rows: int | tf.Tensor) -> "Repetition":
        """The state of this many hypotheses without a token."""
        return cls(tf.fill([rows, PHRASE], PADDING), tf.zeros([rows, PHRASE], tf.int32))

    def after(self, tokens: tf.Tensor, forced: tf.Tensor | None) -> "Repetition":
        """Add a token to each hypothesis, int32 `[R]`; those of a prefix, if `forced` is not padding, do not count."""
        tokens = tokens[:, None]
        again = tf.equal(self.recent, tokens)
        if forced is not None:
            again &= (forced == PADDING)[:, None]
        return Repetition(tf.concat([tokens, self.recent[:, :-1]], axis=1), tf.where(again, self.runs + 1, 0))


def why_stopped(
    tokens: tf.Tensor, length: tf.Tensor, limits: tf.Tensor, runs: tf.Tensor, min_length: int | tf.Tensor
) -> tf.Tensor:
    """Why hypotheses of this length stop after their newest tokens, as indices in STOPPED; RUNNING if they do not.

    `tokens` have any shape, `limits` one that broadcasts to it, and `runs`, those of `Repetition`, one more axis.
    """
    repeated = tf.reduce_max(runs, axis=-1) >= tf.maximum(limits // 2, LEAST_REPETITION)
    repeated &= length >= min_length
    cut = tf.where(repeated, REPEATED, tf.where(length >= limits, LIMITED, RUNNING))
    return tf.where(tokens == END, ENDED, cut)
