"""Corpora: pairs of strings as a `tf.data.Dataset`, their division into training and validation, and their survey."""

import collections
import contextlib
import dataclasses
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.files import CorpusError
from pipelines.formats import Corpora
from pipelines.readers import Report, open_corpora
from pipelines.tokens import WHITESPACE, Tokenizer

# What tunes buffers is a thread that may sleep through the end of an iteration (TensorFlow 2.21 wakes it before it can
# see that it is cancelled), and all wait for it then, for up to a minute. Nothing here is faster for being tuned.
UNTUNED = tf.data.Options()
UNTUNED.autotune.enabled = False

_CHUNK = 4096  # pairs handed to TensorFlow at a time


def read_pairs(
    corpus: Corpora,
    limit: int | None = None,
    *,
    seed: int = 0,
    epoch: int | tf.Tensor | None = None,
    report: Report | None = None,
    **options: Any,
) -> tf.data.Dataset:
    """Reads parallel text lazily, in memory that does not grow with the corpus.

    Args:
        corpus: what to read, or a list of such:

            - the name of a corpus: `phrasebook` comes with this package, `spa-eng` (118,964 English-Spanish pairs from
              tatoeba.org) is downloaded once into the Keras cache. A file of such a name is `./phrasebook` or a `Path`;
            - a file: tab-separated text (`source TAB target` on each line; a third column is ignored), JSON Lines
              (`.jsonl`, `.ndjson`, `.json`), each plain or with `.gz`, `.bz2` or `.xz`, or TFRecord (`.tfrecord`, plain
              or with `.gz`) of examples with two strings;
            - a file in a zip, `archive.zip/folder/file.tsv`, or the zip alone if there is one file in it;
            - `-`, tab-separated text on standard input, or a named pipe; they can be read once;
            - parallel files of equally many lines, `corpus.en+corpus.es`; all but the last are columns of the source. A
              file or folder with a `+` in its name is found first;
            - a glob, in which `**` stands for any number of folders: its files in the order of their names;
            - a folder: likewise, but without `.json`, which may be a manifest;
            - a list of (source, target) strings;
            - a `tf.data.Dataset` of (source, target) scalar strings.

            Text is UTF-8. A byte order mark, CR before the end of a line and lines with nothing in them are ignored. A
            side of spaces, control characters and invisible marks (U+200B, U+FEFF) alone is empty.
        limit: how many pairs to read at most; None for all.
        seed: decides the order of files where `shuffle_files` is set.
        epoch: which of the orders that follow from it to take, a number or a scalar tensor. Default: each iteration of
            the dataset is the next epoch.
        report: a `Report`, which each complete pass, up to the limit, fills with what it read and left out.
        columns: which columns or keys to read, the target last: two names or more, which a tab-separated file has in
            its first line, or numbers counted from 1, as in `cut -f`. In JSON Lines `translation.en` is the key `en` of
            the object under `translation`, if no key has that whole name. More than one before the target are columns
            of the source, which then is one text with tabs between them; all but the first may be empty. Default: the
            first two columns, or the keys `source` and `target`.
        source_columns: the names of the columns that each source must have, as a `ColumnsTokenizer` has them in
            `column_names`. With several, the default of `columns` is the first so many and one more.
        reverse: whether to swap source and target.
        weights: how often to draw from each of several corpora, relative to the others. The smaller ones start over
            until each has been read once. Default: one after the other.
        on_bad_line: "error", or "skip" for lines with missing columns, an empty side or invalid UTF-8.
        max_length: leave out pairs with a side of more characters, in all its columns.
        max_ratio: leave out pairs with one side so many times longer than the other; of a source the first column
            counts.
        drop_duplicates: leave out pairs that came before among the last 131,072 or more of the same file.
        shuffle_files: whether to read several files in turns, in an order that is new each epoch.
        num_shards, index: read one part of so many, for one worker among several. Together the parts are the corpus:
            whole files where there are enough, else every num_shards-th pair of each.

    Returns:
        A `tf.data.Dataset` of (source, target) scalar strings.

    Raises:
        CorpusError: here if there is no such corpus or an option does not fit; while the dataset is iterated, for text
            that cannot be read. TensorFlow wraps the latter in an error of its own that quotes it; `corpus_errors`
            takes it out again.
    """
    if limit is not None and limit < 0:
        raise CorpusError(f"limit={limit}: expected 0 or more, or None")
    if limit is not None and options.get("num_shards", 1) > 1:
        raise CorpusError("limit and num_shards exclude each other")
    reader = open_corpora(corpus, **options)
    column = tf.TensorSpec([None], tf.string)
    generator = _chunks(reader, limit, report)

    def chunks(seed):
        return tf.data.Dataset.from_generator(generator, args=[seed], output_signature=(column, column)).prefetch(4)

    if epoch is not None:
        pairs = chunks(seed + tf.cast(epoch, tf.int64) * 2**32).unbatch()
    elif reader.shuffle_files:
        seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).take(1)
        pairs = seeds.flat_map(chunks).unbatch()
    else:
        pairs = chunks(seed).unbatch()
    return pairs.with_options(UNTUNED)


def _chunks(reader, limit, report):
    """A generator function: the pairs of one pass as (sources, targets), two lists of at most `_CHUNK` byte strings."""

    def chunks(seed):
        own = Report()
        pairs = itertools.islice(reader.pairs(int(seed), own), limit)  # so that a pass up to the limit is whole
        while chunk := list(itertools.islice(pairs, _CHUNK)):
            sources, targets = zip(*chunk, strict=True)
            yield sources, targets
        if report is not None:
            vars(report).update(vars(own))

    return chunks


