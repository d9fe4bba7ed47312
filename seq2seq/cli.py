"""The command line: `seq2seq train`, `translate`, `evaluate` and so on. It parses, calls and prints.

A command's result goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed while running, 2 bad input or
usage, 130 and 143 interrupted. TensorFlow is imported inside the commands, so that `--help` does not wait for it.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import inspect as signatures
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core

from pipelines import CorpusError, OptionError, load_class, open_corpora
from pipelines.formats import wrong_columns
from pipelines.lines import as_line, line_waits, read_lines
from seq2seq.config import Config, check_option, load_config, own_classes
from seq2seq.presets import choose_preset, parse_setting, usual_options, warm_options, without_excluded

_PRESETS = (
    "The settings to start from: default (characters, for little text and single words), subword (pieces of words, for "
    "20000 pairs of sentences and more), grapheme-to-phoneme (letters to phones), inflection (lemma TAB form TAB "
    "features), tutorial (those of the Keras tutorial). Without it, the corpus decides between the first two."
)

_CORPUS = (
    "What to read: a file of tab-separated text (source TAB target), JSON Lines or TFRecord, plain, .gz, .bz2 or .xz; "
    "one in a zip (a.zip/b.tsv); parallel files (a.en+a.es); a folder or a quoted glob of such; or a corpus by name: "
    "phrasebook, spa-eng (a file of that name is ./phrasebook). Several are read together."
)
_EXTRAS = {  # packages that not everyone needs, and the extra each comes with
    "gradio": "demo",
    "matplotlib": "plots",
    "mlflow": "mlflow",
    "optuna": "sweep",
    "rapidfuzz": "evaluation",
    "sacrebleu": "evaluation",
    "sentencepiece": "subword",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder that `seq2seq train` made.")]
_ENSEMBLE = (
    "More run folders, for an ensemble: the probability of each token is the mean of those of all runs, whose "
    "tokenizers must be the same."
)
Corpus = Annotated[list[str], typer.Argument(metavar="CORPUS", help=_CORPUS)]
HeldOut = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN|CORPUS",
        help=f"{_ENSEMBLE} Then a corpus. {_CORPUS} Default: what the first run has held out of its own.",
    ),
]
Import = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE:CLASS", help="Load this class of your own first: the run is made of it."),
]
BeamWidth = Annotated[int | None, typer.Option(min=1, help="Search with so many hypotheses, not greedily.")]
LengthPenalty = Annotated[
    float | None, typer.Option(min=0, help="Of beam search: 0 favours short translations, 1 long ones.")
]
Search = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|MODULE:CLASS",
        help="Search with this strategy: greedy, beam, sampling or a class of your own, with --set for its settings.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the strategy that --search names; repeatable."),
]
MinLength = Annotated[int, typer.Option(min=0, help="Tokens in a translation, at least.")]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="Tokens in a translation, at most. Default: by the length of the text.")
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Texts to translate together: fewer need less memory. The translations are the same.")
]
BleuTokenizer = Annotated[
    str, typer.Option(metavar="NAME", help="How BLEU cuts text into words: 13a; zh, char where none stand apart; intl.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


class _Command(typer.core.TyperCommand):
    """A command whose help lists its options by their panels, in plain text as wide as the terminal: in the tables that
    Typer draws by default a description has 19 of 80 columns."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class _Commands(typer.core.TyperGroup):
    """The commands, each with its whole first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(200)) for name, command in self.commands.items()])


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train sequence-to-sequence models on pairs of texts, and translate with them.",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"keras-seq2seq {importlib.metadata.version('keras-seq2seq')}")
        raise typer.Exit


@app.callback()
def _all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Takes the options that stand before a command."""


def main() -> None:
    """Entry point of the console script."""
    _set_streams()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    app()


