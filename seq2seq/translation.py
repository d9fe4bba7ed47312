"""`Translator`: strings in and out. It translates and scores texts in batches of similar length."""

import functools
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from pipelines import OptionError, check_number, choose
from pipelines.files import whole_folder
from pipelines.formats import wrong_columns
from pipelines.options import MissingExtra, accepted, one_line
from pipelines.tokens import END, PADDING, START, UNKNOWN, Texts, prefix_ids, spelled, target_ids
from seq2seq.attention import Encoded
from seq2seq.checking import refuse_texts
from seq2seq.compilation import XLA_ERRORS, full_precision, join_rows, on_gpu, parts_of_batch, side_by_side, threads
from seq2seq.contract import check_strategy, encode, has_attention
from seq2seq.decoding import LONGEST_SOURCE, STOPPED
from seq2seq.exporting import export
from seq2seq.layers import row_lengths
from seq2seq.litert_exporting import export_litert
from seq2seq.onnx_exporting import export_onnx
from seq2seq.records import RunError
from seq2seq.strategies import STRATEGIES, BeamSearch, Greedy, Strategy
from seq2seq.texts import as_python, as_strings, as_targets, bytes_or_tokens, first_different, in_batches
from seq2seq.trainer import without_end_warning
from seq2seq.web_exporting import export_web

LONGEST_TRANSLATION = 100_000  # tokens
_TEXTS, _IDS = tf.TensorSpec([None], tf.string), tf.TensorSpec([None, None], tf.int32)  # arguments of graphs
MANY_TEXTS = 64  # from this number on, the cores translate parts of a batch in parallel


class Translations(NamedTuple):
    """The detailed result of `Seq2Seq.translate` for N texts, n hypotheses each: the best first, samples as drawn.

    Attributes:
        texts: strings `[N, n]`. Those of a beam differ; if fewer of its 2 n best hypotheses do, the last texts are "".
        scores: float32 `[N, n]` log-likelihoods, in nats; -inf for an empty place.
        ranked_by: float32 `[N, n]` what the order follows: of a beam, the score over its length penalty.
        stopped: strings `[N, n]` why each ended: "end", "limit" or "repetition".
        ids: int32 `[N, n, T]` target ids with END, then padding. `score` and `attention` take the ids of one rank.
    """

    texts: tf.Tensor
    scores: tf.Tensor
    ranked_by: tf.Tensor
    stopped: tf.Tensor
    ids: tf.Tensor


class Alignment(NamedTuple):
    """The attention of the decoder while it wrote one text.

    Attributes:
        source: S tokens.
        target: T tokens, with END if there is one.
        weights: `[T, S]`, each row sums to 1; `[T, 1]` for an empty source.
    """

    source: list[str]
    target: list[str]
    weights: np.ndarray

    def _repr_html_(self):
        """The picture that a notebook shows; None without the extra `plots`."""
        try:
            from seq2seq.pictures import attention_svg
        except MissingExtra:
            return None
        return attention_svg(self)


