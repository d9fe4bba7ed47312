"""Small models, searches and strategies, for tests of decoding."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from pipelines.tokenizers import CharTokenizer
from pipelines.tokens import END, START
from seq2seq import BeamSearch, Greedy, Sampling, Strategy, extend_each
from seq2seq.compilation import rounded_up
from seq2seq.decoding import STOPPED, Constraints, masking_loop

TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvwxyz")


@dataclasses.dataclass(frozen=True)
class SecondBest(Strategy):
    """A custom strategy that takes the second likeliest token at every step."""

    def search(self, step_for, state, constraints, loop=None):
        def choose(logits, t, sources):
            return tf.math.top_k(logits, 2).indices[:, -1]

        return extend_each(step_for, state, constraints, choose, loop=loop)


@dataclasses.dataclass(frozen=True)
class Counting(BeamSearch):
    """A beam search with hooks: each time that a hypothesis has said a token costs it so much."""

    token: int = 4
    price: float = 0.5

    def remember(self, tokens, memory=None):
        said = tf.cast(tokens == self.token, tf.float32)
        return {"count": said if memory is None else memory["count"] + said}

    def adjust(self, totals, t, memory, state):
        new = tf.one_hot(self.token - END, tf.shape(totals)[2])
        return totals - self.price * (tf.reshape(memory["count"], [-1, self.width, 1]) + new)


@dataclasses.dataclass(frozen=True)
class Saying(BeamSearch):
    """A beam search of which no hypothesis ends before it has said a token."""

    token: int = 4

    def remember(self, tokens, memory=None):
        said = tokens == self.token
        return said if memory is None else memory | said

    def adjust(self, totals, t, memory, state):
        too_early = ~tf.reshape(memory, [-1, self.width, 1]) & (tf.range(tf.shape(totals)[2]) == 0)
        return tf.where(too_early, float("-inf"), totals)


@dataclasses.dataclass(frozen=True)
class Banning(BeamSearch):
    """A beam search that never says a token."""

    token: int = 4

    def adjust(self, totals, t, memory, state):
        return tf.where(tf.range(END, END + tf.shape(totals)[2]) == self.token, float("-inf"), totals)


# Of each kind one; and of each path one, where rows of a source interact or options change what is drawn.
KINDS = pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(3), Sampling()], ids=repr)
EVERY = [Greedy(), BeamSearch(3, n_best=2), Sampling(0.8, top_k=4, top_p=0.9, n_best=3), Counting(3, n_best=2)]
EVERY_STRATEGY = pytest.mark.parametrize("strategy", EVERY, ids=repr)
BOTH_LOOPS = pytest.mark.usefixtures("each_loop")


def shrinking(limits):
    """The loop that a strategy takes by itself."""


def masking(limits):
    return masking_loop(rounded_up(tf.reduce_max(limits)))


LOOP = shrinking  # unless the fixture `each_loop` changes it


def search(strategy, step, state=(), limits=(), min_length=0, seeds=None, prefixes=None):
    """Search with a step function: of a model below in a graph that is traced once, of another one eagerly."""
    limits = tf.constant(limits, tf.int32)
    seeds = tf.range(tf.size(limits)) if seeds is None else tf.constant(seeds)
    constraints = Constraints(limits, tf.constant(min_length), seeds, prefixes)
    if not isinstance(getattr(step, "__self__", None), tuple):
        return strategy.search(always(step), state, constraints, LOOP(limits))
    arguments = step.__self__, state, constraints
    sizes = tf.nest.map_structure(
        lambda x: None if x is None else tf.TensorSpec([None] * x.shape.rank, x.dtype), arguments
    )
    return graph(strategy, LOOP, sizes)(*arguments)


@functools.cache
def graph(strategy, loop, sizes):
    def run(model, state, constraints):
        return strategy.search(always(model.step), state, constraints, loop(constraints.limits))

    return tf.function(run, autograph=False).get_concrete_function(*sizes)


def eagerly(step):
    """The step of a model, for a search that is not worth a trace."""
    return lambda tokens, state: step(tokens, state)


def always(step):
    """The same step whichever sources are left: one whose state knows of what source it is."""
    return lambda sources: step


class Speller(NamedTuple):
    """A model that spells a word for each row, whatever it is given; its state is which word `[R]` and where `[R]`."""

    ids: tf.Tensor

    def step(self, tokens, state):
        word, position = state
        here = tf.minimum(position, tf.shape(self.ids)[1] - 1)
        written = tf.gather(tf.gather(self.ids, word), here, batch_dims=1)
        right = tf.one_hot(written, TOKENIZER.vocabulary_size, on_value=50.0)
        # The reserved tokens are louder, yet never the answer; END comes where it is right or not at all.
        others = tf.constant([51.0, 51.0, 51.0, -1000.0] + [0.0] * 26)
        return tf.where(right > 0, right, others), (word, position + 1)


def spelling(words):
    ids = tf.constant(TOKENIZER.tokenize(words, start_end=True)[:, 1:])
    return Speller(ids).step, (tf.range(len(words)), tf.zeros([len(words)], tf.int32))


class Wanderer(NamedTuple):
    """A random model: its state is a place `[R]`, from which each token leads to another with other logits."""

    logits: tf.Tensor
    paths: tf.Tensor

    def step(self, tokens, place):
        place = tf.gather(tf.gather(self.paths, place), tokens, batch_dims=1)
        return tf.gather(self.logits, place), place


def wandering(seed, sources, letters=8, places=997):
    random = np.random.default_rng(seed)
    logits = tf.constant(2 * random.normal(size=(places, END + 1 + letters)), tf.float32)
    paths = tf.constant(random.integers(places, size=(places, END + 1 + letters)), tf.int32)
    return Wanderer(logits, paths).step, tf.constant(random.integers(places, size=sources), tf.int32)


class Rememberer(NamedTuple):
    """A random model whose state grows: all tokens so far `[R, t]`, beside which source it is of, `[R]`."""

    first: tf.Tensor
    table: tf.Tensor

    def step(self, tokens, state):
        source, history = state
        history = tf.concat([history, tokens[:, None]], axis=1)
        places = tf.range(tf.shape(history)[1])[None] + tf.zeros_like(history)
        heard = tf.gather_nd(self.table, tf.stack([places, history], axis=-1))  # [R, t, V]
        return tf.gather(self.first, source) + tf.reduce_sum(heard, axis=1), (source, history)


def remembering(seed, sources, letters=3):
    random = np.random.default_rng(seed)
    first = tf.constant(random.normal(size=(sources, END + 1 + letters)), tf.float32)
    table = tf.constant(random.normal(size=(9, END + 1 + letters, END + 1 + letters)), tf.float32)
    return Rememberer(first, table).step, (tf.range(sources), tf.zeros([sources, 0], tf.int32))


def rows(tensors, *chosen):
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, chosen), tensors)


def texts(hypotheses):
    """The hypotheses as nested lists of ids up to and with END, padding left out."""
    return [[[token for token in ids if token] for ids in source] for source in hypotheses.ids.numpy().tolist()]


def reasons(hypotheses):
    return [[STOPPED[index] for index in source] for source in hypotheses.stopped.numpy()]


def log_likelihoods(step, state, ids):
    """What a model says of texts `[N, T]` of one source, token by token: float `[N, T]`."""
    state, before, found = rows(state, *[0] * len(ids)), tf.fill([len(ids)], START), []
    for tokens in tf.unstack(tf.constant(ids), axis=1):
        logits, state = step(before, state)
        found.append(tf.gather(tf.nn.log_softmax(logits), tokens, batch_dims=1))
        before = tokens
    return np.stack(found, axis=1)


def all_hypotheses(step, state, limit, alpha, min_length=0, letters=2):
    """Every hypothesis of one source as (ids, log-likelihood, reason), in the order in which a beam should put them."""
    ids = list(itertools.product(range(END, END + 1 + letters), repeat=limit))
    found = {}
    for one, scores in zip(ids, log_likelihoods(step, state, ids), strict=True):
        length = one.index(END) + 1 if END in one else limit
        if END not in one or length > min_length:
            found[one[:length]] = (list(one[:length]), scores[:length].sum(), "end" if END in one else "limit")
    return sorted(found.values(), key=lambda one: (one[2] != "end", -one[1] / penalty(one[0], alpha)))


def penalty(ids, alpha):
    return ((5 + len(ids)) / 6) ** alpha
