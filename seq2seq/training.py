"""One training run: from a corpus and a `Config` to a run folder with the model, what made it and how it went."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipelines import (
    CorpusError,
    OptionError,
    Report,
    checksums,
    corpus_errors,
    count_pairs,
    load_class,
    survey,
)
from pipelines.readers import LENGTH
from seq2seq.building import build_model, copy_weights, prepare
from seq2seq.callbacks import AverageWeights, SaveRun, ScoreTranslations
from seq2seq.checkpoints import Checkpoints, RunError, locked, write_json
from seq2seq.config import (
    Config,
    own_classes,
)
from seq2seq.distribution import (
    distribute,
    is_chief,
    lost_workers,
    sums_of_workers,
)
from seq2seq.epochs import (
    both_sides,
    epoch_count,
    run_batches,
    steps_per_epoch,
    training_batches,
    training_pairs,
    validation_pairs,
)
from seq2seq.model import Seq2Seq
from seq2seq.process import be_reproducible, clocks, first_signal, restored_determinism
from seq2seq.runs import (
    best_epoch,
    can_measure,
    compile_model,
    configuration,
    find_corpus,
    load_model,
    load_run,
    sample,
)
from seq2seq.surveying import say_copied, say_leaks, say_long, say_unknown
from seq2seq.tracking import check_trackers, tracked

_MEASURED_EPOCHS = 100  # no more of a training are measured, but for its first and last one
_PACKAGES = ("keras-seq2seq", "tensorflow", "tensorflow-text", "keras", "numpy")  # whose versions a run records


def train(
    config: Config | None,
    folder: Path | str,
    overwrite: bool = False,
    resume: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    progress: Callable[[int], None] | None = None,
    report: Callable[[Report], None] | None = None,
    say: Callable[[str], None] | None = None,
    command: str | None = None,
    strategy: tf.distribute.Strategy | None = None,
    track: Sequence[str] = (),
) -> Seq2Seq:
    """Trains a model and keeps it in a run folder, saved anew after each measured epoch.

    A training that was cut off goes on where it was, to the same weights as if nothing had happened, when it is begun
    again with the same configuration. Its checkpoints are in the folder's `unfinished` until it comes to its end. On
    SIGTERM and SIGINT (Ctrl-C) one more is saved, after the epoch where one has just ended; the second signal stops at
    once.

    Args:
        config: a `Config`; None to resume with the one that the training was begun with.
        folder: the run folder to make: `model.keras`, the last epoch's or the best by `config.monitor`, without its
            optimizer; `config.json`, which also says what the training took; `history.csv`; in `survey.json` the tokens
            and lengths of the training side, counted; and in `epochs` the models that `config.keep_epochs` asks for.
        overwrite: whether a run that is there may be replaced; it is left alone until the first epoch is over.
        resume: whether there must be an unfinished training to go on with.
        callbacks: more Keras callbacks. Before training, each one's `held_out`, where it has one, is set to a few
            (source, target) pairs of the validation side.
        progress: a function to call now and then with the number of pairs read, while the corpus is surveyed.
        report: a function to call with the `Report` of what was read and left out, after that; with another one of
            `config.validation`, if that is given.
        say: a function to call with what else one should know, as text: of resuming, checkpoints that could not be
            saved, batches left out.
        command: the command line, to be kept in `config.json`.
        strategy: what trains on several devices or machines, see `open_strategy`. All workers call this with the same
            arguments and see the same folder, which the first of them writes. Default: one device.
        track: names of the trackers that are told the figures of each epoch, see `tracking`. Default: none.

    The same configuration gives the same weights, to the bit on a CPU, and on a GPU with `config.deterministic`.

    After a measured epoch the held-out pairs are scored, up to 500 of their sources are translated greedily and
    measured as in `evaluation`, if what that needs is installed, and the run folder is written. The first epoch is
    measured, the last, and in between each one in trainings of up to 100 epochs, else each k-th, 50 to 100 in all:
    where epochs are so short, their ends would take longer than they do. The others have only figures of training in
    `history.csv`.

    Returns:
        The trained `Seq2Seq`, as it was kept.

    Raises:
        RunError: if the folder is in use, may not be overwritten, or holds nothing to resume.
        DivergedError: if loss or gradient are no longer finite numbers.
        MemoryError: if a batch does not fit into memory. What was saved stays.
        CorpusError: if a corpus cannot be read, holds nothing to train on, or has changed since a training that is to
            be resumed was begun.
        OptionError: if options do not go together, a name in them stands for nothing, or a tracker cannot begin.
        ModuleNotFoundError: if a tracker is not installed.
        WorkerLostError: if another worker has stopped.
    """
    if not isinstance(config, Config | None):
        raise OptionError(f"config={config!r}: expected a Config, such as Config({config!r})")
    folder, started, track = Path(folder), clocks(), [track] if isinstance(track, str) else track
    say = say or (lambda text: None)
    check_trackers(track)
    if config and config.compile and strategy:
        raise OptionError("compile=True: steps are compiled on one device only, without a strategy")
    chief = is_chief(strategy)
    lock = locked(folder) if chief else contextlib.nullcontext()
    with lock, lost_workers(strategy), corpus_errors(), warnings.catch_warnings(), restored_determinism():
        # Keras warns of every dataset that does not know its length, and nobody has counted the validation side.
        warnings.filterwarnings("ignore", "Your input ran out of data", UserWarning)
        for name, option in own_classes(config).items() if config else ():
            load_class(option, name)
        run = None
        if chief and not _goes_on(config, folder, overwrite, resume):
            run = _begin(config, folder, progress, report, say, command)
        if run is None or strategy:
            sums_of_workers(strategy, [])  # when the first has begun, the others can read what it has written
            run = _resume(folder, config, say, strategy)
        run.clocks = run.clocks - started
        _fit(run, callbacks, say, track if chief else ())
        sums_of_workers(strategy, [])
        if chief:
            run.checkpoints.clear()
            run.checkpoints.folder.rmdir()
        return load_run(folder)


@dataclasses.dataclass
class _Run:
    """A training, begun or to be gone on with."""

    folder: Path
    config: Config
    record: dict  # what `config.json` holds
    model: Seq2Seq
    checkpoints: Checkpoints
    pairs: int  # in an epoch
    steps: int  # in an epoch
    epochs: int
    history: list  # rows of history.csv
    step: int = 0  # how many steps of the epoch after them are done
    seen: int = 0  # how many pairs have been trained on, in all epochs
    state: list | None = None  # the arrays of the checkpoint to go on from
    clocks: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2))  # with `clocks`, what has been taken
    peak: int = 0  # MB of memory, before the training was resumed
    strategy: tf.distribute.Strategy | None = None

    def measures(self, epoch):
        """Whether an epoch, counted from 1, is one after which the model is measured and saved."""
        return epoch in (1, self.epochs) or epoch % math.ceil(self.epochs / _MEASURED_EPOCHS) == 0

    def measured_after(self, epoch):
        """How many epochs after this one have been measured."""
        return sum(self.measures(row["epoch"]) for row in self.history[epoch:])

    def kept(self):
        """The number of the epoch whose model is in the folder; None before the first one is over."""
        measured = [row for row in self.history if self.measures(row["epoch"])]
        return best_epoch(measured, self.config.monitor) if measured else None

    def stopped(self):
        """Whether nothing is left to do: the epochs are over, or patience is."""
        patience, done = self.config.patience, len(self.history)
        impatient = patience is not None and done > 0 and self.measured_after(self.kept()) >= patience
        return done == self.epochs or impatient


def _goes_on(config, folder, overwrite, resume):
    """Whether there is a training in the folder to go on with; sees that one may be begun if there is not."""
    unfinished = folder / "unfinished"
    begun = (unfinished / "config.json").is_file() and any(unfinished.glob("*.npz"))
    if overwrite and resume:
        raise OptionError("overwrite and resume exclude each other")
    if begun and not overwrite:
        old = configuration(unfinished)[0]
        if config is None or config == old:
            return True
        pairs = zip(dataclasses.asdict(old).items(), dataclasses.asdict(config).values(), strict=True)
        other = ", ".join(f"{name} {was} and not {is_now}" for (name, was), is_now in pairs if was != is_now)
        raise RunError(
            f"{folder} holds an unfinished training with other options ({other}); --resume goes on with it as it was "
            "begun, --overwrite begins anew, --out takes another folder"
        )
    if resume:
        raise RunError(f"{folder}: no unfinished training to resume")
    if not overwrite and any(path.name not in ("lock", "unfinished") for path in folder.iterdir()):
        raise RunError(f"{folder} is not empty; choose another folder (--out) or say --overwrite")
    return False


def _begin(config, folder, progress, report, say, command):
    """Reads the corpus through and makes the `_Run`, with all in the folder that it takes to resume it."""
    be_reproducible(config)
    record = {
        "options": dataclasses.asdict(config),
        "command": command,
        "versions": {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
        "directory": os.getcwd(),  # from which paths in the options and the command are to be followed
        "checksums": checksums(config.corpus),
    }
    if config.validation:
        record["validation_checksums"] = checksums(config.validation)
    old, tokenizers = prepare(config)
    if old:
        record["from"] = configuration(config.warm_start)[1]
    sizes = [tokenizer.vocabulary_size for tokenizer in tokenizers] if old else []
    cleaning = Report()
    found = survey(training_pairs(config, tokenizers[0], 0, report=cleaning), *tokenizers, progress)
    if report:
        report(cleaning)
    say_long(config, cleaning, say if report else warnings.warn)
    if found.pairs == 0:
        raise CorpusError(f"{config.corpus}: no pairs to train on")
    if config.validation:
        cleaning = Report()
        longest = config.max_length and max(config.max_length, Config.max_length or 0)
        count = count_pairs(validation_pairs(config, cleaning, max_length=longest))
        if cleaning.dropped[LENGTH]:
            raise CorpusError(
                f"{cleaning.first[LENGTH][0]}, too long to validate on; take it out, or allow it by --max-length"
            )
        if not count:
            raise CorpusError(f"{config.validation}: no pairs to validate on")
        if report:
            report(cleaning)
    if config.monitor and not list(both_sides(config, tokenizers[0])[1].take(1)):
        raise OptionError(f"monitor={config.monitor!r}: nothing is held out to be measured")
    say_leaks(record, config, tokenizers[0], say)
    counted = [found.tokens[0] + found.tokens[1]] * 2 if config.shared_vocabulary else found.tokens
    for tokenizer, counts in zip(tokenizers, counted, strict=True):
        take = tokenizer.extend_vocabulary if old else tokenizer.take_vocabulary
        take(counts, config.min_frequency, config.max_vocabulary)
    say_unknown(config, tokenizers, counted, say)
    if config.copy:
        say_copied(tokenizers, say)
    steps = steps_per_epoch(config, tokenizers, found)
    epochs = epoch_count(config, steps)
    if config.warmup >= steps * epochs:
        say(f"The training has {steps * epochs:,} updates, all of them warm-up: --warmup {config.warmup}")
    checkpoints = Checkpoints(folder / "unfinished")
    model = build_model(config, tokenizers, steps * epochs)
    if old:
        sizes_now = [tokenizer.vocabulary_size for tokenizer in tokenizers]
        copy_weights(model, old, config.warm_start, set(zip(sizes, sizes_now, strict=True)))
        for side, tokenizer, counts, size in zip(("source", "target"), tokenizers, found.tokens, sizes, strict=True):
            known = {token if isinstance(token, bytes) else token.encode() for token in tokenizer.tokens}
            unknown = [token.decode() for token, _ in counts.most_common() if token not in known]
            said = f"{side}: {tokenizer.vocabulary_size - size:,} new tokens"
            say(f"{said}; {len(unknown):,} stay unknown, such as {' '.join(unknown[:20])}" if unknown else said)
    run = _Run(folder, config, record, model, checkpoints, found.pairs, steps, epochs, history=[])
    checkpoints.clear()
    model.save(checkpoints.folder / "begun.keras")
    write_json(checkpoints.folder / "survey.json", found.as_dict(), indent=1)
    write_json(checkpoints.folder / "run.json", {name: getattr(run, name) for name in ("pairs", "steps", "epochs")})
    write_json(checkpoints.folder / "config.json", record)  # the last: with it the folder is one to resume from
    return run


def _resume(folder, given, say, strategy):
    """The `_Run` of an unfinished training, as it was at its last checkpoint, or as it has just been begun.

    What is `given` is the same configuration or None. A file of the same name in another directory is another corpus.
    """
    checkpoints = Checkpoints(folder / "unfinished")
    config, record = configuration(checkpoints.folder)
    corpus = find_corpus(record)
    validation = find_corpus(record, "validation") if config.validation else None
    for name, found in (("corpus", corpus), ("validation", validation)):
        if given and (other := getattr(given, name)) != found:
            raise CorpusError(f"{other}: this training was begun with {found}; --resume goes on with that")
    config = dataclasses.replace(config, corpus=corpus, validation=validation)
    be_reproducible(config)
    facts = json.loads((checkpoints.folder / "run.json").read_bytes())
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = load_model(checkpoints.folder, "begun.keras")
    run = _Run(folder, config, record, model, checkpoints, **facts, history=[], strategy=strategy)
    if any(checkpoints.folder.glob("*.npz")):
        run.state, facts = checkpoints.load()
        run.history, run.step, run.seen = (facts[name] for name in ("history", "step", "seen"))
        run.clocks, run.peak = np.array(facts.get("clocks", [0, 0])), facts.get("peak", 0)
        say(
            f"Resuming {folder} in epoch {len(run.history) + 1}/{run.epochs}, after {run.step:,} of {run.steps:,} steps"
        )
    (first,) = sums_of_workers(strategy, [run.seen if is_chief(strategy) else 0])
    if run.seen != first:
        raise RunError(f"{folder}: the first worker has another checkpoint; all must see the same folder")
    return run


def _fit(run, callbacks, say, track):
    """Trains from where a run is to its end."""
    config, model = run.config, run.model
    validation = both_sides(config, model.source_tokenizer)[1]
    held_out = sample(validation, config.seed)
    for callback in callbacks:
        if hasattr(callback, "held_out"):
            callback.held_out = [(source, targets[0]) for source, targets in itertools.islice(held_out.items(), 3)]
    with model.distribute_strategy.scope():
        compile_model(model, config, run.steps * run.epochs)
    model.build_training()
    model.compiles_training = config.compile
    model.rows_compiled, model.tokens_compiled, model.on_compile = config.batch_size, config.batch_tokens, say
    if model.compiles_training:
        say(
            "Training steps are compiled by XLA, each size of batch once, which takes seconds to minutes. Lengths are "
            "rounded up to 16, 32, 64 and so on: up to 1,024 tokens that is at most 7 sizes"
            + (", and 3 more of short texts" if config.batch_tokens else "")
        )
    average = AverageWeights(config.average)
    learned = training_pairs(config, model.source_tokenizer, 0)
    probe = list(held_out)[:50] or [source.decode() for source, _ in learned.take(50).as_numpy_iterator()]
    safe = SaveRun(run, average, probe, say)
    own: list = [average] if config.average > 1 else []
    if held_out and can_measure():
        own.append(ScoreTranslations(held_out, run))
    measured = run_batches(run, validation, shuffle=False)
    with tracked(track, config, model, run.folder) as trackers, first_signal() as safe.signal:
        while not run.stopped():
            epoch, step = len(run.history), run.step
            try:
                model.fit(
                    distribute(run.strategy, training_batches(run, run.seen)),
                    validation_data=distribute(run.strategy, measured) if held_out else None,
                    validation_freq=list(filter(run.measures, range(1, run.epochs + 1))),
                    initial_epoch=epoch,
                    epochs=epoch + 1 if step else run.epochs,  # first to the end of the epoch that was begun
                    # Left to find the end by itself, Keras counts one step more than it takes in each epoch.
                    steps_per_epoch=run.steps - step,
                    shuffle=False,  # the pipeline has done it
                    verbose=0,
                    callbacks=[*own, safe, *trackers, *callbacks],
                )
            except tf.errors.ResourceExhaustedError as error:
                raise MemoryError(safe.out_of_memory()) from error