def _set_streams():
    """Makes stdout and stderr UTF-8 in every locale, and lets no file opened later take the place of a closed one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


@contextlib.contextmanager
def _exit_codes(tensorflow=True):
    """Says on stderr what went wrong, without a traceback where the input is to blame, and exits accordingly."""
    try:
        if sys.stdout is None:
            raise OptionError("standard output is closed, where results go; give it a file, or /dev/null")
        if tensorflow:
            start_tensorflow()
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader of our output has enough; keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        typer.echo(f"seq2seq: this needs {error.name}: pip install 'keras-seq2seq[{_EXTRAS[error.name]}]'", err=True)
        raise typer.Exit(2) from None
    except (CorpusError, OptionError) as error:
        typer.echo(f"seq2seq: {error}", err=True)
        raise typer.Exit(2) from None
    except MemoryError as error:
        typer.echo(f"seq2seq: {error or 'out of memory'}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:  # a full or read-only disk
        typer.echo(f"seq2seq: {error}", err=True)
        raise typer.Exit(1) from None
    except ValueError as error:
        from seq2seq.checkpoints import RunError

        if not isinstance(error, RunError):
            raise
        typer.echo(f"seq2seq: {error}", err=True)
        raise typer.Exit(2) from None


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Keeps away what is written to stderr, also by C++ and by processes that are started."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def start_tensorflow() -> None:
    """Imports TensorFlow without the page of start-up log that its C++ side writes to stderr, and sets its threads."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # heeded only once it has started, hence the rest
    with without_stderr():
        import tensorflow as tf
    # The operations of a recurrent step are small: two side by side are faster than one divided among all cores. The
    # setting is the whole process's and must come before its first operation, so it is not the library's to make.
    cores = len(os.sched_getaffinity(0))  # and not those of the machine, of which it may have been given a few
    tf.config.threading.set_intra_op_parallelism_threads(max(1, cores // 2))
    tf.config.threading.set_inter_op_parallelism_threads(cores)
    if not tf.config.list_physical_devices("GPU"):  # where it costs speed
        tf.config.experimental.enable_op_determinism()  # one seed, one result; training sets it anew


def _with_options(*names):
    """Gives a command the options of these names, as `Config` declares them, or all; it gets `given`, those in use."""
    fields = [field for field in dataclasses.fields(Config) if field.metadata and (not names or field.name in names)]

    def decorate(command):
        def run(**arguments):
            given: dict[str, Any] = {}
            settings: tuple[str, ...] = ()
            for field in fields:
                value, parse = arguments.pop(field.name), field.metadata.get("parser")
                value = tuple(value) if isinstance(value, list) else value
                if field.name == "own":
                    settings = value or ()
                elif value not in (None, ()):
                    given[field.name] = _parsed(field.name, value, parse) if parse else value
                    check_option(field.name, given[field.name])
            own = _settings(settings, given)
            if own:
                given["own"] = own
            return command(**arguments, given=given)

        parameters = [p for p in signatures.signature(command).parameters.values() if p.name != "given"]
        for field in fields:
            how = {name: value for name, value in field.metadata.items() if name not in _NOT_FOR_TYPER}
            flags = [field.metadata["flag"]] if "flag" in field.metadata else []
            if names:
                del how["rich_help_panel"]
            elif field.default not in (None, False):
                how["help"] += f" Default: {_as_text(field.default)}."
            if "parser" in field.metadata:
                how.setdefault("metavar", f"<{field.metadata['parser'].__name__}>")
            # None is what is not said, so that a preset or a configuration says it; "none" is text until it is parsed.
            kind = str if "parser" in field.metadata else list[str] if "several" in field.metadata else field.type
            annotation = Annotated[kind | None, typer.Option(*flags, **how)]  # type: ignore[valid-type]  # known only here
            parameters.append(
                signatures.Parameter(field.name, signatures.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            )
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        signature = signatures.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in parameters])
        run.__signature__ = signature  # type: ignore[attr-defined]  # where `inspect` looks
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _settings(texts, given=None):
    """The options that `--set` names, {name: value}; those of `Config` are put among what is `given` otherwise."""
    found: dict[str, Any] = {}
    for name, value in map(parse_setting, texts or ()):
        if name == "corpus":
            raise OptionError(f"set=corpus={value}: name the corpus as an argument, CORPUS")
        options = found if given is None or name not in Config.__dataclass_fields__ else given
        if options.setdefault(name, value) != value:
            raise OptionError(f"{name}: given twice, as {options[name]!r} and as {value!r}")
    return found


_NOT_FOR_TYPER = ("parser", "flag", "several", "range")


def _parsed(name, text, parse):
    try:
        return parse(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} does not fit", param_hint=f"--{name.replace('_', '-')}") from None


def _as_text(value):
    if isinstance(value, tuple):
        return ",".join(f"{number:g}" for number in value)
    return "yes" if value is True else value


@app.command(cls=_Command)
@_exit_codes()
@_with_options()
def train(
    corpus: Annotated[list[str] | None, typer.Argument(metavar="CORPUS", help=_CORPUS)] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to make (default: runs/NAME-OF-CORPUS).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a training that was cut off, with the options it was begun with. So does the command that "
            "began it.",
        ),
    ] = False,
    preset: Annotated[str | None, typer.Option(help=_PRESETS)] = None,
    config: Annotated[
        Path | None, typer.Option(help="Repeat a run: the config.json in its folder. Options given beside it count.")
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER",
            help="Log the figures of each epoch to tensorboard (curves and pictures, in the run folder), wandb or "
            "mlflow. Say it again for several. Default: none.",
        ),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="Where to train: none, on one device; mirrored, on all GPUs of this machine; multiworker, on the "
            "machines in TF_CONFIG, each of which is given the same command."
        ),
    ] = "none",
    imports: Import = None,
    *,
    given: dict,
) -> None:
    """Train a model on pairs of texts and keep it in a run folder, whose path is printed at the end.

    Example: seq2seq train my-pairs.tsv --out runs/mine --epochs 20
    """
    from seq2seq.building import check_taken
    from seq2seq.callbacks import DivergedError
    from seq2seq.distribution import WorkerLostError, is_chief, open_strategy
    from seq2seq.runs import can_measure, find_corpus
    from seq2seq.training import train as run

    opened = open_strategy(strategy)  # before anything is computed
    chief = is_chief(opened)

    if resume and (given or preset or config):
        raise OptionError("resume goes on with the options the training was begun with; it takes no others")
    if config:
        if preset:
            raise OptionError("preset and config exclude each other")
        options, record = load_config(config)
        options = without_excluded(options, given)
        if not corpus and "checksums" in record:
            options["corpus"] = find_corpus(record)
        if options.get("validation") and "validation" not in given:
            options["validation"] = find_corpus(record, "validation")
    else:
        corpus = corpus or ["phrasebook"]
        options = {}
    if corpus:
        options["corpus"] = tuple(corpus)
    if given.get("warm_start"):
        if preset or config:
            raise OptionError("from goes on with the options of that run; it excludes preset and config")
        options |= warm_options(load_config(Path(given["warm_start"]) / "config.json")[0])
    elif not config and not resume:
        preset = preset or _corpus_preset(Config(**options | given))
        options |= usual_options(preset, given)
    if given.get("own"):
        given["own"] = {**(options.get("own") or {}), **given["own"]}
    settings = Config(**options | given)
    first = settings.corpus if isinstance(settings.corpus, str) else settings.corpus[0]
    folder = out or Path("runs") / (re.sub(r"[^\w-]+", "-", Path(first).name.split(".")[0]).strip("-") or "corpus")
    for name in imports or ():
        load_class("import", name)
    check_taken(settings, given)
    callbacks = [_progress()] if chief else []
    try:
        model = run(
            None if resume else settings,
            folder,
            overwrite,
            resume,
            callbacks=callbacks,
            progress=_counting("pairs read"),
            report=_print_report,
            say=lambda text: typer.echo(text, err=True),
            command=_command_line(*sys.argv[1:]),
            strategy=opened,
            track=track or (),
        )
    except (DivergedError, WorkerLostError) as error:
        typer.echo(f"seq2seq: {error}", err=True)
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, SystemExit, OSError, MemoryError):
        if (begun := folder / "unfinished" / "config.json").is_file():
            importing = _importing(load_config(begun)[0])
            typer.echo(f"Go on with:  {_command_line('train', '--resume', '--out', folder, *importing)}", err=True)
        raise
    if not chief:
        return
    if can_measure() and importlib.util.find_spec("matplotlib"):
        _draw(folder, model)
    options, record = load_config(folder / "config.json")
    _say_taken(record["training"])
    importing = _importing(options, training=False)
    names = model.source_tokenizer.column_names
    text = '"TEXT"' if len(names) == 1 else "$'" + r"\t".join(names) + "'"  # as shells write a tab
    typer.echo(f"Translate with:  {_command_line('translate', folder, *importing)} {text}", err=True)
    typer.echo(folder)


def _say_taken(training):
    """Says on stderr what a training has taken."""
    said = "{updates:,} updates of {parameters:,} parameters in {seconds:,.1f} s on {device}; {peak_memory_mb:,} MB"
    typer.echo(said.format(**training), err=True)


def _importing(options, training=True):
    """The arguments that name the classes of one's own, of a run with these options."""
    return [part for name in own_classes(Config(**options), training) for part in ("--import", name)]


def _command_line(*arguments):
    """The command `seq2seq` with these arguments, quoted so that a shell reads them as they are."""
    return shlex.join(["seq2seq", *map(str, arguments)])


