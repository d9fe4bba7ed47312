"""The training pairs and the held-out pairs of a run, and the batches of each epoch."""

import math
from typing import Any

import tensorflow as tf

from pipelines import Tokenizer, batch_pairs, read_pairs, split_last
from pipelines.corpora import WITHOUT_AUTOTUNE, side_by_hash
from seq2seq.config import Config, reading_options
from seq2seq.progress import TrainingRun


def training_pairs(
    config: Config, source_tokenizer: Tokenizer, epoch: int | tf.Tensor | None = None, **options: Any
) -> tf.data.Dataset:
    """The pairs to train on. The tokenizer needs no vocabulary yet.

    Args:
        config: the configuration of the run.
        source_tokenizer: the run's.
        epoch: the epoch in whose order they are, counted from 0. Default: each pair once, in the order of the corpus.
        options: other arguments of `read_pairs`.
    """
    if epoch is not None and _reorders(config):
        options |= {"shuffle_files": True, "weights": config.weights, "seed": config.seed, "epoch": epoch}
    return _side(config, source_tokenizer, False, **options)


def validation_pairs(config: Config, source_tokenizer: Tokenizer, **options: Any) -> tf.data.Dataset:
    """The held-out pairs: one side of the corpus, or all of `config.validation`, to which the options that clean the
    corpus do not apply."""
    if not config.validation:
        return _side(config, source_tokenizer, True, **options)
    options |= {name: getattr(config, name) for name in ("columns", "reverse", "on_bad_line")}
    return read_pairs(config.validation, source_columns=source_tokenizer.column_names, **options)


def _side(config, source_tokenizer, held_out, **options):
    pairs = read_pairs(config.corpus, config.limit, **options, **reading_options(config))
    if config.validation:
        return pairs
    if config.split == "last":
        return split_last(pairs, config.validation_fraction)[held_out]
    return side_by_hash(pairs, config.validation_fraction, source_tokenizer, held_out)


def _reorders(config):
    """Whether files are read in a new order each epoch: not if the order determines the training set."""
    return config.split == "hash" and config.limit is None


def training_batches(run: TrainingRun, seen: int) -> tf.data.Dataset:
    """The batches of a run after this many pairs, pass after pass: an endless `tf.data.Dataset`."""
    config, source_tokenizer = run.config, run.model.source_tokenizer
    # Counted in passes over the training set, because an epoch may be shorter or longer.
    begun, skip = divmod(seen, run.pairs)
    always = None if _reorders(config) else training_pairs(config, source_tokenizer)

    @tf.autograph.experimental.do_not_convert
    def one_pass(number):
        # With weights, the order determines how often a small corpus repeats; so all passes are as long as the first.
        pairs = (always or training_pairs(config, source_tokenizer, number)).repeat().take(run.pairs)
        return make_batches(run, pairs, seed=config.seed, epoch=number, skip=tf.where(number == begun, skip, 0))

    passes = tf.data.Dataset.range(begun, tf.int64.max).flat_map(one_pass).prefetch(2).with_options(WITHOUT_AUTOTUNE)
    return passes.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def make_batches(run: TrainingRun, pairs: tf.data.Dataset, **options: Any) -> tf.data.Dataset:
    """Pairs in batches as the model of a run takes them; the options are those of `batch_pairs`."""
    config, model = run.config, run.model
    options |= {"batch_tokens": config.batch_tokens, "encoding": config.encoding}
    return batch_pairs(pairs, model.source_tokenizer, model.target_tokenizer, config.batch_size, **options)


def count_batches(config: Config, tokenizers: list[Tokenizer], found: Any) -> int:
    """The number of batches in one pass over the training set, from its `Survey`."""
    if not config.batch_tokens:
        return math.ceil(found.pairs / config.batch_size)
    # The number depends on the order, so this is an estimate.
    longer = found.longer * _tokens_per_character(training_pairs(config, tokenizers[0]), tokenizers)
    return math.ceil((longer + found.pairs) / config.batch_tokens)


def _tokens_per_character(pairs, tokenizers):
    """The number of tokens per character in the longer sides of the first 10,000 pairs."""
    tokens = characters = 0
    for sides in pairs.take(10_000).batch(1000):
        tokens += tf.reduce_sum(tf.maximum(*(of.lengths(side) for of, side in zip(tokenizers, sides, strict=True))))
        characters += tf.reduce_sum(tf.maximum(*(tf.strings.length(side, "UTF8_CHAR") for side in sides)))
    return int(tokens) / max(1, int(characters))


def training_length(config: Config, pairs: int, batches: int) -> tuple[int, int]:
    """The number of steps in an epoch and the number of epochs, for a training set of this many pairs and batches.

    An epoch is one pass over the training set, or has `steps_per_epoch`; but never more steps than the wanted updates.
    """
    steps = config.steps_per_epoch or batches
    if config.epochs:
        return steps, config.epochs
    if config.updates:
        steps = min(steps, config.updates)
        return steps, round(config.updates / steps)
    least, most = config.usual_epochs
    # Ten times as many pairs need more updates, but not ten times as many: see docs/ablations.md.
    updates = config.usual_updates * max(1, pairs / 1000) ** math.log10(2)
    updates = int(min(most * batches, max(least * batches, updates)))
    steps = min(steps, updates)
    return steps, updates // steps
