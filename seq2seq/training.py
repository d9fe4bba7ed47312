"""One training run: from a corpus and a `Config` to a run folder with the model, what made it and how it went."""

import collections
import contextlib
import csv
import dataclasses
import importlib
import importlib.util
import itertools
import json
import math
import os
import platform
import re
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import config as determinism  # nothing public turns it off again

from pipelines import (
    CorpusError,
    OptionError,
    Report,
    accepted,
    batch_pairs,
    checksums,
    choose,
    construct,
    corpus_errors,
    count_pairs,
    load_class,
    open_corpora,
    sources_in,
    survey,
)
from pipelines.columns import ColumnsTokenizer
from pipelines.corpora import WITHOUT_AUTOTUNE
from pipelines.lines import as_line
from pipelines.options import nearest
from pipelines.readers import LENGTH
from pipelines.tokenizers import TOKENIZERS, SeparatorTokenizer
from pipelines.tokens import END, RESERVED_TOKENS, Tokenizer
from seq2seq.attention import Pointer
from seq2seq.checkpoints import Checkpoints, RunError, locked, whole_file, write_json
from seq2seq.config import (
    TRANSLATION_FIGURES,
    Config,
    model_options,
    own_classes,
    reading_options,
    separates,
    shaping_options,
    tokenizer_names,
)
from seq2seq.contract import one_line
from seq2seq.distribution import (
    WorkerLostError,
    distribute,
    is_chief,
    lost_workers,
    several_workers,
    sums_of_workers,
)
from seq2seq.layers import Decoder, Encoder, token_ids
from seq2seq.model import Seq2Seq
from seq2seq.runs import (
    best_epoch,
    both_sides,
    can_measure,
    compile_model,
    configuration,
    find_corpus,
    kept_epochs,
    load_model,
    load_run,
    sample,
    trained_on,
    validation_pairs,
)
from seq2seq.tracking import check_trackers, tracked
from seq2seq.transformer import TransformerDecoder, TransformerEncoder

ENCODERS = {"recurrent": Encoder, "transformer": TransformerEncoder}
DECODERS = {"recurrent": Decoder, "transformer": TransformerDecoder}

_MEASURED_EPOCHS = 100  # no more of a training are measured, but for its first and last one
_PACKAGES = ("keras-seq2seq", "tensorflow", "tensorflow-text", "keras", "numpy")  # whose versions a run records


class DivergedError(RuntimeError):
    """A batch had no finite gradient. The message names the step and a file with the batch."""


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
    folder, started, track = Path(folder), _clocks(), [track] if isinstance(track, str) else track
    say = say or (lambda text: None)
    check_trackers(track)
    if config and config.compile and strategy:
        raise OptionError("compile=True: steps are compiled on one device only, without a strategy")
    chief = is_chief(strategy)
    lock = locked(folder) if chief else contextlib.nullcontext()
    with lock, lost_workers(strategy), corpus_errors(), warnings.catch_warnings(), _determinism_as_before():
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
    clocks: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2))  # with `_clocks`, what has been taken
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
    _be_reproducible(config)
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
    found = survey(_one_pass(config, tokenizers[0], 0, report=cleaning), *tokenizers, progress)
    if report:
        report(cleaning)
    _say_long(config, cleaning, say if report else warnings.warn)
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
    _say_leaks(record, config, tokenizers[0], say)
    counted = [found.tokens[0] + found.tokens[1]] * 2 if config.shared_vocabulary else found.tokens
    for tokenizer, counts in zip(tokenizers, counted, strict=True):
        take = tokenizer.extend_vocabulary if old else tokenizer.take_vocabulary
        take(counts, config.min_frequency, config.max_vocabulary)
    _say_unknown(config, tokenizers, counted, say)
    if config.copy:
        _say_copied(tokenizers, say)
    steps = _steps(config, tokenizers, found)
    epochs = _epochs(config, steps)
    if config.warmup >= steps * epochs:
        say(f"The training has {steps * epochs:,} updates, all of them warm-up: --warmup {config.warmup}")
    checkpoints = Checkpoints(folder / "unfinished")
    model = _model(config, tokenizers, steps * epochs)
    if old:
        sizes_now = [tokenizer.vocabulary_size for tokenizer in tokenizers]
        _take_weights(model, old, config.warm_start, set(zip(sizes, sizes_now, strict=True)))
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


