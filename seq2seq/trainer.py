"""`Trainer`: how Keras runs the steps of a model of token sequences, so that `train_step` contains only the method.

It averages over real tokens and not over padding, skips steps whose gradient is not finite, divides batches among
several devices, and keeps a GPU from waiting for metrics that nobody reads.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines import OptionError
from pipelines.tokens import END, Tokenizer
from seq2seq.checking import check_data, check_sizes, checked_batch, refuse_class_weight, refused_batches, with_checks
from seq2seq.compilation import compiled_by_xla, is_deterministic, on_gpu, xla_works
from seq2seq.distribution import mean_over_replicas, rows_of_replica, several_workers, whole_batches
from seq2seq.metrics import Perplexity, TokenCrossentropy, check_loss, of_tokens


class Trainer(keras.Model):
    """A `keras.Model` whose `train_step` gets a checked batch, on several devices this one's rows of it, and uses
    `update_weights` and `measure`; `Seq2Seq.train_step` shows how. Each batch is also passed to `count_lengths`.

    A subclass has both tokenizers, a method `check_vocabularies`, a number `label_smoothing`, and a scalar weight
    `gradient_norm`, which holds the norm of the last batch's gradient before clipping.
    """

    # Of the subclass:
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    train_step: Any
    test_step: Any
    count_lengths: Callable
    check_vocabularies: Callable

    train_function: Any  # Keras builds it from `train_step`
    test_function: Any  # and this from `test_step`

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Keras converts the metrics of each step to numbers, which waits for a GPU. If nobody reads them (`verbose=0`,
        # no callback for batches), steps are quiet: they return a constant, and Keras gets the metrics once per epoch,
        # from `_get_metrics_result_or_logs`. Keras keeps one function of each kind in the model. A quiet `fit` and a
        # `train_on_batch` need different ones, so `_steps` puts the right ones in place while they run.
        self._quiet = False
        self._functions: dict[bool, tuple] = {}  # {whether quiet: Keras's (train_function, test_function)}
        self.called: frozenset[str] = frozenset()  # which of its parts the step called when it was traced

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer | None = "adam",
        loss: str | keras.losses.Loss = "auto",
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = "auto",
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`; by default with cross-entropy, accuracy and perplexity of real tokens, and without
        `jit_compile`.

        A custom loss or metric is given ids `[B, T]` as labels, logits `[B, T, V]` and weights `[B, T]`, 0 for padding.
        `metrics` are weighted as `weighted_metrics` are, so that padding does not count. Functions, Keras's metrics and
        those that inherit `update_state` from them see one token after another: labels `[N]`, logits `[N, V]`.

        Raises:
            OptionError: for a loss that cannot be computed, counts padding, is not a mean or takes probabilities; for a
                metric that is unknown, takes probabilities, or has the name "loss" or that of another one.
        """
        if loss == "auto":
            loss = TokenCrossentropy(self.label_smoothing)
        default = ["accuracy", Perplexity()] if weighted_metrics == "auto" else []
        given = tf.nest.flatten([metrics, [] if default else weighted_metrics])
        own = [of_tokens(metric) for metric in given if metric is not None]
        names = [metric.name for metric in own]
        if "loss" in names:
            raise OptionError("metrics: 'loss' is the name of the loss; give the metric another one")
        if twice := [name for name in names if names.count(name) > 1]:
            raise OptionError(f"metrics: two are called {twice[0]!r}; give one of them another name")
        metrics = [metric for metric in map(of_tokens, default) if metric.name not in names] + own
        kwargs.setdefault("jit_compile", False)  # on a GPU, Keras would compile each shape of batch
        super().compile(optimizer, loss, loss_weights, weighted_metrics=metrics, **kwargs)
        self._trained = [weight.trainable for weight in self.weights]
        self._functions = {}
        self._compiled_update = functools.lru_cache(maxsize=1)(self._compile_update)
        if loss is not None and type(loss) is not TokenCrossentropy:
            self.compiled = False
            check_loss(loss, self.compute_loss, self.target_tokenizer.vocabulary_size)
            self.compiled = True

    def compile_from_config(self, config: dict) -> None:
        """Compile a loaded model as the saved one was. Keras asks for this if `compile` is overridden."""
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
        *,
        validation_data: Any = None,
        shuffle: bool | None = None,
        class_weight: None = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`, with a warning if the learning rate has fallen to 0, or if validation has no batches.

        `x` holds batches (source, target) as `batch_pairs` makes them. Or it is an array of sources, ids or one-hot,
        and `y` an array of targets. Weights, of pairs `[B]` or of labels `[B, T]`, are a third part of each batch or,
        with arrays, `sample_weight`. They scale the contribution of a pair to loss, accuracy and perplexity. Arrays and
        a `PyDataset` are shuffled, unless `shuffle=False`.

        On a GPU, no step waits for the device if `verbose=0` and no callback has an `on_train_batch_end` or
        `on_test_batch_end`.

        With several replicas, `x` and `validation_data` must each be a `tf.data.Dataset` of whole batches or what
        `distribution.distribute` returns; with several workers, the latter.

        Raises:
            OptionError: for data of another form or without batches, one-hot rows of another size than the vocabulary,
                a `class_weight`, a vocabulary that has changed, nothing to train, or weights frozen after `compile`;
                for ids that the vocabulary lacks, padding before a token, or targets without START. On a GPU or with
                `jit_compile=True`, the last three are found only in arrays; in a dataset for validation, never.
        """
        self._check_ready("fit", class_weight)
        check_data("fit", self._tokenizers, x, y)
        if validation_data is not None:
            arrays = isinstance(validation_data, tuple | list)
            check_data("validation_data", self._tokenizers, *(validation_data if arrays else [validation_data]))
        steps = self.optimizer.iterations.numpy() if self.compiled and self.optimizer else 0
        # `BackupAndRestore` sets it when it restores, and Keras (3.15) would also skip these epochs in the next `fit`.
        self._initial_epoch = None
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
        ends = kwargs.get("steps_per_epoch") or kwargs.get("validation_steps")
        with self._steps(quiet), without_end_warning(ends), refused_batches(self._tokenizers):
            history = super().fit(
                x, y, batch_size, epochs, verbose, callbacks, validation_data=validation_data, shuffle=shuffle, **kwargs
            )
        of_validation = [figures for name, figures in history.history.items() if name.startswith("val_")]
        if of_validation and np.isnan(of_validation).all():  # the accuracy of a model that has diverged is 0
            warnings.warn("fit: validation_data has no batches, so all its figures are NaN", stacklevel=2)
        idle = self.optimizer and self.optimizer.iterations.numpy() == steps
        without_loss = np.isnan(history.history.get("loss", 0.0)).all()
        if history.epoch and idle and without_loss and np.isfinite(self.gradient_norm.numpy()):  # or all were skipped
            raise OptionError("fit: the data holds no batches")
        return history

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: None = None, return_dict: bool = False
    ) -> Any:
        """As `keras.Model.train_on_batch`, with weights as in `fit`.

        Raises:
            OptionError: as `fit`.
        """
        self._check_ready("train_on_batch", class_weight)
        check_data("train_on_batch", self._tokenizers, x, y)
        with self._steps(quiet=False):
            return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """As `keras.Model.test_on_batch`; for data see `fit`."""
        self.check_vocabularies()
        check_data("test_on_batch", self._tokenizers, x, y)
        with self._steps(quiet=False):
            return super().test_on_batch(x, y, sample_weight, return_dict=return_dict)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`; for data see `fit`."""
        self.check_vocabularies()
        check_data("evaluate", self._tokenizers, x, y)
        with without_end_warning(kwargs.get("steps")):
            return super().evaluate(whole_batches(self.distribute_strategy, x), y, *args, **kwargs)

    def _check_ready(self, place, class_weight):
        """Check that a model may be trained as it is."""
        self.check_vocabularies()
        refuse_class_weight(class_weight)
        if self.compiled and self._trained != [weight.trainable for weight in self.weights]:
            raise OptionError(f"{place}: weights were frozen or unfrozen after `compile`, so compile again")

    @property
    def _tokenizers(self):
        return self.source_tokenizer, self.target_tokenizer

    @contextlib.contextmanager
    def _steps(self, quiet):
        """Inside, Keras's functions return metrics after each step or, if `quiet`, none."""
        before = self._quiet
        self._use_functions(quiet)
        try:
            yield
        finally:
            self._use_functions(before)

    def _use_functions(self, quiet):
        self._functions[self._quiet] = self.train_function, self.test_function
        self._quiet = quiet
        self.train_function, self.test_function = self._functions.get(quiet, (None, None))

    def make_train_function(self, force: bool = False) -> Callable | None:
        """As in `keras.Model`, of `train_step` as `_run_train_step` runs it."""
        if self.optimizer and not self.optimizer.built:  # else the first step would make variables and be traced twice
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        step = self.train_step
        self.train_step = functools.partial(self._run_train_step, step)  # Keras reads it once, here
        try:
            return super().make_train_function(force)
        finally:
            del self.train_step

    def make_test_function(self, force: bool = False) -> Callable | None:
        """As in `keras.Model`, of `test_step` with a checked batch."""
        step = self.test_step
        self.test_step = lambda data: self._after_reading(step, checked_batch(data))
        try:
            return super().make_test_function(force)
        finally:
            del self.test_step

    def _run_train_step(self, step, data):
        """Check a batch, count its lengths and run a `train_step` with it."""
        if not (self.optimizer and self.trainable_weights):
            reason = "all weights are frozen; set trainable=True" if self.optimizer else "there is no optimizer"
            raise OptionError(f"fit: {reason} and compile again, or use `evaluate`, which only measures")
        if not on_gpu():  # where the host would wait for the device
            data = with_checks(data, self._tokenizers)
        batch = checked_batch(data)
        check_sizes("fit", self._tokenizers, batch)
        for side, tokenizer in zip(("source", "target"), self._tokenizers, strict=True):
            if tokenizer.vocabulary_size == END + 1:
                raise OptionError(f"fit: the {side} vocabulary is empty; call `adapt` before the model is made")
        self.count_lengths(*batch[:2])
        return self._after_reading(step, batch)

    def _after_reading(self, step, batch):
        """Run a step with this replica's rows of a batch.

        Keras notices the end of the data by a step that gets no batch. What does not depend on the batch runs in this
        step too, such as the count of a `keras.metrics.Mean`, so the steps of a user's own model wait for the batch. In
        those of `Seq2Seq` itself, everything depends on it. (Made to wait, they would be up to 6% slower with 32
        units.)
        """
        own = type(self).__module__ != "seq2seq.model"
        with tf.control_dependencies(batch if own else []):
            return step(rows_of_replica(batch))

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> tf.Tensor:
        """As in `keras.Model`: the mean over this replica's tokens. Keras divides it by the number of replicas, as if
        all had the same number of tokens; `update_weights` and `measure` weight it by the real number."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        replicas = self.distribute_strategy.num_replicas_in_sync
        return loss if replicas == 1 else loss * replicas

    def update_weights(self, gradients: list, weights: tf.Tensor) -> tf.Tensor:
        """Take a step of the optimizer, if the gradient of the whole batch is finite.

        Args:
            gradients: of the mean loss over this replica's rows, scaled by `optimizer.scale_loss`.
            weights: of the tokens of these rows, 0 for padding.

        Returns:
            A scalar bool: whether the gradient was finite.
        """
        self.called |= {"update_weights"}
        gradients = mean_over_replicas(gradients, tf.reduce_sum(weights))
        plain = is_deterministic() or self.run_eagerly or tf.distribute.has_strategy()
        plain |= any(gradient is None for gradient in gradients)
        if not plain and on_gpu() and xla_works() and (compiled := self._compiled_update()):
            for gradient, weight in zip(gradients, self.trainable_weights, strict=True):
                gradient.set_shape(weight.shape)  # of a table of which rows were looked up it may be unknown
            return compiled(*gradients)
        return self._update(*gradients)

    def _compile_update(self):
        """`_update` compiled by XLA, which joins the many small operations of clipping and optimizer; None if it
        refuses one. Sizes never change, so this is compiled once."""
        specs = [tf.TensorSpec(weight.shape, weight.dtype) for weight in self.trainable_weights]
        return compiled_by_xla("updates of weights", self._update, specs)

    def _update(self, *gradients):
        norm = tf.cast(tf.linalg.global_norm(gradients), tf.float32)
        self.gradient_norm.assign(norm / self.optimizer.scale_loss(1.0))
        finite = tf.math.is_finite(self.gradient_norm)
        _apply_if(finite, self.optimizer, list(gradients), self.trainable_weights)
        return finite

    def measure(
        self,
        loss: tf.Tensor,
        labels: tf.Tensor,
        logits: tf.Tensor,
        weights: tf.Tensor,
        condition: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Add a batch to the figures of the epoch, if a condition holds, and return these figures.

        Each replica adds its own rows; Keras sums what all have added when the figures are read. Metrics that a
        subclass keeps, such as a `keras.metrics.Mean`, are its own to update; they are among the figures.
        """

        def add():
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss, sample_weight=tf.reduce_sum(weights))
            self.compute_metrics(None, labels, logits, weights)

        if condition is None:
            with tf.control_dependencies([loss]):  # as in `_after_reading`
                add()
        else:
            _run_if(condition, add, self.metrics_variables)
        return self._figures()

    def _figures(self):
        """What a step returns to Keras."""
        several = several_workers(self.distribute_strategy)
        if self._quiet:  # Keras (3.15) converts the result to a number; for one on the CPU it waits for no device
            with tf.device("CPU"):
                return {"loss": tf.fill([1] if several else [], np.nan)}
        figures = self.get_metrics_result()
        # With several workers, Keras (3.15) averages each figure over axis 0, which it must therefore have, and
        # exchanges messages twice for each. Until the epoch is over, there is only one figure.
        return {"loss": figures["loss"][None]} if several else figures

    def get_metrics_result(self) -> dict[str, tf.Tensor]:
        """The metrics so far. They are NaN if no batch has counted, not Keras's 0, which is the best possible loss."""
        counts = {metric.name: metric.count for metric in self.metrics if isinstance(metric, keras.metrics.Mean)}
        figures = super().get_metrics_result()
        if several := [name for name, it in figures.items() if keras.ops.shape(it)]:
            raise OptionError(f"metrics: the result of {several[0]!r} is not a single number")
        counted = {name: counts.get(name, counts["loss"]) > 0 for name in figures}
        return {name: keras.ops.where(counted[name], it, np.nan) for name, it in figures.items()}

    def _get_metrics_result_or_logs(self, logs):
        # Keras (3.15) takes the last step's figures for the epoch's if that step has not returned the same ones.
        if not all(getattr(metric, "built", True) for metric in self.metrics):
            return logs  # of a custom step that does not call `measure`
        figures = {name: it for name, it in self.get_metrics_result().items() if name not in logs or not np.isnan(it)}
        return {**logs, **figures}

    def build_training(self) -> None:
        """Make the variables of optimizer and metrics before the first step does, so that a checkpoint has them from
        the start. The model must have been compiled."""
        ids = tf.ones([1, 1], tf.int32)
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=((ids, ids), ids, tf.ones([1, 1])))  # of Keras 3.15

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Under a strategy, Keras (3.15) does the same with a batch of the data that it averages over the replicas,
        # which must then have equal shapes and belong to one process.
        if self.distribute_strategy.num_replicas_in_sync > 1:
            self.build_training()