def _draw(folder, model):
    """Draws a run's pictures, into TensorBoard too where the run has it; returns their paths."""
    from seq2seq.runs import draw_run

    drawn = draw_run(folder, model, say=lambda text: typer.echo(f"seq2seq: {text}", err=True))
    if (folder / "tensorboard").is_dir():
        import tensorflow as tf

        with tf.summary.create_file_writer(str(folder / "tensorboard" / "pictures")).as_default(step=0):
            for path in drawn:
                tf.summary.image(path.stem, tf.io.decode_png(path.read_bytes(), channels=3)[None])
    return drawn


@app.command(cls=_Command)
@_exit_codes()
def average(
    run: Run,
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    last: Annotated[
        int | None, typer.Option(min=1, help="Of how many of the last kept epochs. Default: of all that are kept.")
    ] = None,
    imports: Import = None,
) -> None:
    """Make a run whose weights are the mean of those after the last epochs of another, and print its folder.

    That run must have been trained with --keep-epochs, which keeps the models of its last measured epochs.

    Example: seq2seq average runs/mine --last 5 --out runs/mean
    """
    from seq2seq.runs import average as run_average

    for name in imports or ():
        load_class("import", name)
    run_average(run, out, last)
    typer.echo(out)


@app.command(cls=_Command)
@_exit_codes()
def plot(run: Run, imports: Import = None) -> None:
    """Draw a run's pictures again, into its folder: curves, error rates by length, attention. Prints their paths.

    Example: seq2seq plot runs/phrasebook
    """
    for path in _draw(run, _load([run], imports)):
        typer.echo(path)


@app.command(cls=_Command)
@_exit_codes()
@_with_options("validation", "monitor")
def sweep(
    out: Annotated[Path, typer.Option(help="The folder to make, with a run folder for each setting and seed.")],
    corpus: Corpus = ["phrasebook"],  # noqa: B006 (typer copies it)
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="An option and its values, separated by commas, or by ';' if there is one: teacher_forcing='1;1,0.5'. "
            "With --trials also a range, 1e-4..1e-2. Say it again for more options.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting, with the seeds 0, 1, ...")] = 1,
    fixed: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="An option of `train`, by its name in config.json, for all runs: --set epochs=8. Repeat it for more.",
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option(help=_PRESETS)] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Search by Optuna: try so many settings, not all. Extra sweep.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time, which share the cores or the GPUs.")] = 1,
    imports: Import = None,
    *,
    given: dict,
) -> None:
    """Train all settings of a grid with several seeds each, and print the table of what they came to.

    The same command goes on after an interruption. You may add seeds, and values of a grid or trials of a search.

    A search looks for the best mean over seeds of --monitor, by default val_loss.

    Example: seq2seq sweep pairs.tsv --grid units=128,256 --grid layers=1,2 --seeds 3 --out runs/sizes
    """
    from seq2seq.checkpoints import RunError
    from seq2seq.sweeps import read_grid
    from seq2seq.sweeps import sweep as run
    from seq2seq.tables import table as tabulate

    values = list(map(read_grid, grid or ()))
    if len(dict(values)) < len(values):
        raise OptionError("grid: an option is named twice; separate its values by commas")
    try:
        results = run(
            tuple(corpus),
            out,
            dict(values),
            seeds,
            options=_settings(fixed, given) | given,
            preset=preset or _corpus_preset,
            trials=trials,
            jobs=jobs,
            imports=imports or (),
            say=_say,
            show=_show if _tty() else None,
        )
    except (KeyboardInterrupt, SystemExit):
        _say("The same command goes on")
        raise
    if any(error is None for error in results.values()):
        try:
            typer.echo(tabulate(out, say=_say).text())
        except RunError as error:  # such as runs that have held out different pairs
            _say(f"No table: {error}. {_command_line('table', out, '--test')} CORPUS")
    _say(str(out))
    if any(results.values()):
        raise typer.Exit(1)


def _say(text):
    """Says a line on stderr, over what `_show` has written there."""
    typer.echo(f"\r\033[K{text}" if _tty() else text, err=True)


def _show(text):
    """Shows on a terminal what changes, cut to its width."""
    typer.echo(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}", err=True, nl=False)


@app.command(cls=_Command)
@_exit_codes()
def table(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="A run, a sweep, or a folder of runs.")],
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CORPUS",
            help="Translate this and measure it. Say it again for several. Default: figures of what was held out.",
        ),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A figure: loss, accuracy, perplexity, bleu, chrf, exact_match, ter, cer, wer. Say it again for more. "
            "Default: loss, accuracy, chrf and exact_match, if all runs have them.",
        ),
    ] = None,
    baseline: Annotated[
        str, typer.Option(metavar="ROW", help="The row to test the others against: its number or its setting.")
    ] = "1",
    format: Annotated[Literal["text", "md", "csv", "latex"], typer.Option(help="How to print it.")] = "text",
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it too, into a .png, .svg or .pdf file.")
    ] = None,
    beam_width: BeamWidth = None,
    length_penalty: LengthPenalty = None,
    search: Search = None,
    options: Settings = None,
    imports: Import = None,
) -> None:
    """Print a table of runs: means and deviations over seeds, and whether rows differ from a baseline.

    Runs that differ in nothing but their seed are one row. Unfinished runs are left out and named on stderr.

    p is that of Welch's t-test over seeds if both rows have two or more. If both have one, and with --test, it is that
    of a paired bootstrap over the sources.

    Example: seq2seq table runs/sizes --test test.tsv --format md
    """
    from seq2seq.tables import table as tabulate

    if picture:
        from seq2seq.pictures import draw_table

        _check_picture("picture", picture)
    if not test and (beam_width or length_penalty is not None or search or options):
        raise OptionError("beam_width, length_penalty, search: for a test corpus, and none is named (--test)")
    strategy = _strategy(search, options, {"width": beam_width, "length_penalty": length_penalty})
    found = tabulate(folders, test, measure or (), baseline, strategy, imports=imports or (), say=_say)
    if picture:
        draw_table(found, picture)
    typer.echo(found.text(format))


def _corpus_preset(config):
    """The preset that suits the corpus and can be used here; says so on stderr where it is not the usual one."""
    preset = choose_preset(config)
    if preset == "subword":
        if importlib.util.find_spec("sentencepiece"):
            said = "so many sentences are cut into subwords (--preset default for characters)"
        else:
            preset = "default"
            said = "for so many sentences subwords would be better: pip install 'keras-seq2seq[subword]'"
        typer.echo(f"Preset {preset}: {said}", err=True)
    return preset


def _counting(what):
    """A function that shows on a terminal how many there are of what is counted, four times a second."""
    shown = time.monotonic()

    def show(number):
        nonlocal shown
        if _tty() and time.monotonic() > shown + 0.25:
            shown = time.monotonic()
            typer.echo(f"\r\033[K{number:,} {what}", err=True, nl=False)

    return show


