import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import CharTokenizer, ColumnsTokenizer, OptionError, SeparatorTokenizer, batch_pairs
from seq2seq import BeamSearch, Decoder, Encoder, Greedy, Seq2Seq, TransformerDecoder, TransformerEncoder
from seq2seq.attention import Encoded
from seq2seq.contract import check_contract, encode
from seq2seq.transformer import Block, MultiHeadAttention, _rotate, _source_positions

TOKENIZERS = CharTokenizer("abcd"), CharTokenizer("dbax")


@keras.saving.register_keras_serializable("tests")
class OwnEncoder(TransformerEncoder):
    """The same, but tried in all respects, as classes from outside the library are."""


@keras.saving.register_keras_serializable("tests")
class OwnDecoder(TransformerDecoder):
    """Likewise."""


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {"layers": 2, "tied": True, "feed_forward": 10}),
        ("mixed_bfloat16", {"layers": 1, "copy": True}),
    ],
    ids=str,
)
def test_it_keeps_to_the_contract_and_to_its_sizes(dtype, options):
    keras.utils.set_random_seed(0)
    model = Seq2Seq(*TOKENIZERS, encoder=OwnEncoder, decoder=OwnDecoder, units=8, heads=2, dtype=dtype, **options)
    assert check_contract(model.encoder, model.decoder, *TOKENIZERS).keeps_sizes


