import contextlib
import json
import os
import re
import shutil
import threading

import pytest
from command_line import in_process as seq2seq
from conftest import make_run

from seq2seq import evaluation
from seq2seq.records import read_record
from seq2seq.reports import comparison_text

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(toy_run):
    return toy_run[0]


@pytest.fixture(scope="module")
def home(toy_run, tmp_path_factory):
    """A folder with the toy run, and a run on four times its pairs, which sees them in small letters."""
    home = tmp_path_factory.mktemp("evaluate")
    shutil.copytree(toy_run[0], home / "runs" / "toy")
    shutil.copy(toy_run[0].parent.parent / "toy.tsv", home)
    texts = [a + b for a in "abcdefghij" for b in "abcdefghij"]
    (home / "larger.tsv").write_text("".join(f"{text.capitalize()}\t{text.upper()}\n" for text in texts))
    with contextlib.chdir(home):
        make_run(home / "runs" / "larger", "larger.tsv", "abcdefghij", lowercase=True, validation_fraction=0)
    return home


def test_evaluate_prints_tables_or_json_and_writes_what_it_measured(folder, tmp_path):
    options = ["--write", tmp_path / "out", "--worst", 2, "--batch-size", 3]
    done = seq2seq("evaluate", folder, *options, cwd=folder.parent.parent)
    assert done.returncode == 0 and b"translated in" in done.stderr and b"Warning" not in done.stderr
    table = done.stdout.decode()
    assert all(name in table for name in ("BLEU", "chrF", "TER", "CER", "WER", "exact match", "perplexity"))
    assert "nrefs:1|bs:1000" in table and table.count(" -> ") == 2
    sources = (tmp_path / "out" / "sources.txt").read_text().split()
    assert table.startswith(f"{len(sources)} sources, ")
    translations = seq2seq("translate", folder, stdin="\n".join(sources).encode()).stdout.decode()
    assert (tmp_path / "out" / "translations.txt").read_text() == translations
    texts = [json.loads(line) for line in (tmp_path / "out" / "texts.jsonl").read_text().splitlines()]
    assert [text["source"] for text in texts] == sources and texts[0].keys() > {"references", "stopped", "chrF", "CER"}
    assert "".join(text["translation"] + "\n" for text in texts) == translations
    again = seq2seq("evaluate", folder, "out/sources.txt+out/translations.txt", "--write", "out", cwd=tmp_path)
    assert again.returncode == 2 and b"write=out: holds the corpus, out/sources.txt; choose another" in again.stderr
    options = ["--columns", "2,1", "--json", "--beam-width", 3]
    found = json.loads(seq2seq("evaluate", folder, "-", *options, stdin=b"AB\tab\nXY\tab\nCD\tcd\n").stdout)
    assert (found["sources"], found["references"]) == (2, 3) and found["loading_seconds"] > 0
    assert 0 <= found["scores"]["chrF"]["score"] <= 100 and sum(part["texts"] for part in found["by_length"]) == 2


def test_a_run_of_one_source_column_has_no_columns_to_measure_separately(folder):
    refused = seq2seq("evaluate", folder, "--by", "source")
    assert refused.returncode == 2 and b"by=source: the run reads a single source column" in refused.stderr


def test_evaluate_says_that_bleu_is_not_for_texts_of_few_words(folder, tsv):
    few, many = tsv("ab\tAB\n", "few.tsv"), tsv("ab\tA B C D\ncd\tA B C D\nef\tEF\n", "many.tsv")
    for path, options, said in ((few, [], True), (few, ["--bleu-tokenizer", "char"], False), (many, [], False)):
        shown = seq2seq("evaluate", folder, path, *options).stdout
        assert (b"BLEU counts n-grams of up to four words. Most references have fewer words." in shown) == said


