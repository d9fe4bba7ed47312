"""`Seq2Seq`: the encoder-decoder as a Keras model, from teacher forcing to translation."""

import contextlib
import functools
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from pipelines import OptionError, accepted, check_number, choose, construct
from pipelines.tokenizers import PADDING, START, UNKNOWN, Texts, Tokenizer, one_hot
from seq2seq.contract import (
    check_contract,
    check_savable,
    check_strategy,
    encode,
    has_attention,
    one_line,
    start,
    take_tokenizers,
)
from seq2seq.decoding import (
    LIMITED,
    NEVER,
    STEPS_UNASKED,
    STOPPED,
    STRATEGIES,
    BeamSearch,
    Greedy,
    Hypotheses,
    Strategy,
    Wanted,
    masking_loop,
    shrinking_loop,
    take,
)
from seq2seq.distribution import apply_if, only_if, own_rows, several_workers, share, summed, whole_batches
from seq2seq.exporting import export
from seq2seq.layers import Decoder, Encoded, Encoder, holds_token, token_ids
from seq2seq.metrics import Perplexity, TokenAccuracy, TokenCrossentropy, check_loss, of_tokens, token_losses
from seq2seq.recurrence import compiling, cores, side_by_side

LONGEST_TRANSLATION = 100_000  # tokens
LONGEST_SOURCE = 1024  # tokens of a text that are read when it is translated; the rest is left out
_MANY_TEXTS = 64  # from so many on, each core translates a part of a batch
# What XLA raises if it cannot compile: the last two if parts of CUDA that it needs are missing.
_XLA_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.InternalError,
    tf.errors.NotFoundError,
)
_BATCH_LENGTH = 256  # the length from which on a batch holds fewer texts, so that memory does not grow with it


class Translations(NamedTuple):
    """What `Seq2Seq.translate` knows of N texts, n hypotheses each: the best first, samples as they are drawn."""

    # Strings [N, n]. Of a beam all are different; if fewer of the 2 n best hypotheses are, the last ones are empty.
    texts: tf.Tensor
    scores: tf.Tensor  # float32 [N, n] log-likelihood, in nats; -inf of what is empty
    ranked_by: tf.Tensor  # float32 [N, n] what the order follows: of a beam, the score over its length penalty
    stopped: tf.Tensor  # strings [N, n] why it is no longer: "end", "limit" or "repetition"
    # int32 [N, n, T] target ids up to and with END, then padding. `score` and `attention` take those of one rank.
    ids: tf.Tensor


class Alignment(NamedTuple):
    """Where the decoder looked while it wrote one text."""

    source: list[str]  # S tokens
    target: list[str]  # T tokens, END included where there is one
    weights: np.ndarray  # [T, S], each row sums to 1


