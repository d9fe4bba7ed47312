"""Batches: pairs of strings, shuffled, grouped by length and encoded a whole batch at a time."""

import tensorflow as tf

_SHUFFLE_BUFFER = 1 << 17  # pairs of short strings: some tens of megabytes
_WINDOW_BATCHES = 128  # batches whose pairs are sorted by length together


def batch_pairs(pairs, source_tokenizer, target_tokenizer, batch_size=64, shuffle=True, seed=None):
    """Makes the batches that `Seq2Seq.fit` and `evaluate` read, lazily.

    Text stays text until it is in a batch: a window of pairs is sorted by length and cut into batches, so that a batch
    holds little padding; splitting, look-up and one-hot encoding then run once on each batch, on several threads, while
    the model works on the one before.

    Args:
        pairs: a `tf.data.Dataset` of (source, target) scalar strings.
        source_tokenizer, target_tokenizer: adapted tokenizers.
        batch_size: pairs in a batch, B; the last batch of an epoch may hold fewer.
        shuffle: whether pairs and batches come in a new random order each epoch.
        seed: makes those orders the same in every run.

    Returns:
        A `tf.data.Dataset` of (source `[B, S, Vs]`, target `[B, T + 1, Vt]`), float32 one-hot rows; the target runs
        from START to END; padding is all-zero rows on the right.
    """

    def group_by_length(sources, targets):
        lengths = [tf.strings.length(side, unit="UTF8_CHAR") for side in (targets, sources)]
        order = tf.argsort(lengths[0] * (1 + tf.reduce_max(lengths[1])) + lengths[1], stable=True)
        window = tf.data.Dataset.from_tensor_slices((tf.gather(sources, order), tf.gather(targets, order)))
        return window.batch(batch_size)

    def encode(sources, targets):
        return (
            source_tokenizer.one_hot(source_tokenizer.tokenize(sources)),
            target_tokenizer.one_hot(target_tokenizer.tokenize(targets, start_end=True)),
        )

    if shuffle:
        pairs = pairs.shuffle(_SHUFFLE_BUFFER, seed=seed)
    batches = pairs.batch(batch_size * _WINDOW_BATCHES).flat_map(group_by_length)
    if shuffle:
        batches = batches.shuffle(_WINDOW_BATCHES, seed=seed)
    return batches.map(encode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
