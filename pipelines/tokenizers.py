"""Tokenizers: text to ids and back, as graph operations that run on a whole batch of strings at once."""

import base64
import collections
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from pipelines.options import OptionError, check_number, choose

# The first ids of every vocabulary. END is the last of them, so that what a decoder may emit is one slice: [END, ...).
PADDING, UNKNOWN, START, END = range(4)
RESERVED_TOKENS = ["", "[UNK]", "[START]", "[END]"]
NORMAL_FORMS = ["NFC", "NFD", "NFKC", "NFKD", None]
WHITESPACE = r"\t-\r\x{85}\p{Z}"  # Unicode's; tf.strings.split alone knows ASCII's

Texts: TypeAlias = tf.Tensor | np.ndarray | Sequence[str] | Sequence[bytes]  # [B]


class Tokenizer(tf.Module):
    """Text to ids and back. A kind of tokenizer says how text is cut into tokens, and how tokens become text again.

    ```python
    @keras.saving.register_keras_serializable("mine")
    class CommaTokenizer(Tokenizer):
        def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
            return tf.strings.split(texts, ",")

        def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
            return tf.strings.reduce_join(tokens, axis=1, separator=",")
    ```

    Every method runs eagerly, inside `tf.data.Dataset.map` and inside a `tf.function`. The object is a part of what
    Keras saves by way of `get_config`, and a `tf.Module`, so that `tf.saved_model` exports its tables with it.

    Args:
        vocabulary: the tokens, in the order of their ids after the reserved ones; none before `adapt`.
        normal_form: the Unicode normal form of all text that is read, "NFC", "NFD", "NFKC" or "NFKD"; None leaves the
            text as it is.
        lowercase: whether to fold case before that, by Unicode's rules for all languages (NFKC_Casefold): "Straße"
            becomes "strasse", and compatibility characters what they stand for, "½" "1⁄2".

    Raises:
        OptionError: for another normal form.
    """

    ordered = True  # whether the order of the tokens means something; they are a set if not
    column_names: tuple[str, ...] = ("source",)  # the columns of a text, between tabs: one, but in `ColumnsTokenizer`

    def __init__(
        self, vocabulary: Iterable[str | bytes] = (), normal_form: str | None = "NFC", lowercase: bool = False
    ) -> None:
        super().__init__()
        choose("normal_form", normal_form, NORMAL_FORMS)
        self.normal_form = normal_form
        self.lowercase = lowercase
        self._set_tokens(vocabulary)

    def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Cuts texts `[B]`, as `normalize` leaves them, into tokens: a ragged string tensor `[B, (S)]`."""
        raise NotImplementedError(f"{type(self).__name__} must define split")

    def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        """Makes texts `[B]` of tokens, a ragged string tensor `[B, (T)]`; here with nothing between them."""
        return tf.strings.reduce_join(tokens, axis=1)

    def normalize(self, texts: Texts) -> tf.Tensor:
        """Brings texts `[B]` into the normal form; invalid UTF-8 becomes U+FFFD."""
        texts = tf.ensure_shape(tf.convert_to_tensor(texts, tf.string), [None])
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8")
        if self.lowercase:  # tf.strings.lower would follow the locale, and end a text at NUL
            texts = tf_text.case_fold_utf8(texts)
        return tf_text.normalize_utf8(texts, self.normal_form) if self.normal_form else texts

    @property
    def vocabulary(self) -> list[str]:
        """All tokens, the reserved ones first; a token's index is its id."""
        return RESERVED_TOKENS + list(self.tokens)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, the reserved ones included: V in the shapes below."""
        return len(RESERVED_TOKENS) + len(self.tokens)

    @property
    def columns(self) -> np.ndarray:
        """The column that each id belongs to, counted from 0, which is also that of the reserved ids: int32 `[V]`."""
        return np.zeros(self.vocabulary_size, np.int32)

    @property
    def ordered_columns(self) -> tuple[bool, ...]:
        """For each column, whether the order of its tokens means something."""
        return (self.ordered,)

    def adapt(self, texts: Texts | tf.data.Dataset, min_frequency: int = 1, max_size: int | None = None) -> None:
        """Takes the vocabulary from text: every token in it, the most frequent first.

        Args:
            texts: a `tf.data.Dataset` of scalar strings, or anything `from_tensor_slices` makes one of.
            min_frequency, max_size: as in `take_vocabulary`.
        """
        if not isinstance(texts, tf.data.Dataset):
            texts = tf.data.Dataset.from_tensor_slices(texts)
        counts = collections.Counter[bytes]()
        for tokens, numbers, _ in texts.batch(4096).map(self.count).as_numpy_iterator():
            counts.update(dict(zip(tokens.tolist(), numbers.tolist(), strict=True)))
        self.take_vocabulary(counts, min_frequency, max_size)

    def count(self, texts: Texts) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Counts the tokens of texts `[B]`.

        Returns:
            The different tokens `[N]`, how often each comes (int64 `[N]`), and how many each text has (int64 `[B]`).
        """
        split = self._split(texts)
        tokens, _, numbers = tf.unique_with_counts(split.flat_values, tf.int64)
        return tokens, numbers, split.row_lengths()

    def lengths(self, texts: Texts) -> tf.Tensor:
        """How many tokens each of texts `[B]` has: int32 `[B]`."""
        return tf.cast(self._split(texts).row_lengths(), tf.int32)

    def take_vocabulary(self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None) -> None:
        """Takes the vocabulary from counted tokens: the most frequent first, equally frequent ones in code point order.

        Args:
            counts: a mapping of tokens, as UTF-8, to how often they come.
            min_frequency: leave out tokens that come less often.
            max_size: how many tokens to take at most, without the reserved ones; None for all.
        """
        wanted = _frequent(counts, min_frequency, max_size)
        wanted.sort(key=lambda token: (-counts[token], token))
        self._set_tokens([token.decode() for token in wanted[:max_size]])

    def extend_vocabulary(
        self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None
    ) -> None:
        """Takes more tokens into the vocabulary, after those that are there, which keep their ids.

        Args:
            counts, min_frequency, max_size: as in `take_vocabulary`; `max_size` is of all tokens.
        """
        known = list(self.tokens)
        self.take_vocabulary({token: n for token, n in counts.items() if token.decode() not in known}, min_frequency)
        self._set_tokens((known + list(self.tokens))[: max(len(known), max_size or sys.maxsize)])

    def tokenize(self, texts: Texts, start_end: bool = False) -> tf.Tensor:
        """Turns texts into ids.

        Args:
            texts: strings `[B]`.
            start_end: whether to put START before and END after each text, as targets need it.

        Returns:
            int32 `[B, S]`, each row padded on the right with 0 up to the longest. S is at least 1, since a recurrent
            layer cannot run over no steps: a batch of empty texts is one column of padding.

        Raises:
            ValueError: if `split` returns anything but ragged strings; if a SubwordTokenizer is not trained yet.
        """
        ids = self._look_up(texts)
        lengths = ids.row_lengths()
        ids = ids.to_tensor(default_value=PADDING)
        if start_end:
            ids = tf.pad(ids, [[0, 0], [1, 1]], constant_values=PADDING)
            starts, ends = tf.zeros_like(lengths), lengths + 1
            marks = [tf.one_hot(at, tf.shape(ids)[1], mark, 0) for at, mark in ((starts, START), (ends, END))]
            return ids + sum(marks)
        empty = tf.cast(tf.shape(ids)[1] == 0, tf.int32)
        return tf.pad(ids, [[0, 0], [0, empty]], constant_values=PADDING)

    def one_hot(self, ids: tf.Tensor) -> tf.Tensor:
        """Turns ids `[B, S]` into floats `[B, S, V]`; padding becomes an all-zero row."""
        return one_hot(ids, self.vocabulary_size)

    def detokenize(self, ids: tf.Tensor | Sequence[Sequence[int]]) -> tf.Tensor:
        """Turns ids `[B, T]` back into texts `[B]`.

        Each text ends before its row's first END. START and padding leave no trace; unknown tokens show as U+FFFD.
        """
        ids = tf.convert_to_tensor(ids)
        ended = tf.cumsum(tf.cast(ids == END, tf.int32), axis=1) > 0
        return self._spell(tf.where(ended, PADDING, ids))

    def get_config(self) -> dict:
        return {"vocabulary": list(self.tokens), "normal_form": self.normal_form, "lowercase": self.lowercase}

    @classmethod
    def from_config(cls, config: dict) -> "Tokenizer":
        return cls(**config)

    def __repr__(self):
        return f"{type(self).__name__}({self.vocabulary_size} tokens: {' '.join(self.vocabulary[4:24])!r})"

    def _set_tokens(self, tokens):
        self.tokens = list(tokens)
        with tf.init_scope():
            # Without the reserved tokens, or the word "[END]" in a text would be the end of it. What stands for all
            # that is unknown is the one string that is no token. And Keras makes no empty look-up.
            self._lookup = keras.layers.StringLookup(vocabulary=self.tokens or ["nothing"], oov_token="")

    def _split(self, texts):
        tokens = self.split(self.normalize(texts))
        if not isinstance(tokens, tf.RaggedTensor) or tokens.dtype != tf.string or tokens.shape.rank != 2:
            found = f"{type(tokens).__name__} {getattr(tokens, 'dtype', '')} {getattr(tokens, 'shape', '')}"
            raise ValueError(f"{type(self).__name__}.split must return ragged strings [B, (S)], not {found}")
        return tokens

    def _look_up(self, texts):
        """The ids of texts `[B]`, ragged int32 `[B, (S)]`."""
        tokens = self._split(texts)
        places = tf.cast(self._lookup(tokens.flat_values), tf.int32)  # 0 if unknown, else counted from 1
        known = (places > 0) & (places <= len(self.tokens))
        return tokens.with_flat_values(tf.where(known, places + END, UNKNOWN))

    def _spell(self, ids):
        """The texts `[B]` of ids `[B, T]`, in which PADDING and START stand for nothing."""
        written = tf.concat([["", "\ufffd", "", ""], tf.constant(self.tokens, tf.string)], axis=0)
        written = tf.gather(written, ids)
        return self.join(tf.ragged.boolean_mask(written, written != ""))


