"""Readers: pairs of texts out of files of several formats, checked, cleaned and counted.

Plain Python, a pair at a time, in bounded memory and without TensorFlow; `corpora.read_pairs` makes a `tf.data.Dataset`
of it.
"""

import bz2
import collections
import contextlib
import dataclasses
import functools
import glob
import gzip
import hashlib
import io
import itertools
import json
import lzma
import math
import os
import random
import re
import select
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pipelines.options import check_number

if TYPE_CHECKING:
    import tensorflow as tf

# What `read_pairs` reads, and several such.
Corpus: TypeAlias = "str | os.PathLike[str] | Sequence[tuple[str | bytes, str | bytes]] | tf.data.Dataset"
Corpora: TypeAlias = "Corpus | Sequence[Corpus]"

_OPEN_FILES = 16  # read in turns where files are shuffled
_TURN = 256  # pairs taken from each of them in its turn
_DUPLICATE_WINDOW = 1 << 17  # pairs remembered at least, and twice as many at most
# Of the files in a folder, in small or capital letters. A `.json` there may be a manifest: it is read if it is named.
_ENDINGS = (".tsv", ".txt", ".csv", ".jsonl", ".ndjson", ".tfrecord", ".tfrecords")
_COMPRESSED: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# What is not read, and the command that makes files of it that are.
_PACKED = {".zst": "zstd -d", ".lz4": "lz4 -d", ".7z": "7z x", ".rar": "unrar x"}
_PACKED |= dict.fromkeys((".tar", ".tgz", ".tbz2", ".txz"), "tar -xf")

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

# Characters that cannot be seen: spaces of all kinds, control characters, and marks such as U+200B and U+FEFF. They
# are listed one by one since `lstrip`, which wants that, is several times faster than a regular expression.
_UNSEEN = r"[\s\0-\x1f\x7f-\x9f\xad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\u034f\u2800\u3164]"
_UNSEEN = "".join(re.findall(_UNSEEN, "".join(map(chr, (*range(0x3165), 0xFEFF)))))

# Why a pair is left out. The first three are faults of the text, and stop the reading unless told to skip.
COLUMNS, ENCODING, EMPTY = "wrong columns", "invalid UTF-8", "empty side"
LENGTH, RATIO, DUPLICATE = "too long", "length ratio", "duplicate"
NO_PAIR = "no pair"  # which is no fault, and counted only by `Reader.lines`
_EMPTY_LINE, _HEADER = "the line is empty", "the names of the columns"


class CorpusError(ValueError):
    """A corpus that cannot be read. The message names the file, the line where there is one, and what is wrong."""


@dataclasses.dataclass
class Report:
    """What one pass over a corpus has read, and what it left out and why."""

    pairs: int = 0
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # pairs by reason
    first: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # messages about the first three, by reason

    def drop(self, reason: str, message: str) -> None:
        self.dropped[reason] += 1
        if self.dropped[reason] <= 3:
            self.first.setdefault(reason, []).append(message)

    def __str__(self):
        lines = [f"{self.dropped.total():,} of {self.pairs + self.dropped.total():,} pairs left out"]
        for reason, count in self.dropped.most_common():
            lines.append(f"  {count:,} {reason}")
            lines += [f"    {message}" for message in self.first[reason]]
        return "\n".join(lines)


class Shard(NamedTuple):
    """One file, or parallel ones, or anything else that pairs come from.

    `rows` takes the columns to read, or None, and the names of the columns of a source. It yields (number of the line,
    source, target, what is wrong with its form or "") for each line, before any other check. They are plain tuples,
    since making one is all the work there is on many lines. A source of several columns has tabs between them.
    """

    name: str
    rows: Callable[[tuple | None, tuple[str, ...]], Iterator[tuple[int, bytes | None, bytes | None, str]]]
    unit: str = "line"
    files: tuple[Path, ...] = ()
    width: int | None = None  # how many columns it has, the target among them, where options do not say it


