"""Decoding strategies: searches on the device for target tokens to which a step function gives high scores.

A strategy of your own is a frozen dataclass of its options, derived from `Strategy` and given to `Seq2Seq.translate` as
those here are. `extend_each` is all that a search of hypotheses side by side needs besides its choice of tokens;
`BeamSearch` has methods to override; a strategy may also call another one and choose among what that finds.

Shapes: B sources, b of them still decoded, N hypotheses of each, K decoded side by side, R = b x K rows in a step, T
target length, P prefix length, V vocabulary size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from pipelines.options import check_number
from pipelines.tokens import END, PADDING, START

# Why a hypothesis stopped: it emitted END, reached its limit, or said one phrase over and over.
STOPPED = ("end", "limit", "repetition")
ENDED, LIMITED, REPEATED = range(3)
RUNNING = -1

NEVER = float("-inf")  # the log-likelihood of what is no hypothesis


State: TypeAlias = Any  # a nest of tensors
Step: TypeAlias = Callable[[tf.Tensor, State], tuple[tf.Tensor, State]]
StepFor: TypeAlias = Callable[[tf.Tensor], Step]
Loop: TypeAlias = Callable[..., tuple[Any, list[tf.Tensor]]]


class Wanted(NamedTuple):
    """What a search is asked of B sources."""

    limits: tf.Tensor  # int32 [B], at least 1: where each hypothesis is cut, in tokens, END included
    min_length: int | tf.Tensor  # how many tokens, a scalar, come before END may
    seeds: tf.Tensor  # int32 or int64 [B]: all that the randomness of a source's hypotheses depends on
    prefixes: tf.Tensor | None = None  # int32 [B, P], then padding: the tokens that they begin with, below the limit


class Hypotheses(NamedTuple):
    """What a search found for each source, the best hypothesis first."""

    ids: tf.Tensor  # int32 [B, N, T] tokens up to and with END, then padding
    scores: tf.Tensor | None  # float32 [B, N] log-likelihoods in nats, END included; None leaves them to `translate`
    ranked_by: tf.Tensor | None  # float32 [B, N] what the order follows, as `BeamSearch` says; None likewise
    stopped: tf.Tensor  # int32 [B, N] indices in STOPPED


class Strategy:
    """How to search: the class that all strategies are derived from.

    ```python
    @dataclasses.dataclass(frozen=True)
    class SecondBest(Strategy):
        '''Takes the second likeliest token at every step.'''

        def search(self, step_for, state, wanted, loop=None):
            def choose(logits, t, sources):
                return tf.math.top_k(logits, 2).indices[:, 1]

            return extend_each(step_for, state, wanted, choose, loop=loop)
    ```

    A strategy is hashable, as a frozen dataclass is: there is one graph for each. `search` is TensorFlow throughout. It
    is called in a `tf.function`, its loop holds no string and no Python, and nothing leaves the device before it ends.
    What it finds for a source does not depend on other sources. `contract.check_strategy` tries all this.

    Attributes:
        rows_per_source: K, how many rows are decoded for each source.
        n_best: how many translations of each text are wanted. If `search` finds more, N > n_best, `Seq2Seq.translate`
            takes the first n_best different texts, as several lists of ids may be one text. If N = n_best it takes all.
    """

    rows_per_source: int = 1
    n_best: int = 1

    def search(self, step_for: StepFor, state: State, wanted: Wanted, loop: Loop | None = None) -> Hypotheses:
        """Searches for the translations of B sources.

        Args:
            step_for: a function (sources int32 `[b]`) -> step, for those of the B sources that are not done yet. A step
                is a function (ids int32 `[R]`, state) -> (logits float32 `[R, V]`, state): the scores of the token
                after `ids`. The K rows of one source stand together. A step closes over whatever else it needs, such as
                the memory of those sources.
            state: what the first step is given, a nest of tensors `[B, ...]`, to be repeated if K > 1.
            wanted: limits, minimum length, seeds and prefixes.
            loop: what takes the steps. `shrinking_loop`, the default, removes finished sources from the batch; a
                `masking_loop` keeps every size and so can be compiled. Both find the same.

        Returns:
            `Hypotheses`, with a fixed N.
        """
        raise NotImplementedError(f"{type(self).__name__} must define search")


@dataclasses.dataclass(frozen=True)
class Greedy(Strategy):
    """Takes the likeliest token at every step. One hypothesis for each source, without a score."""

    def search(self, step_for: StepFor, state: State, wanted: Wanted, loop: Loop | None = None) -> Hypotheses:
        """Searches as `Strategy.search` says."""

        def choose(logits, t, sources):
            return tf.argmax(logits, axis=1, output_type=tf.int32)

        return extend_each(step_for, state, wanted, choose, loop=loop)


@dataclasses.dataclass(frozen=True)
class BeamSearch(Strategy):
    """Extends the K best beginnings of each source at every step and returns the best hypotheses that ended.

    Left-to-right beam search (Graves 2012, arxiv.org/abs/1211.3711; Sutskever et al. 2014, arxiv.org/abs/1409.3215) in
    its monotonic form (Lemons et al. 2022, arxiv.org/abs/2204.02929): a beam is K numbered places, filled in their
    order at every step. Place k takes the likeliest extension that is left among those of the beginnings in places 1 to
    k. So place 1 is greedy search, a beam holds everything that each narrower one holds, and the best hypothesis of a
    wider beam never ranks below that of a narrower one or below the greedy one.

    An extension by END is a hypothesis, and its place is empty until another extension takes it. Hypotheses are ranked
    by log-likelihood divided by a length penalty, `((5 + length) / 6) ** length_penalty` (Wu et al. 2016,
    arxiv.org/abs/1609.08144, equation 14), since each further token can only lower the log-likelihood. Those cut at
    the limit or for repetition rank below all that ended. A source is done when no beginning can still reach the ranks
    to be returned.

    A class derived from this one may override `adjust`, and `remember` what `adjust` needs to know of a hypothesis: a
    coverage penalty, a lexical constraint, tokens that are banned.

    Args:
        width: K. With 1 this is greedy search, with scores.
        length_penalty: 0 compares log-likelihoods as they are, 1 nearly those per token.
        n_best: how many hypotheses of each source are wanted; at most K. `search` returns N = 1 for 1 and N = 2 n_best
            for more, as different ids may be the same text: `Seq2Seq.translate` takes the first n_best different texts.
            If there are fewer than N hypotheses, the last ones are empty with a score of -inf and count as "limit".
    """

    width: int = 5
    length_penalty: float = 0.6
    n_best: int = 1

    def __post_init__(self):
        check_number("width", self.width, least=1)
        check_number("length_penalty", self.length_penalty, float, least=0)
        check_number("n_best", self.n_best, least=1, most=self.width)

    @property
    def rows_per_source(self) -> int:  # type: ignore[override]
        return self.width

    def search(self, step_for: StepFor, state: State, wanted: Wanted, loop: Loop | None = None) -> Hypotheses:
        """Searches as `Strategy.search` says."""
        batch, width = tf.shape(wanted.limits)[0], self.width
        kept = 1 if self.n_best == 1 else 2 * self.n_best
        adjusts = type(self).adjust is not BeamSearch.adjust

        def running(now):
            _, scores, _ = now
            return tf.reduce_any(scores > NEVER, axis=1)

        def extend(t, step, sources, now, rows):
            (tokens, scores, finished), (repetition, (memory, state)) = now, rows
            logits, state = step(tf.reshape(tokens, [-1]), state)
            count, limits = tf.size(sources), tf.gather(wanted.limits, sources)[:, None]

            # The likeliest extensions of each beginning. One number for each row turns its logits into
            # log-probabilities and adds those of the tokens before.
            offsets = tf.reshape(scores, [-1]) - tf.reduce_logsumexp(logits, axis=1)
            totals = emittable(logits, t, sources, wanted, width) + offsets[:, None]
            size, forced = tf.shape(totals)[1], _forced(t, sources, wanted, width)
            most = tf.minimum(size, width)
            adjusted = totals
            if adjusts:
                apart = tf.reshape(totals, [count, width, size])
                adjusted = tf.reshape(self.adjust(apart, t, memory, state), [count * width, size])
                if forced is not None:
                    adjusted = tf.where((forced == PADDING)[:, None], adjusted, totals)
            ranks, tokens = tf.math.top_k(adjusted, most)
            ranks, chosen = _fill_places(tf.reshape(ranks, [-1, width * most]), width)
            tokens = tf.gather(tf.reshape(tokens, [-1, width * most]), chosen, batch_dims=1)
            parents = chosen // most
            scores = ranks
            if adjusts:
                scores = tf.gather(tf.reshape(totals, [count, width * size]), parents * size + tokens, batch_dims=1)
                scores = tf.where(ranks == NEVER, NEVER, scores)
            tokens += END
            memory, state, repetition = take((memory, state, repetition), _rows(tf.range(count), parents, width))
            newest = tf.reshape(tokens, [-1])
            memory, repetition = self.remember(newest, memory), _repetition_after(repetition, newest, forced)

            stopped = _stopped(tokens, t + 1, limits, tf.reshape(repetition.runs, [count, width, PHRASE]))
            alive = tf.where(stopped == RUNNING, scores, NEVER)
            new = _Finished(
                ranks=tf.where(stopped == RUNNING, NEVER, ranks),
                lengths=tf.fill([count, width], t + 1),
                tokens=tokens,
                parents=parents,
                stopped=tf.where((stopped == RUNNING) | (ranks == NEVER), LIMITED, stopped),
                scores=tf.where(stopped == RUNNING, NEVER, scores) if adjusts else (),
            )
            finished = self._best(kept, finished, new)

            # The best rank that a beginning can reach: if nothing lowers its likelihood up to its limit.
            reach = tf.reduce_max(alive, axis=1) / self._penalty(limits[:, 0])
            to_beat = tf.where(finished.stopped == ENDED, self._ranked_by(finished), NEVER)[:, -1]
            scores = tf.where((reach <= to_beat)[:, None], NEVER, alive)  # done: what it began is dropped
            return (tokens, scores, finished), (repetition, (memory, state)), [tokens, parents]

        none, nothing = tf.fill([batch, kept], NEVER), tf.zeros([batch, kept], tf.int32)
        finished = _Finished(none, nothing, nothing, nothing, nothing + LIMITED, none if adjusts else ())
        places = tf.zeros([batch, width], tf.int32)
        scores = tf.where(tf.range(width) + places == 0, 0.0, NEVER)  # one beginning, in place 1
        now = places + START, scores, finished
        state = tf.nest.map_structure(lambda tensor: tf.repeat(tensor, width, axis=0), state)
        state = self.remember(tf.fill([batch * width], START)), state
        (_, _, finished), history = (loop or shrinking_loop)(
            step_for, extend, running, now, state, wanted.limits, [[width]] * 2, width
        )
        ids = tf.ensure_shape(_back_track(finished, *history), [None, kept, None])
        scores = finished.scores if adjusts else finished.ranks
        return Hypotheses(ids, scores, self._ranked_by(finished), finished.stopped)

    def adjust(self, totals: tf.Tensor, t: tf.Tensor, memory: State, state: State) -> tf.Tensor:
        """Lowers the log-likelihoods of extensions for the choice among them; to be overridden.

        The beam and the ranks of hypotheses follow what this returns; scores stay the log-likelihoods, from which the
        next step starts again. It must raise none: the search ends once no beginning is likely enough to rank higher.
        Within a prefix there is no choice, so that what this returns is left aside.

        Args:
            totals: float32 `[b, K, V - END]`, log-likelihoods of the beginnings in all places with each token from END
                on after them.
            t: how many tokens a beginning has.
            memory: what `remember` returned for each beginning, `[R, ...]`.
            state: that of the decoder after the last token of each beginning, `[R, ...]`.

        Returns:
            As `totals`, with a penalty subtracted, or -inf for an extension that is forbidden.
        """
        return totals

    def remember(self, tokens: tf.Tensor, memory: State = None) -> State:
        """Keeps what `adjust` needs to know of each hypothesis; to be overridden.

        Args:
            tokens: the newest ones, int32 `[R]`; START at first.
            memory: what this returned for the same hypotheses one token earlier; None at first.

        Returns:
            A nest of tensors `[R, ...]`, of the same sizes and types every time.
        """
        return ()

    def _penalty(self, lengths):
        if not self.length_penalty:  # of x ** 0 TensorFlow makes a constant, for as many sources as there are at first
            return 1.0
        return ((5 + tf.cast(lengths, tf.float32)) / 6) ** self.length_penalty

    def _ranked_by(self, finished):
        return finished.ranks / self._penalty(finished.lengths)

    def _best(self, count, *several):
        """Keeps the best of several `_Finished`, the best first and, of equals, the earlier first."""
        every = tf.nest.map_structure(lambda *tensors: tf.concat(tensors, axis=1), *several)
        # In float64 a step that is larger than every score still leaves all the digits of a float32.
        step_down = tf.where(every.stopped == ENDED, tf.constant(0, tf.float64), 1e6)
        order = tf.math.top_k(tf.cast(self._ranked_by(every), tf.float64) - step_down, count).indices
        return tf.nest.map_structure(lambda tensor: tf.gather(tensor, order, batch_dims=1), every)


def _fill_places(totals, width):
    """Gives each of the K places of a beam the likeliest extension left among those of the places up to it.

    Args:
        totals: float32 `[b, K x m]`, the scores of m extensions of each beginning, those of place 1 first.
        width: K.

    Returns:
        The score of what each place now holds, -inf if nothing was left, and its index in `totals`, `[b, K]` each.
    """
    most, positions, filled = tf.shape(totals)[1] // width, tf.range(tf.shape(totals)[1]), []
    for place in range(1, width + 1):
        offered = totals[:, : place * most]
        best = tf.argmax(offered, axis=1, output_type=tf.int32)
        filled.append((tf.reduce_max(offered, axis=1), best))
        totals = tf.where(positions == best[:, None], NEVER, totals)
    scores, chosen = zip(*filled, strict=True)
    return tf.stack(scores, axis=1), tf.stack(chosen, axis=1)


@dataclasses.dataclass(frozen=True)
class Sampling(Strategy):
    """Draws each token at random, as likely as the model says. Hypotheses have no score and stand as they are drawn.

    Args:
        temperature: what the logits are divided by: below 1 likely tokens come oftener, above 1 unlikely ones do.
        top_k: draw from the k likeliest tokens only (Fan et al. 2018, arxiv.org/abs/1805.04833); None for all.
        top_p: draw from the nucleus only, the fewest tokens that together have at least this probability, after `top_k`
            (Holtzman et al. 2020, arxiv.org/abs/1904.09751); None for all.
        n_best: how many samples of each source to draw, equal ones included.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    n_best: int = 1

    def __post_init__(self):
        check_number("temperature", self.temperature, float, above=0)
        check_number("top_k", self.top_k, least=1, optional=True)
        check_number("top_p", self.top_p, float, above=0, most=1, optional=True)
        check_number("n_best", self.n_best, least=1, most=10_000)

    @property
    def rows_per_source(self) -> int:  # type: ignore[override]
        return self.n_best

    def search(self, step_for: StepFor, state: State, wanted: Wanted, loop: Loop | None = None) -> Hypotheses:
        """Searches as `Strategy.search` says."""

        steps = tf.range(self.n_best) * 2**17  # more than there are: each sample of a source has numbers of its own

        def choose(logits, t, sources):
            probabilities, tokens = self._filter(logits / self.temperature)
            # Inverse transform sampling: the token in whose stretch of the cumulative distribution the number falls.
            cumulative = tf.cumsum(probabilities, axis=1)
            numbers = _uniform(tf.gather(wanted.seeds, sources)[:, None], t + steps)
            numbers = tf.reshape(numbers, [-1]) * cumulative[:, -1]
            drawn = tf.reduce_sum(tf.cast(cumulative <= numbers[:, None], tf.int32), axis=1)
            return drawn if tokens is None else tf.gather(tokens, drawn, batch_dims=1)

        return extend_each(step_for, state, wanted, choose, self.n_best, loop)

    def _filter(self, logits):
        """Turns logits `[B, V]` into the probabilities to draw with, and the tokens they are of, None if all in order.

        What is left out has probability 0; the rest need not sum to 1.
        """
        if self.top_k is None and self.top_p is None:
            return tf.nn.softmax(logits), None
        size = tf.shape(logits)[1]
        logits, tokens = tf.math.top_k(logits, size if self.top_k is None else tf.minimum(self.top_k, size))
        probabilities = tf.nn.softmax(logits)
        if self.top_p is not None:
            nucleus = tf.cumsum(probabilities, axis=1, exclusive=True) < self.top_p
            probabilities = tf.where(nucleus, probabilities, 0.0)
        return probabilities, tokens