def test_evaluating_on_the_training_corpus_is_said(folder, tmp_path):
    home = folder.parent.parent
    done = seq2seq("evaluate", folder, "toy.tsv", cwd=home)
    (said,) = re.findall(rf"{folder}: trained on ([0-9]+) of the ([0-9]+) sources", done.stderr.decode())
    assert done.returncode == 0 and 0 < int(said[0]) < int(said[1])
    again = seq2seq("evaluate", folder, "-", cwd=home, stdin=(home / "toy.tsv").read_bytes())
    assert (
        again.stdout == done.stdout
        and f"{folder}: trained on {said[0]} of the {said[1]} sources" in again.stderr.decode()
    )
    (tmp_path / "more.tsv").write_text("new\tNEW\n" + (home / "toy.tsv").read_text())
    other = seq2seq("evaluate", folder, tmp_path / "more.tsv", cwd=home)
    assert f"{folder}: trained on {said[0]} of the {int(said[1]) + 1} sources" in other.stderr.decode()
    os.mkfifo(tmp_path / "pipe")
    writing = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes((home / "toy.tsv").read_bytes()))
    writing.start()
    assert seq2seq("evaluate", folder, tmp_path / "pipe").stdout == done.stdout
    writing.join()


def test_of_words_the_measures_of_words_come_first(folder, tsv):
    def measures(text, *options):
        lines = seq2seq("evaluate", folder, tsv(text), *options).stdout.decode().splitlines()
        return [line.split()[0] for line in lines[2:8]]

    assert measures("ab\tAB\n") == ["exact", "CER", "WER", "chrF", "TER", "BLEU"]
    usual = ["BLEU", "chrF", "TER", "CER", "WER", "exact"]
    assert measures("ab\tA B C D\n") == measures("ab\tAB\n", "--bleu-tokenizer", "char") == usual


def test_a_run_that_held_out_nothing_is_told_from_one_that_has(tmp_path, tsv):
    path = tsv("Go.\tVe.\n")
    small = ["--epochs", 1, "--units", 4, "--cell", "gru", "--no-bidirectional", "--attention", "none"]
    done = seq2seq("train", path, *small, "--lowercase", "--out", tmp_path / "run")
    assert done.returncode == 0 and b"The held-out set is empty, because there are too few sources" in done.stderr
    done = seq2seq("evaluate", tmp_path / "run")
    assert (
        done.returncode == 2
        and b"run: its held-out set is empty, because its corpus has too few sources; name a corpus" in done.stderr
    )
    done = seq2seq("evaluate", tmp_path / "run", "-", stdin=b"Go.\tVe.\n")
    unlike = b"run: 1 of 1 targets are not what the model can write, such as 'Ve.' (it writes 've.'); scores count"
    assert done.returncode == 0 and unlike in done.stderr, done.stderr


