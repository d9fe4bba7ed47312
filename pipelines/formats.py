"""Formats: how the lines and records of each format, and data in memory, become pairs."""

import contextlib
import functools
import itertools
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeGuard

from pipelines.files import COMPRESSED, PACKED, CorpusError, archive_of, files_of, plain_name
from pipelines.lines import read_lines
from pipelines.options import OptionError

if TYPE_CHECKING:
    import tensorflow as tf

# What `read_pairs` reads: one corpus, or several.
Corpus: TypeAlias = "str | os.PathLike[str] | Sequence[tuple[str | bytes, str | bytes]] | tf.data.Dataset"
Corpora: TypeAlias = "Corpus | Sequence[Corpus]"

EMPTY_LINE, HEADER = "the line is empty", "the names of the columns"


class Shard(NamedTuple):
    """One file, a set of parallel files, or another source of pairs.

    `rows` takes the columns to read, or None, the names of the source's columns, and a `Report`, in which it notes a
    column that is not read. It yields (line number, source, target, problem) for each line. The problem is "" if the
    line has the right form; nothing else is checked yet. Tabs separate the columns of a source.
    """

    name: str
    rows: Callable[[tuple | None, tuple[str, ...], Any], Iterator[tuple[int, bytes | None, bytes | None, str]]]
    unit: str = "line"
    files: tuple[Path, ...] = ()  # empty if it can be read only once
    width: int | None = None  # how many columns it has, with the target; None if options decide


def find_shards(corpus: Corpus) -> list[Shard]:
    """Find the shards of a corpus, as `read_pairs` describes it.

    Raises:
        CorpusError: if its files are not found, as in `files_of`, or its type is not supported.
        OptionError: for a dataset of anything but pairs.
    """
    if not isinstance(corpus, str | os.PathLike):
        return [_memory_shard(corpus)]
    if corpus == "-":
        return [Shard("standard input", functools.partial(_tab_rows, None))]
    return [_file_shard(*paths) if len(paths) == 1 else _parallel_shard(paths) for paths in files_of(corpus)]


def _file_shard(path):
    name, ending = plain_name(path), path.suffix.lower()
    if unpack := PACKED.get(ending) or PACKED.get(os.path.splitext(name)[1]):
        raise CorpusError(f"{path}: cannot be read in this format; unpack it first: {unpack}")
    files = (path,) if os.path.isfile(archive_of(path) or path) else ()  # a pipe is not a file
    if name.endswith((".tfrecord", ".tfrecords")):
        if archive_of(path) or (ending in COMPRESSED and ending != ".gz"):
            raise CorpusError(f"{path}: TFRecord is read uncompressed or as .gz, and not from a zip; unpack it first")
        return Shard(str(path), functools.partial(_tfrecord_rows, path), "record", files)
    rows = _json_rows if name.endswith((".jsonl", ".ndjson", ".json")) else _tab_rows
    return Shard(str(path), functools.partial(rows, path), files=files)


def _parallel_shard(paths):
    shards = [_file_shard(path) for path in paths]
    for shard in shards:
        if shard.rows.func is not _tab_rows:
            raise CorpusError(f"{shard.name}: parallel files must be text; a file of records has both sides in it")
    name = "+".join(shard.name for shard in shards)
    files = paths if all(shard.files for shard in shards) else ()
    return Shard(name, functools.partial(_parallel_rows, paths), files=files, width=len(paths))


def _memory_shard(corpus):
    if hasattr(corpus, "element_spec"):
        check_pairs(corpus, "corpus")
        return Shard("dataset", functools.partial(_dataset_rows, corpus), "pair")
    if is_list_of_pairs(corpus):
        return Shard("list", functools.partial(_list_rows, corpus), "pair")
    raise CorpusError(
        f"corpus: {type(corpus).__name__} cannot be read; expected a path, the name of a corpus, a list of (source, "
        "target) texts, such as list(zip(sources, targets)), or a tf.data.Dataset of (source, target) scalar strings"
    )


def check_pairs(pairs: Any, argument: str = "pairs") -> None:
    """Check that this is a `tf.data.Dataset` of (source, target) scalar strings.

    Raises:
        OptionError: if it is not.
    """
    if not hasattr(pairs, "as_numpy_iterator"):
        raise OptionError(f"{argument}: expected a tf.data.Dataset, not a {type(pairs).__name__}; read_pairs makes one")
    spec = pairs.element_spec
    sides: tuple[Any, ...] = spec if isinstance(spec, tuple) and len(spec) == 2 else (None,)
    if not all(hasattr(side, "dtype") and side.dtype == "string" and not side.shape.rank for side in sides):
        raise OptionError(f"{argument}: a dataset of {spec}; expected (source, target) scalar strings")


