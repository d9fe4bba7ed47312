import dataclasses

import pytest
from command_line import in_process as seq2seq

from seq2seq.config import Config


def test_every_option_of_a_configuration_is_one_of_the_command_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = seq2seq("train", "--help").stdout.decode()
    for field in dataclasses.fields(Config):
        if field.name != "corpus":
            assert f"{field.metadata.get('flag') or '--' + field.name.replace('_', '-')} " in shown


@pytest.mark.parametrize("written", [["--epochs", "3"], ["--epochs=3"]])
def test_sweep_says_how_to_write_an_option_of_train(tmp_path, written):
    done = seq2seq("sweep", *written, "--out", tmp_path / "out")
    assert done.returncode == 2 and b"write --set epochs=VALUE, or --grid epochs=VALUES to vary it" in done.stderr
