import dataclasses
import importlib.metadata
import io
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from command_line import SEQ2SEQ, seq2seq

from pipelines import CharTokenizer, ColumnsTokenizer, SeparatorTokenizer
from seq2seq import BeamSearch, Sampling, Seq2Seq, evaluation
from seq2seq.cli import _print_comparison
from seq2seq.config import Config
from seq2seq.runs import load_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder made from the command line, and the process that made it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "toy.tsv").write_text("".join(f"{a}{b}\t{a.upper()}{b.upper()}\n" for a in "abcde" for b in "abcde"))
    command = [SEQ2SEQ, "train", "toy.tsv", "--epochs", "2", "--units", "8", "--seed", "1", "--track", "tensorboard"]
    return folder / "runs" / "toy", subprocess.run(command, cwd=folder, capture_output=True)


def test_help_teaches_and_imports_no_tensorflow():
    for arguments, words in (
        (
            ["--help"],
            # No summary is cut short.
            [
                "train",
                "translate",
                "evaluate",
                "compare",
                "plot",
                "sweep",
                "table",
                "demo",
                "export",
                "score",
                "inspect",
                "from the first.",
            ],
        ),
        (["train", "--help"], ["phrasebook", "spa-eng", "--preset", "--overwrite", "\nModel:\n", "--cell", "Example:"]),
        (
            ["translate", "--help"],
            ["stdin", "space", "ensemble", "--beam-width", "--temperature", "--prefix", "--search", "Example:"],
        ),
        (["score", "--help"], ["log-likelihood", "nan", "Example:"]),
        (["evaluate", "--help"], ["--json", "--write", "held out", "Example:"]),
        (["compare", "--help"], ["bootstrap", "Example:"]),
        (["demo", "--help"], ["--port", "7860", "Example:"]),
        (["export", "--help"], ["SavedModel", "Example:"]),
        (["plot", "--help"], ["attention", "Example:"]),
        (["average", "--help"], ["--keep-epochs", "Example:"]),
        (["sweep", "--help"], ["--grid", "--trials", "same command", "Example:"]),
        (["table", "--help"], ["--baseline", "Welch", "Example:"]),
        (["inspect", "--help"], ["--histogram", "Example:"]),
        (["shuffle", "--help"], ["--shards", "Example:"]),
    ):
        process = [sys.executable, "-X", "importtime", SEQ2SEQ, *arguments]
        done = subprocess.run(process, capture_output=True, text=True)
        assert done.returncode == 0
        assert all(word in done.stdout for word in words)
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert "typer" in done.stderr and "tensorflow" not in done.stderr and "numpy" not in done.stderr


@pytest.mark.slow
def test_train_prints_its_folder_to_stdout_and_its_progress_to_stderr(run):
    folder, done = run
    assert (done.returncode, done.stdout) == (0, b"runs/toy\n")
    progress = done.stderr.decode()
    assert re.search(r"\n\d+ updates of [\d,]+ parameters in [\d.]+ s on .*; [\d,]+ MB\n", progress)
    assert "Epoch 2/2  loss" in progress and "held out: loss" in progress and " -> " in progress
    assert "Traceback" not in progress and "Warning" not in progress and "cuda" not in progress
    assert (folder / "model.keras").is_file()


@pytest.mark.slow
def test_translate_writes_one_line_for_each_text(run):
    folder, _ = run
    spoken = subprocess.run([SEQ2SEQ, "translate", folder, "ab", "", "ñ"], capture_output=True)
    assert (spoken.returncode, spoken.stderr) == (0, b"") and spoken.stdout.count(b"\n") == 3
    piped = seq2seq("translate", folder, stdin="\ufeffab\r\n\nñ".encode())  # a byte order mark is no text
    assert piped.stdout == spoken.stdout
    assert re.fullmatch(rb"3 translated in .* s, .* a second; .* s to load\n", piped.stderr)
    assert seq2seq("translate", folder, stdin=b"").stdout == b""


def exchange(process, line):
    """Writes to a process and waits for a line of its answer, which it must give before it is written to again."""
    process.stdin.write(line)
    process.stdin.flush()
    assert select.select([process.stdout], [], [], 60)[0]
    return process.stdout.readline()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["translate", "score"])
def test_lines_through_a_pipe_are_answered_when_no_more_are_waiting(run, command):
    folder, _ = run
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([SEQ2SEQ, command, folder], **pipes) as process:
        first = exchange(process, b"\xef\xbb\xbfab\tAB\n")  # a byte order mark is no text
        assert exchange(process, b"ab\tAB\nab") == first  # the second line has no end yet
        rest, errors = process.communicate(b"\tAB\n" + b"ab\tAB\n" * 5000)
    assert rest == first * 5001 and process.returncode == 0
    assert command == "score" or b"5,003 translated" in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closed", "code", "said"),
    [
        ("translate RUN ab <&- 2>&-", 0, b""),
        ("translate RUN <&-", 2, b"seq2seq: standard input is closed\n"),
        ("translate RUN ab <&- >&-", 2, b"seq2seq: standard output is closed, where results go"),
    ],
)
def test_closed_streams_are_no_tracebacks(run, closed, code, said):
    folder, _ = run
    done = subprocess.run(f"{SEQ2SEQ} {closed.replace('RUN', str(folder))}", shell=True, capture_output=True)
    assert done.returncode == code and said in done.stderr and done.stderr.count(b"\n") == bool(said)
    assert done.stdout == (b"" if code else seq2seq("translate", folder, "ab").stdout)


@pytest.mark.slow
def test_a_forced_ascii_locale_changes_nothing(tmp_path):
    forced = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    pairs, out = tmp_path / "niños.tsv", tmp_path / "añadido"
    pairs.write_text("".join(f"{a}{b}ñ\tñ{b}\n" for a in "abcde" for b in "abcde"), encoding="utf-8")

    def run(*arguments):
        done = subprocess.run([SEQ2SEQ, *arguments], env=forced, capture_output=True)
        assert done.returncode == 0 and b"Traceback" not in done.stderr
        return done.stdout.decode()

    assert run("train", pairs, "--epochs", "1", "--units", "8", "--out", out) == f"{out}\n"
    kept = json.loads((out / "probe.json").read_text(encoding="utf-8"))
    options = json.loads((out / "config.json").read_text(encoding="utf-8"))["options"]
    assert os.fsdecode(options["corpus"].encode("utf-8", "surrogateescape")) == str(pairs)
    assert all(source.endswith("ñ") for source in kept)
    said = run("evaluate", out, pairs, "--json", "--worst", "1")
    assert "ñ" in said and json.loads(said)["sources"] == 25