def is_list_of_pairs(corpus: Any) -> bool:
    """Whether this is a list of pairs and not of corpora. The first element decides."""
    first = corpus[0] if isinstance(corpus, list | tuple) and corpus else None
    return isinstance(first, list | tuple) and not any(isinstance(side, list | tuple) for side in first)


def _tab_rows(path, columns, sources, report):
    lines = read_lines(path)
    named = columns is not None and not numbered(columns)
    if columns is None:
        places = list(range(len(sources) + 1))
        most = max(3, len(places))
        wanted = _between_tabs(*sources, "target") + " (and at most one more column)" * (most > len(places))
    else:
        most, wanted = sys.maxsize, f"columns {', '.join(map(str, columns))}"
        if named:
            places = _named_places(path, next(lines, (1, b""))[1], columns)
            yield 1, None, None, HEADER
        else:
            places = [number - 1 for number in columns]
    *before, last = places
    least = max(places) + 1
    for number, line in lines:
        found = line.split(b"\t")
        if not line:
            yield number, None, None, EMPTY_LINE
        elif not least <= len(found) <= most:
            problem = f"expected {wanted}, found {'no tab' if len(found) == 1 else f'{len(found)} columns'}"
            if len(found) == 1 and str(path).endswith(".csv"):
                problem += " (CSV is not supported; use tabs, without quotes)"
            elif len(found) == 1 and path and number == 1:
                problem += "; two parallel files are named together, FILE+FILE"
            yield number, None, None, problem
        else:
            if not (named or report.unread) and any(found[least:]):
                other = next(place for place in range(least, len(found)) if found[place]) + 1
                where = f"{path or 'standard input'}, line {number}"
                report.unread = f"{where}: column {other} is not read; choose columns with --columns, the target last"
            yield number, b"\t".join([found[place] for place in before]), found[last], ""


def _named_places(path, header, columns):
    """The places of the columns that have these names in the first line."""
    names = header.decode(errors="replace").split("\t")
    for name in columns:
        if names.count(name) != 1:
            there = ", ".join(map(repr, names))
            called = f"{'several columns are' if name in names else 'no column is'} called {name!r}"
            choose = "; choose by number" * (name in names)
            raise CorpusError(f"{path or 'standard input'}, line 1: {called}; the columns are {there}{choose}")
    return [names.index(name) for name in columns]


def _json_rows(path, columns, *_):
    keys = _keys(columns)
    for number, line in read_lines(path):
        if not line:
            yield number, None, None, EMPTY_LINE
            continue
        if line.lstrip().startswith(b"["):
            yield number, None, None, "not JSON Lines (an array; write one object on each line: jq -c '.[]')"
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, None, None, f"not JSON ({error})"
            continue
        sides: list[Any] = [_value(key, entry) for key in keys]
        missing = [key for key, side in zip(keys, sides, strict=True) if not isinstance(side, str)]
        if missing:
            there = ", ".join(_text_keys(entry))
            problem = f"no text under the key {missing[0]!r}" + f"; there is text under {there}" * bool(there)
            if numbered(columns):
                problem += "; --columns names the keys to read, the target last"
            yield number, None, None, problem
        else:
            *before, target = map(_encoded, sides)
            yield number, b"\t".join(before), target, ""


def _value(key, entry):
    """Look up a key in a JSON object. If there is no key `a.b`, it is `b` in the object under `a`."""
    if not isinstance(entry, dict):
        return None
    if key in entry:
        return entry[key]
    first, _, rest = key.partition(".")
    return _value(rest, entry.get(first)) if rest else None


def _text_keys(entry, outer=""):
    """List the keys under which a JSON object, or an object in it, holds text."""
    for key, value in entry.items() if isinstance(entry, dict) else ():
        if isinstance(value, str):
            yield outer + key
        elif not outer:
            yield from _text_keys(value, f"{key}.")


def _keys(columns):
    """The keys of the texts in a record. Numbered columns have the keys "1", "2" and so on."""
    return [str(column) for column in columns or ("source", "target")]


def _parallel_rows(paths, columns, *_):
    if numbered(columns):
        paths = [paths[number - 1] for number in columns]
    files = [read_lines(path) for path in paths]
    for rows in itertools.zip_longest(*files):
        if None in rows:
            number = max(row for row in rows if row)[0]
            counts = [
                number + sum(1 for _ in file) if row else number - 1 for row, file in zip(rows, files, strict=True)
            ]
            other = next(place for place, count in enumerate(counts) if count != counts[0])
            raise CorpusError(
                f"{paths[0]} has {counts[0]:,} lines and {paths[other]} {counts[other]:,}; they must have the same "
                "number"
            )
        *before, target = [line for _, line in rows]
        yield rows[0][0], b"\t".join(before), target, "" if target or any(before) else EMPTY_LINE