class Translator(keras.Model):
    """A `keras.Model` of two tokenizers, an encoder and a decoder, which takes strings and returns strings.

    A subclass has the attributes and the methods for ids of `Seq2Seq`.
    """

    compiles_decoding: bool
    check_vocabularies: Callable

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._parts = 1  # of a batch; more take twice as long to trace, which few texts do not repay
        self._translate_with = functools.lru_cache(maxsize=32)(self._compile_translate)  # a graph for each strategy
        self._graph_of = functools.cache(_graph)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As in `keras.Model`.

        Raises:
            OptionError: for texts.
        """
        if args:
            refuse_texts("call", args[0])
        return super().__call__(*args, **kwargs)

    def translate(
        self,
        texts: str | bytes | Texts | Iterable[str] | tf.data.Dataset,
        strategy: str | Strategy = "greedy",
        *,
        prefixes: str | Texts | None = None,
        min_length: int = 0,
        max_length: int | None = None,
        seed: int | tuple[int, int] = 0,
        batch_size: int = 256,
        details: bool = False,
        scores: bool = True,
        as_text: bool = False,
    ) -> Any:  # tf.Tensor, or Translations with details, or with as_text str or lists of it
        """Translate texts.

        Args:
            texts: any number of strings: a list, a generator, an array, a tensor `[N]` or a `tf.data.Dataset` of scalar
                strings; or a single string. Only the first 1,024 tokens of each text are read.
            strategy: "greedy", "beam" or "sampling"; or one of these with settings, as in
                `BeamSearch(width=10, n_best=3)`; or an object of a custom class, see `strategies.Strategy`.
            prefixes: how each translation begins: one string for each text, "" for none.
            min_length: the smallest number of tokens in a translation.
            max_length: the largest number of tokens in a translation, END included; a longer one is cut, but at least
                one token follows its prefix. If it equals `min_length`, every translation is cut. Default: by the
                text's length, see `limits`.
            seed: the samples of a text depend on this number and on the text's position in `texts`. A pair (seed, n)
                samples as if n texts came before these.
            batch_size: how many texts are decoded together, fewer if they are long. It does not change translations.
            details: whether to return scores, all n-best hypotheses and why each ended.
            scores: whether `details` have the scores of strategies that compute none themselves, which are greedy
                search and sampling. This takes about as long as translating; without it, they are NaN.
            as_text: whether to return `str` instead of tensors of strings. Default: no.

        Returns:
            A string tensor `[N]` in the order of `texts`; `[N, n]` if the strategy gives n > 1 hypotheses; without the
            N for a single string. With `details` it is `Translations`, always `[N, n]`. With `as_text`: of one text a
            `str`, of N texts a list of `str`, or of lists if n > 1; of `Translations`, only `texts` and `stopped` are
            converted.

        Raises:
            OptionError: for an unknown strategy or one that breaks the contract, a beam wider than the vocabulary,
                impossible lengths, texts that are not strings or have no order, a wrong number of prefixes, or a prefix
                with an unknown token. Like all methods that take texts, it refuses sources with a wrong number of
                columns, and a vocabulary that has changed since the model was made.
            MemoryError: if a batch does not fit into memory.
        """
        strategy = self._checked_strategy(strategy)
        check_number("min_length", min_length, least=0, most=LONGEST_TRANSLATION)
        check_number("max_length", max_length, least=max(1, min_length), most=LONGEST_TRANSLATION, optional=True)
        seed, before = seed if isinstance(seed, tuple) and len(seed) == 2 else (seed, 0)
        for number in (seed, before):
            check_number("seed", number, least=0, below=2**31)
        check_number("batch_size", batch_size, least=1)
        texts = self._as_sources("texts", texts)
        begun = [] if prefixes is None else [self._prefix_ids(as_strings("prefixes", prefixes), texts.shape)]
        shape, texts = texts.shape, tf.reshape(texts, [-1])
        count = len(texts)
        texts = texts if count else tf.constant([""])  # not every layer takes an empty batch
        if count >= MANY_TEXTS:
            self._parts = threads() if on_gpu() else parts_of_batch()
        lengths = np.minimum(bytes_or_tokens(texts), LONGEST_SOURCE)
        longest = -1 if max_length is None else max_length

        def run(batch):
            translate = self._translate_with(
                strategy, details, scores, self._parts, bool(begun), self.compiles_decoding
            )
            some = [tf.gather(ids, batch) for ids in begun]
            seeds = (int(seed) << 32) + int(before) + batch  # which differ for all seeds and places
            return translate(tf.gather(texts, batch), seeds, min_length, longest, *some)

        try:
            done, order = in_batches(run, lengths, batch_size)
        except (ValueError, *XLA_ERRORS) as error:
            if not self.compiles_decoding:
                raise
            warnings.warn(
                f"decoding continues uncompiled and slower, because of an XLA error: {shorten(one_line(error), 300)}",
                stacklevel=2,
            )
            self.compiles_decoding = False
            done, order = in_batches(run, lengths, batch_size)
        found = [tf.concat(parts, axis=0) for parts in zip(*done, strict=True)]
        found = [each.to_tensor(PADDING) if isinstance(each, tf.RaggedTensor) else each for each in found]
        found = [tf.gather(each, order[:count]) for each in found]
        if details:
            result = Translations(*found)
            return result._replace(texts=as_python(found[0]), stopped=as_python(found[3])) if as_text else result
        first = tf.reshape(found[0], [*shape, *found[0].shape[1:]] if found[0].shape[1] > 1 else shape)
        return as_python(first) if as_text else first

    def _checked_strategy(self, strategy):
        """The strategy of this name, with a beam that the vocabulary has room for; a strategy is returned unchanged."""
        tokens = self.target_tokenizer.vocabulary_size - END
        if isinstance(strategy, str):
            kind = choose("strategy", strategy, STRATEGIES)
            strategy = BeamSearch(min(BeamSearch.width, tokens)) if kind is BeamSearch else kind()
        check_strategy(strategy)
        if isinstance(strategy, BeamSearch) and strategy.width > tokens:
            raise OptionError(
                f"width={strategy.width}: wider than the vocabulary, which has {tokens} tokens to choose from"
            )
        return strategy

    def _prefix_ids(self, prefixes, shape):
        """The ids of prefixes for texts of this shape: int32 `[N, P]`."""
        if prefixes.shape != shape:
            expected, found = (str(x.num_elements()) if x.rank else "one string" for x in (shape, prefixes.shape))
            raise OptionError(f"prefixes: expected as many as texts, {expected}, not {found}")
        prefixes = tf.reshape(prefixes, [-1]) if tf.size(prefixes) else tf.constant([""])
        return prefix_ids(self.target_tokenizer, prefixes, "prefixes: text")

    def _compile_translate(self, strategy, details, scores, parts, with_prefixes, _compiles_decoding):
        """Make a graph of `translate_batch`. The last argument only makes the cache keep a graph for each value:
        `decode` reads the attribute while it is traced."""
        seeds, length = tf.TensorSpec([None], tf.int64), tf.TensorSpec([], tf.int32)
        prefixes = [_IDS] * with_prefixes

        # A GPU takes the whole batch, and only strings are divided among the cores.
        row_parts, string_parts = (1, parts) if on_gpu() else (parts, 1)

        def run(texts, seeds, min_length, max_length, *prefixes):
            def translate(texts, seeds, prefixes=None):
                return self.translate_batch(
                    texts, strategy, seeds, min_length, max_length, details, prefixes, string_parts, scores
                )

            return side_by_side(translate, row_parts, texts, seeds, *prefixes)

        return _graph(run, _TEXTS, seeds, length, length, *prefixes)

    def translate_batch(
        self,
        texts: tf.Tensor,
        strategy: Strategy,
        seeds: tf.Tensor | None = None,
        min_length: int | tf.Tensor = 0,
        max_length: int | tf.Tensor = -1,
        details: bool = False,
        prefixes: tf.Tensor | None = None,
        parts: int = 1,
        scores: bool = True,
    ) -> tuple[tf.Tensor, ...]:
        """Translate texts `[B]`, at least one, all together. `translate` makes a graph of this.

        Args:
            texts, strategy, details, scores: as in `translate`.
            seeds, min_length, max_length, prefixes: as in `decode`.
            parts: the number of parallel parts in which texts become ids and ids become texts.

        Returns:
            A tuple of strings `[B, n]` and, with `details`, the other parts of `Translations`.
        """
        with tf.device("CPU"):  # where strings are; its small operations would each wait for a GPU
            source = self._source_ids(texts, parts)
        ids, likelihoods, ranked_by, stopped = self.decode(source, strategy, min_length, max_length, seeds, prefixes)
        if likelihoods is None and not scores:
            likelihoods = ranked_by = tf.fill(tf.shape(ids)[:2], np.float32(np.nan))
        if details and likelihoods is None:
            target = tf.pad(ids, [[0, 0], [0, 0], [1, 0]], constant_values=START)
            # One hypothesis after another, so that memory does not grow with their number.
            each = tf.map_fn(
                lambda target: self.log_likelihood(source, target),
                tf.transpose(target, [1, 0, 2]),
                fn_output_signature=tf.float32,
            )
            likelihoods = ranked_by = tf.ensure_shape(tf.transpose(each), ids.shape[:2])
        with tf.device("CPU"):
            rows, count, length = (tf.shape(ids)[axis] for axis in range(3))
            written = [tf.reshape(ids, [rows * count, length])]
            if self.target_tokenizer.unknown_ids[0] != UNKNOWN:  # it can be written, and stands for what is copied
                unknown = self.source_tokenizer.unknown(texts, LONGEST_SOURCE).to_tensor("")
                written.append(tf.repeat(unknown, count, axis=0))
            translations = side_by_side(self.target_tokenizer.detokenize, parts, *written)
            translations = tf.ensure_shape(tf.reshape(translations, [rows, count]), ids.shape[:2])
            found = [translations, likelihoods, ranked_by, tf.gather(tf.constant(STOPPED), stopped), ids]
            found = found if details else found[:1]
            if ids.shape[1] > strategy.n_best:
                found = first_different(strategy.n_best, *found)
            if details:
                found[-1] = tf.RaggedTensor.from_tensor(found[-1], padding=PADDING, ragged_rank=2)
            return tuple(found)

    def _as_sources(self, argument, texts):
        """Convert texts with `as_strings`, and check that each has as many columns as the model's sources, and that
        the vocabularies are those that the model was made with."""
        self.check_vocabularies()
        texts, names = as_strings(argument, texts), self.source_tokenizer.column_names
        if len(names) > 1:
            for number, text in enumerate(tf.reshape(texts, [-1]).numpy(), start=1):
                if problem := wrong_columns(text, names):
                    raise OptionError(f"{argument}: text {number}: {problem}")
        return texts

    def _source_ids(self, texts, parts=1):
        """The ids `[B, S]` of texts `[B]`, cut to `LONGEST_SOURCE`."""
        return side_by_side(self.source_tokenizer.tokenize, parts, texts, join=join_rows)[:, :LONGEST_SOURCE]

    def predict(self, x: Any, batch_size: int | None = None, *args: Any, **kwargs: Any) -> np.ndarray:
        """Translate batches, as `batch_pairs` makes them, or an array of ids or one-hot rows, greedily.

        A copied unknown token stays U+FFFD. For texts and other strategies, use `translate`.

        Returns:
            Strings `[N]`, as bytes, in the order of the batches: make these with `shuffle=False`. If `x` is a pair
            (source, target so far), it returns the logits that the model computes.

        Raises:
            OptionError: for texts.
        """
        self.check_vocabularies()
        refuse_texts("predict", x)
        with without_end_warning(kwargs.get("steps")):
            return super().predict(x, batch_size, *args, **kwargs)

    def predict_step(self, data: Any) -> tf.Tensor:
        """Translate the sources of one batch greedily, see `predict`."""
        source, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(source, tuple | list):
            return self(source)
        ids = self.decode(tf.convert_to_tensor(source), Greedy()).ids[:, 0]
        with tf.device("CPU"):
            return self.target_tokenizer.detokenize(ids)

    def make_predict_function(self, force: bool = False) -> Callable | None:
        """As in `keras.Model`, but never compiled: XLA has no strings."""
        compiles: Any = self.jit_compile
        self.jit_compile: Any = False
        try:
            return super().make_predict_function(force)
        finally:
            self.jit_compile = compiles

    def score(
        self, sources: Texts, targets: Texts | tf.Tensor, batch_size: int = 256, per_token: bool = False
    ) -> tf.Tensor | tf.RaggedTensor:
        """The log-likelihood of each target, given its source. Only the first 1,024 tokens of a source are read.

        Args:
            sources: strings, N of them.
            targets: as many strings; or ids `[N, T]`, then padding, such as `ids[:, 0]` of `Translations`. Ids are
                scored as they are, so END only if there is one.
            batch_size: how many pairs are scored together, fewer if they are long.
            per_token: whether to return the log-probability of each token instead of their sum.

        Returns:
            float32 `[N]`, in nats: the sum over the tokens of the target and END. With `per_token` those of all tokens,
            ragged float32 `[N, (T)]`.

        Raises:
            OptionError: if there are not as many targets as sources, they are not texts, or `batch_size` is below 1.
            MemoryError: if a batch does not fit into memory.
        """
        check_number("batch_size", batch_size, least=1)
        sources = self._as_sources("sources", sources)
        if not sources.shape.rank or isinstance(targets, str | bytes):
            raise OptionError("sources and targets: expected lists of strings; put a single string into a list")
        targets = as_targets(targets, sources, self.target_tokenizer.vocabulary_size)

        score = self._graph_of(self._score, _TEXTS, _IDS)

        def run(batch):
            source = tf.gather(sources, batch)
            target = self.target_ids(tf.gather(targets, batch), source)
            return kept(score(source, target), target[:, 1:])

        def kept(each, ids):
            return tf.RaggedTensor.from_tensor(each, row_lengths(ids)) if per_token else tf.reduce_sum(each, axis=1)

        lengths = np.maximum(bytes_or_tokens(sources), bytes_or_tokens(targets))
        scores, order = in_batches(run, lengths, batch_size, "pairs")
        nothing = kept(tf.zeros([0, 1]), tf.zeros([0, 1], tf.int32))
        return tf.gather(tf.concat([nothing, *scores], axis=0), order)

    def _score(self, sources, target):
        source = self._source_ids(sources)
        return side_by_side(functools.partial(self.log_likelihood, per_token=True), parts_of_batch(), source, target)

    def target_ids(self, targets: Texts | tf.Tensor, sources: Texts) -> tf.Tensor:
        """Ids of targets as `score` reads them, from START on: int32 `[B, T + 1]`. Texts get END, ids stay the same."""
        targets = tf.convert_to_tensor(targets)
        if targets.dtype == tf.string:
            return target_ids(self.target_tokenizer, targets, self.source_tokenizer, sources, LONGEST_SOURCE)
        longest = tf.maximum(1, tf.reduce_max(row_lengths(targets)))  # the decoder takes at least one step
        return tf.pad(targets[:, :longest], [[0, 0], [1, 0]], constant_values=START)

    @property
    def has_attention(self) -> bool:
        """Whether the decoder can return its attention weights, as `attention` needs."""
        return has_attention(self.decoder)

    def attention(
        self, sources: Texts, targets: Texts | tf.Tensor | None = None, batch_size: int = 256
    ) -> list[Alignment]:
        """The attention of the decoder while it writes each target.

        Args:
            sources: strings.
            targets: as many strings, or ids as in `score`. Default: the greedy translations.
            batch_size: how many pairs are computed together, fewer if they are long.

        Returns:
            A list of `Alignment`.

        Raises:
            OptionError: if the decoder has no attention, there are not as many targets as sources, or `batch_size` is
                below 1.
            MemoryError: if a batch does not fit into memory.
        """
        if not self.has_attention:
            raise OptionError(f"attention: {type(self.decoder).__name__} has no attention weights to return")
        check_number("batch_size", batch_size, least=1)
        sources = tf.reshape(self._as_sources("sources", sources), [-1])
        targets = self.translate(sources, details=True, scores=False).ids[:, 0] if targets is None else targets
        targets = as_targets(targets, sources, self.target_tokenizer.vocabulary_size)

        def run(batch):
            return self._attention(tf.gather(sources, batch), tf.gather(targets, batch))

        lengths = np.maximum(bytes_or_tokens(sources), bytes_or_tokens(targets))
        found, order = in_batches(run, lengths, batch_size)
        alignments = [alignment for batch in found for alignment in batch]
        return [alignments[place] for place in order]

    def _attention(self, sources, targets):
        source, target = self._source_ids(sources), self.target_ids(targets, sources)
        _, weights = self((source, target[:, :-1]), return_attention=True)
        source, target = spelled(self.source_tokenizer, source), spelled(self.target_tokenizer, target[:, 1:])
        return [  # an empty source is one step of nothing; copied, since a view would keep the whole batch in memory
            Alignment(source, target, row[: len(target), : max(1, len(source))].copy())
            for source, target, row in zip(source, target, weights.numpy(), strict=True)
        ]

    def encode(self, texts: Texts) -> Encoded:
        """The encoder's output for texts, to inspect it or to train a probe on it.

        Args:
            texts: strings, at least one, of each the first 1,024 tokens. They form one batch, so split many texts.

        Returns:
            `Encoded`: the memory `[N, S, D]`, S being the tokens of the longest text; the mask `[N, S]` of real tokens;
            the state that the decoder starts from; the source ids `[N, S]`.

        Raises:
            OptionError: if there are no texts, or for anything other than texts.
        """
        texts = tf.reshape(self._as_sources("texts", texts), [-1])
        if not len(texts):
            raise OptionError("texts: expected one or more")
        return self._graph_of(self._encode, _TEXTS)(texts)

    def _encode(self, texts):
        return encode(self.encoder, self._source_ids(texts))

    def export(
        self,
        filepath: Path | str,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: None = None,
        **options: Any,
    ) -> None:
        """Write the model to a new folder, for programs without this library. The options are those of
        `exporting.export`, or with format="onnx" of `onnx_exporting.export_onnx`, with "litert" of
        `litert_exporting.export_litert`, with "web" of `web_exporting.export_web`.

        Raises:
            OptionError: for an unknown format or option, or signatures other than that of texts.
            RunError: if the folder exists and is not empty, or as those functions.
        """
        if input_signature is not None:
            raise OptionError("input_signature: an exported model always takes strings [N], for any N")
        write = choose("format", format, EXPORTERS)
        for name in options:
            choose("option", name, accepted(write) - {"model", "folder"})
        self.check_vocabularies()
        with whole_folder(Path(filepath), RunError) as aside, full_precision():
            try:
                write(self, aside, **options)
            except RunError as error:
                raise RunError(f"{filepath}: {error}") from error
        if verbose:
            print(f"Saved to {filepath}")


EXPORTERS: dict[str, Callable[..., None]] = {"tf_saved_model": export, "onnx": export_onnx}
EXPORTERS |= {"litert": export_litert, "web": export_web}


def _graph(run, *signature):
    """A graph of a function, of tensors with these signatures."""
    # TensorFlow counts traces by the code of a function, and warns of the fifth; a `partial` is counted by itself.
    return tf.function(functools.partial(run), input_signature=signature, autograph=False)
