import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import OptionError
from seq2seq.config import Config
from seq2seq.metrics import Perplexity, TokenCrossentropy, make_loss, make_metrics, of_tokens, token_losses

LABELS = np.array([[1, 2], [3, 0]])  # the second row ends in padding
LOGITS = np.array([[[0.0, 2, 0, 0], [0, 2, 0, 0]], [[0, 0, 0, 2], [0, 5, 0, 0]]])
WEIGHTS = (LABELS != 0).astype(float)
NATS = [np.log(np.exp(2) + 3) - 2, np.log(np.exp(2) + 3), np.log(np.exp(2) + 3) - 2]  # of the three real tokens


def test_loss_accuracy_and_perplexity_count_real_tokens_only():
    np.testing.assert_allclose(TokenCrossentropy()(LABELS, LOGITS, WEIGHTS), np.mean(NATS), rtol=1e-6)
    accuracy, perplexity = of_tokens("accuracy"), Perplexity()
    for metric in (accuracy, perplexity):
        metric.update_state(LABELS, LOGITS, sample_weight=WEIGHTS)
    np.testing.assert_allclose(accuracy.result(), 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(perplexity.result(), np.exp(np.mean(NATS)), rtol=1e-6)


def test_accuracy_is_that_of_keras_over_real_tokens():
    logits = tf.random.stateless_normal([4, 6, 3], seed=[1, 2])
    labels, weights = np.arange(24).reshape(4, 6) % 3, np.tri(4, 6)
    ours, theirs = of_tokens("acc"), keras.metrics.SparseCategoricalAccuracy()
    ours.update_state(labels, logits, weights)
    theirs.update_state(labels.reshape(-1), tf.reshape(logits, [-1, 3]), weights.reshape(-1))
    np.testing.assert_allclose(ours.result(), theirs.result(), rtol=1e-6)
    assert ours.name == "acc" and 0 < ours.result() < 1
    assert isinstance(keras.metrics.deserialize(keras.metrics.serialize(ours)), type(ours))


def test_each_token_of_an_epoch_counts_the_same_however_long_its_batch_is():
    accuracy, perplexity = of_tokens("accuracy"), Perplexity()
    for metric in (accuracy, perplexity):
        metric.update_state(LABELS, LOGITS, sample_weight=WEIGHTS)
        wide = [np.pad(array[1:], [(0, 0), (0, 7), *[(0, 0)] * (array.ndim - 2)]) for array in (LABELS, LOGITS)]
        metric.update_state(*wide, sample_weight=np.pad(WEIGHTS[1:], [(0, 0), (0, 7)]))
    np.testing.assert_allclose(accuracy.result(), 3 / 4, rtol=1e-6)
    np.testing.assert_allclose(perplexity.result(), np.exp(np.mean([*NATS, NATS[2]])), rtol=1e-6)


def test_more_padding_changes_none_of_them():
    labels, weights = (np.pad(array, [(0, 0), (0, 3)]) for array in (LABELS, WEIGHTS))
    same = TokenCrossentropy()(labels, np.pad(LOGITS, [(0, 0), (0, 3), (0, 0)]), weights)
    tf.debugging.assert_near(same, TokenCrossentropy()(LABELS, LOGITS, WEIGHTS))


def test_label_smoothing_is_that_of_one_hot_labels():
    one_hot = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2, reduction="none")
    right = tf.reduce_sum(one_hot(np.eye(4)[LABELS], LOGITS) * WEIGHTS) / 3
    loss = TokenCrossentropy(0.2)
    for same in (loss, keras.losses.deserialize(keras.losses.serialize(loss))):
        tf.debugging.assert_near(same(LABELS, LOGITS, WEIGHTS), tf.cast(right, tf.float32))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_crossentropy_and_its_gradient_are_those_of_tensorflow(smoothing):
    logits = tf.random.stateless_normal([3, 5, 7], seed=[1, 2])
    labels = tf.constant(np.arange(15).reshape(3, 5) % 7, tf.int32)
    smoothed = tf.one_hot(labels, 7, 1 - smoothing + smoothing / 7, smoothing / 7)
    of_each = tf.random.stateless_uniform([3, 5], seed=[3, 4])
    found = []
    for function, right in (
        (functools.partial(token_losses, label_smoothing=smoothing), labels),
        (tf.nn.softmax_cross_entropy_with_logits, smoothed),
    ):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            nats = function(right, logits)
        found.append((nats, tape.gradient(nats, logits, of_each)))
    for ours, theirs in zip(*found, strict=True):
        tf.debugging.assert_near(ours, theirs)


def test_a_loss_that_smooths_gets_the_label_smoothing_of_the_configuration():
    config = Config(loss="seq2seq.metrics:TokenCrossentropy", label_smoothing=0.3)
    assert make_loss(config).label_smoothing == 0.3


def test_a_metric_with_the_name_of_a_usual_one_is_refused():
    with pytest.raises(OptionError, match="metrics=Perplexity: another metric is already called 'perplexity'"):
        make_metrics(Config(metrics=("seq2seq.metrics:Perplexity",)))
    with pytest.raises(OptionError, match="another metric is already called 'mean_squared_error'"):
        make_metrics(Config(metrics=("keras.metrics:MeanSquaredError",) * 2))
