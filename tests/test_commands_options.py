import dataclasses
import re

import pytest
from command_line import in_process as seq2seq

from seq2seq.commands.options import read_settings
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


@pytest.mark.parametrize("written", [["--epochs", "3"], ["--epochs=3"]])
def test_sweep_says_how_to_write_an_option_of_train(tmp_path, written):
    done = seq2seq("sweep", *written, "--out", tmp_path / "out")
    assert done.returncode == 2 and b"write --set epochs=VALUE, or --grid epochs=VALUES to vary it" in done.stderr


@pytest.mark.parametrize(("flag", "said"), [("--from", "--set warm_start=VALUE"), ("--seed", "--seeds NUMBER")])
def test_sweep_knows_the_flags_of_train_by_their_own_names(tmp_path, flag, said):
    done = seq2seq("sweep", flag, "3", "--out", tmp_path / "out")
    assert done.returncode == 2 and said in " ".join(done.stderr.decode().split())


def test_settings_of_a_strategy_are_not_those_of_a_configuration():
    assert read_settings(["weights=0.5", "corpus=x", "limit=0.5"]) == {"weights": 0.5, "corpus": "x", "limit": 0.5}
