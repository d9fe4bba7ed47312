"""Lines of text files, plain or compressed, and of standard input."""

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

from pipelines.files import COMPRESSED, CorpusError, open_bytes

# How files in other formats begin.
_FIRST_BYTES = {
    rb"\xff\xfe|\xfe\xff|(?:[\t\n\r -~]\0){4}|(?:\0[\t\n\r -~]){4}": "UTF-16; save it as UTF-8",
    rb"\x1f\x8b": "compressed with gzip; rename it to end in .gz",
    rb"BZh[1-9]1AY&SY": "compressed with bzip2; rename it to end in .bz2",
    rb"\xfd7zXZ\0": "compressed with xz; rename it to end in .xz",
    rb"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first: zstd -d",
    rb"7z\xbc\xaf|Rar!\x1a|(?s:.{257})ustar[\0 ]": "an archive; unpack it first",
    rb"PK\x03\x04": "a zip archive or an office document; rename it to end in .zip, or save it as UTF-8 text",
    rb"PAR1[\0-\x08\x0e-\x1f]": "Parquet; save it as JSON Lines",
}


def read_lines(path: Path | None) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of a text file, without line ends and byte order mark.

    Only LF ends a line, with any number of CR before it.

    Args:
        path: the file, plain, compressed or in a zip; None for standard input.

    Raises:
        CorpusError: if it cannot be read, is damaged, is not UTF-8 text, or has lines that end in CR alone.
    """
    number, name = 0, path or "standard input"
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    _check_first_line(name, line)
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, line.removesuffix(b"\n").rstrip(b"\r")
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno:  # the errors of gzip and bz2 have no number
            raise CorpusError(f"{name}: {error.strerror}") from None
        raise CorpusError(f"{name}: damaged or cut short after {number:,} lines ({error})") from None
    except RuntimeError as error:  # a zip that is encrypted, or compressed by a method that Python does not know
        raise CorpusError(f"{name}: {error}") from None


def _check_first_line(name, line):
    for first, what in _FIRST_BYTES.items():
        if re.match(first, line):
            raise CorpusError(f"{name}: {what}")
    if b"\r" in line.rstrip(b"\r\n") and not line.endswith(b"\n"):
        raise CorpusError(f"{name}, line 1: ends in CR alone, like the lines after it; convert them to LF or CRLF")


@contextlib.contextmanager
def _open(path):
    """Open a plain file, a compressed one, a member of a zip or, for None, standard input for reading lines."""
    global _standard_input
    if path is None:
        if sys.stdin is None:
            raise CorpusError("standard input is closed")
        if _standard_input is None or _standard_input.file is not sys.stdin.buffer:
            _standard_input = _StandardInput(sys.stdin.buffer)
        yield _standard_input
        return
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_bytes(path))
        if decompress := COMPRESSED.get(path.suffix.lower()):
            file = stack.enter_context(decompress(file))
        yield io.BufferedReader(file, 1 << 18)


class _StandardInput:
    """The lines of standard input, each available as soon as it is written."""

    def __init__(self, file):
        self.file, self.begun, self.ended = file, False, False
        self.lines, self.rest = collections.deque[bytes](), bytearray()  # whole lines, and the start of the next

    def __iter__(self):
        if self.begun:
            raise CorpusError("standard input can be read only once; save it to a file")
        self.begun = True
        while not self.ended or self.lines:
            if self.lines:
                yield self.lines.popleft()
            else:
                self.read()

    def read(self):
        """Read the bytes that are there, or wait for some."""
        block = self.file.read1(1 << 16)
        self.rest += block
        if not block:
            self.ended = True
            self.lines.extend([bytes(self.rest)] if self.rest else [])
        elif b"\n" in block:
            *lines, self.rest = self.rest.split(b"\n")
            self.lines.extend(bytes(line) + b"\n" for line in lines)

    def has_line(self):
        """Whether the next line, or the end, can be read without waiting."""
        while not (self.lines or self.ended):
            try:
                if not select.select([self.file], [], [], 0)[0]:
                    return False
            except (OSError, ValueError):  # a pipe on Windows, or a file without a descriptor
                return False
            self.read()
        return True


_standard_input: _StandardInput | None = None


def line_waits() -> bool:
    """Whether the next line of standard input can be read without waiting; True if standard input is not read."""
    return _standard_input is None or _standard_input.has_line()


def as_line(text: bytes, columns: int = 1) -> bytes:
    """Write a text as one line: each tab and each line break becomes a space.

    Line breaks are all those of Unicode and `str.splitlines`, so that every program counts the same lines.

    Args:
        text: UTF-8.
        columns: how many columns the text has. The tabs between them stay.
    """
    return b"\t".join(_BREAK.sub(b" ", column) for column in text.split(b"\t", columns - 1))


# CRLF; tab, LF, VT, FF, CR; FS, GS, RS; and in UTF-8 U+0085, U+2028, U+2029
_BREAK = re.compile(rb"\r\n|[\t-\r\x1c-\x1e]|\xc2\x85|\xe2\x80[\xa8\xa9]")
