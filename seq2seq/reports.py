"""Evaluations and comparisons as text, for the command line and for `print`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import category, east_asian_width

from pipelines.lines import as_line

_FEW_WORDS = "BLEU counts n-grams of up to four words. Most references have fewer words."
_EXPLAINED = {
    "BLEU": "word n-grams that are in a reference",
    "chrF": "character n-grams that are in a reference",
    "TER": "words to edit or move, in percent; lower is better",
    "CER": "characters to edit, in percent; lower is better",
    "WER": "words (or phones, or other tokens between spaces) to edit, in percent; lower is better",
    "exact match": "percent identical to a reference",
}
_STOPPED = {"end": "complete", "limit": "cut off at the limit", "repetition": "stopped for repetition"}


def evaluation_text(
    found: Any, by_column: Mapping[str, list] | None = None, confusions: int = 5, worst: int = 5
) -> str:
    """The figures of an `Evaluation` as tables, which also show where its errors are.

    Args:
        found: the `Evaluation`.
        by_column: results of `Evaluation.by_column`, by the titles of their tables.
        confusions, worst: how many of the tokens that are most often wrong, and of the worst translations, to show.
    """
    return "\n".join(_evaluation_lines(found, by_column or {}, confusions, worst))


def _evaluation_lines(found, by_column, confusions, worst):
    few_words, names = _measures(found)
    yield from (_counts(found), "")
    for name in names:
        measured = found.scores[name]
        margin = "      " if math.isnan(measured.margin) else f"\u00b1 {measured.margin:.1f}"
        yield f"{name:<12}{measured.score:>8.1f}  {margin}   {_EXPLAINED[name]}"
    if not math.isnan(found.loss):  # nan: of translations that do not come from a model
        tokens = "per token of all targets, repeated ones too"
        yield f"{'perplexity':<12}{found.perplexity:>8.2f}          {tokens} (loss {found.loss:.3f})"
    if few_words:
        yield from ("", _FEW_WORDS)
    if any(found.stopped):
        shares = (f"{found.stopped.count(why) / len(found.stopped):.1%} {said}" for why, said in _STOPPED.items())
        yield from ("", f"Translations: {', '.join(shares)}")
    spans = [{"value": "-".join(map(str, sorted({part["from"], part["to"]}))), **part} for part in found.by_length()]
    for title, parts in {"characters": spans, **by_column}.items():
        yield from _parts(title, parts, names)
    if wrong := found.confusions(confusions):
        yield from ("", f"The {found.unit} that are most often wrong:", "")
        yield f"{'translation':<20} {'reference':<20} {'times':>7} {'sources':>8}"
        for pair in wrong:
            tokens = " ".join(_in_column(pair[side], 20) for side in ("translation", "reference"))
            yield f"{tokens} {pair['times']:>7,} {pair['texts']:>8,}"
    if texts := found.worst(worst):
        yield from ("", "The worst:")
    for text in texts:
        line = f"    {text['source']}  ->  {text['translation']}   ({' | '.join(text['references'])})"
        yield as_line(line.encode()).decode()
    yield ""
    for name in ("BLEU", "chrF", "TER"):
        yield f"{name} {found.scores[name].signature}"


def _parts(title: str, parts: list[dict], names: Sequence[str]) -> Iterator[str]:
    """The lines of a table of the scores of parts of the sources, each with its "value"."""
    width = max(11, *map(_places, [title, *(part["value"] for part in parts)])) + 1
    yield from ("", f"{_in_column(title, width)}{'sources':>8}" + "".join(f"{name.split()[0]:>8}" for name in names))
    for part in parts:
        figures = "".join(f"{part[name]:>8.1f}" for name in names)
        yield f"{_in_column(part['value'], width)}{part['texts']:>8,}{figures}"


def _in_column(text, width):
    """Text in a column of a table; what could not be seen is named."""
    shown = "".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in text) if text.strip(" ") else "␣" * len(text)
    shown = shown or "(none)"
    return shown + " " * (width - _places(shown))


def _places(text):
    """How many places of a terminal a text takes: marks none, wide characters two."""
    return sum(0 if category(c) in ("Mn", "Me") else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def comparison_text(runs: Sequence[Path | str], evaluation: Any, found: Mapping[str, list]) -> str:
    """The scores of several runs on one corpus as a table, and how significant each difference is.

    Args:
        runs: their folders.
        evaluation: the `Evaluation` of the first.
        found: the result of `compare`.
    """
    return "\n".join(_comparison_lines(runs, evaluation, found))


def _comparison_lines(runs, evaluation, found):
    few_words, names = _measures(evaluation)
    yield from (_counts(evaluation), "")
    for number, run in enumerate(runs, start=1):
        yield f"run {number}  {run}"
    for start in range(1, len(runs), 7):  # with the first one, eight columns fit into 80 characters
        columns = [0, *range(start, min(start + 7, len(runs)))]
        yield from ("", f"{'score':<12}" + "".join(f"{f'run {n + 1}':>8}" for n in columns))
        for name in names:
            yield f"{name:<12}" + "".join(f"{found[name][n].score:>8.1f}" for n in columns)
        yield from ("", f"{'p, against run 1':<20}" + "".join(f"{f'run {n + 1}':>8}" for n in columns[1:]))
        for name in names:
            yield f"{name:<20}" + "".join(f"{_p(found[name][n].p):>8}" for n in columns[1:])
    if few_words:
        yield from ("", _FEW_WORDS)


def _p(p):
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _counts(found):
    return f"{len(found.sources):,} sources, {sum(map(len, found.references)):,} references"


def _measures(found):
    """Return whether most references have too few words for BLEU, and the names of the measures, best suited first."""
    texts = [text for those in found.references for text in those]
    short = sum(len(text.split()) < 4 for text in texts) > len(texts) / 2
    few_words = short and found.bleu_tokenizer in ("13a", "intl", "none")
    return few_words, ["exact match", "CER", "WER", "chrF", "TER", "BLEU"] if few_words else list(found.scores)
