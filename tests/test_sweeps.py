import json
import os
import re
import signal
import subprocess
import time

import numpy as np
import optuna
import pytest
from command_line import SEQ2SEQ, seq2seq
from conftest import GRID, SMALL
from optuna.storages.journal import JournalFileBackend, JournalStorage

from pipelines import OptionError
from seq2seq import sweep, table
from seq2seq.config import Config
from seq2seq.records import RunError, finished
from seq2seq.runs import load_run
from seq2seq.sweeps import (
    Range,
    _as_fields,
    _as_floats,
    _distribution,
    _folder_name,
    _refuse_another,
    _Runs,
    _search,
    _settings,
    _suggested,
    finished_as,
    read_grid,
)


def as_arguments(options):
    """Options as `seq2seq train` and `sweep` take them."""
    for name, value in options.items():
        flag = name.replace("_", "-")
        yield from [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]


AS_ARGUMENTS = list(as_arguments(SMALL))
COMMAND = ["sweep", "pairs.tsv", "--grid", "units=8,4", *AS_ARGUMENTS]


def runs_in(folder):
    """The finished runs of a sweep, by their names."""
    found = [path.parent for path in sorted(folder.glob("*/seed-*/model.keras"))]
    return {str(run.relative_to(folder)): run for run in found if finished(run)}


def in_first_epoch(folder):
    """The runs of a sweep that have begun to train and are far from their end."""
    begun = [path.parent.parent for path in folder.glob("*/seed-*/unfinished/begun.keras")]
    return [run for run in begun if not (run / "history.csv").exists()]


@pytest.fixture
def home(swept, monkeypatch):
    """The folder in which the sweep was made, to work in."""
    monkeypatch.chdir(swept[0].parent)
    return swept[0].parent


@pytest.mark.slow
def test_a_sweep_trains_each_setting_with_each_seed_and_says_how_each_went(swept):
    folder, results, said = swept
    names = [f"units={units}/seed-{n}" for units in (8, 4) for n in (0, 1)]
    assert [str(run.relative_to(folder)) for run in results] == names
    assert set(results.values()) == {None} and sorted(runs_in(folder)) == sorted(names)
    config = json.loads((folder / names[-1] / "config.json").read_text())["options"]
    assert (config["units"], config["seed"], config["cell"]) == (4, 1, "gru")
    assert [line for line in said if line.endswith("  starts")] == [f"{name}  starts" for name in names]
    ends = [re.fullmatch(r"(\d) of 4: (\S+)  val_loss \d.*val_accuracy \d.*  [\d.]+ s", line) for line in said]
    assert [int(end[1]) for end in ends if end] == [1, 2, 3, 4]
    assert sorted(end[2] for end in ends if end) == sorted(names)