@pytest.mark.slow
def test_a_corpus_through_a_pipe_is_inspected_but_not_trained_on(tsv, tmp_path):
    path = tsv("ab\tAB\n" * 30)
    for command, code in (("inspect", 0), (f"train --out {tmp_path / 'run'}", 2)):
        line = f"{SEQ2SEQ} {command} <(cat {path})"
        done = subprocess.run(["bash", "-c", line], capture_output=True)
        assert done.returncode == code and (code == 0) == (b"30" in done.stdout)
        assert (code == 2) == (b"can be read only once, and training reads a corpus many times" in done.stderr)
    assert not (tmp_path / "run").exists()


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
    assert seq2seq("train", "--epochs", "many").returncode == 2


@pytest.mark.slow
def test_a_file_in_place_of_a_run_is_named_with_its_folder(run):
    done = seq2seq("translate", run[0] / "model.keras", "ab")
    assert done.returncode == 2
    assert (
        done.stderr.decode()
        == f"seq2seq: {run[0] / 'model.keras'} is a file, and a run is a folder, such as {run[0]}\n"
    )


def test_an_interrupt_reaches_what_tests_start_from_a_script_s_background_too():
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import conftest"
    code += "; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent).returncode == 0


def test_the_version_is_that_of_the_package():
    done = subprocess.run([SEQ2SEQ, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"keras-seq2seq {importlib.metadata.version('keras-seq2seq')}\n")


@pytest.mark.slow
def test_commands_that_are_printed_can_be_typed(tsv, tmp_path):
    done = seq2seq(
        "train", tsv("a\tA\nb\tB\nc\tC\n"), "--epochs", 1, "--units", 8, "--out", "my runs/it's", cwd=tmp_path
    )
    command = re.search(r"Translate with:  (.*) \"TEXT\"", done.stderr.decode())[1]
    assert shlex.split(command) == ["seq2seq", "translate", "my runs/it's"]
    done = seq2seq("translate", "no run", "a", cwd=tmp_path)
    assert "`seq2seq train --out 'no run'` makes one" in done.stderr.decode()


def test_a_file_that_cannot_be_written_is_named_before_the_work(tsv, tmp_path):
    corpus, file, folder = tsv("a\tb\n"), tsv("", "file"), tmp_path / "folder.png"
    folder.mkdir()
    for arguments, message in (
        (
            ["inspect", corpus, "--histogram", tmp_path / "no" / "x.png"],
            "x.png: cannot be written: No such file or directory",
        ),
        (["inspect", corpus, "--histogram", tmp_path], "does not end in .png"),
        (["inspect", corpus, "--histogram", folder], "folder.png: cannot be written: Is a directory"),
        (["evaluate", tmp_path, corpus, "--write", file], f"write={file}: cannot be written: File exists"),
        (["evaluate", tmp_path, corpus, "--write", "/proc/x"], "write=/proc/x: cannot be written: No such file"),
    ):
        done = seq2seq(*arguments)
        assert (done.returncode, done.stdout) == (2, b"") and message in done.stderr.decode(), done.stderr


def started(arguments):
    return subprocess.Popen([SEQ2SEQ, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_an_interrupted_training_is_saved_and_goes_on(tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--limit", "200", "--units", "8", "--epochs", "400", "--out", str(out)]
    process = started(arguments)
    for sent, code, epoch in ((signal.SIGINT, 130, b"Epoch 2/"), (signal.SIGTERM, 143, b"Epoch ")):
        for line in process.stderr:
            if line.startswith(epoch):
                break
        if sent == signal.SIGINT:
            second = seq2seq(*arguments)
            assert second.returncode == 2
            assert f"{out} is in use by process {process.pid} on ".encode() in second.stderr
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == code and b"Traceback" not in stderr
        assert f"Go on with:  seq2seq train --resume --out {out}\n".encode() in stderr
        process = started(arguments if sent == signal.SIGINT else ["train", "--resume", "--out", out])
        assert process.stderr.readline().startswith(f"Resuming {out} in epoch ".encode())
    process.kill()
    process.communicate()
    other = seq2seq(*arguments[:-4], "--epochs", "3", "--out", out)
    assert other.returncode == 2 and b"epochs 400 and not 3" in other.stderr
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
    options = ["--epochs", 1, "--units", 8, "--reverse", "--batch-tokens", 99, "--compile"]
    done = seq2seq("train", "shuffled", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"runs/shuffled\n"), done.stderr
    assert b"\nCompiling for batches of 24 x 16: size 1\nCompiled in " in done.stderr and b"Warning" not in done.stderr
    assert json.loads((tmp_path / "runs/shuffled/config.json").read_text())["options"]["reverse"] is True
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
    for name in ("wandb", "mlflow"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('none', name={name!r})")
        command = [SEQ2SEQ, "train", tsv("a\tb\n"), "--track", name, "--out", tmp_path / "run"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stdout) == (2, "") and not (tmp_path / "run").exists()
        assert done.stderr == f"seq2seq: this needs {name}: pip install 'keras-seq2seq[{name}]'\n"


def test_bad_options_exit_2(tsv, tmp_path):
    path = tsv("a\tb\n")
    for options, message in (
        (["--weights", "1,2"], "expected 1 positive numbers"),
        (["--weights", "one"], "'one' does not fit"),
        (["--limit", "few"], "'few' does not fit"),
        (["--units", "0"], "units=0: expected a whole number, at least 1"),
        (["--epochs", "-1"], "epochs=-1: expected a whole number, at least 1, or None"),
        (["--batch-tokens", "-5"], "batch_tokens=-5: expected a whole number, at least 1"),
        (["--learning-rate", "nan"], "learning_rate=nan: expected a number, at least 0"),
        (["--seed", "-1"], "seed=-1: expected a whole number, at least 0 and below 4,294,967,296"),
        (["--cell", "lstmm"], "did you mean 'lstm'"),
        (["--preset", "tutorail"], "preset='tutorail': expected 'default', 'subword'"),
        (["--epochs", "3", "--updates", "9"], "epochs=3 and updates=9 exclude each other"),
        (["--preset", "tutorial", "--config", "x.json"], "preset and config exclude each other"),
        (["--config", "x.json"], "x.json"),
        (["--tied", "--embedding", "none"], "tied=True"),
        (
            ["--architecture", "transformer", "--attention", "dot"],
            "attention: neither TransformerEncoder nor TransformerDecoder has this option",
        ),
        (["--track", "wandbb"], "track='wandbb': expected 'tensorboard', 'wandb', 'mlflow'"),
        (["--precision", "float8"], "precision='float8': expected 'float32', 'bfloat16'"),
        (["--compile", "--deterministic"], "compile=True: XLA does not promise the same bits"),
        (["--decoder", "nowhere:Decoder"], "decoder='nowhere:Decoder': there is no module 'nowhere'"),
        (["--target-tokenizer", "pipelines:Nope"], "target_tokenizer='pipelines:Nope': pipelines has no class 'Nope'"),
        (["--min-frequency", "2", "--source-tokenizer", "byte"], "min_frequency=2"),
        (["--columns", "1"], "expected two names or more, or numbers"),
        (["--columns", "en,es"], "no column is called 'en'"),
    ):
        done = seq2seq("train", path, *options, "--out", tmp_path / "run")
        assert done.returncode == 2 and message in done.stderr.decode(), done.stderr
        assert b"Traceback" not in done.stderr


def test_every_option_of_a_configuration_is_one_of_the_command_line():
    shown = subprocess.run(
        [SEQ2SEQ, "train", "--help"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    ).stdout
    for field in dataclasses.fields(Config):
        if field.name != "corpus":
            assert f"{field.metadata.get('flag') or '--' + field.name.replace('_', '-')} " in shown


@pytest.mark.slow
def test_options_of_a_model_are_kept_and_a_run_is_repeated_from_its_configuration(run, tmp_path):
    toy = run[0].parent.parent / "toy.tsv"
    options = "--preset subword --epochs 1 --units 8 --cell gru --no-bidirectional --attention none --embedding 6"
    options += " --teacher-forcing 1,0.5 --dropout 0.2 --max-vocabulary 40 --seed 3 --precision bfloat16"
    done = seq2seq("train", toy, *options.split(), "--out", "first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "first" / "config.json").read_text())
    kept = {"cell": "gru", "attention": None, "bidirectional": False, "embedding": 6, "teacher_forcing": [1.0, 0.5]}
    kept |= {"precision": "bfloat16", "deterministic": None}
    assert {name: saved["options"][name] for name in kept} == kept
    assert saved["command"] == f"seq2seq train {toy} {options} --out first"
    done = seq2seq("train", "--config", "first/config.json", "--out", "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, again = (zipfile.ZipFile(tmp_path / run / "model.keras") for run in ("first", "again"))
    assert first.read("config.json") == again.read("config.json")
    weights = [h5_numbers(file.read("model.weights.h5")) for file in (first, again)]
    assert weights[0] == weights[1] and len(weights[0]) > 5
    toy.write_text(toy.read_text() + "x\tX\n")
    done = seq2seq("train", "--config", "first/config.json", "--out", "third", cwd=tmp_path)
    toy.write_text(toy.read_text().removesuffix("x\tX\n"))
    assert done.returncode == 2 and b"no longer what that run was trained on" in done.stderr


def h5_numbers(content):
    """All arrays of an HDF5 file: {path: bytes}."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()].tobytes()

    h5py.File(io.BytesIO(content)).visititems(visit)
    return found


@pytest.mark.slow
def test_strategies_and_what_is_known_of_each_hypothesis(run):
    folder, _ = run
    lines = seq2seq("translate", folder, "ab", "cd", "--beam-width", 4, "--n-best", 3, "--scores").stdout.decode()
    rows = [line.split("\t") for line in lines.splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "1", "2", "2", "2"]
    assert all(float(row[1]) < 0 and row[3] in ("end", "limit", "repetition") and len(row) == 5 for row in rows)
    ranks = [[float(row[2]) for row in rows if row[0] == number and row[3] == "end"] for number in "12"]
    assert all(some == sorted(some, reverse=True) for some in ranks)
    assert all(float(row[2]) > float(row[1]) for row in rows if len(row[4]) > 1)
    assert len({tuple(row[0::4]) for row in rows}) == 6  # all different
    scored = seq2seq("translate", folder, "ab", "--scores").stdout.decode().rstrip("\n").split("\t")
    again = seq2seq("score", folder, stdin=f"ab\t{scored[3]}\n".encode()).stdout
    assert scored[0] == scored[1]  # greedy search ranks nothing
    assert scored[2] != "end" or float(again) == pytest.approx(float(scored[0]), abs=1e-3)
    samples = [seq2seq("translate", folder, "ab", "cd", "--sample", "--seed", seed).stdout for seed in (1, 2)]
    assert samples[0] != samples[1]
    assert seq2seq("translate", folder, "ab", "--top-k", 1).stdout.decode() == f"{scored[3]}\n"


def objects(done):
    """The lines of JSON that a command has written, strictly read: there is no NaN in JSON."""
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().split("\n")
    assert lines.pop() == ""
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ([], "greedy"),
        (["--beam-width", 4, "--n-best", 3], BeamSearch(4, n_best=3)),
        (["--temperature", 2.0], Sampling(2.0)),
    ],
    ids=str,
)
def test_json_says_of_each_translation_what_python_does(run, options, strategy):
    folder, texts = run[0], ["ab", "", "ec"]
    model = load_runs([folder, folder])
    found = model.translate(texts, strategy, details=True, max_length=5)
    done = seq2seq("translate", folder, folder, *texts, *options, "--max-length", 5, "--attention")
    for number, known in enumerate(objects(done)):
        assert (known["source"], known["source_tokens"]) == (texts[number], list(texts[number]))
        assert len(known["translations"]) == found.texts.shape[1]
        for rank, one in enumerate(known["translations"]):
            assert (
                one["text"].encode() == found.texts[number, rank]
                and one["stopped"].encode() == found.stopped[number, rank]
            )
            assert "".join(one["tokens"]).removesuffix("[END]") == one["text"]
            assert one["log_likelihood"] == pytest.approx(float(found.scores[number, rank]), abs=1e-4)
            assert one["ranked_by"] == pytest.approx(float(found.ranked_by[number, rank]), abs=1e-4)
            assert sum(one["log_probabilities"]) == pytest.approx(one["log_likelihood"], abs=1e-4)
            (alignment,) = model.attention([texts[number]], found.ids[number : number + 1, rank])
            np.testing.assert_allclose(one["attention"], alignment.weights, atol=1e-5)
    plain = objects(seq2seq("translate", folder, folder, *options, "--max-length", 5, "--json", stdin=b"ab\n\nec\n"))
    assert [sorted(known) for known in plain] == [["source", "translations"]] * 3
    assert [[one["text"] for one in known["translations"]] for known in plain] == [
        [text.decode() for text in row] for row in found.texts.numpy()
    ]


@pytest.mark.slow
def test_json_of_pairs_has_the_score_of_each_token_and_null_for_a_line_without_a_pair(run):
    folder, _ = run
    first, none, other = objects(seq2seq("score", folder, "--json", stdin="ab\tAñ\nno tab\ncd\tC\n".encode()))
    model = load_runs([folder])
    each = model.score(["ab", "cd"], ["Añ", "C"], per_token=True)
    assert none is None and (first["source"], first["target"], other["target"]) == ("ab", "Añ", "C")
    assert first["tokens"] == ["A", "[UNK]", "[END]"] and other["tokens"] == ["C", "[END]"]
    for known, nats in zip((first, other), each, strict=True):
        np.testing.assert_allclose(known["log_probabilities"], nats, atol=1e-4)
        assert known["log_likelihood"] == pytest.approx(float(tf.reduce_sum(nats)), abs=1e-4)
        assert known["loss"] == pytest.approx(-float(tf.reduce_mean(nats)), abs=1e-4)


@pytest.mark.slow
def test_json_has_null_for_what_is_no_number_and_no_hypotheses_that_a_beam_has_not_found(tmp_path):
    model = Seq2Seq(CharTokenizer("ab"), CharTokenizer("AB"), units=4, attention="dot")
    model.save(tmp_path / "model.keras")
    best = ["--beam-width", 3, "--n-best", 3, "--max-length", 1, "--json"]
    (known,) = objects(seq2seq("translate", tmp_path, "a", *best))
    found = model.translate(["a"], BeamSearch(3, n_best=3), max_length=1, details=True)
    assert len(known["translations"]) == np.isfinite(found.scores).sum() == 3
    assert sorted(one["tokens"] for one in known["translations"]) == [["A"], ["B"], ["[END]"]]
    (known,) = objects(seq2seq("translate", tmp_path, "a", *best[:4], "--max-length", 1, "--min-length", 1, "--json"))
    assert sorted(one["text"] for one in known["translations"]) == ["A", "B"]
    kernel = model.decoder.output_layer.kernel
    kernel.assign(kernel * np.nan)
    model.save(tmp_path / "model.keras")
    (known,) = objects(seq2seq("translate", tmp_path, "a", "--max-length", 2, "--json"))
    (one,) = known["translations"]
    assert one["log_likelihood"] is None and one["log_probabilities"] == [None] * len(one["tokens"])
    assert objects(seq2seq("score", tmp_path, "--json", stdin=b"a\tA\n"))[0]["loss"] is None


@pytest.mark.slow
def test_translations_begin_with_the_prefixes_in_the_last_column(run):
    folder, _ = run
    stdin = b"ab\tAB\ncd\t\nab\tEEE\n"
    done = seq2seq("translate", folder, "--prefix", stdin=stdin)
    assert done.returncode == 0, done.stderr
    one, free, other = done.stdout.decode().splitlines()
    assert one.startswith("AB") and other.startswith("EEE")
    assert f"{free}\n" == seq2seq("translate", folder, "cd").stdout.decode()
    assert seq2seq("translate", folder, "--prefix", "ab\tAB", "cd\t", "ab\tEEE").stdout == done.stdout
    beam = ["--prefix", "--scores", "--beam-width", 3, "--n-best", 2]
    rows = [line.split("\t") for line in seq2seq("translate", folder, *beam, stdin=stdin).stdout.decode().splitlines()]
    assert [row[-1][:3] for row in rows[4:]] == ["EEE"] * 2 and rows[0][0] == "1" and rows[0][-1].startswith("AB")
    for stdin, message in (
        (b"ab\tAB\ncd\n", "standard input, line 2: expected 2 columns: source TAB prefix, found 1"),
        (b"ab\tAB\ncd\tAx\n", "standard input, line 2: the prefix 'Ax' has tokens that are not in the vocabulary: 'x'"),
    ):
        done = seq2seq("translate", folder, "--prefix", stdin=stdin)
        assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", f"seq2seq: {message}\n")
    done = seq2seq("translate", folder, "--prefix", "ab\t", "cd\tx")
    assert done.returncode == 2 and b"TEXT 2: the prefix 'x' has tokens" in done.stderr


@pytest.mark.slow
def test_several_samples_of_each_text(run):
    folder, _ = run
    options = ["--n-best", 3, "--seed", 4]
    done = seq2seq("translate", folder, "ab", "cd", "--sample", *options, "--scores")
    rows = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "1", "2", "2", "2"] and all(float(row[1]) < 0 for row in rows)
    again = seq2seq("score", folder, stdin="".join(f"ab\t{row[4]}\n" for row in rows[:3]).encode()).stdout.split()
    ended = [(float(row[1]), float(score)) for row, score in zip(rows, again, strict=False) if row[3] == "end"]
    assert all(one == pytest.approx(other, abs=1e-3) for one, other in ended)
    alone = seq2seq("translate", folder, "ab", "cd", "--sample", "--seed", 4).stdout.decode().splitlines()
    assert [rows[0][4], rows[3][4]] == alone


OWN_SEARCH = """
import dataclasses
from seq2seq import BeamSearch

@dataclasses.dataclass(frozen=True)
class Mine(BeamSearch):
    spread: tuple = ()
"""


@pytest.mark.slow
def test_every_command_that_searches_takes_a_strategy_by_name(run, tmp_path):
    folder, _ = run
    (tmp_path / "own.py").write_text(OWN_SEARCH)
    (tmp_path / "test.tsv").write_text("ab\tAB\ncd\tCD\n")
    search = ["--search", "own:Mine", "--set", "width=3", "--set", "n-best=2", "--set", "spread=[1, 2]"]
    beam = ["--beam-width", 3, "--n-best", 2]
    own, usual = (seq2seq("translate", folder, "ab", "cd", *how, cwd=tmp_path) for how in (search, beam))
    assert own.returncode == 0 and own.stdout == usual.stdout and own.stdout.count(b"\n") == 4, own.stderr
    for command in (["evaluate", folder], ["compare", folder, folder]):
        one, other = (
            json.loads(seq2seq(*command, "test.tsv", "--json", *how, cwd=tmp_path).stdout)
            for how in (search, ["--beam-width", 3])
        )
        assert one["scores"] == other["scores"]
        done = seq2seq(*command, "test.tsv", "--search", "own:Mine", "--beam-width", 3, cwd=tmp_path)
        assert done.returncode == 2 and b"search and width exclude each other" in done.stderr
    assert seq2seq("export", folder, "saved", *search, cwd=tmp_path).returncode == 0
    for command in (["export", folder, "other"], ["demo", folder, "--port", 0]):
        done = seq2seq(*command, "--search", "own:Mine", "--set", "wide=3", cwd=tmp_path)
        assert done.returncode == 2 and b"set='wide': expected 'width'" in done.stderr, done.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_score_reads_a_corpus_or_stdin_and_writes_a_number_for_each_pair(run):
    folder, _ = run
    toy = folder.parent.parent / "toy.tsv"
    done = seq2seq("score", folder, toy)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 25 and all(float(number) < 0 for number in done.stdout.split())
    assert seq2seq("score", folder, stdin=toy.read_bytes()).stdout == done.stdout


@pytest.mark.slow
def test_score_writes_a_line_for_each_line_and_says_which_hold_no_pair(run, tsv):
    folder, _ = run
    one, other = seq2seq("score", folder, stdin=b"ab\tAB\ncd\tCD\n").stdout.decode().split()
    done = seq2seq("score", folder, stdin=b"ab\tAB\r\n\r\nno tab\ncd\tCD\n\n\xff\tx\na\t \nab\tAB")
    assert done.returncode == 0 and done.stdout.decode().split("\n") == [
        one,
        *["nan"] * 2,
        other,
        *["nan"] * 3,
        one,
        "",
    ]
    assert done.stderr.decode().splitlines() == [
        "5 of 8 pairs left out",
        "  2 no pair",
        "    standard input, line 2: the line is empty",
        "    standard input, line 5: the line is empty",
        "  1 wrong columns",
        "    standard input, line 3: expected source TAB target (and at most one more column), found no tab",
        "  1 invalid UTF-8",
        "    standard input, line 6: the source is not valid UTF-8 (invalid start byte at byte 0)",
        "  1 empty side",
        "    standard input, line 7: the target is empty",
    ]
    named = tsv("id\ten\tes\n1\tab\tAB\n2\tcd\tCD\n", "named.tsv")
    assert seq2seq("score", folder, named, "--columns", "en,es").stdout.decode().split() == ["nan", one, other]
    strict = seq2seq("score", folder, "--on-bad-line", "error", stdin=b"ab\tAB\n\nno tab\n")
    assert strict.returncode == 2 and b"standard input, line 3: expected source TAB target" in strict.stderr
    nothing = seq2seq("score", folder, stdin=b"no tab\n" * 2)
    assert (nothing.returncode, nothing.stdout) == (2, b"nan\nnan\n")
    assert nothing.stderr.endswith(b"found no tab\nseq2seq: -: no pairs to score\n")
    empty = seq2seq("score", folder, stdin=b"")
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, b"", b"")


@pytest.fixture(scope="module")
def breaking(tmp_path_factory):
    """A run folder whose model writes nothing but tabs and line breaks."""
    folder = tmp_path_factory.mktemp("breaking")
    tokenizers = CharTokenizer(), CharTokenizer()
    for tokenizer, characters in zip(tokenizers, ("abc", "\t\n\v\f\r\x85\u2028"), strict=True):
        tokenizer.adapt([characters])
    Seq2Seq(*tokenizers, units=4, attention="dot").save(folder / "model.keras")
    return folder


@pytest.mark.slow
def test_a_translation_with_tabs_and_line_breaks_is_one_column_of_one_line(breaking, tsv, tmp_path):
    def translated(*arguments, stdin):
        done = seq2seq("translate", breaking, *arguments, "--min-length", 2, "--max-length", 4, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    for arguments, stdin in ((["a", "b\nc", ""], None), ([], b"a\nb\rc\n\n")):
        lines = translated(*arguments, stdin=stdin).splitlines()
        assert len(lines) == 3 and all(re.fullmatch(" {1,4}", line) for line in lines)
    best = translated("--beam-width", 2, "--n-best", 2, "--scores", stdin=b"a\n\nb")
    rows = [line.split("\t") for line in best.splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "2", "2", "3", "3"]
    assert len(set(map(len, rows))) == 1 and all(re.fullmatch(" {1,4}", row[-1]) for row in rows)
    looked = translated("--attention", stdin=b"a\n\nb").removesuffix("\n").split("\n")
    assert [json.loads(line)["source_tokens"] for line in looked] == [["a"], [], ["b"]]
    assert set(json.loads(looked[0])["translations"][0]["tokens"]) <= {*"\t\n\v\f\r\x85\u2028", "[END]"}
    corpus = tsv("".join(json.dumps({"source": c, "target": "x\ny"}) + "\n" for c in "abc"), "pairs.jsonl")
    done = seq2seq("evaluate", breaking, corpus, "--write", tmp_path / "out", "--min-length", 2, "--max-length", 4)
    assert len(re.findall(r"    [abc]  ->  +\(x y\)\n", done.stdout.decode())) == 3, done.stderr
    for name, text in (("sources", "[abc]"), ("translations", " {1,4}"), ("references.0", "x y")):
        assert re.fullmatch(f"({text}\n){{3}}", (tmp_path / "out" / f"{name}.txt").read_text())


@pytest.fixture(scope="module")
def inflecting(tmp_path_factory):
    """A run folder with a model, not trained, of two source columns."""
    folder = tmp_path_factory.mktemp("inflecting")
    source = ColumnsTokenizer([CharTokenizer("abc"), SeparatorTokenizer(";", ["V", "PST"])], ["lemma", "features"])
    Seq2Seq(source, CharTokenizer("abc"), units=4, attention="dot").save(folder / "model.keras")
    return folder


@pytest.mark.slow
def test_a_source_of_several_columns_is_tab_separated_text(inflecting, tsv, tmp_path):
    lines = b"ab\tV;PST\nc\t\n"
    found = seq2seq("translate", inflecting, "--max-length", 4, stdin=lines)
    assert found.returncode == 0 and found.stdout.count(b"\n") == 2, found.stderr
    refused = seq2seq("translate", inflecting, stdin=lines + b"ab\n")
    message = b"seq2seq: standard input, line 3: expected 2 columns: lemma TAB features, found 1\n"
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, b"", message)
    scored = seq2seq("score", inflecting, stdin=b"ab\tV;PST\ta\nab\ta\nc\t\tb\n")
    assert [line == b"nan" for line in scored.stdout.split()] == [False, True, False]
    wanted = "standard input, line 2: expected lemma TAB features TAB target, found 2 columns"
    assert wanted in scored.stderr.decode()
    corpus = tsv("ab\tx\tV;PST\nc\ty\t\n")
    options = ["--columns", "1,3,2", "--write", tmp_path / "out", "--max-length", 4]
    evaluated = seq2seq("evaluate", inflecting, corpus, *options)
    assert evaluated.returncode == 0 and (tmp_path / "out" / "sources.txt").read_bytes() == lines
    assert (tmp_path / "out" / "translations.txt").read_bytes() == found.stdout


@pytest.mark.slow
def test_a_corpus_is_read_as_the_run_s_own_was_if_nothing_else_is_said(inflecting, tsv, tmp_path):
    folder = shutil.copytree(inflecting, tmp_path / "run")
    (folder / "config.json").write_text(json.dumps({"options": {"columns": [1, 3, 2]}}))
    corpus = tsv("ab\tc\tV;PST\nc\tb\t\n")
    seq2seq("evaluate", folder, corpus, "--max-length", 4, "--write", tmp_path / "out")
    assert (tmp_path / "out" / "references.0.txt").read_text() == "c\nb\n"
    (score, other), (asked, _), (piped, _) = (
        done.stdout.split()
        for done in (
            seq2seq("score", folder, corpus),
            seq2seq("score", folder, corpus, "--columns", "1,3,2"),
            seq2seq("score", folder, stdin=b"ab\tV;PST\tc\nc\t\tb\n"),
        )
    )
    assert score == asked == piped != b"nan" != other
    # With other columns the same file is read otherwise: here the features are the target.
    assert seq2seq("score", folder, corpus, "--columns", "1,2,3").stdout.split()[0] not in (score, b"nan")


def test_inspect_tells_the_tokens_of_each_source_column(tsv):
    done = seq2seq("inspect", tsv("lemma\tform\tfeatures\nsee\tsaw\tV\n"), "--columns", "lemma,features,form")
    assert done.returncode == 0, done.stderr
    assert "lemma tokens, the most frequent first:\ne 2  s 1\n\nfeatures tokens" in done.stdout.decode()


@pytest.mark.slow
def test_evaluate_says_what_it_skips(run, tmp_path, tsv):
    folder, _ = run
    path = tsv("ab\tAB\nno tab\ncd\tCD\nef\tEF\n")
    report = f"1 of 4 pairs left out\n  1 wrong columns\n    {path}, line 2: expected source TAB target"
    done = seq2seq("evaluate", folder, path, "--on-bad-line", "skip", cwd=folder.parent.parent)
    assert done.returncode == 0 and done.stderr.decode().count(report) == 1, done.stderr
    for command in (["evaluate", folder], ["shuffle"]):
        none = seq2seq(
            *command, tsv("no tab\n", "none.tsv"), *["out"] * (command == ["shuffle"]), "--on-bad-line", "skip"
        )
        assert none.returncode == 2 and none.stderr.startswith(b"1 of 1 pairs left out\n"), none.stderr


@pytest.mark.slow
def test_what_cannot_be_asked_of_translate_exits_2(run):
    folder, _ = run
    for options, message in (
        (["--beam-width", 4, "--sample"], "width is of beam search, which excludes sampling"),
        (["--search", "beam", "--beam-width", 4], "search and width exclude each other; write --set NAME=VALUE"),
        (["--search", "sampling", "--sample"], "search and sample exclude each other"),
        (["--search", "greedy", "--n-best", 2], "search and n_best exclude each other"),
        (["--search", "beem"], "search='beem': expected 'greedy', 'beam', 'sampling'; did you mean 'beam'?"),
        (["--search", "beam", "--set", "wdith=3"], "set='wdith': expected 'width', "),
        (["--search", "beam", "--set", "width"], "set='width': expected NAME=VALUE"),
        (["--search", "beam", "--set", "width=x"], "width='x': expected a whole number"),
        (["--search", "nowhere:Class"], "there is no module 'nowhere'"),
        (["--set", "width=3"], "set='width=3': --set is for the strategy that --search names, and there is none"),
        (["--prefix"], "TEXT 1: expected 2 columns: source TAB prefix, found 1"),
        (["--beam-width", 2, "--n-best", 3], "n_best=3"),
        (["--beam-width", 99], "width=99: wider than the vocabulary"),
        (["--top-p", 2], "top_p=2.0"),
        (["--min-length", 5, "--max-length", 2], "max_length=2: expected a whole number, at least 5"),
        (["--temperature", "inf"], "temperature=inf: expected a number, above 0"),
        (["--sample", "--seed", 10**20], "seed=100000000000000000000: expected a whole number, at least 0 and below"),
        (["--import", "nowhere:Class"], "there is no module 'nowhere'"),
    ):
        done = seq2seq("translate", folder, "ab", *options)
        assert (done.returncode, done.stdout) == (2, b"") and message in done.stderr.decode(), done.stderr
        assert done.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_the_corpus_decides_the_preset(tmp_path):
    (tmp_path / "sentences.tsv").write_text("I saw him there.\tLo vi ahí.\n" * 20_000)
    arguments = ["train", "sentences.tsv"]
    done = seq2seq(*arguments, "--embedding", "none", cwd=tmp_path)  # which this preset cannot do without
    assert done.returncode == 2 and b"Preset subword" in done.stderr and b"tied=True" in done.stderr, done.stderr
    (tmp_path / "sentencepiece.py").write_text("raise ModuleNotFoundError('none', name='sentencepiece')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [SEQ2SEQ, *map(str, arguments), "--preset", "subword", "--overwrite"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and "pip install 'keras-seq2seq[subword]'" in done.stderr


@pytest.mark.slow
def test_evaluate_prints_tables_or_json_and_writes_what_it_measured(run, tmp_path):
    folder, _ = run
    options = ["--write", tmp_path / "out", "--worst", 2, "--batch-size", 3]
    done = seq2seq("evaluate", folder, *options, cwd=folder.parent.parent)
    assert done.returncode == 0 and b"translated in" in done.stderr and b"Warning" not in done.stderr
    table = done.stdout.decode()
    assert all(name in table for name in ("BLEU", "chrF", "TER", "CER", "WER", "exact match", "perplexity"))
    assert "nrefs:1|bs:1000" in table and table.count(" -> ") == 2
    sources = (tmp_path / "out" / "sources.txt").read_text().split()
    assert table.startswith(f"{len(sources)} sources, ")
    translations = seq2seq("translate", folder, stdin="\n".join(sources).encode()).stdout.decode()
    assert (tmp_path / "out" / "translations.txt").read_text() == translations
    options = ["--columns", "2,1", "--json", "--beam-width", 3]
    found = json.loads(seq2seq("evaluate", folder, "-", *options, stdin=b"AB\tab\nXY\tab\nCD\tcd\n").stdout)
    assert (found["sources"], found["references"]) == (2, 3) and found["loading_seconds"] > 0
    assert 0 <= found["scores"]["chrF"]["score"] <= 100 and sum(part["texts"] for part in found["by_length"]) == 2


@pytest.fixture(scope="module")
def larger(run):
    """A run on four times the pairs of `run`, which sees them in small letters."""
    folder = run[0].parent.parent
    texts = [a + b for a in "abcdefghij" for b in "abcdefghij"]
    (folder / "larger.tsv").write_text("".join(f"{text.capitalize()}\t{text.upper()}\n" for text in texts))
    options = ["--epochs", 1, "--units", 8, "--lowercase", "--validation-fraction", 0, "--precision", "bfloat16"]
    assert seq2seq("train", "larger.tsv", *options, cwd=folder).returncode == 0
    return folder / "runs" / "larger"


@pytest.mark.slow
def test_compare_tests_any_number_of_runs_on_a_corpus(run, larger, capsys):
    folder, runs = run[0].parent.parent, ["runs/toy", "runs/larger", "runs/toy"]
    test = b"dd\tDD\nxy\tXY\nij\tIJ\ndd\tDd\n"
    done = seq2seq("compare", *runs, "-", "--json", cwd=folder, stdin=test)
    found = json.loads(done.stdout)
    assert (found["sources"], found["runs"]) == (3, runs)
    assert all(len(row) == 3 and row[0] == row[2] and row[0]["p"] == 1 for row in found["scores"].values())
    learned = "runs/toy: trained on 1 of the 3 sources", "runs/larger: trained on 2 of the 3 sources"
    assert done.stderr.decode().splitlines() == [*learned, learned[0]]
    # The table of nine runs.
    tested = {name: [evaluation.Tested(**one) for one in row] * 3 for name, row in found["scores"].items()}
    references = [["DD", "Dd"], ["XY"], ["IJ"]]
    sources = evaluation.Evaluation(["dd", "xy", "ij"], references, [], [], {}, 1.0, 1.0, 0.0, "13a")
    _print_comparison(runs * 3, sources, tested)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 sources, 4 references" and lines[3] == "run 2  runs/larger"
    assert max(map(len, lines)) <= 80
    scores = [line.split() for line in lines if line.startswith("chrF")]
    score, p = ([f"{tested[kind]:.{digits}f}" for tested in found["scores"]["chrF"]] for kind, digits in _FORMATS)
    assert scores == [
        ["chrF", *(score * 3)[:8]],
        ["chrF", *(p * 3)[1:8]],
        ["chrF", score[0], score[2]],
        ["chrF", p[2]],
    ]


_FORMATS = (("score", 1), ("p", 3))


@pytest.mark.slow
def test_compare_without_a_corpus_wants_sources_that_all_runs_have_held_out(run, larger):
    folder = run[0].parent.parent
    done = seq2seq("compare", "runs/toy", "runs/toy", "--json", cwd=folder)
    assert json.loads(done.stdout)["scores"]["chrF"][1]["p"] == 1 and done.stderr == b""
    refused = seq2seq("compare", "runs/toy", "runs/larger", cwd=folder)
    assert refused.returncode == 2 and refused.stdout == b"" and refused.stderr.count(b"\n") == 1
    said = rb"runs/larger was trained on (\d+) of the \1 sources that runs/toy has held out; name a test corpus: "
    assert re.search(said + b"seq2seq compare runs/toy runs/larger CORPUS", refused.stderr)
    (folder / "larger.tsv").rename(folder / "away.tsv")
    (folder / "test.tsv").write_text("ab\tAB\n")
    refused = seq2seq("compare", "runs/toy", "runs/larger", cwd=folder)
    named = seq2seq("compare", "runs/toy", "runs/larger", "test.tsv", cwd=folder)
    (folder / "away.tsv").rename(folder / "larger.tsv")
    assert refused.returncode == 2 and b"larger.tsv: No such file" in refused.stderr
    assert named.returncode == 0 and b"runs/larger: cannot tell which of the sources it was trained on" in named.stderr


def test_compare_tells_runs_from_corpora(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "corpus").mkdir()
    expected = "; expected RUN RUN [RUN]... [CORPUS]...\n"
    missing = "thre: No such file or folder; the built-in corpora are phrasebook, spa-eng"
    for arguments, message in (
        (["one"], "compare: one argument, one"),
        (["one", "corpus"], "compare: corpus is not a run folder"),
        (["one", "tow", "three"], "compare: tow is not a run folder"),
        (["one", "two", "corpus", "three"], "compare: three is a run folder, but stands after the corpus corpus"),
        (["one", "two", "thre"], f"compare: {missing}"),
    ):
        done = seq2seq("compare", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", f"seq2seq: {message}{expected}")


@pytest.mark.slow
def test_evaluate_and_plot_see_that_the_corpus_has_changed(run, tmp_path):
    shutil.copytree(run[0].parent.parent, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "runs" / "larger", ignore_errors=True)
    toy = tmp_path / "moved" / "toy.tsv"
    toy.write_text("".join(reversed(toy.read_text().splitlines(keepends=True))))
    run[0].parent.parent.joinpath("toy.tsv").rename(tmp_path / "away.tsv")
    try:
        changed = seq2seq("evaluate", "runs/toy", cwd=toy.parent)
        drawn = seq2seq("plot", "runs/toy", cwd=toy.parent)
        again = seq2seq("train", "--config", "runs/toy/config.json", "--out", "again", cwd=toy.parent)
    finally:
        (tmp_path / "away.tsv").rename(run[0].parent.parent / "toy.tsv")
    for done in (changed, drawn, again):
        assert b"toy.tsv: no longer what that run was trained on" in done.stderr and done.stderr.count(b"\n") == 1
    assert (changed.returncode, changed.stdout) == (2, b"")
    assert (drawn.returncode, drawn.stdout) == (0, b"runs/toy/curves.png\n")
    assert again.returncode == 2 and not (toy.parent / "again").exists()


@pytest.mark.slow
def test_evaluate_says_what_of_the_held_out_side_was_learned(tmp_path):
    (tmp_path / "pairs.tsv").write_text("".join(f"{c}\t{c}\n" for c in "abcdefgh") + "a\tA\nx\tX\n")
    options = ["--split", "last", "--validation-fraction", 0.2, "--epochs", 1, "--units", 4]
    trained = seq2seq("train", "pairs.tsv", *options, cwd=tmp_path)
    assert b"1 of 2 held-out pairs have a source that is trained on too" in trained.stderr
    done = seq2seq("evaluate", "runs/pairs", "--json", cwd=tmp_path)
    assert done.stderr.startswith(b"runs/pairs: trained on 1 of the 2 sources\n")


@pytest.mark.slow
def test_the_development_side_of_a_task_is_held_out_and_evaluated_on(tmp_path):
    (tmp_path / "train.tsv").write_text("".join(f"{a}{b}\t{a.upper()}{b.upper()}\n" for a in "abcd" for b in "abcd"))
    (tmp_path / "dev.tsv").write_text("ab\tAB\nxy\tXY\n")
    (tmp_path / "more.tsv").write_text("zz\tZZ\n")
    apart = ["--validation", "dev.tsv", "--validation", "more.tsv"]
    options = ["--preset", "tutorial", "--updates", 2, "--units", 4]  # whose epochs and split these replace
    done = seq2seq("train", "train.tsv", *apart, *options, cwd=tmp_path)
    assert done.returncode == 0 and b"1 of 3 held-out pairs have a source that is trained on too\n" in done.stderr
    options = json.loads((tmp_path / "runs/train/config.json").read_text())["options"]
    kept = {"validation": ["dev.tsv", "more.tsv"], "validation_fraction": 0.0, "split": "hash", "epochs": None}
    assert {name: options[name] for name in kept} == kept
    done = seq2seq("evaluate", "runs/train", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["sources"] == 3
    assert done.stderr.startswith(b"runs/train: trained on 1 of the 3 sources\n")
    (tmp_path / "dev.tsv").write_text("ab\tAC\n")
    done = seq2seq("train", "--config", "runs/train/config.json", "--out", "again", cwd=tmp_path)
    assert done.returncode == 2 and b"dev.tsv: no longer what that run was validated on" in done.stderr


@pytest.mark.slow
def test_pictures_are_made_by_train_and_again_by_plot(run):
    folder, _ = run
    first = (folder / "curves.png").read_bytes()
    (folder / "curves.png").unlink()
    done = seq2seq("plot", folder, cwd=folder.parent.parent)
    assert done.returncode == 0, done.stderr
    paths = [Path(line) for line in done.stdout.decode().splitlines()]
    assert {"curves.png", "error-rates.png", "attention-1.png"} <= {path.name for path in paths}
    assert all(path.is_file() for path in paths) and (folder / "curves.png").read_bytes() == first


@pytest.mark.slow
def test_tensorboard_gets_curves_and_pictures_if_it_is_named(run, larger):
    assert not (larger / "tensorboard").exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for name in ("train", "validation", "pictures"):
        events = EventAccumulator(str(run[0] / "tensorboard" / name))
        found[name] = events.Reload().Tags()["tensors"]
    assert "epoch_loss" in found["train"] and {"epoch_loss", "epoch_chrf"} <= set(found["validation"])
    assert {"curves", "attention-1"} <= set(found["pictures"])


@pytest.mark.slow
def test_what_cannot_be_evaluated_is_one_line_and_exit_code_2(run, tmp_path):
    folder, _ = run
    (tmp_path / "empty.tsv").write_text("\n")
    for arguments, message in (
        (["evaluate", folder, tmp_path / "empty.tsv"], "no pairs to evaluate on"),
        (["evaluate", folder, "--limit", 3], "limit is for a corpus, and none is named"),
        (["evaluate", folder, tmp_path / "empty.tsv", "--bleu-tokenizer", "13b"], "did you mean '13a'"),
        (["evaluate", tmp_path], "not a run folder"),
        (["plot", tmp_path], "not a run folder"),
    ):
        done = seq2seq(*arguments, cwd=folder.parent.parent)
        assert done.returncode == 2 and done.stdout == b"", done.stderr
        assert message in done.stderr.decode() and done.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_a_run_starts_from_another(run, tsv, tmp_path):
    new = tsv("".join(f"{a}{b}\t{a.upper()}{b.upper()}\n" for a in "abxy" for b in "xyz"))
    options = ["--epochs", 1, "--precision", "float16"]
    done = seq2seq("train", new, "--from", run[0], *options, "--out", tmp_path / "warm")
    assert done.returncode == 0 and b"source: 3 new tokens\ntarget: 3 new tokens\n" in done.stderr, done.stderr
    options = json.loads((tmp_path / "warm" / "config.json").read_text())["options"]
    assert (options["units"], options["seed"], options["corpus"]) == (8, 1, str(new))
    assert options["precision"] == "float16"
    for more, message in ((["--preset", "default"], "excludes preset"), (["--units", 9], "units=9: ")):
        done = seq2seq("train", new, "--from", run[0], "--out", tmp_path / "other", *more)
        assert done.returncode == 2 and message in done.stderr.decode()


@pytest.mark.parametrize(
    "command", [[SEQ2SEQ, "--help"], [sys.executable, "-c", "import seq2seq"]], ids=["cli", "python"]
)
@pytest.mark.parametrize("how", ["variable", "file"])
def test_another_backend_of_keras_is_refused_in_one_line(tmp_path, command, how):
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    where = {"KERAS_BACKEND": "jax"} if how == "variable" else {"KERAS_HOME": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    done = subprocess.run(command, env=environment | where, capture_output=True, text=True)
    *before, line = done.stderr.splitlines()
    assert "needs Keras on TensorFlow, and not on jax: set KERAS_BACKEND=tensorflow" in line
    if command[0] == SEQ2SEQ:
        assert (done.returncode, before, done.stdout) == (2, [], "")
    else:
        assert done.returncode == 1 and line.startswith("ImportError: ")
