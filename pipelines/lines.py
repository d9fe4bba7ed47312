"""Lines of text files and of standard input, unpacked."""

import collections
import contextlib
import io
import lzma
import re
import select
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.files import COMPRESSED, CorpusError, archive_of

# First bytes of what is no UTF-8 text, whatever its name: they can stand at the beginning of no such text.
_FIRST_BYTES = {
    rb"\xff\xfe|\xfe\xff|(?:[\t\n\r -~]\0){4}|(?:\0[\t\n\r -~]){4}": "UTF-16; save it as UTF-8",
    rb"\x1f\x8b": "compressed by gzip; let its name end in .gz",
    rb"BZh[1-9]1AY&SY": "compressed by bzip2; let its name end in .bz2",
    rb"\xfd7zXZ\0": "compressed by xz; let its name end in .xz",
    rb"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first: zstd -d",
    rb"7z\xbc\xaf|Rar!\x1a|(?s:.{257})ustar": "an archive; unpack it first",
    rb"PK\x03\x04": "a zip archive or an office document; let its name end in .zip, or save it as UTF-8 text",
    rb"PAR1[\0-\x1f]": "Parquet; save it as JSON Lines",
}


def read_lines(path: Path | None) -> Iterator[tuple[int, bytes]]:
    """Yields (number, line) of a text file, as `find_shards` names one, without line ends and byte order mark.

    Only LF ends a line, with any number of CR before it.

    Args:
        path: the file; None for standard input.

    Raises:
        CorpusError: if it cannot be read, is damaged, no UTF-8 text, or has lines that end in CR alone.
    """
    number, name = 0, path or "standard input"
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    _see_that_it_is_text(name, line)
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, line.removesuffix(b"\n").rstrip(b"\r")
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno:  # gzip and bz2 give those of theirs no number
            raise CorpusError(f"{name}: {error.strerror}") from None
        raise CorpusError(f"{name}: damaged or cut short after {number:,} lines ({error})") from None
    except RuntimeError as error:  # of a zip, encrypted or packed by a method that Python does not know
        raise CorpusError(f"{name}: {error}") from None


def _see_that_it_is_text(name, line):
    """Refuses what can be told by a first line to be no lines of UTF-8 text."""
    for first, what in _FIRST_BYTES.items():
        if re.match(first, line):
            raise CorpusError(f"{name}: {what}")
    if b"\r" in line.rstrip(b"\r\n") and not line.endswith(b"\n"):
        raise CorpusError(f"{name}, line 1: ends in CR alone, as do those after it; write LF or CRLF")


@contextlib.contextmanager
def _open(path):
    """Opens a plain file, a compressed one or a member of a zip for reading lines of bytes; None is standard input."""
    global _incoming
    if path is None:
        if sys.stdin is None:
            raise CorpusError("standard input is closed")
        if _incoming is None or _incoming.file is not sys.stdin.buffer:
            _incoming = _Incoming(sys.stdin.buffer)
        yield _incoming
        return
    archive = archive_of(path)
    with contextlib.ExitStack() as stack:
        if archive:
            member = stack.enter_context(zipfile.ZipFile(archive)).open(path.relative_to(archive).as_posix())
            file: Any = stack.enter_context(member)  # it has no type in common with the others
        else:
            file = stack.enter_context(path.open("rb"))
        if decompress := COMPRESSED.get(path.suffix.lower()):
            file = stack.enter_context(decompress(file))
        yield io.BufferedReader(file, 1 << 18)


class _Incoming:
    """The lines of standard input: they are given out as soon as they are there."""

    def __init__(self, file):
        self.file, self.ended = file, False
        self.lines, self.rest = collections.deque[bytes](), bytearray()  # whole lines, and the beginning of the next

    def __iter__(self):
        return self

    def __next__(self):
        while not self.lines:
            if self.ended:
                raise StopIteration
            self.read()
        return self.lines.popleft()

    def read(self):
        """Takes what is there; waits if that is nothing."""
        block = self.file.read1(1 << 16)
        self.rest += block
        if not block:
            self.ended = True
            self.lines.extend([bytes(self.rest)] if self.rest else [])
        elif b"\n" in block:
            *lines, self.rest = self.rest.split(b"\n")
            self.lines.extend(bytes(line) + b"\n" for line in lines)

    def waits(self):
        """Whether the next line, or the end, is there already."""
        while not (self.lines or self.ended):
            try:
                if not select.select([self.file], [], [], 0)[0]:
                    return False
            except (OSError, ValueError):  # a pipe on Windows, or nothing with a descriptor
                return False
            self.read()
        return True


_incoming: _Incoming | None = None


def line_waits() -> bool:
    """Whether the next line of standard input can be read without waiting for who writes it; True if none reads it."""
    return _incoming is None or _incoming.waits()


def as_line(text: bytes, columns: int = 1) -> bytes:
    """A text as it stands in a line, or in a column of one: each tab and each line break in it is a space.

    Line breaks are all that Unicode and `str.splitlines` know, so that every program counts the same lines. The tabs
    between so many columns stay.
    """
    return b"\t".join(_BREAK.sub(b" ", column) for column in text.split(b"\t", columns - 1))


# CRLF; tab, LF, VT, FF, CR; FS, GS, RS; and in UTF-8 U+0085, U+2028, U+2029
_BREAK = re.compile(rb"\r\n|[\t-\r\x1c-\x1e]|\xc2\x85|\xe2\x80[\xa8\xa9]")