def check_columns(columns: Sequence[str] | Sequence[int]) -> None:
    """Sees that columns are names, or numbers counted from 1.

    Raises:
        CorpusError: if they are not, or fewer than two.
    """
    several = isinstance(columns, list | tuple) and len(columns) > 1
    named = several and all(isinstance(column, str) and column for column in columns)
    numbered = several and all(type(column) is int and column > 0 for column in columns)
    if not (named or numbered):
        raise CorpusError(f"columns={columns}: expected two names or more, or numbers counted from 1")


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the pairs of one corpus or several. The arguments are those of `read_pairs`, which explains them."""

    corpora: tuple[list[Shard], ...]
    columns: tuple | None = None
    source_columns: tuple[str, ...] | None = None
    reverse: bool = False
    weights: tuple[float, ...] | None = None
    on_bad_line: str = "error"
    max_length: int | None = None
    max_ratio: float | None = None
    drop_duplicates: bool = False
    shuffle_files: bool = False
    num_shards: int = 1
    index: int = 0

    def __post_init__(self):
        if self.on_bad_line not in ("error", "skip"):
            raise CorpusError(f"on_bad_line={self.on_bad_line!r}: expected 'error' or 'skip'")
        if not 0 <= self.index < self.num_shards:
            raise CorpusError(f"index={self.index}: expected 0 to {self.num_shards - 1}, num_shards being that many")
        if self.weights and not (
            len(self.weights) == len(self.corpora) and all(0 < w < math.inf for w in self.weights)
        ):
            raise CorpusError(f"weights={self.weights}: expected {len(self.corpora)} positive numbers, one a corpus")
        check_number("max_length", self.max_length, least=1, optional=True)
        check_number("max_ratio", self.max_ratio, float, least=1, optional=True)
        if self.columns is not None:
            check_columns(self.columns)
        wanted = len(self.sources) + 1
        if self.columns and len(self.columns) != wanted:
            raise CorpusError(
                f"columns={self.columns}: expected {wanted}, for {_between_tabs(*self.sources, 'target')}"
            )
        for shard in itertools.chain.from_iterable(self.corpora):
            width = shard.width or (wanted if self.columns or self.source_columns else 2)
            if width != wanted:
                unit = "parallel files" if shard.width else "columns"
                raise CorpusError(f"{shard.name}: {width} {unit}, expected {wanted}, the last of them the target")
        if self.reverse and wanted > 2:
            raise CorpusError(f"reverse=True: a source of {wanted - 1} columns cannot be the target")

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the columns of a source: one unless several columns, or more than two files, are read."""
        if self.source_columns:
            return tuple(self.source_columns)
        shards = itertools.chain.from_iterable(self.corpora)
        width = len(self.columns) if self.columns else max((shard.width or 2 for shard in shards), default=2)
        if width == 2:
            return ("source",)
        if self.columns and isinstance(self.columns[0], str):
            return tuple(self.columns[:-1])
        return tuple(f"source {number}" for number in range(1, width))

    def pairs(self, seed: int = 0, report: Report | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yields (source, target) byte strings, once through.

        Args:
            seed: decides the order of files where they are shuffled.
            report: a `Report` to count in.
        """
        report = Report() if report is None else report
        if self.weights:
            starts = [lambda report, shards=shards: self._corpus(shards, seed, report) for shards in self.corpora]
            return _mixed(starts, self.weights, report)
        return self._corpus([shard for corpus in self.corpora for shard in corpus], seed, report)

    def lines(self, report: Report) -> Iterator[tuple[bytes, bytes] | None]:
        """Yields something for each line of the corpora, in order: (source, target), or None if `pairs` leaves it out.

        Args:
            report: a `Report` to count in. It names empty lines, and those with the names of the columns, too.
        """
        for shard in itertools.chain.from_iterable(self.corpora):
            yield from self._clean(shard, report, every_line=True)

    def _corpus(self, shards, seed, report):
        by_file = len(shards) >= self.num_shards
        if by_file:
            shards = shards[self.index :: self.num_shards]
        parts = [self._clean(shard, report) for shard in shards]
        if not by_file:
            parts = [itertools.islice(part, self.index, None, self.num_shards) for part in parts]
        if not self.shuffle_files:
            return itertools.chain.from_iterable(parts)
        random.Random(seed).shuffle(parts)
        return _in_turns(parts)

    def _clean(self, shard, report, every_line=False):
        """Yields the pairs of a shard that pass every check and, with `every_line`, None for each other line."""
        recent, older = set[int](), set[int]()
        sources = self.sources
        several = len(sources) > 1
        for number, source, target, problem in shard.rows(self.columns, sources):
            if self.reverse:
                source, target = target, source
            if problem:
                reason = NO_PAIR if problem in (_EMPTY_LINE, _HEADER) else COLUMNS
            elif several and (problem := wrong_columns(source, sources)):
                reason = COLUMNS
            else:
                side = "source"
                try:
                    source_text = source.decode()
                    side = "target"
                    target_text = target.decode()
                except UnicodeDecodeError as error:
                    reason = ENCODING
                    problem = f"the {side} is not valid UTF-8 ({error.reason} at byte {error.start})"
                else:
                    lengths = len(source_text), len(target_text)
                    first = source_text.partition("\t")[0] if several else source_text
                    if not (first.lstrip(_UNSEEN) and target_text.lstrip(_UNSEEN)):
                        reason = EMPTY
                        empty = "target" if first.lstrip(_UNSEEN) else sources[0]
                        problem = f"the {empty} is empty"
            if problem:
                if reason == NO_PAIR and not every_line:
                    continue
                if reason != NO_PAIR and self.on_bad_line == "error":
                    raise CorpusError(f"{shard.name}, {shard.unit} {number}: {problem}")
            elif self.max_length and max(lengths) > self.max_length:
                reason, problem = LENGTH, f"{max(lengths)} characters"
            elif self.max_ratio and _ratio(lengths := (len(first), lengths[1])) > self.max_ratio:
                reason, problem = RATIO, f"{lengths[0]} to {lengths[1]} characters"
            elif self.drop_duplicates:
                key = hash((source, target))
                if key in recent or key in older:
                    reason, problem = DUPLICATE, "read before"
                elif len(recent) == _DUPLICATE_WINDOW:
                    recent, older = {key}, recent
                else:
                    recent.add(key)
            if problem:
                report.drop(reason, f"{shard.name}, {shard.unit} {number}: {problem}")
                if every_line:
                    yield None
                continue
            report.pairs += 1
            yield source, target


def _ratio(lengths):
    return max(lengths) / min(lengths)


def wrong_columns(source: bytes, names: tuple[str, ...]) -> str:
    """What is wrong with a source that has not these columns, between tabs; "" if it has."""
    found = source.count(b"\t") + 1
    wanted = f"expected {len(names)} columns: {_between_tabs(*names)}, found {found}"
    return "" if found == len(names) else wanted


def _between_tabs(*names):
    return " TAB ".join(names)


def _in_turns(parts):
    """Yields from several iterators, a block from each in turn, with a bounded number of files open at a time."""
    waiting = iter(parts)
    reading = list(itertools.islice(waiting, _OPEN_FILES))
    while reading:
        for part in list(reading):
            block = list(itertools.islice(part, _TURN))
            yield from block
            if len(block) < _TURN:
                reading.remove(part)
                reading.extend(itertools.islice(waiting, 1))


def _mixed(corpora, weights, report):
    """Yields from several corpora in proportion to their weights, evenly, until each has been read to its end once.

    The ones that are through sooner start over. Every pair is therefore read at least once, and how many are read does
    not depend on chance. (Smooth weighted round-robin, as in nginx.)
    """
    reading = [corpus(report) for corpus in corpora]
    credit = [0.0] * len(weights)
    to_finish = set(range(len(weights)))
    while True:
        for number, weight in enumerate(weights):
            credit[number] += weight
        chosen = max(range(len(weights)), key=credit.__getitem__)
        credit[chosen] -= sum(weights)
        pair = next(reading[chosen], None)
        if pair is None:
            to_finish.discard(chosen)
            if not to_finish:
                return
            reading[chosen] = corpora[chosen](Report())  # counted the first time
            pair = next(reading[chosen], None)
            if pair is None:
                raise CorpusError(f"corpus {chosen + 1} of the weighted ones has no pairs")
        yield pair


def open_corpora(corpus: Corpora, **options: Any) -> Reader:
    """A `Reader` of a corpus or of a list of such.

    Args:
        corpus: as `read_pairs` takes it.
        **options: the further arguments of `Reader`.
    """
    corpora = _several(corpus)
    if not len(corpora):
        raise CorpusError("corpus: an empty list; expected a corpus, or several")
    return Reader(tuple(map(find_shards, corpora)), **options)


def _several(corpus):
    """The corpora in a list of them, or the one that is no such list."""
    return corpus if isinstance(corpus, list | tuple) and not _holds_pairs(corpus) else [corpus]


def _holds_pairs(corpus):
    """Whether a list is one of pairs and not of corpora, to judge by the first of them."""
    first = next(iter(corpus), None)
    return isinstance(first, list | tuple) and not any(isinstance(side, list | tuple) for side in first)


def find_shards(corpus: Corpus) -> list[Shard]:
    """The shards of a corpus: a dataset, a list of pairs, `-` for standard input, a name, a file, a glob, a folder,
    parallel files `SOURCE-FILE+TARGET-FILE` (of which all but the last are of the source), or a member of a zip.

    Names are strings: a `Path` is always that of a file.

    Raises:
        CorpusError: if there is nothing of that name, it is of a kind that is not read, or a zip holds several files
            and none is chosen.
    """
    if not isinstance(corpus, str | os.PathLike):
        return [_memory_shard(corpus)]
    text = os.fspath(corpus)
    if corpus == "-":
        return [Shard("standard input", functools.partial(_tab_rows, None))]
    if isinstance(corpus, str) and corpus in NAMED_CORPORA:
        text = os.fspath(NAMED_CORPORA[corpus]())
    names = _sides(text)
    sides = [_expand(side, text) for side in names]
    if len(sides) == 1:
        return [_file_shard(path) for path in sides[0]]
    if len(set(map(len, sides))) != 1:
        raise CorpusError(f"{text}: {' and '.join(str(len(side)) for side in sides)} files; expected equally many")
    return [_parallel_shard(files) for files in zip(*sides, strict=True)]


def as_seen_from(directory: str | os.PathLike[str], corpus: str) -> str:
    """A corpus as written for a process in that directory, so written that this process finds it."""
    if corpus in NAMED_CORPORA:
        return corpus
    return "+".join(os.path.join(directory, side) for side in _sides(corpus, directory))


def _sides(text, directory=""):
    """The paths or globs in `A+B`. Where something is there whose name has a `+` in it, that is no such sign."""
    parts, sides = text.split("+"), []
    while parts:
        starts = (count for count in range(len(parts), 1, -1) if _is_there(directory, "+".join(parts[:count])))
        count = next(starts, 1)
        sides.append("+".join(parts[:count]))
        del parts[:count]
    return sides


def _is_there(directory, name):
    path = Path(directory, name)
    if archive := _archive(path):
        return path == archive or path.relative_to(archive).as_posix() in _members(archive)
    return os.path.exists(path) or bool(glob.glob(str(path), recursive=True))


def checksums(corpus: Corpora) -> dict[str, str]:
    """What the files of a corpus hold: {path: sha256 in hexadecimal}, in the order read, a zip counted as a whole.

    Raises:
        CorpusError: for standard input and pipes, which are gone once they are read.
    """
    shards = [shard for one in _several(corpus) for shard in find_shards(one)]
    for shard in shards:
        if not shard.files:
            raise CorpusError(f"{shard.name} can be read only once, and training reads a corpus many times; use a file")
    names = [name for shard in shards for name in shard.files]
    return {str(name): sha256(name) for name in dict.fromkeys(_archive(name) or name for name in names)}


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _expand(text, corpus):
    """The files that a path, a glob or a folder stands for, in the order of their names."""
    if not text:
        raise CorpusError(f"corpus={corpus!r}: an empty name; the current folder is .")
    path = Path(text)
    if os.path.isdir(path):
        paths = sorted(p for p in path.iterdir() if _plain_name(p).endswith(_ENDINGS) and not p.name.startswith("."))
        if not paths:
            packed = ", ".join(_COMPRESSED)
            raise CorpusError(f"{path}: no file in this folder ends in {', '.join(_ENDINGS)} (or these with {packed})")
        for name in read_manifest(path).get("shards", ()):
            if path / name not in paths:
                raise CorpusError(f"{path / name}: missing, though {path / 'manifest.json'} lists it")
        return paths
    if os.path.exists(path) or _archive(path):
        return [_member(path)]
    found = sorted(Path(name) for name in glob.glob(text, recursive=True) if not os.path.isdir(name))
    if not found:
        named = "" if os.sep in text else f"; the built-in corpora are {', '.join(NAMED_CORPORA)}"
        part = "" if text == corpus else f" (of {corpus})"
        raise CorpusError(f"{path}: No such file or folder{part}{named}")
    return [_member(path) for path in found]


def read_manifest(folder: Path | str) -> dict:
    """What `shuffle_corpus` has written of a folder; nothing for folders that it has not made."""
    path = Path(folder) / "manifest.json"
    if not os.path.isfile(path):
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: cannot be read ({error})") from None
    ours = isinstance(found, dict) and isinstance(found.get("shards"), dict) and "lengths" in found
    return found if ours else {}


def _plain_name(path):
    """The name of a file without the ending that says how it is compressed, in small letters."""
    name, ending = os.path.splitext(path.name.lower())
    return name if ending in _COMPRESSED or ending in _PACKED else name + ending


def _archive(path):
    """The zip file that a path leads into, or None."""
    return next((p for p in (path, *path.parents) if p.suffix.lower() == ".zip" and os.path.isfile(p)), None)


def _members(archive):
    """The names of the files in a zip, but for what macOS adds."""
    try:
        with zipfile.ZipFile(archive) as file:
            return [name for name in file.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    except (OSError, zipfile.BadZipFile) as error:
        raise CorpusError(f"{archive}: {error}") from None


def _member(path):
    """Completes the path of a zip with its only member; other paths stay as they are."""
    archive = _archive(path)
    if archive is None:
        return path
    names = _members(archive)
    if path == archive and len(names) == 1:
        return archive / names[0]
    if path == archive or path.relative_to(archive).as_posix() not in names:
        raise CorpusError(f"{path}: which of its files? {', '.join(f'{archive}/{name}' for name in names)}")
    return path


def _file_shard(path):
    name, ending = _plain_name(path), path.suffix.lower()
    if unpack := _PACKED.get(ending) or _PACKED.get(os.path.splitext(name)[1]):
        raise CorpusError(f"{path}: is not read as it is; unpack it first: {unpack}")
    if name.endswith((".tfrecord", ".tfrecords")):
        if ending in _COMPRESSED and ending != ".gz":
            raise CorpusError(f"{path}: TFRecord is read plain or with .gz")
        return Shard(str(path), functools.partial(_tfrecord_rows, path), "record", _files(path))
    rows = _json_rows if name.endswith((".jsonl", ".ndjson", ".json")) else _tab_rows
    return Shard(str(path), functools.partial(rows, path), files=_files(path))


def _parallel_shard(paths):
    shards = [_file_shard(path) for path in paths]
    name = "+".join(shard.name for shard in shards)
    files = paths if all(shard.files for shard in shards) else ()
    return Shard(name, functools.partial(_parallel_rows, paths), files=files, width=len(paths))


def _files(path):
    """The path where it can be read again, which that of a pipe cannot."""
    return (path,) if os.path.isfile(_archive(path) or path) else ()


def _memory_shard(corpus):
    """A shard of what is no file: a `tf.data.Dataset` of (source, target) scalar strings, or a list of such pairs."""
    if hasattr(corpus, "element_spec"):
        spec = corpus.element_spec
        sides: tuple[Any, ...] = spec if isinstance(spec, tuple) and len(spec) == 2 else (None,)
        if not all(hasattr(side, "dtype") and side.dtype == "string" and not side.shape.rank for side in sides):
            raise CorpusError(f"corpus: a dataset of {spec}; expected one of (source, target) scalar strings")
        return Shard("dataset", functools.partial(_dataset_rows, corpus), "pair")
    if isinstance(corpus, list | tuple) and _holds_pairs(corpus):
        return Shard("list", functools.partial(_pair_rows, corpus), "pair")
    raise CorpusError(
        f"corpus: {type(corpus).__name__} is not read; expected a path, the name of a corpus, a list of (source, "
        "target) texts, as list(zip(sources, targets)) makes, or a tf.data.Dataset of them, as its from_generator does"
    )


def _dataset_rows(dataset, *_):
    numbers = itertools.count(1)
    for sources, targets in dataset.batch(4096).as_numpy_iterator():
        for source, target in zip(sources, targets, strict=True):
            yield next(numbers), source, target, ""


def _pair_rows(pairs, *_):
    for number, pair in enumerate(pairs, start=1):
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str | bytes) for text in pair):
            source, target = (text if isinstance(text, bytes) else _encoded(text) for text in pair)
            yield number, source, target, ""
        else:
            yield number, None, None, f"expected two texts, found {pair!r:.80}"


def _encoded(text):
    """A string as UTF-8, in which a lone surrogate, which strings and JSON can hold, stays the fault that it is."""
    return text.encode(errors="surrogatepass")


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
    archive = _archive(path)
    with contextlib.ExitStack() as stack:
        if archive:
            member = stack.enter_context(zipfile.ZipFile(archive)).open(path.relative_to(archive).as_posix())
            file: Any = stack.enter_context(member)  # it has no type in common with the others
        else:
            file = stack.enter_context(path.open("rb"))
        if decompress := _COMPRESSED.get(path.suffix.lower()):
            file = stack.enter_context(decompress(file))
        yield io.BufferedReader(file, 1 << 18)


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


def as_line(text: bytes, columns: int = 1) -> bytes:
    """A text as it stands in a line, or in a column of one: each tab and each line break in it is a space.

    Line breaks are all that Unicode and `str.splitlines` know, so that every program counts the same lines. The tabs
    between so many columns stay.
    """
    return b"\t".join(_BREAK.sub(b" ", column) for column in text.split(b"\t", columns - 1))


# CRLF; tab, LF, VT, FF, CR; FS, GS, RS; and in UTF-8 U+0085, U+2028, U+2029
_BREAK = re.compile(rb"\r\n|[\t-\r\x1c-\x1e]|\xc2\x85|\xe2\x80[\xa8\xa9]")


def _tab_rows(path, columns, sources):
    lines = read_lines(path)
    default = columns is None
    places = list(range(len(sources) + 1))
    if columns and isinstance(columns[0], str):
        _, header = next(lines, (1, b""))
        names = header.decode(errors="replace").split("\t")
        for name in columns:
            if name not in names:
                there = ", ".join(map(repr, names))
                raise CorpusError(f"{path or 'standard input'}, line 1: no column is called {name!r}, but {there}")
        places = [names.index(name) for name in columns]
        yield 1, None, None, _HEADER
    elif columns:
        places = [number - 1 for number in columns]
    first, *more, last = places
    least, most = max(places) + 1, sys.maxsize
    wanted = f"columns {columns}"
    if default:
        least, most = len(places), 3 if len(places) == 2 else len(places)
        wanted = _between_tabs(*sources, "target") + " (and at most one more column)" * (most > least)
    for number, line in lines:
        found = line.split(b"\t")
        if not line:
            yield number, None, None, _EMPTY_LINE
        elif not least <= len(found) <= most:
            problem = f"expected {wanted}, found {'no tab' if len(found) == 1 else f'{len(found)} columns'}"
            yield number, None, None, problem
        else:
            source = b"\t".join([found[first], *(found[place] for place in more)]) if more else found[first]
            yield number, source, found[last], ""


def _json_rows(path, columns, _):
    keys = _keys(columns)
    for number, line in read_lines(path):
        if not line:
            yield number, None, None, _EMPTY_LINE
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, None, None, f"not JSON ({error})"
            continue
        sides: list[Any] = [_under(key, entry) for key in keys]
        missing = [key for key, side in zip(keys, sides, strict=True) if not isinstance(side, str)]
        if missing:
            there = ", ".join(_texts_in(entry))
            problem = f"no text under the key {missing[0]!r}" + f", but under {there}" * bool(there)
            yield number, None, None, problem
        else:
            *before, target = map(_encoded, sides)
            yield number, b"\t".join(before), target, ""


def _under(key, entry):
    """What an object of JSON holds under a key; under `a.b`, if it has no such key, what `a` holds under `b`."""
    if not isinstance(entry, dict) or key in entry:
        return entry.get(key) if isinstance(entry, dict) else None
    first, _, rest = key.partition(".")
    return _under(rest, entry.get(first)) if rest else None


def _texts_in(entry, outer=""):
    """The keys of an object of JSON that hold texts, those of an object in it with a dot before."""
    for key, value in entry.items() if isinstance(entry, dict) else ():
        if isinstance(value, str):
            yield outer + key
        elif not outer:
            yield from _texts_in(value, f"{key}.")


def _keys(columns):
    """The keys of a record that hold the texts: numbers, where columns are counted, are the keys "1", "2" and so on."""
    return [str(column) for column in columns or ("source", "target")]


def _parallel_rows(paths, *_):  # they have no columns
    files = [read_lines(path) for path in paths]
    for rows in itertools.zip_longest(*files):
        if None in rows:
            longest = max(row for row in rows if row)[0]
            counts = [
                longest + sum(1 for _ in file) if row else longest - 1 for row, file in zip(rows, files, strict=True)
            ]
            shorter = rows.index(None)
            other = next(place for place, count in enumerate(counts) if count != counts[shorter])
            one, two = sorted((shorter, other))
            raise CorpusError(
                f"{paths[one]} has {counts[one]:,} lines and {paths[two]} {counts[two]:,}; they must have equally many"
            )
        *before, target = [line for _, line in rows]
        yield rows[0][0], b"\t".join(before), target, "" if target or any(before) else _EMPTY_LINE


def _tfrecord_rows(path, columns, _):
    import tensorflow as tf

    keys = _keys(columns)
    features = {key: tf.io.FixedLenFeature([], tf.string) for key in keys}
    compression = "GZIP" if path.suffix.lower() == ".gz" else ""
    records = tf.data.TFRecordDataset(str(path), compression_type=compression)
    number = 0
    try:
        for batch in records.batch(4096).map(lambda r: tf.io.parse_example(r, features)).as_numpy_iterator():
            for *before, target in zip(*(batch[key] for key in keys), strict=True):
                number += 1
                yield number, b"\t".join(before), target, ""
    except tf.errors.OpError as error:
        raise CorpusError(f"{path}: damaged after record {number:,} ({error.message.splitlines()[0]})") from None


def _phrasebook():
    return Path(__file__).with_name("phrasebook.tsv")


def _spa_eng():
    url = "https://storage.googleapis.com/download.tensorflow.org/data/spa-eng.zip"
    import keras

    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Keras announces the download; stdout is for results
            archive = keras.utils.get_file(
                "spa-eng.zip", url, file_hash="f80e581ae291aa34dd3aba7bd98b5e9505234da4318e2f3295df70a1520c7f61"
            )
    except Exception as error:  # get_file raises no narrower one
        cache = Path(os.environ.get("KERAS_HOME", "~/.keras"), "datasets").expanduser()
        raise CorpusError(f"spa-eng: {error}; {url} can also be put into {cache} by hand") from None
    return Path(archive) / "spa-eng" / "spa.txt"


NAMED_CORPORA = {"phrasebook": _phrasebook, "spa-eng": _spa_eng}
