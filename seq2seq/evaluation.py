"""How well a model translates a corpus: `evaluate` it, `compare` it with others, and see where its errors are.

This module needs the extra `evaluation`: sacrebleu (Post 2018, arxiv.org/abs/1804.08771) and rapidfuzz.
"""

import dataclasses
import functools
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipelines import (
    CorpusError,
    OptionError,
    batch_pairs,
    check_number,
    choose,
    corpus_errors,
    group_by_source,
    read_pairs,
)
from pipelines.formats import Corpora
from pipelines.lines import as_line
from seq2seq.checkpoints import whole_file
from seq2seq.decoding import LONGEST_SOURCE
from seq2seq.metrics import MeanTokenLoss, of_tokens
from seq2seq.model import Seq2Seq, teacher_forcing
from seq2seq.reports import evaluation_text
from seq2seq.scores import (
    Measured,
    edited_tokens,
    measure,
    metrics,
    nfc,
    reference_streams,
    scores_by_length,
    scores_of_part,
)
from seq2seq.strategies import Strategy
from seq2seq.texts import as_python, as_strings
from seq2seq.translation import MANY_TEXTS


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`: N translations and their scores. `of_texts` makes one of other translations.

    Attributes:
        sources: N texts.
        references: of each source, one text or more.
        translations: N texts.
        stopped: why each translation ended: "end", "limit", "repetition"; "" if unknown.
        scores: by name, such as "BLEU".
        loss: crossentropy of the tokens of all targets, repeated ones too, END included, in nats per token.
        accuracy: the share of tokens predicted correctly, given the correct preceding ones.
        seconds: for translating, without loading and tracing; on a GPU, compiling for more sizes is included.
        bleu_tokenizer: how BLEU split words.
        source_columns: how many columns, between tabs, a source has.
    """

    sources: list[str] = dataclasses.field(repr=False)
    references: list[list[str]] = dataclasses.field(repr=False)
    translations: list[str] = dataclasses.field(repr=False)
    stopped: list[str] = dataclasses.field(repr=False)
    scores: dict[str, Measured]
    loss: float
    accuracy: float
    seconds: float
    bleu_tokenizer: str
    source_columns: int = 1

    @classmethod
    def of_texts(
        cls,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        translations: Sequence[str],
        bleu_tokenizer: str = "13a",
        resamples: int = 1000,
    ) -> "Evaluation":
        """Measure translations that are there already: of another system, or chosen among several by a reranker.

        ```python
        found = evaluate(model, test)
        other = Evaluation.of_texts(found.sources, found.references, texts)
        compare(found, other)
        ```

        Args:
            sources: N texts.
            references: of each, one text or more.
            translations: of each, one text; or a tensor, as `translate` returns it.
            bleu_tokenizer, resamples: as in `evaluate`.

        Returns:
            An `Evaluation`, whose loss, accuracy and seconds are NaN.

        Raises:
            OptionError: for lists of different lengths, empty lists, and as `evaluate`.
        """
        lengths = len(sources), len(references), len(translations)
        if len(set(lengths)) > 1 or 0 in lengths:
            counted = "sources, references and translations: {}, {} and {}".format(*lengths)
            raise OptionError(f"{counted}; expected as many of each, at least one")
        for those in references:
            if isinstance(those, str | bytes) or not len(those):
                raise OptionError(f"references: {those!r}; expected a list of one text or more for each source")
        check_number("resamples", resamples, least=1)
        targets, texts = (
            [list(dict.fromkeys(nfc(those))) for those in references],
            nfc(as_python(as_strings("translations", translations))),
        )
        return cls(
            list(sources),
            targets,
            texts,
            stopped=[""] * len(texts),
            scores=measure(texts, targets, bleu_tokenizer, resamples),
            loss=math.nan,
            accuracy=math.nan,
            seconds=math.nan,
            bleu_tokenizer=bleu_tokenizer,
            source_columns=max(source.count("\t") for source in sources) + 1,
        )

    def __str__(self):
        return evaluation_text(self)

    @property
    def perplexity(self) -> float:
        """The exponential of the loss: the effective number of tokens that the model chooses between."""
        return math.inf if self.loss > 700 else math.exp(self.loss)

    def as_dict(self, worst: int = 5, confusions: int = 5) -> dict:
        """A summary for JSON: everything except the texts, with scores by length, confusions and the worst texts."""
        names = ("loss", "perplexity", "accuracy", "seconds")
        return {
            "sources": len(self.sources),
            "references": sum(map(len, self.references)),
            **{name: getattr(self, name) for name in names},
            "scores": {name: dataclasses.asdict(measured) for name, measured in self.scores.items()},
            "stopped": {reason: self.stopped.count(reason) for reason in sorted(set(self.stopped) - {""})},
            "by_length": self.by_length(),
            "confusions": self.confusions(confusions),
            "worst": self.worst(worst),
        }

    def by_length(self, parts: int = 5) -> list[dict]:
        """The scores of short and of long sources, as `scores_by_length` returns them."""
        return scores_by_length(self.sources, self.translations, self.references, parts, self.bleu_tokenizer)

    def by_column(self, column: int, separator: str | None = None) -> list[dict]:
        """The scores of the texts that have the same value in a source column, such as the same features.

        Args:
            column: which column, counted from 1.
            separator: what separates several values in the column; the text then counts for each of them.

        Returns:
            [{"value": value, "texts": number, measure: score, ...}, ...], the most frequent value first; "" if a
            column is empty.

        Raises:
            OptionError: if the sources have no such column.
        """
        check_number("column", column, least=1, most=self.source_columns)
        texts_of: dict[str, list[int]] = {}
        for number, source in enumerate(nfc(self.sources)):
            text = [*source.split("\t"), *[""] * column][column - 1]
            values = set(filter(None, text.split(separator))) if separator else {text}
            for value in values or {""}:
                texts_of.setdefault(value, []).append(number)
        order = sorted(texts_of, key=lambda value: (-len(texts_of[value]), value))
        texts = self.translations, self.references, self.bleu_tokenizer
        return [{"value": value, **scores_of_part(texts_of[value], *texts)} for value in order]

    def confusions(self, count: int = 10, unit: str | None = None) -> list[dict]:
        """The tokens that are most often wrong: the substitutions, insertions and deletions in a minimal edit from a
        translation to its closest reference.

        Args:
            count: how many to return.
            unit: "words", between spaces, which may be phones; or "characters". Default: `self.unit`.

        Returns:
            [{"translation": token, "reference": token, "times": number, "texts": number of texts with it}, ...], those
            in most texts first. The translation is "" if a token is missing there, and the reference is "" if one is
            superfluous.
        """
        splits: dict[str, Any] = {"words": str.split, "characters": list}
        split = choose("unit", unit or self.unit, splits)
        times: Counter = Counter()
        texts: Counter = Counter()
        for translation, references in zip(self.translations, self.references, strict=True):
            edits = edited_tokens(split, translation.strip(), [text.strip() for text in references])
            times.update(edits)
            texts.update(set(edits))
        order = sorted(times, key=lambda pair: (-texts[pair], -times[pair], pair))
        names = ("translation", "reference", "times", "texts")
        return [dict(zip(names, (*pair, times[pair], texts[pair]), strict=True)) for pair in order[:count]]

    @property
    def unit(self) -> str:
        """What most references consist of: "words", if they have a space, else "characters"."""
        spaced = sum(" " in text.strip() for those in self.references for text in those)
        return "words" if 2 * spaced > sum(map(len, self.references)) else "characters"

    def by_text(self, measures: Sequence[str] = ("chrF", "TER", "CER", "WER", "exact match")) -> list[dict]:
        """The scores of each text, in their order: [{"source", "translation", "references", "stopped", measure: score,
        ...}, ...]. BLEU is left out by default, since it is meant for many texts."""
        known, names = metrics(self.bleu_tokenizer), ("source", "translation", "references", "stopped")
        texts = zip(self.sources, self.translations, self.references, self.stopped, strict=True)
        found: list[dict[str, Any]] = [dict(zip(names, text, strict=True)) for text in texts]
        for name in measures:
            metric = choose("measures", name, known)
            for text in found:
                text[name] = float(metric.sentence_score(text["translation"], text["references"]).score)
        return found

    def worst(self, count: int = 5) -> list[dict]:
        """The texts with the most errors for their length, with their "CER", as in `by_text`; none without errors."""
        wrong = [text for text in self.by_text(["CER"]) if text["CER"]]
        return sorted(wrong, key=lambda text: -text["CER"])[:count]

    def write(self, folder: Path | str) -> None:
        """Write sources.txt, translations.txt, references.0.txt and so on, one text per line, for other tools; and
        texts.jsonl, with a line of JSON for each text, as `by_text` returns it.

        If a text has fewer references than others, its first one is repeated, as `sacrebleu` needs the same number for
        each. This changes no measure but TER, which divides by the mean length of the references. A tab or a line
        break in a text is written as a space, except the tabs between source columns. Files of an earlier evaluation
        in the folder are replaced.

        Raises:
            OptionError: if the folder holds files that no evaluation has written.
        """
        folder = Path(folder)
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = {  # first the one by which `check_folder` recognizes the folder
            f"references.{n}.txt": [
                those[0] if text is None else text for text, those in zip(column, self.references, strict=True)
            ]
            for n, column in enumerate(reference_streams(self.references))
        }
        files |= {"sources.txt": self.sources, "translations.txt": self.translations}
        for name, lines in files.items():
            columns = self.source_columns if name == "sources.txt" else 1
            with whole_file(folder / name) as path:
                path.write_bytes(b"".join(as_line(line.encode(), columns) + b"\n" for line in lines))
        with whole_file(folder / "texts.jsonl") as path:
            lines = [json.dumps(text, ensure_ascii=False) + "\n" for text in self.by_text()]
            path.write_text("".join(lines), encoding="utf-8")
        for path in folder.glob("references.*.txt"):
            if path.name not in files:  # of a corpus with more references
                path.unlink()


def check_folder(folder: Path) -> None:
    """Check that `Evaluation.write` may write to a folder: it is new, empty, or holds only files of an earlier
    evaluation, perhaps incomplete.

    Raises:
        OptionError: if it is a file, or holds anything else.
    """
    if folder.is_file():
        raise OptionError(f"{folder}: is a file; choose a folder")
    inside = {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else set()
    written = r"(aside-)?((sources|translations|references\.\d+)\.txt|texts\.jsonl)"
    other = {name for name in inside if not re.fullmatch(written, name)}
    if inside.isdisjoint({"references.0.txt", "aside-references.0.txt"}):
        other = inside
    if other:
        raise OptionError(f"{folder}: holds {min(other)}, which no evaluation has written; choose another folder")


def evaluate(
    model: Seq2Seq,
    pairs: Corpora,
    strategy: str | Strategy = "greedy",
    *,
    bleu_tokenizer: str = "13a",
    resamples: int = 1000,
    progress: Callable[[int], None] | None = None,
    min_length: int = 0,
    max_length: int | None = None,
    seed: int | tuple[int, int] = 0,
    batch_size: int = 256,
) -> Evaluation:
    """Translate the sources of a corpus and measure the quality of the translations.

    Args:
        model: a `Seq2Seq`.
        pairs: a `tf.data.Dataset` of (source, target) scalar strings, as `read_pairs` returns it, or an argument of
            `read_pairs`, such as a list of pairs. All targets of one source are its references; the source, in any
            Unicode form, is translated once.
        strategy, min_length, max_length, seed, batch_size: as in `Seq2Seq.translate`.
        bleu_tokenizer: how BLEU splits texts into words: "13a", or "zh", "char", "intl", "none".
        resamples: number of bootstrap resamples.
        progress: a function to call now and then with the number of sources translated.

    Returns:
        An `Evaluation`. Texts are scored with case, accents and spaces, except spaces at the ends, in the Unicode form
        NFC, also if the model cannot write all of them, as with `lowercase`. Only TER ignores case, like Tercom.

    Raises:
        CorpusError: if there are no pairs.
        OptionError: for a BLEU tokenizer that is unknown or not installed, or no resamples.
    """
    if not issubclass(kind := type(strategy), str | Strategy):
        raise OptionError(f"strategy: expected a name or a Strategy, not a {kind.__name__}; pairs are a list of tuples")
    metrics(bleu_tokenizer)  # refuses an unknown tokenizer at once
    check_number("resamples", resamples, least=1)
    if not isinstance(pairs, tf.data.Dataset):
        pairs = read_pairs(pairs, source_columns=model.source_tokenizer.column_names)
    with corpus_errors():
        targets = group_by_source(pairs)
    if not targets:
        raise CorpusError("no pairs to evaluate on")
    sources, references = list(targets), list(targets.values())

    tokenizers = model.source_tokenizer, model.target_tokenizer
    # Not `pairs` again: standard input is read only once.
    pairs = [(source, target) for source, those in targets.items() for target in those]
    again = tf.data.Dataset.from_tensor_slices(tuple(map(list, zip(*pairs, strict=True))))
    tokens = max(1024, (1 << 24) // max(1024, tokenizers[1].vocabulary_size))  # logits of 64 MB
    batches = batch_pairs(
        again, *tokenizers, batch_tokens=tokens, encoding="ids", longest_source=LONGEST_SOURCE, shuffle=False, seed=0
    )
    loss, accuracy = _token_figures(model, batches)

    how = {"min_length": min_length, "max_length": max_length, "batch_size": batch_size}
    translations, stopped, seconds = _translate(model, sources, strategy, progress, seed, how)
    found = Evaluation.of_texts(sources, references, translations, bleu_tokenizer, resamples)
    columns = len(model.source_tokenizer.column_names)
    return dataclasses.replace(
        found, stopped=stopped, loss=loss, accuracy=accuracy, seconds=seconds, source_columns=columns
    )


def _translate(model, sources, strategy, progress, seed, how):
    """The first translation of each source, why it stopped, and the seconds for all of them, without tracing."""
    shortest = sorted(sources, key=len)[:MANY_TEXTS]  # enough to use all cores, as in the timed calls
    how = {**how, "details": True, "scores": False}
    model.translate(shortest, strategy, seed=seed, **how)  # traces it
    seed, before = seed if isinstance(seed, tuple) else (seed, 0)
    translations, stopped, seconds = [], [], 0.0
    for start in range(0, len(sources), 2048):
        started = time.perf_counter()
        place = seed, before + start  # a sample depends on the place of its source
        found = model.translate(sources[start : start + 2048], strategy, seed=place, **how)
        seconds += time.perf_counter() - started
        translations += [row[0].decode() for row in found.texts.numpy()]
        stopped += [row[0].decode() for row in found.stopped.numpy()]
        if progress:
            progress(len(translations))
    return translations, stopped, seconds


def _token_figures(model, batches):
    """Crossentropy and accuracy of all tokens, with metrics that do not depend on how the model is compiled."""
    metrics = MeanTokenLoss(), of_tokens("accuracy")

    @functools.partial(tf.function, input_signature=batches.element_spec, autograph=False)
    def measure(source, target):
        inputs, labels, weights = teacher_forcing(source, target)
        logits = model(inputs)
        for metric in metrics:
            metric.update_state(labels, logits, weights)

    graph = measure.get_concrete_function()  # of each model; calling `measure` would make TensorFlow warn of the fifth
    for batch in batches:
        graph(*batch)
    return [float(metric.result()) for metric in metrics]


class Tested(NamedTuple):
    """The score of one of several evaluations that are compared."""

    score: float
    p: float  # the probability of such a difference from the first, or a larger one, by chance; 1 for the first


def compare(first: Evaluation, *others: Evaluation, trials: int = 1000) -> dict[str, list[Tested]]:
    """Test whether models differ from the first, by approximate randomization (Riezler and Maxwell 2005,
    aclanthology.org/W05-0908).

    If two models are equally good, it is chance which of the two translations of a text comes from which model. Each
    trial swaps the translations of each text with probability 1/2. p is the share of trials in which the scores then
    differ at least as much as without swaps, which count as one trial more. The test is two-sided. Each model is
    compared only with the first; p is not corrected for the number of models.

    Args:
        first, others: results of `evaluate` for each model on the same corpus.
        trials: number of random swaps; p is at least 1 / (trials + 1).

    Returns:
        {measure: [a `Tested` for each evaluation, in their order]}.

    Raises:
        OptionError: if their texts, references or BLEU tokenizers differ, there is only one, or there are no trials.
    """
    check_number("trials", trials, least=1)
    if not others:
        raise OptionError("compare: expected at least two evaluations")
    for number, other in enumerate(others, start=2):
        if (first.sources, first.references) != (other.sources, other.references):
            raise OptionError(f"compare: expected evaluations of the same texts; number {number} has other texts")
        if first.bleu_tokenizer != other.bleu_tokenizer:
            both = f"{first.bleu_tokenizer!r} and, for number {number}, {other.bleu_tokenizer!r}"
            raise OptionError(f"compare: expected evaluations with the same BLEU tokenizer, not {both}")
    systems, references = [nfc(each.translations) for each in (first, *others)], reference_streams(first.references)
    found = {}
    for name, metric in metrics(first.bleu_tokenizer).items():
        # `[N, M]` each: of each text, the M counts that a score is computed from when they are added up.
        counts = [np.array(metric._extract_corpus_statistics(texts, references), np.float64) for texts in systems]
        scores = [float(metric._compute_score_from_stats(each.sum(axis=0)).score) for each in counts]
        p = [1.0, *(_by_chance(metric, counts[0], other, trials) for other in counts[1:])]
        found[name] = list(map(Tested, scores, p))
    return found


def _by_chance(metric, one, other, trials):
    """The p of `compare`, from the counts of two systems. That of sacrebleu's own tests is too small: they leave out
    differences equal to the observed one, and if few texts differ, many are equal."""

    random, surplus = np.random.default_rng(0), one - other
    total, other_total = one.sum(axis=0), other.sum(axis=0)

    def difference(swapped):
        sums = total - swapped, other_total + swapped
        first, second = (metric._compute_score_from_stats(each).score for each in sums)
        return abs(first - second)

    least = difference(np.zeros(one.shape[1])) - 1e-9  # an equal difference may be rounded differently
    as_large = sum(difference(surplus[random.random(len(one)) < 0.5].sum(axis=0)) >= least for _ in range(trials))
    return float(as_large + 1) / (trials + 1)
