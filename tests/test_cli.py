import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SEQ2SEQ = str(Path(sys.executable).with_name("seq2seq"))


def seq2seq(*arguments, stdin=None, cwd=None):
    return subprocess.run([SEQ2SEQ, *map(str, arguments)], input=stdin, capture_output=True, cwd=cwd)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder made from the command line, and the process that made it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "toy.tsv").write_text("".join(f"{a}{b}\t{a.upper()}{b.upper()}\n" for a in "abcde" for b in "abcde"))
    return folder / "runs" / "toy", seq2seq("train", "toy.tsv", "--epochs", 2, "--units", 8, "--seed", 1, cwd=folder)


def test_help_teaches_and_imports_no_tensorflow():
    for arguments, words in (
        (["--help"], ["train", "translate", "inspect", "shuffle"]),
        (["train", "--help"], ["phrasebook", "spa-eng", "--preset", "--overwrite", "Example:"]),
        (["translate", "--help"], ["stdin", "Example:"]),
        (["inspect", "--help"], ["--histogram", "Example:"]),
        (["shuffle", "--help"], ["--shards", "Example:"]),
    ):
        process = [sys.executable, "-X", "importtime", SEQ2SEQ, *arguments]
        done = subprocess.run(process, capture_output=True, text=True)
        assert done.returncode == 0
        assert all(word in done.stdout for word in words)
        assert "typer" in done.stderr and "tensorflow" not in done.stderr and "numpy" not in done.stderr


@pytest.mark.slow
def test_train_prints_its_folder_to_stdout_and_its_progress_to_stderr(run):
    folder, done = run
    assert (done.returncode, done.stdout) == (0, b"runs/toy\n")
    progress = done.stderr.decode()
    assert "Epoch 2/2  loss" in progress and "held out: loss" in progress and " -> " in progress
    assert "Traceback" not in progress and "Warning" not in progress and "cuda" not in progress
    assert (folder / "model.keras").is_file()


@pytest.mark.slow
def test_translate_writes_one_line_for_each_text(run):
    folder, _ = run
    spoken = seq2seq("translate", folder, "ab", "", "ñ")
    assert (spoken.returncode, spoken.stderr) == (0, b"") and spoken.stdout.count(b"\n") == 3
    piped = seq2seq("translate", folder, stdin="ab\r\n\nñ".encode())
    assert piped.stdout == spoken.stdout
    assert seq2seq("translate", folder, stdin=b"").stdout == b""


@pytest.mark.slow
def test_bad_input_exits_2_with_one_line(run, tmp_path):
    folder, _ = run
    bad = tmp_path / "bad.tsv"
    bad.write_text("a\tb\nno tab\n")
    for arguments, message in (
        (["train", bad], f"{bad}, line 2: expected source TAB target"),
        (["train", tmp_path / "none.tsv"], "No such file"),
        (["train", folder.parent.parent / "toy.tsv", "--out", folder], "say --overwrite"),
        (["translate", tmp_path, "x"], "not a run folder"),
    ):
        done = seq2seq(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and done.stdout == b""
        assert message in done.stderr.decode() and done.stderr.count(b"\n") == 1
    assert not (tmp_path / "runs").exists()
    assert seq2seq("train", "--epochs", "none").returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_says_so_and_keeps_the_last_epoch(tmp_path, sent, code):
    out = tmp_path / "run"
    arguments = ["train", "--limit", "200", "--units", "8", "--epochs", "10000", "--out", str(out)]
    process = subprocess.Popen([SEQ2SEQ, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    for line in process.stderr:
        if line.startswith(b"Epoch 2/"):
            break
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code and b"Traceback" not in stderr
    assert (out / "model.keras").is_file()
    assert seq2seq("translate", out, "Hello.").returncode == 0


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error(run):
    folder, _ = run
    line = f"yes ab | head -n 20000 | {SEQ2SEQ} translate {folder} | head -n 1; exit ${{PIPESTATUS[2]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True)
    assert done.returncode == 0 and done.stdout.count(b"\n") == 1 and done.stderr == b""


def test_inspect_tells_what_a_corpus_holds(tsv, tmp_path):
    path = tsv("Go.\tVe.\nno tab\nWhat is it?\t¿Qué es?\n")
    done = seq2seq("inspect", path, "--histogram", tmp_path / "lengths.png")
    assert done.returncode == 0
    shown = done.stdout.decode()
    assert [line.split()[-2:] for line in shown.splitlines() if "longest" in line] == [["11", "8"]]
    assert "pairs                           2" in shown and "source tokens" in shown and "␣ 2" in shown
    assert f"{path}, line 2: expected source TAB target" in done.stderr.decode()
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads(seq2seq("inspect", path, "--json").stdout)
    assert data["pairs"] == 2 and data["target"]["tokens"]["¿"] == 1 and data["dropped"] == {"wrong columns": 1}
    assert seq2seq("inspect", path, "--histogram", tmp_path / "lengths.doc").returncode == 2


@pytest.mark.slow
def test_a_shuffled_corpus_is_inspected_and_trained_on(tsv, tmp_path):
    for number, side in enumerate("ab"):
        tsv("".join(f"{'xyz'[n % 3]}{n % 50}{number}\n" for n in range(400)), f"corpus.{side}")
    corpus = f"{tmp_path}/corpus.a+{tmp_path}/corpus.b"
    done = seq2seq("shuffle", corpus, "shuffled", "--shards", 3, "--drop-duplicates", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"shuffled\n")
    assert b"250 of 400 pairs left out" in done.stderr
    assert b"Traceback" not in done.stderr and b"cuda" not in done.stderr
    done = seq2seq("train", "shuffled", "--epochs", 1, "--units", 8, "--reverse", "--batch-tokens", 99, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"runs/shuffled\n"), done.stderr
    assert json.loads((tmp_path / "runs/shuffled/config.json").read_text())["reverse"] is True
    shard = next((tmp_path / "shuffled").glob("*.gz"))
    shard.write_bytes(shard.read_bytes()[:-9])
    for command in (["inspect", "shuffled"], ["train", "shuffled", "--out", "runs/other"]):
        done = seq2seq(*command, cwd=tmp_path)
        assert done.returncode == 2 and shard.name in done.stderr.decode(), done.stderr
    assert not (tmp_path / "runs/other").exists()


def test_a_missing_extra_is_named(tsv, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('none', name='matplotlib')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [SEQ2SEQ, "inspect", tsv("a\tb\n"), "--histogram", "x.png"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (2, "seq2seq: this needs matplotlib: pip install 'keras-seq2seq[plots]'\n")


def test_bad_options_exit_2(tsv, tmp_path):
    path = tsv("a\tb\n")
    for options, message in (
        (["--weights", "1,2"], "expected 1 positive numbers"),
        (["--weights", "one"], "'one' is not a number"),
        (["--columns", "1"], "expected two names, or two numbers"),
        (["--columns", "en,es"], "no column is called 'en'"),
    ):
        done = seq2seq("train", path, *options, "--out", tmp_path / "run")
        assert done.returncode == 2 and message in done.stderr.decode(), done.stderr
        assert b"Traceback" not in done.stderr
