import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from pipelines.options import OptionError
from pipelines.tokenizers import CharTokenizer
from pipelines.tokens import END, START
from seq2seq import Strategy, extend_each
from seq2seq.decoding import (
    ENDED,
    STEPS_UNASKED,
    STOPPED,
    STRATEGIES,
    BeamSearch,
    Greedy,
    Sampling,
    Wanted,
    masking_loop,
)

TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvwxyz")


@dataclasses.dataclass(frozen=True)
class SecondBest(Strategy):
    """Takes the second likeliest token at every step: a strategy of one's own."""

    def search(self, step_for, state, wanted, loop=None):
        def choose(logits, t, sources):
            return tf.math.top_k(logits, 2).indices[:, -1]

        return extend_each(step_for, state, wanted, choose, loop=loop)


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


EVERY = [
    Greedy(),
    BeamSearch(3, n_best=2),
    Sampling(n_best=3),
    Sampling(0.8, top_k=4, top_p=0.9),
    Counting(3, n_best=2),
]
EVERY_STRATEGY = pytest.mark.parametrize("strategy", EVERY, ids=repr)
OWN_TOO = pytest.mark.parametrize("strategy", [*EVERY, SecondBest()], ids=repr)


@pytest.fixture(params=["shrinking", "masking"])
def each_loop(request, monkeypatch):
    """Lets a test's searches use one loop, then the other."""

    def as_many_blocks_as_needed(step_for, extend, running, now, state, limits, *rest):
        blocks = -(-max(limits.numpy().tolist()) // STEPS_UNASKED)
        return masking_loop(blocks)(step_for, extend, running, now, state, limits, *rest)

    if request.param == "masking":
        monkeypatch.setattr("seq2seq.decoding.shrinking_loop", as_many_blocks_as_needed)


BOTH_LOOPS = pytest.mark.usefixtures("each_loop")


def search(strategy, step, state=(), limits=(), min_length=0, seeds=None, prefixes=None):
    limits = tf.constant(limits, tf.int32)
    seeds = tf.range(tf.size(limits)) if seeds is None else tf.constant(seeds)
    return strategy.search(always(step), state, Wanted(limits, tf.constant(min_length), seeds, prefixes))


def always(step):
    """The same step whichever sources are left: one whose state knows of what source it is."""
    return lambda sources: step


def spelling(words):
    """A step that spells a word for each row, whatever it is given; its state is which word `[R]` and where `[R]`."""
    ids = tf.constant(TOKENIZER.tokenize(words, start_end=True)[:, 1:])

    def step(tokens, state):
        word, position = state
        written = tf.gather(tf.gather(ids, word), tf.minimum(position, tf.shape(ids)[1] - 1), batch_dims=1)
        right = tf.one_hot(written, TOKENIZER.vocabulary_size, on_value=50.0)
        # The reserved tokens are louder, yet never the answer; END comes where it is right or not at all.
        others = tf.constant([51.0, 51.0, 51.0, -1000.0] + [0.0] * 26)
        return tf.where(right > 0, right, others), (word, position + 1)

    return step, (tf.range(len(words)), tf.zeros([len(words)], tf.int32))


def wandering(seed, sources, letters=8, places=997):
    """A random model: its state is a place `[R]`, from which each token leads to another with other logits."""
    random = np.random.default_rng(seed)
    logits = tf.constant(2 * random.normal(size=(places, END + 1 + letters)), tf.float32)
    paths = tf.constant(random.integers(places, size=(places, END + 1 + letters)), tf.int32)

    def step(tokens, place):
        place = tf.gather(tf.gather(paths, place), tokens, batch_dims=1)
        return tf.gather(logits, place), place

    return step, tf.constant(random.integers(places, size=sources), tf.int32)


def remembering(seed, sources, letters=3):
    """A random model whose state grows: all tokens so far `[R, t]`, beside which source it is of, `[R]`."""
    random = np.random.default_rng(seed)
    first = tf.constant(random.normal(size=(sources, END + 1 + letters)), tf.float32)
    table = tf.constant(random.normal(size=(9, END + 1 + letters, END + 1 + letters)), tf.float32)

    def step(tokens, state):
        source, history = state
        history = tf.concat([history, tokens[:, None]], axis=1)
        places = tf.range(tf.shape(history)[1])[None] + tf.zeros_like(history)
        heard = tf.gather_nd(table, tf.stack([places, history], axis=-1))  # [R, t, V]
        return tf.gather(first, source) + tf.reduce_sum(heard, axis=1), (source, history)

    return step, (tf.range(sources), tf.zeros([sources, 0], tf.int32))


def rows(tensors, *chosen):
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, chosen), tensors)


