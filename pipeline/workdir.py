"""The work folder: all its folder and file names, and its lock.

Standard library only at import: Airflow's own processes import this module.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

ARTIFACTS_FOLDER = "artifacts"
SERVING_FOLDER = "serving"
RUNS_FOLDER = "runs"
COMPILED_DAGS_FOLDER = "plans"
COMPARISONS_FOLDER = "compare"
"""A work folder of `tandem compare`, with its own artifacts, metadata and runs."""
METADATA_FILE = "metadata.sqlite"
LOCK_FILE = ".lock"

# In a run's folder.
REQUEST_FILE = "asked.json"
RESOLVED_RECIPE_FILE = "recipe.json"
RESULT_FILE = "result.json"
ERROR_FILE = "error.txt"
LOG_FILE = "log.txt"
COMPILED_DAG_FILE = "plan.json"
"""The DAG that Airflow's tasks run; `tandem run` writes none."""

# In the folder of a comparison.
COMPARISON_FILE = "comparison.json"
COMPARISON_PLOT_FILE = "curves.html"


def run_folder(workdir: Path, run_id: str) -> Path:
    """Return the folder of a run's recipe, log and result."""
    return workdir / RUNS_FOLDER / run_id


def push_destination(workdir: Path, recipe_name: str) -> Path:
    """Return the default push destination of a recipe."""
    return workdir / SERVING_FOLDER / recipe_name


def new_folder(runs: Path) -> Path:
    """Make a folder whose name is the local time."""
    while True:
        folder = runs / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        time.sleep(0.1)


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def check_folder(flag: str, place: Path) -> None:
    """Check that a folder can be made and written.

    Raises:
        BadInput: It is a file, or it is not writable.
    """
    from recipe import BadInput

    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        found = "is not writable" if there.is_dir() else "is not a folder"
        raise BadInput(f"{flag} {place}: {there} {found}. Choose a folder that can be made and written.")


@contextlib.contextmanager
def only_run_in(workdir: Path, *, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Lock the work folder: of two simultaneous runs, one could compare its model with the other's.

    The tasks of one Airflow run may run in parallel; they hold a lock of the kind `LOCK_SH`.

    Raises:
        BadInput: Another run holds the lock.
    """
    from recipe import BadInput

    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / LOCK_FILE, "w") as lock:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                f"{workdir}: another run is in progress. Wait for it to end, or set --workdir to another folder."
            ) from None
        yield