STRATEGIES: dict[str, type[Strategy]] = {"greedy": Greedy, "beam": BeamSearch, "sampling": Sampling}


def extend_each(
    step_for: StepFor,
    state: State,
    wanted: Wanted,
    choose: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor],
    width: int = 1,
    loop: Loop | None = None,
) -> Hypotheses:
    """Extends K hypotheses of each source side by side, none of which takes another's place, until all have stopped.

    Args:
        step_for, state, wanted, loop: as in `Strategy.search`.
        choose: a function (logits `[R, V - END]` of the tokens from END on, t, sources `[b]`) -> int32 `[R]`, the index
            in them of the next token, the t-th counted from 0, of each hypothesis. What may not come has a logit of
            -inf; within a prefix the choice is left aside. The hypotheses of a source stand together, also when some of
            them have stopped.
        width: K.

    Returns:
        `Hypotheses` with N = K in their order, without scores.
    """

    several = width > 1  # one hypothesis has no axis of its own, as every operation of a step takes time

    def by_row(tensor):
        return tf.reshape(tensor, [-1]) if several else tensor

    def by_source(tensor):
        return tf.reshape(tensor, [-1, width]) if several else tensor

    def running(now):
        _, stopped = now
        return tf.reduce_any(stopped == RUNNING, axis=1) if several else stopped == RUNNING

    def extend(t, step, sources, now, rows):
        (tokens, stopped), (repetition, state) = map(by_row, now), rows
        logits, state = step(tokens, state)
        tokens = END + choose(emittable(logits, t, sources, wanted, width), t, sources)
        forced = _forced(t, sources, wanted, width)
        if forced is not None:
            tokens = tf.where(forced == PADDING, tokens, forced)
        tokens = tf.where(stopped == RUNNING, tokens, PADDING)
        repetition = _repetition_after(repetition, tokens, forced)
        limits = tf.gather(wanted.limits, tf.repeat(sources, width) if several else sources)
        why = _stopped(tokens, t + 1, limits, repetition.runs)
        tokens, stopped = by_source(tokens), by_source(tf.where(stopped == RUNNING, why, stopped))
        return (tokens, stopped), (repetition, state), [tokens]

    batch = tf.shape(wanted.limits)[0]
    now = by_source(tf.fill([batch * width], START)), by_source(tf.fill([batch * width], RUNNING))
    if several:
        state = tf.nest.map_structure(lambda tensor: tf.repeat(tensor, width, axis=0), state)
    (_, stopped), (ids,) = (loop or shrinking_loop)(
        step_for, extend, running, now, state, wanted.limits, [[width] * several], width
    )
    ids = tf.reshape(ids, [tf.shape(ids)[0], batch, width])
    return Hypotheses(tf.transpose(ids, [1, 2, 0]), None, None, tf.reshape(stopped, [batch, width]))


