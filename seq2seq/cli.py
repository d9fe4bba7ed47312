"""The command line: `seq2seq train` and `seq2seq translate`. It parses, calls and prints.

A command's result goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed while running, 2 bad input or
usage, 130 and 143 interrupted. TensorFlow is imported inside the commands, so that `--help` does not wait for it.
"""

import contextlib
import dataclasses
import itertools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

_PRESETS = (
    "The settings to start from. default: 256 units, attention, Adam, batches of 64, 30 epochs, 5% held out "
    "by a hash of the source. tutorial: those of the Keras tutorial, 256 units, RMSprop, batches of 70, 40 epochs, "
    "the first 10000 pairs, of them the last 20% held out."
)

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
def _exit_codes():
    """Says on stderr what went wrong, without a traceback where the input is to blame, and exits accordingly."""
    try:
        start_tensorflow()
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader of our output has enough; keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError as error:
        from pipelines.corpora import CorpusError
        from seq2seq.training import RunError

        if not isinstance(error, CorpusError | RunError):
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
    corpus: Annotated[
        str,
        typer.Argument(help="A file with one `source TAB target` a line, or a corpus by name: phrasebook, spa-eng."),
    ] = "phrasebook",
    preset: Annotated[Literal["default", "tutorial"], typer.Option(help=_PRESETS)] = "default",
    out: Annotated[Path | None, typer.Option(help="The run folder to make (default: runs/NAME-OF-CORPUS).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the corpus.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first pairs of the corpus.")] = None,
    units: Annotated[int | None, typer.Option(min=1, help="Size of the recurrent state.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pairs in a batch.")] = None,
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
    config = Config(corpus=corpus, **PRESETS[preset])
    config = dataclasses.replace(config, **{name: value for name, value in given.items() if value is not None})
    folder = out or Path("runs") / Path(corpus).stem
    run(config, folder, overwrite, callbacks=[_progress()])
    typer.echo(f'Translate with:  seq2seq translate {folder} "TEXT"', err=True)
    typer.echo(folder)


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


def _tty():
    return sys.stderr.isatty()
