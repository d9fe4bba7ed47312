"""How a decoder looks at the source: soft and hard attention, and copying what attention points at.

Shapes: B rows in a batch, S source length, T target length, V vocabulary size, D units.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from pipelines import OptionError, choose
from pipelines.tokenizers import END, PADDING, Tokenizer, one_hot

SOFT_ATTENTIONS, HARD_ATTENTIONS = ("dot", "general", "additive"), ("hard", "monotonic")
_NEVER = -1e6  # the logarithm of a probability of 0, so that differences of two are numbers


class Encoded(NamedTuple):
    """What the encoder knows of a batch of sources, and all that a decoder may look at."""

    memory: tf.Tensor  # [B, S, D] the output at each source position
    mask: tf.Tensor  # bool [B, S] which positions hold a token
    state: list  # where the decoder starts: for each of its layers, [h, c] of an LSTM or [h] of a GRU, [B, D] each
    source: tf.Tensor | None = None  # int32 [B, S] the source's ids; the model adds them to what an encoder returns
    # A free place. An encoder may put any nest of tensors `[B, ...]` here, None included, to tell a decoder more; what
    # `start` of a decoder puts in its place may have any shape.
    extra: Any = None


@keras.saving.register_keras_serializable("seq2seq")
class Attention(keras.layers.Layer):
    """Averages the memory, weighted by how well each of its positions matches a query, for all queries at once.

    Args:
        units: size of queries, D.
        kind: how a query q and the memory m at a position are compared. "dot": q . m, "general": q . W m (both Luong et
            al. 2015, arxiv.org/abs/1508.04025, equation 8), "additive": v . tanh(U q + W m) (Bahdanau et al. 2014,
            arxiv.org/abs/1409.0473), which takes `[B, T, S, D]` of memory.

    Call arguments:
        query: `[B, T, D]`, the decoder's output at each step.
        keys: what `project` made of the memory.
        encoded: the `Encoded` source.

    Returns:
        context `[B, T, D]` and float32 weights `[B, T, S]`, which sum to 1 over S and are 0 where the mask is False. In
        beam search the queries have K times as many rows as the memory; it is not repeated for them.
    """

    kinds: tuple[str, ...] = SOFT_ATTENTIONS

    def __init__(self, units: int, kind: str = "general", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.kind = choose("kind", kind, self.kinds)
        dense = {"use_bias": False, "dtype": self.dtype_policy}
        self.key = keras.layers.Dense(units, **dense) if kind != "dot" else None  # W
        if kind == "additive":
            self.query = keras.layers.Dense(units, **dense)  # U
            self.match = keras.layers.Dense(1, **dense)  # v

    def project(self, memory: tf.Tensor) -> tf.Tensor:
        """The part of the comparison that is the same for every query: keys `[B, S, D]`."""
        return self.key(memory) if self.key else memory

    def call(self, query: tf.Tensor, keys: tf.Tensor, encoded: Encoded) -> tuple[tf.Tensor, tf.Tensor]:
        weights = masked_softmax(self.scores(query, keys, encoded), encoded.mask[:, None])
        context = tf.matmul(tf.cast(weights, encoded.memory.dtype), encoded.memory)
        rows, length = tf.shape(query)[0], tf.shape(query)[1]
        return tuple(tf.reshape(x, [rows, length, tf.shape(x)[2]]) for x in (context, weights))

    def scores(self, query: tf.Tensor, keys: tf.Tensor, encoded: Encoded) -> tf.Tensor:
        """How well each position matches: `[b, T, S]`, or in beam search as `rows_by_source` puts them."""
        queries = rows_by_source(query, encoded)
        if self.kind == "additive":
            return self.match(tf.tanh(self.query(queries)[:, :, None] + keys[:, None]))[..., 0]
        return tf.matmul(queries, keys, transpose_b=True)

    def get_config(self) -> dict:
        return {**super().get_config(), "units": self.units, "kind": self.kind}


@keras.saving.register_keras_serializable("seq2seq")
class HardAttention(Attention):
    """Assigns each target token to one source position, and sums exactly over all positions that this may be.

    Soft attention averages the memory and predicts a token from the average. Hard attention predicts a token from each
    position by itself, and averages these probabilities:

        P(token t) = sum over s of P(t is said at s) P(token | decoder's output t, memory s)

    With little text and single letters that decide, this generalises better. It computes probabilities of V tokens for
    B x T x S pairs of positions, so it is for short texts with small vocabularies.

    Args:
        units: size of queries, D.
        kind: "hard": each token is said at any position, as well as a query matches it there, compared as with
            "general" (Wu, Shapiro & Cotterell 2018, arxiv.org/abs/1808.10024). "monotonic": at the position of the
            token before or at a later one, so it never goes back (Wu & Cotterell 2019, arxiv.org/abs/1905.06319,
            first order). Where the token before was said is also known only as probabilities, which a state holds.
    """

    kinds = HARD_ATTENTIONS

    def __init__(self, units: int, kind: str = "hard", **kwargs: Any) -> None:
        super().__init__(units, kind, **kwargs)

    @property
    def monotonic(self) -> bool:
        return self.kind == "monotonic"

    def start(self, encoded: Encoded, vocabulary_size: int) -> list[tf.Tensor]:
        """The state before the first token; none but of "monotonic". Log-probabilities of where the token that comes
        next is said, `[B, S]`, and of each token at each position, `[B, S, V]`."""
        if not self.monotonic:
            return []
        rows, length = tf.unstack(tf.shape(encoded.memory)[:2])
        first = tf.where(tf.range(length) == 0, tf.cast(0, self.dtype), _NEVER)  # START is said at the first
        return [tf.tile(first[None], [rows, 1]), tf.zeros([rows, length, vocabulary_size], self.dtype)]

    def align(
        self, query: tf.Tensor, ids: tf.Tensor, said: tf.Tensor, encoded: Encoded, state: list[tf.Tensor]
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Finds where each token is said.

        Args:
            query: `[B, T, D]`, the decoder's output at each step.
            ids: int32 `[B, T]`, the tokens that the steps were given: each is the one that the step before says.
            said: log-probabilities `[B, T, S, V]` of the token that each step says, at each position.
            encoded: the `Encoded` source.
            state: what the call for the steps before returned, or `start`.

        Returns:
            Log-probabilities `[B, T, S]` of the position of each step's token, and the new state.
        """
        scores = tf.cast(self.scores(query, encoded.extra.keys, encoded), self.variable_dtype)
        scores = tf.reshape(tf.where(encoded.mask[:, None], scores, _NEVER), tf.shape(said)[:3])
        if not self.monotonic:
            return tf.nn.log_softmax(scores), []
        # The chance of going from r to s is exp(score s) over the sum of those from r on, for each s from r on.
        onward = tf.math.cumulative_logsumexp(scores, axis=2, reverse=True)
        place, before = state
        before = tf.concat([before[:, None], said[:, :-1]], axis=1)
        given = tf.einsum(
            "btsv,btv->bts", before, tf.one_hot(ids, said.shape[3], dtype=self.variable_dtype)
        )  # how likely each was at a position

        def step(t, place, places):
            was = tf.nn.log_softmax(place + given[:, t])  # where the token was said that this step is given
            place = scores[:, t] + tf.math.cumulative_logsumexp(was - onward[:, t], axis=1)
            place = tf.maximum(place, _NEVER)
            return t + 1, place, places.write(t, place)

        steps = tf.shape(ids)[1]
        places = tf.TensorArray(self.variable_dtype, size=steps, element_shape=[None, None])
        # XLA wants to be told again how many steps there are.
        _, place, places = tf.while_loop(lambda *_: True, step, (0, place, places), maximum_iterations=steps)
        return tf.transpose(places.stack(), [1, 0, 2]), [place, said[:, -1]]


def masked_softmax(scores: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Attention weights of scores `[..., S]`: float32, they sum to 1 over S and are 0 where the mask is False.

    They are float32 under mixed precision too, as the largest number of float16 is 65,504.
    """
    return tf.nn.softmax(tf.where(mask, tf.cast(scores, tf.float32), tf.float32.min))


@keras.saving.register_keras_serializable("seq2seq")
class Pointer(keras.layers.Layer):
    """Mixes two ways to the next token: generating it, and copying the source token that attention points at.

    The pointer-generator network of See et al. 2017 (arxiv.org/abs/1704.04368), equations 8 and 9: with g the share of
    generating, a number between 0 and 1 for each position, and a the attention,

        P(token) = g P_generate(token) + (1 - g) (sum of a over the source positions that hold the token)

    A source token is copied as the target token that is spelled the same, if it is not one of a set of features. What
    attention gives to tokens that cannot be copied is added to g, so that P sums to 1.

    Args:
        vocabulary_size: number of target ids, V.

    Call arguments:
        logits: `[B, T, V]`, of generating.
        output: `[B, T, D]`, what they were made of; it decides on g.
        pointed: `[B, T, V]`, how much attention each token is paid, as `pointed` returns it. With hard attention all
            three have one more axis, of source positions, of which each points at itself.

    Returns:
        log-probabilities `[B, T, V]`, which are logits too: a softmax makes the probabilities of them.
    """

    _LEAST = 1e-12  # added to probabilities: a token that can neither be copied nor generated must keep a gradient

    def __init__(self, vocabulary_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.share = keras.layers.Dense(1, "sigmoid", dtype=self.dtype_policy)  # g
        self.target_ids: Any = None  # int32 [Vs], PADDING where the target has no such token

    def take_tokenizers(self, source_tokenizer: Tokenizer, target_tokenizer: Tokenizer) -> None:
        """Finds the target id of each source id."""
        ids = {token: number for number, token in enumerate(target_tokenizer.vocabulary) if number > END}
        found = np.array([ids.get(token, PADDING) for token in source_tokenizer.vocabulary], np.int32)
        found[: END + 1] = PADDING
        ordered = np.array(source_tokenizer.ordered_columns)[source_tokenizer.columns]
        self.target_ids = np.where(ordered, found, PADDING)

    @property
    def copied(self) -> int:
        """How many source tokens can be copied."""
        return int(np.count_nonzero(self.target_ids))

    def copies(self, source: tf.Tensor) -> tf.Tensor:
        """The target tokens that source ids `[B, S]` can be copied as: one-hot `[B, S, V]`, zeros if there is none."""
        if self.target_ids is None:
            raise OptionError("copy=True: call take_tokenizers first, as Seq2Seq does")
        return one_hot(tf.gather(self.target_ids, source), self.vocabulary_size)

    def pointed(self, weights: tf.Tensor, copies: tf.Tensor, encoded: Encoded) -> tf.Tensor:
        """How much attention each target token is paid: `[B, T, V]`, of weights `[B, T, S]`.

        Args:
            weights: the attention.
            copies: `[b, S, V]`, what `copies` returned; b is B, or less by the factor K in beam search.
            encoded: the `Encoded` source.
        """
        # Under mixed precision Keras hands both on in half the bits.
        weights, copies = tf.cast(weights, self.dtype), tf.cast(copies, self.dtype)
        found = tf.matmul(rows_by_source(weights, encoded), copies)
        return tf.reshape(found, [*tf.unstack(tf.shape(weights)[:2]), self.vocabulary_size])

    def call(self, logits: tf.Tensor, output: tf.Tensor, pointed: tf.Tensor) -> tf.Tensor:
        copied = (1 - self.share(output)) * pointed
        generated = (1 - tf.reduce_sum(copied, axis=-1, keepdims=True)) * tf.nn.softmax(logits)
        return tf.math.log(copied + generated + self._LEAST)

    def get_config(self) -> dict:
        return {**super().get_config(), "vocabulary_size": self.vocabulary_size}


def rows_by_source(rows: tf.Tensor, encoded: Encoded) -> tf.Tensor:
    """Puts the rows that belong to one source side by side: `[B x K, T, D]` becomes `[B, K x T, D]`.

    In beam search a decoder is called with K hypotheses, in successive rows, for each row of `encoded`. What looks at
    the memory takes them for K times as many steps of one row, and shapes the result back, so that the memory need not
    be there K times. Everywhere else K is 1 and nothing changes.
    """
    shape, sources = tf.shape(rows), tf.shape(encoded.memory)[0]
    return tf.reshape(rows, [sources, shape[0] // tf.maximum(sources, 1) * shape[1], rows.shape[2] or shape[2]])
