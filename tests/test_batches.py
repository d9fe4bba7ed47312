import numpy as np
import tensorflow as tf

from pipelines import batch_pairs, read_pairs


def texts(batches, tokenizers):
    """The pairs in each batch, as sets of strings."""
    return [
        {
            (source.decode(), target.decode())
            for source, target in zip(
                tokenizers[0].detokenize(tf.argmax(sources, -1)).numpy(),
                tokenizers[1].detokenize(tf.argmax(targets, -1)).numpy(),
                strict=True,
            )
        }
        for sources, targets in batches
    ]


def test_every_pair_comes_once_an_epoch_as_one_hot_rows(pairs, tokenizers):
    batches = batch_pairs(pairs, *tokenizers, batch_size=5)
    wanted = {(source.decode(), target.decode()) for source, target in pairs.as_numpy_iterator()}
    read = texts(batches, tokenizers)
    assert [len(batch) for batch in read].count(5) == 2 and sum(map(len, read)) == 12
    assert set().union(*read) == wanted
    for source, target in batches:
        assert source.dtype == target.dtype == tf.float32
        assert source.shape[2] == tokenizers[0].vocabulary_size
        assert set(np.unique(tf.reduce_sum(target, -1))) <= {0.0, 1.0}


def test_the_order_is_new_each_epoch_and_the_same_for_a_seed(pairs, tokenizers):
    epochs = [
        texts(batch_pairs(pairs, *tokenizers, batch_size=3, seed=seed).repeat(2), tokenizers) for seed in (1, 1, 2)
    ]
    assert epochs[0] == epochs[1] != epochs[2]
    assert epochs[0][:4] != epochs[0][4:]


def test_batches_hold_pairs_of_like_length(tsv, tokenizers):
    lines = [f"{'a' * (n % 40 + 1)}\t{'A' * (n % 40 + 1)}\n" for n in range(640)]
    pairs = read_pairs(tsv("".join(lines)))
    for source, _ in batch_pairs(pairs, *tokenizers, batch_size=16):
        lengths = tf.reduce_sum(tf.reduce_max(source, -1), 1)
        assert tf.reduce_max(lengths) - tf.reduce_min(lengths) <= 1
