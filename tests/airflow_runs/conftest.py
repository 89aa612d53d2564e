"""The Airflow of the tests, and what its runs came to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Last, because every folder of tests has a conftest.
sys.path.append(str(Path(__file__).parent))

from airflow_home import BIN, AirflowHome


@pytest.fixture(scope="session")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AirflowHome]:
    """Makes an Airflow for a workdir."""
    assert (BIN / "airflow").exists(), "there is no .venv-airflow; run these tests with `make test-airflow`"

    def make(**settings: Any) -> AirflowHome:
        return AirflowHome(tmp_path_factory.mktemp("airflow") / "home", **settings)

    return make


@pytest.fixture(scope="session")
def results() -> Callable[[Path], list[dict[str, Any]]]:
    """What the runs of a workdir came to, oldest first; an empty one for a run without a result."""

    def read(workdir: Path) -> list[dict[str, Any]]:
        files = [folder / "result.json" for folder in sorted((workdir / "runs").iterdir())]
        return [json.loads(file.read_text()) if file.exists() else {} for file in files]

    return read
