"""`Seq2Seq`: the encoder-decoder as a Keras model, from teacher forcing to translation."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from pipelines import OptionError, accepted, choose, construct
from pipelines.tokenizers import PADDING, Tokenizer, one_hot
from seq2seq.contract import check_contract, check_savable, encode, start, take_tokenizers
from seq2seq.decoding import (
    STEPS_UNASKED,
    Greedy,
    Hypotheses,
    Strategy,
    Wanted,
    masking_loop,
    shrinking_loop,
    take,
)
from seq2seq.distribution import apply_if, only_if, own_rows, share, summed
from seq2seq.layers import Decoder, Encoder, _lengths, token_ids
from seq2seq.metrics import token_losses
from seq2seq.recurrence import cores, side_by_side
from seq2seq.trainer import Trainer, _any_size, _checked, _padded, _rounded_up
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
        encoder, decoder: a layer, or a class that `options` make one of. Default: `Encoder` and `Decoder`.
        label_smoothing: share of each label that the loss spreads evenly over all tokens (Szegedy et al. 2016).
        teacher_forcing: how likely the decoder, in training, is given the right token and not its own guess. A number,
            or a `keras.optimizers.schedules.LearningRateSchedule` of the optimizer's steps. Below 1 it is scheduled
            sampling (Bengio et al. 2015, arxiv.org/abs/1506.03099).
        **options: arguments of encoder and decoder, such as `units`, `layers`, `cell`, `attention`, `copy`, `dropout`;
            each goes to the one or the two that have it. Without any it is the plain model of the Keras tutorial; what
            `seq2seq train` takes is in `config.PRESETS`.
        name, trainable, dtype: as in `keras.Model`. Logits and loss are float32 whatever the layers compute in.

    Raises:
        OptionError: for an option that neither has, an encoder or decoder that does not keep to the contract, or
            weights of 16 bits.
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
        if self.dtype_policy.variable_dtype not in ("float32", "float64"):
            half = self.dtype_policy.name
            raise OptionError(f"dtype={half!r}: weights of 16 bits are too coarse to learn; use 'mixed_{half}'")
        self.source_tokenizer = source_tokenizer
        self.target_tokenizer = target_tokenizer
        self.label_smoothing = label_smoothing
        self.teacher_forcing = teacher_forcing
        taken = set().union(*(accepted(half) for half in (encoder, decoder) if isinstance(half, type)))
        for option in options:
            choose("option", option, sorted(taken))
        self.encoder = self._half("encoder", encoder, source_tokenizer, options)
        self.decoder = self._half("decoder", decoder, target_tokenizer, options)
        # How long a target is, compared with its source: number of pairs seen in training, sum and sum of squares.
        self.length_ratios = self.add_weight(
            shape=(3,), dtype="float64", initializer="zeros", trainable=False, autocast=False, name="length_ratios"
        )
        # The length of the last batch's gradient, before it is clipped.
        self.gradient_norm = self.add_weight(
            shape=(), initializer="zeros", trainable=False, autocast=False, name="gradient_norm"
        )
        self.guesses = keras.random.SeedGenerator()
        self._quiet = self._quiet_function = False  # see `_steps`
        self._parts = 1  # of a batch to translate: more are twice as long in the making, which few texts do not repay
        self._search_with = functools.lru_cache(maxsize=32)(self._compile_search)
        self._translate_with = functools.lru_cache(maxsize=32)(self._compile_translate)  # a graph for each strategy
        self.compiles_training = False  # may be set before `fit`, which says what for
        self.rows_compiled = 16  # compiled steps are for batches of so many rows, twice as many, and so on
        self.tokens_compiled: int | None = None  # in place of it where batches hold so many tokens and not rows
        self.on_compile: Callable[[str], None] | None = None  # is told of each size of batch when it is compiled
        self.build()

    def _half(self, name, half, tokenizer, options):
        """A layer of a class, with those options that its constructor names; a layer stays what it is."""
        if not isinstance(half, type):
            return half
        dtype = self.dtype_policy.name  # by which Keras makes a `get_config` for classes without
        return construct(name, half, tokenizer.vocabulary_size, options=options, name=name, dtype=dtype)

    def build(self, *_: Any) -> None:
        """Makes the weights, by a tiny batch, and sees on the way that encoder and decoder are what they should be."""
        for part in ("source_tokenizer", "target_tokenizer", "encoder", "decoder"):
            check_savable(part, getattr(self, part))
        tokenizers = self.source_tokenizer, self.target_tokenizer
        for half in (self.encoder, self.decoder):
            take_tokenizers(half, *tokenizers)
        keeps_sizes = check_contract(self.encoder, self.decoder, *tokenizers)
        self.compiles_decoding = keeps_sizes and bool(tf.config.list_logical_devices("GPU"))
        for half in (self.encoder, self.decoder):
            for weight in half.weights if not half.trainable else ():
                weight.trainable = False  # Keras has made the layers after it was told that they are frozen
        self.built = True

    @property
    def compiles_decoding(self) -> bool:
        """Whether decoding keeps all sizes and is compiled by XLA, with `decoding.masking_loop`.

        By default on a GPU, if the decoder's state keeps its sizes: on an H100 that is 8 times as fast for 256 rows of
        30 steps, as the uncompiled loop waits for the device several times in each step. On a CPU `shrinking_loop`
        drops finished rows, which pays more, and nobody waits seconds until a shape is compiled. Both find the same.
        It can be set; a decoder whose state grows must not be compiled.
        """
        return self._compiles_decoding

    @compiles_decoding.setter
    def compiles_decoding(self, value: bool) -> None:
        self._compiles_decoding = value
        self._translate_with.cache_clear()

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Scores the next target token at every position.

        Args:
            inputs: (source `[B, S, Vs]`, target from START on `[B, T, Vt]`), one-hot; or ids `[B, S]` and `[B, T]`.

        Returns:
            logits `[B, T, Vt]`.

        Raises:
            OptionError: for anything but a pair.
        """
        if not isinstance(inputs, tuple | list) or len(inputs) != 2:
            raise OptionError("call: expected (source, target so far); `translate` and `decode` need no target")
        return side_by_side(functools.partial(self._logits, training=training), cores(), *inputs)

    def _logits(self, source, target, training=False):
        encoded, state = start(self.decoder, encode(self.encoder, source, training), tf.shape(target)[1])
        logits, _ = self.decoder(target, encoded, state, training=training)
        return tf.cast(logits, tf.float32)  # whatever a decoder of one's own computes in

    def train_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """Learns from one batch of (source, target), or (source, target, weights), with teacher forcing; not if its
        gradient is no finite number."""
        if not (self.optimizer and self.trainable_weights):
            reason = "all weights are frozen; set trainable=True" if self.optimizer else "there is no optimizer"
            raise OptionError(f"fit: {reason} and compile again, or use `evaluate`, which only measures")
        batch = _checked(data)
        compiled = self._learn_compiled(*map(_any_size, batch)) if self._may_compile() else None
        if compiled:
            self._take_compiled(compiled, *self._filled_up(*batch))
        else:
            self._learn(*batch)
        return self._no_figures() if self._quiet else self._figures()

    def _learn(self, *batch):
        """The step itself."""
        examples = teacher_forcing(*batch)
        self._see_lengths(examples)
        (source, inputs), labels, weights = own_rows(examples)  # all, but where several replicas share a batch
        if self.teacher_forcing != 1.0:
            inputs = self._own_guesses(source, inputs)
        with tf.GradientTape() as tape:
            logits = self((source, inputs), training=True)
            loss = self.compute_loss((source, inputs), labels, logits, weights) * share(examples[2], weights)
            scaled = self.optimizer.scale_loss(loss)
        gradients = summed(tape.gradient(scaled, self.trainable_weights))
        norm = tf.cast(tf.linalg.global_norm(gradients), tf.float32)
        self.gradient_norm.assign(norm / self.optimizer.scale_loss(1.0))
        finite = tf.math.is_finite(self.gradient_norm)
        apply_if(finite, self.optimizer, gradients, self.trainable_weights)
        tokens = tf.reduce_sum(examples[2])
        only_if(finite, lambda: self._measure(loss, tokens, labels, logits, weights), self.metrics_variables)

    def test_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """Measures one batch of (source, target), or (source, target, weights), with teacher forcing."""
        examples = teacher_forcing(*_checked(data))
        inputs, labels, weights = own_rows(examples)
        logits = self(inputs, training=False)
        loss = self.compute_loss(inputs, labels, logits, weights, training=False) * share(examples[2], weights)
        self._measure(loss, tf.reduce_sum(examples[2]), labels, logits, weights)
        return self._figures()

    def decode(
        self,
        source: tf.Tensor,
        strategy: Strategy = Greedy(),  # noqa: B008 (frozen)
        min_length: int | tf.Tensor = 0,
        max_length: int | tf.Tensor = -1,
        seeds: tf.Tensor | None = None,
        prefixes: tf.Tensor | None = None,
    ) -> Hypotheses:
        """Decodes source ids `[B, S]`, or their one-hot form, into target ids.

        Args:
            source: the sources.
            strategy: a `decoding.Strategy`.
            min_length, max_length: as in `translate`; -1 for each row's own limit.
            seeds: int64 `[B]`, for sampling.
            prefixes: target ids that each row begins with, int32 `[B, P]`, padded on the right.

        Returns:
            `decoding.Hypotheses`, ids `[B, N, T]`.
        """
        with tf.device("CPU"):  # on which all sizes are known
            limits = tf.where(max_length < 0, tf.maximum(self.limits(source), min_length), max_length)
            seeds = tf.zeros_like(limits, tf.int64) if seeds is None else tf.cast(seeds, tf.int64)
            if prefixes is not None:
                limits = tf.maximum(limits, _lengths(prefixes) + 1)
        if not self.compiles_decoding:
            steps = tf.maximum(1, tf.reduce_max(limits))
            wanted = Wanted(limits, min_length, seeds, prefixes)
            return self._search(encode(self.encoder, source), wanted, steps, strategy, shrinking_loop)
        with tf.device("CPU"):
            rows, length = tf.unstack(tf.shape(source)[:2])
            source = _padded(source, _rounded_up(rows), _rounded_up(length))
            # Rows that only fill the batch up are done after one step.
            more = [[0, _rounded_up(rows) - rows]]
            limits, seeds = (tf.pad(x, more, constant_values=1) for x in (limits, seeds))
            steps = tf.zeros([_rounded_up(tf.reduce_max(limits))])  # by its size: XLA must know it when it compiles
            if prefixes is not None:
                prefixes = _padded(prefixes, _rounded_up(rows), _rounded_up(tf.shape(prefixes)[1]))
        wanted = Wanted(limits, min_length, seeds, prefixes)
        found = self._search_with(strategy)(encode(self.encoder, source), wanted, steps)
        with tf.device("CPU"):
            longest = tf.reduce_max(tf.math.count_nonzero(found.ids, axis=2, dtype=tf.int32))
            found = found._replace(ids=found.ids[:, :, :longest])
            return Hypotheses(*(part if part is None else part[:rows] for part in found))

    def _search(self, encoded, wanted, steps, strategy, loop):
        _, state = start(self.decoder, encoded, steps)

        def step_for(sources):
            left, _ = start(self.decoder, take(encoded, sources), steps)

            def step(token, state):
                logits, state = self.decoder(token[:, None], left, state)
                return tf.cast(logits[:, 0], tf.float32), state

            return step

        return strategy.search(step_for, state, wanted, loop)

    def _compile_search(self, strategy):
        def search(encoded, wanted, steps):
            count = tf.size(steps)
            return self._search(encoded, wanted, count, strategy, masking_loop(count // STEPS_UNASKED))

        return tf.function(search, jit_compile=True, autograph=False, reduce_retracing=True)

    def limits(self, source: tf.Tensor) -> tf.Tensor:
        """How long a translation of each source may become, in tokens: int32 `[B]`.

        Twice what nearly all targets of so long a source had in training, by the mean and four standard deviations of
        the ratio of lengths, and 16 more.
        """
        count, total, squares = tf.unstack(tf.convert_to_tensor(self.length_ratios))
        mean = tf.math.divide_no_nan(total, count)
        deviation = tf.sqrt(tf.maximum(tf.math.divide_no_nan(squares, count) - mean**2, 0))
        ratio = tf.where(count > 0, mean + 4 * deviation, 1)
        lengths = tf.cast(_lengths(source), ratio.dtype)
        return 16 + tf.cast(tf.math.ceil(2 * ratio * lengths), tf.int32)

    def _see_lengths(self, examples):
        """Takes note of how long the targets of a batch are, compared with their sources."""
        (source, _), labels, _ = examples
        targets = tf.cast(tf.math.count_nonzero(labels != PADDING, axis=1), tf.float64)
        sources = tf.cast(tf.maximum(_lengths(source), 1), tf.float64)
        ratios = targets / sources
        real = tf.cast(targets > 0, tf.float64)  # and not a row that fills a batch up
        self.length_ratios.assign_add(tf.stack([tf.reduce_sum(x) for x in (real, ratios, ratios**2)]))

    def _own_guesses(self, source, inputs):
        """Puts the model's guesses in the place of some of the right tokens, as often as `teacher_forcing` says.

        Every token is guessed from the right ones before it, all in one pass, and the second pass then trains on the
        mixture (Mihaylova & Martins 2019, arxiv.org/abs/1906.07651; Duckworth et al. 2019, arxiv.org/abs/1906.04331):
        two passes for each batch in place of one step after another.
        """
        probability = self.teacher_forcing
        if callable(probability):
            probability = probability(self.optimizer.iterations)
        ids = token_ids(inputs)
        logits = self((source, inputs))
        rows, length, size = (tf.shape(logits)[axis] for axis in range(3))
        drawn = keras.random.categorical(tf.reshape(logits, [-1, size]), 1, dtype="int32", seed=self.guesses)
        guesses = tf.concat([ids[:, :1], tf.reshape(drawn, [rows, length])[:, :-1]], axis=1)
        right = keras.random.uniform([rows, length], dtype="float32", seed=self.guesses) < tf.cast(
            probability, "float32"
        )
        mixed = tf.where(right | (ids == PADDING), ids, guesses)
        return mixed if inputs.dtype.is_integer else one_hot(mixed, inputs.shape[-1], inputs.dtype)

    def log_likelihood(
        self, source: tf.Tensor, target: tf.Tensor, training: bool = False, per_token: bool = False
    ) -> tf.Tensor:
        """The log-likelihood of target ids, given source ids; it has a gradient, for losses of your own.

        Args:
            source: ids `[B, S]`, or their one-hot form.
            target: ids `[B, T + 1]` from START on, then padding.
            training: whether dropout leaves numbers out.
            per_token: whether to return that of each token.

        Returns:
            float32 `[B]`, in nats: the sum over the tokens after START. With `per_token` `[B, T]`, 0 for padding.
        """
        logits = self._logits(source, target[:, :-1], training)
        each = tf.where(target[:, 1:] == PADDING, 0.0, -token_losses(target[:, 1:], logits))
        return each if per_token else tf.reduce_sum(each, axis=1)

    def save(self, filepath: Path | str, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.save`.

        Raises:
            OptionError: for an HDF5 file.
        """
        if Path(filepath).suffix in (".h5", ".hdf5"):
            raise OptionError(f"{filepath}: HDF5 files hold no models of your own classes; save a .keras file")
        super().save(filepath, *args, **kwargs)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Refused: of the layers Keras would quantize a few, and what is saved then could not be loaded."""
        raise OptionError("quantize: not for this model; dtype='mixed_bfloat16' computes in half the bits")

    @staticmethod
    def from_run(folder: Path | str) -> "Seq2Seq":
        """Loads the model of a run folder, see `runs.load_run`."""
        from seq2seq.runs import load_run  # which imports this module

        return load_run(folder)

    def __repr__(self):
        sides = f"{self.source_tokenizer!r}, {self.target_tokenizer!r}"
        halves = f"{type(self.encoder).__name__}, {type(self.decoder).__name__}"
        return f"Seq2Seq({sides}, {halves}, {self.count_params():,} parameters)"

    def get_config(self) -> dict:
        parts = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in ("source_tokenizer", "target_tokenizer", "encoder", "decoder", "teacher_forcing")
        }
        for half in ("encoder", "decoder"):
            parts[half].pop("build_config")  # the model builds them
        return {**super().get_config(), **parts, "label_smoothing": self.label_smoothing}

    @classmethod
    def from_config(cls, config: dict) -> "Seq2Seq":
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


def teacher_forcing(
    source: tf.Tensor, target: tf.Tensor, sample_weight: tf.Tensor | None = None
) -> tuple[tuple[tf.Tensor, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Makes a training example of a pair: the decoder reads the right tokens so far and predicts the one after each.

    Args:
        source: one-hot `[B, S, Vs]` or ids `[B, S]`.
        target: one-hot `[B, T + 1, Vt]` or ids `[B, T + 1]`, from START to END, then padding.
        sample_weight: how much each label counts, float32 `[B, T]`, or each pair, `[B, 1]`; 1 by default.

    Returns:
        ((source, decoder input `[B, T, Vt]` or `[B, T]`), labels `[B, T]`, weights `[B, T]`); labels are ids, and a
        weight is that of the sample where the label is a token and 0 where it is padding.
    """
    labels = token_ids(target[:, 1:])
    weights = tf.cast(labels != PADDING, tf.float32)
    return (source, target[:, :-1]), labels, weights if sample_weight is None else weights * sample_weight
