"""Experiment trackers, which log the metrics of each epoch of a training run."""

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras

from pipelines import OptionError, choose
from pipelines.options import extra, one_line
from seq2seq.config import Config
from seq2seq.model import Seq2Seq


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers are known and installed.

    Raises:
        OptionError: if there is no tracker of this name.
        MissingExtra: if one is not installed.
    """
    for name in names:
        choose("track", name, TRACKERS)
        with extra(name):
            importlib.import_module(name)


@contextlib.contextmanager
def tracked(
    names: Sequence[str], config: Config, model: Seq2Seq, folder: Path
) -> Iterator[list[keras.callbacks.Callback]]:
    """Open a record of a training run with each tracker, and close it at the end; after an error, as failed.

    Args:
        names: the names of trackers, in `TRACKERS`.
        config: the configuration to train with.
        model: the compiled model.
        folder: the run folder, which names the record.

    Returns:
        The Keras callbacks that log the figures, for a `with` statement.

    Raises:
        OptionError: if a tracker cannot start, for example because it requires a login.
    """
    with contextlib.ExitStack() as stack:
        callbacks = []
        for name in names:
            try:
                callbacks.append(TRACKERS[name](stack, config, model, folder))
            except Exception as error:  # trackers raise any error of their servers
                raise OptionError(f"track={name!r}: cannot start: {one_line(error)}") from error
        yield callbacks


class _TensorBoard(keras.callbacks.TensorBoard):
    """TensorBoard with the figures of epochs only: with those of steps, each step would wait for the device."""

    on_train_batch_end = keras.callbacks.Callback.on_train_batch_end


def _tensorboard(stack, config, model, folder):
    return _TensorBoard(folder / "tensorboard", write_graph=False)


def _wandb(stack, config, model, folder):
    import wandb
    from wandb.integration.keras import WandbMetricsLogger

    stack.enter_context(wandb.init(name=str(folder), config=dataclasses.asdict(config)))
    return _at_epoch_ends(WandbMetricsLogger(), model)


def _mlflow(stack, config, model, folder):
    import mlflow

    stack.enter_context(mlflow.start_run(run_name=str(folder)))
    mlflow.log_params(dataclasses.asdict(config))
    return _at_epoch_ends(mlflow.keras.MlflowCallback(), model)


def _at_epoch_ends(callback, model):
    """Call a callback after epochs only: with a method for steps, it would make each step wait for the device."""
    callback.set_model(model)
    return keras.callbacks.LambdaCallback(on_epoch_end=callback.on_epoch_end)


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
