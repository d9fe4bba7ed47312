import importlib
import inspect
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import CharTokenizer, OptionError
from pipelines.tokens import one_hot
from seq2seq.contract import encode
from seq2seq.layers import Decoder, Encoder, TokenVectors, source_mask
from seq2seq.transformer import TransformerDecoder, TransformerEncoder

SOURCE = tf.constant([[4, 5, 6], [7, 4, 0]])
TARGET = tf.constant([[2, 5, 6, 7], [2, 4, 0, 0]])


def test_padding_of_one_hot_rows_may_be_zeros_or_token_0():
    expected = [[True, True, True], [True, True, False]]
    for rows in (SOURCE, one_hot(SOURCE, 9, tf.float32), tf.constant(np.eye(9)[SOURCE])):
        assert source_mask(rows).numpy().tolist() == expected


# Every value of every option, and pairs of those that touch each other.
OPTIONS = [
    {},
    {"cell": "gru"},
    {"layers": 2, "attention": "dot"},
    {"cell": "gru", "layers": 2, "bidirectional": True, "attention": "general"},
    {"bidirectional": True, "layers": 2, "embedding": 4, "attention": "additive"},
    {"embedding": 4, "tied": True},
    {"embedding": 6, "tied": True, "attention": "general", "dropout": 0.5},
    {"attention": "dot", "input_feeding": True},
    {"cell": "gru", "layers": 2, "embedding": 4, "tied": True, "attention": "additive", "input_feeding": True},
    {"embedding": 4, "attention": "dot", "copy": True},
    {"attention": "general", "input_feeding": True, "copy": True},
    {"layers": 2, "attention": "hard", "embedding": 4, "tied": True},
    {"cell": "gru", "attention": "monotonic", "copy": True, "dropout": 0.5},
]


def half(kind, options):
    """An encoder or a decoder with those of the options that it has."""
    other = {"bidirectional"} if kind is Decoder else {"attention", "input_feeding", "tied", "copy"}
    made = kind(8, 6, **{name: value for name, value in options.items() if name not in other})
    if kind is Decoder:
        made.take_tokenizers(CharTokenizer("abcd"), CharTokenizer("dbax"))
    return made


@pytest.fixture(scope="module", params=OPTIONS, ids=str)
def layers(request):
    keras.utils.set_random_seed(0)
    return half(Encoder, request.param), half(Decoder, request.param)


def run(layers, source=SOURCE, target=TARGET):
    encoder, decoder = layers
    encoded, state = decoder.start(encode(encoder, source))
    return encoded, state, decoder(target, encoded, state)[0]


@pytest.fixture(scope="module")
def computed(layers):
    """The encoded source, the first state and the logits."""
    return run(layers)


def test_padding_changes_nothing(layers, computed):
    encoded, _, logits = computed
    assert encoded.memory.shape == (2, 3, 6) and logits.shape == (2, 4, 8)
    _, _, same = run(layers, tf.pad(SOURCE, [[0, 0], [0, 4]]), tf.pad(TARGET, [[0, 0], [0, 2]]))
    np.testing.assert_allclose(logits, same[:, :4], atol=1e-6)


def test_an_empty_source_is_encoded_in_a_mask_that_cudnn_takes(layers):
    encoded = layers[0](tf.constant([[0, 0], [4, 5]]))
    np.testing.assert_array_equal(encoded.mask, [[True, False], [True, True]])
    assert np.isfinite(encoded.memory).all()


def test_one_step_after_another_is_the_whole_sequence_for_every_hypothesis(layers, computed, copies=2):
    encoded, state, whole = computed
    state = tf.nest.map_structure(lambda x: tf.repeat(x, copies, axis=0), state)
    for position in range(TARGET.shape[1]):
        tokens = tf.repeat(TARGET[:, position : position + 1], copies, axis=0)
        logits, state = layers[1](tokens, encoded, state)
        np.testing.assert_allclose(logits[:, 0], tf.repeat(whole[:, position], copies, axis=0), atol=1e-5)


def test_every_weight_learns(layers):
    with tf.GradientTape() as tape:
        encoded, state = layers[1].start(encode(layers[0], SOURCE, training=True))
        logits, _ = layers[1](TARGET, encoded, state, training=True)
        loss = tf.reduce_sum(logits**2)
    weights = [weight for layer in layers for weight in layer.trainable_weights]
    for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
        assert gradient is not None, weight.path
        assert np.abs(tf.convert_to_tensor(gradient)).max() > 0, weight.path


