"""One training run: from a corpus and a `Config` to a run folder with the model, what made it and how it went."""

import collections
import csv
import dataclasses
import importlib
import importlib.util
import itertools
import json
import math
import os
import platform
import random
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipelines import (
    CorpusError,
    OptionError,
    Report,
    batch_pairs,
    checksums,
    choose,
    corpus_errors,
    group_by_source,
    load_class,
    read_pairs,
    split_by_hash,
    split_last,
    survey,
)
from pipelines.tokenizers import TOKENIZERS
from seq2seq.config import (
    MONITORS,
    TRANSLATION_FIGURES,
    Config,
    load_config,
    model_options,
    own_classes,
    reading_options,
)
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
        folder: the run folder to make: `model.keras`, the last epoch's or the best by `config.monitor`; `config.json`;
            `history.csv`; and in `survey.json` the tokens and lengths of the training side, counted.
        overwrite: whether a run that is there may be replaced; it is left alone until the first epoch is over.
        callbacks: more Keras callbacks. Before training, each one's `held_out`, where it has one, is set to a few
            (source, target) pairs of the validation side.
        progress: a function to call now and then with the number of pairs read, while the corpus is surveyed.
        report: a function to call with the `Report` of what was read and left out, after that.
        command: the command line, to be kept in `config.json`.
        expected_checksums: {path: sha256} of the corpus's files in the run that this one repeats.

    The same configuration gives the same weights, to the bit on a CPU, where
    `tf.config.experimental.enable_op_determinism()` has been called before, as the command line does.

    After each epoch up to 500 held-out sources are translated greedily and measured as in `evaluation`, if what that
    needs is installed.

    Returns:
        The trained `Seq2Seq`, as it was kept.

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
        measured = config.monitor in TRANSLATION_FIGURES or can_measure()
        if measured:
            importlib.import_module("seq2seq.evaluation")  # missing packages are named now, and not after an epoch
        training, steps, epochs, validation, held_out, found = _prepare(config, tokenizers, progress, report)
        if config.monitor and not held_out:
            raise OptionError(f"monitor={config.monitor!r}: nothing is held out to be measured")
        for callback in callbacks:
            if hasattr(callback, "held_out"):
                callback.held_out = [
                    (source, references[0]) for source, references in itertools.islice(held_out.items(), 3)
                ]
        model = _model(config, tokenizers, steps * epochs)
        model.compile(optimizer=make_optimizer(config, steps * epochs))
        model.fit(
            training,
            validation_data=validation,
            epochs=epochs,
            # Left to find the end by itself, Keras counts one step more than it takes in each epoch.
            steps_per_epoch=steps,
            shuffle=False,  # the pipeline has done it
            verbose=0,
            callbacks=[
                *_own_callbacks(config, held_out if measured else {}),
                _SaveRun(folder, config, record, found),
                *callbacks,
            ],
        )
    return load_run(folder) if config.monitor else model


def can_measure():
    """Whether what `seq2seq.evaluation` needs is installed."""
    return all(map(importlib.util.find_spec, ("rapidfuzz", "sacrebleu")))


