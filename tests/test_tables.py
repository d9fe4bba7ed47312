import csv
import io
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import in_process as seq2seq
from conftest import LINES, make_run
from matplotlib.image import imread

from pipelines import CharTokenizer, ColumnsTokenizer, OptionError, SeparatorTokenizer
from seq2seq import BeamSearch, Evaluation, Greedy, Seq2Seq, compare, evaluate, load_run, table
from seq2seq.config import Config, reading_options
from seq2seq.pictures import draw_table
from seq2seq.records import Record, RunError
from seq2seq.tables import (
    Row,
    Table,
    _baseline_row,
    _options,
    _order,
    _test,
    held_out_by,
    options_of_held_out,
    options_that_change,
    welch,
)

LABELS = ["units=4", "units=8"]
MEASURES = ["loss", "accuracy", "chrf", "exact_match"]


def last_epochs(folder, label, figure):
    """The figures of the last epochs of the two runs of a setting."""
    paths = [folder / label / f"seed-{seed}" / "history.csv" for seed in (0, 1)]
    return [float(list(csv.DictReader(path.read_text().splitlines()))[-1][f"val_{figure}"]) for path in paths]


@pytest.fixture
def copied(swept, tmp_path):
    """A copy of the sweep, to be changed."""
    return shutil.copytree(swept[0], tmp_path / "copied")


def made(run, history="epoch,val_loss\n1,1.0\n", **options):
    """A run folder that `table` can read, without a model."""
    run.mkdir(parents=True)
    (run / "model.keras").touch()
    (run / "history.csv").write_text(history)
    (run / "config.json").write_text(json.dumps({"options": {"corpus": "pairs.tsv", **options}}))
    return run


def swept_by_hand(folder, **content):
    """A sweep of two runs that were not trained."""
    for units in (16, 4):
        made(folder / f"units={units}", units=units)
    content = {"preset": None, "seeds": 1, "trials": None, "options": {}, "checksums": {}, **content}
    (folder / "sweep.json").write_text(json.dumps({"grid": {"units": [16, 4]}, **content}))
    return folder


def change(run, **options):
    """Change the options that a run has recorded."""
    record = json.loads((run / "config.json").read_text())
    record["options"] |= options
    (run / "config.json").write_text(json.dumps(record))


@pytest.mark.slow
def test_csv_has_means_deviations_and_p_of_each_setting_with_all_digits(swept):
    folder, *_ = swept
    rows = list(csv.DictReader(io.StringIO(table(folder).text("csv"))))
    assert [f"units={row['units']}" for row in rows] == LABELS
    for row, label in zip(rows, LABELS, strict=True):
        assert row["seeds"] == "2"
        for measure in MEASURES:
            figures = last_epochs(folder, label, measure)
            assert float(row[f"val_{measure}"]) == np.mean(figures)
            assert float(row[f"val_{measure}_sd"]) == np.std(figures, ddof=1)
            p = welch(last_epochs(folder, LABELS[0], measure), figures)
            assert row[f"val_{measure}_p"] == ("" if label == LABELS[0] or math.isnan(p) else str(p))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "cells", "bold"),
    [
        ("text", r" {2,}", r"\*([\d.]+)"),
        ("md", r" ?\| ?", r"\*\*([\d.]+)\*\*"),
        ("latex", r" & | \\\\", r"\\textbf{(.*?)}"),
    ],
)
def test_each_format_says_the_same_and_marks_the_best(swept, format, cells, bold):
    folder, *_ = swept
    found = table(folder, measures=["val_loss", "chrf"], baseline=LABELS[1])
    assert str(found) == found.text()
    lines = found.text(format).splitlines()
    heads = ["setting", "seeds", "val_loss", "val_chrf", "parameters"]
    start = next(n for n, line in enumerate(lines) if "setting" in line)
    assert list(filter(None, re.split(cells, lines[start].replace("\\_", "_")))) == heads
    for row in found.rows:
        line = next(line for line in lines if line.replace("\\_", "_").lstrip("| ").startswith(row.label))
        *_, loss, chrf, parameters = filter(None, re.split(cells, line.strip()))
        assert parameters == f"{row.parameters:,}"
        for measure, cell, digits, pick in (("loss", loss, 3, min), ("chrf", chrf, 1, max)):
            figures = last_epochs(folder, row.label, measure)
            mean, deviation, *p = re.findall(r"\d+\.\d+", cell)
            assert (mean, deviation) == (f"{np.mean(figures):.{digits}f}", f"{np.std(figures, ddof=1):.{digits}f}")
            assert len(p) == (row.label != LABELS[1])
            best = pick(np.mean(last_epochs(folder, label, measure)) for label in LABELS)
            assert re.findall(bold, cell) == [mean] * int(np.mean(figures) == best)
    assert f"Welch's t-test over seeds, two-sided, against {LABELS[1]}" in " ".join(found.text(format).split())


