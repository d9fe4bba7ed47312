"""Readers: cleaned and counted pairs of one corpus or several, in constant memory and without TensorFlow."""

import collections
import dataclasses
import functools
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.files import CorpusError, sha256
from pipelines.formats import (
    EMPTY_LINE,
    HEADER,
    Corpora,
    Shard,
    check_columns,
    find_shards,
    is_list_of_pairs,
    numbered,
    wrong_columns,
)
from pipelines.options import OptionError, check_number, choose, nearest

_OPEN_FILES = 16  # read in turns if files are shuffled
_TURN = 256  # pairs read from a file before it is the next one's turn
_DUPLICATE_WINDOW = 1 << 17  # pairs remembered at least; at most twice as many

# Invisible characters: spaces of all kinds, control characters, and marks such as U+200B and U+FEFF. `lstrip` with a
# string of them is several times faster than the regular expression.
_INVISIBLE = r"[\s\0-\x1f\x7f-\x9f\xad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\u034f\u2800\u3164]"
INVISIBLE = "".join(re.findall(_INVISIBLE, "".join(map(chr, (*range(0x3165), 0xFEFF)))))

# Why a pair is left out. The first four are faults of the text: they are errors unless `on_bad_line` is "skip".
FAULTS = COLUMNS, ENCODING, EMPTY, BREAK = "wrong columns", "invalid UTF-8", "empty side", "tab or line break"
LENGTH, RATIO, DUPLICATE = "too long", "length ratio", "duplicate"
NO_PAIR = "no pair"  # no fault; counted only by `Reader.lines`


