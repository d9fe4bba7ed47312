import itertools
import time

import typer
from command_line import in_process as seq2seq

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


def test_a_state_is_shown_on_a_terminal_only_and_the_next_line_replaces_it(monkeypatch):
    said, seconds = [], itertools.count()
    monkeypatch.setattr(typer, "echo", lambda text, **_: said.append(text))
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    count = terminal.counter("pairs read")
    count(7)
    terminal.say("done")
    monkeypatch.setattr(terminal, "is_terminal", lambda: True)
    count(7)
    terminal.say("done")
    monkeypatch.setattr(terminal, "is_terminal", lambda: False)
    for number in range(100):  # seconds
        count(number)
    assert said == ["done", "\r\033[K7 pairs read", "\r\033[Kdone", "60 pairs read"]


def test_json_has_null_for_a_number_that_is_not_finite_and_six_decimals_of_others():
    content = {"é": [float("nan"), 1 / 3, 2, True], "part": {"loss": float("inf"), "text": "a\n"}}
    line = terminal.json_line(content)
    assert line == '{"é": [null, 0.333333, 2, true], "part": {"loss": null, "text": "a\\n"}}'