@pytest.mark.slow
def test_a_figure_is_of_the_epoch_that_was_kept(copied):
    runs = [run.parent for run in copied.glob("*/*/history.csv")]
    for run in runs:
        change(run, monitor="val_loss")
        (run / "history.csv").write_text("epoch,val_loss,val_chrf\n1,1.0,30\n2,2.0,60\n")
    found = table(copied)
    assert found.measures == ["loss", "chrf"]
    assert {(row.mean("loss"), row.mean("chrf")) for row in found.rows} == {(1.0, 30.0)}
    assert found.best("loss") is None  # all are the same


@pytest.mark.slow
def test_what_is_missing_unfinished_or_there_twice_is_said(copied):
    first, second, third, *_ = sorted(run.parent for run in copied.glob("*/*/model.keras"))
    (first / "model.keras").unlink()
    shutil.copytree(third, copied / "written-twin")
    change(copied / "written-twin", checkpoint_minutes=9.0, keep_epochs=1)  # which make no other model
    (copied / "written-twin" / "history.csv").write_text("damaged")  # is not even read
    said = []
    found = table(copied, say=said.append)
    assert [row.label for row in found.rows] == LABELS
    assert [row.seeds for row in found.rows] == [[1], [0, 1]]
    assert f"{first}: has no model.keras, left out" in said
    assert f"{copied / 'written-twin'}: left out, because it has the same options and seed as {third}" in said
    assert said[-1] == "The rows have different seeds (units=4: 1; units=8: 0 1)"
    shutil.rmtree(second)
    shutil.rmtree(third)
    shutil.rmtree(copied / "written-twin")
    assert [row.label for row in table(copied, say=said.append).rows] == LABELS[1:]
    assert f"{copied}: 2 of the sweep's 4 runs are missing" in said
    with pytest.raises(RunError, match="no finished run"):
        table(first)
    assert table("phrasebook").rows[0].runs[0].name == "phrasebook"  # the run that comes with the library
    with pytest.raises(RunError, match="nowhere: no such folder"):
        table(copied / "nowhere")


@pytest.mark.slow
def test_token_figures_of_runs_that_read_other_text_are_not_compared(copied, tsv):
    for seed in ("seed-0", "seed-1"):  # as in a sweep over --limit, where fewer tokens are known
        change(copied / "units=8" / seed, limit=20)
    said = []
    found = table(copied, tsv("ab\tAB\n"), ["loss", "accuracy", "chrf"], say=said.append)
    assert found.incomparable == ["loss", "accuracy"]
    assert "accuracy: not comparable, because rows differ in limit; no best row and no p" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "measures"),
    [
        ({"label_smoothing": 0.1}, ["loss"]),
        ({"loss": "focal:FocalLoss"}, ["loss"]),
        ({"target_tokenizer": "byte"}, ["loss", "accuracy"]),
        ({"copy": True}, ["loss", "accuracy"]),  # unknown tokens are among those to predict
    ],
)
def test_figures_that_are_not_the_same_are_not_compared_and_it_is_said(copied, options, measures):
    change(copied / "units=8" / "seed-1", **options)
    said = []
    found = table(copied, say=said.append)
    assert found.incomparable == measures and not any(set(measures) & set(row.p) for row in found.rows)
    assert [line.split(":")[0] for line in said if "not comparable" in line] == measures
    assert len(found.rows) == 3 and f"{next(iter(options))}=" in found.rows[0].label


@pytest.mark.slow
def test_options_that_only_some_runs_have_tell_rows_apart(copied):
    for seed, kernel in ((0, 3), (1, 5)):
        change(copied / "units=8" / f"seed-{seed}", own={"kernel": kernel})
    labels = [row.label for row in table(copied).rows]
    assert len(labels) == len(set(labels)) == 3 and sum("kernel=none" in label for label in labels) == 1


