"""Tokens and ids: what all tokenizers share. All operations run in a graph, on a whole batch of strings at once."""

import collections
import reprlib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Self, TypeAlias

import keras
import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from pipelines.options import OptionError, check_number, choose, one_line

# The first ids of every vocabulary. END is the last of them, so that a decoder may emit the slice [END, ...).
PADDING, UNKNOWN, START, END = range(4)
RESERVED_TOKENS = ["", "[UNK]", "[START]", "[END]"]
REPLACEMENT = "\ufffd"  # in text, an unknown token; in a vocabulary, the token that all unknown ones become
NORMAL_FORMS = ["NFC", "NFD", "NFKC", "NFKD", None]
WHITESPACE = r"\t-\r\x{85}\p{Z}"  # Unicode's; tf.strings.split knows only ASCII's

Texts: TypeAlias = tf.Tensor | np.ndarray | Sequence[str] | Sequence[bytes]  # [B]


class Tokenizer(tf.Module):
    """Text to ids and back. A subclass defines how to split text into tokens, and how to join tokens to text.

    ```python
    @keras.saving.register_keras_serializable("mine")
    class CommaTokenizer(Tokenizer):
        def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
            return tf.strings.split(texts, ",")

        def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
            return tf.strings.reduce_join(tokens, axis=1, separator=",")
    ```

    Every method runs eagerly, inside `tf.data.Dataset.map` and inside a `tf.function`. This library converts none of
    them with AutoGraph, which would take longer than tracing them: a method that uses Python's `if` or `for` on tensors
    needs `@tf.function`. Keras saves a tokenizer by its `get_config`. `tf.saved_model` exports its tables, since it is
    a `tf.Module`.

    Args:
        vocabulary: the tokens, in the order of their ids after the reserved ones; none before `adapt`.
        normal_form: the Unicode normal form of all text that is read, "NFC", "NFD", "NFKC" or "NFKD"; None leaves the
            text as it is.
        lowercase: whether to fold case before that, by Unicode's rules for all languages (NFKC_Casefold): "Straße"
            becomes "strasse", "½" becomes "1⁄2", and invisible characters such as joiners (U+200C, U+200D) are removed.

    Raises:
        OptionError: for an unknown normal form, or a token in the vocabulary that is not a string, is empty or occurs
            twice.
    """

    ordered = True  # whether the order of the tokens has a meaning; if not, they are a set
    batched_vocabulary: tuple[str, ...] | None = None  # the vocabulary whose ids `batch_pairs` has used last
    column_names: tuple[str, ...] = ("source",)  # of a text's columns, between tabs; several in `ColumnsTokenizer`

    def __init__(
        self, vocabulary: Iterable[str] = (), normal_form: str | None = "NFC", lowercase: bool = False
    ) -> None:
        super().__init__()
        choose("normal_form", normal_form, NORMAL_FORMS)
        self.normal_form = normal_form
        self.lowercase = lowercase
        counts = collections.Counter(vocabulary := list(vocabulary))
        if wrong := [token for token in counts if not isinstance(token, str)]:
            raise OptionError(f"vocabulary: {wrong[0]!r} is a token; expected strings")
        if twice := [token for token, count in counts.items() if count > 1]:
            raise OptionError(f"vocabulary: {twice[0]!r} occurs {counts[twice[0]]} times; expected each token once")
        if "" in counts:  # Keras would take it for the unknown token
            raise OptionError("vocabulary: a token is empty; give `Tokenizer.tokens`, without the reserved tokens")
        self._set_tokens(vocabulary)

    def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Split normalized texts `[B]` into tokens: a ragged string tensor `[B, (S)]`."""
        raise NotImplementedError(f"{type(self).__name__} must define split")

    def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        """Join tokens, a ragged string tensor `[B, (T)]`, into texts `[B]`; by default with nothing between them."""
        return tf.strings.reduce_join(tokens, axis=1)

    def normalize(self, texts: Texts) -> tf.Tensor:
        """Convert texts `[B]` to the normal form; invalid UTF-8 becomes U+FFFD."""
        texts = tf.strings.unicode_transcode(strings(texts), "UTF-8", "UTF-8")
        if self.lowercase:  # tf.strings.lower would depend on the locale, and end a text at NUL
            texts = tf_text.case_fold_utf8(texts)
        return tf_text.normalize_utf8(texts, self.normal_form) if self.normal_form else texts

    def written_form(self, texts: Texts) -> tf.Tensor:
        """Texts `[B]` as a model that knows all their tokens would write them: normalized, split and joined again."""
        return self.join(self._split(texts))

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
        """The column of each id, counted from 0: int32 `[V]`. Reserved ids are in column 0."""
        return np.zeros(self.vocabulary_size, np.int32)

    @property
    def of_columns(self) -> list["Tokenizer"]:
        """The tokenizer of each column; by default only this one."""
        return [self]

    @property
    def in_order(self) -> np.ndarray:
        """For each id, whether the order of the tokens of its column has a meaning: bool `[V]`."""
        return np.array([part.ordered for part in self.of_columns])[self.columns]

    @property
    def counts_tokens(self) -> bool:
        """Whether the vocabulary consists of counted tokens, so that all others are unknown. False if a class has its
        own `take_vocabulary`."""
        return type(self).take_vocabulary is Tokenizer.take_vocabulary

    @property
    def unknown_ids(self) -> tuple[int, ...]:
        """For each column, the id that unknown tokens get: UNKNOWN, or that of U+FFFD after `add_unknown_token`."""
        known = REPLACEMENT in self.tokens
        return (len(RESERVED_TOKENS) + list(self.tokens).index(REPLACEMENT) if known else UNKNOWN,)

    def adapt(self, texts: Texts | tf.data.Dataset, min_frequency: int = 1, max_size: int | None = None) -> None:
        """Take the vocabulary from text: every token in it, the most frequent first.

        Args:
            texts: a `tf.data.Dataset` of scalar strings, or strings `[B]`.
            min_frequency, max_size: as in `take_vocabulary`.

        Raises:
            OptionError: for other texts, and as `take_vocabulary`.
        """
        if not isinstance(texts, tf.data.Dataset):
            texts = tf.data.Dataset.from_tensor_slices(strings(texts))
        elif not tf.TensorSpec([], tf.string).is_compatible_with(texts.element_spec):
            raise OptionError(f"texts: expected a dataset of scalar strings, not of {texts.element_spec}")
        self._start_over()
        counts = collections.Counter[bytes]()
        count = tf.autograph.experimental.do_not_convert(self.count)
        for tokens, numbers, _ in texts.batch(4096).map(count).as_numpy_iterator():
            counts.update(dict(zip(tokens.tolist(), numbers.tolist(), strict=True)))
        self.take_vocabulary(counts, min_frequency, max_size)
        if self.batched_vocabulary not in (None, tuple(self.vocabulary)):
            self.batched_vocabulary = None
            warnings.warn("batches made with this tokenizer keep its old ids; call batch_pairs again", stacklevel=2)

    def count(self, texts: Texts) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Count the tokens of texts `[B]`.

        Returns:
            The distinct tokens `[N]`, the count of each (int64 `[N]`), and the number of tokens of each text (int64
            `[B]`).
        """
        split = self._split(texts)
        tokens, _, numbers = tf.unique_with_counts(split.flat_values, tf.int64)
        return tokens, numbers, split.row_lengths()

    def lengths(self, texts: Texts) -> tf.Tensor:
        """Count the tokens of each of texts `[B]`: int32 `[B]`."""
        return tf.cast(self._split(texts).row_lengths(), tf.int32)

    def unknown(self, texts: Texts, longest: int | None = None) -> tf.RaggedTensor:
        """The unknown tokens of each of texts `[B]`, in order, U+FFFD included: ragged strings `[B, (U)]`.

        Columns that are sets are left out. `longest`: how many tokens of each text are read; None for all.
        """
        return without_empty(self._only_unknown(texts)[:, :longest])

    def take_vocabulary(self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None) -> None:
        """Take the vocabulary from counted tokens: the most frequent first, equally frequent ones in code point order.

        Args:
            counts: a mapping of tokens, as UTF-8, to their counts.
            min_frequency: leave out rarer tokens.
            max_size: the maximum number of tokens, without the reserved ones; None for all.

        Raises:
            OptionError: if a token is not valid UTF-8, or a number is out of range.
        """
        wanted = frequent_tokens(counts, min_frequency, max_size)
        wanted.sort(key=lambda token: (-counts[token], token))
        try:
            self._set_tokens([token.decode() for token in wanted[:max_size]])
        except UnicodeDecodeError as error:
            raise OptionError(f"{type(self).__name__}: the token {error.object!r} is not valid UTF-8") from None

    def extend_vocabulary(
        self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None
    ) -> None:
        """Add tokens to the vocabulary, after the existing ones, which keep their ids.

        Args:
            counts, min_frequency, max_size: as in `take_vocabulary`; `max_size` counts all tokens.
        """
        known = list(self.tokens)
        own = {token.encode() for token in known}
        self.take_vocabulary({token: n for token, n in counts.items() if token not in own}, min_frequency)
        self._set_tokens((known + list(self.tokens))[: max(len(known), max_size or sys.maxsize)])

    def add_unknown_token(self) -> None:
        """Add U+FFFD to the vocabulary, as the token that all unknown ones become.

        If the target's vocabulary has it, a model with `copy=True` copies unknown source tokens: see `detokenize`.
        This changes nothing unless `counts_tokens`: no byte is unknown, and a vocabulary of subwords is trained.
        """
        if self.counts_tokens and REPLACEMENT not in self.tokens:
            self._set_tokens([*self.tokens, REPLACEMENT])

    def tokenize(self, texts: Texts, start_end: bool = False) -> tf.Tensor:
        """Turn texts into ids.

        Args:
            texts: strings `[B]`.
            start_end: whether to put START before and END after each text, as targets need.

        Returns:
            int32 `[B, S]`, each row padded on the right with 0 to the length of the longest. S is at least 1, because a
            recurrent layer needs a step: a batch of empty texts is one column of padding.

        Raises:
            OptionError: for other texts.
            ValueError: if `split` does not return ragged strings, or a SubwordTokenizer is not trained yet.
        """
        ids = self._look_up(texts)
        if start_end:
            one = tf.ones([ids.nrows(), 1], tf.int32)
            return tf.concat([START * one, ids, END * one], axis=1).to_tensor(PADDING)
        ids = ids.to_tensor(PADDING)
        empty = tf.cast(tf.shape(ids)[1] == 0, tf.int32)
        return tf.pad(ids, [[0, 0], [0, empty]], constant_values=PADDING)

    def one_hot(self, ids: tf.Tensor) -> tf.Tensor:
        """Turn ids `[B, S]` into floats `[B, S, V]`; padding becomes an all-zero row."""
        return one_hot(ids, self.vocabulary_size)

    def detokenize(
        self, ids: tf.Tensor | np.ndarray | Sequence[Sequence[int]], unknown: tf.Tensor | tf.RaggedTensor | None = None
    ) -> tf.Tensor:
        """Turn ids `[B, T]` back into texts `[B]`.

        Each text ends before its row's first END. START and padding are left out; unknown tokens become U+FFFD.

        Args:
            ids: of targets.
            unknown: the unknown tokens of each source, strings `[B, U]`, ragged or padded with "". The n-th of them
                replaces the n-th U+FFFD that is a token, see `add_unknown_token`. If there are more U+FFFD, the rest
                are left out.

        Raises:
            OptionError: if the ids are not whole numbers `[B, T]`.
        """
        try:
            ids = tf.convert_to_tensor(ids)
        except (TypeError, ValueError) as error:  # a ragged tensor or list
            raise OptionError(f"ids: expected whole numbers [B, T], padded ({one_line(error)})") from None
        if ids.shape.rank not in (2, None) or not ids.dtype.is_integer:
            raise OptionError(f"ids: expected whole numbers [B, T], not {ids.dtype.name} {ids.shape}")
        ended = tf.cumsum(tf.cast(ids == END, tf.int32), axis=1) > 0
        ids = tf.where(ended, PADDING, ids)
        if unknown is None or self.unknown_ids[0] == UNKNOWN:
            return self._spell(ids)
        copied = ids == self.unknown_ids[0]
        places = tf.cumsum(tf.cast(copied, tf.int32), axis=1, exclusive=True)
        if isinstance(unknown, tf.RaggedTensor):
            unknown = unknown.to_tensor("")
        unknown = tf.pad(unknown, [[0, 0], [0, tf.shape(ids)[1]]], constant_values="")
        return self._join(tf.where(copied, tf.gather(unknown, places, batch_dims=1), self._written(ids)))

    def get_config(self) -> dict:
        return {"vocabulary": list(self.tokens), "normal_form": self.normal_form, "lowercase": self.lowercase}

    @classmethod
    def from_config(cls, config: dict) -> Self:
        return cls(**config)

    def __repr__(self):
        return f"{type(self).__name__}({self.vocabulary_size} tokens: {' '.join(self.vocabulary[4:24])!r})"

    def _start_over(self):
        """Reset the state that would change how `adapt` counts."""

    def _set_tokens(self, tokens):
        self.tokens = list(tokens)
        with tf.init_scope():
            # Without the reserved tokens; otherwise, the word "[END]" in a text would end it. The empty string is never
            # a token, so it stands for the unknown token. Keras does not make an empty look-up.
            self._lookup = keras.layers.StringLookup(vocabulary=self.tokens or ["nothing"], oov_token="")

    def _split(self, texts):
        tokens = self.split(self.normalize(texts))
        if not isinstance(tokens, tf.RaggedTensor) or tokens.dtype != tf.string or tokens.shape.rank != 2:
            found = f"{type(tokens).__name__} {getattr(tokens, 'dtype', '')} {getattr(tokens, 'shape', '')}"
            raise ValueError(f"{type(self).__name__}.split must return ragged strings [B, (S)], not {found}")
        return tokens

    def _look_up(self, texts):
        """Turn texts `[B]` into ragged ids, int32 `[B, (S)]`."""
        tokens = self._split(texts)
        places = tf.cast(self._lookup(tokens.flat_values), tf.int32)  # 0 if unknown, else counted from 1
        known = (places > 0) & (places <= len(self.tokens))
        return tokens.with_flat_values(tf.where(known, places + END, self.unknown_ids[0]))

    def _only_unknown(self, texts):
        """The unknown tokens of texts `[B]` in their places, with "" for the others: ragged strings `[B, (S)]`."""
        tokens, ids = self._split(texts), self._look_up(texts)
        return tokens.with_flat_values(tf.where(ids.flat_values == self.unknown_ids[0], tokens.flat_values, ""))

    def _spell(self, ids):
        """Turn ids `[B, T]` into texts `[B]`, without PADDING and START."""
        return self._join(self._written(ids))

    def _written(self, ids):
        """The token of each id, "" for PADDING and START."""
        return tf.gather(tf.concat([["", REPLACEMENT, "", ""], tf.constant(self.tokens, tf.string)], axis=0), ids)

    def _join(self, written):
        """Join tokens `[B, T]`, in which "" may occur anywhere, into texts `[B]`."""
        return self.join(tf.ragged.boolean_mask(written, written != ""))


