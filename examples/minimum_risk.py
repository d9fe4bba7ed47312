"""A model of your own: minimum risk training, which lowers the expected number of errors.

seq2seq train pairs.tsv --epochs 5 --out runs/pretrained
seq2seq train pairs.tsv --from runs/pretrained --model minimum_risk:MinimumRisk --set samples=8 \
    --epochs 4 --out runs/risk
seq2seq translate runs/risk --import minimum_risk:MinimumRisk "ab"
"""

import keras
import tensorflow as tf

from pipelines.tokens import START
from seq2seq import Sampling, Seq2Seq


@keras.saving.register_keras_serializable("minimum_risk")
class MinimumRisk(Seq2Seq):
    """A model that adds the expected edit distance of sampled translations to the crossentropy (Shen et al. 2016,
    arxiv.org/abs/1512.02433).

    Args:
        samples: how many translations are drawn of each source.
        sharpness: the power to which their probabilities are raised.
        risk_weight: what the expected edit distance, a share of the target's length, is multiplied by.
    """

    def __init__(self, source_tokenizer, target_tokenizer, samples=4, sharpness=1.0, risk_weight=1.0, **kwargs):
        self.options = {"samples": samples, "sharpness": sharpness, "risk_weight": risk_weight}
        super().__init__(source_tokenizer, target_tokenizer, **kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + self.options["risk_weight"] * self.risk(x[0], y) if training else loss

    def risk(self, source, labels):
        count, rows = self.options["samples"], tf.cast(tf.shape(source)[0], tf.int64)
        seeds = tf.range(rows) + self.optimizer.iterations.value * 2**20  # different in each step
        ids = self.decode(source, Sampling(n_best=count), seeds=seeds).ids  # [B, samples, T]
        ids = tf.reshape(ids, [rows * count, -1])
        source, labels = tf.repeat(source, count, axis=0), tf.repeat(labels, count, axis=0)
        risks = tf.edit_distance(tf.sparse.from_dense(ids), tf.sparse.from_dense(labels))
        targets = tf.pad(ids, [[0, 0], [1, 0]], constant_values=START)
        likelihoods = self.options["sharpness"] * self.log_likelihood(source, targets, training=True)
        shares = tf.nn.softmax(tf.reshape(likelihoods, [-1, count]))
        return tf.reduce_mean(tf.reduce_sum(shares * tf.reshape(risks, [-1, count]), axis=1))

    def get_config(self):
        return {**super().get_config(), **self.options}
