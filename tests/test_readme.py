import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from command_line import SEQ2SEQ, seq2seq
from conftest import LINES

from seq2seq import load_run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_python_example_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example, *_ = re.findall(r"```python\n(.*?)```", README.split("## From Python")[1].split("\n## ")[0], re.DOTALL)
    assert "epochs=38" in example
    scope = {}
    exec(example.replace("epochs=38", "epochs=1, verbose=0"), scope)
    assert (tmp_path / "model.keras").is_file()
    assert scope["model"].translate(["Hello."]).shape == (1,)


@pytest.mark.slow
def test_the_tour_runs_as_written(tmp_path):
    with (ROOT / "pipelines" / "phrasebook.tsv").open() as phrasebook, (tmp_path / "pairs.tsv").open("w") as pairs:
        pairs.writelines(itertools.islice(phrasebook, 120))
    block = re.search(r"<!-- ci: tour -->\n```bash\n(.*?)```", README, re.DOTALL)[1]
    *commands, serve = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(commands) == 4
    for _, *arguments in commands:
        done = seq2seq(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "exported" / "1" / "saved_model.pb").is_file()
    with subprocess.Popen(
        [SEQ2SEQ, *serve[1:], "--port", "0"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as demo:
        try:
            with urllib.request.urlopen(demo.stdout.readline().strip()) as page:
                assert "gradio" in page.read().decode()
        finally:
            demo.send_signal(signal.SIGINT)
    assert demo.returncode == 130


@pytest.mark.slow
def test_data_comes_out_as_written(tmp_path, monkeypatch):
    with (ROOT / "pipelines" / "phrasebook.tsv").open() as phrasebook, (tmp_path / "pairs.tsv").open("w") as pairs:
        pairs.writelines(itertools.islice(phrasebook, 60))
    section = README.split("## Getting data out")[1].split("\n## ")[0]
    (commands,) = re.findall(r"<!-- ci: data -->\n```bash\n(.*?)```", section, re.DOTALL)
    (example,) = re.findall(r"<!-- ci: data -->\n```python\n(.*?)```", section, re.DOTALL)
    small = commands.replace("train pairs.tsv", "train pairs.tsv --epochs 4 --units 8")
    environment = {**os.environ, "PATH": f"{Path(SEQ2SEQ).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", small], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0 and done.stdout == b"runs/mine\nruns/mean\n", done.stderr.decode()
    translated, looked, scored = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().split("\n")[:-1]]
        for name in ("translations", "attention", "scores")
    )
    assert [len(known["translations"]) for known in translated] == [3, 3] and len(looked) == len(scored) == 60
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(example, scope)
    found, model = scope["found"], scope["model"]
    assert [one["text"] for one in translated[0]["translations"]] == [text.decode() for text in found.texts[0].numpy()]
    each = model.score(scope["texts"], scope["best"], per_token=True)
    assert translated[1]["translations"][0]["log_probabilities"] == pytest.approx(each[1].numpy().tolist(), abs=1e-3)
    shape = len(looked[0]["translations"][0]["tokens"]), len(looked[0]["source_tokens"])
    assert [len(looked[0]["translations"][0]["attention"]), len(looked[0]["translations"][0]["attention"][0])] == [
        *shape
    ]
    assert scope["encoded"].memory.shape == (2, 13, 8)
    records = [json.loads((tmp_path / "runs" / name / "config.json").read_text()) for name in ("mean", "mean-of-all")]
    assert [record["averaged"]["epochs"] for record in records] == [[2, 3, 4], [1, 2, 3, 4]]
    named = set(re.findall(r"`(\w+)`", section))
    assert {*translated[0], *translated[0]["translations"][0], *scored[0], *records[0]["training"]} <= named
    assert (tmp_path / "runs/mine/tensorboard").is_dir()


@pytest.mark.slow
def test_the_decoding_strategies_run_as_written(tmp_path):
    section = README.split("## Decoding strategies\n")[1].split("\n## ")[0]
    stutter, python = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (commands,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    (tmp_path / "stutter.py").write_text(stutter)
    pairs = ("Good morning.", "Buenos días."), ("Good night.", "Buenas noches.")
    (tmp_path / "pairs.tsv").write_text("".join(f"{n} {a}\t{n} {b}\n" for n in range(20) for a, b in pairs))
    small = ["--epochs", 1, "--units", 8, "--cell", "gru"]
    assert seq2seq("train", "pairs.tsv", "--out", "runs/mine", *small, cwd=tmp_path).returncode == 0
    environment = os.environ | {"PATH": f"{Path(SEQ2SEQ).parent}:{os.environ['PATH']}"}
    found = []
    for line in commands.splitlines():
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.splitlines())
    assert not re.search(r"(.)\1", found[0][0]) and len(found[3]) == 5 and found[4][0].startswith("Buen")
    scope = {"model": load_run(tmp_path / "runs" / "mine")}
    exec(python, scope)
    shown = [eval(line.partition("#")[0], scope) for line in python.splitlines() if line.startswith("model.")]
    assert [text.decode().startswith("Buen") for text in shown[0].numpy()] == [True, False]
    assert shown[1].texts.shape == (1, 5)


@pytest.mark.slow
def test_sweeps_and_tables_run_as_written_with_fewer_runs_of_one_epoch(tmp_path):
    for name in ("pairs.tsv", "test.tsv"):
        (tmp_path / name).write_text(LINES)
    section = README.split("## Sweeps and tables")[1].split("\n## ")[0]
    block = re.search(r"<!-- ci: sweep -->\n```bash\n(.*?)```", section, re.DOTALL)[1]
    short = {"epochs": 1, "cell": "gru", "attention": None}
    for _, *arguments in (shlex.split(line, comments=True) for line in block.splitlines()):
        if arguments[0] == "sweep":
            arguments[arguments.index("--trials" if "--trials" in arguments else "--seeds") + 1] = "1"
            arguments += [part for name, value in short.items() for part in ("--set", f"{name}={value}")]
        done = seq2seq(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "runs" / "sizes.png").is_file() and len(list(tmp_path.glob("runs/search/*/seed-0"))) == 1
    (script,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert "seeds=3" in script
    (tmp_path / "script.py").write_text(script.replace("seeds=3", f"seeds=1, options={short}"))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "| units=128 | 1 |" in done.stdout, done.stderr


def test_it_names_every_source_file():
    for package in ("pipelines", "seq2seq"):
        for path in (ROOT / package).glob("*.py"):
            assert path.name == "__init__.py" or f"`{package}/{path.name}`" in README
