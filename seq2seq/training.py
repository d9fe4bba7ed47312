"""One training run: from a corpus and a `Config` to a run folder with the model, its configuration and its history."""

import contextlib
import dataclasses
import itertools
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipelines import CorpusError, OptionError, checksums, corpus_errors, load_class
from pipelines.options import one_line
from seq2seq.building import build_model, copy_weights, fitting_into_memory, prepare
from seq2seq.callbacks import AverageWeights, EndFit, SaveRun, SayEpochs, ScoreTranslations, WatchSteps, resources
from seq2seq.checkpoints import Checkpoints, locked, whole_file, write_json
from seq2seq.config import Config, own_classes
from seq2seq.distribution import distribute, is_chief, lost_workers, sums_of_workers, wait_for_workers
from seq2seq.epochs import (
    count_batches,
    make_batches,
    training_batches,
    training_length,
    training_pairs,
    validation_pairs,
)
from seq2seq.model import Seq2Seq
from seq2seq.process import be_reproducible, clocks, deferred_signal, restored_determinism, stop_for
from seq2seq.progress import TrainingRun
from seq2seq.records import Record, RunError, find_run, finished, read_record, resumable, unfinished
from seq2seq.runs import can_measure, check_imported, compile_model, load_model, load_run, sample
from seq2seq.surveying import say_leaks, survey_corpus, take_vocabularies
from seq2seq.tracking import check_trackers, tracked
from seq2seq.trainer import without_end_warning

_PACKAGES = ("keras-seq2seq", "tensorflow", "tensorflow-text", "keras", "numpy")  # whose versions a run records


def _print(text):
    print(text, file=sys.stderr, flush=True)


def _discard(text):
    """Discard notices if `say` is None."""


# Long because it documents all arguments and errors.
def train(
    config: Config | None,
    folder: Path | str,
    overwrite: bool = False,
    callbacks: keras.callbacks.Callback | Iterable[keras.callbacks.Callback] | None = None,
    progress: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = _print,
    command: str | None = None,
    strategy: tf.distribute.Strategy | None = None,
    track: Sequence[str] = (),
) -> Seq2Seq:
    """Train a model and write it to a run folder, again after each measured epoch.

    The same call, without `overwrite`, resumes interrupted training from its last checkpoint, and ends with the
    same weights as without the interruption. The checkpoints are in the folder's `unfinished` until training ends.
    On SIGTERM and SIGINT (Ctrl-C), training stops before the next step, after one more checkpoint. If the last step has
    begun, the run ends first. A second signal of the same kind stops at once.

    The same configuration gives bit-identical weights on CPUs with the same number of cores and threads, and on a GPU
    with `config.deterministic`.

    After a measured epoch the held-out pairs are scored, up to 500 of their sources are translated greedily and
    measured as in `evaluation`, if its packages are installed, and the run folder is written. The first and the last
    epoch are measured, and in between every epoch if there are up to 40 epochs, else every k-th, 20 to 40 of them:
    measuring would take longer than such short epochs. The others have only training figures in `history.csv`.

    Args:
        config: a `Config`; None to resume an unfinished run with its own.
        folder: the run folder to make: `model.keras`, of the last epoch or the best by `config.monitor`, without its
            optimizer; `config.json`, which also records the resources that training used; `history.csv`; `survey.json`,
            the token counts and lengths of the training set; `probe.json`, some sources and their translations; and in
            `epochs` the models that `config.keep_epochs` asks for.
        overwrite: whether an existing run may be replaced. A folder that holds no run is never replaced. The old run is
            removed after the options have been checked, the corpus surveyed and the new model made.
        callbacks: more Keras callbacks, one or several. One that sets `stop_training` ends training, after an epoch or
            within one, which is then recorded like a whole epoch; the run folder has the model that `config.monitor`
            chooses, whatever weights a callback may restore. One that sets the learning rate needs a `config.schedule`
            of "constant" or "plateau", without warm-up.
        progress: a function to call now and then with the number of pairs read, while the corpus is surveyed.
        say: a function to call with notices, as text: pairs and batches that were left out, the figures of each epoch,
            resuming, checkpoints that could not be saved. Default: print them to stderr. None: no notices, but a
            warning of pairs that the default of `config.max_length` leaves out.
        command: the command line, to be recorded in `config.json`.
        strategy: how to train on several devices or machines, see `open_strategy`. All workers call this with the same
            arguments and see the same folder, which the first of them writes. Default: one device.
        track: names of the trackers that log the figures of each epoch, see `tracking`. Default: none.

    Returns:
        The trained `Seq2Seq`, as it was saved.

    Raises:
        RunError: if the folder is in use, may not be overwritten, or holds nothing to resume.
        DivergedError: if the gradient of a batch is not finite.
        MemoryError: if the model or a batch does not fit into memory. Saved files stay.
        CorpusError: if a corpus cannot be read, holds nothing to train on, or has changed since the run to resume
            began.
        OptionError: if options contradict each other, a name in them is unknown, or a tracker cannot start.
        MissingExtra: if a tracker is not installed.
        WorkerLostError: if another worker has stopped.
    """
    if not isinstance(config, Config | None):
        raise OptionError(f"config={config!r}: expected a Config, such as Config({config!r})")
    folder, started, track = Path(folder), clocks(), [track] if isinstance(track, str) else track
    callbacks = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else list(callbacks or ())
    check_trackers(track)
    chief = is_chief(strategy)
    say = say or _discard
    lock = locked(folder) if chief else contextlib.nullcontext()
    # The validation side has not been counted.
    with lock, lost_workers(strategy), corpus_errors(), without_end_warning(None), restored_determinism():
        for name, option in own_classes(config).items() if config else ():
            load_class(option, name)
        if chief and not _is_resumed(config, folder, overwrite):
            _begin(config, folder, progress, say, command)
        wait_for_workers(strategy)  # until the first one has written what all read
        run = _resume(folder, config, say, strategy)
        run.clocks = run.clocks - started
        signals = _fit(run, callbacks, say, track if chief else ())
        wait_for_workers(strategy)
        if chief:
            _end(run, say)
        if signals:  # during the last epoch: this run has ended, but the caller may go on with others
            stop_for(signals)
        return load_run(folder)


