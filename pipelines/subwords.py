"""Subwords: a tokenizer that learns pieces of words with SentencePiece."""

import base64
import collections
import io
import re
from collections.abc import Mapping
from typing import Self

import keras
import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from pipelines.options import OptionError, extra
from pipelines.tokens import REPLACEMENT, RESERVED_TOKENS, WHITESPACE, Texts, Tokenizer, frequent_tokens


@keras.saving.register_keras_serializable("pipelines")
class SubwordTokenizer(Tokenizer):
    """Pieces of words: one for a frequent word, several for a rare one.

    SentencePiece (Kudo and Richardson 2018, arxiv.org/abs/1808.06226) with a unigram language model (Kudo 2018,
    arxiv.org/abs/1804.10959). The package `sentencepiece` trains it on counted words; the trained tokenizer does not
    need the package. "▁" begins a word. Before training, `split` and `count` split at whitespace, so that `count`
    returns the words that `take_vocabulary` trains on.

    `detokenize(tokenize(text))` is the text's normal form with a single space for each run of whitespace (and of "▁"),
    for every text whose characters are in the vocabulary.

    Args:
        model: a serialized SentencePiece model, the attribute `model` of a SubwordTokenizer; none before `adapt`.
        normal_form, lowercase: as in `Tokenizer`.

    Raises:
        OptionError: if another program made the model.
    """

    DEFAULT_SIZE = 4000
    # They end in a space, which no word has: training would take these names out of words.
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

    def written_form(self, texts: Texts) -> tf.Tensor:
        """As in `Tokenizer`: normalized, with single spaces."""
        return tf.strings.strip(tf.strings.regex_replace(self.normalize(texts), f"[{WHITESPACE}▁]+", " "))

    def take_vocabulary(self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None) -> None:
        """Train on counted words. The same words make the same model.

        Args:
            counts: a mapping of words, as UTF-8, to their counts.
            min_frequency: leave out rarer words.
            max_size: the maximum number of pieces, without the reserved tokens; few words give fewer. None for 4,000 or
                twice the number of characters, whichever is more.

        Raises:
            OptionError: if no words are left, or there are more characters than `max_size`: each is a piece.
            MissingExtra: if the package `sentencepiece` is not installed.
        """
        with extra("subword"):  # needed only for training
            from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2

        marks = f"▅|{REPLACEMENT}".encode()  # SentencePiece's own, and that of what is unknown
        words = collections.Counter[bytes]()
        for word in frequent_tokens(counts, min_frequency, max_size):
            for part in filter(None, re.split(marks, word)):
                words[part] += counts[word]
        if not words:
            raise OptionError(f"min_frequency={min_frequency}: no word occurs that often; nothing to train on")
        characters = len(set(b"".join(words).decode()) | {"▁"})
        if max_size is not None and max_size < characters:
            raise OptionError(f"max_size={max_size}: expected {characters} or more, the number of characters")
        trained = io.BytesIO()
        SentencePieceTrainer.train(
            sentence_iterator=(b"%s\t%d" % each for each in sorted(words.items())),
            input_format="tsv",
            model_writer=trained,
            vocab_size=len(RESERVED_TOKENS) + (max_size or max(self.DEFAULT_SIZE, 2 * characters)),
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=1 << 30,  # a word of Chinese may be a paragraph
            num_threads=4,  # on every machine, since sums of floats, and so the model, depend on it
            minloglevel=2,
            **dict(zip(("pad_id", "unk_id", "bos_id", "eos_id"), range(4), strict=True)),
            **dict(zip(("pad_piece", "unk_piece", "bos_piece", "eos_piece"), self._RESERVED_PIECES, strict=True)),
        )
        model = sentencepiece_model_pb2.ModelProto.FromString(trained.getvalue())
        # A map that changes no character (a trie of 1024 bytes without a key). If a model has none, TensorFlow Text
        # warns on stderr each time it is loaded.
        model.normalizer_spec.precompiled_charsmap = (1024).to_bytes(4, "little") + bytes(1024 + 1)
        self._set_model(model.SerializeToString(deterministic=True))

    def extend_vocabulary(
        self, counts: Mapping[bytes, int], min_frequency: int = 1, max_size: int | None = None
    ) -> None:
        """Change nothing: pieces are trained once. Characters that are in none of them are unknown."""

    def get_config(self) -> dict:
        model = base64.b64encode(self.model).decode()
        return {"model": model, "normal_form": self.normal_form, "lowercase": self.lowercase}

    @classmethod
    def from_config(cls, config: dict) -> Self:
        return cls(**{**config, "model": base64.b64decode(config["model"])})

    def _start_over(self):
        self._set_model(b"")

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
            raise OptionError("model: expected one trained by SubwordTokenizer.take_vocabulary")
        self._set_tokens(tokens.tolist())
        # It does the same as the one above, without a resource, which `tf.random.set_seed` would destroy.
        self._sentencepiece = tf_text.FastSentencepieceTokenizer(model)

    def _look_up(self, texts):
        if not self.model:
            raise ValueError("SubwordTokenizer is not trained yet: call adapt or take_vocabulary first")
        return super()._look_up(texts)

    def _only_unknown(self, texts):
        found = super()._only_unknown(texts)  # SentencePiece does not say what an unknown piece was
        return found.with_flat_values(tf.where(found.flat_values == "", "", REPLACEMENT))