def strings(texts: Texts) -> tf.Tensor:
    """Convert texts to a tensor of strings `[B]`.

    Raises:
        OptionError: if they are a single text, pairs, an iterator or anything else.
    """
    try:
        return tf.ensure_shape(tf.convert_to_tensor(texts, tf.string), [None])
    except (TypeError, ValueError, tf.errors.InvalidArgumentError):
        found = reprlib.repr(texts)
        raise OptionError(f"texts={found}: expected a list, an array or a tensor of strings, [B]") from None


def check_tokenizers(source_tokenizer: Tokenizer, target_tokenizer: Tokenizer) -> None:
    """Raise an `OptionError` for anything but tokenizers."""
    for side, tokenizer in (("source_tokenizer", source_tokenizer), ("target_tokenizer", target_tokenizer)):
        if not isinstance(tokenizer, Tokenizer):
            raise OptionError(f"{side}={tokenizer!r}: expected a tokenizer, such as CharTokenizer()")


def without_empty(tokens: tf.RaggedTensor) -> tf.RaggedTensor:
    """Leave the empty ones out of ragged strings `[B, (S)]`."""
    # As `tf.ragged.boolean_mask`, with a third of its operations: a pipeline of columns has many of these.
    kept = tokens.flat_values != ""
    kept_before = tf.cumsum(tf.pad(tf.cast(kept, tokens.row_splits.dtype), [[1, 0]]))
    row_splits = tf.gather(kept_before, tokens.row_splits)
    return tf.RaggedTensor.from_row_splits(tf.boolean_mask(tokens.flat_values, kept), row_splits, validate=False)