@pytest.mark.parametrize(
    "halves", [(TransformerEncoder, Decoder), (Encoder, TransformerDecoder)], ids=["first", "last"]
)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_one_half_may_be_recurrent(halves, cell):
    encoder, decoder = halves
    options = {"attention": "dot"} if decoder is Decoder else {}
    model = Seq2Seq(*TOKENIZERS, encoder=encoder, decoder=decoder, units=8, layers=2, heads=2, cell=cell, **options)
    ids = tf.constant([[4, 5, 6], [7, 4, 0]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model((ids, ids))[0] ** 2)  # of the first row, which has no padding
    unused = [
        weight.path
        for weight, gradient in zip(model.trainable_weights, tape.gradient(loss, model.trainable_weights), strict=True)
        if gradient is None
    ]
    assert not unused or decoder is TransformerDecoder, unused  # which does not look at the encoder's state


def test_a_position_is_how_far_apart_two_vectors_are():
    one, other = (tf.random.stateless_normal([1, 2, 1, 6], [seed, 0]) for seed in (1, 2))

    def product(here, there):
        one_turned, other_turned = (_rotate(x, tf.constant([[place]])) for x, place in ((one, here), (other, there)))
        return tf.reduce_sum(one_turned * other_turned, axis=-1).numpy()

    np.testing.assert_allclose(product(3, 5), product(13, 15), atol=1e-5)
    np.testing.assert_allclose(product(0, 0), tf.reduce_sum(one * other, axis=-1), atol=1e-6)
    assert np.abs(product(3, 5) - product(3, 6)).min() > 1e-3
    turned = _rotate(tf.constant([[[[0.0, 1.0, 0.0, 0.0]]]]), tf.constant([[1]]))
    angle = 10000**-0.5  # of the second of two pairs of numbers
    np.testing.assert_allclose(turned, [[[[0, np.cos(angle), 0, np.sin(angle)]]]], atol=1e-6)


def test_attention_to_the_source_depends_on_where_a_token_stands():
    keras.utils.set_random_seed(0)
    encoder, decoder = Encoder(8, 8, bidirectional=True), TransformerDecoder(8, units=8, heads=2, layers=1)
    memory = tf.tile(encoder(tf.constant([[4]])).memory, [1, 4, 1])  # the same at each of four places
    encoded, state = decoder.start(Encoded(memory, tf.ones([1, 4], tf.bool), []), 2)
    *_, weights = decoder(tf.constant([[2, 2]]), encoded, state, return_attention=True)
    assert np.ptp(weights[:, 0]) > 1e-3
    assert np.abs(weights[:, 0] - weights[:, 1]).max() > 1e-3  # and on where the target token stands


def test_attention_is_the_published_formula_for_each_head():
    keras.utils.set_random_seed(1)
    attention = MultiHeadAttention(4, 2)
    x = np.array([[[1.0, 0.5, -1.0, 2.0]]], "float32")
    memory = np.array([[[1.0, 2.0, 0.0, 1.0], [0.5, 1.0, 1.0, 0.0], [9.0, 9.0, 9.0, 9.0]]], "float32")
    nowhere = tf.zeros([1, 3], tf.int32)  # where nothing is turned
    keys, values = attention.project(tf.constant(memory), nowhere)
    found, weights = attention(x, keys, values, tf.constant([[[True, True, False]]]), nowhere[:, :1])
    q, k, v = (
        (y @ layer.kernel.numpy()).reshape(-1, 2, 2)
        for y, layer in ((x[0], attention.query), (memory[0, :2], attention.key), (memory[0, :2], attention.value))
    )
    scores = np.exp([q[0, head] @ k[:, head].T / 2**0.5 for head in range(2)])
    shares = scores / scores.sum(axis=1, keepdims=True)
    seen = np.concatenate([shares[head] @ v[:, head] for head in range(2)])
    np.testing.assert_allclose(found[0, 0], seen @ attention.combine.kernel.numpy(), atol=1e-5)
    np.testing.assert_allclose(weights[0, 0], [*shares.mean(axis=0), 0], atol=1e-6)


def test_a_summary_shows_both_halves():
    halves = {"encoder": TransformerEncoder, "decoder": TransformerDecoder}
    lines = []
    Seq2Seq(*TOKENIZERS, **halves, units=8, layers=1, heads=2).summary(print_fn=lines.append)
    assert all(f"({half.__name__})" in "".join(lines) for half in halves.values())


def test_features_are_a_set_of_another_type_and_letters_are_not():
    tokenizer = ColumnsTokenizer([CharTokenizer(), SeparatorTokenizer(";")])
    tokenizer.adapt(["ab\tV;PST", "ba\tN"])
    keras.utils.set_random_seed(0)
    encoder = TransformerEncoder(tokenizer.vocabulary_size, units=8, heads=2, layers=1)
    encoder.take_tokenizers(tokenizer, CharTokenizer("ab"))
    first = encoder(tokenizer.tokenize(["ab\tV;PST"])).memory[0]
    other = encoder(tokenizer.tokenize(["ab\tPST;V"])).memory[0]
    np.testing.assert_allclose(tf.gather(first, [0, 1, 3, 2]), other, atol=1e-5)
    turned = encoder(tokenizer.tokenize(["ba\tV;PST"])).memory[0]
    assert np.abs(tf.gather(first, [1, 0, 2, 3]) - turned).max() > 1e-3
    types = encoder.types
    encoder.take_tokenizers(tokenizer, CharTokenizer("ab"))  # as when the model is loaded
    assert encoder.types is types
    encoder.types.embeddings.assign_add([[0.0] * 8, [1.0] + [0.0] * 7])
    assert np.abs(first - encoder(tokenizer.tokenize(["ab\tV;PST"])).memory[0]).max() > 1e-3


@pytest.mark.parametrize("order", [("lemma", "features"), ("features", "lemma")], ids=["last", "first"])
def test_the_order_of_features_changes_nothing_that_is_written(order):
    keras.utils.set_random_seed(0)
    parts = {"lemma": CharTokenizer(), "features": SeparatorTokenizer(";")}
    tokenizer = ColumnsTokenizer([parts[name] for name in order], order)
    texts = [{"lemma": lemma, "features": of} for lemma, of in [("aba", "V;PST"), ("aba", "PST;V"), ("aab", "PST;V")]]
    sources = ["\t".join(text[name] for name in order) for text in texts]
    tokenizer.adapt(sources)
    options = {"units": 16, "layers": 1, "heads": 2, "copy": True}
    model = Seq2Seq(tokenizer, CharTokenizer("ab"), encoder=TransformerEncoder, decoder=TransformerDecoder, **options)
    one, other, of_letters = model.score(sources, ["abab"] * 3).numpy()
    assert one == pytest.approx(other) and one != pytest.approx(of_letters)


def test_dropout_is_for_the_result_of_each_sublayer():
    block, positions = Block(8, 2, None, 1.0, of_decoder=True), tf.constant([[0, 1]])
    x = tf.reshape(tf.sin(tf.range(16.0)), [1, 2, 8])
    memory, mask = block.source_attention.project(tf.ones([1, 3, 8]), tf.zeros([1, 3], tf.int32)), tf.ones([1, 3]) > 0
    encoded = Encoded(tf.ones([1, 3, 8]), mask, [])
    for training in (True, False):
        found, *_ = block(x, positions, tf.ones([1, 2, 2]) > 0, None, memory, encoded, training=training)
        assert np.array_equal(found, x) == training


@pytest.mark.parametrize("kind", [TransformerEncoder, TransformerDecoder])
def test_dropout_is_for_the_vectors_of_tokens_and_for_every_layer(kind):
    layer, ids = kind(8, units=8, heads=2, layers=2, dropout=1.0), tf.constant([[4, 5, 6]])

    def run():
        if kind is TransformerEncoder:
            return layer(ids, training=True).memory
        started = layer.start(Encoded(tf.ones([1, 3, 8]), tf.ones([1, 3], tf.bool)))
        return layer(ids, *started, training=True)[0]

    assert not np.any(run())  # nothing is left of the tokens,
    layer.vectors.drop.rate = 0.0
    undropped = layer.norm(layer.vectors(ids))  # and no layer adds to them
    np.testing.assert_allclose(run(), undropped if kind is TransformerEncoder else layer.output_layer(undropped))


def test_a_layer_is_the_published_formula_normalised_before_each_sublayer():
    keras.utils.set_random_seed(1)
    block, nowhere = Block(4, 1, None, 0.0, of_decoder=True), tf.zeros([1, 3], tf.int32)  # where nothing is turned
    x, memory = (3 * tf.random.stateless_normal([1, 3, 4], [seed, 0]).numpy() for seed in (1, 2))
    whole, encoded = tf.ones([1, 3, 3]) > 0, Encoded(memory, tf.ones([1, 3]) > 0)
    source = block.source_attention.project(memory, nowhere)
    found, *_ = block(x, nowhere, whole, None, source, encoded)

    def normal(y):
        return (y - y.mean(axis=-1, keepdims=True)) / np.sqrt(y.var(axis=-1, keepdims=True) + 1e-3)

    def attended(layer, y, to):
        scores = np.exp((y @ layer.query.kernel.numpy()) @ (to @ layer.key.kernel.numpy()).transpose(0, 2, 1) / 2)
        seen = scores / scores.sum(axis=-1, keepdims=True) @ (to @ layer.value.kernel.numpy())
        return seen @ layer.combine.kernel.numpy()

    x = x + attended(block.attention, normal(x), normal(x))
    x = x + attended(block.source_attention, normal(x), memory)
    x = x + np.maximum(normal(x) @ block.wide.kernel.numpy(), 0) @ block.narrow.kernel.numpy()
    np.testing.assert_allclose(found, x, atol=1e-4)


def test_what_the_last_layer_returns_is_normalised():
    encoder, decoder = (kind(8, units=8, heads=2, layers=1) for kind in (TransformerEncoder, TransformerDecoder))
    encoded = encode(encoder, tf.constant([[4, 5, 6]]))
    logits = [decoder(tf.constant([[2, 4]]), *decoder.start(encoded))[0]]
    for layer in (encoder, decoder):
        layer.norm.gamma.assign(tf.zeros([8]))
    logits.append(decoder(tf.constant([[2, 4]]), *decoder.start(encoded))[0])
    assert np.any(logits[0]) and not np.any(logits[1]) and not np.any(encoder(tf.constant([[4, 5, 6]])).memory)


def test_the_hidden_layer_is_four_times_as_large_unless_a_size_is_given():
    assert [Block(8, 2, size, 0.0).wide.units for size in (None, 10)] == [32, 10]


def test_features_stand_before_all_letters_or_after_them():
    mask, ids = tf.constant([[True] * 4 + [False]]), tf.constant([[4, 6, 5, 6, 0]])
    in_order = np.array([True] * 6 + [False])
    assert _source_positions(mask, ids, in_order).numpy().tolist() == [[1, 3, 2, 3, 3]]
    assert _source_positions(mask, ids, in_order, of_sets=0).numpy().tolist() == [[1, 0, 2, 0, 0]]


def test_heads_share_the_units():
    with pytest.raises(OptionError, match="heads=3: expected a divisor of half of the 8 units"):
        TransformerEncoder(8, units=8, heads=3)


@pytest.mark.slow
def test_it_learns_translates_compiled_or_not_and_comes_back_from_a_file(pairs, tokenizers, tmp_path):
    keras.utils.set_random_seed(0)
    options = {"units": 32, "layers": 1, "heads": 4, "tied": True, "dropout": 0.1}
    model = Seq2Seq(*tokenizers, encoder=TransformerEncoder, decoder=TransformerDecoder, **options)
    model.compile(keras.optimizers.Adam(5e-3))
    model.fit(batch_pairs(pairs.repeat(150), *tokenizers, batch_size=12), verbose=0, shuffle=False)
    words = [source.decode() for source, _ in pairs.as_numpy_iterator()]
    found = [[text.decode() for text in model.translate(words, how).numpy()] for how in (Greedy(), BeamSearch(3))]
    assert found[0] == [word.upper() for word in words]
    (alignment, *_) = model.attention(words[:1])
    np.testing.assert_allclose(alignment.weights.sum(axis=1), 1, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    again.compiles_decoding = True
    assert [text.decode() for text in again.translate(words, BeamSearch(3)).numpy()] == found[1]


def test_it_copies_by_the_attention_of_its_last_layer():
    keras.utils.set_random_seed(0)
    encoder, decoder = TransformerEncoder(8, units=8, heads=2), TransformerDecoder(8, units=8, heads=2, copy=True)
    decoder.take_tokenizers(*TOKENIZERS)
    source = tf.constant([[4, 5, 7]])
    encoded, state = decoder.start(encode(encoder, source), 2)
    decoder(tf.constant([[2, 4]]), encoded, state)  # which makes the weights
    decoder.pointer.share.bias.assign([-20.0])  # next to nothing is generated
    logits, _, weights = decoder(tf.constant([[2, 4]]), encoded, state, return_attention=True)
    copied = tf.exp(logits)[0].numpy()
    np.testing.assert_allclose(copied[:, [6, 5, 4]], weights[0].numpy(), atol=1e-5)  # a, b and d in the target
