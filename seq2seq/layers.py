"""The recurrent layers: `Encoder` reads the source, `Decoder` predicts the target.

Shapes: B rows in a batch, S source length, T target length, V vocabulary size, D units, E size of an embedding.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from pipelines import OptionError, check_number, choose
from pipelines.tokens import PADDING, Tokenizer, one_hot
from seq2seq.attention import (
    HARD_ATTENTIONS,
    SOFT_ATTENTIONS,
    Attention,
    Encoded,
    HardAttention,
    Pointer,
    rows_by_hypothesis,
    rows_by_source,
)
from seq2seq.recurrence import Recurrent, Rows

ATTENTIONS = (None, *SOFT_ATTENTIONS, *HARD_ATTENTIONS)
_FEW_TOKENS = 500  # up to this size of a vocabulary, a batch usually has more positions than there are tokens


class BaseLayer(keras.layers.Layer):
    """The base class of encoders and, as `BaseDecoder`, of decoders."""

    options: dict[str, Any]  # the arguments of the constructor, of `checked_arguments(locals())`

    def build(self, shape: tuple) -> None:
        """Do nothing, because no weight depends on the input's shape. Keras's `summary` requires it."""

    def compute_output_shape(self, shape: tuple) -> tuple:
        return *shape[:2], self.options["units"]

    def get_config(self) -> dict:
        return {**super().get_config(), **self.options}


class BaseDecoder(BaseLayer):
    """The common parts of decoders: the output layer, tied to the embedding or not, and the pointer for copying."""

    vectors: "TokenVectors"

    def make_output(self) -> None:
        """Make the last layers, after the options and `vectors` have been set."""
        # In the precision of the weights: a softmax over many tokens needs float32, also under mixed precision.
        size, dtype = self.options["vocabulary_size"], self.variable_dtype
        if self.options["tied"]:
            self.output_layer = TiedOutput(self.vectors, self.options["units"])
        else:
            self.output_layer = keras.layers.Dense(size, dtype=dtype)
        self.pointer = Pointer(size, dtype=dtype) if self.options["copy"] else None
        self.build((None, None))

    def take_tokenizers(self, source_tokenizer: Tokenizer, target_tokenizer: Tokenizer) -> None:
        """Find the source tokens that the target vocabulary also has; `Seq2Seq` calls this when it is made or
        loaded."""
        if self.pointer:
            self.pointer.take_tokenizers(source_tokenizer, target_tokenizer)

    def compute_output_shape(self, shape: tuple) -> tuple:
        return *shape[:2], self.options["vocabulary_size"]

    def check_started(self, encoded: Encoded) -> None:
        """Refuse what the encoder returned, if `start` has not prepared it."""
        if encoded.extra is None:
            raise OptionError("encoded: not prepared; call `encoded, state = decoder.start(encoder(source))` first")

    def logits(self, output: tf.Tensor, weights: Any, copies: Any, encoded: Encoded) -> tf.Tensor:
        """Scores `[B, T, V]` of tokens, from the output `[B, T, D]` and the attention weights at each step."""
        logits = self.output_layer(output)
        return self.pointer(logits, output, self.pointer.pointed(weights, copies, encoded)) if self.pointer else logits


def checked_arguments(scope: dict[str, Any]) -> dict[str, Any]:
    """The checked arguments of a constructor by name, from its `locals()`, as `get_config` returns them.

    Raises:
        OptionError: for a size that is not a whole number of at least 1.
    """
    options = {name: value for name, value in scope.items() if name not in ("self", "kwargs", "__class__")}
    for name in ("vocabulary_size", "units", "layers", "heads", "embedding", "feed_forward"):
        if name in options:
            check_number(name, options[name], least=1, optional=name in ("embedding", "feed_forward"))
    return options


class Prepared(NamedTuple):
    """The content of `Encoded.extra` after `Decoder.start`: everything that is the same in each call."""

    keys: tf.Tensor | None  # [B, S, D] of `Attention.project`; None without attention
    product: tf.Tensor | None  # [V, G] as in `Rows`, if there are few target tokens
    copies: tf.Tensor | None  # [B, S, V] of `Pointer.copies`
    projected_memory: tf.Tensor | None = None  # [B, S, D] by its half of `combine`, for hard attention


@keras.saving.register_keras_serializable("seq2seq")
class Encoder(BaseLayer):
    """A recurrent network that reads the source.

    Args:
        vocabulary_size: number of source ids, Vs.
        units: size of the memory and of the state, D.
        cell: "lstm" (Hochreiter & Schmidhuber 1997) or "gru" (Cho et al. 2014, arxiv.org/abs/1406.1078).
        layers: number of recurrent layers.
        bidirectional: whether half of the units read the source backwards (Schuster & Paliwal 1997). The two halves of
            the state are concatenated, so the decoder needs no change.
        embedding: size of the token vectors, E; None to pass one-hot rows directly to the first layer.
        dropout: rate, in training, for the embedding and for every layer's output. The recurrent state has no dropout
            (Zaremba et al. 2014, arxiv.org/abs/1409.2329), which the fused GPU kernels do not support.

    Call arguments:
        source: ids `[B, S]`, padded on the right.

    Returns:
        `Encoded`; its state is the one after each row's last token.

    Raises:
        OptionError: for an unknown cell, a size below 1, or an odd number of units in two directions.
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
        self.options = checked_arguments(locals())
        if bidirectional and units % 2:
            raise OptionError(f"units={units}: two directions need an even number of units")
        dtype = self.dtype_policy
        self.vectors = TokenVectors(vocabulary_size, embedding, dropout, dtype=dtype)
        self.recurrent = _recurrent_layers(cell, layers, self.vectors.size, units, bidirectional, dtype)
        self.drop = keras.layers.Dropout(dropout, dtype=dtype)
        self.build((None, None))

    def call(self, source: tf.Tensor, training: bool = False) -> Encoded:
        with tf.device("CPU"):  # where cuDNN reads the lengths
            mask = source_mask(source)
            lengths = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
        output = self.vectors.rows(source, training=training)
        state = []
        for layer in self.recurrent:
            output, last = layer(output, lengths=lengths)
            output = self.drop(output, training=training)
            state.append(last)
        return Encoded(output, mask, state)


