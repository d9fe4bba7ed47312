"""A decoder that remembers what it has read: attention with coverage, and an option of its own.

seq2seq train pairs.tsv --decoder coverage:CoverageDecoder --set kernel=5 --units 64 --epochs 5 \
    --out runs/coverage
seq2seq translate runs/coverage --import coverage:CoverageDecoder --beam-width 3 --attention "ab"
"""

import keras
import tensorflow as tf

from seq2seq.attention import masked_softmax, rows_by_source
from seq2seq.layers import TokenVectors


@keras.saving.register_keras_serializable("coverage")
class CoverageDecoder(keras.layers.Layer):
    """A GRU whose attention is told how much of each source position it has read so far (Tu et al. 2016,
    arxiv.org/abs/1601.04811), by a convolution over `kernel` positions (Chorowski et al. 2015,
    arxiv.org/abs/1506.07503)."""

    def __init__(self, vocabulary_size, units=256, kernel=3, **kwargs):
        super().__init__(**kwargs)
        self.options = {"vocabulary_size": vocabulary_size, "units": units, "kernel": kernel}
        dtype = self.dtype_policy  # set by --precision
        self.vectors = TokenVectors(vocabulary_size, units, dtype=dtype)
        self.cell = keras.layers.GRUCell(units, dtype=dtype)
        self.key = keras.layers.Dense(units, dtype=dtype)
        self.query = keras.layers.Dense(units, use_bias=False, dtype=dtype)
        self.covered = keras.layers.Conv1D(units, kernel, padding="same", use_bias=False, dtype=dtype)
        self.match = keras.layers.Dense(1, dtype=dtype)
        self.output_layer = keras.layers.Dense(vocabulary_size, dtype=dtype)

    def start(self, encoded):
        """The state: that of the cell, and the sum of all attention paid to each source position, `[B, S]`."""
        keys, nothing_read = self.key(encoded.memory), tf.zeros_like(encoded.memory[:, :, 0])
        first = encoded.state[-1][0] if encoded.state else encoded.mean()
        return encoded._replace(extra=keys), (first, nothing_read)

    def call(self, target, encoded, state, return_attention=False):
        vectors, length = self.vectors(target), tf.shape(target)[1]

        def step(t, hidden, coverage, logits, paid):
            hidden, _ = self.cell(vectors[:, t], [hidden])
            query = rows_by_source(self.query(hidden)[:, None], encoded)[:, :, None]  # [B, K, 1, D]
            keys = encoded.extra[:, None] + tf.reshape(
                self.covered(coverage[..., None]), [*tf.unstack(tf.shape(query)[:2]), -1, query.shape[3]]
            )
            weights = masked_softmax(self.match(tf.tanh(query + keys))[..., 0], encoded.mask[:, None])  # [B, K, S]
            weights = tf.cast(weights, coverage.dtype)  # from float32
            context = tf.reshape(weights @ encoded.memory, [-1, encoded.memory.shape[2]])
            logits = logits.write(t, self.output_layer(tf.concat([hidden, context], axis=1)))
            weights = tf.reshape(weights, tf.shape(coverage))
            return t + 1, hidden, coverage + weights, logits, paid.write(t, weights)

        results = [tf.TensorArray(self.compute_dtype, length) for _ in range(2)]
        _, *state, logits, paid = tf.while_loop(lambda t, *_: t < length, step, (0, *state, *results))
        logits, paid = (tf.transpose(result.stack(), [1, 0, 2]) for result in (logits, paid))
        return (logits, tuple(state), paid) if return_attention else (logits, tuple(state))

    def get_config(self):
        return {**super().get_config(), **self.options}
