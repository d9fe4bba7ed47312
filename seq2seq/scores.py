"""Scores of translations, by the measures that papers report.

This module needs the extra `evaluation`: sacrebleu (Post 2018, arxiv.org/abs/1804.08771) and rapidfuzz.
"""

import dataclasses
import functools
import itertools
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pipelines import OptionError, choose
from pipelines.options import extra, one_line

with extra("evaluation"):
    from rapidfuzz.distance import Levenshtein
    from sacrebleu.metrics import BLEU, CHRF, TER
    from sacrebleu.metrics.base import Metric, Score
    from sacrebleu.significance import PairedTest

# `sacrebleu.metrics.base.Metric` is designed for subclasses that override methods with a leading underscore. So
# sacrebleu's bootstrap works for every measure here. `evaluation.compare` calls two of these methods; its tests notice
# a change.


class _Rate(Metric):
    """A percentage: `count` returns two numbers for each text; the sum of the first is divided by the sum of the
    second."""

    def __init__(self, name: str, count: Callable[[str, list[str]], tuple[int, int]]) -> None:
        super().__init__()
        self.name, self.count = name, count

    def _preprocess_segment(self, sent):
        return sent.strip()

    def _extract_reference_info(self, refs):
        return {"references": refs}

    def _compute_segment_statistics(self, hypothesis, ref_kwargs):
        return self.count(hypothesis, ref_kwargs["references"])

    def _aggregate_and_compute(self, stats):
        return self._compute_score_from_stats(np.sum(stats, axis=0))

    def _compute_score_from_stats(self, stats):
        part, whole = stats
        return Score(self.name, 100 * float(part) / max(float(whole), 1.0))


def _closest(split, text, references):
    """The reference that takes the fewest edits for its length: their number, and the tokens of text and reference."""
    left = split(text)
    counted = [(Levenshtein.distance(left, right), right) for right in map(split, references)]
    edits, right = min(counted, key=lambda each: (each[0] / max(len(each[1]), 1), each[0], len(each[1])))
    return edits, left, right


def _edits(split, text, references):
    """The number of tokens to insert, delete or replace to turn a text into its closest reference, and the number of
    tokens of that reference."""
    edits, _, right = _closest(split, text, references)
    return edits, len(right)


def edited_tokens(split: Callable[[str], Sequence[str]], text: str, references: list[str]) -> list[tuple[str, str]]:
    """The edits that `_edits` counts: (token of the text, token of the reference) of each, "" for none."""
    _, left, right = _closest(split, text, references)
    return [
        ("" if edit.tag == "insert" else left[edit.src_pos], "" if edit.tag == "delete" else right[edit.dest_pos])
        for edit in Levenshtein.editops(left, right)
    ]


def metrics(bleu_tokenizer: str = "13a") -> dict[str, Metric]:
    """The measures of a corpus of texts, by name; higher is better, except for the error rates.

    Raises:
        OptionError: for an unknown tokenizer, or one that needs a package that is not installed.
    """
    choose("bleu_tokenizer", bleu_tokenizer, list(BLEU.TOKENIZERS))
    try:
        bleu = BLEU(tokenize=bleu_tokenizer, force=True)  # without a warning about tokenized text
    except (ImportError, RuntimeError) as error:
        raise OptionError(f"bleu_tokenizer={bleu_tokenizer!r}: {one_line(error)}") from None
    return {
        "BLEU": bleu,
        "chrF": CHRF(),
        "TER": TER(),
        "CER": _Rate("CER", functools.partial(_edits, list)),  # characters
        "WER": _Rate("WER", functools.partial(_edits, str.split)),  # words, separated by spaces
        "exact match": _Rate("exact match", lambda text, references: (text in references, 1)),
    }


@dataclasses.dataclass(frozen=True)
class Measured:
    """A measure of a corpus of texts."""

    score: float
    # Half of the 95% confidence interval, by bootstrap (Koehn 2004); nan if all texts score alike, as one text does
    margin: float
    signature: str  # sacrebleu's, for others to measure the same


def corpus_scores(
    translations: list[str], references: list[list[str]], bleu_tokenizer: str = "13a"
) -> dict[str, float]:
    """Score N texts against the references of each: {measure: score}."""
    translations, streams = nfc(translations), reference_streams(references)
    measures = metrics(bleu_tokenizer)
    return {name: float(metric.corpus_score(translations, streams).score) for name, metric in measures.items()}


def scores_of_part(
    chosen: Sequence[int] | np.ndarray,
    translations: list[str],
    references: list[list[str]],
    bleu_tokenizer: str = "13a",
) -> dict:
    """`corpus_scores` of the texts with these numbers, and their count: {"texts": count, measure: score, ...}."""
    some, of_them = [translations[number] for number in chosen], [references[number] for number in chosen]
    return {"texts": len(some), **corpus_scores(some, of_them, bleu_tokenizer)}


def scores_by_length(
    sources: list[str],
    translations: list[str],
    references: list[list[str]],
    parts: int = 5,
    bleu_tokenizer: str = "13a",
) -> list[dict]:
    """Score short and long sources separately, in parts of about equal size.

    There are up to `parts` of them, and at most one for every 20 sources, as scores of fewer are rough. Sources of
    equal length are in the same part, so a part may have fewer than 20.

    Returns:
        [{"from": characters, "to": characters, "texts": number, measure: score, ...}, ...], the shortest first. Of
        several source columns, the characters of the first are counted.
    """
    lengths = np.array([len(source.partition("\t")[0]) for source in nfc(sources)])
    parts = max(1, min(parts, len(sources) // 20))
    cuts = sorted(set(np.quantile(lengths, np.linspace(0, 1, parts + 1)[1:], method="inverted_cdf").tolist()))
    part_of = np.searchsorted(cuts, lengths)
    found = []
    for part in range(len(cuts)):
        (chosen,) = np.nonzero(part_of == part)
        span = {"from": int(lengths[chosen].min()), "to": int(lengths[chosen].max())}
        found.append({**span, **scores_of_part(chosen, translations, references, bleu_tokenizer)})
    return found


def measure(
    translations: list[str], references: list[list[str]], bleu_tokenizer: str = "13a", resamples: int = 1000
) -> dict[str, Measured]:
    """`corpus_scores` with confidence intervals and signatures: {measure: `Measured`}."""
    measures = metrics(bleu_tokenizer)
    named: list[tuple[str, Sequence[str]]] = [("translations", nfc(translations))]
    signatures, results = PairedTest(named, measures, reference_streams(references), "bs", resamples)()
    found: dict[str, Measured] = {}
    for name, key in zip(measures, signatures, strict=True):  # sacrebleu names them otherwise, in the same order
        result: Any = results[key][0]
        margin = float(result.ci) or math.nan  # 0: all samples are alike, which says nothing about other texts
        found[name] = Measured(float(result.score), margin, str(signatures[key]))
    return found


def reference_streams(references: Iterable[Iterable[str]]) -> list[tuple]:
    """The references as sacrebleu takes them: all first ones, all second ones, ...; None if a text has fewer."""
    return list(itertools.zip_longest(*map(nfc, references)))


def nfc(texts: Iterable[str]) -> list[str]:
    """Texts in the Unicode form NFC, in which a letter and its accent are the same in all texts."""
    return [unicodedata.normalize("NFC", text) for text in texts]
