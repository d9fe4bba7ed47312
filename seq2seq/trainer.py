"""Training and measuring in steps."""

import contextlib
import functools
import textwrap
import time
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines import OptionError
from seq2seq.contract import one_line
from seq2seq.distribution import several_workers, whole_batches
from seq2seq.metrics import Perplexity, TokenAccuracy, TokenCrossentropy, check_loss, of_tokens
from seq2seq.recurrence import compiling


class Trainer(keras.Model):
    """Trains."""

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


def _follows_steps(callback):
    """Whether a callback has something to do after each step of training."""
    hooks = ("on_batch_end", "on_train_batch_end")
    # A `LambdaCallback` has functions in place of methods.
    found = [(hook, getattr(getattr(callback, hook), "__func__", None)) for hook in hooks]
    return any(function is not getattr(keras.callbacks.Callback, hook) for hook, function in found)


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
