import dataclasses
import re

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


def test_settings_of_a_strategy_are_not_those_of_a_configuration():
    assert read_settings(["weights=0.5", "corpus=x", "limit=0.5"]) == {"weights": 0.5, "corpus": "x", "limit": 0.5}