def _is_resumed(config, folder, overwrite):
    """Return whether the folder holds an unfinished run to resume. If not, check that a new one may begin there."""
    if overwrite and config is None:
        raise OptionError("config=None: resumes a run; to overwrite one, give a Config")
    ended = finished(folder)
    if resumable(folder) and not overwrite:
        old = read_record(folder).config
        if config is None or config == old:
            return True
        pairs = zip(dataclasses.asdict(old).items(), dataclasses.asdict(config).values(), strict=True)
        other = ", ".join(f"{name} {was}, not {is_now}" for (name, was), is_now in pairs if was != is_now)
        raise RunError(
            f"{folder} holds an unfinished run with other options ({other}); --resume continues it with its own "
            "options, --overwrite starts from the beginning, --out chooses another folder. In Python, config=None "
            "resumes, and overwrite=True starts from the beginning"
        )
    if ended:
        Checkpoints(folder / "unfinished").remove()  # of a process that was killed before it had removed them
    if config is None:
        raise RunError(f"{folder}: no unfinished run to resume" + "; its training has ended" * bool(ended))
    if ended and not overwrite:
        raise RunError(
            f"{folder} holds a finished run; --from {folder} trains it further into another folder, --overwrite "
            "replaces it, --out chooses another folder. In Python: warm_start, overwrite=True"
        )
    if ended is False and (folder / "model.keras").exists() and not overwrite:
        raise RunError(unfinished(folder))
    inside = {path.name for path in folder.iterdir() if path.name[0] != "."}
    if ended is None and inside - {"lock", "aside-config.json"}:
        what = "its config.json is damaged or of another program" if "config.json" in inside else "it holds no run"
        raise RunError(f"{folder} is not empty, and {what}; choose another folder (--out)")
    return False