@contextlib.contextmanager
def _reporting():
    """Gives a `Report` to count in, and prints it in the end, after an error too."""
    from pipelines import Report

    report = Report()
    try:
        yield report
    finally:
        _print_report(report)


def _print_report(report):
    if _tty():
        typer.echo("\r\033[K", err=True, nl=False)  # over the number of pairs read
    if report.dropped:
        typer.echo(str(report), err=True)


def _progress():
    """A Keras callback that shows training on stderr: a bar in each epoch, then its figures and a few translations."""
    import keras

    class Progress(keras.callbacks.Callback):
        held_out: Iterable[tuple[str, str]] = ()

        def on_epoch_begin(self, epoch, logs=None):
            self.started = time.monotonic()
            label = f"Epoch {epoch + 1}/{self.params['epochs']}"
            self.bar = typer.progressbar(length=self.params["steps"], label=label, file=sys.stderr, hidden=not _tty())

        def on_train_batch_begin(self, batch, logs=None):  # at the end Keras would wait for the device first
            self.bar.update(1)

        def on_epoch_end(self, epoch, logs=None):
            if _tty():
                typer.echo("\r\033[K", err=True, nl=False)  # the figures take the bar's line
            line = f"Epoch {epoch + 1}/{self.params['epochs']}  {_figures(logs, '')}"
            if "val_loss" in logs:
                line += f"  |  held out: {_figures(logs, 'val_')}"
            typer.echo(f"{line}  |  {time.monotonic() - self.started:.1f} s", err=True)
            if "val_loss" not in logs:
                return  # nothing was measured
            translations = self.model.translate([source for source, _ in self.held_out]).numpy()
            for (source, target), translation in zip(self.held_out, translations, strict=True):
                _echo_line(f"    {source}  ->  {translation.decode()}   ({target})", err=True)

    return Progress()


def _figures(logs, side):
    line = f"loss {logs[side + 'loss']:.3f}  accuracy {logs[side + 'accuracy']:.1%}"
    return f"{line}  chrF {logs['val_chrf']:.1f}" if side and "val_chrf" in logs else line