@pytest.mark.slow
def test_damaged_runs_and_averages_are_refused(copied):
    run = copied / "units=8" / "seed-1"
    history = (run / "history.csv").read_text()
    for damaged in ("", "epoch,val_loss\n", "abc\n1\n"):
        (run / "history.csv").write_text(damaged)
        with pytest.raises(RunError, match=r"history\.csv: damaged, or not the history of a run"):
            table(copied)
    (run / "history.csv").write_text(history)
    sweep = json.loads((copied / "sweep.json").read_text())
    for damaged in ({}, sweep | {"grid": 5}):
        (copied / "sweep.json").write_text(json.dumps(damaged))
        with pytest.raises(RunError, match=r"sweep\.json: damaged, or not of a sweep"):
            table(copied)
    (copied / "sweep.json").unlink()
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | {"averaged": {"run": "a", "epochs": [1, 2]}}))
    with pytest.raises(RunError, match="an averaged run has no held-out metrics; name a test corpus"):
        table(copied)


@pytest.mark.slow
def test_runs_of_one_and_of_two_source_columns_have_no_test_corpus_in_common(copied, tsv, monkeypatch):
    words = ColumnsTokenizer([CharTokenizer(), SeparatorTokenizer(";")])
    words.adapt(["sol\tV;PST"])
    runs = iter([load_run(next(copied.glob("*/seed-0"))), Seq2Seq(words, CharTokenizer("SOL"), units=8)])
    monkeypatch.setattr("seq2seq.tables.load_run", lambda run: next(runs))
    with pytest.raises(OptionError, match="has 2 source columns, but other runs have 1"):
        table(copied, tsv("ab\tAB\n"))


@pytest.mark.slow
def test_runs_that_have_held_out_other_pairs_are_refused(copied):
    run = copied / "units=8" / "seed-1"
    change(run, on_bad_line="skip")  # of files that have no bad lines, or the other runs would have failed
    assert [len(row.runs) for row in table(copied).rows] == [2, 2]
    change(run, validation_fraction=0.1)
    with pytest.raises(RunError, match=r"have different held-out sets \(validation_fraction\); name a test corpus"):
        table(copied)
    change(run, validation_fraction=0.2)
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | {"checksums": {"pairs.tsv": "0" * 64}}))
    with pytest.raises(RunError, match=r"have different held-out sets \(files\); name a test corpus"):
        table(copied)
    change(run, validation_fraction=0.1)
    with pytest.raises(RunError, match=r"have different held-out sets \(files, validation_fraction\); name a test"):
        table(copied)


@pytest.mark.slow
def test_a_run_that_lacks_a_file_is_named(copied):
    first, second = (copied / "units=8" / f"seed-{seed}" for seed in (0, 1))
    (first / "config.json").unlink()
    said = []
    assert [row.seeds for row in table(copied, say=said.append).rows] == [[0, 1], [1]]
    assert f"{first}: has no config.json, left out" in said
    (second / "history.csv").unlink()
    with pytest.raises(RunError, match=rf"^{second}: has no history\.csv$"):
        table(copied)


@pytest.mark.slow
def test_a_tokenizer_of_ones_own_may_hold_out_other_pairs_as_is_said(copied):
    change(copied / "units=8" / "seed-0", source_tokenizer="mine:Letters")
    said = []
    table(copied, say=said.append)
    assert any(text.startswith("The held-out sets differ if mine:Letters normalizes") for text in said)


def test_a_row_is_named_by_settings_in_any_order_that_only_it_has():
    settings = [{"units": 16, "attention": "dot"}, {"units": 32, "attention": "dot"}, {"units": 32, "attention": None}]
    rows = [Row(setting, [], [], f"run {number}") for number, setting in enumerate(settings)]
    rows.append(Row({"teacher_forcing": (1.0, 0.5)}, [], [], "units=32"))
    names = ["attention=dot,units=16", "units=16"], ["units=32,attention=dot"], ["attention=none"]
    for number, these in enumerate((*names, ["teacher_forcing=1.0,0.5", "units=32"])):
        for name in [*these, rows[number].label, number + 1, str(number + 1)]:
            assert _baseline_row(rows, name) is rows[number]
    for name in ("attention=dot", "0.5", "run 4"):
        with pytest.raises(OptionError, match=f"baseline='{name}': expected 'run 0', "):
            _baseline_row(rows, name)
    for number in (0, 5):
        with pytest.raises(OptionError, match=f"baseline={number}: expected a number up to 4"):
            _baseline_row(rows, number)


