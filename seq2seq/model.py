"""`Seq2Seq`: an encoder and a decoder as one Keras model, from teacher forcing to the decoding of ids.

Shapes: B rows, S and T tokens of a source and of a target, Vs and Vt tokens of a vocabulary. `Trainer` runs the steps
of training, `Translator` takes strings and returns strings.
"""

import functools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

import pipelines.tokenizers  # noqa: F401 (Keras loads only classes that are imported)
from pipelines import OptionError, accepted, check_number, choose, construct
from pipelines.tokens import END, PADDING, Tokenizer, check_tokenizers
from seq2seq.compilation import is_exporting, on_gpu, parts_of_batch, side_by_side
from seq2seq.contract import check_contract, check_savable, encode, serialized, start, take_tokenizers
from seq2seq.decoding import (
    STEPS_PER_CHECK,
    Constraints,
    Hypotheses,
    first_rows,
    gather_rows,
    masking_loop,
    padded_to_few_shapes,
    shrinking_loop,
)
from seq2seq.layers import BaseLayer, Decoder, Encoder, row_lengths, token_ids
from seq2seq.metrics import token_losses
from seq2seq.strategies import Strategy
from seq2seq.trainer import Trainer
from seq2seq.translation import Translator


@keras.saving.register_keras_serializable("seq2seq")
class Seq2Seq(Translator, Trainer):
    """An encoder-decoder (Sutskever et al. 2014, arxiv.org/abs/1409.3215), recurrent by default.

    ```python
    model = Seq2Seq(source_tokenizer, target_tokenizer, units=256, attention="general")
    model.compile(optimizer="adam")
    model.fit(batch_pairs(pairs, source_tokenizer, target_tokenizer), epochs=38)
    model.translate(["Good morning."])                  # a tensor of strings, one for each
    model.save("model.keras")
    ```

    Args:
        source_tokenizer, target_tokenizer: adapted tokenizers; they are saved inside the model.
        encoder, decoder: a layer, or a class to make one of with `options`. Default: `Encoder` and `Decoder`.
        label_smoothing: share of each label that the loss spreads evenly over all tokens (Szegedy et al. 2016).
        teacher_forcing: the probability, in training, that the decoder is given the correct token instead of its own
            prediction. A number, or a `keras.optimizers.schedules.LearningRateSchedule` of the optimizer's steps. Below
            1 this is scheduled sampling (Bengio et al. 2015, arxiv.org/abs/1506.03099).
        **options: arguments of encoder and decoder, such as `units`, `layers`, `cell`, `attention`, `copy`, `dropout`.
            Each is passed to the classes that have it. With the defaults, this is the model of the Keras tutorial.
            `seq2seq train` uses its presets instead.
        name, trainable, dtype: as in `keras.Model`. Logits and loss are always float32.

    Attributes:
        compiles_decoding: whether XLA compiles decoding, with constant shapes: `decoding.masking_loop`. The result is
            the same. Default: on a GPU, if the shapes of the decoder's state are constant; for a state that grows, it
            must stay False. On a CPU, True is faster for programs that repeatedly translate a few texts; XLA must be
            able to compile the encoder too.

    Raises:
        OptionError: for an option that neither class has, an encoder or decoder that breaks the contract, or weights of
            16 bits.
    """

    def __init__(
        self,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        *,
        encoder: keras.layers.Layer | type = Encoder,
        decoder: keras.layers.Layer | type = Decoder,
        label_smoothing: float = 0.0,
        teacher_forcing: float | keras.optimizers.schedules.LearningRateSchedule = 1.0,
        name: str | None = None,
        trainable: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name=name, trainable=trainable, dtype=dtype)
        self._check_precision()
        check_tokenizers(source_tokenizer, target_tokenizer)
        self.source_tokenizer = source_tokenizer
        self.target_tokenizer = target_tokenizer
        check_number("label_smoothing", label_smoothing, float, least=0, below=1)
        if not callable(teacher_forcing):
            check_number("teacher_forcing", teacher_forcing, float, least=0, most=1)
        self._made_for = SimpleNamespace(tokens=self._tokens())  # of a list itself, Keras would keep a copy
        self.label_smoothing = label_smoothing
        self.teacher_forcing = teacher_forcing
        taken = set().union(*(accepted(part) for part in (encoder, decoder) if isinstance(part, type)))
        for option in options:
            if not any(isinstance(part, type) for part in (encoder, decoder)):
                raise OptionError(f"option={option!r}: encoder and decoder are made already; give it to their classes")
            choose("option", option, sorted(taken))
        self.encoder = self._part("encoder", encoder, source_tokenizer, options)
        self.decoder = self._part("decoder", decoder, target_tokenizer, options)
        # The ratio of a target's length to its source's: number of pairs seen in training, sum and sum of squares.
        self.length_ratios = self.add_weight(
            shape=(3,), dtype="float64", initializer="zeros", trainable=False, autocast=False, name="length_ratios"
        )
        # The norm of the last batch's gradient, before clipping.
        self.gradient_norm = self.add_weight(
            shape=(), initializer="zeros", trainable=False, autocast=False, name="gradient_norm"
        )
        self.sampling_seed = keras.random.SeedGenerator()
        self._search_with = functools.lru_cache(maxsize=32)(self._compile_search)  # a graph for each strategy
        self.build()

    def _part(self, name, part, tokenizer, options):
        """A layer of a class, with the options that its constructor names; a layer is returned unchanged."""
        if not isinstance(part, type | keras.layers.Layer):
            raise OptionError(f"{name}={part!r}: expected a layer or a class, such as Transformer{name.capitalize()}")
        if not isinstance(part, type):
            if isinstance(part, BaseLayer) and (size := part.options["vocabulary_size"]) != tokenizer.vocabulary_size:
                kind, count = type(part).__name__, tokenizer.vocabulary_size
                raise OptionError(f"{name}={kind}: made for {size} tokens, but the vocabulary has {count}")
            return part
        dtype = self.dtype_policy.name  # as a name, since Keras writes a `get_config` for classes without one
        return construct(name, part, tokenizer.vocabulary_size, options=options, name=name, dtype=dtype)

    def build(self, *_: Any) -> None:
        """Make the weights with a tiny batch, which also checks the contract of encoder and decoder."""
        for part in ("source_tokenizer", "target_tokenizer", "encoder", "decoder"):
            check_savable(part, getattr(self, part))
        tokenizers = self.source_tokenizer, self.target_tokenizer
        for part in (self.encoder, self.decoder):
            take_tokenizers(part, *tokenizers)
        traits = check_contract(self.encoder, self.decoder, *tokenizers)
        self._in_parts = not traits.adds_losses  # Keras would add up the losses of all parts, even means
        # On an H100, decoding is then 8 times as fast for 256 rows of 30 steps, because the uncompiled loop waits for
        # the device several times in each step. On a CPU, `shrinking_loop` drops finished rows, which saves more unless
        # there are few rows, and no shape has to be compiled first, which takes seconds.
        self.compiles_decoding = traits.keeps_sizes and on_gpu()
        for part in (self.encoder, self.decoder):
            for weight in part.weights if not part.trainable else ():
                weight.trainable = False  # Keras made these weights after the layer was frozen
        self.built = True

    def _check_precision(self):
        if self.dtype_policy.variable_dtype not in ("float32", "float64"):
            half = self.dtype_policy.name
            raise OptionError(f"dtype={half!r}: 16-bit weights are too coarse for training; use 'mixed_{half}'")
        if keras.config.floatx() not in ("float32", "float64"):
            raise OptionError(
                f"floatx is {keras.config.floatx()!r}: 16 bits hold no large ids, so Keras would round labels; call "
                f"keras.config.set_floatx('float32') and use dtype='mixed_{keras.config.floatx()}'"
            )

    def call(
        self, inputs: tuple[tf.Tensor, tf.Tensor], training: bool = False, return_attention: bool = False
    ) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
        """Compute the logits of the next target token at every position.

        Args:
            inputs: (source `[B, S, Vs]`, target from START on `[B, T, Vt]`), one-hot; or ids `[B, S]` and `[B, T]`.
            training: whether dropout is active.
            return_attention: whether to return the decoder's attention weights too.

        Returns:
            logits `[B, T, Vt]`; with `return_attention` (logits, weights `[B, T, S]`).

        Raises:
            OptionError: for anything but a pair, and for the attention of a decoder without any.
        """
        if return_attention and not self.has_attention:
            raise OptionError(f"return_attention: this {type(self.decoder).__name__} has no attention")
        if not isinstance(inputs, tuple | list) or len(inputs) != 2:
            raise OptionError("call: expected (source, target so far); `translate` and `decode` need no target")
        parts = parts_of_batch() if self._in_parts else 1
        run = functools.partial(self._run, training=training, return_attention=return_attention)
        return side_by_side(run, parts, *inputs)

    @tf.autograph.experimental.do_not_convert  # as in Keras's training; converting takes longer than tracing
    def _run(self, source, target, training=False, return_attention=False):
        encoded, state = start(self.decoder, encode(self.encoder, source, training))
        options = {"return_attention": True} if return_attention else {}  # which not every decoder has
        logits, _, *weights = self.decoder(token_ids(target), encoded, state, training=training, **options)
        logits = tf.cast(logits, tf.float32)  # a custom decoder may return others
        return (logits, *weights) if return_attention else logits

    def train_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """Learn from one batch of (source, target), or of (source, target, weights), with teacher forcing.

        The decoder reads the correct tokens so far and predicts the next one, at all positions of the target at once.
        Its loss is the cross-entropy of these predictions, averaged over real tokens. A batch whose gradient is not
        finite does not change the model.
        """
        (source, inputs), labels, weights = teacher_forcing(*data)
        inputs = self.scheduled_sampling(source, inputs)
        with tf.GradientTape() as tape:
            logits = self((source, inputs), training=True)
            loss = self.compute_loss((source, inputs), labels, logits, weights)
            scaled = self.optimizer.scale_loss(loss)
        finite = self.update_weights(tape.gradient(scaled, self.trainable_weights), weights)
        return self.measure(loss, labels, logits, weights, finite)

    def test_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """Measure one batch of (source, target), or of (source, target, weights), with teacher forcing."""
        (source, inputs), labels, weights = teacher_forcing(*data)
        logits = self((source, inputs), training=False)
        loss = self.compute_loss((source, inputs), labels, logits, weights, training=False)
        return self.measure(loss, labels, logits, weights)

    def check_vocabularies(self) -> None:
        """Refuse tokenizers that have been adapted again since the model was made: ids would mean other tokens.

        Raises:
            OptionError: if a vocabulary has changed.
        """
        for side, made_for, now in zip(("source", "target"), self._made_for.tokens, self._tokens(), strict=True):
            if any(one is not other and list(one) != list(other) for one, other in zip(made_for, now, strict=True)):
                raise OptionError(
                    f"the {side} vocabulary has changed since the model was made, so its ids mean other tokens; "
                    "adapt tokenizers first, then make the model"
                )

    def _tokens(self):
        """Of both sides, the list of tokens of each column."""
        return [[part.tokens for part in side.of_columns] for side in (self.source_tokenizer, self.target_tokenizer)]

    def count_lengths(self, source: tf.Tensor, target: tf.Tensor) -> None:
        """Add a batch to the statistics of the ratio of target to source lengths, from which `translate` learns how
        long translations may become; see `limits`. `fit` does; a loop of your own should call it with each batch."""
        labels = token_ids(target[:, 1:])
        targets = tf.cast(tf.math.count_nonzero(labels != PADDING, axis=1), tf.float64)
        ratios = targets / tf.cast(tf.maximum(row_lengths(source), 1), tf.float64)
        real = tf.cast(targets > 0, tf.float64)  # and not a row of padding
        self.length_ratios.assign_add(tf.stack([tf.reduce_sum(x) for x in (real, ratios, ratios**2)]))

    def scheduled_sampling(self, source: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        """Replace some of the decoder's correct tokens by its own predictions. Each stays with the probability
        `self.teacher_forcing`; with 1, all do.

        Every token is predicted from the correct ones before it, all in one pass, and a second pass trains on the
        mixture (Mihaylova & Martins 2019, arxiv.org/abs/1906.07651; Duckworth et al. 2019, arxiv.org/abs/1906.04331).
        This takes two passes for each batch, instead of running step by step.

        Args:
            source: ids `[B, S]`, or their one-hot form.
            inputs: the decoder's input from `teacher_forcing`, ids `[B, T]` or their one-hot form.

        Returns:
            The mixture, ids int32 `[B, T]`; or `inputs`, if all tokens stay.
        """
        self.called |= {"scheduled_sampling"}
        probability = self.teacher_forcing
        if probability == 1.0:
            return inputs
        if callable(probability):
            probability = probability(self.optimizer.iterations)
        ids = token_ids(tf.convert_to_tensor(inputs))
        logits = self((tf.convert_to_tensor(source), ids))
        rows, length, size = (tf.shape(logits)[axis] for axis in range(3))
        allowed = tf.reshape(logits, [-1, size])[:, END:]  # as in decoding
        drawn = END + keras.random.categorical(allowed, 1, dtype="int32", seed=self.sampling_seed)
        sampled = tf.concat([ids[:, :1], tf.reshape(drawn, [rows, length])[:, :-1]], axis=1)
        chance = keras.random.uniform([rows, length], dtype="float32", seed=self.sampling_seed)
        correct = chance < tf.cast(probability, "float32")
        return tf.where(correct | (ids == PADDING), ids, sampled)

    def log_likelihood(
        self,
        source: tf.Tensor | np.ndarray,
        target: tf.Tensor | np.ndarray,
        training: bool = False,
        per_token: bool = False,
    ) -> tf.Tensor:
        """The log-likelihood of target ids, given source ids; it is differentiable, for custom losses.

        Args:
            source: ids `[B, S]`, or their one-hot form.
            target: ids `[B, T + 1]` from START on, then padding.
            training: whether dropout is active.
            per_token: whether to return the log-likelihood of each token.

        Returns:
            float32 `[B]`, in nats: the sum over the tokens after START. With `per_token` `[B, T]`, 0 for padding.
        """
        source, target = tf.convert_to_tensor(source), tf.convert_to_tensor(target)
        logits = self._run(source, target[:, :-1], training)
        each = tf.where(target[:, 1:] == PADDING, 0.0, -token_losses(target[:, 1:], logits))
        return each if per_token else tf.reduce_sum(each, axis=1)

    @tf.autograph.experimental.do_not_convert  # as `_run`
    def decode(
        self,
        source: tf.Tensor | np.ndarray,
        strategy: str | Strategy = "greedy",
        min_length: int | tf.Tensor = 0,
        max_length: int | tf.Tensor = -1,
        seeds: tf.Tensor | None = None,
        prefixes: tf.Tensor | None = None,
    ) -> Hypotheses:
        """Decode source ids `[B, S]`, or their one-hot form, into target ids.

        Args:
            source: the sources.
            strategy: as in `translate`.
            min_length, max_length: as in `translate`; -1 for each row's own limit.
            seeds: int64 `[B]`, for sampling. Default: 0, 1, ..., B - 1.
            prefixes: target ids that each row begins with, int32 `[B, P]`, padded on the right.

        Returns:
            `Hypotheses`, ids `[B, N, T]`.
        """
        strategy, source = self._checked_strategy(strategy), tf.convert_to_tensor(source)
        with tf.device("CPU"):  # where all sizes are known
            min_length = tf.cast(min_length, tf.int32)  # a Python number would be part of the graph
            own = tf.maximum(self.limits(source), min_length + 1)  # END follows `min_length` tokens
            limits = tf.where(max_length < 0, own, max_length)
            seeds = tf.range(tf.size(limits, tf.int64)) if seeds is None else tf.cast(seeds, tf.int64)
            if prefixes is not None:
                prefixes = token_ids(tf.convert_to_tensor(prefixes))
                limits = tf.maximum(limits, row_lengths(prefixes) + 1)
        constraints = Constraints(limits, min_length, seeds, prefixes)
        if not self.compiles_decoding or is_exporting():  # an exported model runs on any device, also without cuDNN
            steps = tf.maximum(1, tf.reduce_max(limits))
            return self._search(encode(self.encoder, source), constraints, steps, strategy, shrinking_loop)
        rows = tf.shape(source)[0]
        source, constraints, room = padded_to_few_shapes(source, constraints, least_rows=16 if on_gpu() else 1)
        # On a GPU, cuDNN computes the recurrences of the encoder, which XLA cannot compile.
        given = encode(self.encoder, source) if on_gpu() else source
        return first_rows(self._search_with(strategy)(given, constraints, room), rows)

    def _search(self, encoded, constraints, steps, strategy, loop):
        _, state = start(self.decoder, encoded, steps)

        def step_for(sources):
            # Finished sources are no longer among them, so what the decoder prepares is made anew for the others.
            left, _ = start(self.decoder, gather_rows(encoded, sources), steps)

            def step(token, state):
                logits, state = self.decoder(token[:, None], left, state)
                return tf.cast(logits[:, 0], tf.float32), state

            return step

        return strategy.search(step_for, state, constraints, loop)

    def _compile_search(self, strategy):
        def search(given, constraints, room):
            encoded = given if on_gpu() else encode(self.encoder, given)
            steps = tf.size(room)  # XLA knows the sizes of arguments when it compiles, but not their values
            loop = masking_loop(steps, steps_per_check=STEPS_PER_CHECK if on_gpu() else 1)
            return self._search(encoded, constraints, steps, strategy, loop)

        # A `partial` for the same reason as in `translation._graph`.
        return tf.function(functools.partial(search), jit_compile=True, autograph=False, reduce_retracing=True)

    def count_params(self) -> int:
        """As in `keras.Model`, without the 4 numbers in which the model keeps statistics of training. `summary` counts
        them as non-trainable."""
        return super().count_params() - sum(math.prod(each.shape) for each in (self.length_ratios, self.gradient_norm))

    def limits(self, source: tf.Tensor) -> tf.Tensor:
        """The maximum length of the translation of each source, in tokens: int32 `[B]`.

        It is 16 plus twice the source's length times `longest_ratio`.
        """
        ratio = self.longest_ratio()
        return 16 + tf.cast(tf.math.ceil(2 * ratio * tf.cast(row_lengths(source), ratio.dtype)), tf.int32)

    def longest_ratio(self) -> tf.Tensor:
        """The ratio of a target's length to its source's that nearly no pair exceeded in training: float64, a scalar.
        It is the mean plus four standard deviations, and 4 if no lengths were counted."""
        count, total, squares = tf.unstack(tf.convert_to_tensor(self.length_ratios))
        mean = tf.math.divide_no_nan(total, count)
        deviation = tf.sqrt(tf.maximum(tf.math.divide_no_nan(squares, count) - mean**2, 0))
        return tf.where(count > 0, mean + 4 * deviation, 4)

    def save(self, filepath: Path | str, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.save`.

        Raises:
            OptionError: for an HDF5 file, and if a vocabulary has changed since the model was made.
        """
        self.check_vocabularies()
        if self.compiled and self.optimizer and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)  # of which Keras would save only a part before training
        if Path(filepath).suffix in (".h5", ".hdf5"):
            raise OptionError(f"{filepath}: HDF5 files cannot hold models of custom classes; save a .keras file")
        super().save(filepath, *args, **kwargs)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Raise an error: Keras would quantize only a few of the layers, and the saved model could not be loaded."""
        raise OptionError("quantize: not supported; dtype='mixed_bfloat16' computes in half precision")

    def __repr__(self):
        sides = f"{self.source_tokenizer!r}, {self.target_tokenizer!r}"
        layers = f"{type(self.encoder).__name__}, {type(self.decoder).__name__}"
        return f"{type(self).__name__}({sides}, {layers}, {self.count_params():,} parameters)"

    def get_config(self) -> dict:
        names = "source_tokenizer", "target_tokenizer", "encoder", "decoder", "teacher_forcing"
        parts = {name: serialized(getattr(self, name)) for name in names}
        return {**super().get_config(), **parts, "label_smoothing": self.label_smoothing}

    @classmethod
    def from_config(cls, config: dict) -> Self:
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


def teacher_forcing(
    source: tf.Tensor, target: tf.Tensor, sample_weight: tf.Tensor | None = None
) -> tuple[tuple[tf.Tensor, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Turn a pair into a training example: the decoder reads the correct tokens so far and predicts the next one.

    Args:
        source: one-hot `[B, S, Vs]` or ids `[B, S]`.
        target: one-hot `[B, T + 1, Vt]` or ids `[B, T + 1]`, from START to END, then padding.
        sample_weight: weights of the labels, float32 `[B, T]`, or of the pairs, `[B]` or `[B, 1]`. Default: 1.

    Returns:
        ((source, decoder input `[B, T, Vt]` or `[B, T]`), labels `[B, T]`, weights `[B, T]`). Labels are ids. A weight
        is 0 if the label is padding.
    """
    source, target = tf.convert_to_tensor(source), tf.convert_to_tensor(target)
    labels = token_ids(target[:, 1:])
    weights = tf.cast(labels != PADDING, tf.float32)
    if sample_weight is not None:
        weights *= tf.reshape(tf.cast(sample_weight, tf.float32), [tf.shape(target)[0], -1])
    return (source, target[:, :-1]), labels, weights
