"""How a decoder looks at the source: soft and hard attention, and copying what attention points at.

Shapes: B rows in a batch, S source length, T target length, V vocabulary size, D units.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from pipelines import OptionError, choose
from pipelines.tokens import END, PADDING, REPLACEMENT, Tokenizer, one_hot
from seq2seq.compilation import is_converting

SOFT_ATTENTIONS: tuple[str, ...] = ("dot", "general", "additive")
HARD_ATTENTIONS: tuple[str, ...] = ("hard", "monotonic")
_LOG_ZERO = -1e6  # the logarithm of a probability of 0, so that differences of two are numbers


class Encoded(NamedTuple):
    """A batch of encoded sources: everything that a decoder may use."""

    memory: tf.Tensor  # [B, S, D] the output at each source position
    mask: tf.Tensor  # bool [B, S] which positions hold a token
    # Where a recurrent decoder starts: for each layer, [h, c] of an LSTM or [h] of a GRU, [B, D] each. None: from the
    # mean of the memory.
    state: list | None = None
    source: tf.Tensor | None = None  # int32 [B, S] the source's ids; the model adds them to the encoder's result
    # An encoder may put any nest of tensors `[B, ...]` here, None included, for its decoder. A decoder's `start` may
    # replace it by tensors of any shape.
    extra: Any = None

    def mean(self) -> tf.Tensor:
        """The mean of the memory over the positions that hold a token: `[B, D]`."""
        real = tf.cast(self.mask, self.memory.dtype)[:, :, None]
        return tf.math.divide_no_nan(tf.reduce_sum(self.memory * real, axis=1), tf.reduce_sum(real, axis=1))


@keras.saving.register_keras_serializable("seq2seq")
class Attention(keras.layers.Layer):
    """A layer that averages the memory, weighted by how well each position matches a query, for all queries at once.

    Args:
        units: size of queries, D.
        kind: how a query q and the memory m at a position are compared. "dot": q . m, "general": q . W m (both Luong et
            al. 2015, arxiv.org/abs/1508.04025, equation 8), "additive": v . tanh(U q + W m) (Bahdanau et al. 2014,
            arxiv.org/abs/1409.0473), which computes a tensor `[B, T, S, D]`.

    Call arguments:
        query: `[B, T, D]`, the decoder's output at each step.
        keys: the memory, as `project` returned it.
        encoded: the `Encoded` source.

    Returns:
        context `[B, T, D]` and float32 weights `[B, T, S]`, which sum to 1 over S and are 0 where the mask is False. In
        beam search the queries have K times as many rows as the memory; it is not repeated for them.
    """

    kinds: tuple[str, ...] = SOFT_ATTENTIONS

    def __init__(self, units: int, kind: str = "general", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.kind = choose("attention", kind, self.kinds)
        dense = {"use_bias": False, "dtype": self.dtype_policy}
        self.key = keras.layers.Dense(units, **dense) if kind != "dot" else None  # W
        if kind == "additive":
            self.query = keras.layers.Dense(units, **dense)  # U
            self.match = keras.layers.Dense(1, **dense)  # v

    def project(self, memory: tf.Tensor) -> tf.Tensor:
        """The part of the comparison that does not depend on the query: keys `[B, S, D]`."""
        return self.key(memory) if self.key else memory

    def call(self, query: tf.Tensor, keys: tf.Tensor, encoded: Encoded) -> tuple[tf.Tensor, tf.Tensor]:
        scores = self.scores(query, keys, encoded)
        positions = encoded.mask.shape[-1]
        if scores.shape[-1] == 1 and positions not in (None, 1):  # it would be repeated for all positions
            raise ValueError(f"scores {scores.shape} of {positions} source positions; expected [b, T, S]")
        weights = masked_softmax(scores, encoded.mask[:, None])
        context = tf.matmul(tf.cast(weights, encoded.memory.dtype), encoded.memory)
        return rows_by_hypothesis(context, query), rows_by_hypothesis(weights, query)

    def scores(self, query: tf.Tensor, keys: tf.Tensor, encoded: Encoded) -> tf.Tensor:
        """How well each position matches: `[b, T, S]`, or in beam search as `rows_by_source` arranges them."""
        queries = rows_by_source(query, encoded)
        if self.kind == "additive":
            return self.match(tf.tanh(self.query(queries)[:, :, None] + keys[:, None]))[..., 0]
        return tf.matmul(queries, keys, transpose_b=True)

    def get_config(self) -> dict:
        return {**super().get_config(), "units": self.units, "kind": self.kind}


@keras.saving.register_keras_serializable("seq2seq")
class HardAttention(Attention):
    """Attention that aligns each target token with one source position, and sums exactly over all possible positions.

    Soft attention averages the memory and predicts a token from the average. Hard attention predicts a token from each
    position by itself, and averages these probabilities:

        P(token t) = sum over s of P(t is aligned with s) P(token | decoder's output t, memory s)

    With little text, and if single letters matter, this generalises better. It computes probabilities of V tokens for B
    x T x S pairs of positions, so it is for short texts with small vocabularies.

    Args:
        units: size of queries, D.
        kind: "hard": a token is aligned with any position, with a probability that depends on how well a query matches
            it, as in "general" (Wu, Shapiro & Cotterell 2018, arxiv.org/abs/1808.10024). "monotonic": a token is
            aligned with the position of the previous token or a later one, so alignment never moves back (Wu &
            Cotterell 2019, arxiv.org/abs/1905.06319, first order). The state holds the probabilities of the previous
            position.

    Call arguments:
        query: `[B, T, D]`, the decoder's output at each step.
        ids: int32 `[B, T]`, the input token of each step, which the previous step predicted.
        predicted: log-probabilities `[B, T, S, V]` of the token that each step predicts, from each position.
        encoded: the `Encoded` source.
        state: the state that `start`, or the call for the previous steps, returned.

    Returns:
        Log-probabilities `[B, T, S]` of the position that each step's token is aligned with, and the new state.
    """

    kinds = HARD_ATTENTIONS

    def __init__(self, units: int, kind: str = "hard", **kwargs: Any) -> None:
        super().__init__(units, kind, autocast=False, **kwargs)  # log-probabilities stay float32

    @property
    def monotonic(self) -> bool:
        return self.kind == "monotonic"

    def start(self, encoded: Encoded, vocabulary_size: int) -> list[tf.Tensor]:
        """The state before the first token: for "monotonic", log-probabilities of the position of the next token,
        `[B, S]`, and of each token at each position, `[B, S, V]`; for "hard", nothing."""
        if not self.monotonic:
            return []
        rows, length = tf.unstack(tf.shape(encoded.memory)[:2])
        first = tf.where(tf.range(length) == 0, tf.cast(0, self.dtype), _LOG_ZERO)  # START is aligned with the first
        return [tf.tile(first[None], [rows, 1]), tf.zeros([rows, length, vocabulary_size], self.dtype)]

    def call(  # type: ignore[override]  # alignment also needs the tokens, and the previous one
        self, query: tf.Tensor, ids: tf.Tensor, predicted: tf.Tensor, encoded: Encoded, state: list[tf.Tensor]
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        scores = tf.cast(self.scores(query, encoded.extra.keys, encoded), self.variable_dtype)
        scores = tf.reshape(tf.where(encoded.mask[:, None], scores, _LOG_ZERO), tf.shape(predicted)[:3])
        if not self.monotonic:
            return tf.nn.log_softmax(scores), []
        # The forward algorithm of a hidden Markov model whose state is the aligned position:
        #   filtered(r) = P(previous token aligned with r | tokens up to it), the previous alignment times P(token | r)
        #   P(s | r) = exp(score s) / sum of exp(score u) over u >= r, for s >= r
        #   P(next token aligned with s) = sum of filtered(r) P(s | r) over r <= s
        log_norms = _cumulative_logsumexp(scores, reverse=True)
        alignment, before = state
        before = tf.concat([before[:, None], predicted[:, :-1]], axis=1)
        inputs = tf.one_hot(ids, predicted.shape[3], dtype=self.variable_dtype)
        of_inputs = tf.einsum("btsv,btv->bts", before, inputs)  # log P(input token | position)

        def next_alignment(alignment, t):
            filtered = tf.nn.log_softmax(alignment + of_inputs[:, t])
            return tf.maximum(scores[:, t] + _cumulative_logsumexp(filtered - log_norms[:, t]), _LOG_ZERO)

        if ids.shape[1] == 1:  # one step needs no loop around it
            alignment = next_alignment(alignment, 0)
            return alignment[:, None], [alignment, predicted[:, -1]]
        alignments = tf.scan(next_alignment, tf.range(tf.shape(ids)[1]), alignment)
        return tf.transpose(alignments, [1, 0, 2]), [alignments[-1], predicted[:, -1]]


def _cumulative_logsumexp(x, reverse=False):
    """The logarithm of the cumulative sum of exp(x) along the last axis, or of the reverse cumulative sum."""
    if not is_converting():
        return tf.math.cumulative_logsumexp(x, axis=-1, reverse=reverse)
    places = tf.range(tf.shape(x)[-1])
    summed = places[:, None] <= places if reverse else places[:, None] >= places  # a sum in each row
    each = tf.where(summed, x[..., None, :], x.dtype.min)
    most = tf.reduce_max(each, axis=-1, keepdims=True)
    return most[..., 0] + tf.math.log(tf.reduce_sum(tf.exp(each - most), axis=-1))


def masked_softmax(scores: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Attention weights of scores `[..., S]`, which sum to 1 over S and are 0 where the mask is False.

    They are float32 under mixed precision too, as the largest number of float16 is 65,504.
    """
    return tf.nn.softmax(tf.where(mask, tf.cast(scores, tf.float32), tf.float32.min))


@keras.saving.register_keras_serializable("seq2seq")
class Pointer(keras.layers.Layer):
    """A layer that mixes two distributions over the next token: generated tokens, and copies of source tokens that
    attention points at.

    The pointer-generator network of See et al. 2017 (arxiv.org/abs/1704.04368), equations 8 and 9: with g the
    probability of generating, for each position, and a the attention,

        P(token) = g P_generate(token) + (1 - g) (sum of a over the source positions that hold the token)

    A source token is copied as the target token with the same spelling, unless it is one of a set of features. An
    unknown one is copied as U+FFFD, if that is in the target's vocabulary; `Translator.translate` replaces it by the
    source's token. The attention to tokens that cannot be copied is added to g, so that P sums to 1.

    Args:
        vocabulary_size: number of target ids, V.

    Call arguments:
        logits: `[B, T, V]`, of generating.
        output: `[B, T, D]`, the input of the output layer; g is computed from it.
        pointed: `[B, T, V]`, the attention to each token, as `pointed` returns it. With hard attention all three have
            one more axis, of source positions, each of which points at itself.

    Returns:
        log-probabilities `[B, T, V]`, which are logits too: their softmax is the probabilities.
    """

    _LEAST = 1e-12  # added to probabilities: a token that can neither be copied nor generated must keep a gradient

    def __init__(self, vocabulary_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.share = keras.layers.Dense(1, "sigmoid", dtype=self.dtype_policy)  # g
        self.target_ids: Any = None  # int32 [Vs], PADDING if the target has no such token

    def take_tokenizers(self, source_tokenizer: Tokenizer, target_tokenizer: Tokenizer) -> None:
        """Find the target id of each source id."""
        self.target_ids = copied_ids(source_tokenizer, target_tokenizer)

    def copies(self, source: tf.Tensor) -> tf.Tensor:
        """The target tokens that source ids `[B, S]` can be copied as: one-hot `[B, S, V]`, zeros if there is none."""
        if self.target_ids is None:
            raise OptionError("copy=True: call take_tokenizers first, as Seq2Seq does")
        return one_hot(tf.gather(self.target_ids, source), self.vocabulary_size)

    def pointed(self, weights: tf.Tensor, copies: tf.Tensor, encoded: Encoded) -> tf.Tensor:
        """The attention to each target token, `[B, T, V]`.

        Args:
            weights: the attention to each source position, `[B, T, S]`.
            copies: `[b, S, V]`, as `copies` returned it; b is B, or B / K in beam search.
            encoded: the `Encoded` source.
        """
        # Under mixed precision the copies may be in half precision.
        weights, copies = tf.cast(weights, self.dtype), tf.cast(copies, self.dtype)
        return rows_by_hypothesis(tf.matmul(rows_by_source(weights, encoded), copies), weights)

    def call(self, logits: tf.Tensor, output: tf.Tensor, pointed: tf.Tensor) -> tf.Tensor:
        copied = (1 - self.share(output)) * pointed
        rest = 1 - tf.reduce_sum(copied, axis=-1, keepdims=True)  # rounded, it can be less than 0
        generated = tf.maximum(rest, 0.0) * tf.nn.softmax(logits)
        return tf.math.log(copied + generated + self._LEAST)

    def get_config(self) -> dict:
        return {**super().get_config(), "vocabulary_size": self.vocabulary_size}


def copied_ids(source_tokenizer: Tokenizer, target_tokenizer: Tokenizer) -> np.ndarray:
    """The target id that each source id is copied as, see `Pointer`: int32 `[Vs]`, PADDING if it cannot be copied."""
    ids = {token: number for number, token in enumerate(target_tokenizer.vocabulary) if number > END}
    found = np.array([ids.get(token, PADDING) for token in source_tokenizer.vocabulary], np.int32)
    found[: END + 1] = PADDING
    found[list(source_tokenizer.unknown_ids)] = ids.get(REPLACEMENT, PADDING)
    return np.where(source_tokenizer.in_order, found, PADDING)


def rows_by_source(rows: tf.Tensor, encoded: Encoded) -> tf.Tensor:
    """Group the rows that belong to one source: `[B x K, T, ...]` becomes `[B, K x T, ...]`.

    In beam search, a decoder is called with K hypotheses, in successive rows, for each row of `encoded`. A layer that
    attends to the memory treats them as K times as many steps of one row, and applies `rows_by_hypothesis` to the
    result, so that the memory is not repeated K times. Everywhere else K is 1 and nothing changes.
    """
    rows_of_all, length, *rest = _sizes(rows)
    sources = tf.shape(encoded.memory)[0]
    return tf.reshape(rows, [sources, rows_of_all // tf.maximum(sources, 1) * length, *rest])


def rows_by_hypothesis(grouped: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Undo `rows_by_source`: `[B, K x T, ...]` becomes `[B x K, T, ...]`, whose first two sizes are those of `rows`."""
    return tf.reshape(grouped, [*tf.unstack(tf.shape(rows)[:2]), *_sizes(grouped)[2:]])


def _sizes(tensor):
    """The size of each axis, a number if it is known in a graph."""
    shape = tf.shape(tensor)
    return [shape[axis] if size is None else size for axis, size in enumerate(tensor.shape)]
