"""A Transformer with sinusoidal positions and normalization after each sublayer, as in Vaswani et al. 2017.

Unlike in the paper, dropout applies to the attention weights, and not to the result of each sublayer.

seq2seq train pairs.tsv --encoder sinusoidal:SinusoidalEncoder --decoder sinusoidal:SinusoidalDecoder \
    --heads 2 --units 32 --set period=1000 --epochs 5 --out runs/sinusoidal
seq2seq translate runs/sinusoidal --import sinusoidal:SinusoidalEncoder "ab"
"""

import keras
import tensorflow as tf

from seq2seq import Encoded, TokenVectors, rows_by_hypothesis, rows_by_source, source_mask


class _Sinusoidal(keras.layers.Layer):
    """What encoder and decoder share (Vaswani et al. 2017, arxiv.org/abs/1706.03762)."""

    sublayers = 2  # per layer, each with a normalization

    def __init__(self, vocabulary_size, units=64, heads=4, layers=2, dropout=0.1, period=10_000, **kwargs):
        super().__init__(**kwargs)
        self.options = {"vocabulary_size": vocabulary_size, "units": units, "heads": heads, "layers": layers}
        self.options |= {"dropout": dropout, "period": period}
        dtype = self.dtype_policy
        self.vectors = TokenVectors(vocabulary_size, units, dropout, dtype=dtype)
        self.attention = [self.make_attention() for _ in range(layers)]
        self.hidden = [keras.layers.Dense(4 * units, "relu", dtype=dtype) for _ in range(layers)]
        self.output_of = [keras.layers.Dense(units, dtype=dtype) for _ in range(layers)]
        self.norms = [keras.layers.LayerNormalization(dtype=dtype) for _ in range(self.sublayers * layers)]

    def make_attention(self):
        units, heads = self.options["units"], self.options["heads"]
        return keras.layers.MultiHeadAttention(
            heads, units // heads, dropout=self.options["dropout"], dtype=self.dtype_policy
        )

    def place(self, ids, training):
        """The vectors of ids `[B, T]`, each with a sine and a cosine of its position for every frequency added."""
        units = self.options["units"]
        rates = float(self.options["period"]) ** (-tf.range(0, units, 2, tf.float32) / units)
        angles = tf.range(tf.shape(ids)[1], dtype=tf.float32)[:, None] * rates
        places = tf.concat([tf.sin(angles), tf.cos(angles)], axis=1)
        return self.vectors(ids, training=training) + tf.cast(places, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), **self.options}


@keras.saving.register_keras_serializable("sinusoidal")
class SinusoidalEncoder(_Sinusoidal):
    def call(self, source, training=False):
        mask, x = source_mask(source), self.place(source, training)
        for n, attention in enumerate(self.attention):
            x = self.norms[2 * n](x + attention(x, x, attention_mask=mask[:, None], training=training))
            x = self.norms[2 * n + 1](x + self.output_of[n](self.hidden[n](x)))
        return Encoded(x, mask)


@keras.saving.register_keras_serializable("sinusoidal")
class SinusoidalDecoder(_Sinusoidal):
    sublayers = 3

    def __init__(self, vocabulary_size, **kwargs):
        super().__init__(vocabulary_size, **kwargs)
        self.across = [self.make_attention() for _ in self.attention]
        self.output_layer = keras.layers.Dense(vocabulary_size, dtype=self.dtype_policy)

    def start(self, encoded):
        return encoded, tf.zeros([tf.shape(encoded.memory)[0], 0], tf.int32)  # the state: all tokens so far

    def call(self, target, encoded, state, training=False):
        ids = tf.concat([state, target], axis=1)
        x = self.place(ids, training)
        for n, attention in enumerate(self.attention):
            x = self.norms[3 * n](x + attention(x, x, use_causal_mask=True, training=training))
            mask = encoded.mask[:, None]
            seen = self.across[n](rows_by_source(x, encoded), encoded.memory, attention_mask=mask, training=training)
            x = self.norms[3 * n + 1](x + rows_by_hypothesis(seen, x))
            x = self.norms[3 * n + 2](x + self.output_of[n](self.hidden[n](x)))
        return self.output_layer(x[:, -tf.shape(target)[1] :]), ids
