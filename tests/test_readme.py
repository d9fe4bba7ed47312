import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_python_example_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example, *_ = re.findall(r"```python\n(.*?)```", README.split("## From Python")[1].split("\n## ")[0], re.DOTALL)
    assert "epochs=38" in example
    scope = {}
    exec(example.replace("epochs=38", "epochs=1, verbose=0, shuffle=False"), scope)
    assert (tmp_path / "model.keras").is_file()
    assert scope["model"].translate(["Hello."]).shape == (1,)


def test_it_names_every_source_file():
    for package in ("pipelines", "seq2seq"):
        for path in (ROOT / package).glob("*.py"):
            assert path.name == "__init__.py" or f"`{package}/{path.name}`" in README
