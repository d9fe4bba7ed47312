import dataclasses
import os
import signal
import threading

import keras
import pytest
from tensorflow.python.framework import config as determinism

from seq2seq.process import deferred_signal
from seq2seq.training import train


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_acts(number):
    before = signal.signal(number, lambda *_: acted.append(True))
    acted: list[bool] = []
    try:
        with deferred_signal() as received:
            os.kill(os.getpid(), number)
            assert (received, acted) == ([number], [])
            os.kill(os.getpid(), number)
            assert (received, acted) == ([number], [True])
        os.kill(os.getpid(), number)
        assert acted == [True, True]
    finally:
        signal.signal(number, before)


def test_another_thread_leaves_signals_to_the_main_one():
    handler, found = signal.getsignal(signal.SIGTERM), []

    def run():
        with deferred_signal() as received:
            found.append((received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [([], handler)]


@pytest.mark.slow
def test_the_same_configuration_gives_the_same_weights_to_the_bit(config, tmp_path):
    """All sources of chance are in it: initial weights, order, dropout, scheduled sampling."""
    options = {"embedding": 6, "dropout": 0.3, "teacher_forcing": (1.0, 0.3), "tied": True}
    options |= {"target_tokenizer": "subword", "validation_fraction": 0}
    config = dataclasses.replace(config, **options)
    began = []

    def weights(model):
        return [weight.numpy().tobytes() for weight in model.weights]

    class Begin(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            began.append((determinism.is_op_determinism_enabled(), weights(self.model)))
            if len(began) == 3:
                raise InterruptedError

    first, second = (train(config, tmp_path / run, callbacks=[Begin()]) for run in ("first", "second"))
    assert weights(first) == weights(second)
    with pytest.raises(InterruptedError):
        train(dataclasses.replace(config, seed=1, deterministic=False), tmp_path / "other", callbacks=[Begin()])
    deterministic, initial = zip(*began, strict=True)
    assert initial[0] == initial[1] != initial[2]
    assert deterministic == (True, True, False) and not determinism.is_op_determinism_enabled()
