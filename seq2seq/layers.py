"""The two halves of the model: `Encoder` reads the source, `Decoder` predicts the target, and `Attention` between them.

Shapes: B rows in a batch, S source length, T target length, V vocabulary size, D units, E size of an embedding.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from pipelines import OptionError, choose
from pipelines.tokens import END, PADDING, Tokenizer, one_hot
from seq2seq.recurrence import Recurrent, Rows, look_up

SOFT_ATTENTIONS, HARD_ATTENTIONS = ("dot", "general", "additive"), ("hard", "monotonic")
ATTENTIONS = (None, *SOFT_ATTENTIONS, *HARD_ATTENTIONS)
_FEW_TOKENS = 500  # with so many a batch has more places than tokens
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


class Prepared(NamedTuple):
    """What `Decoder.start` puts into `Encoded.extra`: all that would be the same in each call."""

    keys: tf.Tensor | None  # [B, S, D] the memory as queries are compared with it; None without attention
    product: tf.Tensor | None  # [V, G] as in `Rows`, of all target tokens where they are few
    copies: tf.Tensor | None  # [B, S, V] the target token of each source token, as `Pointer.copies` returns it
    memory: tf.Tensor | None = None  # [B, S, D] what the memory adds to a decoder's output, for hard attention


@keras.saving.register_keras_serializable("seq2seq")
class Encoder(keras.layers.Layer):
    """Reads the source with a recurrent network.

    Args:
        vocabulary_size: number of source ids, Vs.
        units: size of the memory and of the state, D.
        cell: "lstm" (Hochreiter & Schmidhuber 1997) or "gru" (Cho et al. 2014, arxiv.org/abs/1406.1078).
        layers: how many recurrent layers stand on each other.
        bidirectional: whether half of the units read the source backwards (Schuster & Paliwal 1997). The two halves of
            the state are joined, so the decoder does not know the difference.
        embedding: size of the vectors that stand for tokens, E; None to give one-hot rows straight to the first layer.
        dropout: share of numbers left out, in training, of the embedding and of every layer's output. Never of the
            recurrent state, which the fused GPU kernels could not do (Zaremba et al. 2014, arxiv.org/abs/1409.2329).

    Call arguments:
        source: one-hot `[B, S, Vs]` or ids `[B, S]`, padded on the right.

    Returns:
        `Encoded`; its state is the one after each row's last token.

    Raises:
        OptionError: for an unknown cell, or an odd number of units to be halved.
    """

    def __init__(
        self,
        vocabulary_size: int,
        units: int = 256,
        cell: str = "lstm",
        layers: int = 1,
        bidirectional: bool = False,
        embedding: int | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if bidirectional and units % 2:
            raise OptionError(f"units={units}: two directions need an even number of them")
        self.options = {
            "vocabulary_size": vocabulary_size,
            "units": units,
            "cell": cell,
            "layers": layers,
            "bidirectional": bidirectional,
            "embedding": embedding,
            "dropout": dropout,
        }
        dtype = self.dtype_policy
        self.vectors = TokenVectors(vocabulary_size, embedding, dropout, dtype=dtype)
        self.recurrent = _recurrent_layers(cell, layers, self.vectors.size, units, bidirectional, dtype)
        self.drop = keras.layers.Dropout(dropout, dtype=dtype)
        self.build((None, None))

    def build(self, source_shape: tuple) -> None:
        """Makes no weights, as none depends on a shape. For `summary`, which shows the memory's by it."""

    def compute_output_shape(self, source_shape: tuple) -> tuple:
        return *source_shape[:2], self.options["units"]

    def call(self, source: tf.Tensor, training: bool = False) -> Encoded:
        mask = source_mask(source)
        lengths = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
        output = self.vectors.rows(source, training=training)
        state = []
        for layer in self.recurrent:
            output, last = layer(output, lengths=lengths)
            output = self.drop(output, training=training)
            state.append(last)
        return Encoded(output, mask, state)

    def get_config(self) -> dict:
        return {**super().get_config(), **self.options}


