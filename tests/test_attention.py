import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import CharTokenizer, ColumnsTokenizer, OptionError, SeparatorTokenizer, WhitespaceTokenizer
from pipelines.tokens import REPLACEMENT, UNKNOWN
from seq2seq.attention import Attention, Encoded, HardAttention, Pointer, copied_ids, masked_softmax, rows_by_source
from seq2seq.contract import encode
from seq2seq.layers import Decoder, Encoder, Prepared


def test_each_kind_of_attention_is_a_class_of_its_own():
    for layer, other in ((Attention, "monotonic"), (HardAttention, "general")):
        assert layer(2).kind in layer.kinds
        with pytest.raises(OptionError, match=f"attention='{other}': expected '{layer.kinds[0]}'"):
            layer(2, other)


@pytest.mark.parametrize("kind", ["dot", "general", "additive"])
def test_attention_is_the_published_formula_and_looks_only_where_the_mask_is(kind):
    keras.utils.set_random_seed(1)
    attention = Attention(2, kind)
    memory = np.array([[[1.0, 0.5], [0.2, 1.0], [9.0, 9.0]]], "float32")
    query = np.array([[[1.0, -2.0], [0.3, 0.7]]], "float32")
    encoded = Encoded(tf.constant(memory), tf.constant([[True, True, False]]), [])
    context, weights = attention(tf.constant(query), attention.project(memory), encoded)
    for q, c, found in zip(query[0], context[0], weights[0], strict=True):
        if kind == "additive":
            u, w, v = (layer.kernel.numpy() for layer in (attention.query, attention.key, attention.match))
            scores = [float((np.tanh(q @ u + m @ w) @ v)[0]) for m in memory[0, :2]]
        else:
            w = np.eye(2) if kind == "dot" else attention.key.kernel.numpy()
            scores = [q @ (m @ w) for m in memory[0, :2]]
        wanted = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(found, [*wanted, 0], atol=1e-6)
        np.testing.assert_allclose(c, wanted @ memory[0, :2], atol=1e-6)


