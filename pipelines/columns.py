"""Columns: a tokenizer of texts with several columns."""

from collections.abc import Mapping, Sequence
from typing import Self

import keras
import numpy as np
import tensorflow as tf

from pipelines.options import OptionError
from pipelines.tokens import PADDING, RESERVED_TOKENS, UNKNOWN, Texts, Tokenizer, strings


@keras.saving.register_keras_serializable("pipelines")
class ColumnsTokenizer(Tokenizer):
    """Texts of several columns with a tab between them, each column with its own tokenizer.

    ```python
    tokenizer = ColumnsTokenizer([CharTokenizer(), SeparatorTokenizer(";")], ["lemma", "features"])
    tokenizer.adapt(["see\tV;PST", "go\tV;PRS"])
    ids = tokenizer.tokenize(["go\tV;PRS"])     # [[5, 6, 9, 10]]
    tokenizer.columns[ids]                      # [[0, 0, 1, 1]]
    tokenizer.detokenize(ids)                   # [b"go\tV;PRS"]
    ```

    The ids of a text are one sequence: those of the first column, then those of the second, and so on. Columns share no
    ids, even for the same token. From the second on, each has an id for its unknown tokens, so that an unknown feature
    is still a feature. A missing column is empty; surplus columns are not read.

    In `counts` and `tokens`, a token of the n-th column has n - 1 tabs before it.

    Args:
        tokenizers: one for each column.
        names: the columns' names, for messages; "source 1", "source 2" and so on by default.
        columns: for each id after the reserved ones, its column, counted from 0, as in `get_config`. Default: the ids
            are in the order of the columns.

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
        self._assign_ids(list(columns))

    def normalize(self, texts: Texts) -> tf.Tensor:
        """Convert each column of texts `[B]` to the normal form of its tokenizer."""
        return tf.strings.join([part.normalize(column) for part, column in self._columns_of(texts)], "\t")

    @property
    def vocabulary(self) -> list[str]:
        """All tokens, the reserved ones first; a token's index is its id. A token of several columns is repeated."""
        vocabularies = [part.vocabulary for part in self.tokenizers]
        pairs = zip(self.columns, self._id_in_column, strict=True)
        return [vocabularies[column][in_column] for column, in_column in pairs]

    @property
    def columns(self) -> np.ndarray:
        """The column of each id, counted from 0: int32 `[V]`. Reserved ids are in column 0."""
        return self._columns

    @property
    def of_columns(self) -> list[Tokenizer]:
        """The tokenizer of each column."""
        return self.tokenizers

    @property
    def unknown_ids(self) -> tuple[int, ...]:
        """For each column, the id that unknown tokens get."""
        parts = zip(self.tokenizers, self.ids_of_columns, strict=True)
        return tuple(int(table[part.unknown_ids[0]]) for part, table in parts)

    def count(self, texts: Texts) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Count the tokens of texts `[B]`, as `Tokenizer.count`, each column separately."""
        counts = [part.count(column) for part, column in self._columns_of(texts)]
        tokens, numbers, lengths = zip(*counts, strict=True)
        marked = [tf.strings.join(["\t" * number, column]) for number, column in enumerate(tokens)]
        return tf.concat(marked, axis=0), tf.concat(numbers, axis=0), tf.add_n(list(lengths))

    def lengths(self, texts: Texts) -> tf.Tensor:
        """Count the tokens of each of texts `[B]`, in all columns: int32 `[B]`."""
        return tf.add_n([part.lengths(column) for part, column in self._columns_of(texts)])

    def take_vocabulary(self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None) -> None:
        """Take the vocabulary of each column from its counted tokens, as its tokenizer does.

        Args:
            counts: a mapping of tokens, as `count` returns them, to their counts.
            min_frequency, max_size: as in `Tokenizer.take_vocabulary`, of each column.
        """
        for part, of_column in zip(self.tokenizers, self.by_column(counts), strict=True):
            part.take_vocabulary(of_column, min_frequency, max_size)
        self._assign_ids([])

    def extend_vocabulary(
        self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None
    ) -> None:
        """Add tokens to the vocabulary of each column. All tokens it has keep their ids.

        Args:
            counts, min_frequency, max_size: as in `take_vocabulary`.
        """
        for part, of_column in zip(self.tokenizers, self.by_column(counts), strict=True):
            part.extend_vocabulary(of_column, min_frequency, max_size)
        self._assign_ids(self.columns[len(RESERVED_TOKENS) :].tolist())

    def by_column(self, counts: Mapping[bytes, int]) -> list[dict[bytes, int]]:
        """Divide counted tokens, as `count` returns them, by column, without the tabs before them."""
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
    def from_config(cls, config: dict) -> Self:
        parts = [keras.saving.deserialize_keras_object(part) for part in config["tokenizers"]]
        return cls(**{**config, "tokenizers": parts})

    def _start_over(self):
        for part in self.tokenizers:
            part._start_over()

    def _set_tokens(self, tokens):
        """Do nothing: the columns have tokens, and `_assign_ids` gives them ids."""

    def _assign_ids(self, columns):
        """Give each token an id: the next id of its column in a list of columns by id, or a new id after the list.

        Within a column, ids are in the order of its tokenizer's ids, so only the list has to be saved. For columns with
        the tokens a, b and X, whose own ids begin after the four reserved ones, and an unknown token (1) of the second:

            id                      4  5  6  7
            column of the id        0  0  1  1
            id in the column        4  5  1  4
        """
        in_columns = [
            [UNKNOWN] * (number > 0) + list(range(len(RESERVED_TOKENS), part.vocabulary_size))
            for number, part in enumerate(self.tokenizers)
        ]
        for number, in_column in enumerate(in_columns):
            columns = columns + [number] * (len(in_column) - columns.count(number))
        self._columns = np.array([0] * len(RESERVED_TOKENS) + columns, np.int32)
        self._id_in_column = np.arange(len(self._columns), dtype=np.int32)
        self.ids_of_columns: list[np.ndarray] = []  # the inverse: of each column, ids by their ids in it
        for number, (in_column, part) in enumerate(zip(in_columns, self.tokenizers, strict=True)):
            ids = len(RESERVED_TOKENS) + np.flatnonzero(np.array(columns) == number)
            self._id_in_column[ids] = in_column
            table = np.arange(part.vocabulary_size, dtype=np.int32)
            table[in_column] = ids
            self.ids_of_columns.append(table)
        self.tokens = [
            b"\t" * column + self._token(column, in_column)
            for column, in_column in zip(columns, self._id_in_column[len(RESERVED_TOKENS) :], strict=True)
        ]

    def _token(self, column, in_column):
        """The token with this id in a column, as bytes; empty for the unknown token."""
        if in_column == UNKNOWN:
            return b""
        token = self.tokenizers[column].tokens[in_column - len(RESERVED_TOKENS)]
        return token if isinstance(token, bytes) else token.encode()

    def _columns_of(self, texts):
        """Split texts `[B]` into columns: a list of (tokenizer, strings `[B]`)."""
        columns = tf.strings.split(strings(texts), "\t").to_tensor("", shape=[None, len(self.tokenizers)])
        return list(zip(self.tokenizers, tf.unstack(columns, axis=1), strict=True))

    def _look_up(self, texts):
        found = []
        for (part, column), table in zip(self._columns_of(texts), self.ids_of_columns, strict=True):
            ids = part._look_up(column).with_row_splits_dtype(tf.int64)
            found.append(ids.with_flat_values(tf.gather(table, ids.flat_values)))
        return tf.concat(found, axis=1)

    def _only_unknown(self, texts):
        found = []
        for part, column in self._columns_of(texts):
            tokens = part._only_unknown(column).with_row_splits_dtype(tf.int64)
            found.append(tokens if part.ordered else tf.zeros_like(tokens))
        return tf.concat(found, axis=1)

    def _spell(self, ids):
        columns, in_column = tf.gather(self._columns, ids), tf.gather(self._id_in_column, ids)
        parts = enumerate(self.tokenizers)
        return tf.strings.join([part._spell(tf.where(columns == n, in_column, PADDING)) for n, part in parts], "\t")
