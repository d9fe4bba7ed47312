"""The modules in `examples/` do what their first lines say: these commands are run as they stand there."""

import ast
import shlex
import shutil
from pathlib import Path

import pytest
from command_line import seq2seq

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def commands(path):
    """The command lines in a module's docstring, without the name of the program."""
    lines = ast.get_docstring(ast.parse(path.read_text())).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("seq2seq ")]


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_written(path, tmp_path):
    shutil.copy(path, tmp_path)
    (tmp_path / "verbs.tsv").write_text(
        "lemma\tfeatures\tform\n" + 20 * "walk\tTense=Past|Person=1\twalked\ngo\t_\tgo\n"
    )
    (tmp_path / "pairs.tsv").write_text("".join(f"{a}{b}\t{b}{a}\n" for a in "abcdefg" for b in "abcdefg"))
    assert commands(path)
    for arguments in commands(path):
        done = seq2seq(*arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr.decode())
    assert done.stdout
