import math

import keras
import numpy as np
import pytest

from pipelines import OptionError
from seq2seq import InverseSqrt
from seq2seq.config import Config
from seq2seq.optimizers import make_optimizer, optimizers, takes


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "constant"}, [0.1] * 10),
        ({"schedule": "constant", "warmup": 5}, [0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1, 0.1, 0.1]),
        ({"schedule": "cosine"}, [0.05 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]),
        (
            {"schedule": "cosine", "warmup": 4},
            [0, 0.025, 0.05, 0.075, *(0.05 * (1 + math.cos(math.pi * step / 6)) for step in range(7))],
        ),
        ({"schedule": "cosine", "warmup": 20}, [0.005 * step for step in range(10)]),
        ({"schedule": "inverse_sqrt", "warmup": 4}, [0.025, 0.05, 0.075, *(0.2 / n**0.5 for n in range(4, 11))]),
    ],
)
def test_the_learning_rate_follows_its_schedule(options, rates):
    optimizer = make_optimizer(Config(learning_rate=0.1, **options), 10)
    optimizer.build([keras.Variable([1.0])])
    found = []
    for _ in rates:
        found.append(float(optimizer.learning_rate))
        optimizer.iterations.assign_add(1)
    np.testing.assert_allclose(found, rates, rtol=1e-5, atol=1e-8)


def test_weights_decay_but_no_biases_scales_or_embeddings():
    values = {"kernel": 0.95, "bias": 1.0, "gamma": 1.0, "beta": 1.0, "embedding": 1.0, "embeddings": 1.0}
    for name in ("adam", "adamw", "sgd", "muon"):
        weights = [keras.Variable(np.ones((2, 2), "float32"), name=weight) for weight in values]
        options = {"schedule": "constant", "learning_rate": 0.5, "weight_decay": 0.1}
        optimizer = make_optimizer(Config(optimizer=name, **options), 1)
        optimizer.build(weights)
        optimizer.apply([np.zeros((2, 2), "float32")] * len(weights), weights)
        assert [float(weight.numpy()[0, 0]) for weight in weights] == pytest.approx(list(values.values()))


def test_an_option_reaches_the_optimizers_that_take_it_and_others_are_refused():
    assert make_optimizer(Config(beta_2=0.98), 1).beta_2 == 0.98
    assert make_optimizer(Config(optimizer="muon", beta_2=0.98), 1).adam_beta_2 == 0.98
    adam, adamw = (make_optimizer(Config(optimizer=name), 1) for name in ("adam", "adamw"))
    assert (adam.beta_2, adam.weight_decay, adamw.weight_decay) == (0.999, None, 0.004)
    assert make_optimizer(Config(optimizer="adamw", weight_decay=0.0), 1).weight_decay == 0.0
    assert [make_optimizer(Config(clip_norm=norm), 1).global_clipnorm for norm in (0.5, None)] == [0.5, None]
    assert [takes(name, "beta_2") for name in ("Adam", "muon", "rmsprop", "none such")] == [True, True, False, False]
    with pytest.raises(OptionError, match=r"beta_2=0\.9: optimizer='sgd': expected 'adam', "):
        make_optimizer(Config(optimizer="sgd", beta_2=0.9), 1)
    for options in ({"beta_2": 1.0}, {"weight_decay": -0.1}):
        with pytest.raises(OptionError, match=next(iter(options))):
            Config(**options)


def test_every_optimizer_of_keras_but_those_made_of_others_is_one_to_choose():
    assert {"adam", "adamw", "lion", "muon", "rmsprop", "sgd"} <= set(optimizers())
    for name, kind in optimizers().items():
        optimizer = make_optimizer(Config(optimizer=name.upper(), learning_rate=0.1, schedule="constant"), 1)
        assert type(optimizer) is kind and float(optimizer.learning_rate) == np.float32(0.1)
        assert optimizer.global_clipnorm == 1.0
    for name in ("optimizer", "lossscaleoptimizer", "multioptimizer", "optimizermap"):
        with pytest.raises(OptionError, match=f"optimizer='{name}': expected 'adadelta'"):
            make_optimizer(Config(optimizer=name), 1)


def test_a_schedule_of_this_library_is_saved_with_its_numbers():
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(InverseSqrt(0.1, 4)))
    assert type(again) is InverseSqrt and again.get_config() == {"rate": 0.1, "warmup": 4}
    with pytest.raises(OptionError, match="warmup=0: expected a whole number, at least 1"):
        InverseSqrt(0.1, 0)
