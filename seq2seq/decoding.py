"""Decode loops on the device: one step after another, until all hypotheses have stopped.

Shapes: B sources, b of them still decoded, K hypotheses of each side by side, R = b x K rows in a step, T steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from pipelines.tokenizers import END, PADDING

# Why a hypothesis stopped: it emitted END, reached its limit, or said one phrase over and over.
STOPPED = ("end", "limit", "repetition")
ENDED, LIMITED, REPEATED = range(3)
RUNNING = -1

NEVER = float("-inf")  # the log-likelihood of what is no hypothesis


State: TypeAlias = Any  # a nest of tensors
Step: TypeAlias = Callable[[tf.Tensor, State], tuple[tf.Tensor, State]]
StepFor: TypeAlias = Callable[[tf.Tensor], Step]
Loop: TypeAlias = Callable[..., tuple[Any, list[tf.Tensor]]]


def shrinking_loop(
    step_for: StepFor,
    extend: Callable,
    running: Callable,
    now: Any,
    state: State,
    limits: tf.Tensor,
    history: list,
    width: int = 1,
) -> tuple[Any, list[tf.Tensor]]:
    """Takes one step after another until all sources have stopped: the fast way on a CPU, where every row costs time.

    Whenever half of the sources in the batch have stopped, it goes on without them. So sizes change, which XLA cannot
    compile; in return a state may grow from step to step.

    Args:
        step_for, state: as in `Strategy.search`.
        limits: int32 `[B]`, as in `Wanted`.
        extend: a function (t, step, sources `[b]`, now, rows) -> (now, rows, what to write in the history, `[b, ...]`).
        running: a function of now -> bool `[b]`, which sources go on.
        now: what is known of each source, a nest of tensors `[B, ...]`.
        history: the shape of each int32 tensor that is written at a step, without the sources.
        width: how many rows each source has, K. `rows` are their state and what is known of their repetition.

    Returns:
        What was known of each source when it stopped, and the history: of each tensor written, `[T, B, ...]` over all
        steps taken, 0 for a source that had left.
    """
    batch = tf.shape(limits)[0]
    longest = tf.maximum(1, tf.reduce_max(limits))

    def some_are_left(t, sources, *_):
        return (t == 0) | (tf.size(sources) > 0)

    def go_on(t, sources, now, rows, last, arrays):
        step = step_for(sources)

        def most_run(t, now, *_):
            return (t == 0) | (2 * tf.math.count_nonzero(running(now), dtype=tf.int32) > tf.size(sources))

        def extend_all(t, now, rows, arrays):
            now, rows, written = extend(t, step, sources, now, rows)
            each = zip(written, history, strict=True)
            written = [tf.scatter_nd(sources[:, None], some, [batch, *shape]) for some, shape in each]
            return t + 1, now, rows, _write(arrays, t, written)

        t, now, rows, arrays = _while(most_run, extend_all, (t, now, rows, arrays))
        last = tf.nest.map_structure(
            lambda every, some: tf.tensor_scatter_nd_update(every, sources[:, None], some), last, now
        )
        left = tf.cast(tf.where(running(now))[:, 0], tf.int32)
        rows = take(rows, _rows(left, tf.range(width), width))
        return t, tf.gather(sources, left), take(now, left), rows, last, arrays

    arrays = [tf.TensorArray(tf.int32, longest, element_shape=[None, *shape]) for shape in history]
    rows = _no_repetition(batch * width), state
    steps, *_, last, arrays = _while(some_are_left, go_on, (tf.constant(0), tf.range(batch), now, rows, now, arrays))
    return last, [array.gather(tf.range(steps)) for array in arrays]


STEPS_UNASKED = 16  # that a `masking_loop` takes before it asks again whether any source still runs


def masking_loop(blocks: int | tf.Tensor) -> Loop:
    """Makes a loop of fixed sizes that XLA can compile: the fast way on a GPU, where a wait costs more than a row.

    Sources that have stopped stay in the batch, and their further tokens are masked. A GPU that asks whether to go on
    waits for the answer, so the loop takes `STEPS_UNASKED` steps without a question. The decoder's state must keep its
    sizes.

    Args:
        blocks: how many times so many steps the highest limit may be; when compiled, a number or the size of a tensor.

    Returns:
        A function like `shrinking_loop`, whose history always has blocks x STEPS_UNASKED steps.
    """

    def loop(step_for, extend, running, now, state, limits, history, width=1):
        batch = tf.shape(limits)[0]
        sources, steps = tf.range(batch), blocks * STEPS_UNASKED
        step = step_for(sources)

        def some_run(t, now, *_):
            return (t < steps) & tf.reduce_any(running(now))

        def extend_unasked(t, *variables):
            def extend_all(i, now, rows, arrays):
                now, rows, written = extend(t + i, step, sources, now, rows)
                return i + 1, now, rows, _write(arrays, t + i, written)

            _, *variables = tf.while_loop(lambda i, *_: i < STEPS_UNASKED, extend_all, (0, *variables))
            return t + STEPS_UNASKED, *variables

        arrays = [
            tf.TensorArray(tf.int32, steps).unstack(tf.zeros([steps, batch, *shape], tf.int32)) for shape in history
        ]
        rows = _no_repetition(batch * width), state
        _, last, _, arrays = tf.while_loop(some_run, extend_unasked, (0, now, rows, arrays))
        return last, [array.stack() for array in arrays]

    return loop


def _write(arrays, t, tensors):
    return [array.write(t, tensor) for array, tensor in zip(arrays, tensors, strict=True)]


def _rows(sources, places, width):
    """In which rows those are that stand in places `[K]` or `[b, K]` among the `width` of each source: `[b x K]`."""
    return tf.reshape(sources[:, None] * width + places, [-1])


def take(tensors: Any, rows: tf.Tensor) -> Any:
    """Some of the rows of each of a nest of tensors; None stays None."""
    return tf.nest.map_structure(lambda tensor: None if tensor is None else tf.gather(tensor, rows), tensors)


def _while(running, extend, variables):
    """`tf.while_loop` over variables of which every size may change, as long as the rank does not."""

    def any_size(variable):
        return tf.TensorShape(None if isinstance(variable, tf.TensorArray) else [None] * variable.shape.rank)

    return tf.while_loop(running, extend, variables, shape_invariants=tf.nest.map_structure(any_size, variables))


# A model that has lost its way says one phrase over and over until it is cut. The longest phrase that is noticed, in
# tokens, and how many tokens of nothing but repetition are too many, where half the limit is not more.
PHRASE = 8
LEAST_REPETITION = 16


class _Repetition(NamedTuple):
    """What is to be known of a hypothesis's tokens to notice repetition; column p - 1 is about phrases of p tokens."""

    recent: tf.Tensor  # int32 [R, 8] the token p places back
    runs: tf.Tensor  # int32 [R, 8] how many tokens on end have equalled the one p places before them


