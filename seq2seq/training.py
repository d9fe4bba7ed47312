"""One training run: from a corpus and a `Config` to a run folder with the model, what made it and how it went."""

import csv
import dataclasses
import json
import math
import os
from importlib.metadata import version
from pathlib import Path

import keras
import tensorflow as tf

from pipelines import (
    CharTokenizer,
    CorpusError,
    batch_pairs,
    corpus_errors,
    count_pairs,
    read_pairs,
    split_by_hash,
    split_last,
)
from seq2seq.model import Seq2Seq


class RunError(ValueError):
    """A run folder that cannot be read, or that may not be written. The message names it and says what to do."""


@dataclasses.dataclass(frozen=True)
class Config:
    """All that decides how a run comes out; saved as `config.json` in the run folder."""

    corpus: str = "phrasebook"  # a name or a path, as `read_pairs` takes it
    limit: int | None = None  # pairs of the corpus to use, from its start; None for all
    split: str = "hash"  # how pairs are held out: by a hash of the source, or the "last" ones
    validation_fraction: float = 0.05
    units: int = 256
    attention: str | None = "dot"  # as in `Decoder`
    batch_size: int = 64
    epochs: int = 30
    optimizer: str = "adam"
    learning_rate: float = 3e-3  # at the start
    decay: bool = True  # whether the learning rate falls to zero along half a cosine, or stays
    seed: int = 0


PRESETS = {
    "default": {},
    # Of blog.keras.io/a-ten-minute-introduction-to-sequence-to-sequence-learning-in-keras.html
    "tutorial": {
        "limit": 10_000,
        "split": "last",
        "validation_fraction": 0.2,
        "attention": None,
        "batch_size": 70,
        "epochs": 40,
        "optimizer": "rmsprop",
        "learning_rate": 1e-3,
        "decay": False,
    },
}


def train(config, folder, overwrite=False, callbacks=()):
    """Trains a model and keeps it in a run folder, saved anew after each epoch.

    Args:
        config: a `Config`.
        folder: the run folder to make: `model.keras`, `config.json`, `history.csv`.
        overwrite: whether a run that is there may be replaced; it is left alone until the first epoch is over.
        callbacks: more Keras callbacks. Before training, each one's `held_out`, where it has one, is set to a few
            (source, target) pairs of the validation side.

    Returns:
        The trained `Seq2Seq`.

    Raises:
        RunError: if the folder is in use and may not be overwritten.
        CorpusError: if the corpus cannot be read or holds nothing to train on.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; a run needs a folder")
    if not overwrite and folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty; choose another folder (--out) or say --overwrite")
    keras.utils.set_random_seed(config.seed)
    with corpus_errors():
        training, validation, steps, held_out, tokenizers = _prepare(config)
        for callback in callbacks:
            if hasattr(callback, "held_out"):
                callback.held_out = held_out
        model = Seq2Seq(*tokenizers, units=config.units, attention=config.attention)
        model.compile(optimizer=_optimizer(config, steps))
        save = _SaveRun(folder, config)
        model.fit(
            training,
            validation_data=validation,
            epochs=config.epochs,
            # Left to find the end by itself, Keras counts one step more than it takes in each epoch.
            steps_per_epoch=len(training),
            shuffle=False,  # the pipeline has done it
            verbose=0,
            callbacks=[save, *callbacks],
        )
    return model


def _prepare(config):
    """Reads the corpus through once: (training batches, validation batches, steps, held-out pairs, tokenizers)."""
    pairs = read_pairs(config.corpus, config.limit)
    split = {"hash": split_by_hash, "last": split_last}[config.split]
    training, validation = split(pairs, config.validation_fraction)
    training_pairs, validation_pairs = count_pairs(training), count_pairs(validation)
    if training_pairs == 0:
        raise CorpusError(f"{config.corpus}: no pairs to train on")
    tokenizers = CharTokenizer(), CharTokenizer()
    tokenizers[0].adapt(training.map(lambda source, target: source))
    tokenizers[1].adapt(training.map(lambda source, target: target))
    held_out = [
        (source.decode(), target.decode())
        for source, target in validation.shuffle(10_000, seed=config.seed).take(3).as_numpy_iterator()
    ]

    def batches(pairs, count, shuffle):
        made = batch_pairs(pairs, *tokenizers, batch_size=config.batch_size, shuffle=shuffle, seed=config.seed)
        return made.apply(tf.data.experimental.assert_cardinality(math.ceil(count / config.batch_size)))

    return (
        batches(training, training_pairs, shuffle=True),
        batches(validation, validation_pairs, shuffle=False) if validation_pairs else None,
        math.ceil(training_pairs / config.batch_size) * config.epochs,
        held_out,
        tokenizers,
    )


def _optimizer(config, steps):
    rate = config.learning_rate
    if config.decay:
        rate = keras.optimizers.schedules.CosineDecay(rate, decay_steps=steps)
    return keras.optimizers.get(
        {
            "class_name": config.optimizer,
            "config": {"learning_rate": rate, "global_clipnorm": 1.0 if config.decay else None},
        }
    )


class _SaveRun(keras.callbacks.Callback):
    """Writes the run folder after each epoch, every file aside first, so that what is there is always whole."""

    def __init__(self, folder, config):
        super().__init__()
        self.folder = folder
        self.config = config
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append({"epoch": epoch + 1, **logs})
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write("model.keras", self.model.save)
        versions = {package: version(package) for package in ("keras-seq2seq", "tensorflow", "keras")}
        settings = {**dataclasses.asdict(self.config), "versions": versions}
        self._write("config.json", lambda path: path.write_text(json.dumps(settings, indent=2) + "\n"))
        self._write("history.csv", self._write_history)

    def _write(self, name, write):
        aside = self.folder / f"aside-{name}"  # Keras looks at the ending
        write(aside)
        os.replace(aside, self.folder / name)

    def _write_history(self, path):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.epochs[0])
            writer.writeheader()
            writer.writerows(self.epochs)


def load_run(folder):
    """Loads the `Seq2Seq` of a run folder.

    Raises:
        RunError: if the folder is not there, is no run, or its model file is damaged.
    """
    folder = Path(folder)
    path = folder / "model.keras"
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; `seq2seq train --out {folder}` makes one")
    if not path.is_file():
        raise RunError(f"{folder}: not a run folder, it holds no model.keras")
    try:
        model = keras.models.load_model(path)
    except Exception as error:  # Keras raises whatever the zip, JSON or HDF5 reader does
        raise RunError(f"{path}: damaged, or no model of this library ({type(error).__name__}: {error})") from error
    if not isinstance(model, Seq2Seq):
        raise RunError(f"{path}: a {type(model).__name__}, not a Seq2Seq")
    return model