def texts(hypotheses):
    """The hypotheses as nested lists of ids up to and with END, padding left out."""
    return [[[int(token) for token in ids if token] for ids in source] for source in hypotheses.ids.numpy()]


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


@BOTH_LOOPS
@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(), BeamSearch(1), Sampling()], ids=repr)
def test_words_are_spelt_up_to_the_end_of_the_longest(strategy):
    words = ["hola", "", "a"]
    hypotheses = search(strategy, *spelling(words), limits=[50, 50, 50])
    assert hypotheses.ids.shape[:2] == (3, 1)
    assert [text.decode() for text in TOKENIZER.detokenize(hypotheses.ids[:, 0]).numpy()] == words
    np.testing.assert_array_equal(hypotheses.ids[1, 0, :5], [END, 0, 0, 0, 0])
    assert reasons(hypotheses) == [["end"]] * 3


@EVERY_STRATEGY
@pytest.mark.parametrize("run", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_no_rows_are_no_rows(strategy, run):
    step, state = wandering(0, sources=0)
    hypotheses = run(strategy.search)(always(step), state, Wanted(tf.zeros([0], tf.int32), 0, tf.zeros([0], tf.int32)))
    assert hypotheses.ids.shape[:2] == (0, hypotheses.stopped.shape[1])


@EVERY_STRATEGY
def test_compiled_it_finds_the_same(strategy):
    step, state = wandering(11, sources=30)
    limits, seeds = tf.constant([5, 12, 30] * 10), tf.range(30)
    right = strategy.search(always(step), state, Wanted(limits, 1, seeds))

    @tf.function(jit_compile=True)
    def compiled(state, limits, seeds):
        return strategy.search(always(step), state, Wanted(limits, 1, seeds), masking_loop(2))

    found = compiled(state, limits, seeds)
    assert texts(found) == texts(right) and reasons(found) == reasons(right)
    if right.scores is not None:
        np.testing.assert_allclose(found.scores, right.scores, rtol=1e-5)


@BOTH_LOOPS
@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(), Sampling()], ids=repr)
def test_each_row_is_cut_at_its_own_limit(strategy):
    hypotheses = search(strategy, *spelling(["abcdefgh", "abcdefgh", "abc", "abc"]), limits=[3, 20, 3, 4])
    letters = [TOKENIZER.detokenize(hypotheses.ids[row]).numpy()[0].decode() for row in range(4)]
    assert letters == ["abc", "abcdefgh", "abc", "abc"]
    assert reasons(hypotheses) == [["limit"], ["end"], ["limit"], ["end"]]
    assert np.all(hypotheses.ids[:, :, 9:] == 0)


@BOTH_LOOPS
@EVERY_STRATEGY
def test_nothing_ends_before_the_minimum_length(strategy):
    step, state = wandering(1, sources=40)
    free = search(strategy, step, state, [9] * 40)
    held = search(strategy, step, state, [9] * 40, min_length=5)
    assert min(len(ids) for source in texts(free) for ids in source if ids) < 6
    known = [*zip(*(itertools.chain(*part) for part in (texts(held), reasons(held))), strict=True)]
    assert min(len(ids) for ids, _ in known if ids) == 6  # END is the sixth
    assert all((ids[-1] == END) == (reason == "end") for ids, reason in known if ids)


@BOTH_LOOPS
@EVERY_STRATEGY
def test_a_row_does_not_depend_on_its_neighbours(strategy):
    step, state = wandering(2, sources=12)
    limits, seeds = tf.constant([3, 25, 7, 20, 1, 9, 30, 5, 12, 15, 2, 8]), tf.constant(range(100, 112), tf.int64)
    together = search(strategy, step, state, limits, seeds=seeds)
    assert len({len(ids) for source in texts(together) for ids in source}) > 3
    for order in [[0], [4], [7], [11, 3, 1, 10], list(range(11, -1, -1))]:
        some = search(strategy, step, *rows((state, limits), *order), seeds=tf.gather(seeds, order))
        assert texts(some) == [texts(together)[row] for row in order]
        assert reasons(some) == [reasons(together)[row] for row in order]
        if together.scores is not None:
            np.testing.assert_allclose(some.scores, tf.gather(together.scores, order), rtol=1e-6)