@app.command(cls=_Command)
@_exit_codes()
def translate(
    run: Run,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="RUN|TEXT", help=f"{_ENSEMBLE} Then what to translate.")
    ] = None,
    beam_width: BeamWidth = None,
    length_penalty: LengthPenalty = None,
    n_best: Annotated[
        int | None,
        typer.Option(
            min=1, help="Write so many, a line for each: samples with --sample, else the best of a beam of 5 or more."
        ),
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw each token at random, as likely as it is.")] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Of sampling: below 1 more conservative, above 1 more varied.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from so many likeliest tokens only.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the likeliest tokens of this share only.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws another sample.")] = 0,
    search: Search = None,
    options: Settings = None,
    prefix: Annotated[
        bool,
        typer.Option(
            "--prefix",
            help="Each TEXT or line has one more column, after a tab: how its translation begins, or nothing.",
        ),
    ] = False,
    min_length: MinLength = 0,
    max_length: MaxLength = None,
    batch_size: BatchSize = 256,
    scores: Annotated[
        bool,
        typer.Option(
            "--scores",
            help="Before each translation write its log-likelihood, the figure that ranks it (this over the length "
            "penalty), and why it stopped: end, limit, repetition.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Write a line of JSON for each text: all that is known of its translations and their tokens."
        ),
    ] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="As --json, and for each token of a translation where the model looked.")
    ] = False,
    imports: Import = None,
) -> None:
    """Translate the TEXTs, or stdin line for line, to stdout. Lines are answered when no more are waiting.

    If the model was trained on several source columns, each TEXT or line must have them, with tabs between them. With
    --prefix one more follows: how the translation begins, which may be empty.

    Each TEXT, or each line, gets one line, an empty one too; with --n-best it gets that many. A tab or a line break
    inside a translation is written as a space. Run folders come first; an argument that is none is a TEXT.

    With --scores or --n-best the output has columns between tabs: with --n-best above 1 the number of the text; with
    --scores the log-likelihood, the figure that ranks the translations, and why each stopped; the translation last.

    With --json each text gets one object: its "source" and "translations", the best first. Each of these has "text",
    "log_likelihood", "ranked_by", "stopped", "tokens" and their "log_probabilities", in nats. --attention adds the
    "source_tokens" and, for each translation, "attention": a row of weights of them for each token. null is what is no
    finite number.

    Example: cat questions.txt | seq2seq translate runs/phrasebook --beam-width 5 > answers.txt
    """
    from seq2seq.translation import prefix_ids

    beam = {"width": beam_width, "length_penalty": length_penalty}
    sampling = {"sample": sample or None, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    strategy = _strategy(search, options, beam, sampling, {"n_best": n_best})
    runs, texts = _runs_first("translate", [str(run), *(texts or ())], "TEXT")
    for text in texts:
        if os.path.isdir(os.path.dirname(text)):  # perhaps a run whose name is mistyped
            typer.echo(as_line(os.fsencode(text)) + b" is no run folder, so it is taken for a text", err=True)
    started = time.monotonic()
    model = _load(runs, imports)
    loading = time.monotonic() - started
    lengths = {"min_length": min_length, "max_length": max_length, "batch_size": batch_size}

    def write(texts, done):
        how = {"seed": seed + done, **lengths}
        if prefix:
            texts, how["prefixes"] = zip(*(text.rpartition(b"\t")[::2] for text in texts), strict=True)
            prefix_ids(model.target_tokenizer, how["prefixes"], unit, done + 1)
        if as_json or attention or scores or strategy.n_best > 1:
            found = model.translate(texts, strategy, details=True, **how)
            as_objects = as_json or attention
            lines = _json_lines(model, texts, found, attention) if as_objects else _table_lines(found, done, scores)
        else:
            lines = map(as_line, model.translate(texts, strategy, **how).numpy())
        sys.stdout.buffer.writelines(line + b"\n" for line in lines)
        sys.stdout.buffer.flush()

    unit = "TEXT" if texts else "standard input, line"
    numbered = enumerate(map(os.fsencode, texts), start=1) if texts else read_lines(None)
    lines = _with_columns(unit, numbered, (*model.source_tokenizer.column_names, *["prefix"] * prefix))
    if texts:
        write(list(lines), 0)
    else:
        _say_speed(*_in_blocks(lines, write), loading)


def _with_columns(unit, numbered, names):
    """Yields the texts of (number, text) pairs, each of which must have the columns that a model expects."""
    for number, text in numbered:
        if len(names) > 1 and (problem := wrong_columns(text, names)):
            raise CorpusError(f"{unit} {number}: {problem}")
        yield text


def _load(runs, imports):
    """Loads a run, or an ensemble of several, and before it the classes of one's own that it is made of."""
    from seq2seq.runs import load_runs

    for name in imports or ():
        load_class("import", name)
    return load_runs(runs)


def _runs_first(command, arguments, other, least=1):
    """Tells run folders from what follows them: a folder with a run in it is a run, and the first argument is meant to
    be one."""
    expected = f"expected {'RUN ' * least}[RUN]... [{other}]..."
    kinds = [True, *map(_is_run, arguments[1:])]
    count = next((n for n, is_run in enumerate(kinds) if not is_run), len(kinds))
    if count < least:
        raise OptionError(f"{command}: {arguments[count]} is not a run folder; {expected}")
    if any(kinds[count:]):
        run, before = arguments[kinds.index(True, count)], f"the {other.lower()} {arguments[count]}"
        raise OptionError(f"{command}: {run} is a run folder, but stands after {before}; {expected}")
    return [Path(name) for name in arguments[:count]], arguments[count:]


def _is_run(name):
    # Not by `Path`, which raises an error for a text too long to be a path.
    return os.path.isdir(name) and any(os.path.exists(os.path.join(name, made)) for made in _OF_A_RUN)


_OF_A_RUN = ("model.keras", "config.json", "unfinished")  # one of them is in every folder that `train` has written in


def _strategy(search, settings, beam, sampling=None, either=None):
    """The strategy that these options ask for, those of beam search, of sampling and of either; the ones not given are
    None."""
    from seq2seq.contract import make_strategy
    from seq2seq.strategies import BeamSearch, Greedy, Sampling

    beam, sampling, either = (
        {name: value for name, value in (options or {}).items() if value is not None}
        for options in (beam, sampling, either)
    )
    if search:
        for name in beam | sampling | either:
            raise OptionError(f"search and {name} exclude each other; write --set NAME=VALUE for what {search} takes")
        return make_strategy(search, _settings(settings))
    if settings:
        raise OptionError(f"set={settings[0]!r}: --set is for the strategy that --search names, and there is none")
    if beam and sampling:
        raise OptionError(f"{next(iter(beam))} is of beam search, which excludes sampling")
    if sampling:
        sampling.pop("sample", None)
        return Sampling(**sampling, **either)
    return BeamSearch(**{"width": max(5, either.get("n_best", 1)), **beam, **either}) if beam or either else Greedy()


def _blocks(lines: Iterator) -> Iterator[list]:
    """Yields lines in blocks, which are fast to work on: each ends when it is full, or when no line is waiting, since
    somebody, at a terminal or the other end of a pipe, may want an answer first."""
    block = []
    for line in lines:
        block.append(line)
        if len(block) == 2048 or not line_waits():
            yield block
            block = []
    if block:
        yield block


def _in_blocks(lines: Iterator[bytes], write: Callable[[list[bytes], int], None]) -> tuple[int, float]:
    """Hands lines on in blocks, with the number of those before, and shows on a terminal how many are done.

    Returns how many there were, and the seconds in which they were not waited for.
    """
    done, seconds = 0, 0.0
    for block in _blocks(lines):
        started = time.monotonic()
        write(block, done)
        seconds += time.monotonic() - started
        done += len(block)
        if _tty() and not sys.stdin.isatty():
            typer.echo(f"\r\033[K{done:,} lines", err=True, nl=False)
    if done and _tty() and not sys.stdin.isatty():
        typer.echo("\r\033[K", err=True, nl=False)  # what comes next says it
    return done, seconds


def _say_speed(count, seconds, loading):
    """Says on stderr how long the translating took, and what came before it."""
    rate = f", {count / seconds:,.0f} a second" if seconds else ""
    typer.echo(f"{count:,} translated in {seconds:.1f} s{rate}; {loading:.1f} s to load", err=True)


def _table_lines(found, done, scores):
    """Lines of what is known of each hypothesis, between tabs."""
    for number, row in enumerate(zip(*(part.numpy() for part in found[:4]), strict=True), start=done + 1):
        for text, score, rank, stopped in zip(*row, strict=True):
            columns = [b"%d" % number] if len(row[0]) > 1 else []
            if scores:
                columns += [b"%.4f" % score, b"%.4f" % rank, stopped]
            yield b"\t".join([*columns, as_line(text)])


def _json_lines(model, texts, found, attention):
    """A line of JSON for each text: all that is known of its hypotheses."""
    import numpy as np

    from seq2seq.translation import spelled

    rows, count, length = found.ids.shape
    ids = found.ids.numpy().reshape(rows * count, length)
    real = np.flatnonzero(ids[:, 0])  # a beam that finds too few hypotheses leaves empty places
    ids, sources = ids[real], [texts[number] for number in real // count]
    columns = [part.numpy().reshape(-1)[real] for part in found[:4]]
    looked = model.attention(sources, ids) if attention else [None] * len(real)
    objects = [{"source": text.decode(errors="replace"), "translations": []} for text in texts]
    for number, text, score, rank, stopped, (tokens, nats), alignment in zip(
        real // count, *columns, _scored_tokens(model, sources, ids), looked, strict=True
    ):
        known = {"text": text.decode(), "log_likelihood": _numbers(score), "ranked_by": _numbers(rank)}
        known |= {"stopped": stopped.decode(), "tokens": tokens, "log_probabilities": _numbers(nats)}
        objects[number]["translations"].append(
            known | ({"attention": _numbers(alignment.weights)} if attention else {})
        )
    if attention:
        source_tokens = spelled(model.source_tokenizer, model.source_tokenizer.tokenize(texts))
        objects = [known | {"source_tokens": tokens} for known, tokens in zip(objects, source_tokens, strict=True)]
    return (_json(known).encode() for known in objects)


def _scored_tokens(model, sources, ids):
    """For each row of target ids `[N, T]` its tokens and their log-probabilities, two lists."""
    from seq2seq.translation import spelled

    scores = model.score(sources, ids, per_token=True).to_list()
    return zip(spelled(model.target_tokenizer, ids), scores, strict=True)


def _numbers(array):
    """Numbers in any shape for JSON, which has no name for what is no finite number: that is None."""
    import numpy as np

    array = np.asarray(array, np.float64)
    found: Any = np.where(np.isfinite(array), array.round(6), None)
    return found.tolist()


def _json(content):
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


@app.command(cls=_Command)
@_exit_codes()
@_with_options("limit", "columns", "reverse", "on_bad_line")
def evaluate(
    run: Run,
    corpus: HeldOut = None,
    beam_width: BeamWidth = None,
    length_penalty: LengthPenalty = None,
    search: Search = None,
    options: Settings = None,
    min_length: MinLength = 0,
    max_length: MaxLength = None,
    batch_size: BatchSize = 256,
    bleu_tokenizer: BleuTokenizer = "13a",
    worst: Annotated[int, typer.Option(min=0, help="Show so many of the worst translations.")] = 5,
    write: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write sources, translations and references into this folder.")
    ] = None,
    as_json: AsJson = False,
    imports: Import = None,
    *,
    given: dict,
) -> None:
    """Translate a corpus and measure how well, by all the translations it has of each source.

    The corpus is read with the --columns and --reverse that the run was trained with, unless you say others.

    Of several runs it measures the ensemble; `compare` measures each. An ensemble needs a corpus by name if a run was
    trained on what the first has held out.

    Example: seq2seq evaluate runs/mine test-pairs.tsv --beam-width 5
    """
    strategy = _strategy(search, options, {"width": beam_width, "length_penalty": length_penalty})
    lengths = {"min_length": min_length, "max_length": max_length, "batch_size": batch_size}
    settings = {**lengths, "bleu_tokenizer": bleu_tokenizer}
    if write:
        _check_writable("write", write, folder=True)
    runs, corpus = _runs_first("evaluate", [str(run), *(corpus or ())], "CORPUS")
    (found,), seconds = _evaluations("evaluate", runs, corpus, strategy, imports, given, settings)
    if write:
        found.write(write)
    if as_json:
        typer.echo(json.dumps(found.as_dict(worst) | {"loading_seconds": seconds}, ensure_ascii=False))
    else:
        _print_evaluation(found, worst)
    _say_speed(len(found.sources), found.seconds, seconds)


@app.command(cls=_Command)
@_exit_codes()
@_with_options("limit", "columns", "reverse", "on_bad_line")
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|CORPUS",
            help="Two run folders or more, then what to translate (as for `evaluate`). Default: what the first run has "
            "held out.",
        ),
    ],
    beam_width: BeamWidth = None,
    length_penalty: LengthPenalty = None,
    search: Search = None,
    options: Settings = None,
    bleu_tokenizer: BleuTokenizer = "13a",
    as_json: AsJson = False,
    imports: Import = None,
    *,
    given: dict,
) -> None:
    """Translate a corpus with several runs and test whether each differs from the first.

    The corpus is read with the --columns and --reverse that the first run was trained with, unless you say others.

    The test is a paired bootstrap, not corrected for the number of runs; p below 0.05 is unlikely to be chance.

    On stderr it says how many of the sources each run was trained on.

    Example: seq2seq compare runs/characters runs/subwords test-pairs.tsv
    """
    from seq2seq.evaluation import compare as test

    expected = "expected RUN RUN [RUN]... [CORPUS]..."
    if len(runs) < 2:
        raise OptionError(f"compare: one argument, {runs[0]}; {expected}")
    folders, corpus = _runs_first("compare", runs, "CORPUS", least=2)
    try:
        if corpus:
            open_corpora(corpus)
    except CorpusError as error:  # it may have been meant for a run
        raise OptionError(f"compare: {error}; {expected}") from None
    strategy = _strategy(search, options, {"width": beam_width, "length_penalty": length_penalty})
    settings = {"bleu_tokenizer": bleu_tokenizer}
    evaluations, _ = _evaluations("compare", folders, corpus, strategy, imports, given, settings)
    found = test(*evaluations)
    if as_json:
        scores = {name: [tested._asdict() for tested in row] for name, row in found.items()}
        counts = {"sources": len(evaluations[0].sources), "runs": [str(run) for run in folders]}
        typer.echo(json.dumps(counts | {"scores": scores}, ensure_ascii=False))
        return
    _print_comparison(folders, evaluations[0], found)


