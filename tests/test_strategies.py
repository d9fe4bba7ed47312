import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
from pages import ROOT, defined_in
from searching import (
    BOTH_LOOPS,
    EVERY,
    KINDS,
    TOKENIZER,
    Banning,
    Counting,
    Saying,
    SecondBest,
    all_hypotheses,
    eagerly,
    log_likelihoods,
    penalty,
    reasons,
    remembering,
    rows,
    search,
    spelling,
    texts,
    wandering,
)

from pipelines import OptionError
from pipelines.tokens import END, START
from seq2seq import BeamSearch, Greedy, Sampling
from seq2seq.compilation import on_gpu
from seq2seq.contract import make_strategy
from seq2seq.decoding import ENDED
from seq2seq.strategies import STRATEGIES, _uniform
from seq2seq.translation import LONGEST_TRANSLATION

# Prefixes


@BOTH_LOOPS
@pytest.mark.parametrize("strategy", [*EVERY, SecondBest()], ids=repr)
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
@KINDS
def test_repetition_within_a_prefix_does_not_count(strategy):
    word = "a" * 40 + "bc"
    prefixes = TOKENIZER.tokenize([word[:40]])
    hypotheses = search(strategy, *spelling([word]), limits=[60], prefixes=prefixes)
    assert TOKENIZER.detokenize(hypotheses.ids[:, 0]).numpy()[0].decode() == word
    assert reasons(hypotheses) == [["end"]]
    hypotheses = search(strategy, *spelling(["a" * 300]), limits=[80], prefixes=prefixes)
    assert reasons(hypotheses) == [["repetition"]] and len(texts(hypotheses)[0][0]) == 80  # 40 of its own


def test_a_wide_beam_finds_all_that_begins_with_the_prefix(alpha=2.0):
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


@pytest.mark.parametrize(("model", "alpha"), [(wandering, 0.6), (remembering, 0.0), (remembering, 2.0)])
@pytest.mark.parametrize("min_length", [0, 2])
def test_a_wide_beam_finds_what_trying_everything_finds(model, alpha, min_length):
    # 15 hypotheses of at most 4 tokens out of two letters end, and 16 are cut.
    step, state = model(5, sources=4, letters=2)
    limits = [4, 3, 2, 1]
    strategy = BeamSearch(width=31, length_penalty=alpha, n_best=31)
    hypotheses = search(strategy, step, state, limits, min_length)
    least = 1e-6 if on_gpu() else 0  # which rounds otherwise: a logarithm near 0 has fewer digits
    for row, limit in enumerate(limits):
        expected = all_hypotheses(step, rows(state, row), limit, alpha, min_length)
        missing = 62 - len(expected)
        assert texts(hypotheses)[row] == [ids for ids, _, _ in expected] + [[]] * missing
        assert reasons(hypotheses)[row] == [reason for _, _, reason in expected] + ["limit"] * missing
        scores = [score for _, score, _ in expected] + [-np.inf] * missing
        np.testing.assert_allclose(hypotheses.scores[row], scores, rtol=1e-5, atol=least)
        ranks = [score / penalty(ids, alpha) for ids, score, _ in expected] + [-np.inf] * missing
        np.testing.assert_allclose(hypotheses.ranked_by[row], ranks, rtol=1e-5, atol=least)


@pytest.mark.parametrize(("alpha", "n_best"), [(0.0, 1), (1.0, 3), (3.0, 1)])
def test_a_beam_that_may_stop_early_still_finds_the_best(alpha, n_best):
    step, state = remembering(0, sources=12, letters=2)
    strategy = BeamSearch(width=31, length_penalty=alpha, n_best=n_best)
    hypotheses = search(strategy, step, state, [4] * 12)
    for row in range(12):
        expected = all_hypotheses(step, rows(state, row), 4, alpha)[:n_best]
        assert texts(hypotheses)[row][:n_best] == [ids for ids, _, _ in expected]


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_a_wider_beam_never_ranks_its_best_lower_and_greedy_search_is_the_narrowest(alpha):
    step, state = wandering(0, sources=200, letters=9)
    step, limits = eagerly(step), [5, 8, 12, 16] * 50
    found = [search(BeamSearch(width, alpha), step, state, limits) for width in (1, 2, 4, 8)]
    np.testing.assert_array_equal(found[0].ids, search(Greedy(), step, state, limits).ids)
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

    step, state = wandering(10, sources=8, letters=4)
    limits = [4, 6, 8, 10] * 2
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
    # "a" goes on for ever and is likely; END is very unlikely at every step.
    logits = tf.constant([[0.0, 0.0, 0.0, 1.0, 90.0]])
    hypotheses = search(BeamSearch(3, n_best=3), lambda tokens, _: (tf.repeat(logits, len(tokens), 0), ()), (), [2])
    assert texts(hypotheses) == [[[4, END], [END], [4, 4], [], [], []]]
    assert reasons(hypotheses) == [["end", "end", "limit", "limit", "limit", "limit"]]
    assert hypotheses.scores[0, 2] > hypotheses.scores[0, 0]