@EVERY_STRATEGY
def test_eager_and_graph_agree_and_one_trace_serves_every_batch(strategy):
    step, state = wandering(3, sources=6)
    traces = []

    def run(state, limits, min_length, seeds):
        traces.append(1)
        return strategy.search(always(step), state, Wanted(limits, min_length, seeds))

    vector, scalar = tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.int32)
    graph = tf.function(run, input_signature=[vector, vector, scalar, vector])
    for size, min_length in ((6, 0), (1, 2), (3, 1), (0, 0)):
        arguments = (state[:size], tf.constant([5, 30, 12, 9, 1, 20][:size], tf.int32), min_length, tf.range(size))
        for in_graph, eager in zip(graph(*arguments), run(*arguments), strict=True):
            if eager is not None:
                np.testing.assert_allclose(in_graph, eager, rtol=1e-6)
    assert len(traces) == 1 + 4


@EVERY_STRATEGY
@pytest.mark.parametrize("run", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_a_state_may_grow(strategy, run):
    step, state = remembering(4, sources=5)
    hypotheses = run(strategy.search)(always(step), state, Wanted(tf.constant([8, 3, 8, 5, 8]), 3, tf.range(5)))
    assert all(1 <= len(source[0]) <= 8 for source in texts(hypotheses))


@EVERY_STRATEGY
@pytest.mark.parametrize("run", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_sources_that_have_stopped_leave(strategy, run):
    words = ["a" * length for length in (2, 2, 3, 3, 9, 9, 9, 14)]
    spell, state = spelling(words)
    decoded = []

    def step_for(sources):
        def step(tokens, state):
            rows = tf.repeat(sources, strategy.rows_per_source)
            tf.debugging.assert_equal(state[0], rows)  # of the state, those that are left
            tf.numpy_function(lambda left: decoded.append(left.tolist()), [sources], [])
            return spell(tokens, state)

        return step

    hypotheses = run(strategy.search)(step_for, state, Wanted(tf.fill([8], 50), 0, tf.range(8)))
    assert [TOKENIZER.detokenize(ids[:1]).numpy()[0].decode() for ids in hypotheses.ids] == words
    everyone, some, one = list(range(8)), [4, 5, 6, 7], [7]
    greedy = [everyone] * 4 + [some] * 6 + [one] * 5
    assert decoded == greedy or isinstance(strategy, BeamSearch)
    assert [len(left) for left in decoded] == sorted((len(left) for left in decoded), reverse=True)
    assert len(decoded[-1]) < 8


# Repetition


@BOTH_LOOPS
@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(), Sampling()], ids=repr)
@pytest.mark.parametrize(("phrase", "limit", "length"), [("a", 60, 31), ("abc", 60, 33), ("ab", 20, 18)])
def test_a_phrase_said_over_and_over_is_cut(strategy, phrase, limit, length):
    hypotheses = search(strategy, *spelling([phrase * 300]), limits=[limit])
    assert reasons(hypotheses) == [["repetition"]]
    assert texts(hypotheses)[0][0] == TOKENIZER.tokenize([phrase * 300])[0, :length].numpy().tolist()


@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(), Sampling()], ids=repr)
def test_repetition_that_ends_or_is_of_long_phrases_is_left_alone(strategy):
    words = ["a" * 40, "abcdefghi" * 9, "abcabcabcd" * 5, "x" * 14]
    hypotheses = search(strategy, *spelling(words), limits=[200, 100, 60, 20])
    assert [text.decode() for text in TOKENIZER.detokenize(hypotheses.ids[:, 0]).numpy()] == words
    assert reasons(hypotheses) == [["end"]] * 4
    assert reasons(search(strategy, *spelling(["x" * 99]), limits=[16])) == [["limit"]]


# Prefixes


