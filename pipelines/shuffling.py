"""A shuffle on disk, for corpora that are too large for a shuffle buffer."""

import collections
import gzip
import itertools
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.files import CorpusError, read_manifest, sha256, whole_folder
from pipelines.formats import Corpora
from pipelines.options import check_number, choose
from pipelines.readers import Report, corpus_names, open_corpora

_BUCKETS = 256
_BUFFER = 1 << 16  # bytes of memory that a bucket takes before it is written
_OVERHEAD = 130  # bytes of memory that a pair takes besides its text


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
    """Write a corpus in random order into a folder of shards of equal size, which `read_pairs` reads.

    Every order is equally likely. Each pair goes into one of 256 random buckets on disk; then each bucket is shuffled
    in memory and written out (Rao 1961, Sandelius 1962). Memory holds a 256th of the corpus. The disk must hold the
    whole corpus, uncompressed, and the result.

    Args:
        corpus: a corpus, or a list of them, as in `read_pairs`.
        folder: the folder to make. It appears once everything is written, with a `manifest.json`: the number of pairs
            in total and in each shard, the sha256 of each shard, and the number of texts of each length in characters.
        shards: how many files to write.
        format: "gzip" for tab-separated text, or "tfrecord" with the keys source and target. Several source columns and
            the target are written as columns, or keys, 1, 2 and so on, for `columns=(1, 2, 3)`.
        seed: the same seed and corpus give the same files.
        report: a `Report` to count in.
        progress: a function to call now and then with the number of pairs read so far.
        **options: those of `read_pairs` that choose columns and leave out pairs.

    Returns:
        The manifest, a dict.

    Raises:
        CorpusError: if the corpus cannot be read, is empty or has text that tab-separated text cannot hold, or if the
            folder exists and is not empty.
        OptionError: for an unknown format, fewer than 1 shard, or a seed that is not an integer from 0 to 2^32 - 1.
        OSError: if the disk is full, or if another process has made the folder in the meantime.
    """
    folder = Path(folder)
    choose("format", format, list(_FORMATS))
    check_number("shards", shards, least=1)
    check_number("seed", seed, least=0, below=2**32)
    with whole_folder(folder, CorpusError) as aside:
        reader = open_corpora(corpus, **options, tab_separated=format == "gzip")
        rng = random.Random(seed)
        aside.mkdir()
        lengths = collections.Counter[int](), collections.Counter[int]()
        count = 0
        buckets = [_Bucket(aside / f"bucket-{number}") for number in range(_BUCKETS)]
        tabs = len(reader.sources) - 1
        for count, (source, target) in enumerate(reader.pairs(seed, report or Report()), start=1):
            for counter, text, between in zip(lengths, (source, target), (tabs, 0), strict=True):
                counter[len(text.decode()) - between] += 1
            buckets[rng.randrange(_BUCKETS)].add([*source.split(b"\t", tabs), target])
            if progress and count % 4096 == 0:
                progress(count)
        if count == 0:
            raise CorpusError(f"{corpus_names(corpus)}: no pairs to shuffle")
        manifest = {
            "pairs": count,
            "shards": _write_shards(_shuffled(buckets, rng), count, aside, shards, format),
            "lengths": {
                side: {str(length): counter[length] for length in sorted(counter)}
                for side, counter in zip(("source", "target"), lengths, strict=True)
            },
        }
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


class _Bucket:
    """Pairs on disk, in the order they were added, each a list of the source's columns and the target."""

    def __init__(self, path):
        self.path, self.buffer, self.size = path, [], 0

    def add(self, row):
        self.buffer.append(row)
        self.size += sum(map(len, row)) + _OVERHEAD
        if self.size >= _BUFFER:
            self.flush()

    def flush(self):
        with self.path.open("ab") as file:  # opened each time: there may be more buckets than open files are allowed
            pickle.dump(self.buffer, file)
        self.buffer, self.size = [], 0

    def empty(self):
        """Delete the file and return its pairs."""
        self.flush()
        pairs = []
        with self.path.open("rb") as file:
            while file.peek(1):
                pairs += pickle.load(file)
        self.path.unlink()
        return pairs


def _shuffled(buckets, rng):
    """Yield all pairs in random order."""
    for bucket in buckets:
        rows = bucket.empty()
        rng.shuffle(rows)
        yield from rows


def _write_shards(rows, count, folder, shards, format):
    """Write the rows; return {file name: {"pairs": number, "sha256": hexadecimal}}."""
    ending, write = _FORMATS[format]
    written = {}
    for number in range(shards):
        path = folder / f"shard-{number:05}-of-{shards:05}.{ending}"
        size = count * (number + 1) // shards - count * number // shards
        write(path, itertools.islice(rows, size))
        written[path.name] = {"pairs": size, "sha256": sha256(path)}
    return written


def _write_gzip(path, rows):
    # Without a name and a time in the header, the same pairs make the same file.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        for number, row in enumerate(rows):
            if number == 0 and row[0].startswith(b"\xef\xbb\xbf"):
                file.write(b"\xef\xbb\xbf")  # a reader removes one
            file.write(b"\t".join(row) + b"\n")


def _write_tfrecord(path, rows):
    import tensorflow as tf

    try:
        with tf.io.TFRecordWriter(str(path)) as file:
            for row in rows:
                names = ("source", "target") if len(row) == 2 else map(str, range(1, len(row) + 1))
                texts = {name: tf.train.BytesList(value=[text]) for name, text in zip(names, row, strict=True)}
                features = {name: tf.train.Feature(bytes_list=text) for name, text in texts.items()}
                file.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    except tf.errors.OpError as error:
        raise OSError(error.message) from None


_FORMATS = {"gzip": ("tsv.gz", _write_gzip), "tfrecord": ("tfrecord", _write_tfrecord)}


def damaged_shards(folder: Path | str) -> list[str]:
    """List the shards of a shuffled corpus that differ from its manifest; none for a folder without one."""
    shards = read_manifest(folder).get("shards", {})
    files = {name: Path(folder, name) for name in shards}
    return [name for name, file in files.items() if not file.is_file() or sha256(file) != shards[name]["sha256"]]
