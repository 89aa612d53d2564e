"""The shipped recipe with few epochs, Airflows of our own, and the run that several modules look at."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# Last, because every folder of tests has a conftest.
sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "kubeflow_backend"))

from airflow_home import BIN, NIGHTLY, AirflowHome, RunAtOnce, killing_python


@pytest.fixture(scope="session")
def schema_dir(schema_dir: Path) -> Path:
    """The recipe with few epochs, run each night."""
    file = schema_dir / "recipe.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"schedule": NIGHTLY}, sort_keys=False))
    return schema_dir


@pytest.fixture(scope="session")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AirflowHome]:
    """Makes an Airflow for a workdir."""
    assert (BIN / "airflow").exists(), "there is no .venv-airflow; run these tests with `make test-airflow`"

    def make(**settings: Any) -> AirflowHome:
        return AirflowHome(tmp_path_factory.mktemp("airflow") / "home", **settings)

    return make


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of every task; files beside it name what it kills."""
    return killing_python(tmp_path_factory.mktemp("python") / "bin")


@pytest.fixture(scope="session")
def home(
    tmp_path_factory: pytest.TempPathFactory,
    airflow_home: Callable[..., AirflowHome],
    movielens: Path,
    schema_dir: Path,
    python: Path,
) -> AirflowHome:
    """An Airflow with the DAG file."""
    workdir = tmp_path_factory.mktemp("tested") / "work"
    return airflow_home(schema_dir=schema_dir, data=movielens, workdir=workdir, schedule="30 4 * * *", python=python)


@pytest.fixture(scope="session")
def tested(home: AirflowHome) -> RunAtOnce:
    """One run of the DAG in this terminal."""
    done = home.airflow("dags", "test", "movielens")
    return RunAtOnce(home, Path(home.settings["TANDEM_WORKDIR"]), done.stdout, done.returncode)


@pytest.fixture(scope="session")
def results() -> Callable[[Path], list[dict[str, Any]]]:
    """What the runs of a workdir came to, oldest first; an empty one for a run without a result."""

    def read(workdir: Path) -> list[dict[str, Any]]:
        files = [folder / "result.json" for folder in sorted((workdir / "runs").iterdir())]
        return [json.loads(file.read_text()) if file.exists() else {} for file in files]

    return read