@keras.saving.register_keras_serializable("seq2seq")
class Seq2Seq(keras.Model):
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

    @tf.autograph.experimental.do_not_convert  # as in Keras's training; converting takes longer than tracing
    def _logits(self, source, target, training=False):
        encoded, state = start(self.decoder, encode(self.encoder, source, training), tf.shape(target)[1])
        logits, _ = self.decoder(target, encoded, state, training=training)
        return tf.cast(logits, tf.float32)  # whatever a decoder of one's own computes in

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer | None = "adam",
        loss: str | keras.losses.Loss = "auto",
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = "auto",
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`; by default with the loss, accuracy and perplexity of real tokens.

        A loss and a metric of your own are given ids `[B, T]` as labels, logits `[B, T, V]` and weights `[B, T]`, 0 for
        padding. `metrics` are weighted as `weighted_metrics` are, since padding must not count. Functions, and metrics
        of Keras, see one token after another: labels `[N]`, logits `[N, V]`.

        Raises:
            OptionError: for a loss that cannot be computed, counts padding or takes probabilities; for a metric that
                takes probabilities.
        """
        if loss == "auto":
            loss = TokenCrossentropy(self.label_smoothing)
        usual = [TokenAccuracy(), Perplexity()] if weighted_metrics == "auto" else weighted_metrics
        chosen = [of_tokens(metric) for metric in tf.nest.flatten([metrics, usual]) if metric is not None]
        metrics = list({metric.name: metric for metric in chosen}.values())
        super().compile(optimizer, loss, loss_weights, weighted_metrics=metrics, **kwargs)
        self._learn_compiled = functools.lru_cache(maxsize=8)(self._compile_learn)
        self._sizes_compiled: list[tuple[int, int]] = []
        if loss is not None and type(loss) is not TokenCrossentropy:
            self.compiled = False
            check_loss(loss, self.compute_loss, self.target_tokenizer.vocabulary_size)
            self.compiled = True

    def compile_from_config(self, config: dict) -> None:
        """Compiles a loaded model as the saved one was. Keras asks for this where `compile` is overridden."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer:
            self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool | None = None,
        class_weight: None = None,
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`. Warns if the learning rate has fallen to 0, so that nothing would be learned.

        `x` are batches (source, target) as `batch_pairs` makes them; or it is an array of sources, ids or one-hot, and
        `y` one of targets. Weights, of pairs `[B]` or of labels `[B, T]`, are a third part of each batch or, with
        arrays, `sample_weight`. A pair's share in loss, accuracy and perplexity is multiplied by its weight. Only
        arrays are shuffled, unless `shuffle=False`.

        After `model.compiles_training = True`, before the first `fit`, XLA compiles the whole step, with
        `recurrence.recur` in place of cuDNN. That is for long trainings of small models on a GPU, where starting the
        operations of a step takes longer than they do: with 256 units and a batch of 64 a step alone takes 2.2 ms, and
        uncompiled 7 to 13 ms (one H100). Each size of batch is compiled once, for 17 s and more, and batches are filled
        up so that there are few: lengths are 16, 32, 64 and so on. `model.rows_compiled` is best set to the size of the
        batches, or `model.tokens_compiled` to their `batch_tokens`. A function `model.on_compile` is called with a text
        for each size, before and after. No step waits for the device with `verbose=0` and no callback that has an
        `on_train_batch_end`.

        With several replicas, `x` and `validation_data` must each be a `tf.data.Dataset` of whole batches or what
        `distribution.distribute` returns; with several workers, the latter.

        Raises:
            OptionError: for data of another form, for a `class_weight`, and if there is nothing that can learn.
        """
        _refuse_texts("fit", x)
        _refuse_class_weight(class_weight)
        steps = self.optimizer.iterations.numpy() if self.compiled and self.optimizer else 0
        if steps and not tf.convert_to_tensor(self.optimizer.learning_rate).numpy():
            warnings.warn(
                f"fit: the learning rate is 0 after {steps:,} steps, so nothing will be learned; if its schedule has "
                "ended, compile the model again with a new optimizer",
                stacklevel=2,
            )
        x, validation_data = (whole_batches(self.distribute_strategy, data) for data in (x, validation_data))
        if shuffle is None:  # Keras warns of it for other data, which shuffles itself
            shuffle = y is not None or isinstance(x, keras.utils.PyDataset)
        quiet = verbose == 0 and not any(map(_follows_steps, tf.nest.flatten(callbacks or [])))
        arguments = x, y, batch_size, epochs, verbose, callbacks, validation_split, validation_data, shuffle
        with self._steps(quiet), _whole_epochs(kwargs.get("steps_per_epoch") or kwargs.get("validation_steps")):
            return super().fit(*arguments, sample_weight=sample_weight, **kwargs)

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: None = None, return_dict: bool = False
    ) -> Any:
        """As `keras.Model.train_on_batch`, with weights as in `fit`.

        Raises:
            OptionError: as `fit`.
        """
        _refuse_class_weight(class_weight)
        with self._steps(quiet=False):
            return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    @contextlib.contextmanager
    def _steps(self, quiet):
        """While it lasts, Keras makes a function of `train_step` that returns figures or, to be quiet, none."""
        if quiet != self._quiet_function:
            self._quiet_function, self.train_function = quiet, None
        self._quiet = quiet
        try:
            yield
        finally:
            self._quiet = False

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`; for data see `fit`."""
        _refuse_texts("evaluate", x)
        with _whole_epochs(kwargs.get("steps")):
            return super().evaluate(whole_batches(self.distribute_strategy, x), *args, **kwargs)

    def make_train_function(self, force: bool = False) -> Callable | None:
        """As in `keras.Model`. Makes the optimizer's variables first: else the first step is traced twice."""
        if self.optimizer and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

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

    def _may_compile(self):
        """Whether a compiled step would do the same as `_learn`: not with several replicas, and not for a loss of one's
        own, which may count padding. Steps that are run eagerly are to be looked at."""
        plain = not tf.distribute.has_strategy() and not self.run_eagerly
        return self.compiles_training and plain and isinstance(self.loss, TokenCrossentropy)

    def _compile_learn(self, *specs):
        """`_learn`, compiled by XLA, for tensors of these specs; None, with a warning, if that is impossible."""

        def learn(*batch):
            with compiling():
                self._learn(*batch)
            return tf.constant(0)  # something to wait for

        compiled = tf.function(learn, list(specs), jit_compile=True, autograph=False)
        try:  # what XLA refuses it refuses here, before anything has been learned or lost
            compiled.get_concrete_function()
            with tf.init_scope():  # out of the graph that is made of `train_step`
                smallest = [tf.zeros([1, 2, *spec.shape[2:]], spec.dtype) for spec in specs]
                compiled.experimental_get_compiler_ir(*self._filled_up(*smallest))(stage="hlo")
        except Exception as error:
            said = textwrap.shorten(one_line(error), 300)
            warnings.warn(f"training steps are not compiled, as XLA refuses them: {said}", stacklevel=2)
            return None
        return compiled

    def _filled_up(self, source, target, *weights):
        """A batch with padding to one of few sizes, since each takes a while to compile. Both sides get as long."""
        length = _rounded_up(tf.maximum(tf.shape(source)[1], tf.shape(target)[1] - 1))
        # Of so many tokens, rows of this length are more than half as long, but where it is the least.
        least = tf.maximum(2 * self.tokens_compiled // length, 1) if self.tokens_compiled else self.rows_compiled
        rows = _rounded_up(tf.shape(source)[0], least)
        filled = [_padded(each, rows, length) for each in weights]
        return _padded(source, rows, length), _padded(target, rows, length + 1), *filled

    def _take_compiled(self, compiled, *batch):
        """Takes a compiled step, around the first one of each size with a word to `on_compile`."""
        if not (say := self.on_compile):
            compiled(*batch)
            return
        started = 0.0

        def before(size):
            nonlocal started
            started = 0.0
            if tuple(size.tolist()) not in self._sizes_compiled:
                started = time.monotonic()
                self._sizes_compiled.append(tuple(size.tolist()))
                say(f"Compiling for batches of {size[0]} x {size[1]}: size {len(self._sizes_compiled)}")
            return np.int32(0)

        def after():
            if started:
                say(f"Compiled in {time.monotonic() - started:.1f} s")
            return np.int32(0)

        with tf.device("CPU"):  # which knows all sizes
            seen = tf.numpy_function(before, [tf.shape(batch[0])[:2]], tf.int32)
        with tf.control_dependencies([seen]):
            taken = compiled(*batch)
        with tf.control_dependencies([taken]), tf.device("CPU"):
            tf.numpy_function(after, [], tf.int32)

    def test_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """Measures one batch of (source, target), or (source, target, weights), with teacher forcing."""
        examples = teacher_forcing(*_checked(data))
        inputs, labels, weights = own_rows(examples)
        logits = self(inputs, training=False)
        loss = self.compute_loss(inputs, labels, logits, weights, training=False) * share(examples[2], weights)
        self._measure(loss, tf.reduce_sum(examples[2]), labels, logits, weights)
        return self._figures()

    def predict(self, x: Any, batch_size: int | None = None, *args: Any, **kwargs: Any) -> np.ndarray:
        """Translates sources greedily, as `translate` does: batches as `batch_pairs` makes them, or an array of ids or
        one-hot rows. For texts, and for other strategies, use `translate`.

        Returns:
            Strings `[N]`, as bytes, in the order of the batches: make these with `shuffle=False`. For a pair (source,
            target so far) as `x` they are the logits that the model computes of it.

        Raises:
            OptionError: for texts.
        """
        _refuse_texts("predict", x)
        with _whole_epochs(kwargs.get("steps")):
            return super().predict(x, batch_size, *args, **kwargs)

    def predict_step(self, data: Any) -> tf.Tensor:
        """Translates the sources of one batch greedily, see `predict`."""
        source, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(source, tuple | list):
            return self(source)
        ids = self.decode(tf.convert_to_tensor(source), Greedy()).ids[:, 0]
        with tf.device("CPU"):
            return self.target_tokenizer.detokenize(ids)

    def make_predict_function(self, force: bool = False) -> Callable | None:
        compiles: Any = self.jit_compile
        self.jit_compile: Any = False  # XLA knows no strings
        try:
            return super().make_predict_function(force)
        finally:
            self.jit_compile = compiles

    def _measure(self, loss, tokens, labels, logits, weights):
        """Takes a batch of so many real tokens into the figures of the epoch. Those of several replicas are added up
        when they are read."""
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss * self.distribute_strategy.num_replicas_in_sync, sample_weight=tokens)
            else:
                metric.update_state(labels, logits, sample_weight=weights)

    def get_metrics_result(self) -> dict[str, tf.Tensor]:
        """The figures so far. If no batch has counted they are NaN, and not Keras's 0, the best loss there is."""
        (counted,) = (metric.count for metric in self.metrics if metric.name == "loss")
        nothing = counted <= 0
        return {name: keras.ops.where(nothing, np.nan, it) for name, it in super().get_metrics_result().items()}

    def _figures(self):
        figures = self.get_metrics_result()
        # Of several workers Keras (3.15) takes the mean, along an axis that figures must have, and with two exchanges
        # for each. One has to do until the epoch is over.
        return {"loss": figures["loss"][None]} if several_workers(self.distribute_strategy) else figures

    def _no_figures(self):
        # Keras (3.15) makes a number of what comes back, and something must. For this one it waits for no device.
        with tf.device("CPU"):
            return {"loss": tf.fill([1] if several_workers(self.distribute_strategy) else [], np.nan)}

    def _get_metrics_result_or_logs(self, logs):
        # Keras (3.15) takes the last step's alone for the epoch's, where that has not returned the same ones.
        return {**logs, **self.get_metrics_result()}

    def build_training(self) -> None:
        """Makes the variables of optimizer and metrics, which the first step would make: so that a checkpoint has them
        from the start. The model must have been compiled."""
        ids = tf.ones([1, 1], tf.int32)
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=((ids, ids), ids, tf.ones([1, 1])))  # of Keras 3.15

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras (3.15) does the same under a strategy, with a batch that it takes from the data and averages over the
        # replicas, which must then have equal shapes and belong to one process.
        if self.distribute_strategy.num_replicas_in_sync > 1:
            self.build_training()

    def translate(
        self,
        texts: str | Texts | tf.data.Dataset,
        strategy: str | Strategy = "greedy",
        *,
        prefixes: str | Texts | None = None,
        min_length: int = 0,
        max_length: int | None = None,
        seed: int = 0,
        batch_size: int = 256,
        details: bool = False,
    ) -> Any:  # tf.Tensor, or Translations with details
        """Translates texts.

        Args:
            texts: strings, any number of them: a list, a generator, an array, a tensor `[N]` or a `tf.data.Dataset` of
                scalar strings; or one string alone. Each is read up to its 1,024th token.
            strategy: "greedy", "beam" or "sampling", or one of these with settings of its own, as in
                `BeamSearch(width=10, n_best=3)`; or an object of a class of your own, see `decoding.Strategy`.
            prefixes: how each translation begins: as many strings as texts, "" for one that is free; for one string
                alone, one. A translation contains its prefix, and goes on for one token at least.
            min_length: how many tokens a translation has at least.
            max_length: where one that does not end by itself is cut, in tokens; a number for all texts. By default the
                length of each text and the lengths seen in training decide, see `limits`.
            seed: decides what sampling draws: for each text by this number and its place among the texts.
            batch_size: how many are decoded together, fewer where they are long. It changes speed and memory, not the
                translations.
            details: whether to return scores, all n-best hypotheses and why each stopped.

        Returns:
            A string tensor `[N]` in the order of `texts`, `[N, n]` where the strategy gives n > 1 hypotheses; without
            the N for one string alone. With `details` it is `Translations`, always `[N, n]`.

        Raises:
            OptionError: for an unknown strategy or one that breaks the contract, a beam wider than the vocabulary,
                impossible lengths, texts that are none or, as those of a set, in no order, another number of prefixes
                than texts, or a prefix with a token that is not in the vocabulary.
            MemoryError: if a batch does not fit into memory.
        """
        if isinstance(strategy, str):
            strategy = STRATEGIES[choose("strategy", strategy, list(STRATEGIES))]()
        check_number("min_length", min_length, least=0, most=LONGEST_TRANSLATION)
        check_number("max_length", max_length, least=max(1, min_length), most=LONGEST_TRANSLATION, optional=True)
        check_number("seed", seed, least=0, below=2**62)  # to which the texts' places are added
        check_number("batch_size", batch_size, least=1)
        check_strategy(strategy)
        width, ends = strategy.rows_per_source, self.target_tokenizer.vocabulary_size - START - 1
        if width > ends and isinstance(strategy, BeamSearch):
            raise OptionError(f"width={width}: wider than the vocabulary, which has {ends} tokens to choose from")
        texts = _as_strings("texts", texts)
        begun = [] if prefixes is None else [self._prefix_ids(_as_strings("prefixes", prefixes), texts.shape)]
        single = texts.shape.rank == 0
        if single:
            texts = texts[None]
        if len(texts) >= _MANY_TEXTS:
            self._parts = cores()
        run = self._translate_with(strategy, details, self._parts, bool(begun))
        count = texts.shape[0]
        texts = texts if count else tf.constant([""])  # not every layer takes a batch of nothing
        lengths = [min(len(text), LONGEST_SOURCE) for text in texts.numpy().tolist()]
        order, batches = _by_length(np.array(lengths), batch_size)
        longest = -1 if max_length is None else max_length
        done = []
        try:
            for batch in batches:
                with _enough_memory(
                    f"{len(batch)} texts of up to {max(lengths[n] for n in batch):,} bytes", batch_size
                ):
                    some = [tf.gather(ids, batch) for ids in begun]
                    done.append(run(tf.gather(texts, batch), seed + batch, min_length, longest, *some))
        except (ValueError, *_XLA_ERRORS) as error:
            if not self.compiles_decoding:
                raise
            warnings.warn(f"decoding goes on uncompiled and slower; XLA says: {one_line(error)}", stacklevel=2)
            self.compiles_decoding = False
            return self.translate(
                texts[0] if single else texts[:count],
                strategy,
                prefixes=prefixes,
                min_length=min_length,
                max_length=max_length,
                seed=seed,
                batch_size=batch_size,
                details=details,
            )
        found = [tf.concat(parts, axis=0) for parts in zip(*done, strict=True)]
        found = [each.to_tensor(PADDING) if isinstance(each, tf.RaggedTensor) else each for each in found]
        found = [tf.gather(each, np.argsort(order)[:count]) for each in found]
        if details:
            return Translations(*found)
        (texts,) = found
        texts = texts[:, 0] if texts.shape[1] == 1 else texts
        return texts[0] if single else texts

    def _prefix_ids(self, prefixes, shape):
        """The ids of prefixes, of this shape: int32 `[N, P]`."""
        if prefixes.shape != shape:
            expected, found = (str(x.num_elements()) if x.rank else "one string" for x in (shape, prefixes.shape))
            raise OptionError(f"prefixes: expected as many as texts, {expected}, and not {found}")
        prefixes = tf.reshape(prefixes, [-1]) if tf.size(prefixes) else tf.constant([""])
        return prefix_ids(self.target_tokenizer, prefixes, "prefixes: text")

    def _compile_translate(self, strategy, details, parts, with_prefixes):
        texts, seeds = tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64)
        length = tf.TensorSpec([], tf.int32)
        prefixes = [tf.TensorSpec([None, None], tf.int32)] * with_prefixes

        def run(texts, seeds, min_length, max_length, *prefixes):
            def translate(texts, seeds, *prefixes):
                return self.translate_batch(texts, strategy, seeds, min_length, max_length, details, *prefixes)

            return side_by_side(translate, parts, texts, seeds, *prefixes)

        return tf.function(run, input_signature=[texts, seeds, length, length, *prefixes])

    def translate_batch(
        self,
        texts: tf.Tensor,
        strategy: Strategy,
        seeds: tf.Tensor | None = None,
        min_length: int | tf.Tensor = 0,
        max_length: int | tf.Tensor = -1,
        details: bool = False,
        prefixes: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, ...]:
        """Translates texts `[B]`, at least one, all together: what `translate` makes a graph of.

        Args:
            texts, strategy, details: as in `translate`.
            seeds, min_length, max_length, prefixes: as in `decode`.

        Returns:
            A tuple of strings `[B, n]` and, with `details`, the other parts of `Translations`.
        """
        with tf.device("CPU"):  # where strings are; its small operations would each wait for a GPU
            source = self.source_tokenizer.tokenize(texts)[:, :LONGEST_SOURCE]
        ids, scores, ranked_by, stopped = self.decode(source, strategy, min_length, max_length, seeds, prefixes)
        if details and scores is None:
            target = tf.pad(ids, [[0, 0], [0, 0], [1, 0]], constant_values=START)
            # One hypothesis after another, so that memory does not grow with how many there are.
            each = tf.map_fn(
                lambda target: self.log_likelihood(source, target),
                tf.transpose(target, [1, 0, 2]),
                fn_output_signature=tf.float32,
            )
            scores = ranked_by = tf.ensure_shape(tf.transpose(each), ids.shape[:2])
        with tf.device("CPU"):
            rows, count, length = (tf.shape(ids)[axis] for axis in range(3))
            translations = self.target_tokenizer.detokenize(tf.reshape(ids, [rows * count, length]))
            translations = tf.ensure_shape(tf.reshape(translations, [rows, count]), ids.shape[:2])
            found = [translations, scores, ranked_by, tf.gather(tf.constant(STOPPED), stopped), ids]
            found = found if details else found[:1]
            if ids.shape[1] > strategy.n_best:
                found = _first_different(strategy.n_best, *found)
            if details:
                found[-1] = tf.RaggedTensor.from_tensor(found[-1], padding=PADDING, ragged_rank=2)
            return tuple(found)

    @tf.autograph.experimental.do_not_convert  # tokenizers alone may use Python's `if` on tensors
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

    def score(
        self, sources: Texts, targets: Texts | tf.Tensor, batch_size: int = 256, per_token: bool = False
    ) -> tf.Tensor | tf.RaggedTensor:
        """The log-likelihood of each target, given its source.

        Args:
            sources: strings, N of them.
            targets: as many strings; or their ids `[N, T]` as they are, then padding, such as `ids[:, 0]` of
                `Translations`, in which END is scored only where there is one.
            batch_size: how many pairs are scored together.
            per_token: whether to return the log-probability of each token in place of their sum.

        Returns:
            float32 `[N]`, in nats: the sum over the tokens of the target and END. With `per_token` those of all
            tokens, ragged float32 `[N, (T)]`.

        Raises:
            OptionError: if there are not as many targets as sources, or what is given are no texts.
            MemoryError: if a batch does not fit into memory.
        """
        sources = _as_strings("sources", sources)
        if not sources.shape.rank:
            raise OptionError("sources and targets: expected strings, [N], and not one alone; put it into a list")
        targets = _as_targets(targets, sources, self.target_tokenizer.vocabulary_size)
        lengths = np.maximum(_bytes_or_tokens(sources), _bytes_or_tokens(targets))
        order, batches = _by_length(lengths, batch_size)

        def kept(each, ids):
            return tf.RaggedTensor.from_tensor(each, _lengths(ids)) if per_token else tf.reduce_sum(each, axis=1)

        scores = [kept(tf.zeros([0, 1]), tf.zeros([0, 1], tf.int32))]  # for no pairs
        for batch in batches:
            with _enough_memory(f"{len(batch)} pairs of up to {max(lengths[batch]):,} bytes", batch_size):
                target = self._target_ids(tf.gather(targets, batch))
                scores.append(kept(self._score(tf.gather(sources, batch), target), target[:, 1:]))
        return tf.gather(tf.concat(scores, axis=0), np.argsort(order))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None, None], tf.int32)])
    def _score(self, sources, target):
        source = self.source_tokenizer.tokenize(sources)
        return side_by_side(functools.partial(self.log_likelihood, per_token=True), cores(), source, target)

    def _target_ids(self, targets):
        """Ids `[B, T + 1]` from START on: of texts with END, and of ids as they are."""
        if targets.dtype == tf.string:
            return self.target_tokenizer.tokenize(targets, start_end=True)
        longest = tf.maximum(1, tf.reduce_max(_lengths(targets)))  # the decoder takes a step at least
        return tf.pad(targets[:, :longest], [[0, 0], [1, 0]], constant_values=START)

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

    def encode(self, texts: Texts) -> Encoded:
        """What the encoder makes of texts, to look at it or to train a probe on it.

        Args:
            texts: strings, N of them, at least one. They are one batch: of many texts, give a part at a time.

        Returns:
            `Encoded`: the memory `[N, S, D]`, S being the tokens of the longest text; the mask `[N, S]` of real tokens;
            the state that the decoder starts from; the source ids `[N, S]`.

        Raises:
            OptionError: for no text, or what is none.
        """
        texts = tf.reshape(_as_strings("texts", texts), [-1])
        if not len(texts):
            raise OptionError("texts: expected one or more")
        return self._encode(texts)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def _encode(self, texts):
        return encode(self.encoder, self.source_tokenizer.tokenize(texts))

    def export(
        self,
        filepath: Path | str,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: None = None,
        *,
        beam: BeamSearch | None = None,
        search: Strategy | None = None,
        probe: Sequence[str] = (),
    ) -> None:
        """Writes a SavedModel for programs without this library, see `exporting.export`.

        Raises:
            OptionError: for another format, or signatures other than that of texts.
        """
        if format != "tf_saved_model":
            raise OptionError(
                f"format={format!r}: expected 'tf_saved_model'; others hold no tokenizers and no decoding"
            )
        if input_signature is not None:
            raise OptionError("input_signature: what is exported always takes strings [N], and for any N")
        export(self, filepath, **({"beam": beam} if beam else {}), search=search, probe=probe)
        if verbose:
            print(f"Saved to {filepath}")

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

    @property
    def has_attention(self) -> bool:
        """Whether the decoder can say where it looks, as `attention` wants to know."""
        return has_attention(self.decoder)

    def attention(
        self, sources: Texts, targets: Texts | tf.Tensor | None = None, batch_size: int = 256
    ) -> list[Alignment]:
        """Where the decoder looks while it writes each target.

        Args:
            sources: strings.
            targets: as many strings, or ids as in `score`; by default the greedy translations.
            batch_size: how many are looked at together, fewer where they are long.

        Returns:
            A list of `Alignment`.

        Raises:
            OptionError: if the decoder has no attention, or there are not as many targets as sources.
            MemoryError: if a batch does not fit into memory.
        """
        if not self.has_attention:
            raise OptionError(f"attention: {type(self.decoder).__name__} has no attention weights to return")
        sources = tf.reshape(_as_strings("sources", sources), [-1])
        targets = self.translate(sources) if targets is None else targets
        targets = _as_targets(targets, sources, self.target_tokenizer.vocabulary_size)
        lengths = np.maximum(_bytes_or_tokens(sources), _bytes_or_tokens(targets))
        order, batches = _by_length(lengths, batch_size)
        found = []
        for batch in batches:
            with _enough_memory(f"{len(batch)} texts of up to {max(lengths[batch]):,} bytes", batch_size):
                found += self._attention(tf.gather(sources, batch), self._target_ids(tf.gather(targets, batch)))
        return [found[place] for place in np.argsort(order)]

    def _attention(self, sources, target):
        source = self.source_tokenizer.tokenize(sources)
        encoded, state = start(self.decoder, encode(self.encoder, source), tf.shape(target)[1] - 1)
        *_, weights = self.decoder(target[:, :-1], encoded, state, return_attention=True)

        source, target = spelled(self.source_tokenizer, source), spelled(self.target_tokenizer, target[:, 1:])
        return [  # an empty source is one step of nothing; copied, or each would keep the weights of its whole batch
            Alignment(source, target, row[: len(target), : max(1, len(source))].copy())
            for source, target, row in zip(source, target, weights.numpy(), strict=True)
        ]

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


