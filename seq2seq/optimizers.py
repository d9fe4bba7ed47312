"""The optimizer of a `Config`, and a learning rate schedule that Keras does not have."""

import inspect

import keras
import tensorflow as tf

from pipelines import choose
from seq2seq.config import Config


def make_optimizer(config: Config, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer of a configuration, for a training of so many steps."""
    schedules, rate, warmup = keras.optimizers.schedules, config.learning_rate, config.warmup
    if config.schedule == "cosine":
        rise = {"warmup_target": rate, "warmup_steps": warmup} if warmup else {}
        rate = schedules.CosineDecay(0.0 if warmup else rate, max(1, steps - warmup), **rise)
    elif config.schedule == "inverse_sqrt":
        rate = InverseSqrt(rate, warmup)
    elif warmup:
        rate = schedules.PolynomialDecay(0.0, warmup, rate)
    kinds = optimizers()
    kind = kinds[choose("optimizer", config.optimizer.lower(), sorted(kinds))]
    return kind(learning_rate=rate, global_clipnorm=config.clip_norm)


def optimizers() -> dict[str, type[keras.optimizers.Optimizer]]:
    """Those of Keras by their names in small letters, but for those that are made of others."""
    kinds = {name.lower(): kind for name, kind in vars(keras.optimizers).items() if isinstance(kind, type)}
    base = kinds.pop("optimizer")
    return {
        name: kind
        for name, kind in kinds.items()
        if issubclass(kind, base) and "learning_rate" in inspect.signature(kind).parameters
    }


@keras.saving.register_keras_serializable("seq2seq")
class InverseSqrt(keras.optimizers.schedules.LearningRateSchedule):
    """Rises in a line to a rate and then falls with the root of the steps, as in Vaswani et al. 2017.

    Args:
        rate: the highest learning rate.
        warmup: the step at which it is reached.
    """

    def __init__(self, rate: float, warmup: int) -> None:
        self.rate = rate
        self.warmup = warmup

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        share = (tf.cast(step, tf.float32) + 1) / self.warmup
        return self.rate * tf.minimum(share, tf.math.rsqrt(share))

    def get_config(self) -> dict:
        return {"rate": self.rate, "warmup": self.warmup}
