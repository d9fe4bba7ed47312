"""Tokenizers: characters, letters and marks, bytes, whitespace-separated tokens, sets of features."""

from collections.abc import Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from pipelines.options import OptionError
from pipelines.subwords import SubwordTokenizer
from pipelines.tokens import REPLACEMENT, RESERVED_TOKENS, WHITESPACE, Texts, Tokenizer, strings, without_empty


@keras.saving.register_keras_serializable("pipelines")
class CharTokenizer(Tokenizer):
    """One token for each Unicode character.

    ```python
    tokenizer = CharTokenizer()
    tokenizer.adapt(["¡Hola!", "Adiós."])
    ids = tokenizer.tokenize(["Hola."])     # [[7, 12, 11, 8, 5]]
    tokenizer.detokenize(ids)               # [b"Hola."]
    ```

    `detokenize(tokenize(text))` is the normal form of every text whose characters are in the vocabulary.
    """

    def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return tf.strings.unicode_split(self._decompose(texts), "UTF-8")

    def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        return self._compose(super().join(tokens))

    def lengths(self, texts: Texts) -> tf.Tensor:
        """Count the characters of each of texts `[B]`: int32 `[B]`.

        Those of the form NFC are counted before they are normalized, which is faster and nearly always the same.
        """
        if self.lowercase or self.normal_form not in ("NFC", None):
            return super().lengths(texts)
        return tf.strings.length(texts, "UTF8_CHAR")

    def _set_tokens(self, tokens):
        tokens = list(tokens)
        for token in tokens:
            if not isinstance(token, str) or len(token) != 1:
                raise OptionError(f"vocabulary: expected single characters, not {token!r}")
        self.tokens = tokens
        # Tables of the code point of each id, and of the id of each code point and of those beyond. Looking up strings
        # takes twice the time, and so does joining them.
        code_points = [ord(character) for character in self.tokens]
        self._code_points = np.array([-1, ord(REPLACEMENT), -1, -1, *code_points], np.int32)
        self._ids = np.full(max(code_points, default=0) + 2, self.unknown_ids[0], np.int32)
        self._ids[code_points] = np.arange(len(RESERVED_TOKENS), self.vocabulary_size)

    def _decompose(self, texts):
        """Convert normalized texts to a form in which each token is one code point."""
        return texts

    def _compose(self, texts):
        """Undo `_decompose`."""
        return texts

    def _look_up(self, texts):
        code_points = tf.strings.unicode_decode(self._decompose(self.normalize(texts)), "UTF-8")
        ids = tf.gather(self._ids, tf.minimum(code_points.flat_values, len(self._ids) - 1))
        return code_points.with_flat_values(ids)

    def _spell(self, ids):
        code_points = tf.gather(self._code_points, ids)
        texts = tf.strings.unicode_encode(tf.ragged.boolean_mask(code_points, code_points >= 0), "UTF-8")
        return self._compose(texts)


@keras.saving.register_keras_serializable("pipelines")
class LetterTokenizer(CharTokenizer):
    """One token for each letter and for each mark on it: "né" becomes n, e and ´, and "한글" ㅎㅏㄴㄱㅡㄹ.

    These are the parts of the normal form NFD (The Unicode Standard, section 3.11). What is learned about a letter is
    then shared by the same letter with other marks. A Hangul syllable is one of 11,172 characters, too many to learn
    one by one, and is written with two or three of 67 letters. `detokenize` joins the parts.
    """

    def normalize(self, texts: Texts) -> tf.Tensor:
        """Convert texts `[B]` to the normal form; if there is none, to NFC, as the ids of all forms are the same."""
        found = super().normalize(texts)
        return found if self.normal_form else self._compose(found)

    def lengths(self, texts: Texts) -> tf.Tensor:
        """Count the letters and marks of each of texts `[B]`: int32 `[B]`."""
        return Tokenizer.lengths(self, texts)

    def _decompose(self, texts):
        return tf_text.normalize_utf8(texts, "NFD")

    def _compose(self, texts):
        return tf_text.normalize_utf8(texts, self.normal_form or "NFC")