def prepare(config: Config) -> tuple[Seq2Seq | None, list[Tokenizer]]:
    """Makes what a training needs before its corpus is read; so options that do not go together are found out at once.

    Returns:
        The model to start from, or None, and the two tokenizers, which have a vocabulary only if there is one.

    Raises:
        OptionError: if options do not go together, or a name in them stands for nothing.
        CorpusError: if there is no such corpus.
    """
    columns = open_corpora(config.corpus, **reading_options(config)).sources
    old = _warm(config, columns) if config.warm_start else None
    tokenizers = (
        [old.source_tokenizer, old.target_tokenizer]
        if old
        else [_tokenizer(config, "source_tokenizer", columns), _tokenizer(config, "target_tokenizer", ("target",))]
    )
    check_taken(config, ())
    compile_model(_model(config, tokenizers, steps=1), config, steps=1)
    if config.monitor in TRANSLATION_FIGURES:
        importlib.import_module("seq2seq.evaluation")  # whose packages may be missing
    return old, tokenizers


def _say_long(config, report, say):
    """Says what the default `max_length` has left out, since it was perhaps not asked for."""
    if config.max_length == Config.max_length and (count := report.dropped[LENGTH]):
        say(
            f"{count:,} with a side of more than {config.max_length:,} characters left out, the first of them "
            f"{report.first[LENGTH][0]}. Another --max-length, or none, takes them; long texts need much memory"
        )


def _say_unknown(config, tokenizers, counted, say):
    """Says if more than 5% of a side's tokens are unknown to its vocabulary; accuracy then counts unknown tokens.

    Raises:
        OptionError: if a vocabulary is empty.
    """
    for side, tokenizer, counts in zip(("source", "target"), tokenizers, counted, strict=True):
        if tokenizer.vocabulary_size <= len(RESERVED_TOKENS):
            raise OptionError(f"min_frequency={config.min_frequency}: no {side} token comes so often")
        if type(tokenizer).take_vocabulary is Tokenizer.take_vocabulary:  # others make tokens of what is counted
            unknown = 1 - sum(counts[token.encode()] for token in tokenizer.tokens) / counts.total()
            if unknown > 0.05:
                say(f"{side}: {unknown:.0%} of the tokens are none of the vocabulary's {len(tokenizer.tokens):,}")


def _say_copied(tokenizers, say):
    """Says how many tokens can be copied."""
    pointer = Pointer(tokenizers[1].vocabulary_size)
    pointer.take_tokenizers(*tokenizers)
    known = tokenizers[1].vocabulary_size - END - 1
    copied = f"{pointer.copied:,} source tokens" if pointer.copied else "no source token"
    say(f"copying: {copied} can be copied, of {known:,} target tokens")


def _say_leaks(record, config, source_tokenizer, say):
    """Says how many of the held-out pairs have a source that is trained on, too, where that can be."""
    training, validation = both_sides(config, source_tokenizer)

    def tell(learned, by_whom):
        if learned.any():
            say(f"{learned.sum():,} of {len(learned):,} held-out pairs have a source that {by_whom}")

    if config.validation or config.split == "last":
        hint = "" if config.validation else "; --split hash keeps them apart"
        tell(sources_in(validation, training, source_tokenizer), f"is trained on too{hint}")
    if config.warm_start:
        try:
            learned = trained_on(record["from"], validation, source_tokenizer)
        except CorpusError as error:
            say(f"{config.warm_start}: cannot tell whether it was trained on what is held out here: {error}")
        else:
            tell(learned, f"{config.warm_start} was trained on")


