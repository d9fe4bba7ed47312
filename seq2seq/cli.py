"""The command line: `seq2seq train`, `translate`, `evaluate` and so on, see `seq2seq.commands`.

A command's result goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed while running, 2 bad input or
usage, 130 and 143 interrupted.
"""

import contextlib
import importlib.metadata
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
import typer.core

from pipelines import CorpusError, OptionError
from pipelines.options import MissingExtra
from seq2seq.commands.corpora import inspect, shuffle
from seq2seq.commands.evaluate import compare, evaluate
from seq2seq.commands.experiments import sweep, table
from seq2seq.commands.runs import average, demo, export, plot
from seq2seq.commands.terminal import say
from seq2seq.commands.train import train
from seq2seq.commands.translate import score, translate
from seq2seq.records import RunError
from seq2seq.startup import start_tensorflow


class _Command(typer.core.TyperCommand):
    """A command whose help lists its options by their panels, in plain text: in the tables that Typer draws by default,
    a description has 19 of 80 columns."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            name, text = parameter.get_help_record(ctx) or ("", "")
            if parameter.param_type_name == "argument":
                sections["Arguments"].append((name.split()[0], text))  # without its Python type
            else:
                title = getattr(parameter, "rich_help_panel", None) or "Options"
                sections.setdefault(title, []).append((name.replace(" range>", ">"), text))
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=24)


class _Commands(typer.core.TyperGroup):
    """The commands, each with its whole first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(200)) for name, command in self.commands.items()])


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
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
    """Take the options before the command."""


def main() -> None:
    """Entry point of the console script."""
    _set_streams()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    app(prog_name="seq2seq")  # also for `python -m seq2seq`, whose own name no shell can complete


def _set_streams():
    """Make stdout and stderr UTF-8 in every locale, and keep files that are opened later from taking the place of a
    closed stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


@contextlib.contextmanager
def _exit_codes(tensorflow: bool = True, trains: bool = False) -> Iterator[None]:
    """Run a command: print expected errors in one line without a traceback, and exit with the code of each."""
    try:
        if sys.stdout is None:
            raise OptionError("standard output is closed, but results go there; redirect it to a file or to /dev/null")
        if tensorflow:
            start_tensorflow(trains)
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("Interrupted.")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader of the output has enough; keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MemoryError, OSError) as error:  # OSError: such as a full or read-only disk
        say(f"seq2seq: {str(error) or 'out of memory'}")
        raise typer.Exit(1) from None
    except (CorpusError, MissingExtra, OptionError, RunError) as error:
        say(f"seq2seq: {error}")
        raise typer.Exit(2) from None


_COMMANDS = (inspect, shuffle, train, sweep, table, plot, average, translate, score, evaluate, compare, export, demo)
for _command in _COMMANDS:
    # `shuffle` starts it if it writes TFRecord, `translate` if the model is not an export.
    _run = _exit_codes(_command not in (shuffle, translate), _command is train)(_command)
    app.command(cls=_Command)(_run)
