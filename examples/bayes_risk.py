"""Minimum Bayes risk decoding over samples (Eikema & Aziz 2020, arxiv.org/abs/2005.10283).

    seq2seq train pairs.tsv --out runs/pairs --epochs 2 --units 16
    seq2seq translate runs/pairs --search bayes_risk:BayesRisk --set samples=8 ab ba

Of the samples of a text, it takes the one with the highest mean utility. The utility of one sample against another is
the F1 score of their tokens, in any order.
"""

import dataclasses

import tensorflow as tf

from pipelines import check_number
from pipelines.tokens import PADDING
from seq2seq import Hypotheses, Sampling, Strategy


@dataclasses.dataclass(frozen=True)
class BayesRisk(Strategy):
    """A strategy that takes the sample with the highest mean utility.

    Args:
        samples: how many to draw of each source.
        temperature: as in `Sampling`.
    """

    samples: int = 16
    temperature: float = 1.0

    def __post_init__(self):
        check_number("samples", self.samples, least=1)

    def search(self, step_for, state, constraints, loop=None):
        found = Sampling(self.temperature, n_best=self.samples).search(step_for, state, constraints, loop)
        best = tf.argmax(mean_utilities(found.ids), axis=1, output_type=tf.int32)[:, None]
        ids, stopped = (tf.gather(part, best, batch_dims=1) for part in (found.ids, found.stopped))
        return Hypotheses(ids, None, None, stopped)


def mean_utilities(ids):
    """The mean F1 of each of N samples, int32 `[B, N, T]`, against all: float32 `[B, N]`."""
    # Repeated tokens of a sample are told apart by their number; padding is ignored.
    same = tf.cast(ids[..., None] == ids[..., None, :], tf.int32)  # [B, N, T, T]
    times = tf.reduce_sum(tf.linalg.band_part(same, -1, 0), axis=-1)
    lengths = tf.math.count_nonzero(ids, axis=2, dtype=tf.float32)

    def f1(other, its_times, length):  # [B, T], [B, T], [B]: of one of the samples
        found = (ids[..., None] == other[:, None, None]) & (times[..., None] == its_times[:, None, None])
        common = tf.math.count_nonzero(found & (ids != PADDING)[..., None], axis=[2, 3], dtype=tf.float32)
        return 2 * common / (lengths + length[:, None])

    each = (tf.unstack(part, axis=1) for part in (ids, times, lengths))
    return tf.add_n(list(map(f1, *each))) / ids.shape[1]