def _print_comparison(runs, evaluation, found):
    """The scores of several runs on one corpus as a table, and how sure each difference from the first one is."""
    typer.echo(f"{len(evaluation.sources):,} sources, {sum(map(len, evaluation.references)):,} references\n")
    for number, run in enumerate(runs, start=1):
        typer.echo(f"run {number}  {run}")
    for start in range(1, len(runs), 7):  # so many columns beside the first are 80 characters
        columns = [0, *range(start, min(start + 7, len(runs)))]
        typer.echo("\n" + f"{'score':<12}" + "".join(f"{f'run {n + 1}':>8}" for n in columns))
        for name, row in found.items():
            typer.echo(f"{name:<12}" + "".join(f"{row[n].score:>8.1f}" for n in columns))
        typer.echo("\n" + f"{'p, to run 1':<20}" + "".join(f"{f'run {n + 1}':>8}" for n in columns[1:]))
        for name, row in found.items():
            typer.echo(f"{name:<20}" + "".join(f"{row[n].p:>8.3f}" for n in columns[1:]))


def _evaluations(command, runs, corpus, strategy, imports, given, settings):
    """What the measures are of each run on one corpus, for `compare`, or of their ensemble, for `evaluate`; and how
    many seconds it took to load them."""
    from pipelines import corpus_errors, read_pairs
    from seq2seq.ensembles import ensemble
    from seq2seq.evaluation import evaluate as measure
    from seq2seq.runs import held_out_pairs, may_have_learned

    if given and not corpus:
        raise OptionError(f"{next(iter(given))} is for a corpus, and none is named")
    started = time.monotonic()
    models = [_load([run], imports) for run in runs]
    measured = models if command == "compare" else [ensemble(models, runs)]
    seconds = time.monotonic() - started
    columns = models[0].source_tokenizer.column_names
    for run, model in zip(runs, models, strict=True):
        if len(model.source_tokenizer.column_names) != len(columns):
            counts = f"{len(model.source_tokenizer.column_names)}, and {runs[0]} on {len(columns)}"
            raise OptionError(f"{command}: number of source columns: {run} was trained on {counts}")
    with corpus_errors(), _reporting() as report:
        if corpus:
            pairs = read_pairs(corpus, report=report, source_columns=columns, **_as_trained(runs[0], corpus, given))
        else:
            pairs = held_out_pairs(runs[0], models[0])
        pairs = pairs.cache()  # standard input can be read once only
        # What `evaluate` is told to evaluate on, it evaluates on.
        if len(runs) > 1 or (not corpus and may_have_learned(runs[0])):
            _say_what_was_learned(command, runs, models, pairs, corpus)
        progress = _counting("translated")
        return [measure(model, pairs, strategy, progress=progress, **settings) for model in measured], seconds


def _as_trained(run, corpus, given):
    """How to read a corpus for a run: as its own was, where the command does not say which columns are what.

    Standard input, which is made for the command, has source and target in their order.
    """
    if "columns" in given or "-" in corpus or not (run / "config.json").is_file():
        return given
    options, _ = load_config(run / "config.json")
    return {name: options[name] for name in ("columns", "reverse") if options.get(name)} | given


