import json
import shutil
from pathlib import Path

import pytest
from command_line import in_process as seq2seq

from seq2seq import BeamSearch, runs
from seq2seq.records import read_record

pytestmark = pytest.mark.slow


def test_pictures_are_made_by_train_and_again_by_plot(toy_run):
    folder, _ = toy_run
    first = (folder / "curves.png").read_bytes()
    (folder / "curves.png").unlink()
    done = seq2seq("plot", folder, cwd=folder.parent.parent)
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.decode().splitlines()]
    assert {"curves.png", "error-rates.png", "attention-1.png"} <= {path.name for path in paths}
    assert all(path.is_file() for path in paths) and (folder / "curves.png").read_bytes() == first


def test_of_a_corpus_that_has_changed_plot_draws_the_curves(toy_run, tmp_path):
    run = shutil.copytree(toy_run[0], tmp_path / "run")
    record = json.loads((run / "config.json").read_text()) | {"directory": str(tmp_path)}
    (run / "config.json").write_text(json.dumps(record))
    (tmp_path / "toy.tsv").write_text("x\tX\n")
    done = seq2seq("plot", "run", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (0, b"run/curves.png\n", 1)
    assert b"toy.tsv: changed since the run was trained on" in done.stderr
    assert seq2seq("plot", tmp_path).returncode == 2


OWN_SEARCH = """
import dataclasses
from seq2seq import BeamSearch

@dataclasses.dataclass(frozen=True)
class Mine(BeamSearch):
    spread: tuple = ()
"""


def test_every_command_that_searches_takes_a_strategy_by_name(toy_run, tmp_path, monkeypatch):
    folder, _ = toy_run
    (tmp_path / "own.py").write_text(OWN_SEARCH)
    (tmp_path / "test.tsv").write_text("ab\tAB\ncd\tCD\n")
    search = ["--search", "own:Mine", "--set", "width=3", "--set", "n-best=2", "--set", "spread=[1, 2]"]
    beam = ["--beam-width", 3, "--n-best", 2]
    own, usual = (
        seq2seq("translate", folder, "ab", "cd", *how, cwd=tmp_path) for how in ([*search, "--seed", 3], beam)
    )
    assert own.returncode == 0 and own.stdout == usual.stdout and own.stdout.count(b"\n") == 4, own.stderr
    one, other = (
        json.loads(seq2seq("evaluate", folder, "test.tsv", "--json", *how, cwd=tmp_path).stdout)
        for how in (search, ["--beam-width", 3])
    )
    assert one["scores"] == other["scores"]
    for command in (["evaluate", folder], ["compare", folder, folder]):
        done = seq2seq(*command, "test.tsv", "--search", "own:Mine", "--beam-width", 3, cwd=tmp_path)
        assert done.returncode == 2 and b"--search and --beam-width cannot be combined" in done.stderr
    exported = []
    monkeypatch.setattr(runs, "export_runs", lambda *arguments, **options: exported.append((*arguments, options)))
    assert seq2seq("export", folder, "saved", *search, cwd=tmp_path).returncode == 0
    folders, out, form, options = exported[0]
    assert (folders, out, form) == ([folder], Path("saved"), "tf_saved_model")
    own = options["search"]
    assert (type(own).__name__, own.width, own.n_best, own.spread) == ("Mine", 3, 2, (1, 2))
    assert seq2seq("export", folder, "saved", "--beam-width", 3, cwd=tmp_path).returncode == 0
    assert exported[1][3] == {"beam": BeamSearch(3, n_best=3), "search": None}
    assert seq2seq("export", folder, "saved", "--length-penalty", 0, cwd=tmp_path).returncode == 0
    assert exported[2][3] == {"beam": BeamSearch(5, n_best=5, length_penalty=0.0), "search": None}
    for command in (["export", folder, "other"], ["demo", folder, "--port", 0]):
        done = seq2seq(*command, "--search", "own:Mine", "--set", "wide=3", cwd=tmp_path)
        assert done.returncode == 2 and b"set='wide': expected 'width'" in done.stderr, done.stderr
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_asked_of_export_average_and_demo_exits_2(untrained, tmp_path):
    export, demo, average = ["export", untrained, "x"], ["demo", untrained, "--port", 0], ["average", untrained]
    alone = "--set width=3: applies to the strategy that --search names, but --search is not given"
    for command, message in (
        ([*export, "--set", "width=3"], alone),
        ([*demo, "--set", "width=3"], alone),
        ([*export, "--format", "onnx", "--set", "width=3"], "--set: applies only to --format savedmodel"),
        ([*export, "--format", "web", "--length-penalty", 0], "--length-penalty: applies only to --format savedmodel"),
        ([*export, "--import", "nowhere:Class"], "import='nowhere:Class': no module 'nowhere'"),
        ([*average, "--out", "x", "--import", "nowhere:Class"], "import='nowhere:Class': no module 'nowhere'"),
        ([*average, "--out", "x"], "has kept the models of 0 epochs; train with --keep-epochs 5"),
    ):
        done = seq2seq(*command, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, b"") and message in done.stderr.decode(), done.stderr
    assert not list(tmp_path.iterdir())


def test_average_makes_a_run_of_as_many_of_the_last_epochs_as_are_asked_for(untrained, tmp_path):
    run = shutil.copytree(untrained, tmp_path / "run")
    (run / "epochs").mkdir()
    for number in (1, 2, 3):
        shutil.copy(run / "model.keras", run / "epochs" / f"epoch-{number:04}.keras")
    for name, content in (("history.csv", "epoch\n"), ("survey.json", "{}"), ("probe.json", '{"a": ""}')):
        (run / name).write_text(content)
    done = seq2seq("average", "run", "--last", 2, "--out", "mean", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"mean\n"), done.stderr
    assert read_record(tmp_path / "mean").content["averaged"]["epochs"] == [2, 3]
