"""Corpora: pairs of strings as a `tf.data.Dataset`, split into training and validation, counted and surveyed."""

import collections
import contextlib
import ctypes
import dataclasses
import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.files import CorpusError
from pipelines.formats import Corpora, check_pairs
from pipelines.options import OptionError, check_number, one_line
from pipelines.readers import Report, open_corpora
from pipelines.tokens import WHITESPACE, Tokenizer

# The thread that tunes buffers may sleep through the end of an iteration (TensorFlow 2.21 wakes it before it can see
# that it is cancelled), which then lasts up to a minute. Tuning makes nothing here faster.
WITHOUT_AUTOTUNE = tf.data.Options()
WITHOUT_AUTOTUNE.autotune.enabled = False

_CHUNK = 4096  # pairs handed to TensorFlow at a time


@functools.cache
def _reuse_memory() -> None:
    """Let malloc reuse freed memory for large tensors, which TensorFlow's `from_generator` prevents.

    The first `from_generator` of a process calls `mallopt(M_MMAP_THRESHOLD, 128 KiB)`, to mitigate a memory leak with
    Python 3.11 (TensorFlow 2.21, on glibc). From then on, the memory of each larger tensor is mapped, cleared and
    unmapped again, which takes up to 30% of the time of training on a CPU. The thresholds here are the highest that
    glibc sets by itself. Training then needed 80 MB more memory, which did not grow from epoch to epoch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(mmap_threshold, 32 * 2**20)
        mallopt(trim_threshold, 64 * 2**20)


def read_pairs(
    corpus: Corpora,
    limit: int | None = None,
    *,
    seed: int = 0,
    epoch: int | tf.Tensor | None = None,
    report: Report | None = None,
    **options: Any,
) -> tf.data.Dataset:
    """Read parallel text lazily, in memory that does not grow with the corpus.

    Args:
        corpus: one of these, or a list of them:

            - the name of a corpus: `phrasebook` comes with this package, `spa-eng` (118,964 English-Spanish pairs from
              tatoeba.org) is downloaded once into the Keras cache. Write `./phrasebook` for a file of that name;
            - a file: tab-separated text (`source TAB target` on each line; a third column is ignored), JSON Lines
              (`.jsonl`, `.ndjson`, `.json`), each plain or with `.gz`, `.bz2` or `.xz`, or TFRecord (`.tfrecord`, plain
              or with `.gz`) of examples with two strings;
            - a file in a zip, `archive.zip/folder/file.tsv`, or the zip alone if it holds one file;
            - `-`, tab-separated text on standard input, or a named pipe; they can be read only once;
            - parallel files of equally many lines, `corpus.en+corpus.es`; all but the last are columns of the source. A
              file or folder with a `+` in its name takes precedence;
            - a glob, in which `**` matches any number of folders: its files in the order of their names;
            - a folder: its files with one of the endings `.tsv`, `.txt`, `.csv` (with tabs), `.jsonl`, `.ndjson` and
              `.tfrecord`, compressed or not, in the order of their names; other files in it are not read;
            - a list of (source, target) strings;
            - a `tf.data.Dataset` of (source, target) scalar strings.

            Text is UTF-8. A byte order mark, CR before the end of a line and empty lines are ignored. A side that
            consists only of spaces, control characters and invisible marks (U+200B, U+FEFF) counts as empty.
        limit: how many pairs to read at most; None for all.
        seed: decides the order of files if `shuffle_files` is set.
        epoch: which of the seed's orders to use, a number or a scalar tensor. Default: each iteration of the dataset is
            the next epoch.
        report: a `Report` that each complete pass (up to the limit) fills with counts of what it read and left out. If
            `num_shards` divides a file, they count the whole file.
        columns: which columns or keys to read, the target last: two names or more, which a tab-separated file has in
            its first line, or numbers counted from 1, as in `cut -f`, which also choose parallel files. In JSON Lines
            `translation.en` is the key `en` of the object under `translation`, if no key has that whole name. If
            several come before the target, they are columns of the source: one text with tabs between them, of which
            all but the first may be empty. Default: the first two columns, or the keys `source` and `target`.
        source_columns: the names of the columns that each source must have, as in the `column_names` of a
            `ColumnsTokenizer`. If there are N, the default of `columns` is the first N + 1.
        reverse: whether to swap source and target.
        weights: how often to draw from each of several corpora, relative to the others. An epoch ends when every
            corpus has been read at least once; one that ends earlier starts over. Default: one after the other.
        on_bad_line: "error", or "skip" for lines with missing columns, an empty side or invalid UTF-8.
        max_length: leave out pairs with a side of more characters, in all its columns.
        max_ratio: leave out pairs with one side more than this many times as long as the other. Only the first column
            of a source counts.
        drop_duplicates: leave out pairs that occurred among the last 131,072 or more of the same file.
        shuffle_files: whether to read several files alternately, in an order that is new each epoch.
        num_shards, index: read one of `num_shards` parts, for one worker among several. Together the parts are the
            corpus: whole files if there are enough, else every num_shards-th pair of each file.

    Returns:
        A `tf.data.Dataset` of (source, target) scalar strings.

    Raises:
        OptionError: if an option is invalid.
        CorpusError: immediately, if there is no such corpus; during iteration of the dataset, for text that cannot be
            read. TensorFlow wraps the latter in its own error; `corpus_errors` unwraps it.
    """
    check_number("limit", limit, least=0, optional=True)
    check_number("seed", seed, least=0, below=2**32)
    if not isinstance(epoch, tf.Tensor):
        check_number("epoch", epoch, least=0, optional=True)
    reader = open_corpora(corpus, **options)
    if limit is not None and reader.num_shards > 1:
        raise OptionError("limit and num_shards cannot be combined")
    column = tf.TensorSpec([None], tf.string)

    def generate(seed):
        _reuse_memory()
        own = Report()
        pairs = itertools.islice(reader.pairs(int(seed), own), limit)  # a pass up to the limit is complete
        while chunk := list(itertools.islice(pairs, _CHUNK)):
            yield tuple(zip(*chunk, strict=True))
        if report is not None:
            vars(report).update(vars(own))

    def chunks(seed):
        return tf.data.Dataset.from_generator(generate, args=[seed], output_signature=(column, column)).prefetch(4)

    if epoch is None and reader.shuffle_files:
        pairs = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).take(1).flat_map(chunks)
    else:
        pairs = chunks(seed if epoch is None else seed + tf.cast(epoch, tf.int64) * 2**32)
    return pairs.unbatch().with_options(WITHOUT_AUTOTUNE)


@contextlib.contextmanager
def corpus_errors() -> Iterator[None]:
    """Unwrap a `CorpusError` raised inside a dataset from the `tf.errors.OpError` that TensorFlow makes of it."""
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(r"CorpusError: (.*)", error.message)
        if found is None:
            raise
        raise CorpusError(found[1]) from None


def split_by_hash(
    pairs: tf.data.Dataset, fraction: float, source_tokenizer: Tokenizer
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Split pairs into (training, validation) by a hash of the source text as the model sees it.

    Sources that the tokenizer normalizes to the same text, or that differ only in whitespace, end up in the same split,
    with all their translations. The split of a source depends only on that text: it is the same in every epoch, on
    every machine and in every corpus.

    Args:
        pairs: a `tf.data.Dataset` of (source, target) scalar strings.
        fraction: the approximate fraction of sources to hold out, 0 or more, below 1.
        source_tokenizer: the `Tokenizer` of the sources, which needs no vocabulary yet.

    Raises:
        OptionError: if the fraction is out of range, or for anything but a dataset of pairs.
    """
    return tuple(side_by_hash(pairs, fraction, source_tokenizer, held_out) for held_out in (False, True))


