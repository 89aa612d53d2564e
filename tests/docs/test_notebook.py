"""The notebook is valid, committed without outputs, and runs from the first to the last cell."""

from __future__ import annotations

from collections.abc import Callable
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


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[nbformat.NotebookNode], None]:
    """Run all cells of a notebook in a kernel of its own; an error of a cell is an error of the test."""
    # ipykernel does not capture the output of other processes if it finds this variable.
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def run(cells: nbformat.NotebookNode) -> None:
        NotebookClient(cells, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()

    return run


PROGRESS = """
import os
from pathlib import Path
from pipeline.console import Progress, output_to_file, progress_console

with output_to_file(Path({log!r})) as terminal:
    progress = Progress(progress_console(terminal), 2)
    progress.start("Trainer")
    print("from Python", flush=True)
    os.system("echo from a process")
    progress.done("Trainer", 1.0)
print("after")
"""


def test_progress_is_one_plain_line_per_component(
    tmp_path: Path, execute: Callable[[nbformat.NotebookNode], None]
) -> None:
    found = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PROGRESS.format(log=str(tmp_path / "log.txt")))])
    execute(found)
    assert [line.split() for line in outputs(found.cells[0]).splitlines()] == [
        ["✓", "1/2", "Trainer", "1.0", "s"], ["after"]
    ]  # fmt: skip
    assert sorted((tmp_path / "log.txt").read_text().splitlines()) == ["from Python", "from a process"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs(
    movielens: Path, schema_dir: Path, tmp_path: Path, execute: Callable[[nbformat.NotebookNode], None]
) -> None:
    """With two epochs instead of the recipe's, and gates that such a model passes."""
    found = notebook()
    (parameters,) = (cell for cell in found.cells if "parameters" in cell.metadata.get("tags", ()))
    values = {"SCHEMA_DIR": schema_dir, "DATA": movielens, "WORKDIR": tmp_path / "work"}
    assert all(f"{name} = " in parameters.source for name in values)
    parameters.source += "".join(f"\n{name} = Path({str(path)!r})" for name, path in values.items())
    execute(found)
    cells = {cell.source.splitlines()[0]: outputs(cell) for cell in found.cells if cell.cell_type == "code"}
    first = cells["result = run_recipe(SCHEMA_DIR, DATA, WORKDIR)"].splitlines()
    assert len(first) == 10 and "InteractionExampleGen" in first[0] and "Pusher" in first[-1], first
    assert "Blessed" in cells["print_run_summary(result)"]
    assert (tmp_path / "work" / "report.html").stat().st_size > 100_000
    second = next(text for source, text in cells.items() if source.startswith("second = run_recipe"))
    assert sum("cache" in line for line in second.splitlines()) == 5