@contextlib.contextmanager
def corpus_errors() -> Iterator[None]:
    """Raises a `CorpusError` from inside a dataset as itself, not as the `tf.errors.OpError` TensorFlow makes of it."""
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
    """Divides pairs into (training, validation) by a hash of the source text as the model sees it.

    Sources that the tokenizer normalizes to the same text, or that differ only in whitespace, fall on the same side
    with all their translations. The side depends on nothing but that text. It is therefore the same in every epoch, on
    every machine and in every corpus, and no pass over the corpus is needed to know it.

    Args:
        pairs: a `tf.data.Dataset` of (source, target) scalar strings.
        fraction: about how much of the sources to hold out, between 0 and 1.
        source_tokenizer: the `Tokenizer` of the sources, which needs no vocabulary yet.
    """

    def side(held_out):
        def select(sources, targets):
            keys = _source_keys(sources, source_tokenizer)
            # Fingerprint64 of FarmHash, which TensorFlow promises never to change.
            chosen = (tf.strings.to_hash_bucket_fast(keys, 1_000_000) < round(fraction * 1_000_000)) == held_out
            return tf.boolean_mask(sources, chosen), tf.boolean_mask(targets, chosen)

        return pairs.batch(_CHUNK).map(select, num_parallel_calls=2).unbatch()

    return side(False), side(True)


def _source_keys(sources, tokenizer):
    """Of sources `[B]`, strings `[B]` that are equal where no tokenizer of this normal form can tell sources apart."""
    texts = tokenizer.normalize(sources)
    space, word = f"[{WHITESPACE}▁]+", f"[^{WHITESPACE}▁]+"
    # Most corpora have nothing but single spaces, and seeing that takes a sixth of the time.
    return tf.cond(
        tf.reduce_all(tf.strings.regex_full_match(texts, f"({word}( {word})*)?")),
        lambda: texts,
        lambda: tf.strings.strip(tf.strings.regex_replace(texts, space, " ")),
    )


def split_last(pairs: tf.data.Dataset, fraction: float) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Divides pairs into (training, validation) where the last `fraction` is held out, as the Keras tutorial does.

    Counts the pairs first, which reads them all. Several translations of one source may fall on both sides;
    `sources_in` tells which.
    """
    count = count_pairs(pairs)
    training = count - int(count * fraction)
    return pairs.take(training), pairs.skip(training)


def sources_in(pairs: tf.data.Dataset, training: tf.data.Dataset, source_tokenizer: Tokenizer) -> np.ndarray:
    """Finds the pairs whose source is also one of the training pairs, with whatever target.

    Sources are compared as `split_by_hash` compares them, by fingerprints of 64 bits. Memory grows with `pairs`, 8
    bytes for each, and not with `training`.

    Args:
        pairs, training: two `tf.data.Dataset`s of (source, target) scalar strings; N pairs in the first.
        source_tokenizer: the `Tokenizer` of the sources, which needs no vocabulary yet.

    Returns:
        bool `[N]`.
    """

    def fingerprints(pairs):
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
    """What one pass over pairs has found."""

    pairs: int = 0
    longer: int = 0  # sum over all pairs of the length of their longer side, in characters
    tokens: tuple[collections.Counter[bytes], collections.Counter[bytes]] = dataclasses.field(
        default_factory=lambda: (collections.Counter(), collections.Counter())
    )
    lengths: tuple[collections.Counter[int], collections.Counter[int]] = dataclasses.field(
        default_factory=lambda: (collections.Counter(), collections.Counter())
    )

    def length(self, side: int, quantile: float) -> int:
        """The length in tokens that this share of the texts of a side (0 source, 1 target) does not exceed."""
        left = max(1, math.ceil(quantile * self.pairs))
        for length in sorted(self.lengths[side]):
            left -= self.lengths[side][length]
            if left <= 0:
                return length
        return 0

    def as_dict(self) -> dict:
        """All of it, as JSON can hold it: tokens by frequency, bytes of no UTF-8 as `\\xc3`, lengths rising."""
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
    """Counts pairs, tokens and lengths in tokens, of both sides in one streaming pass.

    Args:
        pairs: a `tf.data.Dataset` of (source, target) scalar strings.
        source_tokenizer, target_tokenizer: what cuts the text into tokens; they need no vocabulary yet.
        progress: a function to call now and then with the number of pairs counted so far.

    Returns:
        A `Survey`, each of its tuples for (source, target); `take_vocabulary` makes a vocabulary of its tokens. Those
        of a source's second column begin with a tab, of its third with two, as `ColumnsTokenizer.count` gives them.
    """

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
    """Number of pairs in a dataset, by reading it once."""
    counts = pairs.batch(_CHUNK).map(lambda sources, _: tf.size(sources, tf.int64))
    return int(counts.reduce(np.int64(0), tf.add))


def group_by_source(pairs: tf.data.Dataset) -> dict[str, list[str]]:
    """Reads pairs into memory, as text: {source: [its targets, in the order they come]}.

    Sources that are one text in two Unicode forms (NFC and NFD, say) are one source, written as it comes first.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for source, target in pairs.as_numpy_iterator():
        text = source.decode()
        found.setdefault(unicodedata.normalize("NFC", text), (text, []))[1].append(target.decode())
    return dict(found.values())
