"""Decoding strategies: searches on the device for target tokens to which a step function gives high scores.

A custom strategy is a frozen dataclass of its options, derived from `Strategy` and given to `Seq2Seq.translate` like
those here. If it extends hypotheses independently of each other, `extend_each` does all but choose the tokens.
`BeamSearch` has methods to override. A strategy may also call another one and choose among its hypotheses.

Shapes: B sources, b of them still being decoded, N hypotheses of each, K decoded in parallel, R = b x K rows in a step,
T target length, P prefix length, V vocabulary size.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from pipelines.options import check_number
from pipelines.tokens import END, PADDING, START
from seq2seq.decoding import (
    ENDED,
    LIMITED,
    NEG_INF,
    PHRASE,
    RUNNING,
    Constraints,
    Hypotheses,
    Loop,
    Repetition,
    State,
    StepFor,
    gather_rows,
    row_numbers,
    shrinking_loop,
    why_stopped,
)


class Strategy:
    """The base class of all decoding strategies.

    ```python
    @dataclasses.dataclass(frozen=True)
    class SecondBest(Strategy):
        '''A strategy that takes the second most likely token at every step.'''

        def search(self, step_for, state, constraints, loop=None):
            def choose(logits, t, sources):
                return tf.math.top_k(logits, 2).indices[:, 1]

            return extend_each(step_for, state, constraints, choose, loop=loop)
    ```

    A strategy must be hashable, like a frozen dataclass: there is one graph for each. `search` is called in a
    `tf.function`: it uses only TensorFlow, without strings, and nothing leaves the device before it ends. Its result
    for a source must not depend on other sources. `contract.check_strategy` tests all this.

    Attributes:
        n_best: the number of translations wanted of each text. If `search` finds more, N > n_best, `Seq2Seq.translate`
            takes the first n_best different texts, as several lists of ids may be one text. If N = n_best it takes all.
    """

    n_best: int = 1

    def search(self, step_for: StepFor, state: State, constraints: Constraints, loop: Loop | None = None) -> Hypotheses:
        """Search for the translations of B sources.

        Args:
            step_for: a function (sources int32 `[b]`) -> step, for those of the B sources that are not done yet. A step
                is a function (ids int32 `[R]`, state) -> (logits float32 `[R, V]`, state): the scores of the token
                after `ids`. The K rows of a source, as many as the strategy wants, are adjacent. A step closes over
                whatever else it needs, such as the memory of those sources.
            state: the state for the first step, a nest of tensors `[B, ...]`, to be repeated if K > 1.
            constraints: limits, minimum length, seeds and prefixes.
            loop: the loop that takes the steps. `shrinking_loop`, the default, removes finished sources from the batch;
                a `masking_loop` keeps every size and so can be compiled. Both find the same.

        Returns:
            `Hypotheses`, with a fixed N.
        """
        raise NotImplementedError(f"{type(self).__name__} must define search")


@dataclasses.dataclass(frozen=True)
class Greedy(Strategy):
    """The most likely token at every step: one hypothesis for each source, without a score."""

    def search(self, step_for: StepFor, state: State, constraints: Constraints, loop: Loop | None = None) -> Hypotheses:
        def choose(logits, t, sources):
            return tf.argmax(logits, axis=1, output_type=tf.int32)

        return extend_each(step_for, state, constraints, choose, loop=loop)


@dataclasses.dataclass(frozen=True)
class BeamSearch(Strategy):
    """The K best partial hypotheses of each source, extended at every step; the best of those that ended.

    Left-to-right beam search (Graves 2012, arxiv.org/abs/1211.3711; Sutskever et al. 2014, arxiv.org/abs/1409.3215) in
    its monotonic form (Lemons et al. 2022, arxiv.org/abs/2204.02929): a beam is K numbered slots, filled in their
    order at every step. Slot k takes the likeliest extension that is left among those of slots 1 to k. So slot 1 is
    greedy search, a beam holds everything that each narrower one holds, and the best hypothesis of a wider beam never
    ranks below that of a narrower one or below the greedy one.

    An extension by END is finished, and its slot is empty until another extension takes it. Finished hypotheses are
    ranked by log-likelihood divided by a length penalty, `((5 + length) / 6) ** length_penalty` (Wu et al. 2016,
    arxiv.org/abs/1609.08144, equation 14), since each further token can only lower the log-likelihood. Those cut at
    the limit or for repetition rank below all that ended. A source is done when no partial hypothesis can still reach
    the ranks to be returned.

    A derived class may override `adjust`, such as for a coverage penalty, a lexical constraint or banned tokens; and
    `remember`, for what `adjust` needs to know of a hypothesis.

    Args:
        width: K. With 1 this is greedy search, with scores.
        length_penalty: 0 compares log-likelihoods as they are. The larger it is, the better long hypotheses rank. 1
            approaches the log-likelihood per token for long ones only: below about 20 tokens it changes much less.
        n_best: the number of hypotheses wanted of each source, at most K. `search` returns N = 1 for 1 and N = 2 n_best
            for more, as different ids may be the same text: `Seq2Seq.translate` takes the first n_best different texts.
            If there are fewer than N hypotheses, the last ones are empty with a score of -inf and count as "limit".
    """

    width: int = 5
    length_penalty: float = 0.6
    n_best: int = 1

    def __post_init__(self):
        check_number("width", self.width, least=1)
        check_number("length_penalty", self.length_penalty, float, least=0, most=10)
        check_number("n_best", self.n_best, least=1, most=self.width)

    def search(self, step_for: StepFor, state: State, constraints: Constraints, loop: Loop | None = None) -> Hypotheses:
        batch, width = tf.shape(constraints.limits)[0], self.width
        kept = 1 if self.n_best == 1 else 2 * self.n_best

        def running(per_source):
            _, scores, _ = per_source
            return tf.reduce_any(scores > NEG_INF, axis=1)

        def extend(t, step, sources, per_source, per_row):
            (tokens, scores, finished), (repetition, remembered, state) = per_source, per_row
            logits, state = step(tf.reshape(tokens, [-1]), state)
            count, limits = tf.size(sources), tf.gather(constraints.limits, sources)[:, None]
            forced = constraints.forced(t, sources, width)

            # One number for each row turns its logits into log-probabilities and adds those of the tokens before.
            offsets = tf.reshape(scores, [-1]) - tf.reduce_logsumexp(logits, axis=1)
            totals = mask_logits(logits, t, constraints.min_length, forced) + offsets[:, None]
            adjusted, scores, tokens, parents = self._fill_slots(totals, count, forced, t, remembered, state)
            remembered, state, repetition = gather_rows(
                (remembered, state, repetition), row_numbers(tf.range(count), parents, width)
            )
            newest = tf.reshape(tokens, [-1])
            remembered, repetition = self.remember(newest, remembered), repetition.after(newest, forced)

            runs = tf.reshape(repetition.runs, [count, width, PHRASE])
            stopped = why_stopped(tokens, t + 1, limits, runs, constraints.min_length)
            finished = self._best(kept, finished, _ended(t, tokens, parents, adjusted, scores, stopped))

            # A log-likelihood can only fall: no rank can exceed the highest one now, with the penalty of the limit.
            alive = tf.where(stopped == RUNNING, scores, NEG_INF)
            best_possible = tf.reduce_max(alive, axis=1) / self._penalty(limits[:, 0])
            worst_kept = tf.where(finished.stopped == ENDED, self._ranked_by(finished), NEG_INF)[:, -1]
            scores = tf.where((best_possible <= worst_kept)[:, None], NEG_INF, alive)  # none, if the source is done
            return (tokens, scores, finished), (repetition, remembered, state), [tokens, parents]

        empty, zeros = tf.fill([batch, kept], NEG_INF), tf.zeros([batch, kept], tf.int32)
        finished = _Finished(empty, zeros, zeros, zeros, zeros + LIMITED, scores=empty)
        slots = tf.zeros([batch, width], tf.int32)
        scores = tf.where(tf.range(width) + slots == 0, 0.0, NEG_INF)  # one partial hypothesis, in slot 1
        per_source = slots + START, scores, finished
        state = tf.nest.map_structure(lambda tensor: tf.repeat(tensor, width, axis=0), state)
        remembered = self.remember(tf.fill([batch * width], START))
        per_row = Repetition.none(batch * width), remembered, state
        (_, _, finished), history = (loop or shrinking_loop)(
            step_for, extend, running, per_source, per_row, constraints.limits, width, recorded=2
        )
        ids = tf.ensure_shape(_back_track(finished, *history), [None, kept, None])
        return Hypotheses(ids, finished.scores, self._ranked_by(finished), finished.stopped)

    def adjust(self, totals: tf.Tensor, t: tf.Tensor, remembered: State, state: State) -> tf.Tensor:
        """Lower the log-likelihoods of extensions before one is chosen; to be overridden.

        The beam and the ranks of hypotheses follow the result; scores stay the log-likelihoods, from which the next
        step starts again. It must not raise any log-likelihood: the search ends once no partial hypothesis is likely
        enough to rank higher. Within a prefix there is no choice, and the result is ignored.

        Args:
            totals: float32 `[b, K, V - END]`, log-likelihoods of the partial hypotheses in all slots, each extended by
                each token from END on.
            t: the number of tokens of a partial hypothesis.
            remembered: what `remember` returned for each partial hypothesis, `[R, ...]`.
            state: the decoder's state after the last token of each, `[R, ...]`.

        Returns:
            As `totals`, with a penalty subtracted, or -inf for an extension that is forbidden.
        """
        return totals

    def remember(self, tokens: tf.Tensor, remembered: State = None) -> State:
        """Keep what `adjust` needs to know of each hypothesis; to be overridden.

        Args:
            tokens: the newest ones, int32 `[R]`; START at first.
            remembered: the result for the same hypotheses one token earlier; None at first.

        Returns:
            A nest of tensors `[R, ...]`, of the same sizes and types every time.
        """
        return ()

    def _fill_slots(self, totals, count, forced, t, remembered, state):
        """Give each of the K slots the likeliest extension that is left among those of the slots up to it.

        From `totals` `[R, V - END]`, log-likelihoods of all extensions, return for each slot, `[b, K]` each: the
        log-likelihood as `adjust` left it, -inf if nothing was left; the log-likelihood; the token; the slot extended.
        """
        width, size = self.width, tf.shape(totals)[1]
        totals = tf.reshape(totals, [count, width, size])
        adjusted = self.adjust(totals, t, remembered, state)
        if forced is not None:
            adjusted = tf.where(tf.reshape(forced == PADDING, [count, width, 1]), adjusted, totals)

        most = tf.minimum(size, width)  # of one partial hypothesis, the likeliest first
        offered, tokens = (tf.reshape(best, [count, width * most]) for best in tf.math.top_k(adjusted, most))
        found, chosen, positions = [], [], tf.range(width * most)
        for slot in range(1, width + 1):
            candidates = offered[:, : slot * most]  # those of slots 1 to `slot`
            best = tf.argmax(candidates, axis=1, output_type=tf.int32)
            found.append(tf.reduce_max(candidates, axis=1))
            chosen.append(best)
            offered = tf.where(positions == best[:, None], NEG_INF, offered)
        found, chosen = tf.stack(found, axis=1), tf.stack(chosen, axis=1)

        tokens, parents = tf.gather(tokens, chosen, batch_dims=1), chosen // most
        scores = tf.gather(tf.reshape(totals, [count, width * size]), parents * size + tokens, batch_dims=1)
        return found, tf.where(found == NEG_INF, NEG_INF, scores), tokens + END, parents

    def _penalty(self, lengths):
        if not self.length_penalty:  # TensorFlow makes x ** 0 a constant, of the number of sources at the first step
            return 1.0
        return ((5 + tf.cast(lengths, tf.float32)) / 6) ** self.length_penalty

    def _ranked_by(self, finished):
        return finished.adjusted / self._penalty(finished.lengths)

    def _best(self, count, *several):
        """Keep the best of several `_Finished`, the best first. Ties go to the earlier one."""
        every = tf.nest.map_structure(lambda *tensors: tf.concat(tensors, axis=1), *several)
        # In float64, what is larger than every score can be subtracted without losing a digit of a float32.
        handicap = tf.where(every.stopped == ENDED, tf.constant(0, tf.float64), 1e6)
        order = tf.math.top_k(tf.cast(self._ranked_by(every), tf.float64) - handicap, count).indices
        return tf.nest.map_structure(lambda tensor: tf.gather(tensor, order, batch_dims=1), every)


@dataclasses.dataclass(frozen=True)
class Sampling(Strategy):
    """Tokens drawn at random from the model's distribution. Hypotheses have no score and no order.

    Args:
        temperature: the divisor of the logits: below 1, likely tokens become more frequent; above 1, unlikely ones.
        top_k: draw from the k most likely tokens only (Fan et al. 2018, arxiv.org/abs/1805.04833); None for all.
        top_p: draw from the nucleus only, the fewest tokens that together have at least this probability, after `top_k`
            (Holtzman et al. 2020, arxiv.org/abs/1904.09751); None for all.
        n_best: the number of samples to draw for each source; duplicates are kept.
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

    def search(self, step_for: StepFor, state: State, constraints: Constraints, loop: Loop | None = None) -> Hypotheses:
        steps = tf.range(self.n_best) * 2**17  # more than a sample has tokens, so each has its own random numbers

        def choose(logits, t, sources):
            # Below a millionth, a division could overflow, and sampling is greedy search anyway. Far above 1e30, the
            # divisor would be infinite in float32, and all tokens are equally likely anyway.
            probabilities, tokens = self.filter(logits / min(max(self.temperature, 1e-6), 1e30))
            # Inverse transform sampling: the token in whose part of the cumulative distribution the number falls.
            # On a GPU, a sum to which 0 is added may change in its last digit.
            cumulative = tf.where(probabilities > 0, tf.cumsum(probabilities, axis=1), 0)
            numbers = _uniform(tf.gather(constraints.seeds, sources)[:, None], t + steps)
            reached = cumulative > tf.reshape(numbers, [-1, 1]) * tf.reduce_max(cumulative, axis=1, keepdims=True)
            drawn = tf.argmax(tf.cast(reached, tf.int32), axis=1, output_type=tf.int32)  # the first of them
            return drawn if tokens is None else tf.gather(tokens, drawn, batch_dims=1)

        return extend_each(step_for, state, constraints, choose, self.n_best, loop)

    def filter(self, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Turn logits `[R, V]`, divided by the temperature, into probabilities to draw with; to be overridden.

        Returns:
            Probabilities `[R, n]`, which need not sum to 1, and the tokens int32 `[R, n]` that they belong to; None for
            all V tokens in their order.
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
    constraints: Constraints,
    choose: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor],
    width: int = 1,
    loop: Loop | None = None,
) -> Hypotheses:
    """Extend K hypotheses of each source in parallel, independently of each other, until all have stopped.

    Args:
        step_for, state, constraints, loop: as in `Strategy.search`.
        choose: a function (logits `[R, V - END]` of the tokens from END on, t, sources `[b]`) -> int32 `[R]`, the index
            among those tokens of the next token of each hypothesis, the t-th counted from 0. Tokens that may not come
            have a logit of -inf. Within a prefix the choice is ignored. The hypotheses of a source are adjacent, also
            when some of them have stopped.
        width: K.

    Returns:
        `Hypotheses` with N = K in their order, without scores.
    """

    def running(per_source):
        _, stopped = per_source
        return tf.reduce_any(stopped == RUNNING, axis=1)

    def extend(t, step, sources, per_source, per_row):
        (tokens, stopped), (repetition, state) = per_source, per_row
        logits, state = step(tf.reshape(tokens, [-1]), state)
        chosen = END + choose(mask_logits(logits, t, constraints.min_length), t, sources)
        forced = constraints.forced(t, sources, width)
        if forced is not None:
            chosen = tf.where(forced == PADDING, chosen, forced)
        tokens = tf.where(stopped == RUNNING, tf.reshape(chosen, [-1, width]), PADDING)
        repetition = repetition.after(tf.reshape(tokens, [-1]), forced)
        runs = tf.reshape(repetition.runs, [-1, width, PHRASE])
        limits = tf.gather(constraints.limits, sources)[:, None]
        why = why_stopped(tokens, t + 1, limits, runs, constraints.min_length)
        return (tokens, tf.where(stopped == RUNNING, why, stopped)), (repetition, state), [tokens]

    batch = tf.shape(constraints.limits)[0]
    per_source = tf.fill([batch, width], START), tf.fill([batch, width], RUNNING)
    state = tf.nest.map_structure(lambda tensor: tf.repeat(tensor, width, axis=0), state)
    per_row = Repetition.none(batch * width), state
    (_, stopped), (ids,) = (loop or shrinking_loop)(
        step_for, extend, running, per_source, per_row, constraints.limits, width, recorded=1
    )
    return Hypotheses(tf.transpose(ids, [1, 2, 0]), None, None, stopped)