def spelled(tokenizer: Tokenizer, ids: tf.Tensor | np.ndarray) -> list[list[str]]:
    """The tokens of ids `[B, T]`, END included, without padding: B lists."""
    vocabulary = tokenizer.vocabulary
    return [[vocabulary[number] for number in row if number != PADDING] for row in np.asarray(ids)]


def _checked(data):
    """What Keras gives a step as (source, target), or with weights of its pairs or labels, (source, target, `[B, T]`).

    Raises:
        OptionError: for data of another form.
    """
    source, target, weights = keras.utils.unpack_x_y_sample_weight(data)
    sides = [
        None if isinstance(side, tuple | list | dict | None) else tf.convert_to_tensor(side)
        for side in (source, target)
    ]
    if any(side is None or side.dtype == tf.string or side.shape.rank not in (2, 3) for side in sides):
        raise OptionError(
            "fit, evaluate: expected (source, target), ids [B, S] and [B, T + 1] or their one-hot rows, as batch_pairs "
            "makes them; what the decoder reads and predicts is made of the target"
        )
    if weights is None:
        return sides
    rows, length = tf.unstack(tf.shape(sides[1])[:2])
    each = tf.reshape(tf.cast(weights, tf.float32), [rows, -1])  # of pairs `[B, 1]`, or of labels
    return *sides, tf.broadcast_to(each, [rows, length - 1])


