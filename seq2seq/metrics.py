"""What training minimises and reports, over real tokens only.

Labels are ids `[B, T]`, logits `[B, T, V]`; sample weights `[B, T]` are 1 for a token and 0 for padding.
"""

from typing import Any

import keras
import tensorflow as tf


@tf.custom_gradient
def crossentropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Nats `[B, T]` by which each right token was missed.

    As `tf.nn.sparse_softmax_cross_entropy_with_logits`, which TensorFlow computes several times slower where results
    must be deterministic.
    """
    log_probabilities = tf.nn.log_softmax(logits)

    def gradient(upstream):
        missed = tf.exp(log_probabilities) - tf.one_hot(labels, tf.shape(logits)[-1], dtype=logits.dtype)
        return None, missed * upstream[..., None]

    return -tf.gather(log_probabilities, labels, batch_dims=2), gradient


@keras.saving.register_keras_serializable("seq2seq")
class TokenCrossentropy(keras.losses.Loss):
    """Crossentropy of the right tokens, averaged over them, in nats.

    It is divided by the sum of the weights, not by B x T: divided by the padding too, a token would count for less the
    longer the rows beside it are.

    Args:
        label_smoothing: share of each label that is spread evenly over all tokens (Szegedy et al. 2016,
            arxiv.org/abs/1512.00567).
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        reduction: str = "mean_with_sample_weight",
        name: str = "token_crossentropy",
        dtype: str | None = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.label_smoothing = label_smoothing

    def call(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        nats = crossentropy(tf.cast(labels, tf.int32), logits)
        if self.label_smoothing:
            of_all = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)
            nats += self.label_smoothing * (of_all - nats)
        return nats

    def get_config(self) -> dict:
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("seq2seq")
class TokenAccuracy(keras.metrics.SparseCategoricalAccuracy):
    """How often the likeliest token is the right one, given the right ones before it. Exact over an epoch."""

    def __init__(self, name: str = "accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def update_state(self, labels: tf.Tensor, logits: tf.Tensor, sample_weight: tf.Tensor | None = None) -> None:
        logits = tf.reshape(logits, [-1, tf.shape(logits)[-1]])
        super().update_state(_in_one_row(labels), logits, _in_one_row(sample_weight))


@keras.saving.register_keras_serializable("seq2seq")
class Perplexity(keras.metrics.Mean):
    """The exponential of the crossentropy per token: the number of tokens the model hesitates between.

    Exact over an epoch: every token counts the same, where the `loss` that Keras shows counts every batch by its rows.
    """

    def __init__(self, name: str = "perplexity", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def update_state(self, labels: tf.Tensor, logits: tf.Tensor, sample_weight: tf.Tensor | None = None) -> None:
        # The graph holds this once, for the loss and for here.
        nats = crossentropy(tf.cast(labels, tf.int32), logits)
        super().update_state(_in_one_row(nats), _in_one_row(sample_weight))

    def result(self) -> tf.Tensor:
        return tf.exp(super().result())


def _in_one_row(tokens):
    """`[B x T]` of `[B, T]`. Keras (3.15) would first take the mean of each row, and count tokens of long ones less."""
    return None if tokens is None else tf.reshape(tokens, [-1])
