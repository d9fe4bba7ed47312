import numpy as np
import tensorflow as tf

from pipelines.tokenizers import END, CharTokenizer
from seq2seq.decoding import greedy

TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvwxyz")


def spelling(words):
    """A step function that spells one word for each row, whatever it is given; its state is the position."""
    ids = tf.constant(TOKENIZER.tokenize(words, start_end=True)[:, 1:])

    def step(token, position):
        written = ids[:, tf.minimum(position, tf.shape(ids)[1] - 1)]
        reserved = 9.0 * tf.one_hot([0, 1, 2], TOKENIZER.vocabulary_size)  # louder, yet never the answer
        return tf.one_hot(written, TOKENIZER.vocabulary_size) + tf.reduce_sum(reserved, 0), position + 1

    return step


def test_greedy_spells_the_words_and_stops_with_the_longest():
    words = ["hola", "", "a"]
    ids = greedy(spelling(words), tf.constant(0), 3, 50)
    assert ids.shape == (3, 5)
    assert [text.decode() for text in TOKENIZER.detokenize(ids).numpy()] == words
    np.testing.assert_array_equal(ids[1], [END, 0, 0, 0, 0])


def test_greedy_cuts_what_does_not_end():
    assert greedy(spelling(["abcdefgh"]), tf.constant(0), 1, 3).shape == (1, 3)


def test_greedy_of_no_rows_is_no_rows():
    assert greedy(lambda token, state: (tf.zeros([0, 5]), state), tf.constant(0), 0, 3).shape[0] == 0