def _begin(config, folder, progress, say, command):
    """Survey the corpus and make the model of a new run; write to the folder what `_resume` reads."""
    if config.warm_start and find_run(config.warm_start).resolve() == folder.resolve():
        raise OptionError(f"warm_start={config.warm_start!r}: the new run would replace it; choose another --out")
    be_reproducible(config)
    content = {
        "options": dataclasses.asdict(config),
        "command": command,
        "versions": {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
        "directory": os.getcwd(),  # to which paths in the options and the command are relative
        "checksums": checksums(config.corpus),
    }
    if config.validation:
        content["validation_checksums"] = checksums(config.validation)
    old, tokenizers = prepare(config)
    if old:
        content["from"] = read_record(config.warm_start).content
    record = Record(content)
    found = survey_corpus(config, tokenizers, progress, say, warns=say is _discard)
    say_leaks(record, config, tokenizers[0], say)
    sizes = take_vocabularies(config, tokenizers, found, say)
    steps, epochs = training_length(config, found.pairs, count_batches(config, tokenizers, found))
    if config.warmup >= steps * epochs:
        say(f"All {steps * epochs:,} updates are warm-up: lower --warmup ({config.warmup})")
    model = build_model(config, tokenizers, steps * epochs)
    if old:
        copy_weights(model, old, config.warm_start, sizes)
    seeds = [seed.numpy().tolist() for seed in _seeds(model)]
    content["plan"] = {"pairs": found.pairs, "steps": steps, "epochs": epochs, "seeds": seeds}
    _remove_files(folder)
    write_json(folder / "config.json", content)  # replaces that of an old run, so the folder always holds a run
    write_json(folder / "survey.json", found.as_dict(), indent=1)
    begun = folder / "unfinished" / "begun.keras"
    begun.parent.mkdir(exist_ok=True)
    with whole_file(begun) as aside:  # the last, since with this file the run can be resumed
        model.save(aside)


def _remove_files(folder):
    """Remove the files of a run, except for `config.json`."""
    Checkpoints(folder / "unfinished").remove()  # the first, as without the others the run could not be resumed
    if finished(folder):
        content = read_record(folder).content
        write_json(folder / "config.json", {name: content[name] for name in content if name != "training"})
    names = ["model.keras", "probe.json", "history.csv", "survey.json", "diverged.tsv", "curves.png", "error-rates.png"]
    patterns = ["attention-*.png", "tensorboard/*/events.*", "epochs/epoch-*.keras", "epochs/aside-epoch-*.keras"]
    for path in itertools.chain(*map(folder.glob, [*names, *(f"aside-{name}" for name in names), *patterns])):
        path.unlink()
    with contextlib.suppress(OSError):
        (folder / "epochs").rmdir()


def _seeds(model):
    """The states of the random numbers, as for dropout, which Keras does not save with a model."""
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]


def _resume(folder, given, say, strategy):
    """The `TrainingRun` of an unfinished run, as of its last checkpoint; without one, from its beginning.

    `given` is the same configuration or None. A file of the same name in another directory is another corpus.
    """
    checkpoints = Checkpoints(folder / "unfinished")
    record = read_record(folder)
    check_imported(folder, own_classes(record.config))
    config, corpus = record.config, record.find_corpus()
    validation = record.find_corpus("validation") if config.validation else None
    for name, found in (("corpus", corpus), ("validation", validation)):
        if given and (other := getattr(given, name)) != found:
            raise CorpusError(f"{other}: this run began with {found}; --resume continues with that")
    config = dataclasses.replace(config, corpus=corpus, validation=validation)
    be_reproducible(config)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = load_model(folder, "unfinished/begun.keras")
    plan = dict(record.content["plan"])
    try:
        for seed, state in zip(_seeds(model), plan.pop("seeds"), strict=True):
            seed.assign(state)
        run = TrainingRun(folder, config, record, model, checkpoints, **plan, strategy=strategy)
    except (LookupError, TypeError, ValueError) as error:
        path = folder / "config.json"
        raise RunError(f"{path}: damaged plan ({one_line(error)}); --overwrite starts from the beginning") from None
    run.state, facts = checkpoints.load()
    if facts:
        run.history, run.step, run.seen = (facts[name] for name in ("history", "step", "seen"))
        run.clocks, run.peak = np.array(facts["clocks"]), facts["peak"]
        epoch = f"{len(run.history) + 1}/{run.epochs}"
        say(f"Resuming {folder} in epoch {epoch}, after {run.step:,} of {run.steps:,} steps")
    (first,) = sums_of_workers(strategy, [run.seen if is_chief(strategy) else 0])
    if run.seen != first:
        raise RunError(f"{folder}: the first worker has a different checkpoint; all must see the same folder")
    return run