@BOTH_LOOPS
@OWN_TOO
def test_hypotheses_begin_with_the_prefix_of_their_source(strategy):
    step, state = wandering(12, sources=5)
    prefixes = [[4, 5, 6], [7], [], [11, 11], []]
    padded = tf.constant([[*prefix, 0, 0, 0][:3] for prefix in prefixes])
    limits = [4, 9, 9, 3, 1]
    found = search(strategy, step, state, limits, prefixes=padded)
    free = search(strategy, step, state, limits)
    for row, prefix in enumerate(prefixes):
        some = [ids for ids in texts(found)[row] if ids]
        assert some and all(ids[: len(prefix)] == prefix and len(prefix) < len(ids) <= limits[row] for ids in some)
    for row in (2, 4):  # without a prefix
        assert texts(found)[row] == texts(free)[row]
    wider = search(strategy, step, state, limits, prefixes=tf.pad(padded, [[0, 0], [0, 9]]))
    assert texts(wider) == texts(found)
    if found.scores is not None:
        for row in range(5):
            for ids, score in zip(texts(found)[row], found.scores[row].numpy(), strict=True):
                if ids:
                    right = log_likelihoods(step, rows(state, row), [ids]).sum()
                    np.testing.assert_allclose(score, right, rtol=1e-4)


@OWN_TOO
def test_compiled_it_goes_on_from_a_prefix_the_same(strategy):
    step, state = wandering(13, sources=6)
    limits, seeds = tf.constant([5, 12, 17] * 2), tf.range(6)
    prefixes = tf.constant([[4, 5], [6, 0], [0, 0]] * 2)
    right = strategy.search(always(step), state, Wanted(limits, 1, seeds, prefixes))

    @tf.function(jit_compile=True)
    def compiled(state, wanted):
        return strategy.search(always(step), state, wanted, masking_loop(2))

    found = compiled(state, Wanted(limits, tf.constant(1), seeds, prefixes))
    assert texts(found) == texts(right) and reasons(found) == reasons(right)


@BOTH_LOOPS
@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(1), Sampling(), SecondBest()], ids=repr)
def test_after_a_prefix_it_goes_on_as_if_it_had_found_it_itself(strategy):
    step, state = wandering(14, sources=20)
    free = search(strategy, step, state, [12] * 20)
    long = [row for row, (ids,) in enumerate(texts(free)) if len(ids) > 4]
    assert len(long) > 5
    prefixes = tf.gather(free.ids, long)[:, 0, :3]
    again = search(strategy, step, rows(state, *long), [12] * len(long), seeds=long, prefixes=prefixes)
    assert texts(again) == [texts(free)[row] for row in long]


@BOTH_LOOPS
@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(), Sampling()], ids=repr)
def test_repetition_within_a_prefix_does_not_count(strategy):
    word = "a" * 40 + "bc"
    prefixes = TOKENIZER.tokenize([word[:40]])
    hypotheses = search(strategy, *spelling([word]), limits=[60], prefixes=prefixes)
    assert TOKENIZER.detokenize(hypotheses.ids[:, 0]).numpy()[0].decode() == word
    assert reasons(hypotheses) == [["end"]]
    hypotheses = search(strategy, *spelling(["a" * 300]), limits=[80], prefixes=prefixes)
    assert reasons(hypotheses) == [["repetition"]] and len(texts(hypotheses)[0][0]) == 80  # 40 of its own


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_a_wide_beam_finds_all_that_begins_with_the_prefix(alpha):
    step, state = remembering(5, sources=1, letters=2)
    strategy = BeamSearch(width=31, length_penalty=alpha, n_best=31)
    hypotheses = search(strategy, step, state, [4], prefixes=tf.constant([[5]]))
    expected = [one for one in all_hypotheses(step, rows(state, 0), 4, alpha) if one[0][0] == 5]
    assert texts(hypotheses)[0] == [ids for ids, _, _ in expected] + [[]] * (62 - len(expected))
    np.testing.assert_allclose(hypotheses.scores[0, : len(expected)], [one[1] for one in expected], rtol=1e-5)


# Beam search


@BOTH_LOOPS
def test_a_beam_of_one_is_greedy_search():
    for seed in range(3):
        step, state = wandering(seed, sources=50)
        limits = [1, 2, 5, 10, 20] * 10
        greedy, beam = (search(strategy, step, state, limits, 1) for strategy in (Greedy(), BeamSearch(1)))
        np.testing.assert_array_equal(greedy.ids, beam.ids)
        np.testing.assert_array_equal(greedy.stopped, beam.stopped)
        assert greedy.scores is None


