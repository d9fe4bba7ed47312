"""`seq2seq train`."""

import contextlib
import importlib.util
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import OptionError
from pipelines.files import NAMED_CORPORA
from pipelines.options import load_classes
from seq2seq.commands.loading import is_run
from seq2seq.commands.options import CORPUS_HELP, Import, Preset, with_config_options
from seq2seq.commands.runs import draw
from seq2seq.commands.terminal import command_line, counter, is_terminal, say
from seq2seq.config import Config, own_classes
from seq2seq.presets import choose_preset, usual_options, warm_options, without_excluded
from seq2seq.records import finished, read_record, resumable


@with_config_options()
def train(  # longer than 60 lines: its signature declares the options
    corpus: Annotated[list[str] | None, typer.Argument(metavar="CORPUS", help=CORPUS_HELP)] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to make (default: runs/CORPUS).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run.")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume an interrupted run with its original options, except for --import, --track and --strategy, "
            "which must be given again. Repeating the original command, without --overwrite, does the same.",
        ),
    ] = False,
    preset: Preset = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Repeat a run, given its folder or the config.json in it. Other options override its own."),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER",
            help="Log the metrics of each epoch to tensorboard (curves and pictures, in the run folder), wandb or "
            "mlflow. Default: none. Repeatable.",
        ),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="Where to train: none, on one device; mirrored, on all GPUs of this machine; multiworker, on the "
            "machines in TF_CONFIG, each of which runs the same command."
        ),
    ] = "none",
    imports: Import = None,
    *,
    given: dict,
) -> None:
    """Train a model on pairs of texts and save it in a run folder, whose path is printed at the end.

    Example: seq2seq train my-pairs.tsv --out runs/mine --epochs 20
    """
    from seq2seq.building import applicable, check_taken
    from seq2seq.callbacks import DivergedError
    from seq2seq.distribution import WorkerLostError, is_chief, open_strategy
    from seq2seq.runs import check_imported
    from seq2seq.training import train as train_run

    opened = open_strategy(strategy)  # before anything is computed
    if resume and overwrite:
        raise OptionError("overwrite and resume cannot be combined")
    if resume and (given or preset or config):
        raise OptionError("resume uses the options that training began with; give no others")
    settings = _configure(corpus, preset, config, resume, given)
    first = settings.corpus if isinstance(settings.corpus, str) else settings.corpus[0]
    folder = out or Path("runs") / (re.sub(r"[^\w-]+", "-", Path(first).name.split(".")[0]).strip("-") or "corpus")
    if resume and corpus and finished(folder) is False:
        used = read_record(folder).options["corpus"]
        used = [used] if isinstance(used, str) else used
        if [Path(name).name for name in used] != [Path(name).name for name in corpus]:
            raise OptionError(f"resume continues with the corpus {' '.join(used)}; name no other")
    load_classes("import", imports)
    inherited = {name: option for name, option in own_classes(settings).items() if option not in given}
    check_imported(config or given.get("warm_start", ""), inherited)
    check_taken(settings, given)
    settings = applicable(settings, given)
    before = _modified(folder)
    try:
        model = train_run(
            None if resume else settings,
            folder,
            overwrite,
            callbacks=[progress_callback()] if is_chief(opened) else [],
            progress=counter("pairs read"),
            say=say,
            command=command_line(*sys.argv[1:]),
            strategy=opened,
            track=track or (),
        )
    except (DivergedError, WorkerLostError) as error:
        say(f"seq2seq: {error}")
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, SystemExit, OSError, MemoryError):
        # Not if it is still the run that was to be overwritten.
        if resumable(folder) and not (overwrite and _modified(folder) == before):
            config_of_run = read_record(folder).config
            where = [*(part for name in track or () for part in ("--track", name)), *_imports_for(config_of_run)]
            where += ["--strategy", strategy] * (strategy != "none")
            resuming = command_line("train", "--resume", "--out", folder, *where)
            say(f"Resume with:  {resuming}")
        raise
    if is_chief(opened):
        _finish(folder, model)


def _modified(folder):
    """When the `config.json` of a run was written; None without one."""
    with contextlib.suppress(OSError):
        return (folder / "config.json").stat().st_mtime_ns
    return None


