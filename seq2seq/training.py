"""One training run: from a corpus and a `Config` to a run folder with the model, what made it and how it went."""

import csv
import dataclasses
import importlib
import json
import math
import os
import platform
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import keras
import tensorflow as tf

from pipelines import (
    CorpusError,
    OptionError,
    Report,
    batch_pairs,
    checksums,
    choose,
    corpus_errors,
    load_class,
    read_pairs,
    split_by_hash,
    split_last,
    survey,
)
from pipelines.tokenizers import TOKENIZERS
from seq2seq.config import Config, load_config, model_options, own_classes, reading_options
from seq2seq.contract import one_line
from seq2seq.layers import Decoder, Encoder
from seq2seq.model import Seq2Seq, accepted

_PACKAGES = ("keras-seq2seq", "tensorflow", "tensorflow-text", "keras", "numpy")  # whose versions a run records


class RunError(ValueError):
    """A run folder that cannot be read, or that may not be written. The message names it and says what to do."""


def train(
    config, folder, overwrite=False, callbacks=(), progress=None, report=None, command=None, expected_checksums=None
):
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
        command: the command line, to be kept in `config.json`.
        expected_checksums: {path: sha256} of the corpus's files in the run that this one repeats.

    The same configuration gives the same weights, to the bit on a CPU, where
    `tf.config.experimental.enable_op_determinism()` has been called before, as the command line does.

    Returns:
        The trained `Seq2Seq`.

    Raises:
        RunError: if the folder is in use and may not be overwritten.
        CorpusError: if the corpus cannot be read, holds nothing to train on, or is not the one of those checksums.
        OptionError: if options do not go together, or a name in them stands for nothing.
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
        record = {
            "command": command,
            "versions": {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
            "checksums": _checksums(config.corpus, expected_checksums),
        }
        # Before anything is read, so that options that do not go together are not found out after an hour.
        tokenizers = [_tokenizer(config, side) for side in ("source_tokenizer", "target_tokenizer")]
        _model(config, tokenizers, steps=1)
        training, steps, epochs, validation, held_out, found = _prepare(config, tokenizers, progress, report)
        for callback in callbacks:
            if hasattr(callback, "held_out"):
                callback.held_out = held_out
        model = _model(config, tokenizers, steps * epochs)
        model.compile(optimizer=_optimizer(config, steps * epochs))
        save = _SaveRun(folder, {"options": dataclasses.asdict(config), **record}, found)
        model.fit(
            training,
            validation_data=validation,
            epochs=epochs,
            # Left to find the end by itself, Keras counts one step more than it takes in each epoch.
            steps_per_epoch=steps,
            shuffle=False,  # the pipeline has done it
            verbose=0,
            callbacks=[save, *callbacks],
        )
    return model


def _checksums(corpus, expected):
    if "-" in (corpus if isinstance(corpus, tuple) else (corpus,)):
        raise CorpusError("standard input can be read only once, and training reads its corpus many times; use a file")
    found = checksums(corpus)
    for path, digest in (expected or found).items():
        if found.get(path) != digest:
            raise CorpusError(f"{path}: no longer what that run was trained on, by its sha256")
    return found


def _tokenizer(config, side):
    """The tokenizer that a configuration names for a side, tried on a text; without a vocabulary yet."""
    name = getattr(config, side)
    kind = load_class(side, name) if ":" in name else choose(side, name, TOKENIZERS)
    if kind is TOKENIZERS["subword"]:
        importlib.import_module("sentencepiece")  # which is needed once all text has been read, and may be missing
    try:
        tokenizer = kind(normal_form=config.normal_form, lowercase=config.lowercase)
        tokenizer.count(tf.constant(["a text"]))
    except Exception as error:
        raise OptionError(f"{side}={name!r}: cannot split a text: {one_line(error)}") from error
    return tokenizer


def _model(config, tokenizers, steps):
    """The `Seq2Seq` of a configuration."""
    encoder = load_class("encoder", config.encoder) if config.encoder else Encoder
    decoder = load_class("decoder", config.decoder) if config.decoder else Decoder
    options = {name: getattr(config, name) for name in model_options()}
    first, *last = config.teacher_forcing
    return Seq2Seq(
        *tokenizers,
        encoder=encoder,
        decoder=decoder,
        label_smoothing=config.label_smoothing,
        teacher_forcing=keras.optimizers.schedules.PolynomialDecay(first, steps, *last) if last else first,
        **{name: options[name] for name in (accepted(encoder) | accepted(decoder)) & set(options)},
    )


def _prepare(config, tokenizers, progress, report):
    """Reads the corpus through once, gives the tokenizers their vocabularies and returns what else training needs.

    Returns:
        The training batches, steps in an epoch, epochs, the validation batches or None, a few held-out pairs, and the
        `Survey` of the training side.
    """
    cleaning = Report()
    options = reading_options(config)
    split = {"hash": split_by_hash, "last": split_last}[config.split]
    pairs = read_pairs(config.corpus, config.limit, report=cleaning, **options)
    training, validation = split(pairs, config.validation_fraction)
    if config.split == "hash" and config.limit is None:
        options.update(shuffle_files=True, weights=config.weights)
        pairs = read_pairs(config.corpus, seed=config.seed, report=cleaning, **options)
        training, _ = split(pairs, config.validation_fraction)

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
        config.epochs or min(100, max(8, round(2000 / steps))),
        batches(validation, shuffle=False) if held_out else None,
        [(source.decode(), target.decode()) for source, target in held_out],
        found,
    )


def _optimizer(config, steps):
    rate = config.learning_rate
    if config.decay:
        rate = keras.optimizers.schedules.CosineDecay(rate, decay_steps=steps)
    known = [name.lower() for name, found in vars(keras.optimizers).items() if isinstance(found, type)]
    return keras.optimizers.get(
        {
            "class_name": choose("optimizer", config.optimizer.lower(), sorted({*known} - {"optimizer"})),
            "config": {"learning_rate": rate, "global_clipnorm": 1.0 if config.decay else None},
        }
    )


class _SaveRun(keras.callbacks.Callback):
    """Writes the run folder after each epoch, every file aside first, so that what is there is always whole."""

    def __init__(self, folder, record, survey):
        super().__init__()
        self.folder = folder
        self.record = record
        self.survey = survey
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append({"epoch": epoch + 1, **logs})
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write("model.keras", self.model.save)
        record = json.dumps(self.record, ensure_ascii=False, indent=2)
        self._write("config.json", lambda path: path.write_text(record + "\n"))
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
    """Loads the `Seq2Seq` of a run folder. Classes of one's own that it is made of must have been imported before.

    Raises:
        RunError: if the folder is not there, is no run, its model file is damaged, or such a class is missing.
    """
    folder = Path(folder)
    path = folder / "model.keras"
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; `seq2seq train --out {folder}` makes one")
    if not path.is_file():
        raise RunError(f"{folder}: not a run folder, it holds no model.keras")
    if (folder / "config.json").is_file():
        options, _ = load_config(folder / "config.json")
        for name in own_classes(Config(**options)):
            if name.partition(":")[0] not in sys.modules:  # and nobody has said that its code may run
                raise RunError(f"{folder}: made of {name}, which is not of this library; say --import {name}")
    try:
        model = keras.models.load_model(path)
    except Exception as error:  # Keras raises whatever the zip, JSON or HDF5 reader does
        raise RunError(f"{path}: damaged, or no model of this library ({one_line(error)})") from error
    if not isinstance(model, Seq2Seq):
        raise RunError(f"{path}: a {type(model).__name__}, not a Seq2Seq")
    return model
