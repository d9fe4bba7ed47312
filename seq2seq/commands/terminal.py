"""Messages of commands on stderr, and checks that output files can be written."""

import contextlib
import json
import math
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from pipelines import OptionError

SECONDS_BETWEEN_LINES = 60  # of progress, if stderr is not a terminal
_CLEAR = "\r\033[K"  # the terminal's line
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # without tabs and line breaks


def is_terminal() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr.isatty()


def say(text: str) -> None:
    """Write a line to stderr; on a terminal it replaces what `show` has written.

    Control characters are escaped: text from a corpus or a run could otherwise rewrite what the terminal shows.
    """
    text = _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)
    typer.echo(f"{_CLEAR}{text}" if is_terminal() else text, err=True)


def show(text: str) -> None:
    """Show a state on a terminal until the next line, cut to its width; show nothing elsewhere."""
    if is_terminal():
        typer.echo(f"{_CLEAR}{text[: shutil.get_terminal_size().columns - 1]}", err=True, nl=False)


def counter(what: str) -> Callable[[int], None]:
    """Return a function that shows a growing number: on a terminal at most four times a second, elsewhere in a line
    at most once a minute."""
    shown = time.monotonic()

    def count(number: int) -> None:
        nonlocal shown
        if time.monotonic() > shown + (0.25 if is_terminal() else SECONDS_BETWEEN_LINES):
            shown = time.monotonic()
            (show if is_terminal() else say)(f"{number:,} {what}")

    return count


def json_line(content: Any) -> str:
    """JSON on one line. Numbers are rounded to six decimals; one that is not finite is null."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        return (round(value, 6) if math.isfinite(value) else None) if isinstance(value, float) else value

    return json.dumps(plain(content), ensure_ascii=False, allow_nan=False)


@contextlib.contextmanager
def reporting(given: Mapping[str, Any]) -> Iterator[Any]:
    """Yield a `Report` to count in. At the end, even after an error, say which pairs were left out, and whether a
    column was not read, unless the options `given` name the columns."""
    from pipelines import Report

    report = Report()
    try:
        yield report
    finally:
        show("")  # removes the number of pairs read
        for text in report.notices("columns" in given):
            say(text)


def say_speed(count: int, seconds: float, loading: float) -> None:
    """Say how long translating and loading took."""
    rate = count / seconds if seconds else 0
    each = f", {rate:,.{0 if rate >= 10 else 1}f} per second" if seconds else ""
    say(f"{count:,} translated in {seconds:.1f} s{each}; loading took {loading:.1f} s")


def command_line(*arguments: Any) -> str:
    """The command `seq2seq` with these arguments, quoted for a shell."""
    return shlex.join(["seq2seq", *map(str, arguments)])


def check_picture(option: str, path: Path) -> None:
    """Check that a picture can be written, before the long computation whose result it shows."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"{path} does not end in .png, .svg or .pdf", param_hint=f"--{option}")
    check_writable(option, path)


def check_writable(option: str, path: Path, folder: bool = False) -> None:
    """Check that a file, or files in a folder, can be written, before the long computation of their content."""
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