def _warm(config, columns):
    """The model of the run to start from, which must be of as many source columns."""
    old = configuration(config.warm_start)[0]
    for name in shaping_options():
        if getattr(config, name) != getattr(old, name):
            raise OptionError(
                f"{name}={getattr(config, name)!r}: {config.warm_start}, to start from, has {getattr(old, name)!r}"
            )
    if config.input_feeding and not config.embedding:
        raise OptionError("input_feeding=True: without an embedding, new tokens would move the weights of what is fed")
    model = load_run(config.warm_start)
    if len(columns) != len(names := model.source_tokenizer.column_names):
        raise OptionError(
            f"columns={config.columns}: {config.warm_start}, to start from, has {len(names)} of the source "
            f"({', '.join(names)}), and this corpus {len(columns)}"
        )
    return model


def _take_weights(model, old, name, grown):
    """Gives a model the weights of one with fewer tokens. What belongs to a token, rows or columns, keeps its id.

    Args:
        model, old: the two models.
        name: of the old one's run.
        grown: how many tokens there were and how many there are, of each side: a set of pairs.
    """
    if len(model.weights) != len(old.weights):
        raise OptionError(f"{name}, to start from, has {len(old.weights)} weights, and this model {len(model.weights)}")
    for weight, known in zip(model.weights, old.weights, strict=True):
        sizes = zip(known.shape, weight.shape, strict=len(known.shape) == len(weight.shape))
        if len(known.shape) != len(weight.shape) or any(
            was != is_now and (was, is_now) not in grown for was, is_now in sizes
        ):
            raise OptionError(
                f"{name}, to start from, has {weight.path} of shape {known.shape}, and this model {weight.shape}; only "
                "vocabularies may grow"
            )
        value = np.array(weight)
        value[tuple(map(slice, known.shape))] = known
        weight.assign(value)


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
    _be_reproducible(config)
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


def _be_reproducible(config):
    """Sets the seed, and whether operations must give the same bits each time: in the whole process."""
    keras.utils.set_random_seed(config.seed)
    by_default = not config.compile and not tf.config.list_logical_devices("GPU")
    if by_default if config.deterministic is None else config.deterministic:
        determinism.enable_op_determinism()
    else:
        determinism.disable_op_determinism()