@pytest.mark.parametrize("model", [wandering, remembering])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("min_length", [0, 2])
def test_a_wide_beam_finds_what_trying_everything_finds(model, alpha, min_length):
    # 15 hypotheses of at most 4 tokens out of two letters end, and 16 are cut.
    step, state = model(5, sources=4, letters=2)
    limits = [4, 3, 2, 1]
    strategy = BeamSearch(width=31, length_penalty=alpha, n_best=31)
    hypotheses = tf.function(strategy.search)(always(step), state, Wanted(tf.constant(limits), min_length, None))
    for row, limit in enumerate(limits):
        expected = all_hypotheses(step, rows(state, row), limit, alpha, min_length)
        missing = 62 - len(expected)
        assert texts(hypotheses)[row] == [ids for ids, _, _ in expected] + [[]] * missing
        assert reasons(hypotheses)[row] == [reason for _, _, reason in expected] + ["limit"] * missing
        scores = [score for _, score, _ in expected] + [-np.inf] * missing
        np.testing.assert_allclose(hypotheses.scores[row], scores, rtol=1e-5)
        ranks = [score / penalty(ids, alpha) for ids, score, _ in expected] + [-np.inf] * missing
        np.testing.assert_allclose(hypotheses.ranked_by[row], ranks, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("n_best", [1, 3])
def test_a_beam_that_may_stop_early_still_finds_the_best(alpha, n_best):
    step, state = remembering(0, sources=12, letters=2)
    strategy = BeamSearch(width=31, length_penalty=alpha, n_best=n_best)
    hypotheses = tf.function(strategy.search)(always(step), state, Wanted(tf.fill([12], 4), 0, None))
    for row in range(12):
        expected = all_hypotheses(step, rows(state, row), 4, alpha)[:n_best]
        assert texts(hypotheses)[row][:n_best] == [ids for ids, _, _ in expected]


@BOTH_LOOPS
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_wider_beam_never_ranks_its_best_lower_and_greedy_search_is_the_narrowest(alpha):
    step, state = wandering(0, sources=200, letters=9)
    found = [search(BeamSearch(width, alpha), step, state, [8, 12, 20, 30] * 50) for width in (1, 2, 3, 5, 9)]
    np.testing.assert_array_equal(found[0].ids, search(Greedy(), step, state, [8, 12, 20, 30] * 50).ids)
    ends = np.stack([one.stopped[:, 0] == ENDED for one in found])
    ranks = np.stack([one.ranked_by[:, 0] for one in found])
    assert np.all(ends[1:] >= ends[:-1]) and not np.all(ends)
    same_kind = ends[1:] == ends[:-1]
    assert np.all((ranks[1:] >= ranks[:-1] - 1e-5)[same_kind])
    assert np.mean(ranks[-1] > ranks[0] + 1e-3) > 0.5


@BOTH_LOOPS
@pytest.mark.parametrize(("width", "alpha"), [(2, 0.0), (3, 0.6), (4, 2.0)])
def test_a_beam_fills_its_places_in_their_order(width, alpha):
    def by_hand(place, limit):
        living, ended, cut = {0: ([], 0.0, place)}, [], []
        while living:
            extensions = []
            for parent, (ids, score, before) in living.items():
                logits, after = step(tf.constant(ids[-1:] or [START]), before)
                scores = score + tf.nn.log_softmax(logits)[0].numpy()
                extensions += [(parent, [*ids, token], scores[token], after) for token in range(END, len(scores))]
            extensions.sort(key=lambda one: -one[2])
            living = {}
            for place in range(width):
                chosen = next((one for one in extensions if one[0] <= place), None)
                if chosen is None:
                    continue
                extensions.remove(chosen)
                _, ids, score, after = chosen
                if ids[-1] == END:
                    ended.append((ids, score))
                elif len(ids) == limit:
                    cut.append((ids, score))
                else:
                    living[place] = ids, score, after
        order = [sorted(some, key=lambda one: -one[1] / penalty(one[0], alpha)) for some in (ended, cut)]
        return [ids for ids, _ in itertools.chain(*order)][:width]

    step, state = wandering(10, sources=20, letters=4)
    limits = [4, 6, 8, 10] * 5
    found = texts(search(BeamSearch(width, alpha, n_best=width), step, state, limits))
    for row, limit in enumerate(limits):
        expected = by_hand(rows(state, row), limit)
        assert found[row][: len(expected)] == expected


def test_a_narrow_beam_scores_what_it_finds_as_the_model_does():
    step, state = wandering(6, sources=10)
    hypotheses = search(BeamSearch(4, n_best=4), step, state, [12] * 10)
    for row, source in enumerate(texts(hypotheses)):
        source = [ids for ids in source if ids]
        assert len(set(map(tuple, source))) == len(source) >= 4
        for ids, score in zip(source, hypotheses.scores[row]):  # noqa: B905 (empty ones follow)
            expected = log_likelihoods(step, rows(state, row), [ids]).sum()
            np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_what_is_cut_ranks_below_all_that_ended():
    # "a" goes on for ever and is likely; END is unlikely at every step.
    logits = tf.constant([[0.0, 0.0, 0.0, 1.0, 9.0]])
    hypotheses = search(BeamSearch(3, n_best=3), lambda tokens, _: (tf.repeat(logits, len(tokens), 0), ()), (), [2])
    assert texts(hypotheses) == [[[4, END], [END], [4, 4], [], [], []]]
    assert reasons(hypotheses) == [["end", "end", "limit", "limit", "limit", "limit"]]
    assert hypotheses.scores[0, 2] > hypotheses.scores[0, 0]


@pytest.mark.parametrize(
    ("strategy", "steps"),
    # Nothing alive can be likelier than the first END; or it could be, and each END has emptied a place for good.
    [(BeamSearch(3, 0.0), 1), (BeamSearch(3, 0.0, n_best=2), 3), (BeamSearch(3, 1.0), 3), (BeamSearch(4, 1.0), 4)],
    ids=repr,
)
def test_the_search_is_over_once_nothing_alive_can_rank_higher(strategy, steps):
    calls = []

    def step(tokens, state):  # END and "a" are equally likely, whatever comes before
        calls.append(1)
        return tf.zeros([len(tokens), END + 2]), state

    search(strategy, step, (), [500, 300])
    assert len(calls) == steps


def test_a_long_penalty_prefers_long_hypotheses():
    step, state = wandering(7, sources=50)
    mean_lengths = []
    for alpha in (0.0, 1.0, 4.0):
        found = texts(search(BeamSearch(6, alpha), step, state, [15] * 50))
        mean_lengths.append(np.mean([len(ids) for source in found for ids in source]))
    assert mean_lengths[0] < mean_lengths[1] < mean_lengths[2]


def test_a_vocabulary_without_letters_has_one_hypothesis():
    hypotheses = search(BeamSearch(3, n_best=2), lambda tokens, _: (tf.zeros([len(tokens), END + 1]), ()), (), [5])
    assert texts(hypotheses) == [[[END], [], [], []]]
    np.testing.assert_allclose(hypotheses.scores, [[-np.log(4), *[-np.inf] * 3]], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 2.0])
