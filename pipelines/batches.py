"""Batches: pairs of strings, shuffled, grouped by length and encoded a whole batch at a time."""

import os

import numpy as np
import tensorflow as tf

from pipelines.corpora import WITHOUT_AUTOTUNE
from pipelines.formats import check_pairs
from pipelines.options import OptionError, check_number, choose
from pipelines.tokens import Tokenizer, check_tokenizers, target_ids


def batch_pairs(
    pairs: tf.data.Dataset,
    source_tokenizer: Tokenizer,
    target_tokenizer: Tokenizer,
    batch_size: int = 64,
    *,
    batch_tokens: int | None = None,
    encoding: str = "one_hot",
    longest_source: int | None = None,
    window: int = 1 << 17,
    shuffle: bool = True,
    seed: int | None = None,
    epoch: int | tf.Tensor | None = None,
    skip: int | tf.Tensor = 0,
) -> tf.data.Dataset:
    """Make the batches that `Seq2Seq.fit` and `evaluate` read, lazily.

    A window of pairs is shuffled, sorted by length and cut into batches, which are shuffled again. So a batch holds
    random pairs of similar length, with little padding. Tokenizing and one-hot encoding run once on each whole batch,
    on several threads, while the model works on the previous one.

    Args:
        pairs: a `tf.data.Dataset` of (source, target) scalar strings.
        source_tokenizer, target_tokenizer: adapted tokenizers.
        batch_size: pairs in a batch, B; one batch of the corpus may hold fewer.
        batch_tokens: instead of `batch_size`, the maximum size of a batch: its pairs times the longer side of its
            longest pair, in tokens, with padding and, of the target, END. A longer pair is a batch of its own.
        encoding: "one_hot", float32 rows, or "ids", which are V times smaller. A model learns the same from both.
        longest_source: how many tokens of each source are read; None for all.
        window: how many pairs are shuffled and sorted together. All of them are in memory at once: some tens of
            megabytes if the texts are sentences.
        shuffle: whether pairs and batches come in a new random order each epoch.
        seed: makes those orders the same in every run.
        epoch: which of those orders to use, a number or a scalar tensor, to resume in the middle of an epoch. Default:
            each iteration of the dataset is the next epoch.
        skip: how many pairs of `epoch` to leave out, in whole batches from its start. They are read, but not encoded.

    Returns:
        A `tf.data.Dataset` of (source `[B, S, Vs]`, target `[B, T + 1, Vt]`), the target from START to END, padding as
        all-zero rows on the right; with `encoding="ids"`, int32 `[B, S]` and `[B, T + 1]`, padding as 0.

    Raises:
        OptionError: for pairs that are not a dataset, tokenizers that are not `Tokenizer`, an encoding that is neither
            of the two, a size below 1, or a `skip` that is negative or without `epoch`.
    """
    check_pairs(pairs)
    check_tokenizers(source_tokenizer, target_tokenizer)
    choose("encoding", encoding, ("one_hot", "ids"))
    check_number("batch_size", batch_size, least=1)
    check_number("batch_tokens", batch_tokens, least=1, optional=True)
    check_number("longest_source", longest_source, least=1, optional=True)
    check_number("window", window, least=1)
    check_number("seed", seed, least=0, below=2**32, optional=True)
    if not isinstance(epoch, tf.Tensor):
        check_number("epoch", epoch, least=0, optional=True)
    if not isinstance(skip, tf.Tensor):
        check_number("skip", skip, least=0)
    if epoch is None and (isinstance(skip, tf.Tensor) or skip):
        raise OptionError("skip: needs epoch, whose order decides which pairs are skipped")
    skip = tf.cast(skip, tf.int64)
    if not batch_tokens:
        window = -(-window // batch_size) * batch_size  # rounded up, so that only one batch is smaller

    @tf.autograph.experimental.do_not_convert
    def group_by_length(number, pairs, seed):
        sources, targets = pairs
        lengths = [source_tokenizer.lengths(sources), target_tokenizer.lengths(targets)]
        order = tf.range(tf.size(sources))
        if shuffle:  # the sort keeps this order if lengths are equal
            order = tf.random.experimental.stateless_shuffle(order, [seed, 0])
        order = tf.gather(order, _length_order(*(tf.gather(side, order) for side in lengths)))
        sources, targets = tf.gather(sources, order), tf.gather(targets, order)
        if batch_tokens:
            longer = tf.gather(tf.maximum(lengths[0], lengths[1] + 1), order)
            ends = tf.numpy_function(_token_ends, [longer, batch_tokens], tf.int64, stateful=False)
            ends.set_shape([None])
        else:
            count = tf.size(order, tf.int64)
            ends = tf.minimum(tf.range(batch_size, count + batch_size, batch_size, tf.int64), count)
        bounds = tf.stack([tf.concat([[0], ends[:-1]], axis=0), ends], axis=1)
        if shuffle:
            bounds = tf.random.experimental.stateless_shuffle(bounds, [seed, 1])
        seen = tf.where(number == skip // window, skip % window, 0)
        bounds = tf.boolean_mask(bounds, tf.cumsum(bounds[:, 1] - bounds[:, 0]) > seen)
        batches = tf.data.Dataset.from_tensor_slices(bounds)
        return batches.map(lambda bound: (sources[bound[0] : bound[1]], targets[bound[0] : bound[1]]))

    @tf.autograph.experimental.do_not_convert
    def encode(sources, targets):
        source = source_tokenizer.tokenize(sources)[:, :longest_source]
        target = target_ids(target_tokenizer, targets, source_tokenizer, sources, longest_source)
        if encoding == "one_hot":
            source, target = source_tokenizer.one_hot(source), target_tokenizer.one_hot(target)
        return source, target

    for tokenizer in (source_tokenizer, target_tokenizer):
        tokenizer.batched_vocabulary = tuple(tokenizer.vocabulary)
    windows = pairs.batch(window).enumerate().skip(skip // window)
    if epoch is None:
        seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
        windows = tf.data.Dataset.zip(windows, seeds).map(lambda window, seed: (*window, seed))
    else:
        windows = windows.map(lambda number, pairs: (number, pairs, _random_number(seed or 0, epoch, number)))
    batches = windows.flat_map(group_by_length)
    cores = len(os.sched_getaffinity(0))
    encoded = batches.prefetch(16).map(encode, num_parallel_calls=cores).prefetch(tf.data.AUTOTUNE)
    return encoded.with_options(WITHOUT_AUTOTUNE)


def _random_number(seed, *numbers):
    """Draw an int64 that depends only on these numbers."""
    seeds = tf.stack([tf.cast(seed, tf.int64), 0])
    for number in numbers:
        seeds = tf.random.experimental.stateless_fold_in(seeds, tf.cast(number, tf.int64))
    return tf.random.stateless_uniform([], seeds, minval=None, maxval=None, dtype=tf.int64)


def _length_order(source_lengths, target_lengths):
    """Order pairs by target length and then by source length, the latter alternately ascending and descending.

    So neighbours are similar on both sides, even if the target length changes. Two adjacent target lengths are treated
    as one, which costs a little padding on one side and saves more on the other.
    """
    source_lengths, target_lengths = (tf.cast(lengths, tf.int64) for lengths in (source_lengths, target_lengths))
    step, longest = target_lengths // 2, tf.reduce_max(source_lengths)
    within = tf.where(step % 2 == 0, source_lengths, longest - source_lengths)
    return tf.argsort(step * (longest + 1) + within, stable=True)


def _token_ends(lengths, budget):
    """Find the ends of batches whose rows times their longest length stay within the budget."""
    ends, start, longest = [], 0, 0
    for position, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if position > start and (position + 1 - start) * longest > budget:
            ends.append(position)
            start, longest = position, length
    return np.array([*ends, len(lengths)], np.int64)
