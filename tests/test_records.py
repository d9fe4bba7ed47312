import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from pipelines import CorpusError, OptionError, checksums
from seq2seq.config import Config
from seq2seq.records import Record, RunError, check_finished, finished, read_history, read_record


def test_options_stand_in_json_and_come_back(tmp_path):
    config = Config(("a", "b"), columns=(1, 3), weights=(1.0, 2.0), teacher_forcing=(1.0, 0.5), attention=None)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"options": dataclasses.asdict(config), "command": "seq2seq train"}))
    record = read_record(path)
    assert record.config == config and record.content["command"] == "seq2seq train"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"options": 3}', '{"options": {"unit": 3}}'])
def test_what_is_no_configuration_is_refused_by_name(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=r"config\.json"):
        read_record(path)
    with pytest.raises(OptionError, match="none: no such run folder or configuration"):
        read_record(tmp_path / "none")
    path.unlink()
    with pytest.raises(OptionError, match=f"^{tmp_path}: has no config.json"):
        read_record(tmp_path)


def test_a_configuration_nested_too_deep_is_no_configuration(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(OptionError, match=r"config\.json: not the configuration of a run \(RecursionError"):
        read_record(tmp_path)


def test_parts_of_a_corpus_are_found_by_what_they_hold(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("parts").mkdir()
    for side in (0, 1):
        texts = [line.split("\t")[side] for line in Path(config.corpus).read_text().splitlines()]
        Path(f"toy.{'ab'[side]}").write_text("".join(f"{text}\n" for text in texts))
    shutil.copy(config.corpus, "parts/1.tsv")
    corpus = ("toy.a+toy.b", "parts", "phrasebook", config.corpus)
    content = {"options": {"corpus": corpus}, "checksums": checksums(corpus), "directory": str(tmp_path)}
    record = Record(content)
    assert record.find_corpus() == corpus
    monkeypatch.chdir("parts")
    found = (f"{tmp_path}/toy.a+{tmp_path}/toy.b", f"{tmp_path}/parts", "phrasebook", config.corpus)
    assert record.find_corpus() == found
    content["checksums"] = {f"elsewhere/{path}": digest for path, digest in content["checksums"].items()}
    assert record.find_corpus() == found  # as where the package has been installed anew
    Path("2.tsv").write_text("one\tmore\n")
    with pytest.raises(CorpusError, match=re.escape(f"{tmp_path}/parts/2.tsv: changed since")):
        record.find_corpus()


def test_a_corpus_whose_files_come_in_another_order_is_another_corpus(tsv):
    paths = [str(tsv(f"{name}\tx\n", f"{name}.tsv")) for name in "ab"]
    record = Record({"options": {"corpus": paths}, "checksums": checksums(paths)})
    assert record.changed_files(paths) == [] and record.changed_files(paths[::-1]) == paths[::-1]


def test_only_a_hash_split_of_one_corpus_keeps_what_is_held_out_from_training():
    for more, options, may in (
        ({}, {}, False),
        ({}, {"split": "last"}, True),
        ({}, {"validation": "dev.tsv"}, True),
        ({"from": {"options": {}}}, {}, True),
    ):
        assert Record({"options": options, **more}).may_have_learned == may


def test_a_run_folder_and_its_file_are_the_same_record(trained):
    assert read_record(trained.folder) == read_record(trained.folder / "config.json")


def test_the_figures_of_each_epoch_are_numbers(trained, tmp_path):
    history = read_history(trained.folder)
    with (trained.folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in history] == [1, 2]
    assert history == [{name: float(text) for name, text in row.items()} for row in rows]
    (tmp_path / "history.csv").write_text("epoch,loss,val_loss\n1,2.5,\n2,2,1\n")
    assert read_history(tmp_path) == [{"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": 2, "val_loss": 1}]
    for damaged in ("", "epoch,loss\n", "epoch,loss\n2,1\n", "epoch,loss\n1,x\n", "epoch\n1,2\n", "loss\n1\n"):
        (tmp_path / "history.csv").write_text(damaged)
        with pytest.raises(RunError, match=r"history\.csv: damaged, or not the history of a run"):
            read_history(tmp_path)
    with pytest.raises(RunError, match=r"none: has no history\.csv"):
        read_history(tmp_path / "none")


@pytest.mark.parametrize(
    "content",
    [
        {"checksums": []},
        {"directory": 5},
        {"from": 5},
        {"from": {"checksums": None}},
        {"training": []},
        {"options": []},
    ],
)
def test_a_record_with_parts_of_another_kind_is_refused_by_name(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps({"options": {}, **content}))
    with pytest.raises(OptionError, match=r"config\.json: not the configuration of a run \(TypeError: '\w+' is not a"):
        read_record(tmp_path)


def test_an_option_that_is_not_allowed_is_told_with_its_file(tmp_path):
    for content in ({"options": {"units": "x"}}, {"options": {}, "from": {"options": {"units": "x"}}}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(OptionError, match=r"config\.json: units='x': expected a whole number"):
            read_record(tmp_path)


def test_a_run_has_ended_if_its_record_says_so_and_nothing_is_made_of_another(tmp_path):
    (tmp_path / "model.keras").touch()
    assert finished(tmp_path) is None
    for content, ended in (
        ("{", None),
        ("[]", None),
        ('{"options": {}}', None),
        ('{"training": {}}', None),
        ('{"options": {}, "plan": {}}', False),
    ):
        (tmp_path / "config.json").write_text(content)
        assert finished(tmp_path) is ended
    with pytest.raises(RunError, match="holds part of a run, which cannot be resumed; --overwrite starts"):
        check_finished(tmp_path)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "begun.keras").touch()
    with pytest.raises(RunError, match=f"its training is unfinished; resume it with .* --out {tmp_path}"):
        check_finished(tmp_path)
    (tmp_path / "config.json").write_text('{"options": {}, "plan": {}, "training": {}}')
    assert finished(tmp_path) is True
    check_finished(tmp_path)