def _configure(corpus, preset, config, resume, given):
    """The `Config` to train with, from the command's arguments and the options that were given."""
    options: dict[str, Any] = {}
    if config:
        if preset:
            raise OptionError("preset and config cannot be combined")
        record = read_record(config)
        options = without_excluded(record.options, given)
        if not corpus and record.checksums():
            options["corpus"] = record.find_corpus()
        if options.get("validation") and record.checksums("validation") and "validation" not in given:
            options["validation"] = record.find_corpus("validation")
        start, began_with = options.get("warm_start"), record.content.get("from")
        if start and began_with and "warm_start" not in given and read_record(start).content != began_with:
            raise OptionError(
                f"{config}: this run started from the weights of {start}, which now holds a different run"
            )
    else:
        corpus = corpus or ["phrasebook"]
    for name in corpus or ():
        if name not in NAMED_CORPORA and is_run(name):
            raise OptionError(f"{name} is a run folder, not a corpus; --from {name} starts from its weights")
    if corpus:
        options["corpus"] = tuple(corpus)
    if given.get("warm_start"):
        if preset or config:
            raise OptionError("from uses the options of that run; it cannot be combined with preset or config")
        options |= without_excluded(warm_options(read_record(given["warm_start"]).options), given)
    elif not config and not resume:
        preset = preset or preset_for_corpus(Config(**usual_options("default", given) | options | given), given)
        options |= usual_options(preset, given)
    if given.get("own"):
        given["own"] = {**(options.get("own") or {}), **given["own"]}
    options |= given
    columns = options.get("columns") or ()
    if options.get("corpus") == ("phrasebook",) and len(columns) > 2:
        raise OptionError(f"the phrasebook has two columns, not {len(columns)}; name another CORPUS")
    return Config(**options)


def preset_for_corpus(config: Config, given: Collection[str]) -> str:
    """Choose the preset that suits a corpus and can be used here, and say so unless it is the usual one."""
    preset = choose_preset(config, given)
    if preset == "subword":
        if importlib.util.find_spec("sentencepiece"):
            reason = "the corpus has enough sentences for subwords (for characters: --preset default)"
        else:
            preset = "default"
            reason = "for this many sentences, subwords would be better: pip install 'keras-seq2seq[subword]'"
        say(f"Preset {preset}: {reason}")
    return preset


def _finish(folder, model):
    """Draw the pictures of a run, and say what its training took and how to translate with it."""
    from seq2seq.runs import can_measure, probe

    can_draw = importlib.util.find_spec("matplotlib")
    if can_draw:
        draw(folder, model)
    record = read_record(folder)
    took = "{updates:,} updates of {parameters:,} parameters in {seconds:,.1f} s on {device}; {peak_memory_mb:,} MB"
    say(took.format(**record.content["training"]))
    if missing := [name for name, there in (("evaluation", can_measure()), ("plots", can_draw)) if not there]:
        say(f"For scores of translations and pictures: pip install 'keras-seq2seq[{','.join(missing)}]'")
    text = '"TEXT"'
    if len(model.source_tokenizer.column_names) > 1:  # an example, as shells write a tab
        example = next(iter(probe(folder))).replace("\\", "\\\\").replace("'", "\\'")
        text = "$'" + example.replace("\t", "\\t") + "'"
    say(f"Translate with:  {command_line('translate', folder, *_imports_for(record.config, training=False))} {text}")
    typer.echo(folder)


def _imports_for(config, training=True):
    """The arguments that import the classes of your own that a run of this configuration is made of."""
    return [part for name in own_classes(config, training) for part in ("--import", name)]


def progress_callback() -> Any:
    """A Keras callback that shows a bar on stderr during each epoch, or the step once a minute if stderr is not a
    terminal."""
    import keras

    class Progress(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            label, steps = f"Epoch {epoch + 1}/{self.params['epochs']}", self.params["steps"]
            self.bar = typer.progressbar(length=steps, label=label, file=sys.stderr, hidden=not is_terminal())
            self.count = counter(f"of {steps:,} steps of {label.lower()}")

        def on_train_batch_begin(self, batch, logs=None):  # with a hook for its end, Keras would wait for the device
            self.bar.update(1)
            if not is_terminal():
                self.count(batch)

    return Progress()