def _refuse_texts(method, x):
    """Refuses texts, of which Keras would say nothing that helps."""
    first, *_ = tf.nest.flatten(getattr(x, "element_spec", x))
    kind = getattr(first, "dtype", None)
    if isinstance(first, str | bytes) or kind == tf.string or getattr(kind, "kind", "") in ("U", "S", "O"):
        instead = "`translate` takes texts" if method == "predict" else "batch_pairs makes them of pairs of texts"
        raise OptionError(f"{method}: expected batches of ids or one-hot rows, not texts; {instead}")


def _refuse_class_weight(class_weight):
    if class_weight is not None:
        raise OptionError("class_weight: pairs have no classes; weight them, or their labels, with sample_weight")


@contextlib.contextmanager
def _whole_epochs(steps):
    """Unless a number of steps was asked for, keeps Keras (3.15) from warning, of data that does not know its length,
    that it has come to its end."""
    with warnings.catch_warnings():
        if not steps:
            warnings.filterwarnings("ignore", "Your input ran out of data", UserWarning)
        yield


def _as_strings(argument, texts):
    """Texts as a string tensor `[N]`, or `[]` of one string alone."""
    if isinstance(texts, set | frozenset | dict):
        raise OptionError(f"{argument}: a {type(texts).__name__} gives them in no order; expected a list of strings")
    if isinstance(texts, Iterable) and not isinstance(texts, str | bytes) and not hasattr(texts, "shape"):
        texts = list(texts)  # such as a generator or a dataset
    try:
        found = tf.convert_to_tensor(texts, tf.string)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise OptionError(f"{argument}: expected a string, or a list of strings ({one_line(error)})") from None
    if found.shape.rank > 1:
        raise OptionError(
            f"{argument}: expected a string, or a list of strings, and not an array of shape {found.shape}"
        )
    return found