def test_a_run_whose_training_has_not_ended_is_used_and_said(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    record = read_record(folder).content
    record = {name: value for name, value in record.items() if name != "training"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(record | {"plan": {}}))
    (tmp_path / "run" / "unfinished").mkdir()
    (tmp_path / "run" / "unfinished" / "begun.keras").touch()
    done = seq2seq("translate", tmp_path / "run", "ab")
    assert done.returncode == 0 and done.stdout == seq2seq("translate", folder, "ab").stdout
    wanted = f"{tmp_path}/run: its training is unfinished; resume it with seq2seq train --resume --out {tmp_path}/run\n"
    assert done.stderr.decode() == wanted


def test_evaluate_says_what_it_skips(folder, tsv):
    path = tsv("ab\tAB\nno tab\ncd\tCD\nef\tEF\n")
    report = f"1 of 4 pairs left out\n  1 wrong columns\n    {path}, line 2: expected source TAB target"
    done = seq2seq("evaluate", folder, path, "--on-bad-line", "skip")
    assert done.returncode == 0 and done.stderr.decode().count(report) == 1, done.stderr
    none = seq2seq("evaluate", folder, tsv("no tab\n", "none.tsv"), "--on-bad-line", "skip")
    assert none.returncode == 2 and none.stderr.startswith(b"1 of 1 pairs left out\n"), none.stderr


def test_what_cannot_be_evaluated_is_one_line_and_exit_code_2(folder, tmp_path):
    (tmp_path / "empty.tsv").write_text("\n")
    for arguments, message in (
        (["evaluate", folder, tmp_path / "empty.tsv"], "empty.tsv: no pairs to evaluate on"),
        (["evaluate", folder, "--limit", 3], "--limit applies to a corpus, but none is named"),
        (["evaluate", folder, tmp_path / "empty.tsv", "--bleu-tokenizer", "13b"], "did you mean '13a'"),
        (["evaluate", tmp_path], "not a run folder"),
    ):
        done = seq2seq(*arguments, cwd=folder.parent.parent)
        assert done.returncode == 2 and done.stdout == b"", done.stderr
        assert message in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_compare_tests_any_number_of_runs_on_a_corpus(home):
    runs = ["runs/toy", "runs/larger", "runs/toy"]
    (home / "test.tsv").write_text("x\tdd\tDD\nx\txy\tXY\nx\tij\tIJ\nx\tdd\tDd\n")
    done = seq2seq("compare", *runs, "test.tsv", "--json", "--columns", "2,3", cwd=home)
    found = json.loads(done.stdout)
    assert (found["sources"], found["runs"]) == (3, runs)
    assert all(len(row) == 3 and row[0] == row[2] and row[0]["p"] == 1 for row in found["scores"].values())
    learned = "runs/toy: trained on 1 of the 3 sources", "runs/larger: trained on 2 of the 3 sources"
    assert done.stderr.decode().splitlines()[:3] == [*learned, learned[0]]
    # The table of nine runs.
    tested = {name: [evaluation.Tested(**one) for one in row] * 3 for name, row in found["scores"].items()}
    references = [["DD", "Dd"], ["XY"], ["IJ"]]
    sources = evaluation.Evaluation(["dd", "xy", "ij"], references, [], [], {}, 0.0, 1.0, 0.0, "13a")
    lines = comparison_text(runs * 3, sources, tested).splitlines()
    assert lines[0] == "3 sources, 4 references" and lines[3] == "run 2  runs/larger"
    measures = [line.split()[0] for line in lines if re.match(r"exact|CER|WER|chrF|TER|BLEU ", line)]
    assert measures[:6] == ["exact", "CER", "WER", "chrF", "TER", "BLEU"]  # for references of one word
    assert lines[-1].startswith("BLEU counts n-grams of up to four words")
    assert max(map(len, lines)) <= 80
    score, p = ([f"{getattr(one, kind):.{digits}f}" for one in tested["chrF"]] for kind, digits in _FORMATS)
    assert [line.split()[1:] for line in lines if line.startswith("chrF")] == [
        score[:8],
        p[1:8],
        [score[0], score[8]],
        p[8:],
    ]


_FORMATS = (("score", 1), ("p", 3))


def test_pairs_are_read_as_for_the_first_run_and_this_is_said_of_runs_that_read_otherwise(home, tmp_path):
    shutil.copytree(home / "runs" / "toy", tmp_path / "reversed")
    record = json.loads((tmp_path / "reversed" / "config.json").read_text())
    record["options"]["reverse"] = True
    (tmp_path / "reversed" / "config.json").write_text(json.dumps(record))
    (tmp_path / "test.tsv").write_text("xy\tXY\n")
    runs = [home / "runs" / "toy", tmp_path / "reversed"]
    said = f"{runs[1]} was trained with other --columns or --reverse than {runs[0]}; pairs are read as for the latter\n"
    for command in ("compare", "evaluate"):
        assert said in seq2seq(command, *runs, tmp_path / "test.tsv").stderr.decode()
    assert said not in seq2seq("compare", *runs, tmp_path / "test.tsv", "--columns", "1,2").stderr.decode()


def test_compare_without_a_corpus_wants_sources_that_all_runs_have_held_out(home):
    done = seq2seq("compare", "runs/toy", "runs/toy", "--json", cwd=home)
    assert json.loads(done.stdout)["scores"]["chrF"][1]["p"] == 1 and done.stderr == b""
    refused = seq2seq("compare", "runs/toy", "runs/larger", cwd=home)
    assert refused.returncode == 2 and refused.stdout == b"" and refused.stderr.count(b"\n") == 1
    said = rb"runs/larger was trained on (\d+) of the \1 sources that runs/toy has held out; name a test corpus: "
    assert re.search(said + b"seq2seq compare runs/toy runs/larger CORPUS", refused.stderr)
    (home / "larger.tsv").rename(home / "away.tsv")
    (home / "test.tsv").write_text("ab\tAB\n")
    refused = seq2seq("compare", "runs/toy", "runs/larger", cwd=home)
    named = seq2seq("compare", "runs/toy", "runs/larger", "test.tsv", cwd=home)
    (home / "away.tsv").rename(home / "larger.tsv")
    assert refused.returncode == 2 and b"larger.tsv: No such file" in refused.stderr
    assert named.returncode == 0 and b"runs/larger: cannot tell which of the sources it was trained on" in named.stderr


def test_a_run_is_not_evaluated_on_a_corpus_that_has_changed(home, tmp_path):
    moved = shutil.copytree(home, tmp_path / "moved")
    record = json.loads((moved / "runs/toy/config.json").read_text()) | {"directory": str(moved)}
    (moved / "runs/toy/config.json").write_text(json.dumps(record))
    lines = (moved / "toy.tsv").read_text().splitlines(keepends=True)
    (moved / "toy.tsv").write_text("".join(reversed(lines)))
    done = seq2seq("evaluate", "runs/toy", cwd=moved)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert b"toy.tsv: changed since the run was trained on" in done.stderr


def test_evaluate_says_what_of_the_held_out_side_was_learned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text("".join(f"{c}\t{c}\n" for c in "abcdefgh") + "a\tA\nx\tX\n")
    make_run(tmp_path / "run", "pairs.tsv", split="last", validation_fraction=0.2, monitor="val_loss")
    done = seq2seq("evaluate", "run", "--json", cwd=tmp_path)
    said = b"run: its epoch was chosen on this set, by val_loss, so its scores are slightly optimistic\n"
    assert done.stderr.startswith(said + b"run: trained on 1 of the 2 sources\n"), done.stderr
    done = seq2seq("evaluate", "run", "pairs.tsv", "--json", cwd=tmp_path)
    assert done.returncode == 0 and said not in done.stderr
    record = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps(record | {"averaged": {"run": "other", "epochs": [1, 2]}}))
    done = seq2seq("evaluate", "run", "--json", cwd=tmp_path)
    assert done.stderr.startswith(b"run: trained on 1 of the 2 sources\n")  # no epoch of an average was chosen


def test_a_run_is_evaluated_on_the_other_corpus_that_it_has_held_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, lines in (("train", "ab\tAB\ncd\tCD\n"), ("dev", "ab\tAB\nxy\tXY\n"), ("more", "zz\tZZ\n")):
        (tmp_path / f"{name}.tsv").write_text(lines)
    make_run(tmp_path / "run", "train.tsv", validation=["dev.tsv", "more.tsv"], monitor="val_loss")
    for corpus, chosen in (("dev.tsv", True), ("train.tsv", False)):
        done = seq2seq("evaluate", "run", corpus, cwd=tmp_path)
        assert (b"run: its epoch was chosen on this set, by val_loss" in done.stderr) == chosen
    done = seq2seq("evaluate", "run", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["sources"] == 3
    said = b"run: its epoch was chosen on this set, by val_loss, so its scores are slightly optimistic\n"
    assert done.stderr.startswith(said + b"run: trained on 1 of the 3 sources\n")
    (tmp_path / "dev.tsv").write_text("ab\tAC\n")
    done = seq2seq("train", "--config", "run/config.json", "--out", "again", cwd=tmp_path)
    assert done.returncode == 2 and b"dev.tsv: changed since the run was validated on" in done.stderr