@pytest.mark.slow
def test_unknown_measures_and_rows_are_refused(swept):
    with pytest.raises(OptionError, match=r"measure='chfr': expected .*; did you mean 'chrf'"):
        table(swept[0], measures=["chfr"])
    with pytest.raises(OptionError, match=r"baseline='units=5': expected 'units=4'"):
        table(swept[0], baseline="units=5")
    with pytest.raises(OptionError, match="baseline=5: expected a number up to 2"):
        table(swept[0], baseline=5)
    done = seq2seq("table", swept[0], "--beam-width", "2")
    assert done.returncode == 2 and b"applies to a test corpus; name one with --test" in done.stderr


@pytest.mark.slow
def test_single_runs_on_a_test_corpus_are_compared_by_randomization_over_its_sources(swept, tsv):
    runs = [swept[0] / f"units={units}" / "seed-0" for units in (8, 4)]
    corpus, said = str(tsv(LINES, "test.tsv")), []
    found = table(runs, corpus, ["chrf", "perplexity"], say=said.append)
    assert [row.label for row in found.rows] == ["units=8", "units=4"]
    models = [load_run(run) for run in runs]
    first, second = (evaluate(model, corpus) for model in models)
    for row, model, evaluation in zip(found.rows, models, (first, second), strict=True):
        assert row.figures["chrf"] == [evaluation.scores["chrF"].score]
        np.testing.assert_allclose(row.figures["perplexity"], [evaluation.perplexity])
        assert row.parameters == model.count_params() and row.deviation("chrf") is None
    assert [row.p for row in found.rows] == [{}, {"chrf": compare(first, second)["chrF"][1].p}]
    assert "approximate randomization over the sources" in found.note and "25 sources of" in found.note
    assert re.fullmatch(r"units=8: trained on the sources of (19|2\d) of 25 test pairs", said[0])
    assert "test.tsv, greedy search." in found.note


def test_a_test_corpus_is_translated_by_the_strategy_that_is_given(tmp_path, tsv, monkeypatch):
    corpus, used = str(tsv("ab\tAB\n")), []

    def evaluate(model, pairs, strategy):
        used.append(strategy)
        return Evaluation.of_texts(["ab"], [["AB"]], ["AB"], resamples=2)

    monkeypatch.setattr("seq2seq.evaluation.evaluate", evaluate)
    make_run(tmp_path / "run", corpus)
    for strategy, name in ((Greedy(), "greedy search"), (BeamSearch(2), str(BeamSearch(2)))):
        found = table(tmp_path / "run", corpus, ["chrf"], strategy=strategy)
        assert used[-1] == strategy and found.rows[0].mean("chrf") == 100 and f"{corpus}, {name}." in found.note


@pytest.mark.slow
def test_a_row_whose_setting_is_long_has_the_name_of_its_run(copied):
    runs, said = sorted(copied.glob("*/seed-0"))[:2], []
    change(runs[0], clip_norm=0.25, checkpoint_minutes=2.0, optimizer="adam", schedule="constant", learning_rate=0.0123)
    found = table(runs, say=said.append)
    assert [row.label for row in found.rows] == list(map(str, runs))
    assert any(text.startswith(f"{runs[0]}: ") and "learning_rate=0.0123" in text for text in said)
    alone = list(csv.DictReader(io.StringIO(table(runs[:1]).text("csv"))))
    assert [row["setting"] for row in alone] == [str(runs[0])]
    for form in ("text", "md", "latex"):
        assert "kept epoch of each run" in table(runs[:1]).text(form)
        assert "best mean" not in table(runs[:1]).text(form) and "No p" not in table(runs[:1]).text(form)


