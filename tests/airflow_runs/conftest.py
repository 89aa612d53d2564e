"""MovieLens with a fifth of its users, a recipe with few epochs, and the runs that the tests look at."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# Last, because every folder of tests has a conftest.
sys.path.append(str(Path(__file__).parent))

from airflow_home import BIN, AirflowHome

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory, movielens: Path) -> Path:
    """Every film, and each fifth user with all their ratings."""
    folder = tmp_path_factory.mktemp("sample")
    for name in ("items.csv", "users.csv"):
        shutil.copy(movielens / name, folder)
    with (movielens / "interactions.csv").open(newline="") as source:
        rows = csv.DictReader(source)
        with (folder / "interactions.csv").open("w", newline="") as target:
            writer = csv.DictWriter(target, rows.fieldnames or ())
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["user_id"]) % 5 == 0)
    return folder


@pytest.fixture(scope="session")
def schema_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recipe, trained for two epochs, with a gate that this passes."""
    folder = tmp_path_factory.mktemp("schemas") / "movielens"
    shutil.copytree(ROOT / "schemas" / "movielens", folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["training"]["epochs"] = 2
    recipe["gates"] = [{"metric": "top_100_accuracy", "at_least": 0.01}, {"metric": "rmse", "at_most": 3.0}]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


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