def _as_targets(targets, sources, vocabulary_size):
    """Targets of sources `[N]`, as many: strings `[N]`, or ids `[N, T]` as they are."""
    axes = getattr(targets, "ndim", 0)
    if axes < 2:
        found = tf.reshape(_as_strings("targets", targets), [-1])
    else:
        ids = np.asarray(targets)
        padding = ids == PADDING
        if axes > 2 or ids.dtype.kind not in "iu" or np.any((ids < 0) | (ids >= vocabulary_size)):
            raise OptionError(
                f"targets: expected strings, or ids [N, T] below {vocabulary_size}, such as found.ids[:, 0]"
            )
        if np.any(padding[:, :-1] & ~padding[:, 1:]):
            raise OptionError("targets: expected ids that are padded on the right, and not before tokens")
        found = tf.cast(ids, tf.int32)
    if len(found) != len(sources):
        raise OptionError(f"targets: expected as many as sources, {len(sources)}, and not {len(found)}")
    return found


def _bytes_or_tokens(texts):
    """How long each of texts `[N]` is in bytes, or each row of ids `[N, T]` in tokens: an array `[N]`."""
    return (tf.strings.length(texts) if texts.dtype == tf.string else _lengths(texts)).numpy()


def prefix_ids(tokenizer: Tokenizer, prefixes: Texts, place: str, first: int = 1) -> tf.Tensor:
    """Tokenizes the prefixes of N translations: int32 `[N, P]`.

    Raises:
        OptionError: if one has unknown tokens; names `place` and the prefix's number, counted from `first`.
    """
    prefixes = tf.convert_to_tensor(prefixes)
    ids = tokenizer.tokenize(prefixes)
    for row in np.flatnonzero(np.any(ids == UNKNOWN, axis=1)).tolist():
        tokens, *_ = tokenizer.count(prefixes[row : row + 1])
        unknown = [repr(token.decode()) for token in tokens.numpy() if UNKNOWN in tokenizer.tokenize([token])]
        what = f"{place} {row + first}: the prefix {prefixes[row].numpy().decode(errors='replace')!r}"
        raise OptionError(f"{what} has tokens that the vocabulary has not: {', '.join(unknown)}")
    return ids


