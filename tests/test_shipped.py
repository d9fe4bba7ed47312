"""The run that comes with the library, `phrasebook`: it translates without training, under its name alone."""

import json
from pathlib import Path

import pytest
from command_line import in_process as seq2seq

from seq2seq import load_run
from seq2seq.records import SHIPPED, RunError, find_run

SENTENCES = ["Good morning.", "Where is the station?", "My brother lives here."]
RIGHT = ["Buenos días.", "¿Dónde está la estación?", "Mi hermano vive aquí."]


def test_it_translates_from_python_and_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = load_run("phrasebook").translate(SENTENCES, "beam").numpy()
    assert [text.decode() for text in found] == RIGHT
    done = seq2seq("translate", "phrasebook", "--beam-width", "5", *SENTENCES, cwd=tmp_path)
    assert (done.returncode, done.stdout.decode().splitlines()) == (0, RIGHT)


@pytest.mark.slow
def test_the_other_commands_take_it_and_write_nothing_into_the_package(tmp_path):  # test_examples.py exports it
    before = sorted(path.name for path in SHIPPED["phrasebook"].iterdir())
    measured = seq2seq("evaluate", "phrasebook", "--json", cwd=tmp_path)
    assert measured.returncode == 0 and json.loads(measured.stdout)
    assert seq2seq("score", "phrasebook", stdin="Good morning.\tBuenos días.\n".encode(), cwd=tmp_path).returncode == 0
    drawn = seq2seq("plot", "phrasebook", cwd=tmp_path)
    assert drawn.returncode == 0 and (tmp_path / "phrasebook-pictures" / "attention-1.png").is_file()
    assert sorted(path.name for path in SHIPPED["phrasebook"].iterdir()) == before


def test_a_folder_of_that_name_comes_first_and_an_unknown_run_hints_at_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"nowhere: no such run folder.*the run `phrasebook` comes with the library"):
        load_run("nowhere")
    Path("phrasebook").mkdir()
    assert find_run("phrasebook") == Path("phrasebook")


def test_it_is_small_and_names_no_folder_of_a_machine():
    files = list(SHIPPED["phrasebook"].iterdir())
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert not any(part in (SHIPPED["phrasebook"] / "config.json").read_text() for part in ("/home", "/tmp", "/work"))