def _no_repetition(rows):
    return _Repetition(tf.fill([rows, PHRASE], PADDING), tf.zeros([rows, PHRASE], tf.int32))


def _repetition_after(repetition, tokens, forced):
    """Takes one more token of each row, int32 `[R]`, into account; what a prefix says is no repetition."""
    tokens = tokens[:, None]
    recent, runs = repetition
    again = tf.equal(recent, tokens)
    if forced is not None:
        again &= (forced == PADDING)[:, None]
    return _Repetition(tf.concat([tokens, recent[:, :-1]], axis=1), tf.where(again, runs + 1, 0))


def _stopped(tokens, length, limits, runs):
    """Says why hypotheses stop after their newest token, as indices in STOPPED; RUNNING if they do not.

    Args:
        tokens: the newest ones, int32 of any shape.
        length: how many tokens there are with them.
        limits: of the shape of `tokens`, or one that spreads to it.
        runs: of the shape of `tokens` and PHRASE, as in `_Repetition`.
    """
    repeated = tf.reduce_max(runs, axis=-1) >= tf.maximum(limits // 2, LEAST_REPETITION)
    cut = tf.where(repeated, REPEATED, tf.where(length >= limits, LIMITED, RUNNING))
    return tf.where(tokens == END, ENDED, cut)