@pytest.mark.slow
def test_standard_input_has_source_and_target_in_their_order_whatever_the_runs_read(swept, tmp_path):
    run = shutil.copytree(next(swept[0].glob("*/seed-0")), tmp_path / "run")
    change(run, reverse=True)
    pairs = b"".join(b"%s\t%s\n" % pair for pair in [(b"abc", b"cba"), (b"de", b"ed")])
    by_stdin = seq2seq("table", run, "--test", "-", "--format", "csv", stdin=pairs)
    (tmp_path / "reversed.tsv").write_bytes(b"cba\tabc\ned\tde\n")
    by_file = seq2seq("table", run, "--test", tmp_path / "reversed.tsv", "--format", "csv")
    assert by_stdin.returncode == by_file.returncode == 0
    assert by_stdin.stdout == by_file.stdout


@pytest.mark.slow
def test_the_command_prints_a_table_and_draws_it(swept, tmp_path):
    done = seq2seq("table", swept[0], "--measure", "chrf", "--format", "csv", "--picture", tmp_path / "table.png")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == table(swept[0], measures=["chrf"]).text("csv") + "\n"
    height, width, _ = imread(tmp_path / "table.png").shape
    assert 300 <= height < width < 2000


@pytest.mark.slow
def test_the_picture_has_a_panel_for_each_measure_and_a_line_for_each_row(swept, tmp_path):
    found = table(swept[0])
    panels = draw_table(found, tmp_path / "table.svg").axes
    assert [axes.get_xlabel() for axes in panels] == [
        f"val_{measure}\n({'lower' if measure == 'loss' else 'higher'} is better)" for measure in MEASURES
    ]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == LABELS
    for axes, measure in zip(panels, MEASURES, strict=True):
        assert [bar.lines[0].get_xydata().tolist() for bar in axes.containers] == [
            [[row.mean(measure), place]] for place, row in enumerate(found.rows)
        ]
        ends = [bar.lines[2][0].get_segments()[0][:, 0] for bar in axes.containers]
        for (low, high), row in zip(ends, found.rows, strict=True):
            np.testing.assert_allclose([low, high], row.mean(measure) + np.array([-1, 1]) * row.deviation(measure))


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [  # Student's sleep data, by R's t.test; and two of the examples of rosettacode.org/wiki/Welch's_t-test
        (
            [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
            [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
            0.07939414018735823,
        ),
        ([3.0, 4.0, 1.0, 2.1], [490.2, 340.0, 433.9], 0.0107515611497845),
        (
            [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4],
            [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4],
            0.021378001462867013,
        ),
    ],
)
def test_welch(first, second, p):
    assert welch(first, second) == pytest.approx(p, rel=1e-9) == welch(second, first)


@pytest.mark.slow
def test_a_missing_p_is_explained(copied):
    assert "p is missing" not in table(copied, measures=["loss"]).note
    for path in copied.glob("*/seed-*/history.csv"):
        text = path.read_text().splitlines()
        rows = [dict(row, val_loss="1.5") for row in csv.DictReader(text)]
        path.write_text("\n".join([text[0], *(",".join(row.values()) for row in rows)]) + "\n")
    found = table(copied, measures=["loss"])
    assert [row.p for row in found.rows] == [
        {},
        {},
    ] and "p is missing if the figures of both rows are constant" in found.note
    assert "Rows with" not in found.note


def test_rows_with_another_number_of_seeds_are_named_in_the_note():
    rows = [Row({}, [Path(f"{name}-{n}") for n in range(seeds)], []) for name, seeds in (("a", 2), ("b", 2), ("c", 1))]
    for row in rows:
        row.figures["loss"] = np.arange(1.0, len(row.runs) + 1)
    assert _test(rows, rows[0], ["loss"], {}).endswith("rows. Rows with a single seed have no p.")
    assert [len(row.p) for row in rows] == [0, 1, 0]
    rows[0].figures["loss"] = np.array([1.0, np.inf])
    assert math.isnan(rows[0].deviation("loss"))


def test_welch_says_nothing_of_samples_that_do_not_vary():
    assert math.isnan(welch([1, 1], [2, 2])) and math.isnan(welch([1, math.inf], [1, 2]))
    assert math.isnan(welch([0.1] * 3, [0.2] * 3)) and math.isnan(welch([0.1] * 3, [0.1] * 6))  # whose sums are rounded
    assert math.isnan(welch([math.inf] * 2, [1, 2]))
    rows = [Row({}, [Path("run")] * n, [0] * n, figures={"chrf": np.array([0.1] * n)}) for n in (1, 3)]
    assert [row.mean("chrf") for row in rows] == [0.1, 0.1] and rows[1].deviation("chrf") == 0
    assert welch([1, 1], [1, 1.5]) == pytest.approx(0.5)  # t = 1 with one degree of freedom, of Cauchy's distribution


def test_token_figures_depend_on_whatever_changes_the_vocabulary():
    assert {"min_frequency", "max_vocabulary", "shared_vocabulary"} <= set(options_that_change("loss", [{}]))
    assert "weights" in options_that_change("loss", [{}]) and "weights" not in options_that_change("chrf", [{}])
    assert "label_smoothing" not in options_that_change("loss", [{}], held_out=False)
    for held_out in (False, True):  # references are then written as the model writes
        assert ("lowercase" in options_that_change("chrf", [{}], held_out)) == held_out
    for copies in (False, True):  # which may add a target token, depending on the source's tokenizer
        assert ("source_tokenizer" in options_that_change("loss", [{}, {"copy": copies}])) == copies


def test_token_figures_depend_on_the_settings_of_a_tokenizer_of_ones_own():
    own = {"target_tokenizer": "mine:Pieces", "size": 3}
    assert "size" in options_that_change("accuracy", [own]) and "size" not in options_that_change("BLEU", [own])
    assert "size" not in options_that_change("accuracy", [own | {"target_tokenizer": "char"}])
    for loss in ({"loss": "mine:Loss"}, {"model": "mine:Model"}):  # a model may have a `compute_loss` of its own
        assert {"size", *loss} <= set(options_that_change("loss", [loss | {"size": 3}]))


def of_figures(*figures, incomparable=()):
    """A table with a row for each figure, which is that of two measures."""
    rows = [Row({}, [Path("run")], [0], "row", {"loss": np.array([x]), "chrf": np.array([x])}) for x in figures]
    return Table(rows, ["loss", "chrf"], list(incomparable), "", "")


def test_the_best_is_the_lowest_or_the_highest_of_the_numbers_that_may_be_compared():
    found = of_figures(math.nan, 1.0, 3.0, 2.0)
    assert (found.best("loss"), found.best("chrf")) == (1.0, 3.0)
    assert of_figures(math.nan, 1.0).best("loss") is None and of_figures(math.inf, 1.0).best("loss") == 1.0
    found = of_figures(1.0, 2.0, incomparable=["loss"])
    assert (found.best("loss"), found.best("chrf")) == (None, 2.0)


def test_what_a_format_would_take_for_its_own_is_escaped_and_a_small_p_is_a_bound():
    found = of_figures(1.0, 2.0)
    found.rows[0].label = r"a&b%c#d|e$f_{g}\~^"
    for row, p in zip(found.rows, (0.0009, 0.0011), strict=True):
        row.p = {"chrf": p}
    found.rows[1].runs *= 2
    found.rows[1].figures = dict.fromkeys(found.measures, np.array([1.5, 2.5]))
    text, md, latex = map(found.text, ("text", "md", "latex"))
    assert "1.0 (p < 0.001)" in text and "*2.0 ± 0.7 (p = 0.001)" in text
    assert "1.0 (p $<$ 0.001)" in latex and r"\textbf{2.0} $\pm$ 0.7 (p = 0.001)" in latex
    assert r"| a&b%c#d\|e$f_{g}\~^ |" in md
    special = r"\textbackslash{}\textasciitilde{}\textasciicircum{}"
    assert r"a\&b\%c\#d|e\$f\_\{g\}" + special in latex


def test_held_out_pairs_are_those_of_the_validation_files_or_of_a_part_of_the_corpus():
    digests = {"checksums": {"a": "1"}, "validation_checksums": {"b": "2"}}
    assert held_out_by(Record({"options": {"corpus": "a", "validation": "b"}, **digests}))[0] == "2"
    assert held_out_by(Record({"options": {"corpus": "a"}, **digests}))[0] == "1"
    assert not {"lowercase", "split"} & set(options_of_held_out(Config("a", validation="b")))
    assert "lowercase" in options_of_held_out(Config("a", split="hash"))
    assert "lowercase" not in options_of_held_out(Config("a", split="last"))


def test_token_figures_and_held_out_pairs_depend_on_all_that_decides_which_pairs_are_read():
    reading = {*reading_options(Config()), "limit", "split", "validation_fraction"} - {"on_bad_line"}
    assert reading <= set(options_that_change("accuracy", [{}])) and reading <= set(options_of_held_out(Config("a")))
    assert {"columns", "reverse"} <= set(options_of_held_out(Config("a", validation="b")))


def test_token_figures_of_runs_that_were_trained_on_other_corpora_are_not_compared(tmp_path):
    for corpus in ("a.tsv", "b.tsv"):
        made(tmp_path / corpus, corpus=corpus, validation="dev.tsv")
    said = []
    assert table(tmp_path, say=said.append).incomparable == ["loss"]
    assert said == ["loss: not comparable, because rows differ in corpus; no best row and no p"]


@pytest.mark.parametrize("options", [{"reverse": True}, {"columns": (2, 1)}], ids=str)
def test_runs_that_read_other_columns_have_no_test_corpus_in_common(tmp_path, options):
    made(tmp_path / "one")
    made(tmp_path / "other", **options)
    with pytest.raises(OptionError, match="test: these runs read different columns, so no test corpus fits all"):
        table(tmp_path, "test.tsv")


def test_rows_of_equally_many_seeds_that_are_not_the_same_are_told(tmp_path):
    for units, seed in ((4, 0), (4, 1), (8, 0), (8, 2)):
        made(tmp_path / f"{units}-{seed}", units=units, seed=seed)
    said = []
    table(tmp_path, say=said.append)
    assert said == ["The rows have different seeds (units=4: 0 1; units=8: 0 2)"]


def test_a_table_has_the_measures_of_all_runs_and_needs_one(tmp_path):
    made(tmp_path / "one", "epoch,val_loss,val_chrf\n1,1.0,50\n", units=4)
    made(tmp_path / "other", units=8)
    assert table(tmp_path).measures == ["loss"]
    made(tmp_path / "none", "epoch,loss\n1,1.0\n", units=16)
    with pytest.raises(RunError, match="there is no held-out metric that all runs have; name a test corpus"):
        table(tmp_path)


def test_runs_are_ordered_by_number_and_those_that_were_never_whole_are_not_seen(tmp_path):
    for seed in (10, 9):
        made(tmp_path / f"seed-{seed}", seed=seed)
    made(tmp_path / "aside-0123abcd-run", seed=3)
    record = json.loads((made(tmp_path / "new", seed=4) / "config.json").read_text())
    (tmp_path / "new" / "config.json").write_text(json.dumps(record | {"plan": {}}))
    said = []
    (row,) = table([tmp_path, tmp_path / "new" / ".." / "seed-9"], say=said.append).rows
    assert (row.seeds, [run.name for run in row.runs]) == ([9, 10], ["seed-9", "seed-10"])
    assert said == [f"{tmp_path / 'new'}: unfinished, left out"]
    assert sorted([16, "b", 4, None, 0.5], key=_order) == [0.5, 4, 16, "b", None]


def test_the_rows_of_a_sweep_have_its_options_and_order_unless_another_run_is_among_them(tmp_path):
    folder, other = swept_by_hand(tmp_path / "sweep"), made(tmp_path / "other", units=32, layers=2)
    change(folder / "units=16", layers=3)  # as if it followed from the number of units
    assert [row.label for row in table(folder).rows] == ["units=4", "units=16"]
    labels = [row.label for row in table([folder, other]).rows]
    assert len(labels) == 3 and all("layers=" in label for label in labels)


@pytest.mark.parametrize(("trials", "count"), [(None, 1), (3, 0)])
def test_a_search_has_tried_as_many_settings_as_it_wanted(tmp_path, trials, count):
    said = []
    table(swept_by_hand(tmp_path, trials=trials, grid={"units": [16, 8, 4]}), say=said.append)
    assert said == [f"{tmp_path}: 1 of the sweep's 3 runs are missing"] * count


@pytest.mark.parametrize("length", [60, 61])
def test_a_setting_is_a_label_if_it_is_short(tmp_path, length):
    run = made(tmp_path / "one", own={"note": "x" * (length - len("note="))})
    made(tmp_path / "other")
    first, _ = table(tmp_path, say=[].append).rows
    assert first.label == (str(run) if length > 60 else f"note={'x' * 55}")


def test_an_averaged_run_is_another_setting_than_that_which_it_was_made_of():
    record = {"options": {"corpus": "a"}, "averaged": {"run": "b", "epochs": [1, 2]}}
    assert _options(Record(record))["averaged"] == (1, 2)