@keras.saving.register_keras_serializable("seq2seq")
class Decoder(BaseDecoder):
    """A recurrent network that starts from the encoder's state and predicts each next token of the target.

    The same call is used for training and translation. Training passes the whole target at once, translation passes one
    token and the state that the previous call returned:

    ```python
    encoded, state = decoder.start(encoder(source))
    logits, _ = decoder(target, encoded, state)                 # [B, T, Vt], or
    logits, state = decoder(target[:, :1], encoded, state)      # [B, 1, Vt], and so on
    ```

    Args:
        vocabulary_size: number of target ids, Vt.
        units, cell, layers, embedding, dropout: as in `Encoder`; units, cell and layers must have the same values as
            there, if the decoder starts from the encoder's state.
        attention: how each step attends to the source: the `kind` of `Attention` or `HardAttention`; None if the
            decoder gets only the encoder's last state.
        input_feeding: whether the attention's result is part of the next step's input (Luong et al. 2015, section 3.3).
            Training then runs step by step, which is several times slower.
        tied: whether the embedding is also the output's matrix (Press & Wolf 2017, arxiv.org/abs/1608.05859). If its
            size is not D, outputs are projected first.
        copy: whether the decoder can also copy the source token that attention points at, as in `Pointer`. It then
            needs `take_tokenizers`, and returns log-probabilities as logits.

    Call arguments:
        target: ids of the tokens so far `[B, T]`, padded on the right.
        encoded: the `Encoded` source, as `start` returned it.
        state: the state that `start`, or the call for the previous tokens, returned.
        return_attention: whether to return the attention weights too.

    Returns:
        logits `[B, T, Vt]`, the score of every token as the next one after each position, and the new state; then, on
        request, weights `[B, T, S]`, which sum to 1 over S. At padding, the numbers have no meaning, and the loss
        ignores them. In beam search B is K times the number of sources (see `rows_by_source`).

    Raises:
        OptionError: for an unknown cell or attention, a size below 1, input feeding without soft attention, copying
            without attention, or tying without embedding; from `start`, if the encoder has other units, cell or layers.
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
        self.options = checked_arguments(locals())
        choose("attention", attention, ATTENTIONS)
        if input_feeding and attention not in SOFT_ATTENTIONS:
            raise OptionError(f"input_feeding=True: there is nothing to feed with attention={attention!r}")
        if copy and not attention:
            raise OptionError("copy=True: without attention, nothing points at the source")
        if tied and not embedding:
            raise OptionError("tied=True: there is nothing to tie the output to without an embedding")
        dtype = self.dtype_policy
        self.vectors = TokenVectors(vocabulary_size, embedding, dropout, dtype=dtype)
        self.units, self.input_feeding, self.hard = units, input_feeding, attention in HARD_ATTENTIONS
        size = self.vectors.size + (units if input_feeding else 0)
        self.recurrent = _recurrent_layers(cell, layers, size, units, False, dtype)
        self.drop = keras.layers.Dropout(dropout, dtype=dtype)
        self.attention: Any = self.make_attention(attention) if attention else None
        # Its result is the input of the output layer: h~ of Luong et al., equation 5.
        self.combine: Any = keras.layers.Dense(units, "tanh", use_bias=False, dtype=dtype) if attention else None
        if self.combine:
            self.combine.build((None, None, 2 * units))
        self.make_output()

    def make_attention(self, kind: str) -> Attention:
        """Make the attention of this kind. A derived class may override it to return one of a class of its own."""
        return (HardAttention if self.hard else Attention)(self.units, kind, dtype=self.dtype_policy)

    def start(self, encoded: Encoded) -> tuple[Encoded, list]:
        """Return what every call for these sources needs, and the first state: `encoded` with `Prepared` as `extra`.

        Args:
            encoded: the encoder's result.
        """
        expected = [[self.units] * layer.cell.states for layer in self.recurrent]
        first = encoded.state
        if first is None:
            mean = encoded.mean()
            if (size := self._size(mean)) != self.units:
                raise OptionError(
                    f"units={self.units}: this decoder starts from the mean of the memory, which has the size {size}; "
                    "project the memory to this size, or let the encoder return a state"
                )
            first = [[mean] * len(of_layer) for of_layer in expected]
        found = [[self._size(part) for part in tf.nest.flatten(layer)] for layer in first]
        if found != expected:
            raise OptionError(
                f"units, cell, layers: the encoder's state has the sizes {found}, and this decoder needs {expected}; "
                "give both the same options"
            )
        few = self.vectors.few and not self.input_feeding
        prepared = Prepared(
            keys=self.attention.project(encoded.memory) if self.attention else None,
            product=self.recurrent[0].multiply(self.vectors.matrix_of_rows()) if few else None,
            copies=self.pointer.copies(encoded.source) if self.pointer else None,
            projected_memory=tf.tensordot(encoded.memory, self._halves_of_combine()[0], 1) if self.hard else None,
        )
        state = list(first)
        if self.hard:
            state.append(self.attention.start(encoded, self.options["vocabulary_size"]))
        if self.input_feeding:
            state.append([tf.zeros([tf.shape(encoded.memory)[0], self.units], self.compute_dtype)])
        return encoded._replace(extra=prepared), state

    def _size(self, part):
        """The size of a part of the encoder's state: 0 if it is a single number, that of this decoder if it is
        unknown."""
        size = part.shape[-1] if len(part.shape) else 0
        return self.units if size is None else size

    def call(
        self,
        target: tf.Tensor,
        encoded: Encoded,
        state: list,
        training: bool = False,
        return_attention: bool = False,
    ) -> tuple[tf.Tensor, list] | tuple[tf.Tensor, list, tf.Tensor]:
        self.check_started(encoded)
        if self.input_feeding:
            vectors = self.vectors(target, training=training)
            output, after, weights = self._step_by_step(vectors, encoded, state, training)
            logits = self.logits(output, weights, encoded.extra.copies, encoded)
        else:
            vectors = self.vectors.rows(target, training=training)
            if isinstance(vectors, Rows):
                vectors = vectors._replace(product=encoded.extra.product)
            if self.hard:
                *state, alignment = state
            output, after = self._recur(vectors, state, training)
            if self.hard:
                logits, weights, alignment = self._attend_hard(output, target, encoded, alignment)
                after.append(alignment)
            else:
                output, weights = self._attend(output, encoded)
                logits = self.logits(output, weights, encoded.extra.copies, encoded)
        if not return_attention:
            return logits, after
        if weights is None:
            raise OptionError("attention=None: this decoder has no attention weights to return")
        return logits, after, weights

    def _recur(self, output, state, training):
        """Run the recurrent layers over `[B, T, E]` or `Rows`; return their output `[B, T, D]` and the new state."""
        after = []
        for layer, before in zip(self.recurrent, state, strict=True):
            output, last = layer(output, state=before)
            output = self.drop(output, training=training)
            after.append(last)
        return output, after

    def _attend(self, output, encoded):
        """Combine each step's output `[B, T, D]` with its context: `[B, T, D]`, and the attention weights."""
        if not self.attention:
            return output, None
        context, weights = self.attention(output, encoded.extra.keys, encoded)
        return self.combine(tf.concat([context, output], axis=-1)), weights

    def _step_by_step(self, vectors, encoded, state, training):
        """`_recur` and `_attend` a step at a time, each step's result `[B, D]` being part of the next one's input."""

        def step(vector, state):
            *state, [fed] = state
            output, state = self._recur(tf.concat([vector, fed], axis=-1)[:, None], state, training)
            output, weights = self._attend(output, encoded)
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

    def _attend_hard(self, output, ids, encoded, alignment):
        """Predict each token from each source position separately, and average these probabilities.

        Return log-probabilities `[B, T, V]`, the weights, and the state of `HardAttention` for the next steps.
        """
        prepared = encoded.extra
        pairs = rows_by_source(tf.tensordot(output, self._halves_of_combine()[1], 1), encoded)
        pairs = tf.tanh(pairs[:, :, None] + prepared.projected_memory[:, None])  # `combine` of all pairs of positions
        logits = self.output_layer(pairs)
        tokens = self.pointer(logits, pairs, prepared.copies[:, None]) if self.pointer else tf.nn.log_softmax(logits)
        tokens = rows_by_hypothesis(tokens, ids)  # [B, T, S, V]
        positions, alignment = self.attention(output, ids, tokens, encoded, alignment)
        return tf.reduce_logsumexp(positions[..., None] + tokens, axis=2), tf.exp(positions), alignment

    def _halves_of_combine(self):
        """The weights of `combine` for what is found in the memory, and for the decoder's own output."""
        return tf.split(tf.cast(self.combine.kernel, self.compute_dtype), 2)