def one_hot(ids: tf.Tensor, vocabulary_size: int, dtype: str = "float32") -> tf.Tensor:
    """One-hot rows `[..., V]` of ids `[...]`; padding becomes an all-zero row."""
    beyond = tf.constant(vocabulary_size, ids.dtype)  # an id of no token; -1 would be the last token in ONNX
    return tf.one_hot(tf.where(ids == PADDING, beyond, ids), vocabulary_size, dtype=dtype)


def frequent_tokens(counts: Mapping[bytes, int], min_frequency: int, max_size: int | None) -> list[bytes]:
    """Select the tokens that are frequent enough. Leave out empty ones, U+FFFD (it stands for unknown tokens), and
    those with NUL (SentencePiece and NumPy end a string there).

    Raises:
        OptionError: if either number is out of range.
    """
    check_number("min_frequency", min_frequency, least=1)
    check_number("max_size", max_size, least=1, optional=True)
    left_out = {b"", REPLACEMENT.encode()}
    return [token for token, n in counts.items() if n >= min_frequency and token not in left_out and b"\0" not in token]


def target_ids(
    tokenizer: Tokenizer, texts: Texts, source_tokenizer: Tokenizer, sources: Texts, longest: int | None = None
) -> tf.Tensor:
    """Tokenize targets `[B]` of sources `[B]`, with START and END: int32 `[B, T]`.

    If the vocabulary has U+FFFD, it stands for the source's unknown tokens, as in `detokenize`. All unknown tokens of a
    target become UNKNOWN unless `detokenize` would write the same ones. `longest`: as in `Tokenizer.unknown`, for
    sources.
    """
    ids, (unknown, *_) = tokenizer.tokenize(texts, start_end=True), tokenizer.unknown_ids
    if unknown == UNKNOWN:
        return ids
    own, of_source = tokenizer.unknown(texts).to_tensor(""), source_tokenizer.unknown(sources, longest).to_tensor("")
    of_source = tf.pad(of_source, [[0, 0], [0, tf.shape(own)[1]]], constant_values="")
    # Whether the n-th unknown token of a target is that of its source, for all n.
    copied = tf.reduce_all((own == of_source[:, : tf.shape(own)[1]]) | (own == ""), axis=1, keepdims=True)
    return tf.where(copied | (ids != unknown), ids, UNKNOWN)


def spelled(tokenizer: Tokenizer, ids: tf.Tensor | np.ndarray) -> list[list[str]]:
    """The tokens of ids `[B, T]`, END included, without padding: B lists."""
    vocabulary = tokenizer.vocabulary
    return [[vocabulary[number] for number in row if number != PADDING] for row in np.asarray(ids)]


def prefix_ids(tokenizer: Tokenizer, prefixes: Texts, place: str, first: int = 1) -> tf.Tensor:
    """Tokenize the prefixes of N translations: int32 `[N, P]`.

    Raises:
        OptionError: if one has unknown tokens; the message names `place` and the prefix's number, counted from `first`.
    """
    prefixes = tf.convert_to_tensor(prefixes)
    ids, unknown = tokenizer.tokenize(prefixes), tokenizer.unknown(prefixes)
    for row in np.flatnonzero(unknown.row_lengths()).tolist():
        tokens = ", ".join(repr(token.decode()) for token in dict.fromkeys(unknown[row].numpy()))
        what = f"{place} {row + first}: the prefix {prefixes[row].numpy().decode(errors='replace')!r}"
        raise OptionError(f"{what} has tokens that are not in the vocabulary: {tokens}")
    return ids