def _fit(run, callbacks, say, track):
    """Train a run from where it is to its end. Return the signals that came too late to interrupt it."""
    config, model = run.config, run.model
    validation = validation_pairs(config, model.source_tokenizer)
    held_out = sample(validation, model.target_tokenizer)
    _compile(run)
    average, watch = AverageWeights(config.average), WatchSteps(run, say)
    save = SaveRun(run, average, watch, list(held_out)[:50] or _first_sources(run), say)
    own: list[keras.callbacks.Callback] = []
    if config.average > 1:
        own.append(average)
    if held_out and can_measure():
        own.append(ScoreTranslations(held_out, run))
    tell = [SayEpochs(held_out, run, say)] if is_chief(run.strategy) and say is not _discard else []
    measured = make_batches(run, validation, shuffle=False)
    if tell:
        size = f"Training on {run.pairs:,} pairs"
        if held_out and can_measure():
            size += f"; translations of {len(held_out):,} held-out sources are measured"
            size += ", too few for precise scores" * (len(held_out) < 100)
        say(size)

    def measure_last():  # if a callback has ended training early
        row, run.epochs = run.history[-1], len(run.history)
        if held_out:
            metrics = model.evaluate(distribute(run.strategy, measured), verbose=0, return_dict=True)
            row.update({f"val_{name}": value for name, value in metrics.items()})
        for callback in own:
            callback.on_epoch_end(run.epochs - 1, row)
        save.write()
        for callback in tell if held_out else []:
            callback.on_epoch_end(run.epochs - 1, row)

    end = EndFit(run, measure_last)
    with tracked(track, config, model, run.folder) as trackers, deferred_signal() as save.signal:
        while not run.stopped():
            try:
                model.fit(
                    distribute(run.strategy, training_batches(run, run.seen)),
                    validation_data=distribute(run.strategy, measured) if held_out else None,
                    validation_freq=list(filter(run.measures, range(1, run.epochs + 1))),
                    initial_epoch=len(run.history),
                    epochs=run.epochs,
                    # If it has to find the end by itself, Keras counts one step too many in each epoch.
                    steps_per_epoch=run.steps - run.step,
                    shuffle=False,  # the pipeline has done it
                    verbose=0,
                    callbacks=[*own, watch, save, *tell, *trackers, *callbacks, end],
                )
            except tf.errors.ResourceExhaustedError as error:
                raise MemoryError(watch.out_of_memory()) from error
            if end.asked:
                say(f"A callback has stopped training in epoch {len(run.history)}")
                break
    return save.signal


def _end(run, say):
    """Record that training has ended, what it took, and which files are no longer those that it began with."""
    changed = []
    for name in ("corpus", "validation"):
        if corpus := getattr(run.config, name):
            try:
                changed += run.record.changed_files(corpus, name)
            except (CorpusError, OSError):  # it is no longer there
                changed += [corpus] if isinstance(corpus, str) else corpus
    if changed:
        say(
            f"{', '.join(changed)}: changed during training, so the model may have seen two versions; config.json has "
            "the checksums of the first. Train again for a run that can be repeated"
        )
    training = resources(run) | ({"changed": changed} if changed else {})
    write_json(run.folder / "config.json", run.record.content | {"training": training})
    run.checkpoints.remove()


def _compile(run):
    """Compile the model of a run for training."""
    config, model = run.config, run.model
    with model.distribute_strategy.scope(), fitting_into_memory():
        compile_model(model, config, run.steps * run.epochs)
        model.build_training()


def _first_sources(run):
    pairs = training_pairs(run.config, run.model.source_tokenizer, epoch=0)
    return [source.decode() for source, _ in pairs.take(50).as_numpy_iterator()]