def _say_what_was_learned(command, runs, models, pairs, named):
    """Says on stderr how many sources of these pairs each run was trained on.

    Refuses pairs that the first run has held out, and are therefore not named, if another run was trained on them.
    """
    import numpy as np
    import tensorflow as tf

    from pipelines import group_by_source
    from seq2seq.checkpoints import RunError
    from seq2seq.runs import configuration, trained_on

    sources = list(group_by_source(pairs))
    if not sources:
        return  # and so nothing to evaluate on
    alone = tf.data.Dataset.from_tensor_slices((sources, sources))
    learned = []
    for run, model in zip(runs, models, strict=True):
        try:
            learned.append(trained_on(configuration(run)[1], alone, model.source_tokenizer))
        except (CorpusError, OptionError) as error:
            said = f"{run}: cannot tell which of the sources it was trained on: {error}"
            if learned and not named:
                raise RunError(f"{said}; name a test corpus") from None
            typer.echo(said, err=True)
            learned.append(np.zeros(len(sources), bool))
        if not named and (more := (learned[-1] & ~learned[0]).sum()):
            raise RunError(
                f"{run} was trained on {more:,} of the {len(sources):,} sources that {runs[0]} has held out; name a "
                f"test corpus: {_command_line(command, *runs)} CORPUS"
            )
        if count := learned[-1].sum():
            typer.echo(f"{run}: trained on {count:,} of the {len(sources):,} sources", err=True)


def _print_evaluation(found, worst):
    """The figures of an `Evaluation` as tables."""
    references = sum(map(len, found.references))
    typer.echo(f"{len(found.sources):,} sources, {references:,} references\n")
    for name, measured in found.scores.items():
        typer.echo(f"{name:<12}{measured.score:>8.1f}  \u00b1 {measured.margin:.1f}   {_EXPLAINED[name]}")
    typer.echo(f"{'perplexity':<12}{found.perplexity:>8.2f}          of a reference's tokens (loss {found.loss:.3f})")
    stopped = (f"{found.stopped.count(why) / len(found.stopped):.1%} {said}" for why, said in _STOPPED.items())
    typer.echo(f"\nTranslations: {', '.join(stopped)}")
    names = list(found.scores)
    typer.echo(f"\n{'characters':<12}{'sources':>8}" + "".join(f"{name.split()[0]:>8}" for name in names))
    for part in found.by_length():
        span = f"{part['from']}" if part["from"] == part["to"] else f"{part['from']}-{part['to']}"
        typer.echo(f"{span:<12}{part['texts']:>8,}" + "".join(f"{part[name]:>8.1f}" for name in names))
    if worst:
        typer.echo("\nThe worst:")
    for text in found.worst(worst):
        _echo_line(f"    {text['source']}  ->  {text['translation']}   ({' | '.join(text['references'])})")
    typer.echo()
    for name in ("BLEU", "chrF", "TER"):
        typer.echo(f"{name} {found.scores[name].signature}")


_EXPLAINED = {
    "BLEU": "words in a row found in a reference",
    "chrF": "characters in a row found in a reference",
    "TER": "words to edit or move, of 100; less is better",
    "CER": "characters to edit, of 100; less is better",
    "WER": "words (or phones, or whatever spaces part) to edit, of 100; less is better",
    "exact match": "are a reference, letter for letter, of 100",
}
_STOPPED = {"end": "ended by themselves", "limit": "were cut", "repetition": "repeated themselves"}


@app.command(cls=_Command)
@_exit_codes()
def demo(
    run: Run,
    more: Annotated[list[Path] | None, typer.Argument(metavar="RUN", help=_ENSEMBLE)] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where the page is; 0 for any port that is free.")] = 7860,
    search: Search = None,
    options: Settings = None,
    imports: Import = None,
) -> None:
    """Serve a page that translates while one types, on this machine and for it alone. Prints its address.

    It shows the n best translations with their log-likelihoods, and where the model looked. A strategy that --search
    names can be chosen beside greedy search and beam search. Ctrl-C ends it.

    Example: seq2seq demo runs/phrasebook
    """
    from seq2seq.demo import demo_page, listen, serve
    from seq2seq.runs import probe

    strategy = _strategy(search, options, {}) if search or options else None
    with listen(port) as listener:
        examples = list(probe(run))[:5] if (run / "probe.json").is_file() else []
        page = demo_page(_load([run, *(more or ())], imports), examples, strategy)
        typer.echo(f"http://{':'.join(map(str, listener.getsockname()))}/")
        serve(page, listener)


@app.command(cls=_Command)
@_exit_codes()
def export(
    run: Run,
    folder: Annotated[
        list[Path], typer.Argument(metavar="RUN|DIR", help=f"{_ENSEMBLE} Last comes the folder to make.")
    ],
    beam_width: Annotated[int, typer.Option(min=1, help="Hypotheses of the signature `beam`, all given out.")] = 5,
    length_penalty: LengthPenalty = None,
    search: Search = None,
    options: Settings = None,
    imports: Import = None,
) -> None:
    """Write a SavedModel, tokenizers inside, for TensorFlow Serving and programs without this library.

    Its signatures `greedy` and `beam` take strings and give strings; with --search a third one, `search`, is of that
    strategy. A few texts are translated by all: the model when it was trained, as it was saved and as it is exported;
    any difference is an error. Prints the folder.

    Example: seq2seq export runs/phrasebook exported/1
    """
    from seq2seq.runs import export_runs

    *more, out = folder
    for name in imports or ():
        load_class("import", name)
    beam = _strategy(None, None, {"width": beam_width, "n_best": beam_width, "length_penalty": length_penalty})
    strategy = _strategy(search, options, {}) if search or options else None
    export_runs([run, *more], out, beam, strategy)
    typer.echo(out)


@app.command(cls=_Command)
@_exit_codes()
@_with_options("columns", "reverse", "on_bad_line")
def score(
    run: Run,
    corpus: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN|CORPUS", help=f"{_ENSEMBLE} Then a corpus. {_CORPUS} Default: -, standard input."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write a line of JSON for each pair: its texts, tokens and all figures.")
    ] = False,
    imports: Import = None,
    *,
    given: dict,
) -> None:
    """Write the log-likelihood of each pair of texts, in nats: how well the target translates the source.

    Standard input has source TAB target, or all source columns and then the target. A corpus by name is read with the
    --columns and --reverse that the run was trained with, unless you say others.

    Each line of a CORPUS gets one line: a number, or nan if it holds no pair to score. stderr counts the latter by
    reason: an empty line, the names of the columns, a bad line. --on-bad-line is skip by default here; with error, the
    command ends at the first bad line.

    With --json the line is an object with "source", "target", "log_likelihood", "loss" (nats per token, END included),
    "tokens" and their "log_probabilities"; or null in place of nan.

    Example: paste source.txt target.txt | seq2seq score runs/phrasebook
    """
    runs, corpus = _runs_first("score", [str(run), *(corpus or ())], "CORPUS")
    corpus = corpus or ["-"]
    with _reporting() as report:
        model = _load(runs, imports)
        columns = model.source_tokenizer.column_names
        reading = {"on_bad_line": "skip", "source_columns": columns, **_as_trained(runs[0], corpus, given)}
        lines = open_corpora(corpus, **reading).lines(report)
        for block in _blocks(lines):
            pairs = [pair for pair in block if pair]
            found = _score_objects(model, pairs) if as_json else _score_numbers(model, pairs)
            typer.echo("\n".join(next(found) if pair else "null" if as_json else "nan" for pair in block))
    if report.dropped and not report.pairs:
        raise CorpusError(f"{' '.join(corpus)}: no pairs to score")


