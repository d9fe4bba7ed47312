import itertools

import numpy as np
import pytest
import tensorflow as tf
from searching import (
    BOTH_LOOPS,
    EVERY_STRATEGY,
    KINDS,
    TOKENIZER,
    always,
    eagerly,
    reasons,
    remembering,
    rows,
    search,
    spelling,
    texts,
    wandering,
)

from pipelines.tokens import END
from seq2seq import BeamSearch
from seq2seq.decoding import STEPS_PER_CHECK, Constraints, masking_loop


@BOTH_LOOPS
@KINDS
def test_words_are_spelt_up_to_the_end_of_the_longest(strategy):
    words = ["hola", "", "a"]
    hypotheses = search(strategy, *spelling(words), limits=[50, 50, 50])
    assert hypotheses.ids.shape[:2] == (3, 1)
    assert [text.decode() for text in TOKENIZER.detokenize(hypotheses.ids[:, 0]).numpy()] == words
    np.testing.assert_array_equal(hypotheses.ids[1, 0, :5], [END, 0, 0, 0, 0])
    assert reasons(hypotheses) == [["end"]] * 3


@BOTH_LOOPS
@EVERY_STRATEGY
def test_no_rows_are_no_rows(strategy):
    hypotheses = search(strategy, *wandering(0, sources=0))
    assert hypotheses.ids.shape[:2] == (0, hypotheses.stopped.shape[1])


@EVERY_STRATEGY
def test_compiled_it_finds_the_same_with_a_prefix_and_without(strategy):
    step, state = wandering(11, sources=30)
    limits, prefixes = [5, 12, 30] * 10, tf.constant([[4, 5], [6, 0], [0, 0], [0, 0], [0, 0]] * 6)
    right = search(strategy, step, state, limits, 1, prefixes=prefixes)

    @tf.function(jit_compile=True, autograph=False)
    def compiled(state, constraints):
        return strategy.search(always(step), state, constraints, masking_loop(2 * STEPS_PER_CHECK))

    found = compiled(state, Constraints(tf.constant(limits), tf.constant(1), tf.range(30), prefixes))
    assert texts(found) == texts(right) and reasons(found) == reasons(right)
    if right.scores is not None:
        np.testing.assert_allclose(found.scores, right.scores, rtol=1e-5)


@BOTH_LOOPS
@KINDS
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
    for order in [[4], [7], [11, 3, 1, 10], list(range(11, -1, -1))]:
        some = search(strategy, step, *rows((state, limits), *order), seeds=tf.gather(seeds, order))
        assert texts(some) == [texts(together)[row] for row in order]
        assert reasons(some) == [reasons(together)[row] for row in order]
        if together.scores is not None:
            np.testing.assert_allclose(some.scores, tf.gather(together.scores, order), rtol=1e-6)


@EVERY_STRATEGY
def test_eager_and_graph_agree(strategy):
    step, state = wandering(3, sources=6)
    limits = [5, 30, 12, 9, 1, 20]
    eager = search(strategy, eagerly(step), state, limits, 1)
    for of_graph, of_eager in zip(search(strategy, step, state, limits, 1), eager, strict=True):
        if of_eager is not None:
            np.testing.assert_allclose(of_graph, of_eager, rtol=1e-6)


@EVERY_STRATEGY
def test_a_state_may_grow(strategy):
    hypotheses = search(strategy, *remembering(4, sources=5), [8, 3, 8, 5, 8], 3)
    assert all(1 <= len(source[0]) <= 8 for source in texts(hypotheses))


@EVERY_STRATEGY
def test_sources_that_have_stopped_leave(strategy):
    words = ["a" * length for length in (2, 2, 3, 3, 9, 9, 9, 14)]
    spell, state = spelling(words)
    decoded = []

    def step_for(sources):
        def step(tokens, state):
            rows = tf.repeat(sources, len(tokens) // len(sources))
            tf.debugging.assert_equal(state[0], rows)  # of the state, those that are left
            decoded.append(sources.numpy().tolist())
            return spell(tokens, state)

        return step

    hypotheses = strategy.search(step_for, state, Constraints(tf.fill([8], 50), 0, tf.range(8)))
    assert [TOKENIZER.detokenize(ids[:1]).numpy()[0].decode() for ids in hypotheses.ids] == words
    everyone, some, one = list(range(8)), [4, 5, 6, 7], [7]
    greedy = [everyone] * 4 + [some] * 6 + [one] * 5
    assert decoded == greedy or isinstance(strategy, BeamSearch)
    assert [len(left) for left in decoded] == sorted((len(left) for left in decoded), reverse=True)
    assert len(decoded[-1]) < 8


# Repetition


@BOTH_LOOPS
@KINDS
@pytest.mark.parametrize(("phrase", "limit", "length"), [("a", 60, 31), ("abc", 60, 33), ("ab", 20, 18)])
def test_a_phrase_said_over_and_over_is_cut(strategy, phrase, limit, length):
    hypotheses = search(strategy, *spelling([phrase * 300]), limits=[limit])
    assert reasons(hypotheses) == [["repetition"]]
    assert texts(hypotheses)[0][0] == TOKENIZER.tokenize([phrase * 300])[0, :length].numpy().tolist()


@BOTH_LOOPS
@KINDS
def test_repetition_respects_min_length(strategy):
    hypotheses = search(strategy, *spelling(["a" * 300]), limits=[60], min_length=45)
    assert reasons(hypotheses) == [["repetition"]] and len(texts(hypotheses)[0][0]) == 45


@KINDS
def test_repetition_that_ends_or_is_of_long_phrases_is_left_alone(strategy):
    words = ["a" * 40, "abcdefghi" * 9, "abcabcabcd" * 5, "x" * 14]
    hypotheses = search(strategy, *spelling(words), limits=[200, 100, 60, 20])
    assert [text.decode() for text in TOKENIZER.detokenize(hypotheses.ids[:, 0]).numpy()] == words
    assert reasons(hypotheses) == [["end"]] * 4
    assert reasons(search(strategy, *spelling(["x" * 99]), limits=[16])) == [["limit"]]