def test_what_is_cut_is_ranked_by_small_differences_too():
    scores = {START: [0.01, 0.0], 4: [0.0, 0.0], 5: [0.05, 0.0]}  # of the tokens 4 and 5, which never end
    table = np.full([6, 6], -99.0, "float32")
    for token, row in scores.items():
        table[token, 4:] = row
    found = search(BeamSearch(2, n_best=2), lambda tokens, _: (tf.gather(table, tokens), ()), (), [2])
    assert texts(found)[0][:2] == [[5, 4], [4, 4]] and reasons(found)[0][:2] == ["limit", "limit"]


def test_a_likely_repetition_does_not_stop_the_search_for_what_ends(monkeypatch):
    monkeypatch.setattr("seq2seq.decoding.LEAST_REPETITION", 3)

    def step(tokens, t):  # the token 4 is likelier at first, and repeats itself; the other way ends
        first = tf.constant([[-50.0] * 4 + [0.0, -3.0] + [-50.0] * 4])
        chosen = tf.where(tokens == 4, 4, tf.where(t < 5, 5 + t, END))
        return tf.where((t == 0)[:, None], first, tf.one_hot(chosen, 10, 0.0, -50.0)), t + 1

    assert reasons(search(BeamSearch(2, 0.0), step, tf.zeros([1], tf.int32), [7])) == [["end"]]


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
        found = texts(search(BeamSearch(4, alpha), eagerly(step), state, [10] * 50))
        mean_lengths.append(np.mean([len(ids) for source in found for ids in source]))
    assert mean_lengths[0] < mean_lengths[1] < mean_lengths[2]


def test_a_vocabulary_without_letters_has_one_hypothesis():
    hypotheses = search(BeamSearch(3, n_best=2), lambda tokens, _: (tf.zeros([len(tokens), END + 1]), ()), (), [5])
    assert texts(hypotheses) == [[[END], [], [], []]]
    np.testing.assert_allclose(hypotheses.scores, [[-np.log(4), *[-np.inf] * 3]], rtol=1e-6)


@pytest.mark.parametrize(("alpha", "prefix"), [(0.0, []), (2.0, [4])])
def test_hypotheses_are_chosen_as_the_hook_adjusts_them_and_scored_as_the_model_does(alpha, prefix):
    step, state = remembering(5, sources=3, letters=2)
    limits, price = [4, 3, 2], 1.5
    strategy = Counting(31, alpha, n_best=31, price=price)
    prefixes = tf.constant([prefix] * 3) if prefix else None
    found = search(strategy, step, state, limits, prefixes=prefixes)
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
    step = eagerly(step)

    @dataclasses.dataclass(frozen=True)
    class Forbidding(BeamSearch):
        def adjust(self, totals, t, remembered, state):
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
        def remember(self, tokens, remembered=None):
            return tokens[:, None] if remembered is None else tf.concat([remembered[:, 1:], tokens[:, None]], axis=1)

        def adjust(self, totals, t, remembered, state):
            _, positions = state  # after the step
            seen.append((int(t), remembered[:: self.width, -1].numpy().tolist(), positions.numpy().tolist()))
            return totals

    search(Watching(2), eagerly(spell), state, [9, 9])
    letters = TOKENIZER.tokenize(["abc", "de"]).numpy().tolist()
    assert seen[:3] == [
        (0, [START, START], [1] * 4),
        (1, [letters[0][0], letters[1][0]], [2] * 4),
        (2, [letters[0][1], letters[1][1]], [3] * 4),
    ]


# Sampling

PROBABILITIES = np.array([0.05, 0.4, 0.2, 0.3, 0.04, 0.01])  # of END, a, b, c, d, e


MinP = defined_in(ROOT / "docs" / "guides" / "extending.md", "min_p.py")["MinP"]


def frequencies(strategy, rows=4000):
    """How often each token from END on comes first, where a model gives them PROBABILITIES, and reserved ones more."""
    logits = tf.constant(np.concatenate([[3.0, 4.0, 5.0], np.log(PROBABILITIES)])[None], tf.float32)
    hypotheses = search(strategy, lambda tokens, _: (tf.repeat(logits, tf.size(tokens), axis=0), ()), (), [2] * rows)
    return [np.bincount(hypotheses.ids[:, 0, t], minlength=END + 6)[END:] / rows for t in (0, 1)]