@keras.saving.register_keras_serializable("pipelines")
class CharTokenizer(Tokenizer):
    """One token for each Unicode character.

    ```python
    tokenizer = CharTokenizer()
    tokenizer.adapt(["¡Hola!", "Adiós."])
    ids = tokenizer.tokenize(["Hola."])     # [[7, 4, 12, 6, 5]]
    tokenizer.detokenize(ids)               # [b"Hola."]
    ```

    `detokenize(tokenize(text))` is the normal form of every text whose characters are in the vocabulary.
    """

    @property
    def characters(self) -> list[str]:
        """The vocabulary without the reserved tokens."""
        return self.tokens

    def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return tf.strings.unicode_split(texts, "UTF-8")

    def lengths(self, texts: Texts) -> tf.Tensor:
        """How many characters each of texts `[B]` has, not yet in the normal form: that is quick to tell."""
        return tf.strings.length(texts, "UTF8_CHAR")

    def _set_tokens(self, tokens):
        self.tokens = list(tokens)
        # The id of each code point, and of those beyond: a row to read where looking up strings takes twice the time.
        # And the code point of each id, as writing code points takes half the time of joining strings.
        code_points = [ord(character) for character in self.tokens]
        self._code_points = np.array([-1, ord("\ufffd"), -1, -1, *code_points], np.int32)
        self._ids = np.full(max(code_points, default=0) + 2, UNKNOWN, np.int32)
        self._ids[code_points] = np.arange(len(RESERVED_TOKENS), self.vocabulary_size)

    def _code_points_of(self, texts):
        """The tokens of normal texts `[B]` as code points, ragged int32 `[B, (S)]`."""
        return tf.strings.unicode_decode(texts, "UTF-8")

    def _look_up(self, texts):
        code_points = self._code_points_of(self.normalize(texts))
        return code_points.with_flat_values(
            tf.gather(self._ids, tf.minimum(code_points.flat_values, len(self._ids) - 1))
        )

    def _spell(self, ids):
        code_points = tf.gather(self._code_points, ids)
        return tf.strings.unicode_encode(tf.ragged.boolean_mask(code_points, code_points >= 0), "UTF-8")


