import itertools
import re
import shlex
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
from command_line import SEQ2SEQ, seq2seq

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


def test_it_names_every_source_file():
    for package in ("pipelines", "seq2seq"):
        for path in (ROOT / package).glob("*.py"):
            assert path.name == "__init__.py" or f"`{package}/{path.name}`" in README
