"""The losses and metrics of training, over real tokens only.

Labels are ids `[B, T]`, logits `[B, T, V]`; sample weights `[B, T]` are 1 for a token and 0 for padding.
"""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines import OptionError, construct, load_class
from pipelines.options import one_line
from pipelines.tokens import END, PADDING, START
from seq2seq.config import Config


def token_losses(labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """The crossentropy of each token, -log P(token), for custom losses.

    Without smoothing, the same as `tf.nn.sparse_softmax_cross_entropy_with_logits`, which is several times slower if
    results must be deterministic.

    Args:
        labels: ids `[B, T]`.
        logits: `[B, T, V]`.
        label_smoothing: share of each label that is spread evenly over all tokens (Szegedy et al. 2016,
            arxiv.org/abs/1512.00567).

    Returns:
        Nats `[B, T]`. At padding they have no meaning; weights exclude them.
    """
    labels, size = tf.cast(labels, tf.int32), tf.shape(logits)[-1]

    @tf.custom_gradient  # because TensorFlow's own gradient passes over [B, T, V] twice as often
    def losses(logits):
        log_probabilities = tf.nn.log_softmax(logits)
        nats = -tf.gather(log_probabilities, labels, batch_dims=2)
        if label_smoothing:
            nats -= label_smoothing * (nats + tf.reduce_mean(log_probabilities, axis=-1))

        def gradient(upstream):
            spread = label_smoothing / tf.cast(size, logits.dtype)
            wanted = tf.one_hot(labels, size, 1 - label_smoothing + spread, spread)
            return (tf.exp(log_probabilities) - wanted) * upstream[..., None]

        return nats, gradient

    return losses(logits)


@keras.saving.register_keras_serializable("seq2seq")
class TokenCrossentropy(keras.losses.Loss):
    """Crossentropy of the correct tokens, averaged over them, in nats.

    It is divided by the sum of the weights, not by B x T. Otherwise, a token would count less if other rows of its
    batch are longer.

    Args:
        label_smoothing: share of each label that is spread evenly over all tokens (Szegedy et al. 2016,
            arxiv.org/abs/1512.00567).
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        reduction: str = "mean_with_sample_weight",
        name: str = "token_crossentropy",
        dtype: str | None = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.label_smoothing = label_smoothing

    def call(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return token_losses(labels, logits, self.label_smoothing)

    def get_config(self) -> dict:
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


class MeanTokenLoss(keras.metrics.Mean):
    """The crossentropy per token in nats. Exact over an epoch: every token counts the same."""

    def update_state(self, labels: tf.Tensor, logits: tf.Tensor, sample_weight: tf.Tensor | None = None) -> None:
        super().update_state(_flat(token_losses(labels, logits)), _flat(sample_weight))


@keras.saving.register_keras_serializable("seq2seq")
class Perplexity(MeanTokenLoss):
    """The exponential of the crossentropy per token: the effective number of tokens that the model chooses between."""

    def __init__(self, name: str = "perplexity", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self._direction = "down"  # where Keras's callbacks (3.15) look for what an improvement is

    def result(self) -> tf.Tensor:
        return tf.exp(super().result())


@keras.saving.register_keras_serializable("seq2seq")
class Accuracy(keras.metrics.Mean):
    """The share of tokens that are predicted correctly, given the correct ones before them.

    The same as Keras's, whose `argmax` (3.15) passes over `[B, T, V]` several times more, to tell 0 from -0.
    """

    def __init__(self, name: str = "accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self._direction = "up"  # as in `Perplexity`

    def update_state(self, labels: tf.Tensor, logits: tf.Tensor, sample_weight: tf.Tensor | None = None) -> None:
        right = tf.argmax(logits, axis=-1) == tf.cast(labels, tf.int64)
        super().update_state(_flat(tf.cast(right, tf.float32)), _flat(sample_weight))


@keras.saving.register_keras_serializable("seq2seq")
class OfTokens(keras.metrics.Metric):
    """A Keras metric over real tokens.

    Keras (3.15) would take the mean of each row first, padding included, and weight tokens of long rows less.

    Args:
        metric: a `keras.metrics.Metric` for labels `[N]` and logits `[N, V]`.
    """

    def __init__(self, metric: keras.metrics.Metric, name: str | None = None, dtype: str | None = None) -> None:
        super().__init__(name=name or metric.name, dtype=dtype or metric.dtype)
        self.metric = metric
        if direction := getattr(metric, "_direction", None):  # as in `Perplexity`
            self._direction = direction

    def update_state(self, labels: tf.Tensor, logits: tf.Tensor, sample_weight: tf.Tensor | None = None) -> None:
        logits = tf.reshape(logits, [-1, tf.shape(logits)[-1]])
        self.metric.update_state(_flat(labels), logits, sample_weight=_flat(sample_weight))

    def result(self) -> tf.Tensor:
        return self.metric.result()

    def reset_state(self) -> None:
        self.metric.reset_state()

    def get_config(self) -> dict:
        return {**super().get_config(), "metric": keras.saving.serialize_keras_object(self.metric)}

    @classmethod
    def from_config(cls, config: dict) -> "OfTokens":
        return cls(**{**config, "metric": keras.saving.deserialize_keras_object(config["metric"])})


def of_tokens(metric: str | Callable | keras.metrics.Metric) -> keras.metrics.Metric:
    """Turn a metric for `compile` (a name, a function or a metric) into one over real tokens.

    Raises:
        OptionError: if it takes probabilities, or Keras has no metric of this name.
    """
    if metric in ("accuracy", "acc"):
        return Accuracy(metric)
    try:
        found = keras.metrics.get(metric)
    except ValueError as error:
        raise OptionError(f"metrics: {one_line(error)}") from None
    _refuse_probabilities("metrics", metric, found)
    if not isinstance(found, keras.metrics.Metric):
        found = keras.metrics.MeanMetricWrapper(found, name=metric if isinstance(metric, str) else found.__name__)
    # Of the class or, if it has none of its own, of the class that it is derived from.
    updates = next(kind for kind in type(found).__mro__ if "update_state" in vars(kind))
    return OfTokens(found) if updates.__module__.startswith("keras.") else found


def check_loss(loss: Any, compute: Callable, vocabulary_size: int) -> None:
    """Test a custom loss on a batch of two rows. With more padding or each row twice, its result must be the same.

    Args:
        loss: as given to `compile`.
        compute: `compute_loss` of the model that was compiled with it.
        vocabulary_size: V.

    Raises:
        OptionError: if it fails, counts padding, is not a mean or takes probabilities.
    """
    name = repr(loss) if isinstance(loss, str) else getattr(loss, "name", None) or getattr(loss, "__name__", loss)
    _refuse_probabilities("loss", name, keras.losses.get(loss) if isinstance(loss, str) else loss)
    labels = tf.constant([[END, START], [END, PADDING]])
    logits = tf.reshape(tf.sin(tf.range(4.0 * vocabulary_size)), [2, 2, vocabulary_size])
    try:
        found = []
        for more, times in ((0, 1), (3, 1), (0, 2)):
            padded = tf.tile(tf.pad(labels, [[0, 0], [0, more]]), [times, 1])
            weights = tf.cast(padded != PADDING, tf.float32)
            wide = tf.tile(tf.pad(logits, [[0, 0], [0, more], [0, 0]]), [times, 1, 1])
            found.append(float(compute(y=padded, y_pred=wide, sample_weight=weights, training=False)))
    except Exception as error:  # of any class, from Keras, TensorFlow or the loss itself
        raise OptionError(
            f"loss={name}: must take ids [B, T] as labels and logits [B, T, V] ({one_line(error)})"
        ) from error
    if not np.isclose(found[0], found[1], rtol=1e-3):
        raise OptionError(
            f"loss={name}: counts padding; give a keras.losses.Loss with reduction='mean_with_sample_weight'"
        )
    if not np.isclose(found[0], found[2], rtol=1e-3):
        raise OptionError(
            f"loss={name}: changes with the number of rows, as a sum does; give a keras.losses.Loss with "
            "reduction='mean_with_sample_weight'"
        )


def make_loss(config: Config) -> str | keras.losses.Loss:
    """The loss of a configuration, as `compile` takes it.

    Raises:
        OptionError: if it is not a loss, or cannot be constructed.
    """
    if not config.loss:
        return "auto"
    return _make("loss", config.loss, keras.losses.Loss, config)


def make_metrics(config: Config) -> list[keras.metrics.Metric]:
    """The metrics that a configuration adds; see `make_loss`."""
    made = [_make("metrics", name, keras.metrics.Metric, config) for name in config.metrics or ()]
    names = ["loss", "accuracy", "perplexity"]
    for metric in made:
        if metric.name in names:
            raise OptionError(f"metrics={type(metric).__name__}: another metric is already called {metric.name!r}")
        names.append(metric.name)
    return made


def _make(argument, name, base, config):
    kind = load_class(argument, name)
    if not issubclass(kind, base):
        raise OptionError(f"{argument}={name!r}: expected a class that is derived from Keras's {base.__name__}")
    options = {"label_smoothing": config.label_smoothing, **(config.own or {})}
    return construct(argument, kind, options=options, saved=False)


def _refuse_probabilities(argument, name, given):
    """Refuse a loss, metric or function that would take logits for probabilities."""
    config = given.get_config() if hasattr(given, "get_config") else {}
    usual = inspect.signature(given).parameters.get("from_logits") if inspect.isroutine(given) else None
    if config.get("from_logits", usual and usual.default) is False:
        raise OptionError(f"{argument}={name}: takes probabilities, but the model returns logits; set from_logits=True")


def _flat(tokens):
    """`[B x T]` from `[B, T]`, for the reason that `OfTokens` gives."""
    return None if tokens is None else tf.reshape(tokens, [-1])