def side_by_hash(
    pairs: tf.data.Dataset, fraction: float, source_tokenizer: Tokenizer, held_out: bool
) -> tf.data.Dataset:
    """One side of `split_by_hash`."""
    check_pairs(pairs)
    check_number("fraction", fraction, float, least=0, below=1)

    @tf.autograph.experimental.do_not_convert
    def select(sources, targets):
        keys = _source_keys(sources, source_tokenizer)
        # Fingerprint64 of FarmHash, which TensorFlow promises never to change.
        chosen = (tf.strings.to_hash_bucket_fast(keys, 1_000_000) < round(fraction * 1_000_000)) == held_out
        return tf.boolean_mask(sources, chosen), tf.boolean_mask(targets, chosen)

    return pairs.batch(_CHUNK).map(select, num_parallel_calls=2).unbatch()


def _source_keys(sources, tokenizer):
    """Make keys `[B]` of sources `[B]`: equal if no tokenizer of this normal form can tell the sources apart."""
    texts = tokenizer.normalize(sources)
    space, word = f"[{WHITESPACE}▁]+", f"[^{WHITESPACE}▁]+"
    # Most corpora have only single spaces, and checking for that takes a sixth of the time.
    return tf.cond(
        tf.reduce_all(tf.strings.regex_full_match(texts, f"({word}( {word})*)?")),
        lambda: texts,
        lambda: tf.strings.strip(tf.strings.regex_replace(texts, space, " ")),
    )


