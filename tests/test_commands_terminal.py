import itertools
import time
from pathlib import Path

import pytest
import typer
from command_line import in_process as seq2seq

from pipelines import OptionError
from seq2seq.commands import terminal


def test_a_file_that_cannot_be_written_is_named_before_the_work(tsv, tmp_path):
    corpus, file, folder = tsv("a\tb\n"), tsv("", "file"), tmp_path / "folder.png"
    folder.mkdir()
    for arguments, message in (
        (
            ["inspect", corpus, "--histogram", tmp_path / "no" / "x.png"],
            "x.png: cannot be written: No such file or directory",
        ),
        (["inspect", corpus, "--histogram", "lengths.doc"], "does not end in .png"),
        (["inspect", corpus, "--histogram", folder], "folder.png: cannot be written: Is a directory"),
        (["evaluate", tmp_path, corpus, "--write", file], f"{file}: is a file; choose a folder"),
        (["evaluate", tmp_path, corpus, "--write", "/proc/x"], "write=/proc/x: cannot be written: No such file"),
    ):
        done = seq2seq(*arguments)
        assert (done.returncode, done.stdout) == (2, b"") and message in done.stderr.decode(), done.stderr


def test_text_of_strangers_cannot_control_the_terminal(tmp_path, capfd):
    terminal.say("a\tb\x1b[2J\x07\r\x9b31m\nnext: é")
    assert capfd.readouterr().err == "a\tb\\x1b[2J\\x07\\r\\x9b31m\nnext: é\n"
    done = seq2seq("translate", tmp_path / "no\x1b[31m", "Go.")
    assert done.returncode == 2 and b"no\\x1b[31m" in done.stderr and b"\x1b" not in done.stderr


def test_a_state_is_shown_on_a_terminal_only_and_the_next_line_replaces_it(monkeypatch):
    said, seconds = [], itertools.count()
    monkeypatch.setattr(typer, "echo", lambda text, **_: said.append(text))
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    monkeypatch.setenv("COLUMNS", "20")
    count = terminal.counter("pairs read")
    count(7)
    terminal.say("done")
    monkeypatch.setattr(terminal, "is_terminal", lambda: True)
    count(7)
    terminal.say("done")
    terminal.show("x" * 30)
    monkeypatch.setattr(terminal, "is_terminal", lambda: False)
    for number in range(100):  # seconds
        count(number)
    assert said == ["done", "\r\033[K7 pairs read", "\r\033[Kdone", "\r\033[K" + "x" * 19, "60 pairs read"]


def test_a_file_is_as_it_was_after_the_check_that_it_can_be_written(tmp_path):
    new, old = tmp_path / "new.png", tmp_path / "old.png"
    old.write_text("old")
    for path in (new, old):
        terminal.check_picture("plot", path)
    terminal.check_writable("write", tmp_path / "folder", folder=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "old.png"] and old.read_text() == "old"
    with pytest.raises(OptionError, match="write=/proc: cannot be written: No such file"):
        terminal.check_writable("write", Path("/proc"), folder=True)


@pytest.mark.parametrize(
    ("count", "seconds", "said"),
    [
        (0, 0.0, "0 translated in 0.0 s; "),
        (3, 2.0, "3 translated in 2.0 s, 1.5 per second; "),
        (1030, 2.0, "1,030 translated in 2.0 s, 515 per second; "),
    ],
)
def test_the_speed_is_said_unless_nothing_was_translated(capfd, count, seconds, said):
    terminal.say_speed(count, seconds, 1.5)
    assert capfd.readouterr().err == f"{said}loading took 1.5 s\n"


def test_json_has_null_for_a_number_that_is_not_finite_and_six_decimals_of_others():
    content = {"é": [float("nan"), 1 / 3, 2, True], "part": {"loss": float("inf"), "text": "a\n"}}
    line = terminal.json_line(content)
    assert line == '{"é": [null, 0.333333, 2, true], "part": {"loss": null, "text": "a\\n"}}'
