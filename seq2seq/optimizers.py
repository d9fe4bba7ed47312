"""The optimizer of a `Config`, and a learning rate schedule that Keras does not have."""

import inspect

import keras
import tensorflow as tf

from pipelines import check_number, choose
from seq2seq.config import Config


def make_optimizer(config: Config, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer of a configuration, for this many training steps.

    Weight decay, including the optimizer's default, is decoupled (Loshchilov & Hutter 2019, arxiv.org/abs/1711.05101)
    and is not applied to the weights that `_UNDECAYED` names.

    Raises:
        OptionError: if there is no such optimizer, or it does not take one of the options.
    """
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
    options: dict[str, float | None] = {"global_clipnorm": config.clip_norm}
    for name in ("beta_2", "weight_decay"):
        if (value := getattr(config, name)) is not None:
            taking = {other: names for other in kinds if (names := _parameters(kinds[other], name))}
            names = choose(f"{name}={value}: optimizer", config.optimizer.lower(), taking)
            options |= dict.fromkeys(names, value)
    optimizer = kind(learning_rate=rate, **options)
    optimizer.exclude_from_weight_decay(var_names=_UNDECAYED)
    return optimizer


# Parts of the names of weights. Decay of these does not make a model simpler, and it would shrink the embeddings of
# rare tokens in all steps without them.
_UNDECAYED = ["bias", "gamma", "beta", "embedding"]


def takes(optimizer: str, option: str) -> bool:
    """Whether the Keras optimizer of this name takes this option of `Config`."""
    return bool(_parameters(optimizers().get(optimizer.lower(), object), option))


def _parameters(kind, name):
    """The arguments of an optimizer that an option sets: Muon has one more for the weights that it leaves to Adam."""
    return [parameter for parameter in (name, f"adam_{name}") if parameter in inspect.signature(kind).parameters]


def optimizers() -> dict[str, type[keras.optimizers.Optimizer]]:
    """The optimizers of Keras by their names in lower case, without those that wrap others."""
    kinds = {name.lower(): kind for name, kind in vars(keras.optimizers).items() if isinstance(kind, type)}
    base = kinds.pop("optimizer")
    return {
        name: kind
        for name, kind in kinds.items()
        if issubclass(kind, base) and "learning_rate" in inspect.signature(kind).parameters
    }


@keras.saving.register_keras_serializable("seq2seq")
class InverseSqrt(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that rises linearly to a learning rate, then falls with the inverse square root of the step number
    (Vaswani et al. 2017, arxiv.org/abs/1706.03762).

    Args:
        rate: the highest learning rate.
        warmup: the step at which it is reached, at least 1.

    Raises:
        OptionError: for a warmup below 1.
    """

    def __init__(self, rate: float, warmup: int) -> None:
        check_number("warmup", warmup, least=1)
        self.rate = rate
        self.warmup = warmup

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        progress = (tf.cast(step, tf.float32) + 1) / self.warmup
        return self.rate * tf.minimum(progress, tf.math.rsqrt(progress))

    def get_config(self) -> dict:
        return {"rate": self.rate, "warmup": self.warmup}
