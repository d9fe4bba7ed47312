"""The two halves of the model: `Encoder` reads the source, `Decoder` predicts the target.

Shapes: B rows in a batch, S source length, T target length, V vocabulary size, D units.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from pipelines.tokenizers import PADDING, one_hot


class Encoded(NamedTuple):
    """What the encoder knows of a batch of sources, and all that a decoder may look at."""

    memory: tf.Tensor  # [B, S, D] the output at each source position
    mask: tf.Tensor  # bool [B, S] which positions hold a token
    state: list[tf.Tensor]  # [B, D] each: where the decoder starts


class _Recurrent(keras.layers.Layer):
    """An LSTM over tokens, given as one-hot floats `[B, T, V]` or as ids `[B, T]`; it computes the same from either."""

    def __init__(self, vocabulary_size, units, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.units = units
        # Keras runs this on a GPU with the fused cuDNN kernel, as long as masks are right-padded and these arguments
        # stay as they are: tanh, sigmoid, no recurrent dropout.
        self.lstm = keras.layers.LSTM(units, return_sequences=True, return_state=True, dtype=self.dtype_policy)

    def build(self, *_):
        self.lstm.build((None, None, self.vocabulary_size))

    def _one_hot(self, tokens):
        if tokens.dtype.is_integer:
            return one_hot(tokens, self.vocabulary_size, self.compute_dtype)
        return tokens

    def get_config(self):
        return {**super().get_config(), "vocabulary_size": self.vocabulary_size, "units": self.units}


@keras.saving.register_keras_serializable("seq2seq")
class Encoder(_Recurrent):
    """Reads the source with an LSTM.

    Args:
        vocabulary_size: number of source ids, Vs.
        units: size of the state, D.

    Call arguments:
        source: one-hot `[B, S, Vs]` or ids `[B, S]`, padded on the right.

    Returns:
        `Encoded`; its state is the one after each row's last token.
    """

    def call(self, source):
        filled = source != PADDING if source.dtype.is_integer else tf.reduce_any(source != 0, axis=-1)
        # An empty source counts as one step of nothing: cuDNN refuses rows that are masked from end to end.
        mask = tf.concat([tf.ones_like(filled[:, :1]), filled[:, 1:]], axis=1)
        memory, *state = self.lstm(self._one_hot(source), mask=mask)
        return Encoded(memory, mask, state)


@keras.saving.register_keras_serializable("seq2seq")
class Decoder(_Recurrent):
    """Predicts each next token of the target with an LSTM that starts from the encoder's state.

    The same call trains and translates. Training gives it the whole target at once, translation one token and the state
    that the call before returned.

    Args:
        vocabulary_size: number of target ids, Vt.
        units: size of the state, D; the encoder's.
        attention: None, where the encoder's last state is all the decoder knows of the source, or "dot", where each
            step looks back at the whole source (Luong et al. 2015, arxiv.org/abs/1508.04025, section 3.1).

    Call arguments:
        target: the tokens so far, one-hot `[B, T, Vt]` or ids `[B, T]`, padded on the right.
        encoded: the `Encoded` source.
        state: what the call for the tokens before returned, or `encoded.state` at the start.

    Returns:
        logits `[B, T, Vt]`, the score of every token as the next one after each position, and the new state. Positions
        of padding hold numbers without meaning, which the loss leaves out.
    """

    def __init__(self, vocabulary_size, units, attention=None, **kwargs):
        super().__init__(vocabulary_size, units, **kwargs)
        if attention not in (None, "dot"):
            raise ValueError(f"attention={attention!r}: expected None or 'dot'")
        self.attention = attention
        if attention:
            self.combine = keras.layers.Dense(units, activation="tanh", use_bias=False, dtype=self.dtype_policy)
        # Under mixed precision too, a softmax over many tokens wants all of float32.
        self.output_layer = keras.layers.Dense(vocabulary_size, dtype="float32")

    def build(self, *_):
        super().build()
        if self.attention:
            self.combine.build((None, None, 2 * self.units))
        self.output_layer.build((None, None, self.units))

    def call(self, target, encoded, state):
        tokens = self._one_hot(target)
        if tokens.shape[1] == 1:  # one step needs no loop around it
            output, state = self.lstm.cell(tokens[:, 0], state)
            output = output[:, None]
        else:
            output, *state = self.lstm(tokens, initial_state=state)
        if self.attention:
            context, _ = dot_attention(output, encoded.memory, encoded.mask)
            output = self.combine(tf.concat([context, output], axis=-1))
        return self.output_layer(output), state

    def get_config(self):
        return {**super().get_config(), "attention": self.attention}


def dot_attention(query, memory, mask):
    """Averages the memory, weighted by how well each position's vector matches the query.

    Args:
        query: `[B, T, D]`, the decoder's output at each step.
        memory: `[B, S, D]`.
        mask: bool `[B, S]`, the positions that may be looked at.

    Returns:
        context `[B, T, D]` and weights `[B, T, S]`, which sum to 1 over S.
    """
    scores = tf.matmul(query, memory, transpose_b=True)
    scores = tf.where(mask[:, None, :], scores, scores.dtype.min)
    weights = tf.nn.softmax(scores)
    return tf.matmul(weights, memory), weights
