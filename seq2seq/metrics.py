"""What training reports, over real tokens only: give these to `compile` as `weighted_metrics`."""

import keras
import tensorflow as tf


def token_crossentropy(label_smoothing=0.0):
    """Crossentropy of one-hot labels `[B, T, V]` and logits `[B, T, V]`, averaged over real tokens, in nats.

    A share of `label_smoothing` of each label is spread over all tokens; padding has no label, and its weight of 0
    keeps it from getting one.

    It is divided by the sum of the weights, not by B x T: divided by the padding too, a token would count for less the
    longer the rows beside it are.
    """
    return keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=label_smoothing, reduction="mean_with_sample_weight"
    )


def token_accuracy():
    """How often the likeliest token is the right one, given the right ones before it."""
    return keras.metrics.CategoricalAccuracy(name="accuracy")


@keras.saving.register_keras_serializable("seq2seq")
class Perplexity(keras.metrics.CategoricalCrossentropy):
    """The exponential of the crossentropy per token: the number of tokens the model hesitates between.

    Exact over an epoch: every token counts the same, where the `loss` that Keras shows counts every batch by its rows.
    """

    def __init__(self, name="perplexity", from_logits=True, **kwargs):
        super().__init__(name=name, from_logits=from_logits, **kwargs)

    def result(self):
        return tf.exp(super().result())