def test_they_come_back_from_their_configuration(layers):
    for layer in layers:
        config = keras.saving.serialize_keras_object(layer)
        config.pop("build_config", None)
        copy = keras.saving.deserialize_keras_object(config)
        assert copy.get_config() == layer.get_config()


def test_copying_needs_the_tokenizers_and_attention():
    encoder, decoder = Encoder(8, 6), Decoder(8, 6, attention="dot", copy=True)
    with pytest.raises(OptionError, match="copy=True: call take_tokenizers first"):
        decoder.start(encode(encoder, SOURCE))
    with pytest.raises(OptionError, match="copy=True: without attention"):
        Decoder(8, 6, copy=True)


def test_attention_weights_come_on_request(layers, computed):
    encoded, state, logits = computed
    decoder = layers[1]
    if not decoder.attention:
        with pytest.raises(OptionError, match="attention=None"):
            decoder(TARGET, encoded, state, return_attention=True)
        return
    same, _, weights = decoder(TARGET, encoded, state, return_attention=True)
    np.testing.assert_array_equal(same, logits)
    assert weights.shape == (2, 4, 3)
    np.testing.assert_allclose(tf.reduce_sum(weights, -1), np.ones((2, 4)), atol=1e-6)
    np.testing.assert_allclose(weights[1, :, 2], 0, atol=1e-6)


def test_hard_attention_finds_nothing_to_feed():
    with pytest.raises(OptionError, match="input_feeding=True: there is nothing to feed with attention='hard'"):
        Decoder(8, 6, attention="hard", input_feeding=True)


def test_input_feeding_makes_what_attention_found_a_part_of_the_next_input():
    keras.utils.set_random_seed(0)
    encoder, decoder = Encoder(8, 6), Decoder(8, 6, attention="dot", input_feeding=True)
    encoded, state = decoder.start(encode(encoder, SOURCE))
    *recurrent, [fed] = state
    assert fed.shape == (2, 6)
    logits, _ = decoder(TARGET[:, :1], encoded, state)
    other, _ = decoder(TARGET[:, :1], encoded, [*recurrent, [fed + 1]])
    assert np.abs(logits - other).max() > 1e-3


def test_a_tied_output_is_the_embedding():
    for size, projected in ((4, True), (6, False)):
        decoder = Decoder(8, 6, embedding=size, tied=True, attention="dot")
        run((Encoder(8, 6), decoder))
        shapes = [weight.shape for weight in decoder.weights]
        assert shapes.count((8, size)) == 1 and (6, 8) not in shapes and ((6, size) in shapes) == projected


def test_dropout_leaves_numbers_out_in_training_only():
    encoder = Encoder(8, 6, embedding=4, dropout=0.5)
    one, same = encoder(SOURCE).memory, encoder(SOURCE).memory
    np.testing.assert_array_equal(one, same)
    assert (encoder(SOURCE, training=True).memory.numpy() == 0).mean() > 0.2
    (direction,) = encoder.recurrent[0].directions
    assert not direction.dropout and not direction.recurrent_dropout  # which cuDNN has not


def test_dropout_is_for_the_vectors_of_tokens_and_for_what_each_layer_of_a_decoder_returns():
    assert not np.any(TokenVectors(8, 4, 1.0).rows(SOURCE, training=True))
    decoder = Decoder(8, 6, dropout=1.0)
    encoded, state = decoder.start(encode(Encoder(8, 6), SOURCE))
    for training in (True, False):
        logits, _ = decoder(TARGET, encoded, state, training=training)
        assert np.any(logits) != training  # of nothing, the logits are the biases, which are zeros


def test_what_attention_found_and_the_output_are_combined_by_the_published_formula():
    decoder, output = Decoder(8, 6, attention="dot"), 5 * tf.random.stateless_normal([2, 4, 6], [0, 1])
    encoded, _ = decoder.start(encode(Encoder(8, 6), SOURCE))
    found, weights = decoder._attend(output, encoded)
    both = np.concatenate([weights @ encoded.memory, output], axis=-1)
    np.testing.assert_allclose(found, np.tanh(both @ decoder.combine.kernel.numpy()), atol=1e-5)