def emittable(logits: tf.Tensor, t: tf.Tensor, sources: tf.Tensor, wanted: Wanted, width: int = 1) -> tf.Tensor:
    """Cuts logits down to those of the tokens from END on, and gives those that may not come now a logit of -inf.

    PADDING, UNKNOWN and START are never the answer, END is not before the minimum length, and within the prefix of a
    source nothing is but its next token.

    Args:
        logits: float32 `[R, V]`.
        t: how many tokens have come before.
        sources, wanted: as in `Strategy.search`.
        width: how many rows each source has, K.

    Returns:
        float32 `[R, V - END]`.
    """
    end = tf.where(t < wanted.min_length, NEVER, logits[:, END : END + 1])
    free = tf.concat([end, logits[:, END + 1 :]], axis=1)
    forced = _forced(t, sources, wanted, width)
    if forced is None:
        return free
    others = tf.range(END, tf.shape(logits)[1]) != forced[:, None]
    return tf.where((forced != PADDING)[:, None] & others, NEVER, free)


def _forced(t, sources, wanted, width):
    """The next token of the prefix of each of these sources, PADDING after its end: int32 `[R]`; None without any."""
    if wanted.prefixes is None:
        return None
    prefixes = tf.pad(wanted.prefixes, [[0, 0], [0, 1]])
    following = tf.gather(prefixes, tf.minimum(t, tf.shape(prefixes)[1] - 1), axis=1)
    return tf.repeat(tf.gather(following, sources), width)


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


