"""Tokenizers: text to ids and back, as graph operations that run on a whole batch of strings at once."""

import collections

import keras
import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

# The first ids of every vocabulary. END is the last of them, so that what a decoder may emit is one slice: [END, ...).
PADDING, UNKNOWN, START, END = range(4)
RESERVED_TOKENS = ["", "[UNK]", "[START]", "[END]"]


@keras.saving.register_keras_serializable("pipelines")
class CharTokenizer:
    """One token for each Unicode character of the text's NFC form.

    ```python
    tokenizer = CharTokenizer()
    tokenizer.adapt(["¡Hola!", "Adiós."])
    ids = tokenizer.tokenize(["Hola."])     # [[7, 4, 12, 6, 5]]
    tokenizer.detokenize(ids)               # [b"Hola."]
    ```

    `detokenize(tokenize(text))` is the NFC form of every text whose characters are in the vocabulary. Every method runs
    eagerly, inside `tf.data.Dataset.map` and inside a `tf.function`, and the object is a part of what Keras saves.

    Args:
        vocabulary: the characters, in the order of their ids after the reserved tokens; none before `adapt`.
    """

    def __init__(self, vocabulary=()):
        self.characters = list(vocabulary)
        lookup = keras.layers.StringLookup(
            vocabulary=RESERVED_TOKENS[START:] + self.characters,
            mask_token=RESERVED_TOKENS[PADDING],
            oov_token=RESERVED_TOKENS[UNKNOWN],
        )
        # The id of each code point, and of those beyond: a row to read where looking up strings takes twice the time.
        code_points = [ord(character) for character in self.characters]
        self._ids = np.full(max(code_points, default=0) + 2, UNKNOWN, np.int32)
        self._ids[code_points] = lookup(tf.constant(self.characters, tf.string))

    @property
    def vocabulary(self):
        """All tokens, the reserved ones first; a token's index is its id."""
        return RESERVED_TOKENS + self.characters

    @property
    def vocabulary_size(self):
        """Number of ids, the reserved ones included: V in the shapes below."""
        return len(RESERVED_TOKENS) + len(self.characters)

    def adapt(self, texts, min_frequency=1, max_size=None):
        """Takes the vocabulary from text: every token in it, the most frequent first.

        Args:
            texts: a `tf.data.Dataset` of scalar strings, or anything `from_tensor_slices` makes one of.
            min_frequency, max_size: as in `take_vocabulary`.
        """
        if not isinstance(texts, tf.data.Dataset):
            texts = tf.data.Dataset.from_tensor_slices(texts)
        counts = collections.Counter()
        for tokens, numbers, _ in texts.batch(4096).map(self.count).as_numpy_iterator():
            counts.update(dict(zip(tokens.tolist(), numbers.tolist(), strict=True)))
        self.take_vocabulary(counts, min_frequency, max_size)

    def count(self, texts):
        """Counts the tokens of texts `[B]`.

        Returns:
            The different tokens `[N]`, how often each comes (int64 `[N]`), and how many each text has (int64 `[B]`).
        """
        split = self.split(texts)
        tokens, _, numbers = tf.unique_with_counts(split.flat_values, tf.int64)
        return tokens, numbers, split.row_lengths()

    def take_vocabulary(self, counts, min_frequency=1, max_size=None):
        """Takes the vocabulary from counted tokens: the most frequent first, equally frequent ones in code point order.

        Args:
            counts: a mapping of tokens, as UTF-8, to how often they come.
            min_frequency: leave out tokens that come less often.
            max_size: how many tokens to take at most, without the reserved ones; None for all.
        """
        # NumPy, in which StringLookup keeps its vocabulary, cannot tell the NUL character from an empty string.
        wanted = [token for token, count in counts.items() if count >= min_frequency and token.strip(b"\0")]
        wanted.sort(key=lambda token: (-counts[token], token))
        self.__init__(token.decode() for token in wanted[:max_size])

    def split(self, texts):
        """Cuts texts `[B]` into tokens, a ragged string tensor `[B, (S)]`; invalid UTF-8 becomes U+FFFD."""
        return tf.strings.unicode_split(tf_text.normalize_utf8(texts, "NFC"), "UTF-8")

    def tokenize(self, texts, start_end=False):
        """Turns texts into ids.

        Args:
            texts: strings `[B]`.
            start_end: whether to put START before and END after each text, as targets need it.

        Returns:
            int32 `[B, S]`, each row padded on the right with 0 up to the longest. S is at least 1, since a recurrent
            layer cannot run over no steps: a batch of empty texts is one column of padding.
        """
        code_points = tf.strings.unicode_decode(tf_text.normalize_utf8(texts, "NFC"), "UTF-8")
        ids = code_points.with_flat_values(
            tf.gather(self._ids, tf.minimum(code_points.flat_values, len(self._ids) - 1))
        )
        lengths = ids.row_lengths()
        ids = ids.to_tensor(default_value=PADDING)
        if start_end:
            ids = tf.pad(ids, [[0, 0], [1, 1]], constant_values=PADDING)
            starts, ends = tf.zeros_like(lengths), lengths + 1
            marks = [tf.one_hot(at, tf.shape(ids)[1], mark, 0) for at, mark in ((starts, START), (ends, END))]
            return ids + sum(marks)
        empty = tf.cast(tf.shape(ids)[1] == 0, tf.int32)
        return tf.pad(ids, [[0, 0], [0, empty]], constant_values=PADDING)

    def one_hot(self, ids):
        """Turns ids `[B, S]` into floats `[B, S, V]`; padding becomes an all-zero row."""
        return one_hot(ids, self.vocabulary_size)

    def detokenize(self, ids):
        """Turns ids `[B, T]` back into texts `[B]`.

        Each text ends before its row's first END. START and padding leave no trace; unknown tokens show as U+FFFD.
        """
        ids = tf.convert_to_tensor(ids)
        ended = tf.cumsum(tf.cast(ids == END, tf.int32), axis=1) > 0
        written = tf.constant(["", "\ufffd", "", "", *self.characters])
        return tf.strings.reduce_join(tf.where(ended, "", tf.gather(written, ids)), axis=1)

    def get_config(self):
        return {"vocabulary": self.characters}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        return f"{type(self).__name__}({self.vocabulary_size} tokens: {''.join(self.characters[:40])!r})"


def one_hot(ids, vocabulary_size, dtype="float32"):
    """One-hot rows `[..., V]` of ids `[...]`, all zero where the id is padding."""
    return tf.one_hot(tf.where(ids == PADDING, tf.constant(-1, ids.dtype), ids), vocabulary_size, dtype=dtype)