@contextlib.contextmanager
def _enough_memory(batch, batch_size):
    """Raises a `MemoryError` that says what the batch was if the device has not enough memory for it."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise MemoryError(f"out of memory for {batch} together; lower batch_size={batch_size}") from error


def _follows_steps(callback):
    """Whether a callback has something to do after each step of training."""
    hooks = ("on_batch_end", "on_train_batch_end")
    # A `LambdaCallback` has functions in place of methods.
    found = [(hook, getattr(getattr(callback, hook), "__func__", None)) for hook in hooks]
    return any(function is not getattr(keras.callbacks.Callback, hook) for hook, function in found)


def _first_different(count, texts, *known):
    """Of the texts of N hypotheses of each source, `[B, N]`, and the rest of `Translations`, if it is known too, the
    first so many with different texts.

    If there are fewer, empty hypotheses follow, as in `BeamSearch`.
    """
    equal = tf.cast(texts[:, :, None] == texts[:, None], tf.int32)
    repeated = tf.argmax(equal, axis=2, output_type=tf.int32) < tf.range(tf.shape(texts)[1])
    order = tf.argsort(tf.cast(repeated, tf.int32), axis=1, stable=True)[:, :count]
    nothing = "", NEVER, NEVER, STOPPED[LIMITED], PADDING
    found = zip((texts, *known), nothing, strict=False)
    where = {2: repeated, 3: repeated[:, :, None]}
    return [tf.gather(tf.where(where[each.shape.rank], empty, each), order, batch_dims=1) for each, empty in found]


def _rounded_up(size, least=16):
    """The smallest of `least` times 1, 2, 4, ... that is not below a size, so that few sizes are compiled."""
    return tf.bitwise.left_shift(least, tf.reduce_sum(tf.cast(size > least * 2 ** tf.range(20), tf.int32)))


def _any_size(tokens):
    """What ids `[B, T]`, or their one-hot form, are for all B and T: a `tf.TensorSpec`."""
    return tf.TensorSpec([None, None, *tokens.shape[2:]], tokens.dtype)


def _padded(tokens, rows, length):
    """Ids `[B, T]`, or their one-hot form, with padding to so many rows and tokens."""
    more = [rows, length] - tf.shape(tokens)[:2]
    return tf.pad(tokens, [[0, more[0]], [0, more[1]], *[[0, 0]] * (tokens.shape.rank - 2)])


def _lengths(source):
    """How many tokens each row of ids `[B, S]`, or of their one-hot form, holds: int32 `[B]`."""
    return tf.reduce_sum(tf.cast(holds_token(source), tf.int32), axis=1)


def _by_length(lengths, batch_size):
    """An order in which like lengths stand together, so that short rows do not wait for long ones, and its batches."""
    order = np.argsort(lengths, kind="stable")
    ordered = np.maximum(np.asarray(lengths)[order], _BATCH_LENGTH)
    batches, start = [], 0
    while start < len(order):
        rows = ordered[start : start + batch_size]
        fit = np.arange(1, len(rows) + 1) * rows <= batch_size * _BATCH_LENGTH
        batches.append(order[start : start + max(1, int(np.count_nonzero(fit)))])
        start += len(batches[-1])
    return order, batches