def mask_logits(
    logits: tf.Tensor, t: tf.Tensor, min_length: int | tf.Tensor, forced: tf.Tensor | None = None
) -> tf.Tensor:
    """Keep only the logits of the tokens from END on, and set those that are not allowed now to -inf.

    PADDING, UNKNOWN and START are never allowed, and END is not allowed before the minimum length. Log-likelihoods are
    the logarithms of a softmax over all tokens, so compute them before.

    Args:
        logits: float32 `[R, V]`, or logarithms of probabilities.
        t: the number of tokens before.
        min_length: as in `Constraints`.
        forced: the next token of each row's prefix, int32 `[R]`, as `Constraints.forced` returns it: the only one that
            is allowed, unless it is PADDING.

    Returns:
        float32 `[R, V - END]`.
    """
    end = tf.where(t < min_length, NEG_INF, logits[:, END : END + 1])
    free = tf.concat([end, logits[:, END + 1 :]], axis=1)
    if forced is None:
        return free
    others = tf.range(END, tf.shape(logits)[1]) != forced[:, None]
    return tf.where((forced != PADDING)[:, None] & others, NEG_INF, free)


def _uniform(seeds, t):
    """Random numbers in [0, 1), each a function of one seed and one step: float32, of the shape of both, broadcast.

    They are hashes, PCG3D, of the two halves of the seed and the step (Jarzynski & Olano 2020,
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


class _Finished(NamedTuple):
    """Finished hypotheses of a beam search, `[B, N]` each; `adjusted` is -inf in an empty slot."""

    adjusted: tf.Tensor  # float32, log-likelihoods as `adjust` left them
    lengths: tf.Tensor  # int32, END included
    tokens: tf.Tensor  # int32, the last ones
    parents: tf.Tensor  # int32, the slots that they extended, among the K of one token earlier
    stopped: tf.Tensor  # int32, indices in STOPPED
    scores: tf.Tensor  # float32, log-likelihoods


def _ended(t, tokens, parents, adjusted, scores, stopped):
    """The hypotheses `[b, K]` that stop at this step, as `_Finished`; the other slots are empty."""
    adjusted, scores = (tf.where(stopped == RUNNING, NEG_INF, x) for x in (adjusted, scores))
    why = tf.where(adjusted == NEG_INF, LIMITED, stopped)
    return _Finished(adjusted, tf.fill(tf.shape(tokens), t + 1), tokens, parents, why, scores)


def _back_track(finished, tokens, parents):
    """Read finished hypotheses from their last token to their first: int32 ids `[B, N, T]`.

    `tokens` and `parents` `[T, B, K]` are the newest tokens at each step, and the slots that they extended.
    """

    def back(later, step):
        (slots, _), (t, tokens, parents) = later, step
        before_last = t < finished.lengths - 1
        last = tf.where(t == finished.lengths - 1, finished.tokens, PADDING)
        ids = tf.where(before_last, tf.gather(tokens, slots, batch_dims=1), last)
        return tf.where(before_last, tf.gather(parents, slots, batch_dims=1), slots), ids

    history = (tf.range(tf.shape(tokens)[0]), tokens, parents)
    # `back` does not read the ids of the later step; the zeros give only their type and shape.
    _, ids = tf.scan(back, history, (finished.parents, tf.zeros_like(finished.tokens)), reverse=True)
    return tf.transpose(ids, [1, 2, 0])