@pytest.mark.parametrize("prefix", [[], [4]])
def test_hypotheses_are_chosen_as_the_hook_adjusts_them_and_scored_as_the_model_does(alpha, prefix):
    step, state = remembering(5, sources=3, letters=2)
    limits, price = [4, 3, 2], 1.5
    strategy = Counting(31, alpha, n_best=31, price=price)
    prefixes = tf.constant([prefix] * 3) if prefix else None
    found = tf.function(strategy.search)(always(step), state, Wanted(tf.constant(limits), 0, None, prefixes))
    for row, limit in enumerate(limits):
        every = all_hypotheses(step, rows(state, row), limit, alpha)
        ranked = [(ids, score, (score - price * ids.count(4)) / penalty(ids, alpha), why) for ids, score, why in every]
        ranked = [one for one in ranked if one[0][: len(prefix)] == prefix]
        ranked.sort(key=lambda one: (one[3] != "end", -one[2]))
        count = len(ranked)
        assert [ids for ids, _, _, _ in ranked] != [ids for ids, _, _ in every][:count]
        assert texts(found)[row] == [ids for ids, _, _, _ in ranked] + [[]] * (62 - count)
        np.testing.assert_allclose(found.scores[row, :count], [score for _, score, _, _ in ranked], rtol=1e-5)
        np.testing.assert_allclose(found.ranked_by[row, :count], [rank for _, _, rank, _ in ranked], rtol=1e-5)
        assert np.all(np.isneginf(found.scores[row, count:]))