def _uniform(seeds, t):
    """Random numbers from [0, 1), each of which follows from a seed and a step alone: float32, the shape of both.

    It is the hash PCG3D of the two halves of the seed and the step (Jarzynski & Olano 2020,
    jcgt.org/published/0009/03/02): the same on every device, however many numbers other rows need.
    """
    low_half = 0xFFFFFFFF  # all arithmetic is modulo 2 ** 32
    seeds = tf.cast(seeds, tf.int64)
    words = [
        seeds & low_half,
        tf.bitwise.right_shift(seeds, 32) & low_half,
        tf.zeros_like(seeds) + tf.cast(t, tf.int64),
    ]
    x, y, z = ((word * 1664525 + 1013904223) & low_half for word in words)

    def mix(x, y, z):
        x = (x + y * z) & low_half
        y = (y + z * x) & low_half
        z = (z + x * y) & low_half
        return x, y, z

    x, _, _ = mix(*(word ^ tf.bitwise.right_shift(word, 16) for word in mix(x, y, z)))
    return tf.cast(tf.bitwise.right_shift(x, 8), tf.float32) * 2.0**-24


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


class _Finished(NamedTuple):
    """Hypotheses of a beam search that go no further, `[B, N]` each; a rank of -inf marks an empty place."""

    ranks: tf.Tensor  # float32, log-likelihoods, as `adjust` has left them
    lengths: tf.Tensor  # int32, END included
    tokens: tf.Tensor  # int32, the last ones
    parents: tf.Tensor  # int32, the places that they extended, among the K that lived one token earlier
    stopped: tf.Tensor  # int32, indices in STOPPED
    scores: tf.Tensor | tuple  # float32, log-likelihoods if `adjust` is overridden, else ()


def _back_track(finished, tokens, parents):
    """Reads hypotheses from their last token to their first.

    Args:
        finished: `_Finished` `[B, N]`.
        tokens, parents: int32 `[T, B, K]`: the newest tokens of those that lived at each step, and which places at the
            step before they extended.

    Returns:
        int32 ids `[B, N, T]`.
    """

    def back(later, now):
        places, _ = later
        t, tokens, parents = now
        before_last = t < finished.lengths - 1
        last = tf.where(t == finished.lengths - 1, finished.tokens, PADDING)
        ids = tf.where(before_last, tf.gather(tokens, places, batch_dims=1), last)
        return tf.where(before_last, tf.gather(parents, places, batch_dims=1), places), ids

    history = (tf.range(tf.shape(tokens)[0]), tokens, parents)
    _, ids = tf.scan(back, history, (finished.parents, finished.tokens), reverse=True)
    return tf.transpose(ids, [1, 2, 0])