def split_last(pairs: tf.data.Dataset, fraction: float) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Split pairs into (training, validation), the last `fraction` held out, as in the Keras tutorial.

    It first counts the pairs, which reads them all. Translations of one source may end up in both splits; `sources_in`
    finds them. Each iteration of the dataset must have the same order; otherwise a pair can be in both splits.

    Raises:
        OptionError: for a fraction below 0, or 1 and more, or for anything but a dataset of pairs.
    """
    check_number("fraction", fraction, float, least=0, below=1)
    count = count_pairs(pairs)
    training = count - int(count * fraction)
    return pairs.take(training), pairs.skip(training)


def sources_in(pairs: tf.data.Dataset, training: tf.data.Dataset, source_tokenizer: Tokenizer) -> np.ndarray:
    """Find the pairs whose source is also that of a training pair, with any target.

    Sources are compared as in `split_by_hash`, by fingerprints of 64 bits. Memory is about 70 bytes a pair of `pairs`.

    Args:
        pairs, training: two `tf.data.Dataset`s of (source, target) scalar strings; N pairs in the first.
        source_tokenizer: the `Tokenizer` of the sources, which needs no vocabulary yet.

    Returns:
        bool `[N]`.

    Raises:
        OptionError: for anything but a dataset of pairs.
    """
    check_pairs(pairs)
    check_pairs(training, "training")

    def fingerprints(pairs):
        @tf.autograph.experimental.do_not_convert
        def fingerprint(sources, _):
            return tf.strings.to_hash_bucket_fast(_source_keys(sources, source_tokenizer), tf.int64.max)

        return pairs.batch(_CHUNK).map(fingerprint, num_parallel_calls=2).as_numpy_iterator()

    wanted, places = np.unique(np.concatenate([np.zeros(0, np.int64), *fingerprints(pairs)]), return_inverse=True)
    found = np.zeros(len(wanted), bool)
    for batch in fingerprints(training) if len(wanted) else ():
        at = np.minimum(np.searchsorted(wanted, batch), len(wanted) - 1)
        found[at[wanted[at] == batch]] = True
    return found[places]


@dataclasses.dataclass
class Survey:
    """Counts of the pairs, tokens and lengths of a dataset."""

    pairs: int = 0
    longer: int = 0  # sum over all pairs of the length of their longer side, in characters
    tokens: tuple[collections.Counter[bytes], collections.Counter[bytes]] = dataclasses.field(
        default_factory=lambda: (collections.Counter(), collections.Counter()), repr=False
    )
    lengths: tuple[collections.Counter[int], collections.Counter[int]] = dataclasses.field(
        default_factory=lambda: (collections.Counter(), collections.Counter()), repr=False
    )

    def length(self, side: int, quantile: float) -> int:
        """The quantile of the lengths in tokens of a side, 0 for source or 1 for target."""
        lengths, counts = list(self.lengths[side]), list(self.lengths[side].values())
        return int(np.quantile(lengths, quantile, weights=counts, method="inverted_cdf")) if lengths else 0

    def as_dict(self) -> dict:
        """Everything, for JSON: tokens by frequency, bytes that are not UTF-8 as `\\xc3`, lengths in rising order."""
        tokens = [
            {token.decode(errors="backslashreplace"): count for token, count in side.most_common()}
            for side in self.tokens
        ]
        lengths = [dict(sorted(side.items())) for side in self.lengths]
        return {
            "pairs": self.pairs,
            "source": {"tokens": tokens[0], "lengths": lengths[0]},
            "target": {"tokens": tokens[1], "lengths": lengths[1]},
        }


def survey(
    pairs: tf.data.Dataset,
    source_tokenizer: Tokenizer,
    target_tokenizer: Tokenizer,
    progress: Callable[[int], None] | None = None,
) -> Survey:
    """Count pairs, and tokens and lengths in tokens of both sides, in one streaming pass.

    Args:
        pairs: a `tf.data.Dataset` of (source, target) scalar strings.
        source_tokenizer, target_tokenizer: they need no vocabulary yet.
        progress: a function to call now and then with the number of pairs counted so far.

    Returns:
        A `Survey`, each of its tuples for (source, target). Its tokens are what `take_vocabulary` takes.

    Raises:
        OptionError: for anything but a dataset of pairs.
    """
    check_pairs(pairs)

    @tf.autograph.experimental.do_not_convert
    def count(sources, targets):
        longer = tf.maximum(*(tf.strings.length(side, "UTF8_CHAR") for side in (sources, targets)))
        return (source_tokenizer.count(sources), target_tokenizer.count(targets)), tf.reduce_sum(longer)

    found = Survey()
    batches = pairs.batch(_CHUNK).map(count, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    for sides, longer in batches.as_numpy_iterator():
        for side, (tokens, numbers, lengths) in enumerate(sides):
            found.tokens[side].update(dict(zip(tokens.tolist(), numbers.tolist(), strict=True)))
            found.lengths[side].update(lengths.tolist())
        found.pairs += len(lengths)
        found.longer += int(longer)
        if progress:
            progress(found.pairs)
    return found


def count_pairs(pairs: tf.data.Dataset) -> int:
    """Count the pairs in a dataset by reading it once.

    Raises:
        OptionError: for anything but a dataset of pairs.
    """
    check_pairs(pairs)
    counts = pairs.batch(_CHUNK).map(lambda sources, _: tf.size(sources, tf.int64))
    return int(counts.reduce(np.int64(0), tf.add))


def group_by_source(pairs: tf.data.Dataset) -> dict[str, list[str]]:
    """Read pairs into memory, as text: {source: [its targets, in their order]}.

    Sources that differ only in their Unicode form (NFC, NFD) are one source, in the form that occurs first.

    Raises:
        CorpusError: for a text that is not UTF-8.
        OptionError: for anything but a dataset of pairs.
    """
    check_pairs(pairs)
    found: dict[str, tuple[str, list[str]]] = {}
    for number, pair in enumerate(pairs.as_numpy_iterator(), start=1):
        try:
            source, target = (text.decode() for text in pair)
        except UnicodeDecodeError as error:
            raise CorpusError(f"pair {number}: a text is not UTF-8 ({one_line(error)})") from None
        found.setdefault(unicodedata.normalize("NFC", source), (source, []))[1].append(target)
    return dict(found.values())
