"""Tables of the results of runs: means over seeds, and whether the differences are significant."""

import csv
import dataclasses
import io
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines import CorpusError, OptionError, choose, corpus_errors, read_pairs
from pipelines.options import one_line
from seq2seq.config import MONITORS, Config, own_classes
from seq2seq.progress import best_epoch
from seq2seq.records import Record, RunError, find_run, finished, read_history, read_record
from seq2seq.runs import load_run, trained_on
from seq2seq.strategies import Greedy, Strategy

MEASURES = ("loss", "accuracy", "chrf", "exact_match")  # of a table, unless others are asked for
FORMATS = ("text", "md", "csv", "latex")

TOKEN_FIGURES = ("loss", "accuracy", "perplexity")  # of each token, given the correct preceding ones
# On which the target's tokens depend, and which of them are known: unknown ones are easy to predict.
TOKEN_OPTIONS = (
    *("target_tokenizer", "normal_form", "lowercase", "min_frequency", "max_vocabulary", "shared_vocabulary", "copy"),
    *("limit", "columns", "reverse", "max_length", "max_ratio", "drop_duplicates", "split", "validation_fraction"),
    *("weights", "warm_start"),
)


@dataclasses.dataclass
class Row:
    """N runs that differ in nothing but their seed."""

    setting: dict[str, Any]  # the options that differ between rows
    runs: list[Path]
    seeds: list[int]
    label: str = ""  # the setting as text, or the folder, if there is none or it is long
    figures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # of each measure, [N]
    p: dict[str, float] = dataclasses.field(default_factory=dict)  # of each measure that was tested
    parameters: int | None = None  # of the model

    def mean(self, measure: str) -> float:
        """The mean over seeds."""
        return _mean(self.figures[measure])

    def deviation(self, measure: str) -> float | None:
        """The standard deviation over seeds, n - 1; None of one seed."""
        with np.errstate(invalid="ignore"):  # of infinite numbers
            return math.sqrt(_variance(self.figures[measure])) if len(self.runs) > 1 else None


@dataclasses.dataclass
class Table:
    """The results of runs, a row for each setting."""

    rows: list[Row]
    measures: list[str]
    incomparable: list[str]  # measures that must not be compared between the rows
    note: str  # where the figures and p come from
    prefix: str  # of the measures' names

    def best(self, measure: str) -> float | None:
        """The best mean of a measure; None if there is nothing to compare."""
        means = {mean for row in self.rows if not math.isnan(mean := row.mean(measure))}
        if measure in self.incomparable or len(means) < 2:
            return None
        return max(means) if MONITORS[f"val_{measure}"] == "max" else min(means)

    def __str__(self):
        return self.text()

    def text(self, format: str = "text") -> str:
        """The table as "text", "md" (Markdown), "latex" (for booktabs), or "csv" (all digits, a number in a column)."""
        if choose("format", format, FORMATS) == "csv":
            return self._csv()
        head = ["setting", "seeds", *(self.prefix + measure for measure in self.measures), "parameters"]
        lines, several = [], len(self.rows) > 1
        for row in self.rows:
            cells = (self._cell(row, measure, format) for measure in self.measures)
            lines.append([row.label, str(len(row.seeds)), *cells, f"{row.parameters:,}" if row.parameters else ""])
        if format == "md":
            lines = [[cell.replace("|", r"\|") for cell in line] for line in [head, ["---"] * len(head), *lines]]
            return "\n".join(
                [*(f"| {' | '.join(line)} |" for line in lines), "", self.note + " Bold: best mean." * several]
            )
        if format == "latex":
            head, lines = [*map(_latex, head)], [[_latex(label), *rest] for label, *rest in lines]
            parts = [" & ".join(line) + r" \\" for line in [head, *lines]]
            parts = [r"\toprule", parts[0], r"\midrule", *parts[1:], r"\bottomrule", r"\end{tabular}"]
            begin = rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
            return "\n".join([f"% {self.note}" + " Bold: best mean." * several, begin, *parts])
        first, *widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        fitted = ["  ".join([label.ljust(first), *map(str.rjust, rest, widths)]) for label, *rest in [head, *lines]]
        return "\n".join([*fitted, "", textwrap.fill(self.note + " *: best mean." * several, 100)])

    def _cell(self, row, measure, format):
        digits = 3 if measure in TOKEN_FIGURES else 1
        mean, deviation, p = row.mean(measure), row.deviation(measure), row.p.get(measure)
        text = f"{mean:.{digits}f}"
        if mean == self.best(measure):
            text = {"text": f"*{text}", "md": f"**{text}**", "latex": rf"\textbf{{{text}}}"}[format]
        if deviation is not None:
            text += f" ± {deviation:.{digits}f}"
        if p is not None:
            text += " (p < 0.001)" if p < 0.001 else f" (p = {p:.3f})"
        return text.replace("±", r"$\pm$").replace("<", "$<$") if format == "latex" else text

    def _csv(self):
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        heads = [f"{self.prefix}{measure}{part}" for measure in self.measures for part in ("", "_sd", "_p")]
        writer.writerow([*(self.rows[0].setting or ["setting"]), "seeds", *heads, "parameters"])
        for row in self.rows:
            setting = list(map(value_text, row.setting.values())) or [row.label]
            numbers = [number for m in self.measures for number in (row.mean(m), row.deviation(m), row.p.get(m))]
            writer.writerow([*setting, len(row.seeds), *numbers, row.parameters])
        return file.getvalue().rstrip("\n")


