"""The command line: `seq2seq train`, `translate`, `inspect` and `shuffle`. It parses, calls and prints.

A command's result goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed while running, 2 bad input or
usage, 130 and 143 interrupted. TensorFlow is imported inside the commands, so that `--help` does not wait for it.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import signal
import sys
import textwrap
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines import CorpusError

_PRESETS = (
    "The settings to start from. default: 256 units, attention, Adam, batches of 32, 26 epochs, 5% held out "
    "by a hash of the source. tutorial: those of the Keras tutorial, 256 units, RMSprop, batches of 70, 40 epochs, "
    "the first 10000 pairs, of them the last 20% held out."
)

_CORPUS = (
    "What to read: a file of tab-separated text (source TAB target), JSON Lines or TFRecord, plain or .gz; one in a "
    "zip (a.zip/b.tsv); two parallel files (a.en+a.es); a folder or a quoted glob of such; or a corpus by name: "
    "phrasebook, spa-eng. Several are read together."
)
_EXTRAS = {"matplotlib": "plots"}  # a package that not everyone needs, and the extra it comes with

Corpus = Annotated[list[str], typer.Argument(metavar="CORPUS...", help=_CORPUS)]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE,TARGET",
        help="The columns or JSON keys to read: two names (which tab-separated text has in its first line) or two "
        "numbers from 1. Default: 1,2, or source,target.",
    ),
]
Reverse = Annotated[bool, typer.Option("--reverse", help="Swap source and target.")]
OnBadLine = Annotated[
    Literal["error", "skip"],
    typer.Option(help="What to do with a line that has too few columns, an empty side or invalid UTF-8."),
]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Leave out pairs with a side of more characters.")]
MaxRatio = Annotated[float | None, typer.Option(min=1, help="Leave out pairs with one side so many times longer.")]
DropDuplicates = Annotated[bool, typer.Option("--drop-duplicates", help="Leave out pairs that came shortly before.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train sequence-to-sequence models on pairs of texts, and translate with them.",
)


def main():
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    app()


@contextlib.contextmanager
def _exit_codes(tensorflow=True):
    """Says on stderr what went wrong, without a traceback where the input is to blame, and exits accordingly."""
    try:
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
    except CorpusError as error:
        typer.echo(f"seq2seq: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:  # a full or read-only disk
        typer.echo(f"seq2seq: {error}", err=True)
        raise typer.Exit(1) from None
    except ValueError as error:
        from seq2seq.training import RunError

        if not isinstance(error, RunError):
            raise
        typer.echo(f"seq2seq: {error}", err=True)
        raise typer.Exit(2) from None


def start_tensorflow():
    """Imports TensorFlow without the page of start-up log that its C++ side writes to stderr, and sets its threads."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # heeded only once it has started, hence the rest
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        import tensorflow as tf
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    # The operations of a recurrent step are small: two side by side are faster than one divided among all cores. The
    # setting is the whole process's and must come before its first operation, so it is not the library's to make.
    cores = os.cpu_count() or 1
    tf.config.threading.set_intra_op_parallelism_threads(max(1, cores // 2))
    tf.config.threading.set_inter_op_parallelism_threads(cores)


@app.command()
@_exit_codes()
def train(
    corpus: Corpus = ["phrasebook"],  # noqa: B006 (typer copies it)
    preset: Annotated[Literal["default", "tutorial"], typer.Option(help=_PRESETS)] = "default",
    out: Annotated[Path | None, typer.Option(help="The run folder to make (default: runs/NAME-OF-CORPUS).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the corpus.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first pairs of the corpus.")] = None,
    columns: Columns = None,
    reverse: Reverse = False,
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="How often to draw from each CORPUS, relative to the others.")
    ] = None,
    on_bad_line: OnBadLine = "error",
    max_length: MaxLength = None,
    max_ratio: MaxRatio = None,
    drop_duplicates: DropDuplicates = False,
    min_frequency: Annotated[int, typer.Option(min=1, help="Leave rarer tokens out of the vocabulary.")] = 1,
    max_vocabulary: Annotated[int | None, typer.Option(min=1, help="Tokens in a vocabulary, at most.")] = None,
    units: Annotated[int | None, typer.Option(min=1, help="Size of the recurrent state.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pairs in a batch.")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens in a batch, padding included, in place of --batch-size.")
    ] = None,
    encoding: Annotated[
        Literal["one_hot", "ids"], typer.Option(help="What batches hold; it trains the same.")
    ] = "one_hot",
    learning_rate: Annotated[float | None, typer.Option(min=0, help="Step size, at the start.")] = None,
    seed: Annotated[int | None, typer.Option(help="For another random start and order.")] = None,
):
    """Train a model on pairs of texts and keep it in a run folder, whose path is printed at the end.

    Example: seq2seq train my-pairs.tsv --out runs/mine --epochs 20
    """
    from seq2seq.training import PRESETS, Config
    from seq2seq.training import train as run

    given = {
        "limit": limit,
        "epochs": epochs,
        "units": units,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    config = Config(
        corpus=corpus[0] if len(corpus) == 1 else tuple(corpus),
        columns=_columns(columns),
        reverse=reverse,
        weights=weights and tuple(_number(weight, "--weights") for weight in weights.split(",")),
        on_bad_line=on_bad_line,
        max_length=max_length,
        max_ratio=max_ratio,
        drop_duplicates=drop_duplicates,
        min_frequency=min_frequency,
        max_vocabulary=max_vocabulary,
        batch_tokens=batch_tokens,
        encoding=encoding,
        **PRESETS[preset],
    )
    config = dataclasses.replace(config, **{name: value for name, value in given.items() if value is not None})
    folder = out or Path("runs") / (re.sub(r"[^\w-]+", "-", Path(corpus[0]).name.split(".")[0]).strip("-") or "corpus")
    run(config, folder, overwrite, callbacks=[_progress()], progress=_reading(), report=_print_report)
    typer.echo(f'Translate with:  seq2seq translate {folder} "TEXT"', err=True)
    typer.echo(folder)


def _columns(text):
    """The columns of `--columns`: names, or numbers where both are."""
    if text is None:
        return None
    columns = tuple(text.split(","))
    return tuple(map(int, columns)) if all(column.isdigit() for column in columns) else columns


def _number(text, option):
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number", param_hint=option) from None


def _reading():
    """A function that shows on a terminal how many pairs have been read, four times a second."""
    shown = time.monotonic()

    def show(pairs):
        nonlocal shown
        if _tty() and time.monotonic() > shown + 0.25:
            shown = time.monotonic()
            typer.echo(f"\r\033[K{pairs:,} pairs read", err=True, nl=False)

    return show


def _print_report(report):
    if _tty():
        typer.echo("\r\033[K", err=True, nl=False)  # over the number of pairs read
    if report.dropped:
        typer.echo(str(report), err=True)


def _progress():
    """A Keras callback that shows training on stderr: a bar in each epoch, then its figures and a few translations."""
    import keras

    class Progress(keras.callbacks.Callback):
        held_out = ()

        def on_epoch_begin(self, epoch, logs=None):
            self.started = time.monotonic()
            label = f"Epoch {epoch + 1}/{self.params['epochs']}"
            self.bar = typer.progressbar(length=self.params["steps"], label=label, file=sys.stderr, hidden=not _tty())

        def on_train_batch_end(self, batch, logs=None):
            self.bar.update(1)

        def on_epoch_end(self, epoch, logs=None):
            if _tty():
                typer.echo("\r\033[K", err=True, nl=False)  # the figures take the bar's line
            line = f"Epoch {epoch + 1}/{self.params['epochs']}  {_figures(logs, '')}"
            if "val_loss" in logs:
                line += f"  |  held out: {_figures(logs, 'val_')}"
            typer.echo(f"{line}  |  {time.monotonic() - self.started:.1f} s", err=True)
            translations = self.model.translate([source for source, _ in self.held_out]).numpy()
            for (source, target), translation in zip(self.held_out, translations, strict=True):
                typer.echo(f"    {source}  ->  {translation.decode()}   ({target})", err=True)

    return Progress()


def _figures(logs, side):
    return f"loss {logs[side + 'loss']:.3f}  accuracy {logs[side + 'accuracy']:.1%}"


@app.command()
@_exit_codes()
def translate(
    run: Annotated[Path, typer.Argument(help="The run folder that `seq2seq train` made.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="What to translate.")] = None,
):
    """Translate the TEXTs, or stdin line for line, to stdout.

    Example: cat questions.txt | seq2seq translate runs/phrasebook > answers.txt
    """
    from seq2seq.training import load_run

    model = load_run(run)
    if texts:
        _print_translations(model, [text.encode() for text in texts])
        return
    lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
    # Someone typing wants an answer after each line; a file is faster in blocks.
    block_size = 1 if sys.stdin.isatty() else 2048
    done = 0
    while block := list(itertools.islice(lines, block_size)):
        _print_translations(model, block)
        done += len(block)
        if _tty() and not sys.stdin.isatty():
            typer.echo(f"\r{done:,} lines", err=True, nl=False)
    if done and _tty() and not sys.stdin.isatty():
        typer.echo(err=True)


def _print_translations(model, texts):
    sys.stdout.buffer.writelines(translation + b"\n" for translation in model.translate(texts).numpy())
    sys.stdout.buffer.flush()


@app.command()
@_exit_codes()
def inspect(
    corpus: Corpus = ["phrasebook"],  # noqa: B006
    columns: Columns = None,
    reverse: Reverse = False,
    max_length: MaxLength = None,
    max_ratio: MaxRatio = None,
    drop_duplicates: DropDuplicates = False,
    histogram: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Draw the lengths into a .png, .svg or .pdf file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
):
    """Show what a corpus holds: pairs, tokens, lengths, and the lines that cannot be used.

    Example: seq2seq inspect my-pairs.tsv --histogram lengths.png
    """
    from pipelines import CharTokenizer, Report, corpus_errors, damaged_shards, read_pairs, survey

    for folder in corpus:
        if damaged := damaged_shards(folder):
            raise CorpusError(f"{folder}: {', '.join(damaged)}: not what manifest.json says; shuffle the corpus again")
    if histogram:
        from seq2seq.pictures import draw_lengths

        if histogram.suffix not in (".png", ".svg", ".pdf"):
            raise typer.BadParameter(f"{histogram} does not end in .png, .svg or .pdf", param_hint="--histogram")
    report = Report()
    with corpus_errors():
        pairs = read_pairs(
            corpus,
            report=report,
            columns=_columns(columns),
            reverse=reverse,
            on_bad_line="skip",
            max_length=max_length,
            max_ratio=max_ratio,
            drop_duplicates=drop_duplicates,
        )
        found = survey(pairs, CharTokenizer(), CharTokenizer(), _reading())
    _print_report(report)
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
    for side, tokens in zip(("source", "target"), found.tokens, strict=True):
        counted = [f"{_visible(token.decode())}\xa0{count:,}" for token, count in tokens.most_common()]
        typer.echo(f"\n{side} tokens, the most frequent first:")
        typer.echo(textwrap.fill("  ".join(counted), 100).replace("\xa0", " "))


_QUANTILES = {"shortest": 0, "5% up to": 0.05, "median": 0.5, "95% up to": 0.95, "99% up to": 0.99, "longest": 1}


def _visible(token):
    """A token as it can be seen: a space as ␣, other invisible characters by their numbers."""
    return "".join(c if c.isprintable() and c != " " else "␣" if c == " " else f"U+{ord(c):04X}" for c in token)


@app.command()
@_exit_codes(tensorflow=False)
def shuffle(
    corpus: Corpus,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of shards to make.")],
    shards: Annotated[int, typer.Option(min=1, help="Files to write.")] = 16,
    format: Annotated[Literal["gzip", "tfrecord"], typer.Option(help="Tab-separated text or TFRecord.")] = "gzip",
    seed: Annotated[int, typer.Option(help="For another order.")] = 0,
    columns: Columns = None,
    reverse: Reverse = False,
    on_bad_line: OnBadLine = "error",
    max_length: MaxLength = None,
    max_ratio: MaxRatio = None,
    drop_duplicates: DropDuplicates = False,
):
    """Shuffle a corpus that does not fit in memory, on disk, into a folder of shards to train on.

    Needs disk space for the corpus, uncompressed, and for the shards. Prints the folder.

    Example: seq2seq shuffle corpus.en+corpus.es shuffled --shards 64 --max-length 200
    """
    from pipelines import Report, shuffle_corpus

    if format == "tfrecord":
        start_tensorflow()
    report = Report()
    shuffle_corpus(
        corpus,
        folder,
        shards,
        format,
        seed,
        report,
        _reading(),
        columns=_columns(columns),
        reverse=reverse,
        on_bad_line=on_bad_line,
        max_length=max_length,
        max_ratio=max_ratio,
        drop_duplicates=drop_duplicates,
    )
    _print_report(report)
    typer.echo(folder)


def _tty():
    return sys.stderr.isatty()