def test_hard_attention_predicts_probabilities_that_sum_to_one():
    for kind in ("hard", "monotonic"):
        _, _, logits = run((Encoder(8, 6), Decoder(8, 6, attention=kind)))
        np.testing.assert_allclose(tf.reduce_sum(tf.exp(logits), axis=-1), np.ones((2, 4)), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"embedding": 4, "tied": True}, {"attention": "dot", "copy": True}], ids=str)
def test_logits_are_in_the_precision_of_the_weights(options):
    _, _, logits = run([half(kind, {"dtype": "mixed_bfloat16", **options}) for kind in (Encoder, Decoder)])
    assert logits.dtype == tf.float32


def test_two_directions_read_the_source_from_both_ends():
    encoder = Encoder(8, 6, bidirectional=True)
    first = encoder(SOURCE).memory[0, 0]
    assert np.abs(first - encoder(SOURCE + tf.constant([[0, 0, 1], [0, 0, 0]])).memory[0, 0]).max() > 1e-4


def test_options_that_do_not_go_together_are_refused_by_name():
    for options, message in (
        ({"attention": "sideways"}, "attention='sideways'"),
        ({"attention": "genral"}, "did you mean 'general'"),
        ({"cell": "lstn"}, "did you mean 'lstm'"),
        ({"input_feeding": True}, "input_feeding=True"),
        ({"tied": True}, "tied=True"),
    ):
        with pytest.raises(OptionError, match=message):
            Decoder(8, 6, **options)
    with pytest.raises(OptionError, match="units=5"):
        Encoder(8, 5, bidirectional=True)


@pytest.mark.parametrize("name", ["vocabulary_size", "units", "layers", "heads", "feed_forward", "embedding"])
@pytest.mark.parametrize("size", [0, "64"])
def test_a_size_below_1_or_of_another_type_is_refused_by_name(name, size):
    for kind in (Encoder, Decoder, TransformerEncoder, TransformerDecoder):
        if name in inspect.signature(kind).parameters:
            with pytest.raises(OptionError, match=f"{name}={size!r}: expected a whole number, at least 1"):
                kind(**{"vocabulary_size": 8, name: size})


@pytest.mark.parametrize(("cell", "bidirectional"), [*itertools.product(["lstm", "gru"], [False, True])])
def test_keras_finds_the_layers_fit_for_cudnn(cell, bidirectional, monkeypatch):
    # Private, as Keras has no public way to ask; it is what its LSTM itself asks before it takes the fused kernel.
    rnn = importlib.import_module("keras.src.backend.tensorflow.rnn")
    monkeypatch.setattr(rnn, "_is_gpu_available", lambda: True)
    encoder, decoder = Encoder(8, 6, cell, 2, bidirectional, dropout=0.3), Decoder(8, 6, cell, 2, dropout=0.3)
    found = [direction for layer in encoder.recurrent + decoder.recurrent for direction in layer.directions]
    assert len(found) == (6 if bidirectional else 4)
    for layer in found:
        arguments = {"reset_after": True} if cell == "gru" else {}
        assert rnn.cudnn_ok(
            layer.cell.activation, layer.cell.recurrent_activation, layer.unroll, layer.cell.use_bias, **arguments
        )
        assert layer.use_cudnn == "auto" and not layer.dropout and not layer.recurrent_dropout
        assert cell != "gru" or layer.reset_after
    rnn._assert_valid_mask(encoder(tf.constant([[0, 0], [4, 5]])).mask)


def test_token_vectors_are_rows_of_the_embedding():
    vectors = TokenVectors(8, 4)
    np.testing.assert_array_equal(vectors(SOURCE), 2 * vectors.matrix.numpy()[SOURCE])  # the root of 4
    np.testing.assert_array_equal(tf.gather(vectors.rows(SOURCE).matrix, SOURCE), vectors(SOURCE))
    np.testing.assert_array_equal(TokenVectors(8)(SOURCE), one_hot(SOURCE, 8))


def test_numbers_of_an_embedding_begin_with_a_variance_of_one():
    """With Keras's own initial values, a twentieth at most, subwords took several times as long to learn."""
    for size in (16, 256):
        assert np.std(TokenVectors(2000, size)(tf.range(2000)[None])) == pytest.approx(1, abs=0.05)