@BOTH_LOOPS
@pytest.mark.parametrize("width", [1, 4])
def test_a_constraint_forces_a_token_in_and_a_ban_keeps_it_out(width):
    step, state = wandering(15, sources=30)
    free, said, banned = (texts(search(kind(width), step, state, [40] * 30)) for kind in (BeamSearch, Saying, Banning))
    has = [4 in ids for (ids,) in free]
    assert any(has) and not all(has)
    for (ids,), (forced,), (never,), had in zip(free, said, banned, has, strict=True):
        assert 4 in forced or forced[-1] != END
        assert 4 not in never and (had or width > 1 or never == ids)
    assert sum(4 in ids for (ids,) in said) > sum(has) + 5


def test_what_is_all_forbidden_is_no_hypothesis_but_a_prefix_is_no_choice():
    step, state = wandering(16, sources=2, letters=1)  # END and the token 4

    @dataclasses.dataclass(frozen=True)
    class Forbidding(BeamSearch):
        def adjust(self, totals, t, memory, state):
            return tf.fill(tf.shape(totals), float("-inf")) if t == 1 else totals

    found = search(Forbidding(2, n_best=2), step, state, [5, 5], min_length=1)
    assert texts(found) == [[[]] * 4] * 2 and np.all(np.isneginf(found.scores))
    found = search(Forbidding(2, n_best=2), step, state, [5, 5], prefixes=tf.constant([[4, 4]] * 2))
    assert all(source[0][:2] == [4, 4] for source in texts(found))


def test_the_hooks_see_the_beginnings_that_are_extended():
    spell, state = spelling(["abc", "de"])
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Watching(BeamSearch):
        def remember(self, tokens, memory=None):
            return tokens[:, None] if memory is None else tf.concat([memory[:, 1:], tokens[:, None]], axis=1)

        def adjust(self, totals, t, memory, state):
            _, positions = state  # after the step
            seen.append((int(t), memory[:: self.width, -1].numpy().tolist(), positions.numpy().tolist()))
            return totals

    search(Watching(2), spell, state, [9, 9])
    letters = TOKENIZER.tokenize(["abc", "de"]).numpy().tolist()
    assert seen[:3] == [
        (0, [START, START], [1] * 4),
        (1, [letters[0][0], letters[1][0]], [2] * 4),
        (2, [letters[0][1], letters[1][1]], [3] * 4),
    ]


# Sampling

PROBABILITIES = np.array([0.05, 0.4, 0.2, 0.3, 0.04, 0.01])  # of END, a, b, c, d, e


def frequencies(strategy, rows=4000):
    """How often each token from END on comes first, where a model gives them PROBABILITIES, and reserved ones more."""
    logits = tf.constant(np.concatenate([[3.0, 4.0, 5.0], np.log(PROBABILITIES)])[None], tf.float32)
    step = tf.function(lambda tokens, _: (tf.repeat(logits, tf.size(tokens), axis=0), ()))
    hypotheses = tf.function(strategy.search)(lambda sources: step, (), Wanted(tf.fill([rows], 2), 0, tf.range(rows)))
    return [np.bincount(hypotheses.ids[:, 0, t], minlength=END + 6)[END:] / rows for t in (0, 1)]


@pytest.mark.parametrize(
    ("strategy", "weights"),
    [
        (Sampling(), PROBABILITIES),
        (Sampling(temperature=2.0), PROBABILITIES**0.5),
        (Sampling(temperature=0.5), PROBABILITIES**2),
        (Sampling(top_k=3), PROBABILITIES * [0, 1, 1, 1, 0, 0]),
        (Sampling(top_k=99), PROBABILITIES),
        (Sampling(top_p=0.69), PROBABILITIES * [0, 1, 0, 1, 0, 0]),
        (Sampling(top_p=0.71), PROBABILITIES * [0, 1, 1, 1, 0, 0]),
        (Sampling(top_p=1.0), PROBABILITIES),
        (Sampling(top_k=2, top_p=0.58), PROBABILITIES * [0, 1, 0, 1, 0, 0]),
        (Sampling(top_k=2, top_p=0.56), PROBABILITIES * [0, 1, 0, 0, 0, 0]),  # a has 4 / 7 of the two
    ],
    ids=repr,
)
def test_tokens_come_as_often_as_they_are_likely(strategy, weights):
    expected = np.array(weights) / np.sum(weights)
    first, second = frequencies(strategy)
    np.testing.assert_allclose(first, expected, atol=0.03)  # four standard deviations of the mean of 4000
    assert not np.any(first[expected == 0])
    goes_on = 1 - first[0]
    np.testing.assert_allclose(second / goes_on, expected, atol=0.03)


