"""`examples/tutorial.ipynb` is `examples/tutorial.py`, run from top to bottom. As a program, this makes it again."""

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

SCRIPT = Path(__file__).parent.parent / "examples" / "tutorial.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")
SHORTER = {"epochs = 38": "epochs = 1", "units=256": "units=8"}


def executed(text, folder):
    """The notebook of a script in jupytext's percent format, with what its cells printed and drew."""
    notebook = jupytext.reads(text, "py:percent")
    place = {"metadata": {"path": folder}}
    NotebookClient(notebook, kernel_name="python3", resources=place, timeout=None, coalesce_streams=True).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":  # without what TensorFlow says of the machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def printed(notebook):
    """The text that each code cell has printed."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(output["text"] for output in cell.outputs if output.get("name") == "stdout") for cell in cells]


def test_the_notebook_holds_the_script_and_what_it_gave():
    notebook, script = jupytext.read(NOTEBOOK), jupytext.read(SCRIPT)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in script.cells
    ]
    said = "".join(printed(notebook))
    for sentence, right in {
        "Good morning.": "Buenos días.",
        "Where is the station?": "¿Dónde está la estación?",
    }.items():
        assert f"beam    {sentence}  ->  {right}\n" in said
    assert (
        sum("image/svg+xml" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
        == 1
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Kernel is running over TCP")
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    text = SCRIPT.read_text()
    for long, short in SHORTER.items():
        assert long in text
        text = text.replace(long, short)
    for cell, was in zip(printed(executed(text, tmp_path)), printed(jupytext.read(NOTEBOOK)), strict=True):
        assert bool(cell) == bool(was)


if __name__ == "__main__":
    notebook = executed(SCRIPT.read_text(), SCRIPT.parent)
    jupytext.write(notebook, NOTEBOOK)