@keras.saving.register_keras_serializable("pipelines")
class LetterTokenizer(CharTokenizer):
    """One token for each character, but for Hangul one for each letter: of "한글" they are ㅎㅏㄴㄱㅡㄹ.

    A syllable of Hangul is one character of 11,172, too many to learn one by one, and is written with two or three of
    67 letters (The Unicode Standard, section 3.12). Texts are put together again, so that they are of syllables.
    """

    def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return super().split(tf.strings.unicode_encode(self._code_points_of(texts), "UTF-8"))

    def lengths(self, texts: Texts) -> tf.Tensor:
        """How many letters each of texts `[B]` has."""
        return Tokenizer.lengths(self, texts)

    def _code_points_of(self, texts):
        code_points = super()._code_points_of(texts)
        flat = code_points.flat_values
        number = flat - 0xAC00  # of a syllable, in the order of first letter, vowel and, in 27 of 28, last letter
        syllable = (number >= 0) & (number < 11_172)
        first = tf.where(syllable, 0x1100 + number // 588, flat)
        vowel = tf.where(syllable, 0x1161 + number % 588 // 28, -1)
        last = tf.where(syllable & (number % 28 > 0), 0x11A7 + number % 28, -1)
        letters = tf.stack([first, vowel, last], axis=1)
        apart = tf.RaggedTensor.from_row_splits(tf.ragged.boolean_mask(letters, letters >= 0), code_points.row_splits)
        return apart.merge_dims(1, 2)

    def _spell(self, ids):
        """Here syllables are written as the normal form has them; without a normal form, as NFC has all text."""
        return tf_text.normalize_utf8(super()._spell(ids), self.normal_form or "NFC")


@keras.saving.register_keras_serializable("pipelines")
class ByteTokenizer(Tokenizer):
    """One token for each byte of the text's UTF-8: 256 of them, whatever the text, and none is unknown.

    There is nothing to adapt. `detokenize(tokenize(text))` is the text's normal form, without one the text itself;
    bytes that are not UTF-8, as a model may write them, come back as U+FFFD.

    Args:
        normal_form, lowercase: as in `Tokenizer`. With None and False, invalid UTF-8 is read as the bytes it is.
    """

    def __init__(self, normal_form: str | None = "NFC", lowercase: bool = False) -> None:
        super().__init__([bytes([byte]) for byte in range(256)], normal_form, lowercase)

    @property
    def vocabulary(self) -> list[str]:
        """All tokens as strings, the reserved ones first; bytes beyond ASCII are written as `\\xc3`."""
        return RESERVED_TOKENS + [byte.decode(errors="backslashreplace") for byte in self.tokens]

    def normalize(self, texts: Texts) -> tf.Tensor:
        """Brings texts `[B]` into the normal form; invalid UTF-8 becomes U+FFFD if there is one, or case is folded."""
        return super().normalize(texts) if self.normal_form or self.lowercase else tf.convert_to_tensor(texts)

    def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return tf.strings.bytes_split(texts)

    def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        return tf.strings.unicode_transcode(super().join(tokens), "UTF-8", "UTF-8")

    def adapt(
        self, texts: Texts | tf.data.Dataset | None = None, min_frequency: int = 1, max_size: int | None = None
    ) -> None:
        """Changes nothing and reads no text, as `take_vocabulary`."""
        self.take_vocabulary({}, min_frequency, max_size)

    def take_vocabulary(self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None) -> None:
        """Changes nothing: the vocabulary is fixed.

        Raises:
            OptionError: where that would leave out a byte.
        """
        for argument, value, default in (("min_frequency", min_frequency, 1), ("max_size", max_size, None)):
            if value != default:
                raise OptionError(f"{argument}={value!r}: bytes are a fixed vocabulary; leave it at {default}")

    def extend_vocabulary(
        self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None
    ) -> None:
        """Changes nothing, as `take_vocabulary`."""

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
    """One token for each stretch of text between whitespace: phones, words.

    `detokenize(tokenize(text))` is the text's normal form with a single space for each stretch of whitespace, for every
    text whose tokens are in the vocabulary.
    """

    def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return tf.strings.split(tf.strings.regex_replace(texts, f"[{WHITESPACE}]", " "))

    def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        return tf.strings.reduce_join(tokens, axis=1, separator=" ")


@keras.saving.register_keras_serializable("pipelines")
class SubwordTokenizer(Tokenizer):
    """Pieces of words, frequent words whole, rare ones in several.

    SentencePiece (Kudo and Richardson 2018, arxiv.org/abs/1808.06226) with a unigram language model (Kudo 2018,
    arxiv.org/abs/1804.10959), which is trained on a vocabulary of words by the package `sentencepiece` and applied
    without it. "▁" begins a word. Before training, `split` and so `count` cut at whitespace: what they count, words, is
    what `take_vocabulary` trains on.

    `detokenize(tokenize(text))` is the text's normal form with a single space for each stretch of whitespace (and of
    "▁"), for every text whose characters are in the vocabulary.

    Args:
        model: a serialized SentencePiece model, as a SubwordTokenizer has it in `model`; none before `adapt`.
        normal_form, lowercase: as in `Tokenizer`.

    Raises:
        OptionError: if the model is none of this class.
    """

    DEFAULT_SIZE = 2000
    # Names with a space, which no word has in it. Training would take them out of words.
    _RESERVED_PIECES = ("[PADDING] ", "[UNK] ", "[START] ", "[END] ")

    def __init__(self, model: bytes = b"", normal_form: str | None = "NFC", lowercase: bool = False) -> None:
        super().__init__((), normal_form, lowercase)
        self._set_model(model)

    def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        texts = tf.strings.regex_replace(texts, f"[{WHITESPACE}▁]", " ")
        if not self.model:
            return tf.strings.split(texts)
        ids = self._sentencepiece.tokenize(texts).with_row_splits_dtype(tf.int64)
        return ids.with_flat_values(tf.gather(self._pieces, ids.flat_values))

    def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        return tf.strings.strip(tf.strings.regex_replace(tf.strings.reduce_join(tokens, axis=1), "▁+", " "))

    def adapt(self, texts: Texts | tf.data.Dataset, min_frequency: int = 1, max_size: int | None = None) -> None:
        """Trains anew on text.

        Args:
            texts: a `tf.data.Dataset` of scalar strings, or anything `from_tensor_slices` makes one of.
            min_frequency, max_size: as in `take_vocabulary`.
        """
        self._set_model(b"")
        super().adapt(texts, min_frequency, max_size)

    def take_vocabulary(self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None) -> None:
        """Trains on counted words. The same words make the same model.

        Args:
            counts: a mapping of words, as UTF-8, to how often they come.
            min_frequency: leave out words that come less often.
            max_size: how many pieces to make at most, without the reserved tokens; few words give fewer. None for 2,000
                or twice the number of characters, whichever is more.

        Raises:
            OptionError: if no words are left, or there are more characters than `max_size`: each is a piece.
            ModuleNotFoundError: if the package `sentencepiece` is not installed.
        """
        # An extra: what is trained can do without.
        from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2

        words = sorted(_frequent(counts, min_frequency, max_size))
        words = [word for word in words if "▅".encode() not in word]  # SentencePiece's own mark
        if not words:
            raise OptionError(f"min_frequency={min_frequency}: no word comes so often, so there is nothing to train on")
        characters = len(set(b"".join(words).decode()) | {"▁"})
        if max_size is not None and max_size < characters:
            raise OptionError(f"max_size={max_size}: expected {characters} or more, as many as there are characters")
        pieces = zip(("pad_piece", "unk_piece", "bos_piece", "eos_piece"), self._RESERVED_PIECES, strict=True)
        trained = io.BytesIO()
        SentencePieceTrainer.train(
            sentence_iterator=(b"%s\t%d" % (word, counts[word]) for word in words),
            input_format="tsv",
            model_writer=trained,
            vocab_size=len(RESERVED_TOKENS) + (max_size or max(self.DEFAULT_SIZE, 2 * characters)),
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=1 << 30,  # a word of Chinese may be a paragraph
            num_threads=4,  # on every machine: sums of floats, and so the model, depend on it
            minloglevel=2,
            pad_id=PADDING,
            unk_id=UNKNOWN,
            bos_id=START,
            eos_id=END,
            **dict(pieces),
        )
        model = sentencepiece_model_pb2.ModelProto.FromString(trained.getvalue())
        # A map that changes no character (a trie of 1024 bytes with no key in it), since each time a model without any
        # is loaded, TensorFlow Text says so on stderr.
        model.normalizer_spec.precompiled_charsmap = (1024).to_bytes(4, "little") + bytes(1024 + 1)
        self._set_model(model.SerializeToString(deterministic=True))

    def extend_vocabulary(
        self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None
    ) -> None:
        """Changes nothing: pieces are trained once. Characters that are in none of them are unknown."""

    def get_config(self) -> dict:
        model = base64.b64encode(self.model).decode()
        return {"model": model, "normal_form": self.normal_form, "lowercase": self.lowercase}

    @classmethod
    def from_config(cls, config: dict) -> "Tokenizer":
        return cls(**{**config, "model": base64.b64decode(config["model"])})

    def _set_model(self, model):
        self.model = model
        if not model:
            return self._set_tokens(())
        with tf.init_scope():
            try:
                trained = tf_text.SentencepieceTokenizer(model)
                self._pieces = trained.id_to_string(tf.range(trained.vocab_size())).numpy()
            except tf.errors.OpError:
                self._pieces = np.array([b""])
        reserved, tokens = np.split([piece.decode() for piece in self._pieces], [len(RESERVED_TOKENS)])
        if tuple(reserved) != self._RESERVED_PIECES:
            raise OptionError("model: expected one that SubwordTokenizer.take_vocabulary has trained")
        self._set_tokens(tokens.tolist())
        # It does the same as the other without a resource, which `tf.random.set_seed` would destroy.
        self._sentencepiece = tf_text.FastSentencepieceTokenizer(model)

    def _look_up(self, texts):
        if not self.model:
            raise ValueError("SubwordTokenizer is not trained yet: call adapt or take_vocabulary first")
        return super()._look_up(texts)


TOKENIZERS = {
    "char": CharTokenizer,
    "letter": LetterTokenizer,
    "byte": ByteTokenizer,
    "whitespace": WhitespaceTokenizer,
    "subword": SubwordTokenizer,
}


def one_hot(ids: tf.Tensor, vocabulary_size: int, dtype: str = "float32") -> tf.Tensor:
    """One-hot rows `[..., V]` of ids `[...]`, all zero where the id is padding."""
    return tf.one_hot(tf.where(ids == PADDING, tf.constant(-1, ids.dtype), ids), vocabulary_size, dtype=dtype)


def _frequent(counts, min_frequency, max_size):
    """The tokens that come so often; never an empty one, nor one with NUL, at which SentencePiece and NumPy end it."""
    check_number("min_frequency", min_frequency, least=1)
    check_number("max_size", max_size, least=1, optional=True)
    return [token for token, count in counts.items() if count >= min_frequency and token and b"\0" not in token]
