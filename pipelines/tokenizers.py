"""Tokenizers: text to ids and back, as graph operations that run on a whole batch of strings at once."""

import keras
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
        self._lookup = keras.layers.StringLookup(
            vocabulary=RESERVED_TOKENS[START:] + self.characters,
            mask_token=RESERVED_TOKENS[PADDING],
            oov_token=RESERVED_TOKENS[UNKNOWN],
        )

    @property
    def vocabulary(self):
        """All tokens, the reserved ones first; a token's index is its id."""
        return RESERVED_TOKENS + self.characters

    @property
    def vocabulary_size(self):
        """Number of ids, the reserved ones included: V in the shapes below."""
        return len(RESERVED_TOKENS) + len(self.characters)

    def adapt(self, texts):
        """Takes the vocabulary from text: every character in it, the most frequent first.

        Args:
            texts: a `tf.data.Dataset` of scalar strings, or anything `from_tensor_slices` makes one of.
        """
        if not isinstance(texts, tf.data.Dataset):
            texts = tf.data.Dataset.from_tensor_slices(texts)

        def characters(batch):
            found = self.split(batch).flat_values
            # NumPy, in which StringLookup keeps its vocabulary, cannot tell the NUL character from an empty string.
            return tf.boolean_mask(found, found != "\0")

        counter = keras.layers.StringLookup(mask_token="")
        counter.adapt(texts.batch(4096).map(characters))
        self.__init__(counter.get_vocabulary(include_special_tokens=False))

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
        ids = tf.cast(tf.ragged.map_flat_values(self._lookup, self.split(texts)), tf.int32)
        if start_end:
            mark = tf.ones_like(ids[:, :1].to_tensor(shape=[None, 1]))
            ids = tf.concat([START * mark, ids, END * mark], axis=1)
        ids = ids.to_tensor(default_value=PADDING)
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
