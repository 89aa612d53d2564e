"""The work folder: every folder and file name in it, and its lock.

Standard library only at import: Airflow's own processes import it.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import time
from collections.abc import Iterator
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


def check_folder(flag: str, place: Path) -> None:
    """Refuses a folder that is not one, or cannot be made or written."""
    from recipe import BadInput

    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        found = "cannot be written" if there.is_dir() else "is not a folder"
        raise BadInput(f"{flag} {place}: {there} {found}. Name a folder that can be made and written.")


@contextlib.contextmanager
def only_run_in(workdir: Path, *, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Two runs at once would take each other's models for the last blessed one.

    The tasks of one run of an orchestrator, which may be at work side by side, hold a lock of the kind `LOCK_SH`.
    """
    from recipe import BadInput

    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / LOCK_FILE, "w") as lock:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                f"{workdir}: another run is at work here. Wait for it, or give --workdir another folder."
            ) from None
        yield
