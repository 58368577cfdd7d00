"""The examples are performed: programs as programs, the notebook in a kernel."""

from __future__ import annotations

import csv
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow  # programs and a kernel of their own
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def perform(perform_program):
    def performed(name, *words, cwd):
        done = perform_program(EXAMPLES / name, *words, folder=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return performed


def test_own_csv(perform, model_folder, inputs, tmp_path):
    path, labels = tmp_path / "rows.csv", [i % 3 for i in range(40)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clinic", "notes", "diagnosis"])
        for i, text in enumerate(inputs("text", labels, 0)):
            writer.writerow([("north", "south")[i % 2], text, "abc"[labels[i]]])
    columns = ["--client", "clinic", "--input", "notes", "--label", "diagnosis"]
    model = ["--model", str(model_folder("bert")), "--rounds", "1"]
    *_, north, south = perform("own_csv.py", str(path), *columns, *model, cwd=tmp_path)
    assert (north.split()[:2], south.split()[:2]) == (["north", "4"], ["south", "4"])
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]


def test_own_model(perform, tmp_path):
    *_, predicted, kind = perform("own_model.py", cwd=tmp_path)
    assert predicted.count("digit") == 3
    assert kind == "PeftModel"


@pytest.fixture(scope="module")
def performed():
    """The notebook with its outputs."""
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    return notebook


def shown(notebook, kind):
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return [str(out["data"][kind]) for out in outputs if kind in out.get("data", {})]


def test_the_notebook_shows_progress_tables_and_a_figure(performed):
    pages, texts = shown(performed, "text/html"), shown(performed, "text/plain")
    assert sum("round" in page and "validation" in page for page in [*pages, *texts]) >= 1
    assert any("worst decile" in page for page in pages)  # the result
    assert any("test_accuracy_personal" in page for page in pages)  # a table of pandas
    assert len(shown(performed, "image/png")) == 1