@pytest.mark.parametrize("strategy", [Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(1e-6), Sampling(5.0, 1, 0.5)])
def test_sampling_from_the_likeliest_alone_is_greedy_search(strategy):
    step, state = wandering(8, sources=50)
    greedy, sampled = (search(choice, step, state, [12] * 50) for choice in (Greedy(), strategy))
    np.testing.assert_array_equal(sampled.ids, greedy.ids)


@BOTH_LOOPS
@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_a_sample_follows_from_its_seed(dtype):
    step, state = wandering(9, sources=1, letters=25)
    state, limits = tf.repeat(state, 60), [30] * 60
    seeds = tf.cast(tf.range(60) % 30, dtype)
    found = texts(search(Sampling(3.0), step, state, limits, seeds=seeds))
    assert found[:30] == found[30:]
    assert len({tuple(source[0]) for source in found}) > 25
    again = texts(search(Sampling(3.0), step, state, limits, seeds=seeds + 1000))
    assert sum(one == other for one, other in zip(found, again, strict=True)) < 10


@BOTH_LOOPS
def test_several_samples_of_a_source_are_draws_of_their_own():
    step, state = wandering(17, sources=1, letters=25)
    state, limits, seeds = tf.repeat(state, 20), [30] * 20, list(range(20))
    one, five = (texts(search(Sampling(3.0, n_best=n), step, state, limits, seeds=seeds)) for n in (1, 5))
    assert [source[0] for source in five] == [source[0] for source in one]
    assert len({tuple(ids) for source in five for ids in source}) > 90  # of one text, whatever source and sample
    alone = texts(search(Sampling(3.0, n_best=5), step, state[:1], limits[:1], seeds=[7]))
    assert alone[0] == five[7]


def test_all_samples_come_as_often_as_they_are_likely():
    logits = tf.constant(np.concatenate([[3.0, 4.0, 5.0], np.log(PROBABILITIES)])[None], tf.float32)
    step = lambda tokens, _: (tf.repeat(logits, tf.size(tokens), axis=0), ())  # noqa: E731
    found = search(Sampling(n_best=4), step, (), [1] * 2000).ids.numpy()[:, :, 0]
    assert found.shape == (2000, 4)
    for sample in found.T:
        frequencies = np.bincount(sample, minlength=END + 6)[END:] / 2000
        np.testing.assert_allclose(frequencies, PROBABILITIES, atol=0.045)
    both = np.mean(found[:, 0] == found[:, 1])  # independent of each other
    np.testing.assert_allclose(both, np.sum(PROBABILITIES**2), atol=0.045)


# Options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("beam", {"width": 0}, "width=0: expected a whole number, at least 1"),
        ("beam", {"length_penalty": -0.5}, "length_penalty=-0.5: expected a number, at least 0"),
        ("beam", {"width": 2, "n_best": 3}, "n_best=3: expected a whole number, at least 1 and at most 2"),
        ("beam", {"n_best": 0}, "n_best=0: expected a whole number, at least 1 and at most 5"),
        ("sampling", {"temperature": 0}, "temperature=0: expected a number, above 0"),
        ("sampling", {"temperature": float("nan")}, "temperature=nan: expected a number, above 0"),
        ("sampling", {"top_k": 0}, "top_k=0: expected a whole number, at least 1, or None"),
        ("sampling", {"top_p": 0.0}, "top_p=0.0: expected a number, above 0 and at most 1, or None"),
        ("sampling", {"n_best": 0}, "n_best=0: expected a whole number, at least 1 and at most 10,000"),
        ("sampling", {"top_p": 1.5}, "top_p=1.5: expected a number, above 0 and at most 1, or None"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(name, options, message):
    with pytest.raises(OptionError) as error:
        STRATEGIES[name](**options)
    assert str(error.value) == message


def test_strategies_say_how_many_rows_they_decode_for_a_source():
    strategies = Greedy(), BeamSearch(7), Sampling(), Sampling(n_best=4)
    assert [strategy.rows_per_source for strategy in strategies] == [1, 7, 1, 4]
