"""Diverse beam search with groups of one hypothesis (Vijayakumar et al. 2016, arxiv.org/abs/1610.02424).

    seq2seq train pairs.tsv --out runs/pairs --epochs 2 --units 16
    seq2seq translate runs/pairs --search diverse:DiverseBeam --set groups=3 --set penalty=1.5 ab ba
    seq2seq evaluate runs/pairs --search diverse:DiverseBeam
    seq2seq export runs/pairs exported/1 --search diverse:DiverseBeam --set groups=3

The groups are extended in parallel. At each step, they choose one after another: each takes the most likely token after
a penalty for each earlier group that has chosen the same token at this step.
"""

import dataclasses

import tensorflow as tf

from pipelines import check_number
from seq2seq import Strategy, extend_each


@dataclasses.dataclass(frozen=True)
class DiverseBeam(Strategy):
    """Greedy search by several groups, each of which is driven away from what the groups before it have just chosen.

    Args:
        groups: how many hypotheses of each source, all returned. The first is that of greedy search.
        penalty: what a token loses, in nats, for each earlier group that has chosen it: lambda in the paper.
    """

    groups: int = 4
    penalty: float = 0.5

    def __post_init__(self):
        check_number("groups", self.groups, least=1)
        check_number("penalty", self.penalty, float, least=0)

    @property
    def n_best(self):
        return self.groups

    def search(self, step_for, state, constraints, loop=None):
        def choose(logits, t, sources):
            size = tf.shape(logits)[1]
            by_group = tf.unstack(tf.reshape(tf.nn.log_softmax(logits), [-1, self.groups, size]), axis=1)
            chosen, losses = [], tf.zeros_like(by_group[0])
            for log_probabilities in by_group:
                chosen.append(tf.argmax(log_probabilities - losses, axis=1, output_type=tf.int32))
                losses += self.penalty * tf.one_hot(chosen[-1], size)
            return tf.reshape(tf.stack(chosen, axis=1), [-1])

        return extend_each(step_for, state, constraints, choose, self.groups, loop)
