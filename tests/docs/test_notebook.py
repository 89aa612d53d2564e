"""The notebook is valid, committed without outputs, and runs from the first to the last cell."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "movielens.ipynb"


def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(cell: nbformat.NotebookNode) -> str:
    """All text that a cell has shown."""
    return "".join(
        output["text"] if output.output_type == "stream" else str(output.get("data", {}).get("text/plain", ""))
        for output in cell.outputs
    )


def test_the_notebook_is_valid_and_has_no_outputs() -> None:
    found = notebook()
    nbformat.validate(found)
    code = [cell for cell in found.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_notebook_runs(movielens: Path, schema_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two epochs instead of the recipe's, and gates that such a model passes."""
    # ipykernel does not capture the output of other processes if it finds this variable.
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    found = notebook()
    (parameters,) = (cell for cell in found.cells if "parameters" in cell.metadata.get("tags", ()))
    values = {"SCHEMA_DIR": schema_dir, "DATA": movielens, "WORKDIR": tmp_path / "work"}
    assert all(f"{name} = " in parameters.source for name in values)
    parameters.source += "".join(f"\n{name} = Path({str(path)!r})" for name, path in values.items())
    NotebookClient(found, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    cells = {cell.source.splitlines()[0]: outputs(cell) for cell in found.cells if cell.cell_type == "code"}
    first = cells["result = run_recipe(SCHEMA_DIR, DATA, WORKDIR)"].splitlines()
    assert len(first) == 10 and "InteractionExampleGen" in first[0] and "Pusher" in first[-1], os.linesep.join(first)
    assert "Blessed" in cells["print_run_summary(result)"]
    assert (tmp_path / "work" / "report.html").stat().st_size > 100_000
    second = next(text for source, text in cells.items() if source.startswith("second = run_recipe"))
    assert sum("cache" in line for line in second.splitlines()) == 5