def holds_token(tokens: tf.Tensor) -> tf.Tensor:
    """Which positions of ids `[B, T]`, or of their one-hot form `[B, T, V]`, are not padding: bool `[B, T]`."""
    return token_ids(tokens) != PADDING


def row_lengths(tokens: tf.Tensor) -> tf.Tensor:
    """The number of tokens in each row of ids `[B, S]`, or of their one-hot form: int32 `[B]`."""
    return tf.reduce_sum(tf.cast(holds_token(tokens), tf.int32), axis=1)


def token_ids(tokens: tf.Tensor) -> tf.Tensor:
    """Ids int32 `[B, T]`, from ids or from their one-hot form `[B, T, V]`, in which padding is all zeros or token 0."""
    is_ids = tokens.dtype.is_integer
    return tf.cast(tokens, tf.int32) if is_ids else tf.argmax(tokens, axis=-1, output_type=tf.int32)


def source_mask(source: tf.Tensor) -> tf.Tensor:
    """Which positions of source ids `[B, S]` an encoder reads: bool `[B, S]`."""
    filled = holds_token(source)
    # An empty source counts as one step of padding: cuDNN refuses rows that are masked from end to end.
    return tf.concat([tf.ones_like(filled[:, :1]), filled[:, 1:]], axis=1)