def test_padding_is_no_part_of_the_mean_and_has_no_weight_in_half_precision_either():
    memory = tf.constant([[[1.0], [3.0], [9.0]], [[5.0], [5.0], [5.0]]])
    mask = tf.constant([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(Encoded(memory, mask).mean(), [[2], [0]])
    weights = masked_softmax(tf.constant([tf.float16.min, 3.0], tf.float16), tf.constant([True, False]))
    assert weights.dtype == tf.float32 and weights.numpy().tolist() == [1, 0]


def test_scores_of_one_position_are_not_taken_for_all():
    class First(Attention):
        def scores(self, query, keys, encoded):
            return super().scores(query, keys, encoded)[..., :1]

    encoded = Encoded(tf.ones([2, 3, 4]), tf.ones([2, 3], tf.bool), [])
    with pytest.raises(ValueError, match=r"scores \(2, 5, 1\) of 3 source positions; expected \[b, T, S\]"):
        First(4, "dot")(tf.ones([2, 5, 4]), encoded.memory, encoded)


@pytest.mark.parametrize("kind", ["hard", "monotonic"])
def test_hard_attention_sums_over_all_ways_to_align_source_and_target(kind):
    """What it finds a token at a time, against every sequence of positions that there is."""
    random = np.random.default_rng(0)
    query, memory = random.normal(size=(1, 3, 2)).astype("float32"), random.normal(size=(1, 4, 2)).astype("float32")
    said = tf.nn.log_softmax(random.normal(size=(1, 3, 4, 6)).astype("float32")).numpy()
    tokens = [5, 3, 4]  # said at the three steps, each given to the next
    attention = HardAttention(2, kind)
    keys = attention.project(memory)
    encoded = Encoded(memory, tf.constant([[True, True, True, False]]), [], extra=Prepared(keys, None, None))
    weights, _ = attention(query, tf.constant([[2, *tokens[:2]]]), said, encoded, attention.start(encoded, 6))
    found = [np.exp(weights[0, t]) @ np.exp(said[0, t, :, token]) for t, token in enumerate(tokens)]

    scores = (query @ keys.numpy().transpose(0, 2, 1))[0, :, :3]
    total = 0.0
    for places in itertools.product(range(3), repeat=3):
        p, last = 1.0, 0
        for t, (place, token) in enumerate(zip(places, tokens, strict=True)):
            allowed = np.exp(scores[t, last if kind == "monotonic" else 0 :]).sum()
            p *= 0.0 if kind == "monotonic" and place < last else np.exp(scores[t, place]) / allowed
            p, last = p * np.exp(said[0, t, place, token]), place
        total += p
    np.testing.assert_allclose(np.prod(found), total, rtol=1e-5)
    np.testing.assert_allclose(np.exp(weights[0]).sum(axis=-1), np.ones(3), rtol=1e-5)
    np.testing.assert_array_equal(np.exp(weights[0, :, 3]), np.zeros(3))


def test_monotonic_attention_never_goes_back():
    keras.utils.set_random_seed(0)
    encoder, decoder = Encoder(8, 6), Decoder(8, 6, attention="monotonic")
    decoder.attention.key.build((None, None, 6))
    decoder.attention.key.kernel.assign(40 * decoder.attention.key.kernel)  # so that it is sure of each place
    encoded, state = decoder.start(encode(encoder, tf.random.uniform([50, 9], 4, 8, tf.int32)))
    *_, weights = decoder(tf.random.uniform([50, 12], 4, 8, tf.int32), encoded, state, return_attention=True)
    places = tf.argmax(weights, axis=-1).numpy()
    assert (np.diff(places, axis=1) > 0).any() and (np.diff(places, axis=1) >= 0).mean() > 0.95


def test_copying_is_the_published_mixture_and_what_cannot_be_copied_is_generated():
    pointer = Pointer(8)
    pointer.take_tokenizers(CharTokenizer("abcd"), CharTokenizer("dbax"))  # c has no target id, d, b, a have 4, 5, 6
    source, weights = tf.constant([[4, 6, 4, 7]]), np.array([[[0.1, 0.3, 0.2, 0.4]]], "float32")
    logits, output = np.arange(8, dtype="float32")[None, None], np.array([[[1.0, -2.0]]], "float32")
    encoded = Encoded(tf.zeros([1, 4, 2]), source > 0, [], source)
    found = pointer(logits, output, pointer.pointed(weights, pointer.copies(source), encoded))
    g = float(pointer.share(output)[0, 0, 0])
    copied = (1 - g) * np.array([0, 0, 0, 0, 0.4, 0, 0.1 + 0.2, 0])  # and 0.3 of c is left
    generated = (g + (1 - g) * 0.3) * np.exp(logits[0, 0]) / np.exp(logits[0, 0]).sum()
    np.testing.assert_allclose(np.exp(found[0, 0]), copied + generated, atol=1e-6)
    np.testing.assert_allclose(tf.nn.softmax(found)[0, 0], copied + generated, atol=1e-6)


def test_a_gate_that_always_copies_leaves_no_hole_in_the_probabilities():
    pointer = Pointer(8)
    pointer.take_tokenizers(CharTokenizer("abcd"), CharTokenizer("dcba"))
    weights = tf.nn.softmax(10 * tf.random.stateless_normal([300, 1, 4], [1, 2]))
    source = tf.repeat(tf.constant([[4, 6, 5, 7]]), 300, axis=0)
    pointer.share.build([None, None, 2])
    pointer.share.bias.assign([-20.0])
    encoded = Encoded(tf.zeros([300, 4, 2]), source > 0, [], source)
    pointed = pointer.pointed(weights, pointer.copies(source), encoded) * 1.0000002  # as rounding does
    assert np.isfinite(pointer(tf.zeros([300, 1, 8]), tf.zeros([300, 1, 2]), pointed)).all()


def test_features_are_never_copied():
    source = ColumnsTokenizer([CharTokenizer(), SeparatorTokenizer(";")])
    source.adapt(["ab\ta;V"])
    pointer = Pointer(8)
    pointer.take_tokenizers(source, CharTokenizer("aVb"))
    assert pointer.copies(source.tokenize(["ab\ta;V"])).numpy().argmax(-1).tolist() == [[4, 6, 0, 0]]


def test_an_unknown_token_is_copied_as_the_replacement_character():
    pointer = Pointer(7)
    pointer.take_tokenizers(CharTokenizer("ab"), CharTokenizer(["b", REPLACEMENT]))
    assert pointer.copies(tf.constant([[4, UNKNOWN, 5, 0]])).numpy().argmax(-1).tolist() == [[0, 5, 4, 0]]
    pointer.take_tokenizers(CharTokenizer("ab"), CharTokenizer("ba"))
    assert pointer.copies(tf.constant([[4, UNKNOWN, 5, 0]])).numpy().argmax(-1).tolist() == [[5, 0, 4, 0]]


def test_a_word_that_looks_like_a_reserved_token_is_copied_as_that_word_only():
    words, others = WhitespaceTokenizer(["[END]", "a", "[START]"]), WhitespaceTokenizer(["a"])
    assert copied_ids(words, words).tolist() == [0, 0, 0, 0, 4, 5, 6]
    assert copied_ids(words, others).tolist() == [0, 0, 0, 0, 0, 4, 0]


def test_rows_by_source_puts_hypotheses_side_by_side():
    encoded = Encoded(tf.zeros([2, 3, 5]), tf.ones([2, 3], tf.bool), [])
    rows = tf.reshape(tf.range(12.0), [6, 1, 2])
    np.testing.assert_array_equal(rows_by_source(rows, encoded), np.arange(12.0).reshape(2, 3, 2))
    nothing = Encoded(tf.zeros([0, 3, 5]), tf.zeros([0, 3], tf.bool), [])
    assert rows_by_source(tf.zeros([0, 4, 2]), nothing).shape[0] == 0