@contextlib.contextmanager
def without_end_warning(steps: int | None) -> Iterator[None]:
    """Keep Keras (3.15) from warning that a dataset of unknown length has ended, unless so many steps were asked
    for."""
    with warnings.catch_warnings():
        if not steps:
            warnings.filterwarnings("ignore", "Your input ran out of data", UserWarning)
        yield


def _follows_steps(callback):
    """Whether a callback has something to do after each step."""
    hooks = ("on_batch_end", "on_train_batch_end", "on_test_batch_end")
    # A `LambdaCallback` has functions instead of methods.
    found = [(hook, getattr(getattr(callback, hook), "__func__", None)) for hook in hooks]
    return any(function is not getattr(keras.callbacks.Callback, hook) for hook, function in found)


def _apply_if(
    condition: tf.Tensor, optimizer: keras.optimizers.Optimizer, gradients: list, variables: list[keras.Variable]
) -> None:
    """Take a step of an optimizer if a condition holds, with gradients that all replicas have alike.

    A `LossScaleOptimizer` always sees the gradients. If they are not finite, it takes no step and halves its scale.
    """
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if scales:  # it looks at each number, and the numbers can be finite while the norm is not
        gradients = [g if g is None else tf.where(condition, g, np.nan) for g in gradients]

    def apply(gradients):
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    def together(strategy, condition, gradients):
        first = strategy.experimental_local_results(condition)[0]
        # Keras (3.15) clips what each replica has found and sums it then; here it has been summed, so that what is
        # clipped is the gradient of the whole batch. Tests of clipping notice if Keras begins to do otherwise.
        inner = optimizer.inner_optimizer if scales else optimizer
        inner._all_reduce_sum_gradients = list
        try:
            if scales:
                strategy.run(apply, args=(gradients,))
            else:
                changed = [*variables, *optimizer.variables]
                _run_if(first, lambda: strategy.run(apply, args=(gradients,)), changed)
        finally:
            del inner._all_reduce_sum_gradients

    # All replicas take the branch together: an optimizer's update synchronizes them, so it cannot run inside a branch.
    tf.distribute.get_replica_context().merge_call(together, args=(condition, gradients))


def _run_if(condition: tf.Tensor, run: Callable[[], Any], changed: Iterable[keras.Variable]) -> None:
    """Run a function that changes variables, if a condition holds.

    A GPU has to be waited for to know which branch to take. So there the function runs in any case, and the variables
    get their values back if the condition does not hold. Under a strategy this would copy all variables from one device
    to the others, so there the branch is taken.
    """
    if tf.distribute.has_strategy() or not on_gpu():
        tf.cond(condition, run, lambda: None)
        return
    before = [(variable, tf.convert_to_tensor(variable)) for variable in changed]
    with tf.control_dependencies([condition]):  # Keras detects the end of the data by a step that gets no batch
        run()
    for variable, value in before:
        variable.assign(tf.where(condition, variable, value))
