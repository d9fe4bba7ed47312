"""A loss of your own: the focal loss, which learns less from tokens that are easy to predict.

seq2seq train pairs.tsv --loss focal:FocalLoss --set gamma=2 --metric focal:Confidence --epochs 5 \
    --out runs/focal
seq2seq translate runs/focal "ab"
"""

import keras
import tensorflow as tf

from seq2seq import token_losses


@keras.saving.register_keras_serializable("focal")
class FocalLoss(keras.losses.Loss):
    """-(1 - P)^gamma log P of each correct token (Lin et al. 2017, arxiv.org/abs/1708.02002). With gamma=0 it is the
    crossentropy."""

    def __init__(self, gamma=2.0, reduction="mean_with_sample_weight", **kwargs):  # so that padding does not count
        super().__init__(reduction=reduction, **kwargs)
        self.gamma = gamma

    def call(self, labels, logits):
        nats = token_losses(labels, logits)
        # 1 - P, at least 1e-7: at 0, its power has no finite gradient if gamma is below 1.
        missing = tf.maximum(-tf.math.expm1(-nats), 1e-7)
        return missing**self.gamma * nats

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}


@keras.saving.register_keras_serializable("focal")
class Confidence(keras.metrics.Mean):
    """A metric of your own: the mean probability of the correct token."""

    def __init__(self, name="confidence", **kwargs):
        super().__init__(name=name, **kwargs)

    def update_state(self, labels, logits, sample_weight=None):
        super().update_state(tf.exp(-token_losses(labels, logits)), sample_weight)
