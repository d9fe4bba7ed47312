"""The rooms of the house: imports run one way, and each file holds one thing."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for package in ("pipelines", "seq2seq") for path in (ROOT / package).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def imported(path):
    """The modules of this project that a file imports anywhere in it, but for what a package itself offers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys() - {"pipelines", "seq2seq"}


def test_imports_run_in_one_direction():
    inner = {name: imported(path) for name, path in MODULES.items() if name not in ("pipelines", "seq2seq")}
    try:
        TopologicalSorter(inner).prepare()
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' -> '.join(error.args[1])}")
    assert not any(name.startswith("seq2seq") for path in (ROOT / "pipelines").glob("*.py") for name in imported(path))


def test_no_file_is_longer_than_500_lines():
    assert [path.name for path in FILES if len(path.read_text().splitlines()) > 500] == []


def test_what_takes_long_to_make_and_is_shared_is_made_by_one_process(request, upper_case):
    if getattr(request.config.option, "loadgroup", False):  # pytest-xdist sets it, where tests are run in groups
        assert request.node.nodeid.endswith("@upper_case-")