def _own_callbacks(config, translated):
    """What happens after each epoch before it is saved, in this order; `translated` is a `sample`, or empty."""
    if config.average > 1:
        yield _Average(config.average)
    if translated:
        yield _Translate(translated)
    watched = {"monitor": config.monitor, "mode": MONITORS.get(config.monitor)}
    if config.schedule == "plateau":
        yield keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=2, **watched)
    if config.patience is not None:
        yield keras.callbacks.EarlyStopping(patience=config.patience, **watched)


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
        The training batches, steps in an epoch, epochs, the validation batches or None, a `sample` of the held-out
        side, and the `Survey` of the training side.
    """
    cleaning = Report()
    training, validation = _sides(config, report=cleaning)
    if config.split == "hash" and config.limit is None:
        order = {"shuffle_files": True, "weights": config.weights, "seed": config.seed}
        training, _ = _sides(config, report=cleaning, **order)

    found = survey(training, *tokenizers, progress)
    if report:
        report(cleaning)
    if found.pairs == 0:
        raise CorpusError(f"{config.corpus}: no pairs to train on")
    for tokenizer, counts in zip(tokenizers, found.tokens, strict=True):
        tokenizer.take_vocabulary(counts, config.min_frequency, config.max_vocabulary)
    held_out = sample(validation, config.seed)

    def batches(pairs, **options):
        return batch_pairs(
            pairs, *tokenizers, config.batch_size, batch_tokens=config.batch_tokens, encoding=config.encoding, **options
        )

    if config.batch_tokens:
        # How many batches a pass makes depends on its order. An epoch has about as many; pass follows on pass.
        longer = found.longer * _tokens_per_character(training, tokenizers)
        steps = math.ceil((longer + found.pairs) / config.batch_tokens)
        training = batches(training, seed=config.seed).repeat()
    else:
        steps = math.ceil(found.pairs / config.batch_size)
        training = batches(training, seed=config.seed).apply(tf.data.experimental.assert_cardinality(steps))
    return (
        training,
        steps,
        config.epochs or min(100, max(8, round(2000 / steps))),
        batches(validation, shuffle=False) if held_out else None,
        held_out,
        found,
    )


def _tokens_per_character(pairs, tokenizers):
    """How many tokens the longer sides of pairs have for each character: of the first 10,000 pairs, as an estimate."""
    tokens = characters = 0
    for sides in pairs.take(10_000).batch(1000):
        tokens += tf.reduce_sum(tf.maximum(*(of.lengths(side) for of, side in zip(tokenizers, sides, strict=True))))
        characters += tf.reduce_sum(tf.maximum(*(tf.strings.length(side, "UTF8_CHAR") for side in sides)))
    return int(tokens) / max(1, int(characters))


def _sides(config, **options):
    """The pairs to train on and those held out."""
    split = {"hash": split_by_hash, "last": split_last}[config.split]
    return split(
        read_pairs(config.corpus, config.limit, **options, **reading_options(config)), config.validation_fraction
    )


def held_out_pairs(folder):
    """The pairs that a run has never trained on: a `tf.data.Dataset` of (source, target) strings.

    Raises:
        RunError: if there are none, or the folder does not say what it was trained on.
    """
    if not (Path(folder) / "config.json").is_file():
        raise RunError(f"{folder}: holds no config.json to say what was held out; name a corpus")
    config, _ = _configuration(folder)
    if not config.validation_fraction:
        raise RunError(f"{folder}: nothing was held out; name a corpus")
    return _sides(config)[1]


def _configuration(folder):
    """The `Config` of a run, and all that its `config.json` holds."""
    options, record = load_config(Path(folder) / "config.json")
    return Config(**options), record


def check_same_corpus(*folders):
    """Sees that runs were trained on the same corpus, split in the same way.

    Raises:
        RunError: if not, since what one of them has held out the other may have learned.
    """
    found = []
    for folder in folders:
        config, record = _configuration(folder)
        found.append((sorted(record.get("checksums", {}).values()), config.split, config.validation_fraction))
    for folder, this in zip(folders, found, strict=True):
        if this != found[0]:
            raise RunError(
                f"{folder} and {folders[0]} were not trained on the same corpus, or it was split in another way: "
                "what one has held out the other may have learned"
            )


def sample(pairs, seed=0, count=500):
    """So many sources of a corpus at random, of its first 20,000 pairs, each with all its references: a dict."""
    references = group_by_source(pairs.take(20_000))
    sources = list(references)
    return {source: references[source] for source in random.Random(seed).sample(sources, min(count, len(sources)))}


def make_optimizer(config, steps):
    """The optimizer of a configuration, for a training of so many steps."""
    schedules, rate, warmup = keras.optimizers.schedules, config.learning_rate, config.warmup
    if config.schedule == "cosine":
        rise = {"warmup_target": rate, "warmup_steps": warmup} if warmup else {}
        rate = schedules.CosineDecay(0.0 if warmup else rate, max(1, steps - warmup), **rise)
    elif config.schedule == "inverse_sqrt":
        rate = InverseSqrt(rate, warmup)
    elif warmup:
        rate = schedules.PolynomialDecay(0.0, warmup, rate)
    known = [name.lower() for name, found in vars(keras.optimizers).items() if isinstance(found, type)]
    return keras.optimizers.get(
        {
            "class_name": choose("optimizer", config.optimizer.lower(), sorted({*known} - {"optimizer"})),
            "config": {"learning_rate": rate, "global_clipnorm": config.clip_norm},
        }
    )


@keras.saving.register_keras_serializable("seq2seq")
class InverseSqrt(keras.optimizers.schedules.LearningRateSchedule):
    """Rises in a line to a rate and then falls with the root of the steps, as in Vaswani et al. 2017.

    Args:
        rate: the highest step size.
        warmup: the step at which it is reached.
    """

    def __init__(self, rate, warmup):
        self.rate = rate
        self.warmup = warmup

    def __call__(self, step):
        share = (tf.cast(step, tf.float32) + 1) / self.warmup
        return self.rate * tf.minimum(share, tf.math.rsqrt(share))

    def get_config(self):
        return {"rate": self.rate, "warmup": self.warmup}


class _Average(keras.callbacks.Callback):
    """Puts the average of the weights after the latest epochs in their place while an epoch is measured and saved."""

    def __init__(self, count):
        super().__init__()
        self.latest = collections.deque(maxlen=count)
        self.swapped = False

    def on_epoch_begin(self, epoch, logs=None):
        if self.swapped:
            self._assign(self.latest[-1])
            self.swapped = False

    def on_test_begin(self, logs=None):
        self._swap()

    def on_epoch_end(self, epoch, logs=None):
        self._swap()  # where nothing is held out, nobody has begun to test

    def _swap(self):
        if not self.swapped:
            self.latest.append([weight.numpy() for weight in self.model.trainable_variables])
            self._assign([np.mean(weights, axis=0) for weights in zip(*self.latest, strict=True)])
            self.swapped = True

    def _assign(self, weights):
        for variable, weight in zip(self.model.trainable_variables, weights, strict=True):
            variable.assign(weight)


class _Translate(keras.callbacks.Callback):
    """Adds how good the translations of held-out sources are to the figures of each epoch."""

    def __init__(self, held_out):
        super().__init__()
        self.sources, self.references = list(held_out), list(held_out.values())

    def on_epoch_end(self, epoch, logs=None):
        from seq2seq.evaluation import corpus_scores

        texts = [text.decode() for text in self.model.translate(self.sources).numpy()]
        for name, score in corpus_scores(texts, self.references).items():
            logs[f"val_{name.lower().replace(' ', '_')}"] = score


class _SaveRun(keras.callbacks.Callback):
    """Writes the run folder after each epoch, every file aside first, so that what is there is always whole."""

    def __init__(self, folder, config, record, survey):
        super().__init__()
        self.folder = folder
        self.monitor = config.monitor
        self.record = {"options": dataclasses.asdict(config), **record}
        self.survey = survey
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append({"epoch": epoch + 1, **logs})
        self.folder.mkdir(parents=True, exist_ok=True)
        if best_epoch(self.epochs, self.monitor) == epoch + 1:
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


def best_epoch(history, monitor):
    """The number of the epoch whose model is kept: the first one that is best, or the last where nothing is watched.

    Args:
        history: the rows of `history.csv`.
        monitor: the name of a figure, or None.
    """
    if monitor is None:
        return int(history[-1]["epoch"])
    sign = -1 if MONITORS[monitor] == "max" else 1
    # Not a number is worse than any.
    order = [(sign * figure if math.isfinite(figure := float(row[monitor])) else math.inf) for row in history]
    return int(history[order.index(min(order))]["epoch"])


def draw_run(folder, model):
    """Draws a run's pictures into its folder, those that can be: `curves.png`, `error-rates.png`, `attention-1.png` ...

    Curves are of the history, error rates against length and attention of a `sample` of what was held out.

    Returns:
        The files, a list of paths.

    Raises:
        OptionError: if the folder does not tell what it was trained on.
    """
    from seq2seq.evaluation import scores_by_length
    from seq2seq.pictures import draw_attention, draw_curves, draw_error_rates

    folder = Path(folder)
    config, _ = _configuration(folder)
    with (folder / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    drawn = [folder / "curves.png"]
    draw_curves(history, drawn[0], best=best_epoch(history, config.monitor) if config.monitor else None)
    held_out = sample(_sides(config)[1], config.seed) if config.validation_fraction else {}
    if held_out:
        texts = [text.decode() for text in model.translate(list(held_out)).numpy()]
        drawn.append(folder / "error-rates.png")
        draw_error_rates(scores_by_length(list(held_out), texts, list(held_out.values())), drawn[-1])
    if held_out and model.has_attention:
        for number, alignment in enumerate(model.attention(list(held_out)[:4]), start=1):
            drawn.append(folder / f"attention-{number}.png")
            draw_attention(alignment, drawn[-1])
    return drawn


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
        for name in own_classes(_configuration(folder)[0]):
            if name.partition(":")[0] not in sys.modules:  # and nobody has said that its code may run
                raise RunError(f"{folder}: made of {name}, which is not of this library; say --import {name}")
    try:
        model = keras.models.load_model(path)
    except Exception as error:  # Keras raises whatever the zip, JSON or HDF5 reader does
        raise RunError(f"{path}: damaged, or no model of this library ({one_line(error)})") from error
    if not isinstance(model, Seq2Seq):
        raise RunError(f"{path}: a {type(model).__name__}, not a Seq2Seq")
    return model
