import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines.tokenizers import one_hot
from seq2seq.layers import Decoder, Encoder, dot_attention

SOURCE = tf.constant([[4, 5, 6], [7, 4, 0]])
TARGET = tf.constant([[2, 5, 6, 7], [2, 4, 0, 0]])


@pytest.fixture(params=[None, "dot"])
def layers(request):
    encoder, decoder = Encoder(8, 6), Decoder(8, 6, request.param)
    encoder.build()
    decoder.build()
    return encoder, decoder


def test_ids_and_one_hot_rows_compute_the_same(layers):
    encoder, decoder = layers
    encoded, same = encoder(SOURCE), encoder(one_hot(SOURCE, 8))
    np.testing.assert_array_equal(encoded.memory, same.memory)
    logits, _ = decoder(TARGET, encoded, encoded.state)
    from_rows, _ = decoder(one_hot(TARGET, 8), encoded, encoded.state)
    np.testing.assert_array_equal(logits, from_rows)
    assert encoded.memory.shape == (2, 3, 6) and logits.shape == (2, 4, 8)


def test_padding_changes_nothing(layers):
    encoder, decoder = layers
    encoded, wider = encoder(SOURCE), encoder(tf.pad(SOURCE, [[0, 0], [0, 4]]))
    np.testing.assert_allclose(encoded.state, wider.state, atol=1e-6)
    logits, _ = decoder(TARGET, encoded, encoded.state)
    same, _ = decoder(tf.pad(TARGET, [[0, 0], [0, 2]]), wider, wider.state)
    np.testing.assert_allclose(logits, same[:, :4], atol=1e-6)


def test_an_empty_source_is_encoded_in_a_mask_that_cudnn_takes(layers):
    encoded = layers[0](tf.constant([[0, 0], [4, 5]]))
    np.testing.assert_array_equal(encoded.mask, [[True, False], [True, True]])
    assert np.isfinite(encoded.memory).all()


def test_one_step_after_another_is_the_whole_sequence(layers):
    encoder, decoder = layers
    encoded = encoder(SOURCE)
    whole, _ = decoder(TARGET, encoded, encoded.state)
    state = encoded.state
    for position in range(TARGET.shape[1]):
        logits, state = decoder(TARGET[:, position : position + 1], encoded, state)
        np.testing.assert_allclose(logits[:, 0], whole[:, position], atol=1e-5)


def test_attention_looks_only_where_the_mask_is():
    memory = tf.constant([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    context, weights = dot_attention(tf.constant([[[100.0, 0.0]]]), memory, tf.constant([[True, True, False]]))
    np.testing.assert_allclose(weights, [[[1, 0, 0]]], atol=1e-6)
    np.testing.assert_allclose(context, [[[1, 0]]], atol=1e-6)


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="attention='sideways'"):
        Decoder(8, 6, "sideways")


def test_keras_finds_the_lstms_fit_for_cudnn(layers, monkeypatch):
    # Private, as Keras has no public way to ask; it is what its LSTM itself asks before it takes the fused kernel.
    rnn = importlib.import_module("keras.src.backend.tensorflow.rnn")
    monkeypatch.setattr(rnn, "_is_gpu_available", lambda: True)
    for layer in layers:
        cell = layer.lstm.cell
        assert rnn.cudnn_ok(cell.activation, cell.recurrent_activation, layer.lstm.unroll, cell.use_bias)
        assert layer.lstm.use_cudnn == "auto" and not layer.lstm.recurrent_dropout
    mask = layers[0](tf.constant([[0, 0], [4, 5]])).mask
    rnn._assert_valid_mask(mask)


def test_they_come_back_from_their_configuration(layers):
    for layer in layers:
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
        assert copy.get_config() == layer.get_config()