@pytest.mark.parametrize(
    ("strategy", "weights"),
    [
        (Sampling(), PROBABILITIES),
        (Sampling(temperature=2.0), PROBABILITIES**0.5),
        (Sampling(temperature=0.5), PROBABILITIES**2),
        (Sampling(temperature=1e300), PROBABILITIES**0),
        (Sampling(temperature=1e-50), PROBABILITIES * [0, 1, 0, 0, 0, 0]),
        (Sampling(top_k=3), PROBABILITIES * [0, 1, 1, 1, 0, 0]),
        (Sampling(top_k=99), PROBABILITIES),
        (Sampling(top_p=0.69), PROBABILITIES * [0, 1, 0, 1, 0, 0]),
        (Sampling(top_p=0.71), PROBABILITIES * [0, 1, 1, 1, 0, 0]),
        (Sampling(top_p=1.0), PROBABILITIES),
        (Sampling(top_k=2, top_p=0.58), PROBABILITIES * [0, 1, 0, 1, 0, 0]),
        (Sampling(top_k=2, top_p=0.56), PROBABILITIES * [0, 1, 0, 0, 0, 0]),  # a has 4 / 7 of the two
        (MinP(min_p=0.6), PROBABILITIES * (0.6 * PROBABILITIES.max() < PROBABILITIES)),
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


def test_samples_of_a_source_do_not_draw_the_same_numbers_at_other_steps():
    step = lambda tokens, _: (tf.zeros([tf.size(tokens), 30]), ())  # noqa: E731
    first, second = search(Sampling(n_best=2), step, (), [12], min_length=12).ids.numpy()[0]
    assert (first[1:] != second[:-1]).any()


def test_samples_of_a_source_draw_numbers_of_their_own_at_each_step_of_the_longest_text(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "seq2seq.strategies._uniform", lambda seeds, t: drawn.append(t + 0 * seeds) or tf.zeros(tf.shape(t + seeds))
    )
    step = lambda tokens, _: (tf.zeros([tf.size(tokens), END + 2]), ())  # noqa: E731
    search(Sampling(n_best=10_000), step, (), [1])
    first = np.sort(tf.reshape(drawn[0], [-1]).numpy())
    assert len(first) == 10_000 and first[0] == 0 and np.diff(first).min() > LONGEST_TRANSLATION


def test_random_numbers_are_the_published_hash_of_both_halves_of_a_seed_and_the_step():
    seeds, steps = np.array([[0], [7], [2**40 + 3]]), np.array([0, 5])
    words = (seeds + 0 * steps) & 0xFFFFFFFF, (seeds + 0 * steps) >> 32, 0 * seeds + steps
    words = (word.astype(np.uint32) * np.uint32(1664525) + np.uint32(1013904223) for word in words)

    def mixed(x, y, z):
        x = x + y * z
        y = y + z * x
        return x, y, z + x * y

    x, _, _ = mixed(*(word ^ (word >> 16) for word in mixed(*words)))
    np.testing.assert_array_equal(_uniform(tf.constant(seeds), tf.constant(steps)), (x >> 8) / 2**24)


def test_a_nucleus_is_no_larger_than_it_must_be():
    step = lambda tokens, _: (tf.zeros([tf.size(tokens), END + 2]), ())  # noqa: E731
    assert texts(search(Sampling(top_p=0.5), step, (), [9] * 30)) == [[[END]]] * 30  # one of two has this probability


def test_the_lowest_random_number_draws_no_token_that_is_not_allowed(monkeypatch):
    monkeypatch.setattr("seq2seq.strategies._uniform", lambda seeds, t: tf.zeros_like(seeds + t, tf.float32))
    found = search(Sampling(), lambda tokens, _: (tf.zeros([tf.size(tokens), 6]), ()), (), [4], min_length=3)
    assert texts(found) == [[[4, 4, 4, END]]]


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
        ("beam", {"width": -(10**400)}, f"width={-(10**400)}: expected a whole number, at least 1"),
        ("beam", {"length_penalty": -0.5}, "length_penalty=-0.5: expected a number, at least 0 and at most 10"),
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


def test_a_number_that_no_float_holds_is_refused():
    with pytest.raises(OptionError, match=r"search=Sampling: cannot be constructed with .* too large"):
        make_strategy("sampling", {"temperature": 10**400})