@dataclasses.dataclass
class Report:
    """What one pass over a corpus has read, and what it left out and why."""

    pairs: int = 0
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # pairs by reason
    first: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # the first three messages, by reason
    unread: str = ""  # a message about the first line with a column after those that are read

    def drop(self, reason: str, message: str) -> None:
        self.dropped[reason] += 1
        if self.dropped[reason] <= 3:
            self.first.setdefault(reason, []).append(message)

    def notices(self, columns_given: bool) -> list[str]:
        """What to tell the user: a column that is not read, unless the columns were given, and what was left out."""
        found = [self.unread] if self.unread and not columns_given else []
        return [*found, str(self)] if self.dropped else found

    def __str__(self):
        lines = [f"{self.dropped.total():,} of {self.pairs + self.dropped.total():,} pairs left out"]
        for reason, count in self.dropped.most_common():
            lines.append(f"  {count:,} {reason}")
            lines += [f"    {message}" for message in self.first[reason]]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Reader:
    """The cleaned pairs of one corpus or several, read lazily. `read_pairs` explains the arguments."""

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
    tab_separated: bool = False  # whether the pairs will be written as such text, which cannot hold every text

    def __post_init__(self):
        choose("on_bad_line", self.on_bad_line, ("error", "skip"))
        check_number("num_shards", self.num_shards, least=1)
        check_number("index", self.index, least=0, below=self.num_shards)
        if self.weights is not None:
            if not isinstance(self.weights, list | tuple) or len(self.weights) != len(self.corpora):
                raise OptionError(f"weights={self.weights}: expected one number for each corpus ({len(self.corpora)})")
            for weight in self.weights:
                check_number("weights", weight, float, above=0)
        check_number("max_length", self.max_length, least=1, optional=True)
        check_number("max_ratio", self.max_ratio, float, least=1, optional=True)
        if self.columns is not None:
            check_columns(self.columns, self.source_columns)
        wanted = len(self.sources) + 1
        for shard in self.shards:
            if self.columns is not None and shard.unit == "pair":
                raise OptionError(f"columns={self.columns}: a {shard.name} of pairs has no columns to choose from")
            expected = f"expected {wanted}, the last of them the target"
            if shard.width is None:
                if wanted != 2 and not (self.columns or self.source_columns):
                    raise CorpusError(f"{shard.name}: 2 columns, {expected}")
            elif numbered(self.columns):
                if max(self.columns) > shard.width:
                    needs = f"columns={self.columns} needs more; give others"
                    raise CorpusError(f"{shard.name}: {shard.width} parallel files; {needs}")
            elif shard.width != wanted:
                raise CorpusError(f"{shard.name}: {shard.width} parallel files, {expected}")
        if self.reverse and wanted > 2:
            raise OptionError(f"reverse=True: a source of {wanted - 1} columns cannot be the target")

    @property
    def shards(self) -> list[Shard]:
        """The shards of all corpora."""
        return list(itertools.chain.from_iterable(self.corpora))

    @functools.cached_property
    def sources(self) -> tuple[str, ...]:
        """The names of the columns of a source: one unless several columns, or more than two files, are read."""
        if self.source_columns:
            return tuple(self.source_columns)
        width = len(self.columns) if self.columns else max((shard.width or 2 for shard in self.shards), default=2)
        if width == 2:
            return ("source",)
        if self.columns and isinstance(self.columns[0], str):
            return tuple(self.columns[:-1])
        return tuple(f"source {number}" for number in range(1, width))

    def pairs(self, seed: int = 0, report: Report | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield (source, target) byte strings, once through.

        Args:
            seed: decides the order of the files if they are shuffled.
            report: a `Report` to count in.
        """
        report = Report() if report is None else report
        if self.weights:
            starts = [lambda report, shards=shards: self._pairs_of(shards, seed, report) for shards in self.corpora]
            return _mix(starts, self.weights, report)
        return self._pairs_of(self.shards, seed, report)

    def lines(self, report: Report) -> Iterator[tuple[bytes, bytes] | None]:
        """Yield one item for each line of the corpora, in order: (source, target), or None if `pairs` leaves it out.

        Args:
            report: a `Report` to count in. It also names empty lines and those with the names of the columns.
        """
        for shard in self.shards:
            yield from self._clean(shard, report, every_line=True)

    def _pairs_of(self, shards, seed, report):
        by_file = len(shards) >= self.num_shards
        if by_file:
            shards = shards[self.index :: self.num_shards]
        parts = [self._clean(shard, report) for shard in shards]
        if not by_file:
            parts = [itertools.islice(part, self.index, None, self.num_shards) for part in parts]
        if not self.shuffle_files:
            return itertools.chain.from_iterable(parts)
        random.Random(seed).shuffle(parts)
        return _interleave(parts)

    def _clean(self, shard, report, every_line=False):
        """Yield the pairs of a shard that pass every check and, with `every_line`, None for each other line."""
        recent, older = set[int](), set[int]()
        for number, source, target, problem in shard.rows(self.columns, self.sources, report):
            if self.reverse:
                source, target = target, source
            reason, problem = self._fault(source, target, problem)
            if self.drop_duplicates and not reason:
                key = hash((source, target))
                if key in recent or key in older:
                    reason, problem = DUPLICATE, "read before"
                recent.add(key)
                if len(recent) == _DUPLICATE_WINDOW:
                    recent, older = set(), recent
            if not reason:
                report.pairs += 1
                yield source, target
                continue
            message = f"{shard.name}, {shard.unit} {number}: {problem}"
            if reason in FAULTS and self.on_bad_line == "error":
                raise CorpusError(f'{message} (on_bad_line="skip" leaves out such lines)')
            if reason != NO_PAIR or every_line:
                report.drop(reason, message)
            if every_line:
                yield None

    def _fault(self, source, target, problem):
        """Why a pair is left out: a reason and a description of the fault, both empty if there is none."""
        if problem:
            return (NO_PAIR if problem in (EMPTY_LINE, HEADER) else COLUMNS), problem
        several = len(self.sources) > 1
        if several and (problem := wrong_columns(source, self.sources)):
            return COLUMNS, problem
        side = "source"
        try:
            source = source.decode()
            side = "target"
            target = target.decode()
        except UnicodeDecodeError as error:
            return ENCODING, f"the {side} is not valid UTF-8 ({error.reason} at byte {error.start})"
        first = source.partition("\t")[0] if several else source
        if not first.lstrip(INVISIBLE):
            hint = "; put a column that may be empty after the first" if several else ""
            return EMPTY, f"the {self.sources[0]} is empty{hint}"
        if not target.lstrip(INVISIBLE):
            return EMPTY, "the target is empty"
        characters = len(source) - source.count("\t") if several else len(source)
        if self.max_length and (longest := max(characters, len(target))) > self.max_length:
            return LENGTH, f"{longest} characters"
        if self.max_ratio and max(lengths := (len(first), len(target))) / min(lengths) > self.max_ratio:
            return RATIO, f"{lengths[0]} to {lengths[1]} characters"
        if self.tab_separated:
            for side, text in (("source", source.replace("\t", "") if several else source), ("target", target)):
                if any(mark in text for mark in "\t\n\r"):
                    return BREAK, f"the {side} has a tab or a line break; write the shards as tfrecord to keep it"
        return "", ""


def _interleave(parts):
    """Yield blocks from several iterators in turn, with a bounded number of files open at a time."""
    waiting = iter(parts)
    reading = list(itertools.islice(waiting, _OPEN_FILES))
    while reading:
        for part in list(reading):
            block = list(itertools.islice(part, _TURN))
            yield from block
            if len(block) < _TURN:
                reading.remove(part)
                reading.extend(itertools.islice(waiting, 1))


def _mix(starts, weights, report):
    """Yield from several corpora in proportion to their weights, evenly, until each has been read to its end once.
    `starts` has a function for each, which begins to read it and counts in a `Report`.

    A corpus that ends earlier starts over. So every pair is read at least once, and the number of pairs read is not
    random. (Smooth weighted round-robin, as in nginx.)
    """
    reading = [start(report) for start in starts]
    credit = [0.0] * len(weights)
    unfinished = set(range(len(weights)))
    while True:
        credit = [have + weight for have, weight in zip(credit, weights, strict=True)]
        chosen = credit.index(max(credit))
        credit[chosen] -= sum(weights)
        pair = next(reading[chosen], None)
        if pair is None:
            unfinished.discard(chosen)
            if not unfinished:
                return
            reading[chosen] = starts[chosen](Report())  # its pairs have been counted
            pair = next(reading[chosen], None)
            if pair is None:
                raise CorpusError(f"corpus {chosen + 1} has no pairs to draw from")
        yield pair


def open_corpora(corpus: Corpora, **options: Any) -> Reader:
    """Open a corpus or a list of corpora.

    Args:
        corpus: as `read_pairs` takes it.
        **options: the further arguments of `Reader`.

    Raises:
        CorpusError: for an empty list, or what is no corpus.
        OptionError: if there is no such option.
    """
    names = [field.name for field in dataclasses.fields(Reader) if field.name != "shards"]
    for name in options:
        if name not in names:
            raise OptionError(f"{name}: there is no such option{nearest(name, names)}")
    corpora = _as_list(corpus)
    if not corpora:
        raise CorpusError("corpus: an empty list; expected a corpus, or several")
    return Reader(tuple(map(find_shards, corpora)), **options)


def checksums(corpus: Corpora) -> dict[str, str]:
    """Compute the checksums of a corpus's files: {path: sha256 in hexadecimal}, in the order read.

    Raises:
        CorpusError: for anything but files: standard input, pipes, lists and datasets.
    """
    shards = [shard for one in _as_list(corpus) for shard in find_shards(one)]
    for shard in shards:
        if not shard.files:
            raise CorpusError(f"{shard.name}: training reads a corpus many times, so it must be a file")
    names = [name for shard in shards for name in shard.files]
    return {str(name): sha256(name) for name in dict.fromkeys(names)}


def corpus_names(corpus: Corpora) -> str:
    """The names of a corpus's files, or of several corpora, for messages."""
    names = [str(one) if isinstance(one, str | Path) else "these pairs" for one in _as_list(corpus)]
    return " ".join("standard input" if name == "-" else name for name in names)


def _as_list(corpus):
    return corpus if isinstance(corpus, list | tuple) and not is_list_of_pairs(corpus) else [corpus]
