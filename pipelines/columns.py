"""Columns: tokenizers of texts with several columns, and of a column that is a set of features."""

from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from pipelines.options import OptionError
from pipelines.tokenizers import PADDING, RESERVED_TOKENS, UNKNOWN, Texts, Tokenizer


@keras.saving.register_keras_serializable("pipelines")
class SeparatorTokenizer(Tokenizer):
    """One token for each stretch of text between separators: a set of features, as in "V;PST;3;SG".

    The order of the tokens means nothing (`ordered` is False). Nothing between two separators is no token.
    `detokenize(tokenize(text))` is the text's normal form for every other text whose tokens are in the vocabulary.

    Args:
        separator: what stands between tokens, one character or several, without a tab.
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

    def split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        tokens = tf.strings.split(texts, self.normalize([self.separator])[0])
        return tf.ragged.boolean_mask(tokens, tokens != "")

    def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        return tf.strings.reduce_join(tokens, axis=1, separator=self.separator)

    def get_config(self) -> dict:
        return {"separator": self.separator, **super().get_config()}


@keras.saving.register_keras_serializable("pipelines")
class ColumnsTokenizer(Tokenizer):
    """Texts of several columns with a tab between them, each column cut by a tokenizer of its own.

    ```python
    tokenizer = ColumnsTokenizer([CharTokenizer(), SeparatorTokenizer(";")], ["lemma", "features"])
    tokenizer.adapt(["see\tV;PST", "go\tV;PRS"])
    ids = tokenizer.tokenize(["go\tV;PRS"])     # [[5, 6, 9, 10]]
    tokenizer.columns[ids]                      # [[0, 0, 1, 1]]
    tokenizer.detokenize(ids)                   # [b"go\tV;PRS"]
    ```

    The ids of a text are one sequence: those of the first column's tokens, then those of the second's, and so on. Each
    column has ids of its own, also for the same token; and, from the second on, one for what is unknown in it, so that
    an unknown feature is still a feature. A column that a text lacks is empty, columns that are too many are not read.

    In `counts`, as in `tokens`, a token of the n-th column has n - 1 tabs before it.

    Args:
        tokenizers: one for each column.
        names: what the columns are called, for messages; "source 1", "source 2" and so on by default.
        columns: for each id after the reserved ones, the column it belongs to, counted from 0, as `get_config` has it.
            Default: that of a vocabulary just taken, the ids of one column after those of another.

    Raises:
        OptionError: if there is no tokenizer, or there are not as many names.
    """

    def __init__(
        self, tokenizers: Sequence[Tokenizer], names: Sequence[str] | None = None, columns: Sequence[int] = ()
    ) -> None:
        names = names or [f"source {number}" for number in range(1, len(tokenizers) + 1)]
        if not tokenizers or len(names) != len(tokenizers):
            raise OptionError(
                f"names={list(names)}: {len(names)} for {len(tokenizers)} tokenizers; expected one for each"
            )
        super().__init__((), tokenizers[0].normal_form, tokenizers[0].lowercase)
        self.tokenizers = list(tokenizers)
        self.column_names = tuple(names)
        self._number(list(columns))

    def normalize(self, texts: Texts) -> tf.Tensor:
        """Brings each column of texts `[B]` into the normal form of its tokenizer."""
        return tf.strings.join([part.normalize(column) for part, column in self._columns_of(texts)], "\t")

    @property
    def vocabulary(self) -> list[str]:
        """All tokens, the reserved ones first; a token's index is its id. What is in several columns is repeated."""
        vocabularies = [part.vocabulary for part in self.tokenizers]
        return [vocabularies[column][place] for column, place in zip(self.columns, self._places, strict=True)]

    @property
    def columns(self) -> np.ndarray:
        """The column that each id belongs to, counted from 0, which is also that of the reserved ids: int32 `[V]`."""
        return self._columns

    @property
    def ordered_columns(self) -> tuple[bool, ...]:
        """For each column, whether the order of its tokens means something."""
        return tuple(part.ordered for part in self.tokenizers)

    def adapt(self, texts: Texts | tf.data.Dataset, min_frequency: int = 1, max_size: int | None = None) -> None:
        """Takes the vocabulary of each column from text, which is read once for each.

        Args:
            texts: a `tf.data.Dataset` of scalar strings, or anything `from_tensor_slices` makes one of.
            min_frequency, max_size: as in `take_vocabulary`.
        """
        if not isinstance(texts, tf.data.Dataset):
            texts = tf.data.Dataset.from_tensor_slices(texts)
        rows = texts.batch(4096).map(lambda texts: tf.stack([column for _, column in self._columns_of(texts)], axis=1))
        for number, part in enumerate(self.tokenizers):
            part.adapt(rows.map(lambda rows, number=number: rows[:, number]).unbatch(), min_frequency, max_size)
        self._number([])

    def count(self, texts: Texts) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Counts the tokens of texts `[B]`, as `Tokenizer.count`, those of each column by themselves."""
        counts = [part.count(column) for part, column in self._columns_of(texts)]
        tokens, numbers, lengths = zip(*counts, strict=True)
        marked = [tf.strings.join(["\t" * number, column]) for number, column in enumerate(tokens)]
        return tf.concat(marked, axis=0), tf.concat(numbers, axis=0), tf.add_n(list(lengths))

    def lengths(self, texts: Texts) -> tf.Tensor:
        """How many tokens each of texts `[B]` has, in all columns: int32 `[B]`."""
        return tf.add_n([part.lengths(column) for part, column in self._columns_of(texts)])

    def take_vocabulary(self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None) -> None:
        """Takes the vocabulary of each column from its counted tokens, as its tokenizer does.

        Args:
            counts: a mapping of tokens, as `count` gives them, to how often they come.
            min_frequency, max_size: as in `Tokenizer.take_vocabulary`, of each column.
        """
        for part, of_column in zip(self.tokenizers, self.by_column(counts), strict=True):
            part.take_vocabulary(of_column, min_frequency, max_size)
        self._number([])

    def extend_vocabulary(
        self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None
    ) -> None:
        """Takes more tokens into the vocabulary of each column. All ids that were there stay what they are.

        Args:
            counts, min_frequency, max_size: as in `take_vocabulary`.
        """
        for part, of_column in zip(self.tokenizers, self.by_column(counts), strict=True):
            part.extend_vocabulary(of_column, min_frequency, max_size)
        self._number(self.columns[len(RESERVED_TOKENS) :].tolist())

    def by_column(self, counts: Mapping[bytes, int]) -> list[dict[bytes, int]]:
        """Counted tokens, as `count` gives them, as a list of those of each column without the tabs before them."""
        found: list[dict[bytes, int]] = [{} for _ in self.tokenizers]
        for token, count in counts.items():
            own = token.lstrip(b"\t")
            found[len(token) - len(own)][own] = count
        return found

    def get_config(self) -> dict:
        return {
            "tokenizers": [keras.saving.serialize_keras_object(part) for part in self.tokenizers],
            "names": list(self.column_names),
            "columns": self.columns[len(RESERVED_TOKENS) :].tolist(),
        }

    @classmethod
    def from_config(cls, config: dict) -> "Tokenizer":
        parts = [keras.saving.deserialize_keras_object(part) for part in config["tokenizers"]]
        return cls(**{**config, "tokenizers": parts})

    def _set_tokens(self, tokens):
        """Nothing: the columns have tokens, and `_number` gives them ids."""

    def _number(self, columns):
        """Gives each token an id: one that is in a list of columns of ids the next one of its column, others new ones.

        Within a column ids rise with those of its tokenizer, so that the list says it all.
        """
        # What has an id, by its own id in its column: tokens and, but in the first column, what is unknown.
        known = [[UNKNOWN] * (number > 0) for number in range(len(self.tokenizers))]
        for own, part in zip(known, self.tokenizers, strict=True):
            own += range(len(RESERVED_TOKENS), part.vocabulary_size)
        for number, own in enumerate(known):
            columns = columns + [number] * (len(own) - columns.count(number))
        self._columns = np.array([0] * len(RESERVED_TOKENS) + columns, np.int32)
        self._places = np.arange(len(self._columns), dtype=np.int32)  # of each id, the one in its column
        self._ids = []  # of each column, the ids by those in it
        for number, (own, part) in enumerate(zip(known, self.tokenizers, strict=True)):
            ids = np.flatnonzero(self._columns == number)
            ids = ids[ids >= len(RESERVED_TOKENS)]
            self._places[ids] = own
            table = np.arange(part.vocabulary_size, dtype=np.int32)
            table[own] = ids
            self._ids.append(table)
        self.tokens = [
            b"\t" * column + self._written(column, place)
            for column, place in zip(columns, self._places[len(RESERVED_TOKENS) :], strict=True)
        ]

    def _written(self, column, place):
        """The token of an id in a column, as bytes; of what is unknown there, nothing."""
        if place == UNKNOWN:
            return b""
        token = self.tokenizers[column].tokens[place - len(RESERVED_TOKENS)]
        return token if isinstance(token, bytes) else token.encode()

    def _columns_of(self, texts):
        """The columns of texts `[B]`, strings `[B]` of each, with its tokenizer."""
        texts = tf.ensure_shape(tf.convert_to_tensor(texts, tf.string), [None])
        columns = tf.strings.split(texts, "\t").to_tensor("", shape=[None, len(self.tokenizers)])
        return list(zip(self.tokenizers, tf.unstack(columns, axis=1), strict=True))

    def _look_up(self, texts):
        found = []
        for (part, column), table in zip(self._columns_of(texts), self._ids, strict=True):
            ids = part._look_up(column).with_row_splits_dtype(tf.int64)
            found.append(ids.with_flat_values(tf.gather(table, ids.flat_values)))
        return tf.concat(found, axis=1)

    def _spell(self, ids):
        columns, places = tf.gather(self._columns, ids), tf.gather(self._places, ids)
        parts = enumerate(self.tokenizers)
        return tf.strings.join([part._spell(tf.where(columns == n, places, PADDING)) for n, part in parts], "\t")