@keras.saving.register_keras_serializable("pipelines")
class ByteTokenizer(Tokenizer):
    """One token for each byte of the text's UTF-8: always 256, and none is unknown. There is nothing to adapt.

    `detokenize(tokenize(text))` is the text's normal form, or without one the text itself. If a model writes bytes that
    are not UTF-8, they become U+FFFD.

    Args:
        normal_form, lowercase: as in `Tokenizer`. With None and False, invalid UTF-8 is read as plain bytes.
    """

    def __init__(self, normal_form: str | None = "NFC", lowercase: bool = False) -> None:
        super().__init__((), normal_form, lowercase)
        self._set_tokens([bytes([byte]) for byte in range(256)])

    @property
    def vocabulary(self) -> list[str]:
        """All tokens as strings, the reserved ones first; bytes beyond ASCII are written as `\\xc3`."""
        return RESERVED_TOKENS + [byte.decode(errors="backslashreplace") for byte in self.tokens]

    def normalize(self, texts: Texts) -> tf.Tensor:
        """Convert texts `[B]` to the normal form; if there is one, or case is folded, invalid UTF-8 becomes U+FFFD."""
        return super().normalize(texts) if self.normal_form or self.lowercase else strings(texts)

    def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return tf.strings.bytes_split(texts)

    def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        return tf.strings.unicode_transcode(super().join(tokens), "UTF-8", "UTF-8")

    def adapt(
        self, texts: Texts | tf.data.Dataset | None = None, min_frequency: int = 1, max_size: int | None = None
    ) -> None:
        """Read no text, because the vocabulary is fixed; see `take_vocabulary`."""
        self.take_vocabulary({}, min_frequency, max_size)

    def take_vocabulary(self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None) -> None:
        """Change nothing: the vocabulary is fixed.

        Raises:
            OptionError: if an option would leave out a byte.
        """
        for argument, value, default in (("min_frequency", min_frequency, 1), ("max_size", max_size, None)):
            if value != default:
                raise OptionError(f"{argument}={value!r}: bytes are a fixed vocabulary; leave it at {default}")

    def extend_vocabulary(
        self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None
    ) -> None:
        """Do nothing, as in `take_vocabulary`."""

    def get_config(self) -> dict:
        return {"normal_form": self.normal_form, "lowercase": self.lowercase}

    def _set_tokens(self, tokens):
        self.tokens = tokens

    def _look_up(self, texts):
        texts = self.normalize(texts)
        values = tf.io.decode_raw(tf.strings.reduce_join(texts), tf.uint8)  # of the whole batch in one piece
        ids = tf.cast(values, tf.int32) + len(RESERVED_TOKENS)
        return tf.RaggedTensor.from_row_lengths(ids, tf.strings.length(texts), validate=False)


@keras.saving.register_keras_serializable("pipelines")
class WhitespaceTokenizer(Tokenizer):
    """One token for each run of text between whitespace: phones, words.

    `detokenize(tokenize(text))` is the text's normal form, without whitespace at its ends and with one space for each
    run inside, for every text whose tokens are in the vocabulary.
    """

    def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return tf.strings.split(tf.strings.regex_replace(texts, f"[{WHITESPACE}]", " "))

    def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        return tf.strings.reduce_join(tokens, axis=1, separator=" ")


@keras.saving.register_keras_serializable("pipelines")
class SeparatorTokenizer(Tokenizer):
    """One token for each run of text between separators: a set of features, as in "V;PST;3;SG".

    The order of the tokens has no meaning (`ordered` is False). Empty tokens between separators are ignored.
    For all other texts whose tokens are in the vocabulary, `detokenize(tokenize(text))` is the text's normal form.

    Args:
        separator: the separator of tokens, one character or several, without a tab.
        vocabulary, normal_form, lowercase: as in `Tokenizer`.

    Raises:
        OptionError: for an empty separator, or one with a tab.
    """

    ordered = False

    def __init__(
        self,
        separator: str = ";",
        vocabulary: Iterable[str] = (),
        normal_form: str | None = "NFC",
        lowercase: bool = False,
    ) -> None:
        if not separator or "\t" in separator:
            raise OptionError(f"separator={separator!r}: expected one character or several, and no tab")
        super().__init__(vocabulary, normal_form, lowercase)
        self.separator = separator
        with tf.init_scope():  # also if a graph is being made
            normal = self.normalize([separator])[0].numpy()
        if not normal:
            raise OptionError(f"separator={separator!r}: normal form and case folding remove it from all texts")

    def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return without_empty(tf.strings.split(texts, self.normalize([self.separator])[0]))

    def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        return tf.strings.reduce_join(tokens, axis=1, separator=self.separator)

    def get_config(self) -> dict:
        return {"separator": self.separator, **super().get_config()}


TOKENIZERS = {
    "char": CharTokenizer,
    "letter": LetterTokenizer,
    "byte": ByteTokenizer,
    "whitespace": WhitespaceTokenizer,
    "subword": SubwordTokenizer,
}
