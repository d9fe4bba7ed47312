"""Corpora: pairs of strings, read lazily from text files, and their division into training and validation."""

import contextlib
import os
import re
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

_CHUNK = 4096  # lines read, checked and handed to TensorFlow at a time


class CorpusError(ValueError):
    """A corpus that cannot be read. The message names the file, the line where there is one, and what is wrong."""


def read_pairs(corpus, limit=None):
    """Reads parallel text lazily: one pair a line, source and target divided by a tab.

    A third column (the attribution in Tatoeba's files) is ignored, as are a byte order mark, CRLF line ends and lines
    with nothing in them.

    Args:
        corpus: the path of a UTF-8 text file, or the name of a corpus: `phrasebook` comes with this package, `spa-eng`
            (118,964 English-Spanish pairs from tatoeba.org) is downloaded once into the Keras cache.
        limit: how many pairs to read at most; None for all.

    Returns:
        A `tf.data.Dataset` of (source, target) scalar strings, in the order of the file.

    Raises:
        CorpusError: here if the file cannot be opened; while the dataset is iterated, for a line with other than two or
            three columns, an empty side or invalid UTF-8. TensorFlow wraps the latter in an error of its own that
            quotes it; `corpus_errors` takes it out again.
    """
    path = corpus_path(corpus)
    try:
        path.open("rb").close()
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror}; the built-in corpora are {', '.join(NAMED_CORPORA)}") from None
    column = tf.TensorSpec([None], tf.string)
    chunks = tf.data.Dataset.from_generator(lambda: _read_chunks(path), output_signature=(column, column))
    pairs = chunks.unbatch()
    return pairs if limit is None else pairs.take(limit)


def _read_chunks(path):
    """Yields the checked pairs of a file as (sources, targets), lists of at most `_CHUNK` byte strings."""
    sources, targets = [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.rstrip(b"\r\n")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line:
                continue
            source, target = _parse(line, f"{path}, line {number}")
            sources.append(source)
            targets.append(target)
            if len(sources) == _CHUNK:
                yield sources, targets
                sources, targets = [], []
    if sources:
        yield sources, targets


def _parse(line, where):
    columns = line.split(b"\t")
    if len(columns) not in (2, 3):
        found = "no tab" if len(columns) == 1 else f"{len(columns)} columns"
        raise CorpusError(f"{where}: expected source TAB target (and at most one more column), found {found}")
    source, target = columns[:2]
    for side, text in (("source", source), ("target", target)):
        if not text.strip():
            raise CorpusError(f"{where}: the {side} is empty")
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{where}: the {side} is not valid UTF-8 ({error.reason} at byte {error.start})"
            ) from None
    return source, target


@contextlib.contextmanager
def corpus_errors():
    """Raises a `CorpusError` from inside a dataset as itself, not as the `tf.errors.OpError` TensorFlow makes of it."""
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(r"CorpusError: (.*)", error.message)
        if found is None:
            raise
        raise CorpusError(found[1]) from None


def split_by_hash(pairs, fraction):
    """Divides pairs into (training, validation) by a hash of the source text.

    All translations of one source fall on the same side; the side depends on nothing but that text, so it is the same
    in every epoch, on every machine and in every corpus, and nothing is read to know it.

    Args:
        pairs: a `tf.data.Dataset` of (source, target) scalar strings.
        fraction: about how much of the sources to hold out, between 0 and 1.
    """

    def side(held_out):
        def select(sources, targets):
            # Fingerprint64 of FarmHash, which TensorFlow promises never to change.
            chosen = (tf.strings.to_hash_bucket_fast(sources, 1_000_000) < round(fraction * 1_000_000)) == held_out
            return tf.boolean_mask(sources, chosen), tf.boolean_mask(targets, chosen)

        return pairs.batch(_CHUNK).map(select).unbatch()

    return side(False), side(True)


def split_last(pairs, fraction):
    """Divides pairs into (training, validation) where the last `fraction` is held out, as the Keras tutorial does.

    Counts the pairs first, which reads them all. Several translations of one source may fall on both sides.
    """
    count = count_pairs(pairs)
    training = count - int(count * fraction)
    return pairs.take(training), pairs.skip(training)


def count_pairs(pairs):
    """Number of pairs in a dataset, by reading it once."""
    counts = pairs.batch(_CHUNK).map(lambda sources, _: tf.size(sources, tf.int64))
    return int(counts.reduce(np.int64(0), tf.add))


def corpus_path(corpus):
    """The file behind the name or path of a corpus; downloads a named one that is not yet in the Keras cache."""
    return NAMED_CORPORA[corpus]() if corpus in NAMED_CORPORA else Path(corpus)


def _phrasebook():
    return Path(__file__).with_name("phrasebook.tsv")


def _spa_eng():
    url = "https://storage.googleapis.com/download.tensorflow.org/data/spa-eng.zip"
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Keras announces the download; stdout is for results
            folder = keras.utils.get_file(
                "spa-eng.zip",
                url,
                file_hash="f80e581ae291aa34dd3aba7bd98b5e9505234da4318e2f3295df70a1520c7f61",
                extract=True,
            )
    except Exception as error:  # get_file raises no narrower one
        cache = Path(os.environ.get("KERAS_HOME", "~/.keras"), "datasets").expanduser()
        raise CorpusError(f"spa-eng: {error}; {url} can also be put into {cache} by hand") from None
    return Path(folder) / "spa-eng" / "spa.txt"


NAMED_CORPORA = {"phrasebook": _phrasebook, "spa-eng": _spa_eng}
