import importlib.metadata
import json
import os
import shlex
import subprocess
import sys

import pytest
from command_line import SEQ2SEQ
from command_line import in_process as seq2seq

COMMANDS = {
    "train": ["phrasebook", "spa-eng", "--preset", "--overwrite", "\nModel:\n", "--cell", "Example:"],
    "translate": ["stdin", "space", "ensemble", "--beam-width", "--temperature", "--prefix", "--search", "Example:"],
    "score": ["log-likelihood", "nan", "Example:"],
    "evaluate": ["--json", "--write", "held-out", "Example:"],
    "compare": ["approximate randomization", "Example:"],
    "demo": ["--port", "7860", "Example:"],
    "export": ["SavedModel", "Example:"],
    "plot": ["attention", "Example:"],
    "average": ["--keep-epochs", "Example:"],
    "sweep": ["--grid", "--trials", "same command", "Example:"],
    "table": ["--baseline", "Welch", "Example:"],
    "inspect": ["--histogram", "Example:"],
    "shuffle": ["--shards", "Example:"],
}


@pytest.mark.parametrize("width", [80, 120])
def test_help_teaches_and_fits_the_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for arguments, words in (([], [*COMMANDS, "from the first."]), *(([name], COMMANDS[name]) for name in COMMANDS)):
        shown = seq2seq(*arguments, "--help").stdout.decode()
        assert all(word in shown for word in words), arguments
        assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("program", [[SEQ2SEQ], [sys.executable, "-m", "seq2seq"]], ids=["script", "module"])
def test_a_shell_completes_options(program):
    asked = {"_SEQ2SEQ_COMPLETE": "complete_bash", "COMP_WORDS": "seq2seq translate --attent", "COMP_CWORD": "2"}
    done = subprocess.run(program, env=os.environ | asked, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "--attention\n"), done.stderr


def test_help_imports_no_tensorflow():
    command = [sys.executable, "-X", "importtime", SEQ2SEQ, "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "typer" in done.stderr
    assert "tensorflow" not in done.stderr and "numpy" not in done.stderr


def test_the_version_is_that_of_the_package():
    done = seq2seq("--version")
    assert (done.returncode, done.stdout.decode()) == (
        0,
        f"keras-seq2seq {importlib.metadata.version('keras-seq2seq')}\n",
    )


@pytest.mark.parametrize(
    ("closed", "code", "said"),
    [
        ("translate RUN a <&- 2>&-", 0, b""),
        ("translate RUN <&-", 2, b"seq2seq: standard input is closed\n"),
        ("translate RUN a <&- >&-", 2, b"seq2seq: standard output is closed, but results go there"),
    ],
)
@pytest.mark.slow
def test_closed_streams_are_no_tracebacks(untrained, closed, code, said):
    line = f"{SEQ2SEQ} {closed.replace('RUN', shlex.quote(str(untrained)))}"
    done = subprocess.run(line, shell=True, capture_output=True)
    assert done.returncode == code and said in done.stderr and done.stderr.count(b"\n") == bool(said)
    assert done.stdout == (b"" if code else seq2seq("translate", untrained, "a").stdout)


@pytest.mark.slow
def test_a_forced_ascii_locale_changes_nothing(tmp_path):
    forced = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    pairs, out = tmp_path / "niños.tsv", tmp_path / "añadido"
    pairs.write_text("".join(f"{a}{b}ñ\tñ{b}\n" for a in "abcde" for b in "abcde"), encoding="utf-8")

    def run(*arguments):
        done = subprocess.run([SEQ2SEQ, *arguments], env=forced, capture_output=True)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
        return done.stdout.decode()

    options = "--epochs 1 --units 8 --cell gru --no-bidirectional --attention none --embedding none"
    assert run("train", pairs, *options.split(), "--out", out) == f"{out}\n"
    kept = json.loads((out / "probe.json").read_text(encoding="utf-8"))
    options = json.loads((out / "config.json").read_text(encoding="utf-8"))["options"]
    assert os.fsdecode(options["corpus"].encode("utf-8", "surrogateescape")) == str(pairs)
    assert all(source.endswith("ñ") for source in kept)
    said = run("inspect", pairs, "--json")
    assert "ñ" in said and json.loads(said)["pairs"] == 25


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error(untrained):
    line = f"yes ab | head -n 20000 | {SEQ2SEQ} translate {untrained} | head -n 1; exit ${{PIPESTATUS[2]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True)
    assert done.returncode == 0 and done.stdout.count(b"\n") == 1 and done.stderr == b""


def test_a_missing_extra_is_named(tsv, tmp_path, monkeypatch):
    commands = {
        "matplotlib": ("plots", ["inspect", tsv("a\tb\n"), "--histogram", "x.png"]),
        "wandb": ("wandb", ["train", tsv("a\tb\n"), "--track", "wandb", "--out", tmp_path / "run"]),
        "mlflow": ("mlflow", ["train", tsv("a\tb\n"), "--track", "mlflow", "--out", tmp_path / "run"]),
        "sentencepiece": ("subword", ["train", tsv("a\tb\n"), "--preset", "subword", "--out", tmp_path / "run"]),
        "gradio": ("demo", ["demo", "phrasebook"]),
        "sacrebleu": ("evaluation", ["evaluate", "phrasebook"]),
        "optuna": ("sweep", ["sweep", tsv("a\tb\n"), "--grid", "units=4,8", "--trials", 2, "--out", tmp_path / "runs"]),
    }
    for module in ("demo", "evaluation", "scores", "pictures"):
        monkeypatch.delitem(sys.modules, f"seq2seq.{module}", raising=False)
    for name, (extra, command) in commands.items():
        for module in [name, *(loaded for loaded in sys.modules if loaded.startswith(f"{name}."))]:
            monkeypatch.setitem(sys.modules, module, None)
        done = seq2seq(*command, cwd=tmp_path)
        wanted = f"seq2seq: this needs {name}: pip install 'keras-seq2seq[{extra}]'\n"
        assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", wanted)
    assert not (tmp_path / "run" / "model.keras").exists()


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
    assert "needs Keras on TensorFlow, not on jax: set KERAS_BACKEND=tensorflow" in line
    if command[0] == SEQ2SEQ:
        assert (done.returncode, before, done.stdout) == (2, [], "")
    else:
        assert done.returncode == 1 and line.startswith("ImportError: ")
