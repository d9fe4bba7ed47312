"""Decoding strategies: searches on the device for the target tokens that a step function scores high.

A strategy is a frozen dataclass of its options with a method `search`, all of it TensorFlow: no string and no Python is
inside its loop, and nothing leaves the device before it ends. It runs eagerly and inside a `tf.function`.

Shapes: B sources, N hypotheses of each, R rows decoded together, T target length, V vocabulary size, K beam width.

`search(step_for, state, limits, min_length, seeds)` takes

- `step_for`: a function (sources int32 `[b]`) -> step, for those of the B sources that are not done yet. A step is a
  function (ids int32 `[R]`, state) -> (logits float32 `[R, V]`, state): the scores of the token after `ids`. R is
  `rows_per_source` times b, and the rows of one source stand together. What a step closes over, such as those sources'
  memory, is not the search's business;
- `state`: what the first step wants, a nest of tensors `[B, ...]`. Their other sizes may change from step to step, as a
  Transformer's cache does;
- `limits`: int32 `[B]`, at least 1: where each row is cut, in tokens, END included;
- `min_length`: how many tokens, a scalar, come before END may;
- `seeds`: `[B]`, int32 or int64: all that the randomness of a row depends on. Only `Sampling` looks at it.

and returns `Hypotheses`. What it finds for a row depends on nothing in other rows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from pipelines.names import OptionError
from pipelines.tokenizers import END, PADDING, START

# Why a hypothesis stopped: it emitted END, reached its limit, or said one phrase over and over.
STOPPED = ("end", "limit", "repetition")
ENDED, LIMITED, REPEATED = range(3)
RUNNING = -1

NEVER = float("-inf")  # the log-likelihood of what is no hypothesis


State: TypeAlias = Any  # a nest of tensors
Step: TypeAlias = Callable[[tf.Tensor, State], tuple[tf.Tensor, State]]
StepFor: TypeAlias = Callable[[tf.Tensor], Step]


class Hypotheses(NamedTuple):
    """What a search found for each source, the best hypothesis first."""

    ids: tf.Tensor  # int32 [B, N, T] tokens up to and with END, then padding; T is the length of the longest
    scores: tf.Tensor | None  # float32 [B, N] log-likelihoods in nats, END included; None if the search needs none
    stopped: tf.Tensor  # int32 [B, N] indices in STOPPED


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Takes the likeliest token at every step. One hypothesis for each source, without a score."""

    rows_per_source = 1

    def search(
        self, step_for: StepFor, state: State, limits: tf.Tensor, min_length: int | tf.Tensor, seeds: tf.Tensor
    ) -> Hypotheses:
        """Decodes as this module says above."""

        def choose(logits, t, sources):
            return tf.argmax(logits, axis=1, output_type=tf.int32)

        return _extend_one(step_for, state, limits, min_length, choose)


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Extends the K likeliest beginnings at every step and keeps the K best hypotheses that came to an end.

    Left-to-right beam search as in Graves 2012 (arxiv.org/abs/1211.3711) and Sutskever et al. 2014
    (arxiv.org/abs/1409.3215). Hypotheses are ranked by log-likelihood divided by a length penalty,
    `((5 + length) / 6) ** length_penalty` (Wu et al. 2016, arxiv.org/abs/1609.08144, equation 14), since each further
    token can only lower the log-likelihood itself. Those cut at the limit or for repetition rank below all that ended.

    A source is done when K hypotheses have ended, or when no beginning can overtake the `n_best` best that have. Where
    there are fewer than `n_best` hypotheses at all, for want of tokens, the last ones are empty with a score of -inf
    and count as "limit".

    Args:
        width: K. With 1 this is greedy search, with scores.
        length_penalty: 0 compares log-likelihoods as they are, 1 nearly those per token.
        n_best: how many hypotheses of each source to return, N; at most K.
    """

    width: int = 5
    length_penalty: float = 0.6
    n_best: int = 1

    def __post_init__(self):
        _require("width", self.width, self.width >= 1, "1 or more")
        _require("length_penalty", self.length_penalty, self.length_penalty >= 0, "0 or more")
        _require("n_best", self.n_best, 1 <= self.n_best <= self.width, f"1 to {self.width}, the width")

    @property
    def rows_per_source(self) -> int:
        return self.width

    def search(
        self, step_for: StepFor, state: State, limits: tf.Tensor, min_length: int | tf.Tensor, seeds: tf.Tensor
    ) -> Hypotheses:
        """Decodes as this module says above."""
        batch, width = tf.shape(limits)[0], self.width

        def running(now):
            _, scores, _ = now
            return tf.reduce_any(scores > NEVER, axis=1)

        def extend(t, step, sources, now, rows):
            (tokens, scores, finished), (repetition, state) = now, rows
            logits, state = step(tf.reshape(tokens, [-1]), state)
            count, limits_left = tf.size(sources), tf.gather(limits, sources)[:, None]

            # The likeliest extensions of each source. One number for each row turns its logits into log-probabilities,
            # and adds those of the tokens before. Of twice the width, at least half go on, as only K can be END.
            emittable = _emittable(logits, t, min_length)
            offsets = tf.reshape(scores, [-1]) - tf.reduce_logsumexp(logits, axis=1)
            size = tf.shape(emittable)[1]
            totals = tf.reshape(emittable + offsets[:, None], [-1, width * size])
            totals, indices = tf.math.top_k(totals, tf.minimum(2, size) * width)
            tokens, parents = END + indices % size, indices // size

            # END counts where it beats the others for a place among the K, so that a width of 1 is greedy search.
            is_end = tokens == END
            ended = _Finished(
                scores=tf.where(is_end, totals, NEVER)[:, :width],
                lengths=tf.fill([count, width], t + 1),
                tokens=tokens[:, :width],
                parents=parents[:, :width],
                stopped=tf.fill([count, width], ENDED),
            )

            # The K best of the others live on, each with the state of the hypothesis it extends.
            scores, ranks = tf.math.top_k(tf.where(is_end, NEVER, totals), width)
            tokens, parents = (tf.gather(tensor, ranks, batch_dims=1) for tensor in (tokens, parents))
            state, repetition = take((state, repetition), _rows(tf.range(count), parents, width))
            repetition = _repetition_after(repetition, tf.reshape(tokens, [-1]))

            stopped = _stopped(tokens, t + 1, limits_left, tf.reshape(repetition.runs, [count, width, PHRASE]))
            cut = ended._replace(
                scores=tf.where(stopped == RUNNING, NEVER, scores), tokens=tokens, parents=parents, stopped=stopped
            )
            finished = self._best(finished, ended, cut)

            # What a living hypothesis can still reach, if it goes on until its limit and nothing lowers its likelihood.
            alive = tf.where(stopped == RUNNING, scores, NEVER)
            reach = tf.reduce_max(alive, axis=1) / self._penalty(limits_left[:, 0])
            last = self.n_best - 1
            to_beat = tf.where(finished.stopped == ENDED, self._penalized(finished), NEVER)[:, last]
            done = (finished.stopped[:, -1] == ENDED) | (reach <= to_beat)
            # With no living hypothesis a source has no candidates any more, whatever its neighbours still do.
            scores = tf.where(done[:, None], NEVER, alive)
            return (tokens, scores, finished), (repetition, state), [tokens, parents]

        nothing = tf.zeros([batch, width], tf.int32)
        finished = _Finished(tf.fill([batch, width], NEVER), nothing, nothing, nothing, nothing + LIMITED)
        scores = tf.where(tf.range(width) + nothing == 0, 0.0, NEVER)  # all K begin alike, so only one of them counts
        now = tf.fill([batch, width], START), scores, finished
        state = tf.nest.map_structure(lambda tensor: tf.repeat(tensor, width, axis=0), state)
        history = [
            tf.TensorArray(tf.int32, _longest(limits), element_shape=[None, None]) for _ in ("tokens", "parents")
        ]
        _, (_, _, finished), history = _until_all_stop(step_for, extend, running, now, state, history, width)
        best = _Finished(*(tensor[:, : self.n_best] for tensor in finished))
        return Hypotheses(_back_track(best, *history), best.scores, best.stopped)

    def _penalty(self, lengths):
        if not self.length_penalty:  # of x ** 0 TensorFlow makes a constant, for as many sources as there are at first
            return 1.0
        return ((5 + tf.cast(lengths, tf.float32)) / 6) ** self.length_penalty

    def _penalized(self, finished):
        return finished.scores / self._penalty(finished.lengths)

    def _best(self, *several):
        """Keeps the K best of several `_Finished`, the best first and, of equals, the earlier first."""
        every = _Finished(*(tf.concat(tensors, axis=1) for tensors in zip(*several, strict=True)))
        # In float64 a step that is larger than every score still leaves all the digits of a float32.
        step_down = tf.where(every.stopped == ENDED, tf.constant(0, tf.float64), 1e6)
        order = tf.math.top_k(tf.cast(self._penalized(every), tf.float64) - step_down, self.width).indices
        return _Finished(*(tf.gather(tensor, order, batch_dims=1) for tensor in every))


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Draws each token at random, as likely as the model says. One hypothesis for each source, without a score.

    Args:
        temperature: what the logits are divided by: below 1 likely tokens come oftener, above 1 unlikely ones do.
        top_k: draw from the k likeliest tokens only (Fan et al. 2018, arxiv.org/abs/1805.04833); None for all.
        top_p: draw from the nucleus only, the fewest tokens that together have at least this probability, after `top_k`
            (Holtzman et al. 2020, arxiv.org/abs/1904.09751); None for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    rows_per_source = 1

    def __post_init__(self):
        _require("temperature", self.temperature, self.temperature > 0, "more than 0")
        _require("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "1 or more, or None")
        _require("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "more than 0 and at most 1")

    def search(
        self, step_for: StepFor, state: State, limits: tf.Tensor, min_length: int | tf.Tensor, seeds: tf.Tensor
    ) -> Hypotheses:
        """Decodes as this module says above."""
        uniforms = _uniforms(seeds, limits)

        def choose(logits, t, sources):
            probabilities, tokens = self._filter(logits / self.temperature)
            # Inverse transform sampling: the token in whose stretch of the cumulative distribution the number falls.
            cumulative = tf.cumsum(probabilities, axis=1)
            numbers = tf.gather(uniforms[:, t], sources) * cumulative[:, -1]
            drawn = tf.reduce_sum(tf.cast(cumulative <= numbers[:, None], tf.int32), axis=1)
            return drawn if tokens is None else tf.gather(tokens, drawn, batch_dims=1)

        return _extend_one(step_for, state, limits, min_length, choose)

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


Strategy: TypeAlias = Greedy | BeamSearch | Sampling
STRATEGIES: dict[str, type[Strategy]] = {"greedy": Greedy, "beam": BeamSearch, "sampling": Sampling}


def _require(argument, value, condition, expected):
    if not condition:
        raise OptionError(f"{argument}={value!r}: expected {expected}")


def _extend_one(step_for, state, limits, min_length, choose):
    """Extends one hypothesis for each source, until all have stopped.

    Args:
        choose: a function (logits `[b, V - END]` of the tokens from END on, t, sources `[b]`) -> int32 `[b]`, the index
            of the t-th token of each of those sources in them.

    Returns:
        `Hypotheses` with N = 1.
    """

    def running(now):
        _, stopped = now
        return stopped == RUNNING

    def extend(t, step, sources, now, rows):
        (tokens, stopped), (repetition, state) = now, rows
        logits, state = step(tokens, state)
        tokens = END + choose(_emittable(logits, t, min_length), t, sources)
        tokens = tf.where(stopped == RUNNING, tokens, PADDING)
        repetition = _repetition_after(repetition, tokens)
        why = _stopped(tokens, t + 1, tf.gather(limits, sources), repetition.runs)
        return (tokens, tf.where(stopped == RUNNING, why, stopped)), (repetition, state), [tokens]

    batch = tf.shape(limits)[0]
    now = tf.fill([batch], START), tf.fill([batch], RUNNING)
    history = [tf.TensorArray(tf.int32, _longest(limits), element_shape=[None])]
    length, (_, stopped), (ids,) = _until_all_stop(step_for, extend, running, now, state, history)
    ids = tf.transpose(ids.gather(tf.range(length)))  # [B, T]
    return Hypotheses(ids[:, None], None, stopped[:, None])


def _until_all_stop(step_for, extend, running, now, state, history, width=1):
    """Takes one step after another. Sources that have stopped leave: whenever they are half of those that are there,
    the others go on without them.

    Args:
        extend: a function (t, step, sources `[b]`, now, rows) -> (now, rows, what to write in the history, `[b, ...]`).
        running: a function of now -> bool `[b]`, which sources go on.
        now: what is known of each source, a nest of tensors `[B, ...]`.
        state: of `width` rows for each source. With what is known of their repetition these are `rows`.
        history: TensorArrays.

    Returns:
        How many steps there were; what was known of each source when it stopped; and the history, of all sources, 0
        for those that had left.
    """
    batch = tf.size(running(now))

    def some_are_left(t, sources, *_):
        return (t == 0) | (tf.size(sources) > 0)

    def go_on(t, sources, now, rows, last, history):
        step = step_for(sources)

        def most_run(t, now, *_):
            return (t == 0) | (2 * tf.math.count_nonzero(running(now), dtype=tf.int32) > tf.size(sources))

        def extend_all(t, now, rows, history):
            now, rows, written = extend(t, step, sources, now, rows)
            written = [tf.scatter_nd(sources[:, None], each, [batch, *each.shape[1:]]) for each in written]
            return t + 1, now, rows, [array.write(t, each) for array, each in zip(history, written, strict=True)]

        t, now, rows, history = _while(most_run, extend_all, (t, now, rows, history))
        last = tf.nest.map_structure(
            lambda every, some: tf.tensor_scatter_nd_update(every, sources[:, None], some), last, now
        )
        left = tf.cast(tf.where(running(now))[:, 0], tf.int32)
        rows = take(rows, _rows(left, tf.range(width), width))
        return t, tf.gather(sources, left), take(now, left), rows, last, history

    variables = (tf.constant(0), tf.range(batch), now, (_no_repetition(batch * width), state), now, history)
    steps, _, _, _, last, history = _while(some_are_left, go_on, variables)
    return steps, last, history


def _longest(limits):
    return tf.maximum(1, tf.reduce_max(limits))


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


def _emittable(logits, t, min_length):
    """Cuts logits `[R, V]` down to those of the tokens from END on: PADDING, UNKNOWN and START are never the answer."""
    end = tf.where(t < min_length, NEVER, logits[:, END : END + 1])
    return tf.concat([end, logits[:, END + 1 :]], axis=1)


def _uniforms(seeds, limits):
    """Draws numbers from [0, 1) for each row: float32 `[B, T]`, T being the highest limit, 0 after the row's own."""
    # Of no rows at all map_fn cannot tell what they would look like, so there is always one that nobody wants.
    seeds, limits = tf.concat([seeds, [0]], axis=0), tf.concat([limits, [1]], axis=0)
    longest = tf.reduce_max(limits)

    def draw(row):
        seed, limit = row
        # Exactly as many as the row can need: how many others need must not change them.
        numbers = tf.random.stateless_uniform([limit], tf.stack([seed, tf.zeros_like(seed)]))
        return tf.pad(numbers, [[0, longest - limit]])

    return tf.map_fn(draw, (seeds, limits), fn_output_signature=tf.TensorSpec([None], tf.float32))[:-1]


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


