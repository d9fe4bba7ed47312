"""Formats: how a file of each format, and what is in memory, becomes pairs."""

import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pipelines.files import COMPRESSED, NAMED_CORPORA, PACKED, CorpusError, archive_of, files_of, plain_name, sides_of
from pipelines.lines import read_lines

if TYPE_CHECKING:
    import tensorflow as tf

# What `read_pairs` reads, and several such.
Corpus: TypeAlias = "str | os.PathLike[str] | Sequence[tuple[str | bytes, str | bytes]] | tf.data.Dataset"
Corpora: TypeAlias = "Corpus | Sequence[Corpus]"
EMPTY_LINE, HEADER = "the line is empty", "the names of the columns"


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
    names = sides_of(text)
    sides = [files_of(side, text) for side in names]
    if len(sides) == 1:
        return [_file_shard(path) for path in sides[0]]
    if len(set(map(len, sides))) != 1:
        raise CorpusError(f"{text}: {' and '.join(str(len(side)) for side in sides)} files; expected equally many")
    return [_parallel_shard(files) for files in zip(*sides, strict=True)]


def _file_shard(path):
    name, ending = plain_name(path), path.suffix.lower()
    if unpack := PACKED.get(ending) or PACKED.get(os.path.splitext(name)[1]):
        raise CorpusError(f"{path}: is not read as it is; unpack it first: {unpack}")
    if name.endswith((".tfrecord", ".tfrecords")):
        if ending in COMPRESSED and ending != ".gz":
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
    return (path,) if os.path.isfile(archive_of(path) or path) else ()


def _memory_shard(corpus):
    """A shard of what is no file: a `tf.data.Dataset` of (source, target) scalar strings, or a list of such pairs."""
    if hasattr(corpus, "element_spec"):
        spec = corpus.element_spec
        sides: tuple[Any, ...] = spec if isinstance(spec, tuple) and len(spec) == 2 else (None,)
        if not all(hasattr(side, "dtype") and side.dtype == "string" and not side.shape.rank for side in sides):
            raise CorpusError(f"corpus: a dataset of {spec}; expected one of (source, target) scalar strings")
        return Shard("dataset", functools.partial(_dataset_rows, corpus), "pair")
    if isinstance(corpus, list | tuple) and is_list_of_pairs(corpus):
        return Shard("list", functools.partial(_pair_rows, corpus), "pair")
    raise CorpusError(
        f"corpus: {type(corpus).__name__} is not read; expected a path, the name of a corpus, a list of (source, "
        "target) texts, as list(zip(sources, targets)) makes, or a tf.data.Dataset of them, as its from_generator does"
    )


def is_list_of_pairs(corpus):
    """Whether a list is one of pairs and not of corpora, to judge by the first of them."""
    first = next(iter(corpus), None)
    return isinstance(first, list | tuple) and not any(isinstance(side, list | tuple) for side in first)


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
        yield 1, None, None, HEADER
    elif columns:
        places = [number - 1 for number in columns]
    first, *more, last = places
    least, most = max(places) + 1, sys.maxsize
    wanted = f"columns {columns}"
    if default:
        least, most = len(places), 3 if len(places) == 2 else len(places)
        wanted = between_tabs(*sources, "target") + " (and at most one more column)" * (most > least)
    for number, line in lines:
        found = line.split(b"\t")
        if not line:
            yield number, None, None, EMPTY_LINE
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
            yield number, None, None, EMPTY_LINE
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
        yield rows[0][0], b"\t".join(before), target, "" if target or any(before) else EMPTY_LINE


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


def between_tabs(*names):
    return " TAB ".join(names)


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


def wrong_columns(source: bytes, names: tuple[str, ...]) -> str:
    """What is wrong with a source that has not these columns, between tabs; "" if it has."""
    found = source.count(b"\t") + 1
    wanted = f"expected {len(names)} columns: {between_tabs(*names)}, found {found}"
    return "" if found == len(names) else wanted