@keras.saving.register_keras_serializable("seq2seq")
class TokenVectors(keras.layers.Layer):
    """Vectors of tokens, given as ids `[B, T]`.

    Args:
        vocabulary_size: V.
        embedding: size of the vectors, E; None for the one-hot rows themselves.
        dropout: rate for the vectors in training; one-hot rows have no dropout.

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
        self.built = True  # Keras could not tell if only `rows` were ever called

    def call(self, tokens: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not self.embedding:
            return one_hot(tokens, self.vocabulary_size, self.compute_dtype)
        # Rows of length 1, times the square root of E (Vaswani et al. 2017, section 3.4): large
        # enough as a cell's input, small enough as weights of the tied output, and quick to learn.
        matrix, scale = tf.cast(self.matrix, self.compute_dtype), self.embedding**0.5
        # The product in training makes the gradient dense. With a sparse one, Keras's Adam squares the contributions of
        # a token one by one, which makes steps too large for frequent tokens.
        vectors = tf.gather(matrix * scale, tokens) if training else tf.gather(matrix, tokens) * scale
        return self.drop(vectors, training=training)

    @property
    def few(self) -> bool:
        """Whether a product of all tokens is cheap enough to look tokens up in it."""
        return not self.embedding or self.vocabulary_size <= _FEW_TOKENS

    def rows(self, tokens: tf.Tensor, training: bool = False) -> tf.Tensor | Rows:
        """The vectors for a recurrent layer, as `Rows` if that saves computation."""
        drops = training and self.embedding and self.drop.rate
        if not self.few or drops:
            return self(tokens, training=training)
        return Rows(tokens, self.matrix_of_rows())

    def matrix_of_rows(self) -> tf.Tensor | None:
        """All vectors `[V, E]`, without dropout; None for one-hot rows."""
        return tf.cast(self.matrix, self.compute_dtype) * self.embedding**0.5 if self.embedding else None

    def get_config(self) -> dict:
        config = {"vocabulary_size": self.vocabulary_size, "embedding": self.embedding, "dropout": self.drop.rate}
        return {**super().get_config(), **config}


class TiedOutput(keras.layers.Layer):
    """Logits `[..., V]` of outputs `[..., D]`: the product with the embedding of each token, of size E.

    If D is not E, outputs are projected first.
    """

    def __init__(self, vectors: TokenVectors, units: int) -> None:
        super().__init__(dtype=vectors.variable_dtype, name="output")
        self.vectors = vectors
        self.project: Any = None
        if units != vectors.size:
            self.project = keras.layers.Dense(vectors.size, use_bias=False, dtype=self.dtype_policy)
            self.project.build((None, None, units))
        self.bias = self.add_weight(shape=(vectors.vocabulary_size,), initializer="zeros", name="bias")

    def call(self, output: tf.Tensor) -> tf.Tensor:
        matrix = tf.convert_to_tensor(self.vectors.matrix)
        output = self.project(output) if self.project else tf.cast(output, matrix.dtype)
        return tf.tensordot(output, matrix, [[-1], [1]]) + self.bias


def _recurrent_layers(cell, layers, size, units, bidirectional, dtype):
    """Stacked recurrent layers, the first one for inputs `[B, T, size]`."""
    sizes = [size, *[units] * (layers - 1)]
    return [Recurrent(cell, size, units, bidirectional, dtype=dtype) for size in sizes]
