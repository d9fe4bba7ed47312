"""Decoding strategies: loops on the device that turn a step function into token ids."""

import tensorflow as tf

from pipelines.tokenizers import END, PADDING, START


@tf.function
def greedy(step, state, batch_size, max_length):
    """Takes the likeliest token at every step, until each row has emitted END.

    No string and no Python is inside the loop, and nothing leaves the device before it ends.

    Args:
        step: a function (ids int32 `[B]`, state) -> (logits `[B, V]`, state): the scores of the token after `ids`.
        state: what `step` wants the first time, a nest of tensors whose shapes it keeps.
        batch_size: B.
        max_length: where rows that emit no END are cut, in tokens.

    Returns:
        int32 ids `[B, T]`, T being the length of the longest row with its END; padding after END.
    """

    def running(length, token, finished, ids, state):
        return (length < max_length) & ~tf.reduce_all(finished)

    def extend(length, token, finished, ids, state):
        logits, state = step(token, state)
        # PADDING, UNKNOWN and START come before END, and are never the answer.
        token = END + tf.argmax(logits[:, END:], axis=1, output_type=tf.int32)
        token = tf.where(finished, PADDING, token)
        ids = ids.write(length, token)
        return length + 1, token, finished | (token == END), ids, state

    token = tf.fill([batch_size], START)
    finished = tf.zeros([batch_size], tf.bool)
    ids = tf.TensorArray(tf.int32, size=max_length, element_shape=[None])
    length, _, _, ids, _ = tf.while_loop(running, extend, (0, token, finished, ids, state))
    written = ids.gather(tf.range(length))  # [T, B]
    return tf.transpose(written)
