import dataclasses
import re

from command_line import in_process as seq2seq

from seq2seq import BeamSearch
from seq2seq.commands.options import read_settings, search_strategy
from seq2seq.config import Config


def test_every_option_of_a_configuration_is_one_of_the_command_line_with_its_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(seq2seq("train", "--help").stdout.decode().split())
    for field in dataclasses.fields(Config):
        if field.name != "corpus":
            flag = field.metadata.get("flag") or "--" + field.name.replace("_", "-")
            assert f"{flag} " in shown
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                own = re.split(r" --[a-z-]+ <", shown.partition(f"{flag} <")[2])[0]
                assert re.search(r"Default: (\S+)\.(?: |$)", own)[1] == str(field.default), flag
    for flag in ("--limit", "--patience", "--max-ratio"):
        assert "Default: none." in re.split(r" --[a-z-]+ <", shown.partition(f"{flag} <")[2])[0]


def test_settings_of_a_strategy_are_not_those_of_a_configuration():
    assert read_settings(["weights=0.5", "corpus=x", "limit=0.5"]) == {"weights": 0.5, "corpus": "x", "limit": 0.5}
    assert read_settings(["weights=0.5", "weights=0.5"]) == {"weights": 0.5}  # twice the same


def test_a_beam_is_as_wide_as_the_best_that_are_asked_for_and_at_least_five():
    for count in (2, 7):
        assert search_strategy(None, None, n_best=count) == BeamSearch(max(5, count), n_best=count)
    assert search_strategy(None, None, length_penalty=0.0) == BeamSearch(5, length_penalty=0.0)


def test_options_of_a_configuration_are_not_set_like_those_of_custom_classes(tmp_path):
    for command in ("train", "sweep"):
        for setting, flag in (("units=8", "--units"), ("warm_start=runs/x", "--from")):
            done = seq2seq(command, "--set", setting, "--out", tmp_path / "out")
            said = f"seq2seq: --set {setting}: not an option of a custom class; write {flag}\n"
            assert (done.returncode, done.stderr.decode()) == (2, said)
    done = seq2seq("sweep", "--set", "kernel=5", "--out", tmp_path / "out")
    assert done.returncode == 2 and b"option='kernel': neither Config nor a class that is named here" in done.stderr
    done = seq2seq("sweep", "--seed", "3", "--out", tmp_path / "out")
    assert done.returncode == 2 and b"No such option: --seed" in done.stderr and b"--seeds" in done.stderr