@keras.saving.register_keras_serializable("seq2seq")
class Decoder(keras.layers.Layer):
    """Predicts each next token of the target with a recurrent network that starts from the encoder's state.

    The same call trains and translates. Training gives it the whole target at once, translation one token and the state
    that the call before returned:

    ```python
    encoded, state = decoder.start(encoder(source))
    logits, _ = decoder(target, encoded, state)                 # [B, T, Vt], or
    logits, state = decoder(target[:, :1], encoded, state)      # [B, 1, Vt], and so on
    ```

    Args:
        vocabulary_size: number of target ids, Vt.
        units, cell, layers, embedding, dropout: as in `Encoder`, and with the encoder's values: the state is handed on.
        attention: how each step looks back at the whole source, as in `Attention` or `HardAttention`; None where the
            encoder's last state is all the decoder knows of it.
        input_feeding: whether each step is also given what attention found at the one before (Luong et al. 2015,
            section 3.3). Training then goes step by step, which is several times slower.
        tied: whether the embedding is also the output's matrix (Press & Wolf 2017, arxiv.org/abs/1608.05859), after a
            projection to its size.
        copy: whether the decoder can also copy a source token to which attention points, as in `Pointer`. It then needs
            `take_tokenizers`, and returns log-probabilities as logits.

    Call arguments:
        target: the tokens so far, one-hot `[B, T, Vt]` or ids `[B, T]`, padded on the right.
        encoded: the `Encoded` source, as `start` returned it.
        state: what the call for the tokens before returned, or `start`.
        return_attention: whether to return the attention weights too.

    Returns:
        logits `[B, T, Vt]`, the score of every token as the next one after each position, and the new state; then, on
        request, weights `[B, T, S]`, which sum to 1 over S. Positions of padding hold numbers without meaning, which
        the loss leaves out. In beam search B is K times the number of sources (see `rows_by_source`).

    Raises:
        OptionError: for an unknown cell or attention, input feeding without soft attention, copying without attention,
            or tying without embedding.
    """

    def __init__(
        self,
        vocabulary_size: int,
        units: int = 256,
        cell: str = "lstm",
        layers: int = 1,
        embedding: int | None = None,
        attention: str | None = None,
        input_feeding: bool = False,
        tied: bool = False,
        copy: bool = False,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # log-probabilities in the state stay float32
        choose("attention", attention, ATTENTIONS)
        if input_feeding and not attention:
            raise OptionError("input_feeding=True: there is nothing to feed without attention")
        self.hard = attention in HARD_ATTENTIONS
        if input_feeding and self.hard:
            raise OptionError(f"input_feeding=True: there is nothing to feed with attention={attention!r}")
        if copy and not attention:
            raise OptionError("copy=True: without attention, nothing points at the source")
        if tied and not embedding:
            raise OptionError("tied=True: there is nothing to tie the output to without an embedding")
        self.options = {
            "vocabulary_size": vocabulary_size,
            "units": units,
            "cell": cell,
            "layers": layers,
            "embedding": embedding,
            "attention": attention,
            "input_feeding": input_feeding,
            "tied": tied,
            "copy": copy,
            "dropout": dropout,
        }
        dtype = self.dtype_policy
        self.vectors = TokenVectors(vocabulary_size, embedding, dropout, dtype=dtype)
        self.units = units
        self.input_feeding = input_feeding
        size = self.vectors.size + (units if input_feeding else 0)
        self.recurrent = _recurrent_layers(cell, layers, size, units, False, dtype)
        self.drop = keras.layers.Dropout(dropout, dtype=dtype)
        kind = HardAttention if self.hard else Attention
        self.attention: Any = kind(units, attention, dtype=dtype) if attention else None
        # Makes what the output layer reads: h~ of Luong et al., equation 5.
        self.combine: Any = keras.layers.Dense(units, "tanh", use_bias=False, dtype=dtype) if attention else None
        if self.combine:
            self.combine.build((None, None, 2 * units))
        # In the precision of the weights: under mixed precision too, a softmax over many tokens wants all of float32.
        self.output_layer = (
            TiedOutput(self.vectors, units) if tied else keras.layers.Dense(vocabulary_size, dtype=self.variable_dtype)
        )
        self.pointer = Pointer(vocabulary_size, dtype=self.variable_dtype) if copy else None
        self.build((None, None))

    def take_tokenizers(self, source_tokenizer: Tokenizer, target_tokenizer: Tokenizer) -> None:
        """Learns which source tokens the target has too. `Seq2Seq` calls this when it is made and when it is loaded."""
        if self.pointer:
            self.pointer.take_tokenizers(source_tokenizer, target_tokenizer)

    def build(self, target_shape: tuple) -> None:
        """Makes no weights; those of its layers come with the first call. For `summary`, which shows the logits'."""

    def compute_output_shape(self, target_shape: tuple) -> tuple:
        return *target_shape[:2], self.options["vocabulary_size"]

    def start(self, encoded: Encoded) -> tuple[Encoded, list]:
        """What each of the calls for some sources is given, and the first state: `encoded` with all that would be the
        same in each call.

        Args:
            encoded: what the encoder returned.
        """
        few = self.vectors.few and not self.input_feeding
        prepared = Prepared(
            keys=self.attention.project(encoded.memory) if self.attention else None,
            product=self.recurrent[0].multiply(self.vectors.matrix_of_rows()) if few else None,
            copies=self.pointer.copies(encoded.source) if self.pointer else None,
            memory=tf.tensordot(encoded.memory, self._halves_of_combine()[0], 1) if self.hard else None,
        )
        state = list(encoded.state)
        if self.hard:
            state.append(self.attention.start(encoded, self.options["vocabulary_size"]))
        if self.input_feeding:
            nothing = tf.zeros([tf.shape(encoded.memory)[0], self.units], self.compute_dtype)
            state.append([nothing])
        return encoded._replace(extra=prepared), state

    def call(
        self,
        target: tf.Tensor,
        encoded: Encoded,
        state: list,
        training: bool = False,
        return_attention: bool = False,
    ) -> tuple[tf.Tensor, list] | tuple[tf.Tensor, list, tf.Tensor]:
        if self.input_feeding:
            output, after, weights = self._feed(self.vectors(target, training=training), encoded, state, training)
            logits = self._say(output, weights, encoded)
        else:
            vectors = self.vectors.rows(target, training=training)
            if isinstance(vectors, Rows):
                vectors = vectors._replace(product=encoded.extra.product)
            *before, place = state if self.hard else [*state, None]
            output, after = self._recur(vectors, before, training)
            if self.hard:
                logits, weights, place = self._mix(output, token_ids(target), encoded, place)
                after.append(place)
            else:
                output, weights = self._look_back(output, encoded)
                logits = self._say(output, weights, encoded)
        if not return_attention:
            return logits, after
        if weights is None:
            raise OptionError("attention=None: this decoder has no attention weights to return")
        return logits, after, weights

    def _recur(self, output, state, training):
        """Runs the recurrent layers over `[B, T, E]` or `Rows`; returns their output `[B, T, D]` and the new state."""
        after = []
        for layer, before in zip(self.recurrent, state, strict=True):
            output, last = layer(output, state=before)
            output = self.drop(output, training=training)
            after.append(last)
        return output, after

    def _look_back(self, output, encoded):
        """Mixes what attention finds for each step `[B, T, D]` into it: `[B, T, D]`, and the weights."""
        weights = None
        if self.attention:
            context, weights = self.attention(output, encoded.extra.keys, encoded)
            output = tf.concat([context, output], axis=-1)
        return self.combine(output) if self.combine else output, weights

    def _feed(self, vectors, encoded, state, training):
        """Both of these, a step at a time, each step's result `[B, D]` being part of the next one's input."""

        def step(vector, state):
            *state, [fed] = state
            output, state = self._recur(tf.concat([vector, fed], axis=-1)[:, None], state, training)
            output, weights = self._look_back(output, encoded)
            return output[:, 0], weights[:, 0], [*state, [output[:, 0]]]

        if vectors.shape[1] == 1:
            output, weights, state = step(vectors[:, 0], state)
            return output[:, None], state, weights[:, None]

        def extend(position, state, outputs, weights):
            output, found, state = step(vectors[:, position], state)
            return position + 1, state, outputs.write(position, output), weights.write(position, found)

        length = tf.shape(vectors)[1]
        sizes = (self.compute_dtype, self.units), (tf.float32, None)
        arrays = [tf.TensorArray(dtype, size=length, element_shape=[None, size]) for dtype, size in sizes]
        _, state, *arrays = tf.while_loop(lambda position, *_: position < length, extend, (0, state, *arrays))
        output, weights = (tf.transpose(array.stack(), [1, 0, 2]) for array in arrays)
        return output, state, weights

    def _say(self, output, weights, encoded):
        """logits `[B, T, V]` of what `_look_back` returned."""
        logits = self.output_layer(output)
        if self.pointer:
            pointed = self.pointer.pointed(weights, encoded.extra.copies, encoded)
            logits = self.pointer(logits, output, pointed)
        return logits

    def _mix(self, output, ids, encoded, place):
        """Hard attention: `_look_back` and `_say` for each source position by itself, and the mean of what they say.

        Returns log-probabilities `[B, T, V]`, the weights, and what `HardAttention.align` needs for the next steps.
        """
        prepared = encoded.extra
        mixed = rows_by_source(tf.tensordot(output, self._halves_of_combine()[1], 1), encoded)
        mixed = tf.tanh(mixed[:, :, None] + prepared.memory[:, None])  # `combine` of all pairs of positions
        logits = self.output_layer(mixed)
        said = self.pointer(logits, mixed, prepared.copies[:, None]) if self.pointer else tf.nn.log_softmax(logits)
        said = tf.reshape(said, [*tf.unstack(tf.shape(ids)), tf.shape(said)[2], said.shape[3]])  # [B, T, S, V]
        weights, place = self.attention.align(output, ids, said, encoded, place)
        return tf.reduce_logsumexp(weights[..., None] + said, axis=2), tf.exp(weights), place

    def _halves_of_combine(self):
        """The weights of `combine` for what is found in the memory, and for the decoder's own output."""
        return tf.split(tf.cast(self.combine.kernel, self.compute_dtype), 2)

    def get_config(self) -> dict:
        return {**super().get_config(), **self.options}


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


def holds_token(tokens: tf.Tensor) -> tf.Tensor:
    """Which positions of ids `[B, T]`, or of their one-hot form `[B, T, V]`, are not padding: bool `[B, T]`."""
    return tokens != PADDING if tokens.dtype.is_integer else tf.reduce_any(tokens != 0, axis=-1)


def token_ids(tokens: tf.Tensor) -> tf.Tensor:
    """Ids `[B, T]` of themselves, or of their one-hot form `[B, T, V]`, in which a row of padding is all zeros."""
    return tokens if tokens.dtype.is_integer else tf.argmax(tokens, axis=-1, output_type=tf.int32)


def source_mask(source: tf.Tensor) -> tf.Tensor:
    """Which positions of a source, ids `[B, S]` or one-hot `[B, S, V]`, an encoder reads: bool `[B, S]`."""
    filled = holds_token(source)
    # An empty source counts as one step of nothing: cuDNN refuses rows that are masked from end to end.
    return tf.concat([tf.ones_like(filled[:, :1]), filled[:, 1:]], axis=1)


@keras.saving.register_keras_serializable("seq2seq")
class TokenVectors(keras.layers.Layer):
    """Tokens as vectors, given as ids `[B, T]` or as one-hot rows `[B, T, V]`; it computes the same from either.

    Args:
        vocabulary_size: V.
        embedding: size of the vectors, E; None for the one-hot rows themselves.
        dropout: share of the embedding's numbers left out in training.

    Returns:
        `[B, T, E]`, or `[B, T, V]` without an embedding.
    """

    def __init__(self, vocabulary_size: int, embedding: int | None = None, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.embedding = embedding
        self.size = embedding or vocabulary_size  # of a vector
        self.drop = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        if embedding:
            initializer = keras.initializers.RandomNormal(stddev=embedding**-0.5)
            self.matrix = self.add_weight(shape=(vocabulary_size, embedding), initializer=initializer, name="embedding")
        self.built = True  # which Keras could not tell if only `rows` were ever called

    def call(self, tokens: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not self.embedding:
            is_ids = tokens.dtype.is_integer
            return one_hot(tokens, self.vocabulary_size, self.compute_dtype) if is_ids else tokens
        # Rows of length 1, times the root of E (Vaswani et al. 2017, section 3.4): large where a cell reads them, small
        # where the output is tied to them, and quick to learn.
        matrix, scale = tf.cast(self.matrix, self.compute_dtype), self.embedding**0.5
        if training:
            # So the gradient is dense. Of a sparse one, Keras's Adam squares the parts of a token one by one, which
            # makes steps too large for frequent tokens.
            vectors = look_up(matrix * scale, token_ids(tokens))
        else:
            vectors = tf.gather(matrix, token_ids(tokens)) * scale
        return self.drop(vectors, training=training)

    @property
    def few(self) -> bool:
        """Whether a product of all tokens is cheap enough to look tokens up in it."""
        return not self.embedding or self.vocabulary_size <= _FEW_TOKENS

    def rows(self, tokens: tf.Tensor, training: bool = False) -> tf.Tensor | Rows:
        """The same for a recurrent layer to read, which looks up less where there are fewer tokens than places."""
        drops = training and self.embedding and self.drop.rate
        if not self.few or drops:
            return self(tokens, training=training)
        return Rows(token_ids(tokens), self.matrix_of_rows())

    def matrix_of_rows(self) -> tf.Tensor | None:
        """All vectors `[V, E]`, without dropout; None for one-hot rows."""
        return tf.cast(self.matrix, self.compute_dtype) * self.embedding**0.5 if self.embedding else None

    def get_config(self) -> dict:
        config = {"vocabulary_size": self.vocabulary_size, "embedding": self.embedding, "dropout": self.drop.rate}
        return {**super().get_config(), **config}


class TiedOutput(keras.layers.Layer):
    """logits `[..., V]` of `[..., D]`, by likeness to the embedding of each token."""

    def __init__(self, vectors: TokenVectors, units: int) -> None:
        super().__init__(dtype=vectors.variable_dtype, name="output")
        self.vectors = vectors
        self.project = keras.layers.Dense(vectors.size, use_bias=False, dtype=self.dtype_policy)
        self.project.build((None, None, units))
        self.bias = self.add_weight(shape=(vectors.vocabulary_size,), initializer="zeros", name="bias")

    def call(self, output: tf.Tensor) -> tf.Tensor:
        matrix = tf.convert_to_tensor(self.vectors.matrix)
        return tf.tensordot(self.project(output), matrix, [[-1], [1]]) + self.bias


def _recurrent_layers(cell, layers, size, units, bidirectional, dtype):
    """So many recurrent layers, the first one for inputs `[B, T, size]`, each of the others for the one before it."""
    sizes = [size, *[units] * (layers - 1)]
    return [Recurrent(cell, size, units, bidirectional, dtype=dtype) for size in sizes]