@contextlib.contextmanager
def _determinism_as_before():
    """Leaves a process as it was, whatever `_be_reproducible` has set in between."""
    enabled = determinism.is_op_determinism_enabled()
    try:
        yield
    finally:
        determinism.enable_op_determinism() if enabled else determinism.disable_op_determinism()


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
    average = _Average(config.average)
    learned = _one_pass(config, model.source_tokenizer, 0)
    probe = list(held_out)[:50] or [source.decode() for source, _ in learned.take(50).as_numpy_iterator()]
    safe = _Safe(run, average, probe, say)
    own: list = [average] if config.average > 1 else []
    if held_out and can_measure():
        own.append(_Translate(held_out, run))
    measured = _batches(run, validation, shuffle=False)
    with tracked(track, config, model, run.folder) as trackers, _first_signal() as safe.signal:
        while not run.stopped():
            epoch, step = len(run.history), run.step
            try:
                model.fit(
                    distribute(run.strategy, _training_batches(run, run.seen)),
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


def _training_batches(run, seen):
    """The batches after so many pairs, epoch after epoch: a `tf.data.Dataset` without end."""
    config, source_tokenizer = run.config, run.model.source_tokenizer
    # How many batches a pass makes depends on its order where they hold so many tokens, so passes are counted in pairs.
    begun, skip = divmod(seen, run.pairs)
    always = None if _reorders(config) else both_sides(config, source_tokenizer)[0]

    @tf.autograph.experimental.do_not_convert
    def one_pass(number):
        # Where small corpora start over, how often may depend on the order; so as many in each pass as in the first.
        pairs = (always or _one_pass(config, source_tokenizer, number)).repeat().take(run.pairs)
        return _batches(run, pairs, seed=config.seed, epoch=number, skip=tf.where(number == begun, skip, 0))

    passes = tf.data.Dataset.range(begun, tf.int64.max).flat_map(one_pass).prefetch(2).with_options(WITHOUT_AUTOTUNE)
    return passes.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def _reorders(config):
    """Whether files are read in a new order each epoch: not where what is trained on depends on the order."""
    return config.split == "hash" and config.limit is None


def _one_pass(config, source_tokenizer, number, **options):
    """The pairs to train on, in the order of an epoch, given as a number or a tensor."""
    if _reorders(config):
        options |= {"shuffle_files": True, "weights": config.weights, "seed": config.seed, "epoch": number}
    return both_sides(config, source_tokenizer, **options)[0]


def _batches(run, pairs, **options):
    config, model = run.config, run.model
    tokenizers = model.source_tokenizer, model.target_tokenizer
    sizes = {"batch_tokens": config.batch_tokens, "encoding": config.encoding}
    return batch_pairs(pairs, *tokenizers, config.batch_size, **sizes, **options)


@contextlib.contextmanager
def _first_signal():
    """Holds back the first SIGINT or SIGTERM. Gives a list that then holds its number; the second one acts."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number, frame):
        received.append(number)
        signal.signal(number, old[number])

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _tokenizer(config, side, columns):
    """The tokenizer that a configuration names for a side with these columns, tried on a text; without a vocabulary."""
    text = getattr(config, side)
    names = tokenizer_names(side, text)
    if len(names) not in (1, len(columns)):
        raise OptionError(
            f"{side}={text!r}: {len(names)} names, but the columns are {', '.join(columns)}; expected one name for "
            "each, or one for all"
        )
    parts = [_column_tokenizer(config, side, name) for name in names * (len(columns) // len(names))]
    return ColumnsTokenizer(parts, columns) if len(columns) > 1 else parts[0]


def _column_tokenizer(config, side, name):
    """The tokenizer of one column, by its name."""
    options = {"normal_form": config.normal_form, "lowercase": config.lowercase}
    if separates(name):
        return SeparatorTokenizer(name, **options)
    kind = load_class(side, name) if ":" in name else choose(side, name, TOKENIZERS)
    if kind is TOKENIZERS["subword"]:
        importlib.import_module("sentencepiece")  # which is needed once all text has been read, and may be missing
    tokenizer = construct(side, kind, options=config.own or {}, **options)
    try:
        tokenizer.count(tf.constant(["a text"]))
    except Exception as error:
        raise OptionError(f"{side}={name!r}: cannot split a text: {one_line(error)}") from error
    return tokenizer


def _model(config, tokenizers, steps):
    """The `Seq2Seq` of a configuration, or a class of one's own that is derived from it."""
    encoder, decoder = _halves(config)
    options = {name: getattr(config, name) for name in model_options()} | (config.own or {})
    first, *last = config.teacher_forcing
    return construct(
        "model",
        load_class("model", config.model) if config.model else Seq2Seq,
        *tokenizers,
        options=options,
        encoder=encoder,
        decoder=decoder,
        label_smoothing=config.label_smoothing,
        teacher_forcing=keras.optimizers.schedules.PolynomialDecay(first, steps, *last) if last else first,
        dtype="float32" if config.precision == "float32" else f"mixed_{config.precision}",
        **{name: options[name] for name in (accepted(encoder) | accepted(decoder)) & set(options)},
    )


def _halves(config):
    """The classes of the encoder and of the decoder."""
    found = []
    for name, kinds in (("encoder", ENCODERS), ("decoder", DECODERS)):
        kind = getattr(config, name) or config.architecture
        found.append(load_class(name, kind) if ":" in kind else choose(name, kind, kinds))
    return found


def check_taken(config: Config, names: Iterable[str]) -> None:
    """Sees that each of these options, if it is one of models, is one of this encoder or this decoder; and that each of
    `config.own` is one of some class.

    A `Config` has all options, as a preset may name some for one architecture only. Those that a user gives should
    have an effect.

    Raises:
        OptionError: if an option is nobody's, or the class of a model is none.
    """
    halves = _halves(config)
    taken = {"architecture", "encoder", "decoder", "model", "own"}.union(*map(accepted, halves))
    for name in names:
        if name in model_options() and name not in taken:
            raise OptionError(f"{name}: neither {' nor '.join(half.__name__ for half in halves)} has this option")
    own = [(option, load_class(option, name)) for name, option in own_classes(config).items()]
    for option, kind in own:
        if option == "model" and not issubclass(kind, Seq2Seq):
            raise OptionError(f"model={config.model!r}: expected a class that is derived from seq2seq.Seq2Seq")
        if option == "loss" and "label_smoothing" in names and "label_smoothing" not in accepted(kind):
            raise OptionError(f"label_smoothing: {kind.__name__} has no such option")
    possible = set().union(*(accepted(kind) for _, kind in own))
    possible -= {*vars(config), "name", "dtype", "trainable", "vocabulary", "normal_form"}
    for name in (config.own or {}).keys() - possible:
        hint = nearest(name, possible | set(vars(config)))
        raise OptionError(f"option={name!r}: none of Config, nor one that the constructor of a class here names{hint}")


def _steps(config, tokenizers, found):
    """How many batches an epoch has."""
    if not config.batch_tokens:
        return math.ceil(found.pairs / config.batch_size)
    # How many a pass makes depends on its order. An epoch has about as many; pass follows on pass.
    longer = found.longer * _tokens_per_character(both_sides(config, tokenizers[0])[0], tokenizers)
    return math.ceil((longer + found.pairs) / config.batch_tokens)


def _epochs(config, steps):
    """How many epochs a training has, of so many steps each."""
    if config.updates is not None:
        return max(1, round(config.updates / steps))
    return config.epochs or min(100, max(8, round(2000 / steps)))


def _tokens_per_character(pairs, tokenizers):
    """How many tokens the longer sides of pairs have for each character: of the first 10,000 pairs, as an estimate."""
    tokens = characters = 0
    for sides in pairs.take(10_000).batch(1000):
        tokens += tf.reduce_sum(tf.maximum(*(of.lengths(side) for of, side in zip(tokenizers, sides, strict=True))))
        characters += tf.reduce_sum(tf.maximum(*(tf.strings.length(side, "UTF8_CHAR") for side in sides)))
    return int(tokens) / max(1, int(characters))


class _Average(keras.callbacks.Callback):
    """Puts the average of the weights after the latest epochs in their place while an epoch is measured and saved."""

    def __init__(self, count):
        super().__init__()
        self.latest: collections.deque[list[np.ndarray]] = collections.deque(maxlen=count)
        self.swapped = False

    def arrays(self):
        """The weights after those epochs, one list."""
        return list(itertools.chain(*self.latest))

    def restore(self, arrays):
        """Takes such a list back."""
        count = len(self.model.trainable_variables) if arrays else 1
        self.latest.extend(arrays[start : start + count] for start in range(0, len(arrays), count))

    def on_epoch_begin(self, epoch, logs=None):
        if self.swapped:
            self._assign(self.latest[-1])
            self.swapped = False

    def on_test_begin(self, logs=None):
        self._swap()

    def on_epoch_end(self, epoch, logs=None):
        self._swap()  # where nothing is measured, nobody has begun to test

    def _swap(self):
        if not self.swapped:
            self.latest.append([weight.numpy() for weight in self.model.trainable_variables])
            self._assign([np.mean(weights, axis=0) for weights in zip(*self.latest, strict=True)])
            self.swapped = True

    def _assign(self, weights):
        for variable, weight in zip(self.model.trainable_variables, weights, strict=True):
            variable.assign(weight)


class _Translate(keras.callbacks.Callback):
    """Adds how good the translations of held-out sources are to the figures of each measured epoch."""

    def __init__(self, held_out, run):
        super().__init__()
        self.sources, self.references, self.run = list(held_out), list(held_out.values()), run

    def on_epoch_end(self, epoch, logs=None):
        from seq2seq.evaluation import corpus_scores

        if not self.run.measures(epoch + 1):
            return
        texts = [text.decode() for text in self.model.translate(self.sources).numpy()]
        scores = corpus_scores(texts, self.references)
        # The first worker's figures are everyone's, so that all come to the same decisions.
        chief = is_chief(self.run.strategy)
        decided = sums_of_workers(self.run.strategy, [score if chief else 0.0 for score in scores.values()])
        for name, score in zip(scores, decided, strict=True):
            logs[f"val_{name.lower().replace(' ', '_')}"] = score


class _Safe(keras.callbacks.Callback):
    """Saves the run after measured epochs, and in between what it takes to resume it; looks at whether it goes well.

    Args:
        run: the `_Run`, whose history and step this keeps.
        average: the `_Average`, whose weights are saved too.
        probe: a few texts, whose translations are kept to tell whether a loaded or exported model is the same.
        say: a function to call with what one should know.
    """

    def __init__(self, run, average, probe, say):
        super().__init__()
        self.run, self.average, self.probe, self.say = run, average, probe, say
        self.chief = is_chief(run.strategy)  # and no other writes
        self.signal: list[int] = []  # holds the number of one that has come
        self.saved = self.looked = time.monotonic()
        self.pending: list[list[tf.Tensor]] = []  # what those taken since the last look have come to
        self.norm = 0.0  # of the last gradient
        self.skipped = 0  # steps of the epoch that a `LossScaleOptimizer` has not taken

    def on_train_begin(self, logs=None):
        if not self.run.history and not self.run.step:
            self._checkpoint()

    def on_epoch_begin(self, epoch, logs=None):
        if self.run.state is not None:  # and not earlier, as Keras resets metrics before an epoch
            variables = self._variables()
            for variable, value in zip(variables, self.run.state):  # noqa: B905 (averages follow)
                variable.assign(value)
            self.average.restore(self.run.state[len(variables) :])
            self.run.state = None
        self.counted = int(self.model.length_ratios.numpy()[0])  # the pairs that the model has been trained on

    def on_train_batch_begin(self, batch, logs=None):
        """Follows up the step before. Keras (3.15) has figures as numbers for an `on_train_batch_end`, and so would
        wait for the device in each step."""
        if batch:
            self._note_step()
        due = self.chief and time.monotonic() >= self.saved + 60 * self.run.config.checkpoint_minutes
        stop, due = map(bool, sums_of_workers(self.run.strategy, [len(self.signal) > 0, due]))
        if stop or due:
            self._checkpoint()
        if stop:
            self._report(self.run.checkpoints.wait())
            if not self.signal:
                raise WorkerLostError("another worker has been told to stop; start all of them again to go on")
            raise KeyboardInterrupt if self.signal[0] == signal.SIGINT else SystemExit(143)

    def on_test_begin(self, logs=None):
        self._end_steps()

    def _note_step(self):
        """Keeps what a step has come to, without waiting for it, and looks at it where it is time to."""
        model = self.model
        kept = [model.gradient_norm, model.length_ratios]
        if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
            kept.append(model.optimizer.dynamic_scale)
        self.pending.append([tf.convert_to_tensor(variable) for variable in kept])
        # Several workers wait for each other in each step anyway, and must find what goes wrong together.
        if several_workers(self.run.strategy) or time.monotonic() >= self.looked + _seconds_between_looks():
            self._look()

    def _end_steps(self):
        """Follows up the last step of an epoch. The epoch is yet to be measured, which cannot be resumed."""
        if self.run.step + len(self.pending) < self.run.steps:
            self._note_step()
        self._look()

    def _look(self):
        """Sees whether the steps since the last look went well."""
        for norm, ratios, *scale in self.pending:
            if math.isfinite(norm):
                self.norm = float(norm)
            elif not scale or scale[0] < 1:
                self._diverged(float(norm))
            else:  # a scaled loss was too large for float16, and the optimizer has lowered its scale for the next batch
                self.skipped += 1
            self.run.seen += int(ratios[0]) - self.counted
            self.counted = int(ratios[0])
            self.run.step += 1
        self.pending.clear()
        self.looked = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        self._end_steps()  # where nothing is measured, nobody has begun to test
        run = self.run
        if self.skipped:
            self.say(f"epoch {epoch + 1}: {self.skipped:,} of {run.steps:,} steps skipped, their gradients not finite")
            self.skipped = 0
        exact = tf.convert_to_tensor(self.model.optimizer.learning_rate)
        rate = float(str(np.float32(exact)))  # 0.1 and not 0.10000000149
        run.history.append({"epoch": epoch + 1, **logs, "learning_rate": rate})
        run.step = 0
        if not run.measures(epoch + 1):
            return
        best = run.kept()
        if self.chief:
            self._keep(best == epoch + 1)
        if run.config.schedule == "plateau":
            neighbours = itertools.pairwise(run.history)
            changes = [row["epoch"] for row, after in neighbours if row["learning_rate"] != after["learning_rate"]]
            if run.measured_after(max([best, *changes])) >= 2:
                self.model.optimizer.learning_rate = rate / 2
        self.model.stop_training = run.stopped()

    def on_train_end(self, logs=None):
        self._report(self.run.checkpoints.wait())

    def _keep(self, best):
        """Writes what the run folder has of the epoch, and its model if that is the best so far."""
        run, folder = self.run, self.run.folder
        epoch, count = len(run.history), run.config.keep_epochs
        names = ["model.keras"] * best + [f"epochs/epoch-{epoch:04}.keras"] * (count > 0)
        for path in (folder / name for name in names):
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as aside, _uncompiled(self.model):
                self.model.save(aside)
        kept = kept_epochs(folder)  # of which later ones are of a run that is replaced, or from before a resumption
        wanted = [number for number in kept if number <= epoch][-count:] if count else []
        for number in kept.keys() - set(wanted):
            kept[number].unlink()
        with contextlib.suppress(OSError):
            (folder / "epochs").rmdir()  # if nothing is left in it
        if best:
            translations = [text.decode() for text in self.model.translate(self.probe).numpy()]
            write_json(folder / "probe.json", dict(zip(self.probe, translations, strict=True)))
        write_json(folder / "config.json", run.record | {"training": self._taken()})
        with whole_file(folder / "history.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, run.history[0])
            writer.writeheader()
            writer.writerows(run.history)
        found = run.checkpoints.folder / "survey.json"
        if found.is_file():
            os.replace(found, folder / found.name)

    def _taken(self):
        """What the training has taken up to now, in all its parts."""
        run = self.run
        seconds, processor_seconds = (_clocks() + run.clocks).round(1).tolist()
        taken = {
            "parameters": self.model.count_params(),
            "updates": int(self.model.optimizer.iterations.numpy()),
            "epochs": len(run.history),
            "pairs": run.seen,
            "seconds": seconds,
            "processor_seconds": processor_seconds,
            "peak_memory_mb": _peak_memory(run),
        }
        gpus = tf.config.list_logical_devices("GPU")
        if gpus:
            peaks = [tf.config.experimental.get_memory_info(gpu.name.removeprefix("/device:"))["peak"] for gpu in gpus]
            taken["peak_gpu_memory_mb"] = max(peaks) // 2**20
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        return taken | {"device": f"{replicas} x " * (replicas > 1) + _device()}

    def _variables(self):
        """All that changes in training, but for the averages of weights."""
        return [*self.model.variables, *self.model.optimizer.variables, *self.model.metrics_variables]

    def _checkpoint(self):
        self._look()
        run = self.run
        self._report(run.checkpoints.wait())
        arrays = [np.array(tf.convert_to_tensor(variable)) for variable in self._variables()]
        done = len(run.history) * run.steps + run.step
        facts = {"history": list(run.history), "step": run.step, "seen": run.seen}
        facts |= {"clocks": (_clocks() + run.clocks).tolist(), "peak": _peak_memory(run)}
        if self.chief:
            run.checkpoints.save(done, arrays + self.average.arrays(), facts)
        self.saved = time.monotonic()

    def _report(self, error):
        if error:
            self.say(f"A checkpoint could not be saved ({error}); the one before is still there")

    def _diverged(self, norm):
        """Tells of a batch without a finite gradient, which the model has not learned from.

        Raises:
            DivergedError: unless such batches are to be skipped.
        """
        run = self.run
        path = run.folder / "diverged.tsv"
        if self.chief:
            self._write_batch(path)
        said = (
            f"epoch {len(run.history) + 1}, step {run.step + 1:,}: the loss is no finite number any more; the gradient "
            f"norm is {norm}, one step earlier it was {self.norm:.3g}. The batch is in {path}"
        )
        if run.config.on_divergence == "stop":
            kept = f"the model of epoch {run.kept()}" if run.history else "no model, for it was the first epoch"
            raise DivergedError(f"{said}. Kept is {kept}. A smaller --learning-rate or --clip-norm may help")
        self.say(f"{said}; left out")

    def out_of_memory(self):
        """Says for which batch there was not enough memory."""
        self._look()
        run, config = self.run, self.run.config
        less = (
            f"--batch-tokens ({config.batch_tokens})" if config.batch_tokens else f"--batch-size ({config.batch_size})"
        )
        if not config.batch_tokens:
            less += ", or set --batch-tokens, so that fewer long texts are in a batch"
        less += f", or leave long texts out by --max-length ({config.max_length})"
        where = f"epoch {len(run.history) + 1}"
        if run.step == run.steps:
            return f"{where}: out of memory while what is held out was measured. Lower {less}"
        (rows, source), (_, target) = (side.shape[:2] for side in next(iter(_training_batches(run, run.seen))))
        return (
            f"{where}, step {run.step + 1:,}: out of memory for a batch of {rows} pairs of up to {source} source and "
            f"{target - 1} target tokens. Lower {less}"
        )

    def _write_batch(self, path):
        """Writes the texts of the batch just seen."""
        source, target = next(iter(_training_batches(self.run, self.run.seen)))
        sides = ((self.model.source_tokenizer, source), (self.model.target_tokenizer, target))
        texts = [
            [as_line(text, len(tokenizer.column_names)) for text in tokenizer.detokenize(token_ids(side)).numpy()]
            for tokenizer, side in sides
        ]
        with whole_file(path) as aside:
            aside.write_bytes(b"".join(b"%b\t%b\n" % pair for pair in zip(*texts, strict=True)))


@contextlib.contextmanager
def _uncompiled(model):
    """Saves a model without its optimizer: that is twice as large as the model and serves only to resume, which
    checkpoints do; and whoever loads the model to train it further would get a learning rate whose schedule is over.
    """
    optimizer, model.optimizer, model.compiled = model.optimizer, None, False
    try:
        yield
    finally:
        model.optimizer, model.compiled = optimizer, True


def _clocks():
    """Seconds of wall time and of processor time, of all threads of this process, from some moment on."""
    return np.array([time.monotonic(), time.process_time()])


def _peak_memory(run):
    """The most memory, in MB, that a process of this training has had."""
    return max(run.peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def _device():
    """The name of the GPU or, without one, of the processor and how many of its cores there are."""
    if gpus := tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    processor = platform.machine()
    with contextlib.suppress(OSError):
        if name := re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()):
            processor = name[1]
    return f"{processor}, {len(os.sched_getaffinity(0))} cores"


def _seconds_between_looks():
    """How often to look at what steps have come to: on a CPU at each. A GPU would have to be waited for."""
    return 1.0 if tf.config.list_logical_devices("GPU") else 0.0