def _repetition_after(repetition, tokens):
    """Takes one more token of each row, int32 `[R]`, into account."""
    tokens = tokens[:, None]
    recent, runs = repetition
    return _Repetition(tf.concat([tokens, recent[:, :-1]], axis=1), tf.where(tf.equal(recent, tokens), runs + 1, 0))


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
    """Hypotheses of a beam search that go no further, `[B, N]` each; a score of -inf marks an empty place."""

    scores: tf.Tensor  # float32, log-likelihoods
    lengths: tf.Tensor  # int32, END included
    tokens: tf.Tensor  # int32, the last ones
    parents: tf.Tensor  # int32, the places that they extended, among the K that lived one token earlier
    stopped: tf.Tensor  # int32, indices in STOPPED


def _back_track(finished, tokens, parents):
    """Reads hypotheses from their last token to their first.

    Args:
        finished: `_Finished` `[B, N]`.
        tokens, parents: TensorArrays of int32 `[B, K]`: the newest tokens of those that lived at each step, and which
            places at the step before they extended.

    Returns:
        int32 ids `[B, N, T]`.
    """
    steps = tf.range(tf.maximum(1, tf.reduce_max(finished.lengths)))

    def back(later, now):
        places, _ = later
        t, tokens, parents = now
        before_last = t < finished.lengths - 1
        last = tf.where(t == finished.lengths - 1, finished.tokens, PADDING)
        ids = tf.where(before_last, tf.gather(tokens, places, batch_dims=1), last)
        return tf.where(before_last, tf.gather(parents, places, batch_dims=1), places), ids

    written = (steps, tokens.gather(steps), parents.gather(steps))
    _, ids = tf.scan(back, written, (finished.parents, finished.tokens), reverse=True)
    return tf.transpose(ids, [1, 2, 0])