def _latex(text):
    plain = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(plain.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def value_text(value: Any) -> str:
    """The value of an option as `--grid` takes it."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(value_text, value))
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value, default=str)


def setting_text(setting: dict[str, Any]) -> str:
    """Options and their values: "units=128,layers=2"."""
    return ",".join(f"{name}={value_text(value)}" for name, value in setting.items())


def table(
    folders: Path | str | Sequence[Path | str],
    test: Path | str | Sequence[Path | str] | None = None,
    measures: Sequence[str] = (),
    baseline: str | int = 1,
    strategy: str | Strategy = "greedy",
    *,
    say: Callable[[str], None] | None = None,
) -> Table:
    """Compare runs: means and standard deviations over seeds, and whether rows differ from a baseline.

    Runs that differ only in their seed form a row. With two seeds or more in both rows, p is that of Welch's t-test;
    with one in each and a test corpus, that of `evaluation.compare`; else there is none.

    Args:
        folders: runs, sweeps, or folders of these.
        test: a corpus to translate and measure. Default: the held-out figures of each run's kept epoch.
        measures: names of figures, as in `history.csv`, with "val_" or without. Default: loss, accuracy, chrf and
            exact_match, those that all runs have.
        baseline: the row to compare the others with, by its number from 1, its label, or settings that only it has.
        strategy: how to translate the test corpus, as in `Seq2Seq.translate`.
        say: a function to call with warnings about the table, as text.

    Raises:
        RunError: if there is no finished run, one lacks a measure, or their held-out sets differ.
        OptionError: for an unknown measure or baseline.
        CorpusError: if the test corpus cannot be read.
    """
    say = say or (lambda text: None)
    wanted = [name.removeprefix("val_") for name in measures]
    for name in wanted:
        choose("measure", name, [monitor.removeprefix("val_") for monitor in MONITORS])
    records, grid = _load_records([folders] if isinstance(folders, (str, Path)) else folders, say)
    rows = _group_by_setting(records, grid, say)
    first = _baseline_row(rows, baseline)
    if test is None:
        configs = [records[row.runs[0]].config for row in rows]
        if len({held_out_by(records[row.runs[0]]) for row in rows}) > 1:
            names = ["validation", *options_of_held_out(configs[0])]
            names = [name for name in names if len({getattr(config, name) for config in configs}) > 1]
            if len({_held_out_digests(records[row.runs[0]]) for row in rows}) > 1:
                names = ["files", *names]
            raise RunError(f"these runs have different held-out sets ({', '.join(names)}); name a test corpus (--test)")
        hashed = [config for config in configs if config.split == "hash" and not config.validation]
        if len({config.source_tokenizer for config in hashed}) > 1:
            for name in sorted({name for of in hashed for name in own_classes(of) if name in of.source_tokenizer}):
                say(f"The held-out sets differ if {name} normalizes texts in its own way; --test CORPUS avoids that")
        found = {run: held_out_figures(run) for row in rows for run in row.runs}
        note, evaluations = "Held-out pairs, the kept epoch of each run.", {}
    else:
        found, evaluations, note = _measure(rows, records, test, strategy, say)
    for run, figures in found.items():
        if lacking := [name for name in wanted if name not in figures]:
            raise RunError(f"{run}: {lacking[0]} was not measured, only {', '.join(figures) or 'nothing'}")
    wanted = wanted or [name for name in MEASURES if all(name in figures for figures in found.values())]
    if not wanted:
        raise RunError("there is no held-out metric that all runs have; name a test corpus (--test)")
    for row in rows:
        row.figures = {name: np.array([found[run][name] for run in row.runs]) for name in wanted}
        row.parameters = records[row.runs[0]].content.get("training", {}).get("parameters")
    incomparable = _incomparable(rows, records, wanted, test is None, say)
    tested = _test(rows, first, [name for name in wanted if name not in incomparable], evaluations)
    note = f"Mean ± standard deviation (n - 1) over seeds. {note} {tested}".rstrip()
    return Table(rows, wanted, incomparable, note, "val_" if test is None else "")


def _baseline_row(rows, baseline):
    labels, baseline = [row.label for row in rows], str(baseline)
    if baseline.isdecimal():
        if not 1 <= int(baseline) <= len(rows):
            raise OptionError(
                f"baseline={baseline}: expected a number up to {len(rows)}, or one of {', '.join(labels)}"
            )
        return rows[int(baseline) - 1]
    if baseline not in labels:  # the folders of a sweep have the settings in another order
        wanted = set(re.split(r",(?=\w+=)", baseline))
        fitting = [row for row in rows if wanted <= {setting_text({name: of}) for name, of in row.setting.items()}]
        if len(fitting) == 1:
            return fitting[0]
    return rows[labels.index(choose("baseline", baseline, labels))]


def held_out_figures(folder: Path | str) -> dict[str, float]:
    """The held-out figures of the kept epoch of a run: {figure, without "val_": number}."""
    record = read_record(folder)
    if "averaged" in record.content:
        raise RunError(f"{folder}: an averaged run has no held-out metrics; name a test corpus (--test)")
    history = read_history(folder)
    kept = history[best_epoch(history, record.config.monitor) - 1]
    return {name.removeprefix("val_"): kept[name] for name in MONITORS if name in kept}


def read_sweep(path: Path) -> dict:
    """Read a `sweep.json`.

    Raises:
        RunError: if it is damaged or not one.
    """
    try:
        found = json.loads(path.read_bytes())
        if not all(isinstance(found[name], dict) for name in ("options", "grid", "checksums")):
            raise ValueError("options, grid and checksums must be objects")
        return {name: found[name] for name in ("preset", "seeds", "trials", "options", "grid", "checksums")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{path}: damaged, or not of a sweep ({one_line(error)})") from None


def options_that_change(measure: str, options: Iterable[Mapping[str, Any]], held_out: bool = True) -> tuple[str, ...]:
    """The options that a figure depends on by definition: runs with other values must not be compared by it."""
    name = measure.removeprefix("val_")
    by_token, by_loss = name in TOKEN_FIGURES, name == "loss" and held_out
    names: tuple[str, ...] = TOKEN_OPTIONS if by_token else ()
    if by_token and any(of.get("copy") for of in options):
        # Copying may add U+FFFD to the target's vocabulary, depending on the source's tokenizer.
        names += ("source_tokenizer",)
    if held_out and not by_token:  # whose references are written as the model writes
        names += "normal_form", "lowercase"
    if by_loss:  # which is computed by a custom loss or model, with its options, or with smoothing
        names += "loss", "model", "label_smoothing"
    for of in options:
        custom_loss, custom_tokens = of.get("loss") or of.get("model"), ":" in str(of.get("target_tokenizer"))
        if (by_loss and custom_loss) or (by_token and custom_tokens):
            names += tuple(option for option in of if option not in Config.__dataclass_fields__ and option not in names)
    return names


def _holding(name, folder):
    """The folders in this one, or itself, that hold a file of this name, except temporary ones of killed commands."""
    paths = [path.parent for path in sorted(folder.rglob(name))]
    aside = re.compile("aside-[0-9a-f]{8}-")
    return [path for path in paths if not any(map(aside.match, path.relative_to(folder).parts))]


def _load_records(folders, say):
    """{finished run: its `Record`}, and the options of the grid if all are of one sweep."""
    records, grids, seen = {}, [], set()
    for folder in map(find_run, folders):
        if not folder.is_dir():
            raise RunError(f"{folder}: {'a file, not a folder' if folder.exists() else 'no such folder'}")
        runs = _holding("config.json", folder)
        for path in folder.rglob("sweep.json"):
            sweep = read_sweep(path)
            grids.append((path.parent, list(sweep["grid"])))
            started = sum(path.parent in run.parents for run in runs)
            count = sweep["seeds"] * math.prod(map(len, sweep["grid"].values()))
            if started < count and not sweep["trials"]:  # a search may try a setting twice
                say(f"{path.parent}: {count - started} of the sweep's {count} runs are missing")
        for run in runs:
            if run.resolve() in seen:
                continue
            seen.add(run.resolve())
            if finished(run) is False:
                say(f"{run}: unfinished, left out")
            elif (run / "model.keras").is_file():
                records[run] = read_record(run)
            else:
                say(f"{run}: has no model.keras, left out")
        for run in _holding("model.keras", folder):
            if run.resolve() not in seen:
                seen.add(run.resolve())
                say(f"{run}: has no config.json, left out")
    if not records:
        raise RunError(f"{', '.join(map(str, folders))}: no finished run")
    whole = len(grids) == 1 and all(grids[0][0] in run.parents for run in records)
    return records, grids[0][1] if whole else []


_LONGEST_LABEL = 60  # in characters; if a label is longer and each row has one run, rows are named by their run folders
# Options in which the runs of a row may differ.
_OF_NO_SETTING = ("seed", "on_bad_line", "checkpoint_minutes", "keep_epochs")


def _group_by_setting(records, grid, say):
    """The rows, without figures."""
    options = {run: _options(record) for run, record in records.items()}
    groups: dict[str, list[Path]] = {}
    for run, of in options.items():
        setting = {name: value for name, value in of.items() if name not in _OF_NO_SETTING}
        same = groups.setdefault(json.dumps(setting, sort_keys=True, default=str), [])
        if twin := next((other for other in same if options[other]["seed"] == of["seed"]), None):
            say(f"{run}: left out, because it has the same options and seed as {twin}")
        else:
            same.append(run)
    firsts = [options[runs[0]] for runs in groups.values()]
    every = dict.fromkeys(name for of in firsts for name in of if name not in _OF_NO_SETTING)
    names = [name for name in every if len({repr(of.get(name)) for of in firsts}) > 1]
    # In a sweep all other differences follow from the grid.
    if grid and len({repr([of.get(name) for name in grid]) for of in firsts}) == len(firsts):
        names = grid
    rows = []
    for runs in groups.values():
        setting = {name: options[runs[0]].get(name) for name in names}
        runs = sorted(runs, key=lambda run: options[run]["seed"])
        seeds = [options[run]["seed"] for run in runs]
        label = setting_text(setting) or str(runs[0].parent if len(runs) > 1 else runs[0])
        rows.append(Row(setting, runs, seeds, label))
    if all(len(row.runs) == 1 for row in rows) and max(len(row.label) for row in rows) > _LONGEST_LABEL:
        for row in rows:
            if row.setting:
                say(f"{row.runs[0]}: {row.label}")
            row.label = str(row.runs[0])
    if names is grid:
        rows.sort(key=lambda row: [_order(value) for value in row.setting.values()])
    if len({tuple(row.seeds) for row in rows}) > 1:
        each = "; ".join(f"{row.label}: {' '.join(map(str, row.seeds))}" for row in rows)
        say(f"The rows have different seeds ({each})")
    return rows


def _order(value):
    """A sort key: numbers by size, then text."""
    return (0, value) if isinstance(value, (int, float)) else (1, value_text(value))


def _options(record):
    """All options of a run by name, those of custom classes too, and checksums with the names of corpora."""
    options = dict(vars(record.config))
    for name in ("corpus", "validation"):
        if digests := record.checksums(name):
            first = options[name] if isinstance(options[name], str) else options[name][0]
            options[name] = " ".join([Path(first).name, *(digest[:8] for digest in digests)])
    if "averaged" in record.content:
        options["averaged"] = tuple(record.content["averaged"]["epochs"])
    return options | (options.pop("own", None) or {})


def options_of_held_out(config: Config) -> list[str]:
    """The options that determine which pairs of its corpora a run holds out. Custom tokenizers may do that too."""
    names = ["columns", "reverse"]
    if not config.validation:
        names += ["limit", "max_length", "max_ratio", "drop_duplicates", "split", "validation_fraction"]
        names += ["normal_form", "lowercase"] if config.split == "hash" else []
    return names


def held_out_by(record: Record) -> tuple:
    """The values on which the held-out pairs of a run depend: equal for runs with the same held-out pairs."""
    config = record.config
    return *_held_out_digests(record), *(getattr(config, name) for name in options_of_held_out(config))


def _held_out_digests(record):
    return tuple(record.checksums("validation" if record.config.validation else "corpus"))


def _incomparable(rows, records, measures, held_out, say):
    """The measures that must not be compared between these rows; `say` is told why."""
    firsts = [_options(records[row.runs[0]]) for row in rows]
    found = []
    for measure in measures:
        names = options_that_change(measure, firsts, held_out)
        if measure.removeprefix("val_") in TOKEN_FIGURES:
            names += ("corpus",)  # as the vocabulary is made from it
        if other := [name for name in names if len({repr(of.get(name)) for of in firsts}) > 1]:
            found.append(measure)
            say(f"{measure}: not comparable, because rows differ in {', '.join(other)}; no best row and no p")
    return found


def _measure(rows, records, test, strategy, say):
    """The figures of each run on a test corpus, the evaluation of each row's first run, and a note."""
    from seq2seq.evaluation import evaluate

    corpora = [str(corpus) for corpus in ([test] if isinstance(test, str | Path) else test)]
    reading = {repr((record.config.columns, record.config.reverse)): record.config for record in records.values()}
    if len(reading) > 1:
        raise OptionError("test: these runs read different columns, so no test corpus fits all of them")
    (config,) = reading.values()
    found, evaluations, pairs = {}, {}, None
    names: Sequence[str] = ()
    for row in rows:
        for run in row.runs:
            model = load_run(run)
            columns = model.source_tokenizer.column_names
            names = names or columns
            if len(columns) != len(names):
                raise OptionError(f"test: {run} has {len(columns)} source columns, but other runs have {len(names)}")
            with corpus_errors():
                if pairs is None:
                    how = {"columns": config.columns, "reverse": config.reverse}
                    if "-" in corpora:
                        how = {}  # standard input is made for the command: source and target in their order
                    pairs = read_pairs(corpora, **how, source_columns=names).cache()  # which can be read once only
                evaluation = evaluate(model, pairs, strategy)
            scores = {name.lower().replace(" ", "_"): it.score for name, it in evaluation.scores.items()}
            found[run] = {name: getattr(evaluation, name) for name in TOKEN_FIGURES} | scores
            if run == row.runs[0]:
                if len(row.runs) == 1:  # rows of several seeds are compared by their figures
                    evaluations[run] = evaluation
                try:
                    learned = trained_on(records[run], pairs, model.source_tokenizer)
                    if learned.any():
                        say(f"{row.label}: trained on the sources of {learned.sum():,} of {len(learned):,} test pairs")
                except (CorpusError, OptionError) as error:
                    say(f"{run}: cannot tell which of the test pairs it was trained on: {error}")
    search = "greedy search" if strategy in ("greedy", Greedy()) else strategy
    return found, evaluations, f"{len(evaluation.sources):,} sources of {' '.join(corpora)}, {search}."


def _test(rows, first, measures, evaluations):
    """Set p of the rows that can be tested against the first one, and describe it for the note."""
    against = f"against {first.label}, not corrected for the number of rows."
    others = [row for row in rows if row is not first]
    tested = [row for row in others if (len(row.runs) > 1) == (len(first.runs) > 1)]
    if len(tested) < len(others):
        against += f" Rows with {'a single seed' if len(first.runs) > 1 else 'several seeds'} have no p."
    if len(first.runs) > 1 and tested:
        for row in tested:
            found = {name: welch(first.figures[name], row.figures[name]) for name in measures}
            row.p = {name: p for name, p in found.items() if not math.isnan(p)}
        note = f"p: Welch's t-test over seeds, two-sided, {against}"
        if any(len(row.p) < len(measures) for row in tested):
            note += " p is missing if the figures of both rows are constant, or some are not finite."
        return note
    if len(first.runs) == 1 and evaluations and tested:
        from seq2seq.evaluation import compare

        compared = compare(*(evaluations[row.runs[0]] for row in (first, *tested)))
        scores = {name.lower().replace(" ", "_"): scores[1:] for name, scores in compared.items()}
        for number, row in enumerate(tested):
            row.p = {name: scores[name][number].p for name in measures if name in scores}
        return f"p: approximate randomization over the sources (Riezler and Maxwell 2005), {against}"
    return "No p: it needs two seeds or more in both rows, or one in each and a test corpus." if others else ""


def _mean(figures):
    """The mean; of equal figures exactly that figure, without rounding, so that tied rows are seen to be tied."""
    return float(figures[0] if len(set(figures)) == 1 else np.mean(figures))


def _variance(figures):
    """The variance, n - 1; of equal figures exactly 0."""
    return 0.0 if len(set(figures)) == 1 and math.isfinite(figures[0]) else float(np.var(figures, ddof=1))


def welch(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Test whether two samples have the same mean, by Welch's t-test (Welch 1947, doi.org/10.1093/biomet/34.1-2.28).

    Args:
        first, second: two numbers or more each.

    Returns:
        p, two-sided; nan if neither varies, or if a number is not finite.
    """
    samples = [np.asarray(sample, np.float64) for sample in (first, second)]
    with np.errstate(invalid="ignore"):  # of infinite numbers
        parts = [_variance(sample) / len(sample) for sample in samples]
        difference = samples[0].mean() - samples[1].mean()
    if not sum(parts) > 0:
        return math.nan
    shares = [part / sum(parts) for part in parts]
    freedom = 1 / sum(share**2 / (len(sample) - 1) for share, sample in zip(shares, samples, strict=True))
    x = freedom / (freedom + difference**2 / sum(parts))
    return float(tf.math.betainc(tf.constant(freedom / 2, tf.float64), tf.constant(0.5, tf.float64), tf.constant(x)))
