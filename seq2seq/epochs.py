"""What a run reads: the pairs to train on, those held out, and the batches of each epoch."""

import math
from typing import Any

import tensorflow as tf

from pipelines import Report, Tokenizer, batch_pairs, read_pairs, split_by_hash, split_last
from pipelines.corpora import UNTUNED
from seq2seq.config import Config, reading_options


def both_sides(config: Config, source_tokenizer: Tokenizer, **options: Any) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """The pairs to train on and those held out; the tokenizer needs no vocabulary yet."""
    pairs = read_pairs(config.corpus, config.limit, **options, **reading_options(config))
    if config.validation:
        return pairs, validation_pairs(config)
    if config.split == "last":
        return split_last(pairs, config.validation_fraction)
    return split_by_hash(pairs, config.validation_fraction, source_tokenizer)


def validation_pairs(config: Config, report: Report | None = None, **options: Any) -> tf.data.Dataset:
    """The pairs of `config.validation`, whole: what cleans the corpus leaves nothing out of what figures are of."""
    options |= {name: getattr(config, name) for name in ("columns", "reverse", "on_bad_line")}
    return read_pairs(config.validation, report=report, **options)


def training_batches(run, seen):
    """The batches after so many pairs, epoch after epoch: a `tf.data.Dataset` without end."""
    config, source_tokenizer = run.config, run.model.source_tokenizer
    # How many batches a pass makes depends on its order where they hold so many tokens, so passes are counted in pairs.
    begun, skip = divmod(seen, run.pairs)
    always = None if _reorders(config) else both_sides(config, source_tokenizer)[0]

    @tf.autograph.experimental.do_not_convert
    def one_pass(number):
        # Where small corpora start over, how often may depend on the order; so as many in each pass as in the first.
        pairs = (always or training_pairs(config, source_tokenizer, number)).repeat().take(run.pairs)
        return run_batches(run, pairs, seed=config.seed, epoch=number, skip=tf.where(number == begun, skip, 0))

    passes = tf.data.Dataset.range(begun, tf.int64.max).flat_map(one_pass).prefetch(2).with_options(UNTUNED)
    return passes.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def run_batches(run, pairs, **options):
    config, model = run.config, run.model
    tokenizers = model.source_tokenizer, model.target_tokenizer
    sizes = {"batch_tokens": config.batch_tokens, "encoding": config.encoding}
    return batch_pairs(pairs, *tokenizers, config.batch_size, **sizes, **options)


def training_pairs(config, source_tokenizer, number, **options):
    """The pairs to train on, in the order of an epoch, given as a number or a tensor."""
    if _reorders(config):
        options |= {"shuffle_files": True, "weights": config.weights, "seed": config.seed, "epoch": number}
    return both_sides(config, source_tokenizer, **options)[0]


def _reorders(config):
    """Whether files are read in a new order each epoch: not where what is trained on depends on the order."""
    return config.split == "hash" and config.limit is None


def steps_per_epoch(config, tokenizers, found):
    """How many batches an epoch has."""
    if not config.batch_tokens:
        return math.ceil(found.pairs / config.batch_size)
    # How many a pass makes depends on its order. An epoch has about as many; pass follows on pass.
    longer = found.longer * _tokens_per_character(both_sides(config, tokenizers[0])[0], tokenizers)
    return math.ceil((longer + found.pairs) / config.batch_tokens)


def epoch_count(config, steps):
    """How many epochs a training has, of so many steps each."""
    if config.updates is not None:
        return max(1, round(config.updates / steps))
    return config.epochs or min(100, max(8, round(2000 / steps)))


def _tokens_per_character(pairs, tokenizers):
    """How many tokens the longer sides of pairs have for each character: of the first 10,000 pairs, as an estimate."""
    tokens = characters = 0
    for sides in pairs.take(10_000).batch(1000):
        tokens += tf.reduce_sum(tf.maximum(*(of.lengths(side) for of, side in zip(tokenizers, sides, strict=True))))
        characters += tf.reduce_sum(tf.maximum(*(tf.strings.length(side, "UTF8_CHAR") for side in sides)))
    return int(tokens) / max(1, int(characters))