def _tfrecord_rows(path, columns, *_):
    import tensorflow as tf

    keys = _keys(columns)
    features = {key: tf.io.RaggedFeature(tf.string) for key in keys}
    compression = "GZIP" if path.suffix.lower() == ".gz" else ""
    records = tf.data.TFRecordDataset(str(path), compression_type=compression)
    number, size, whole, problem = 0, 0, False, f"expected one text under each of the keys {', '.join(map(repr, keys))}"

    def texts_of(batch):
        """Yield the texts of each record, or None for one that lacks some. A damaged record is found by halving."""
        try:
            parsed = tf.io.parse_example(batch, features)
        except tf.errors.InvalidArgumentError:
            if half := len(batch) // 2:
                yield from texts_of(batch[:half])
                yield from texts_of(batch[half:])
            else:
                yield None
            return
        found = [parsed[key] for key in keys]
        if all(tf.reduce_all(part.row_lengths() == 1) for part in found):  # else `to_list` takes the most time
            yield from zip(*(part.flat_values.numpy() for part in found), strict=True)
        else:
            for row in zip(*(part.to_list() for part in found), strict=True):
                yield [text for (text,) in row] if all(len(texts) == 1 for texts in row) else None

    try:
        for batch in records.batch(4096):
            size += sum(len(record) + 16 for record in batch.numpy())  # with its length and two checksums
            for texts in texts_of(batch):
                number += 1
                if texts is None:
                    yield number, None, None, problem
                else:
                    *before, target = texts
                    yield number, b"\t".join(before), target, ""
        # TensorFlow (2.21) takes a cut in the length of a record, or in compressed data, for the end of the file.
        whole = _has_size(path, size)
    except tf.errors.OpError as error:
        with contextlib.suppress(tf.errors.OpError):  # counts the readable records of the batch that failed
            for _ in records.skip(number):
                number += 1
        if not isinstance(error, tf.errors.DataLossError | tf.errors.OutOfRangeError):
            reason = error.message.splitlines()[0].rpartition("}} ")[2].partition(" [Op:")[0]
            raise CorpusError(f"{path}: {reason}") from None
        if number == 0:
            raise CorpusError(f"{path}: damaged, or no TFRecord file; one compressed with gzip ends in .gz") from None
    if not whole:
        raise CorpusError(f"{path}: damaged or cut short after record {number:,}")


def _has_size(path, size):
    """Whether the content of a file, decompressed if it ends in .gz, is whole and has so many bytes."""
    if path.suffix.lower() != ".gz":
        return path.stat().st_size == size
    try:
        with COMPRESSED[".gz"](path) as file:
            return sum(map(len, iter(lambda: file.read(1 << 20), b""))) == size
    except (EOFError, OSError, zlib.error):
        return False


def _dataset_rows(dataset, *_):
    numbers = itertools.count(1)
    for sources, targets in dataset.batch(4096).as_numpy_iterator():
        for source, target in zip(sources, targets, strict=True):
            yield next(numbers), source, target, ""


def _list_rows(pairs, *_):
    for number, pair in enumerate(pairs, start=1):
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str | bytes) for text in pair):
            source, target = (text if isinstance(text, bytes) else _encoded(text) for text in pair)
            yield number, source, target, ""
        else:
            yield number, None, None, f"expected two texts, found {pair!r:.80}"


def _encoded(text):
    # A lone surrogate, which strings and JSON can hold, becomes invalid UTF-8, which the reader reports.
    return text.encode(errors="surrogatepass")


def numbered(columns: Any) -> TypeGuard[Sequence[int]]:
    """Whether columns are chosen by numbers, not by names or by default."""
    return bool(columns) and isinstance(columns[0], int)


def check_columns(columns: Sequence[str] | Sequence[int], sources: Sequence[str] | None = None) -> None:
    """Check that columns are names, or numbers counted from 1, and as many as a source with a target has.

    Args:
        columns: the columns to read, the target last.
        sources: the names of the source's columns; None if any number of columns is valid.

    Raises:
        OptionError: if they are not, or fewer than two.
    """
    several = isinstance(columns, list | tuple) and len(columns) > 1
    named = several and all(isinstance(column, str) and column for column in columns)
    counted = several and all(type(column) is int and column > 0 for column in columns)
    if not (named or counted):
        raise OptionError(f"columns={columns}: expected two names or more, or numbers counted from 1")
    if sources and len(columns) != len(sources) + 1:
        wanted = _between_tabs(*sources, "target")
        raise OptionError(f"columns={columns}: expected {len(sources) + 1}, for {wanted}")


def wrong_columns(source: bytes, names: tuple[str, ...]) -> str:
    """Describe what is wrong with a source that does not have these tab-separated columns; "" if it has."""
    found = source.count(b"\t") + 1
    if found == len(names):
        return ""
    return f"expected {len(names)} columns: {_between_tabs(*names)}, found {found}"


def _between_tabs(*names):
    return " TAB ".join(names)
