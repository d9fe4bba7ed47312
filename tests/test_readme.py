import itertools
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