@pytest.fixture
def one_core():
    """Give this thread and the processes that it starts one core, which each of the `swept` runs had."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.slow
def test_a_sweep_that_was_told_to_end_and_one_that_was_killed_come_to_the_same_weights(home, swept, one_core):
    out = home / "killed"
    kept = {}
    for count, number, code in ((0, signal.SIGTERM, 143), (1, signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen([SEQ2SEQ, *COMMAND, "--out", out], cwd=home) as process:
            while len(runs_in(out)) < count or not (early := in_first_epoch(out)):
                time.sleep(0.05)
                assert process.poll() is None
            process.send_signal(number)
        assert process.returncode == code
        assert early
        kept |= {run: (run / "model.keras").stat().st_mtime_ns for run in runs_in(out).values()}
    assert len(kept) == 1
    done = seq2seq(*COMMAND, "--out", out, cwd=home)
    assert done.returncode == 0, done.stderr.decode()
    assert {run: (run / "model.keras").stat().st_mtime_ns for run in kept} == kept  # they were not trained again
    assert len(runs_in(out)) == 2
    for units in ("units=8", "units=4"):
        runs = swept[0] / units / "seed-0", out / units / "seed-0"
        for one, other in zip(*(load_run(run).get_weights() for run in runs), strict=True):
            np.testing.assert_array_equal(one, other, units)
    assert done.stdout.decode() == table(out).text() + "\n"
    assert done.stderr.decode().splitlines()[-1] == str(out) and "starts" in done.stderr.decode()


@pytest.mark.slow
def test_another_sweep_in_the_folder_is_refused_and_says_what_differs(home, swept):
    folder, *_ = swept
    other = {**SMALL, "cell": "lstm"}
    for arguments, options, message in (
        ({"grid": GRID | {"layers": [1, 2]}}, SMALL, r"grid layers None, not \[1, 2\]"),
        ({"grid": GRID | {"units": [8, 16]}}, SMALL, r"grid units \[8, 4\], not \[8, 16\]"),
        ({"grid": GRID}, other, "options cell gru, not lstm"),
        ({"grid": GRID}, SMALL | {"layers": 2}, "options layers None, not 2"),
        ({"grid": GRID, "seeds": 1}, SMALL, "seeds 2, not 1"),
        ({"grid": GRID, "trials": 3}, SMALL, "trials None, not 3"),
    ):
        with pytest.raises(RunError, match=f"holds another sweep .*{message}"):
            sweep("pairs.tsv", folder, **{"seeds": 2, **arguments}, options=options)
    with pytest.raises(RunError, match=r"swept/units=4 is not empty and holds no sweep"):
        sweep("pairs.tsv", folder / "units=4", GRID, options=SMALL)


def test_values_in_place_of_a_range_are_another_sweep(tmp_path):
    record = {"preset": None, "seeds": 1, "options": {}, "checksums": {}}
    was = record | {"trials": 2, "grid": {"learning_rate": {"low": 1e-4, "high": 1e-2}}}
    (tmp_path / "sweep.json").write_text(json.dumps(was))
    with pytest.raises(RunError, match=r"holds another sweep .*grid learning_rate .*, not \[0.001\]"):
        _refuse_another(tmp_path, record | {"trials": None, "grid": {"learning_rate": [0.001]}})


@pytest.mark.slow
def test_a_run_that_fails_is_reported_and_others_go_on_and_later_values_are_added(home):
    arguments = ["sweep", "pairs.tsv", *AS_ARGUMENTS, "--optimizer", "sgd", "--clip-norm", "none"]
    arguments += ["--schedule", "constant", "--units", "4", "--jobs", "2", "--out", "failing", "--grid"]
    done = seq2seq(*arguments, "learning_rate=1e38,0.01", cwd=home)
    assert done.returncode == 1
    assert re.search(
        r"learning_rate=1e\+38/seed-0  DivergedError: epoch \d, .*; see failing/learn", done.stderr.decode()
    )
    assert "learning_rate=1e+38/seed-0: unfinished, left out" in done.stderr.decode()
    assert "Traceback" in (home / "failing" / "learning_rate=1e+38" / "seed-0.log").read_text()
    assert done.stdout.decode().splitlines()[1].startswith("learning_rate=0.01      1  ")
    kept = (home / "failing" / "learning_rate=0.01" / "seed-0" / "model.keras").stat().st_mtime_ns
    done = seq2seq(*arguments, "learning_rate=1e38,0.01,0.02", cwd=home)
    assert done.returncode == 1 and b"Runs that are already finished: 1\n" in done.stderr
    assert (home / "failing" / "learning_rate=0.01" / "seed-0" / "model.keras").stat().st_mtime_ns == kept
    assert [line.split()[0] for line in done.stdout.decode().splitlines()[1:3]] == [
        "learning_rate=0.01",
        "learning_rate=0.02",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "options", "trials", "message"),
    [
        ({"unit": [1, 2]}, {}, None, "option='unit': neither Config .*; did you mean 'units'?"),
        ({"layers": [1, 2]}, {"unit": 1}, None, "option='unit': neither Config .*; did you mean 'units'?"),
        ({"units": "8,x"}, {}, None, "units='x': expected a whole number, at least 1"),
        ({"limit": [9, 20]}, {"monitor": "val_chrf"}, 2, "trials: limit changes the held-out set; set it for all runs"),
        ({"units": [8]}, {"units": 4}, None, "grid=units: is already set, for all runs"),
        ({"units": "8..16"}, {}, None, "grid=units=8..16: only a search takes ranges; add --trials"),
        ({"seed": [1, 2]}, {}, None, "seed: cannot be set .*; seeds are 0, 1 and so on; give their number"),
        ({}, {}, 3, "trials: nothing to search"),
        (
            {"label_smoothing": [0, 0.1]},
            {},
            3,
            "monitor='val_loss': not comparable between different values of label_smoothing",
        ),
        ({"gamma": [0, 2]}, {"loss": "a:B"}, 3, "monitor='val_loss': not comparable between different values of gamma"),
        (
            {"target_tokenizer": ["char", "byte"]},
            {},
            3,
            "monitor='val_loss': not comparable between different values of target_tok",
        ),
        ({"cell": ["gru", "lstn"]}, {}, None, "cell='lstn': expected .*; did you mean 'lstm'"),
        ({"units": "256..16"}, {}, 3, r"grid=units=256..16: expected two numbers, the lower one first"),
        ({"teacher_forcing": "0.5..1"}, {}, 3, r"grid=teacher_forcing=.*: expected two numbers"),
        ({"cell": ["gru", "gru"]}, {}, None, "grid=cell: has the same value twice"),
        ({"dropout": [0, 0.0]}, {}, None, "grid=dropout: has the same value twice"),
        (
            {"architecture": ["recurrent", "transformer"]},
            {"attention": "dot"},
            None,
            "attention: neither Transformer",
        ),
    ],
    ids=str,
)
def test_a_wrong_option_of_any_setting_is_found_before_the_first_training(home, grid, options, trials, message):
    with pytest.raises(OptionError, match=message):
        sweep("pairs.tsv", "refused", grid, options=options, trials=trials)
    assert not (home / "refused").exists()


@pytest.mark.slow
def test_the_command_refuses_an_option_that_is_named_twice(home):
    done = seq2seq("sweep", "pairs.tsv", "--grid", "units=8", "--grid", "units=4", "--out", "refused", cwd=home)
    assert (done.returncode, done.stdout) == (2, b"") and not (home / "refused").exists()
    assert done.stderr.startswith(b"seq2seq: grid: an option is named twice"), done.stderr.decode()


def test_grids_are_read_as_they_are_written():
    assert read_grid("learning-rate=1e-3,3e-3") == ("learning_rate", (0.001, 0.003))
    assert read_grid("teacher_forcing=1;1,0.5") == ("teacher_forcing", ((1.0,), (1.0, 0.5)))
    assert read_grid("attention=none,dot") == ("attention", (None, "dot"))
    assert read_grid("kernel=[3,5],[7]") == ("kernel", ((3, 5), (7,)))
    assert read_grid("learning_rate=1e-4..1e-2") == ("learning_rate", Range(1e-4, 1e-2))
    assert read_grid("units=16..256") == ("units", Range(16, 256))
    with pytest.raises(OptionError, match=r"expected NAME=VALUE,VALUE"):
        read_grid("units")


def test_numbers_from_python_are_those_of_the_configuration():
    assert repr(_as_floats("dropout", (0, 0.5))) == "[0.0, 0.5]" and repr(_as_floats("units", (8, 16))) == "(8, 16)"
    assert repr(_as_floats("clip_norm", Range(1, 4))) == "Range(low=1.0, high=4.0)"  # also the numbers between
    assert repr(_as_floats("teacher_forcing", [(1, 0.5), None])) == "[[1.0, 0.5], None]"
    assert repr(_as_floats("kernel", (3, 5))) == "(3, 5)" and _as_floats("dropout", (10**400,)) == [10**400]


@pytest.mark.slow
def test_a_search_that_was_interrupted_tries_the_settings_that_it_would_have_tried(home):
    grid = {"units": "4..8", "learning_rate": "1e-4..1e-2", "average": [1, 2]}
    options = {**SMALL, "monitor": "val_accuracy"}
    sweep("pairs.tsv", home / "search", grid, trials=2, options=options)
    tried = [
        path.parent.name
        for path in sorted((home / "search").glob("*/seed-0.log"), key=lambda path: path.stat().st_ctime)
    ]
    assert len(tried) == 2
    for name in tried:
        rate, units = re.fullmatch(r"average=[12],learning_rate=([\d.e-]+),units=(\d)", name).groups()
        assert 1e-4 <= float(rate) <= 1e-2 and 4 <= int(units) <= 8

    def interrupt(line):
        if line.startswith(f"{tried[1]}/seed-0  starts"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep("pairs.tsv", home / "again", grid, trials=2, options=options, say=interrupt)
    assert len(runs_in(home / "again")) == 1
    said = []
    sweep("pairs.tsv", home / "again", grid, trials=2, options=options, say=said.append)
    assert list(runs_in(home / "again")) == [f"{name}/seed-0" for name in sorted(tried)]
    assert sum(line.endswith("starts") for line in said) == 1
    for name in runs_in(home / "again"):
        assert (home / "again" / name / "history.csv").read_text() == (
            home / "search" / name / "history.csv"
        ).read_text()
    assert "learning_rate=" in table(home / "again").text()


@pytest.mark.parametrize("name", ["seeds", "trials", "jobs"])
def test_a_number_of_runs_below_one_is_refused(tmp_path, name):
    with pytest.raises(OptionError, match=f"{name}=0: expected a whole number, at least 1"):
        sweep("pairs.tsv", tmp_path / "refused", {"units": [8]}, **{name: 0})
    assert not (tmp_path / "refused").exists()


def test_a_search_checks_each_value_once_and_a_grid_each_combination():
    values = {"cell": ["gru", "lstm"], "units": Range(8, 16), "layers": [1, 2, 3]}
    checked = _settings(values, trials=5)
    assert len(checked) == 1 + 1 + 1 + 2 and checked[0] == {"cell": "gru", "units": 8, "layers": 1}
    assert all(sum(of[name] != checked[0][name] for name in of) == 1 for of in checked[1:])
    assert len(_settings({"cell": ["gru", "lstm"], "layers": [1, 2, 3]}, trials=None)) == 6


@pytest.mark.slow
def test_a_search_goes_on_after_a_combination_that_is_refused(home, monkeypatch):
    grid = {"schedule": ["cosine", "inverse_sqrt"], "warmup": [5, 0]}
    monkeypatch.setattr("seq2seq.sweeps._suggested", lambda *_: {"schedule": "inverse_sqrt", "warmup": 0})
    options = {name: value for name, value in SMALL.items() if name not in grid}
    for trials in (1, 2):  # one that was refused is not tried again
        said = []
        results = sweep("pairs.tsv", home / "refusing", grid, trials=trials, options=options, say=said.append)
        assert [type(error) for error in results.values()] == [OptionError]
        (line,) = said
        assert line.startswith("schedule=inverse_sqrt,warmup=0/seed-0  schedule='inverse_sqrt' and warmup=0 cannot be")


class Untrained(_Runs):
    """Runs that are not trained: the figure of each is its number of units plus its seed."""

    asked = ()  # how many settings each call was given

    def train(self, settings):
        self.asked = *self.asked, len(settings)
        monitor = self.given.get("monitor", "val_loss")
        for setting in settings:
            for seed, folder in enumerate(self.folders(setting)):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "history.csv").write_text(f"epoch,{monitor}\n1,{setting['units'] + seed}\n")
                record = {"options": {"monitor": monitor}, "plan": {}, "training": {}}
                (folder / "config.json").write_text(json.dumps(record))
                self.results[folder] = None


@pytest.mark.parametrize(("given", "goal"), [({"monitor": "val_accuracy"}, "MAXIMIZE"), ({}, "MINIMIZE")], ids=str)
def test_a_search_looks_for_the_best_mean_over_seeds_as_often_as_it_is_told(tmp_path, given, goal):
    values = {"units": Range(4, 1000)}
    first, more = (Untrained(tmp_path, given, "default", 2, 0, 4, (), None, None) for _ in range(2))
    _search(first, values, 3)
    assert first.asked == (2, 1)  # two settings of two seeds are four jobs
    _search(more, values, 4)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "trials.log")))
    study = optuna.load_study(study_name="sweep", storage=storage)
    assert more.asked == (1,) and study.direction.name == goal
    units = [trial.params["units"] for trial in study.trials]
    assert [trial.value for trial in study.trials] == [number + 0.5 for number in units] and len(set(units)) == 4


def test_a_setting_without_a_finite_figure_is_none_that_a_search_follows(tmp_path):
    runs = Untrained(tmp_path, {}, "default", 1, 0, 1, (), None, None)
    _search(runs, {"units": [np.inf, 4]}, 3)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "trials.log")))
    trials = optuna.load_study(study_name="sweep", storage=storage).trials
    assert {(trial.params["units"], trial.state.name) for trial in trials} <= {(0, "FAIL"), (1, "COMPLETE")}
    assert len(trials) == 3


def test_a_search_draws_numbers_of_the_kind_and_on_the_scale_of_their_range():
    ends = (1, 10), (1, 9), (0, 10), (-5, 5), (1e-4, 1e-3), (1, 10.0)
    found = [_distribution(Range(*each)) for each in ends]
    assert [each.log for each in found] == [True, False, False, False, True, True]
    assert [type(each).__name__[:3] for each in found] == ["Int"] * 4 + ["Flo"] * 2


def test_a_number_that_a_search_has_drawn_is_rounded_within_its_range():
    values = {"rate": Range(0.00012344, 0.00098766), "units": Range(4, 8), "cell": ["gru", "lstm"]}
    for rate, rounded in ((0.00012344, 0.00012344), (0.00098766, 0.00098766), (0.00023456, 0.0002346)):
        found = _suggested(values, {"rate": rate, "units": 5, "cell": 1})
        assert found == {"rate": rounded, "units": 5, "cell": "lstm"}


def test_a_setting_has_one_folder_of_its_own_whatever_is_in_it():
    assert _folder_name({"units": 8, "layers": 2}) == _folder_name({"layers": 2, "units": 8}) == "layers=2,units=8"
    names = [_folder_name({"note": text}) for text in ("a/b", "a b", "a_b", "x" * 300, "x" * 301)]
    assert len(set(names)) == 5 and all(re.fullmatch(r"[\w.,=+-]{1,160}", name) for name in names)


def test_a_search_may_have_more_trials_later_but_no_other_seeds_or_values(tmp_path):
    record = {"preset": None, "seeds": 2, "trials": 3, "options": {}, "checksums": {}, "grid": {"units": [4, 8]}}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    _refuse_another(tmp_path, record | {"trials": 5})
    for change in ({"trials": 2}, {"seeds": 3}, {"grid": {"units": [4, 8, 16]}}):
        with pytest.raises(RunError, match="holds another sweep"):
            _refuse_another(tmp_path, record | change)


def test_a_run_with_other_options_is_not_taken_for_a_finished_one(tmp_path):
    record = {"options": {"units": 8}, "plan": {}}
    for content, ended in ((record, False), (record | {"training": {}}, True)):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert finished_as(tmp_path, Config(units=8)) is ended
        with pytest.raises(RunError, match="has units=8; choose another --out, or delete that run"):
            finished_as(tmp_path, Config(units=4))
    assert not finished_as(tmp_path / "none", Config())


def test_an_option_of_a_custom_class_joins_those_of_all_runs():
    options = {"units": 8, "own": {"gamma": 2}, "size": 3}
    assert _as_fields(options) == {"units": 8, "own": {"gamma": 2, "size": 3}}
    assert _as_fields({"own": None}) == {"own": None}