def _score_numbers(model, pairs):
    for score in model.score([source for source, _ in pairs], [target for _, target in pairs]).numpy():
        yield f"{score:.4f}"


def _score_objects(model, pairs):
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    ids = model.target_tokenizer.tokenize(targets, start_end=True)[:, 1:]
    for source, target, (tokens, nats) in zip(sources, targets, _scored_tokens(model, sources, ids), strict=True):
        figures = {"log_likelihood": _numbers(sum(nats)), "loss": _numbers(-sum(nats) / len(nats))}
        figures |= {"tokens": tokens, "log_probabilities": _numbers(nats)}
        yield _json({"source": source.decode(), "target": target.decode(), **figures})


@app.command(cls=_Command)
@_exit_codes()
@_with_options("columns", "reverse", "max_length", "max_ratio", "drop_duplicates")
def inspect(
    corpus: Corpus = ["phrasebook"],  # noqa: B006 (typer copies it)
    histogram: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Draw the lengths into a .png, .svg or .pdf file.")
    ] = None,
    as_json: AsJson = False,
    *,
    given: dict,
) -> None:
    """Show what a corpus holds: pairs, tokens, lengths, and the lines that cannot be used.

    Example: seq2seq inspect my-pairs.tsv --histogram lengths.png
    """
    from pipelines import CharTokenizer, ColumnsTokenizer, corpus_errors, damaged_shards, read_pairs, survey

    for folder in corpus:
        if damaged := damaged_shards(folder):
            raise CorpusError(f"{folder}: {', '.join(damaged)}: not what manifest.json says; shuffle the corpus again")
    if histogram:
        from seq2seq.pictures import draw_lengths

        _check_picture("histogram", histogram)
    with corpus_errors(), _reporting() as report:
        names = open_corpora(corpus, **given).sources
        pairs = read_pairs(corpus, report=report, on_bad_line="skip", **given)
        columns = ColumnsTokenizer([CharTokenizer() for _ in names], names)
        source_tokenizer = columns if len(names) > 1 else CharTokenizer()
        found = survey(pairs, source_tokenizer, CharTokenizer(), _counting("pairs read"))
    if not found.pairs:
        raise CorpusError(f"{' '.join(corpus)}: no pairs")
    if histogram:
        draw_lengths(found, histogram)
    if as_json:
        typer.echo(json.dumps(found.as_dict() | {"dropped": report.dropped}, ensure_ascii=False))
        return
    typer.echo(f"pairs                  {found.pairs:>10,}\n")
    typer.echo(f"{'':<20}{'source':>13}{'target':>13}")
    rows = {"distinct tokens": [len(tokens) for tokens in found.tokens]}
    rows["tokens"] = [tokens.total() for tokens in found.tokens]
    rows |= {f"{name} length": [found.length(side, q) for side in (0, 1)] for name, q in _QUANTILES.items()}
    for name, (source, target) in rows.items():
        typer.echo(f"{name:<20}{source:>13,}{target:>13,}")
    sources = columns.by_column(found.tokens[0]) if len(names) > 1 else [found.tokens[0]]
    for side, tokens in zip((*names, "target"), (*sources, found.tokens[1]), strict=True):
        counted = [f"{_visible(token.decode())}\xa0{count:,}" for token, count in Counter(tokens).most_common()]
        typer.echo(f"\n{side} tokens, the most frequent first:")
        typer.echo(textwrap.fill("  ".join(counted), 100).replace("\xa0", " "))


_QUANTILES = {"shortest": 0, "5% up to": 0.05, "median": 0.5, "95% up to": 0.95, "99% up to": 0.99, "longest": 1}


def _visible(token):
    """A token as it can be seen: a space as ␣, other invisible characters by their numbers."""
    return "".join(c if c.isprintable() and c != " " else "␣" if c == " " else f"U+{ord(c):04X}" for c in token)


@app.command(cls=_Command)
@_exit_codes(tensorflow=False)
@_with_options("columns", "reverse", "on_bad_line", "max_length", "max_ratio", "drop_duplicates")
def shuffle(
    corpus: Corpus,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of shards to make.")],
    shards: Annotated[int, typer.Option(min=1, help="Files to write.")] = 16,
    format: Annotated[Literal["gzip", "tfrecord"], typer.Option(help="Tab-separated text or TFRecord.")] = "gzip",
    seed: Annotated[int, typer.Option(help="For another order.")] = 0,
    *,
    given: dict,
) -> None:
    """Shuffle a corpus that does not fit in memory, on disk, into a folder of shards to train on.

    Needs disk space for the corpus, uncompressed, and for the shards. Prints the folder.

    Example: seq2seq shuffle corpus.en+corpus.es shuffled --shards 64 --max-length 200
    """
    from pipelines import shuffle_corpus

    if format == "tfrecord":
        start_tensorflow()
    with _reporting() as report:
        shuffle_corpus(corpus, folder, shards, format, seed, report, _counting("pairs read"), **given)
    if (count := len(open_corpora(corpus, **given).sources)) > 1:
        typer.echo(f"Read it with:  --columns {','.join(map(str, range(1, count + 2)))}", err=True)
    typer.echo(folder)


def _check_picture(option, path):
    """Checks that a picture can be written, before the long work whose result it shows."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"{path} does not end in .png, .svg or .pdf", param_hint=f"--{option}")
    _check_writable(option, path)


def _check_writable(option, path, folder=False):
    """Checks that a file, or files in a folder, can be written, before the long work whose result they take."""
    try:
        if folder:
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()
        else:
            new = not path.exists()
            path.open("ab").close()
            if new:
                path.unlink()
    except OSError as error:
        raise OptionError(f"{option}={path}: cannot be written: {error.strerror}") from None


def _echo_line(text, err=False):
    """Prints texts on one line, whatever is in them."""
    typer.echo(as_line(text.encode()), err=err)


def _tty():
    return sys.stderr.isatty()
