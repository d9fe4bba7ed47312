"""One training run: from a corpus and a `Config` to a run folder with the model, what made it and how it went."""

import csv
import dataclasses
import json
import math
import os
import warnings
from importlib.metadata import version
from pathlib import Path

import keras
import tensorflow as tf

from pipelines import (
    CharTokenizer,
    CorpusError,
    Report,
    batch_pairs,
    corpus_errors,
    read_pairs,
    split_by_hash,
    split_last,
    survey,
)
from seq2seq.model import Seq2Seq


class RunError(ValueError):
    """A run folder that cannot be read, or that may not be written. The message names it and says what to do."""


@dataclasses.dataclass(frozen=True)
class Config:
    """All that decides how a run comes out; saved as `config.json` in the run folder."""

    corpus: str | tuple[str, ...] = "phrasebook"  # what to read, this and the next nine as `read_pairs` takes them
    limit: int | None = None
    columns: tuple | None = None
    reverse: bool = False
    weights: tuple[float, ...] | None = None  # of several corpora; for training alone, validation reads each pair once
    on_bad_line: str = "error"
    max_length: int | None = None
    max_ratio: float | None = None
    drop_duplicates: bool = False
    min_frequency: int = 1  # of the tokens in the vocabulary
    max_vocabulary: int | None = None  # tokens on each side
    split: str = "hash"  # how pairs are held out: by a hash of the source, or the "last" ones
    validation_fraction: float = 0.05
    units: int = 256
    attention: str | None = "dot"  # as in `Decoder`
    batch_size: int = 32
    batch_tokens: int | None = None  # in place of batch_size, as in `batch_pairs`
    encoding: str = "one_hot"  # or "ids"
    epochs: int = 26
    optimizer: str = "adam"
    learning_rate: float = 3e-3  # at the start
    decay: bool = True  # whether the learning rate falls to zero along half a cosine, or stays
    seed: int = 0


# The fields of a `Config` that `read_pairs` takes as they are.
_READING = ("columns", "reverse", "on_bad_line", "max_length", "max_ratio", "drop_duplicates")

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


def train(config, folder, overwrite=False, callbacks=(), progress=None, report=None):
    """Trains a model and keeps it in a run folder, saved anew after each epoch.

    Args:
        config: a `Config`.
        folder: the run folder to make: `model.keras`, `config.json`, `history.csv`, and in `survey.json` the tokens and
            lengths of the training side, counted.
        overwrite: whether a run that is there may be replaced; it is left alone until the first epoch is over.
        callbacks: more Keras callbacks. Before training, each one's `held_out`, where it has one, is set to a few
            (source, target) pairs of the validation side.
        progress: a function to call now and then with the number of pairs read, while the corpus is surveyed.
        report: a function to call with the `Report` of what was read and left out, after that.

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
    # Keras warns of every dataset that does not know its length, and nobody has counted the validation side.
    ran_out = {"message": "Your input ran out of data", "category": UserWarning}
    with corpus_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", **ran_out)
        training, steps, validation, held_out, tokenizers, found = _prepare(config, progress, report)
        for callback in callbacks:
            if hasattr(callback, "held_out"):
                callback.held_out = held_out
        model = Seq2Seq(*tokenizers, units=config.units, attention=config.attention)
        model.compile(optimizer=_optimizer(config, steps * config.epochs))
        save = _SaveRun(folder, config, found)
        model.fit(
            training,
            validation_data=validation,
            epochs=config.epochs,
            # Left to find the end by itself, Keras counts one step more than it takes in each epoch.
            steps_per_epoch=steps,
            shuffle=False,  # the pipeline has done it
            verbose=0,
            callbacks=[save, *callbacks],
        )
    return model


def _prepare(config, progress, report):
    """Reads the corpus through once and makes of it all that training needs, in the order of the return statement."""
    cleaning = Report()
    options = {name: getattr(config, name) for name in _READING}
    split = {"hash": split_by_hash, "last": split_last}[config.split]
    if config.weights and (config.limit or config.split == "last"):
        raise CorpusError("weights cannot be used with a limit or with the last pairs held out")
    pairs = read_pairs(config.corpus, config.limit, report=cleaning, **options)
    training, validation = split(pairs, config.validation_fraction)
    if config.split == "hash" and config.limit is None:
        options.update(shuffle_files=True, weights=config.weights)
        pairs = read_pairs(config.corpus, seed=config.seed, report=cleaning, **options)
        training, _ = split(pairs, config.validation_fraction)

    tokenizers = CharTokenizer(), CharTokenizer()
    found = survey(training, *tokenizers, progress)
    if report:
        report(cleaning)
    if found.pairs == 0:
        raise CorpusError(f"{config.corpus}: no pairs to train on")
    for tokenizer, counts in zip(tokenizers, found.tokens, strict=True):
        tokenizer.take_vocabulary(counts, config.min_frequency, config.max_vocabulary)
    held_out = list(validation.take(300).shuffle(300, seed=config.seed).take(3).as_numpy_iterator())

    def batches(pairs, **options):
        return batch_pairs(
            pairs, *tokenizers, config.batch_size, batch_tokens=config.batch_tokens, encoding=config.encoding, **options
        )

    training = batches(training, seed=config.seed)
    if config.batch_tokens:
        # How many batches a pass makes depends on its order. An epoch has about as many; pass follows on pass.
        training = training.repeat()
        steps = math.ceil((found.longer + found.pairs) / config.batch_tokens)
    else:
        steps = math.ceil(found.pairs / config.batch_size)
        training = training.apply(tf.data.experimental.assert_cardinality(steps))
    return (
        training,
        steps,
        batches(validation, shuffle=False) if held_out else None,
        [(source.decode(), target.decode()) for source, target in held_out],
        tokenizers,
        found,
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

    def __init__(self, folder, config, survey):
        super().__init__()
        self.folder = folder
        self.config = config
        self.survey = survey
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append({"epoch": epoch + 1, **logs})
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write("model.keras", self.model.save)
        versions = {package: version(package) for package in ("keras-seq2seq", "tensorflow", "keras")}
        settings = {**dataclasses.asdict(self.config), "versions": versions}
        self._write("config.json", lambda path: path.write_text(json.dumps(settings, indent=2) + "\n"))
        self._write("history.csv", self._write_history)
        if epoch == 0:
            found = json.dumps(self.survey.as_dict(), ensure_ascii=False, indent=1)
            self._write("survey.json", lambda path: path.write_text(found + "\n"))

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
