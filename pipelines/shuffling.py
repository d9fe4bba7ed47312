"""A shuffle on disk, for corpora that no shuffle buffer mixes well enough."""

import collections
import contextlib
import gzip
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.files import CorpusError, read_manifest, sha256
from pipelines.formats import Corpora
from pipelines.options import check_number, choose
from pipelines.readers import Report, open_corpora

_BUCKETS = 256
_BUFFER = 1 << 16  # bytes collected for a bucket before they are written
_LENGTHS = struct.Struct("<II")


def shuffle_corpus(
    corpus: Corpora,
    folder: Path | str,
    shards: int = 16,
    format: str = "gzip",
    seed: int = 0,
    report: Report | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> dict:
    """Writes a corpus in random order into a folder of shards of equal size, which `read_pairs` reads.

    Every order is equally likely. Each pair goes into one of 256 buckets on disk, drawn at random; then one bucket
    after the other is shuffled in memory and written out (Rao 1961, Sandelius 1962). So memory holds a 256th of the
    corpus, and the disk for a while the whole of it, uncompressed, beside the result.

    Args:
        corpus: what to read, or a list of such, as in `read_pairs`.
        folder: the folder to make. It appears when all is written, with a `manifest.json`: how many pairs in all and in
            each shard, the sha256 of each, and how many texts there are of each length in characters.
        shards: how many files to write.
        format: "gzip" for tab-separated text, or "tfrecord". A source of several columns is written as such: they and
            the target are the columns, or keys, 1, 2 and so on, for `columns=(1, 2, 3)`.
        seed: the same seed and corpus give the same files.
        report: a `Report` to count in.
        progress: a function to call now and then with the number of pairs read so far.
        **options: as `read_pairs` takes them, to clean while reading.

    Returns:
        The manifest, a dict.

    Raises:
        CorpusError: if the corpus cannot be read, is empty or holds what tab-separated text cannot, or if the folder is
            in use.
        OptionError: for a format that is neither of the two, or fewer shards than 1.
    """
    folder = Path(folder)
    choose("format", format, list(_WRITERS))
    check_number("shards", shards, least=1)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CorpusError(f"{folder} is there already; choose another folder")
    reader = open_corpora(corpus, **options)
    rng = random.Random(seed)
    aside = folder.with_name(folder.name + ".partial")
    aside.mkdir(parents=True)
    try:
        lengths = collections.Counter[int](), collections.Counter[int]()
        count = 0
        buckets = [_Bucket(aside / f"bucket-{number}") for number in range(_BUCKETS)]
        for count, pair in enumerate(reader.pairs(seed, report or Report()), start=1):
            for counter, text in zip(lengths, pair, strict=True):
                counter[len(text.decode())] += 1
            buckets[rng.randrange(_BUCKETS)].add(*pair)
            if progress and count % 4096 == 0:
                progress(count)
        if count == 0:
            raise CorpusError(f"{corpus}: no pairs to shuffle")
        manifest = {
            "pairs": count,
            "shards": _write_shards(_rows(buckets, rng, len(reader.sources)), count, aside, shards, format),
            "lengths": {
                side: {str(length): counter[length] for length in sorted(counter)}
                for side, counter in zip(("source", "target"), lengths, strict=True)
            },
        }
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


class _Bucket:
    """Pairs on disk, in the order they came."""

    def __init__(self, path):
        self.path = path
        self.buffer = bytearray()

    def add(self, source, target):
        self.buffer += _LENGTHS.pack(len(source), len(target)) + source + target
        if len(self.buffer) >= _BUFFER:
            self.flush()

    def flush(self):
        with self.path.open("ab") as file:  # opened each time: there may be more buckets than open files are allowed
            file.write(self.buffer)
        self.buffer = bytearray()

    def take(self):
        """The pairs; the bucket is gone then."""
        self.flush()
        data = self.path.read_bytes()
        self.path.unlink()
        pairs, position = [], 0
        while position < len(data):
            source, target = _LENGTHS.unpack_from(data, position)
            position += _LENGTHS.size
            pairs.append((data[position : position + source], data[position + source : position + source + target]))
            position += source + target
        return pairs


def _rows(buckets, rng, sources):
    """All pairs in random order, each a list of so many columns of the source, and the target."""
    for bucket in buckets:
        pairs = bucket.take()
        rng.shuffle(pairs)
        for source, target in pairs:
            yield [*source.split(b"\t", sources - 1), target]


def _write_shards(rows, count, folder, shards, format):
    """Writes the rows; returns {file name: {"pairs": number, "sha256": hexadecimal}}."""
    written = {}
    for number in range(shards):
        path = folder / f"shard-{number:05}-of-{shards:05}.{'tsv.gz' if format == 'gzip' else 'tfrecord'}"
        size = count * (number + 1) // shards - count * number // shards
        with _WRITERS[format](path) as write:
            for _ in range(size):
                write(next(rows))
        written[path.name] = {"pairs": size, "sha256": sha256(path)}
    return written


@contextlib.contextmanager
def _gzip_writer(path):
    # Without a name and a time in its header, the same pairs make the same file.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        first = True

        def write(row):
            nonlocal first
            for text in row:
                if any(mark in text for mark in (b"\t", b"\n", b"\r")):
                    raise CorpusError(
                        f"{text.decode()!r} holds a tab or a line break, which tab-separated text cannot; "
                        "write the shards as tfrecord"
                    )
            if first and row[0].startswith(b"\xef\xbb\xbf"):
                file.write(b"\xef\xbb\xbf")  # readers take one away
            first = False
            file.write(b"\t".join(row) + b"\n")

        yield write


@contextlib.contextmanager
def _tfrecord_writer(path):
    import tensorflow as tf

    def write(row):
        names = ("source", "target") if len(row) == 2 else map(str, range(1, len(row) + 1))
        texts = dict(zip(names, row, strict=True))
        features = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text])) for name, text in texts.items()}
        file.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())

    with tf.io.TFRecordWriter(str(path)) as file:
        yield write


_WRITERS = {"gzip": _gzip_writer, "tfrecord": _tfrecord_writer}


def damaged_shards(folder: Path | str) -> list[str]:
    """The names of those shards of a shuffled corpus that are not as in its manifest; none for a folder without one."""
    shards = read_manifest(folder).get("shards", {})
    files = {name: Path(folder, name) for name in shards}
    return [name for name, file in files.items() if not file.is_file() or sha256(file) != shards[name]["sha256"]]
