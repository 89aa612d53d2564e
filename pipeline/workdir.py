"""What a work folder holds, by name. Standard library only: Airflow's own processes import it."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from pathlib import Path

RUNS_FOLDER = "runs"
METADATA_FILE = "metadata.sqlite"
LOCK_FILE = ".lock"

# In a run's folder.
ASKED_FILE = "asked.json"
RECIPE_FILE = "recipe.json"
RESULT_FILE = "result.json"
ERROR_FILE = "error.txt"
LOG_FILE = "log.txt"
PLAN_FILE = "plan.json"
"""What an orchestrator's tasks do in this run; `tandem run` leaves none."""


def run_folder(workdir: Path, run_id: str) -> Path:
    """Where a run keeps its recipe, log and result."""
    return workdir / RUNS_FOLDER / run_id


def new_folder(runs: Path) -> Path:
    """Makes a folder that is named by the time."""
    while True:
        folder = runs / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        time.sleep(0.1)


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is complete or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
