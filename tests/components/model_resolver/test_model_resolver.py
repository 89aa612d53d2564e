"""The ModelResolver finds the latest pushed version, or none; a new version is never hidden by the cache."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split
import pytest
from tfx import v1 as tfx
from tfx.utils import path_utils

from components.model_resolver.component import ModelResolver
from components.model_resolver.executor import Executor, is_model
from pipeline.dag import compile_dag
from pipeline.runners import launch

# TFX reads the annotations of component functions, so they cannot be strings (`from __future__ import annotations`).
Model = tfx.types.standard_artifacts.Model
Push = Callable[..., Path]


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "serving" / "shop"


@pytest.fixture
def push(destination: Path) -> Push:
    """Writes a version as the Pusher does."""

    def write(version: str, weights: str, origin: str | None = "artifacts/Trainer/model/7") -> Path:
        folder = destination / version
        (folder / "variables").mkdir(parents=True)
        (folder / "saved_model.pb").write_text("graph")
        (folder / "variables" / "variables.index").write_text(weights)
        if origin is not None:
            (folder / "assets.extra").mkdir()
            (folder / "assets.extra" / "tandem.json").write_text(json.dumps({"model": origin}))
        return folder

    return write


@pytest.fixture
def resolve(destination: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs the executor as an orchestrator without drivers does; gives the artifact."""

    def run(**properties: str) -> Any:
        model = Model()
        model.uri = str(tmp_path / "resolved")
        Executor().Do({}, {"model": [model]}, {"push_destination": str(destination), **properties})
        return model

    return run


def content(model: Any) -> dict[str, str]:
    """The files that the Evaluator would load."""
    folder = Path(path_utils.serving_model_path(model.uri))
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_latest_version_is_copied_with_its_origin(push: Push, resolve: Any) -> None:
    push("1700000000", "old")
    newest = push("1800000000", "new")
    # A number is longer than another one, a folder is no number.
    push("999", "oldest")
    push(".pushing-1900000000-abc", "unfinished")
    model = resolve()
    assert is_model(model)
    assert content(model)["variables/variables.index"] == "new"
    assert {name: model.get_string_custom_property(name) for name in ("pushed_version", "pushed_from", "origin")} == {
        "pushed_version": "1800000000",
        "pushed_from": str(newest),
        "origin": "artifacts/Trainer/model/7",
    }


def test_the_copy_stays_when_the_version_is_removed(push: Push, resolve: Any) -> None:
    version = push("1", "weights")
    model = resolve()
    shutil.rmtree(version)
    assert content(model)["variables/variables.index"] == "weights"


def test_a_version_of_another_process_is_found(push: Push, resolve: Any) -> None:
    push("5", "theirs", origin=None)
    model = resolve()
    assert is_model(model)
    assert model.get_string_custom_property("origin") == ""


@pytest.mark.parametrize("there", [True, False])
def test_an_empty_push_destination_is_no_error(there: bool, destination: Path, resolve: Any) -> None:
    if there:
        destination.mkdir(parents=True)
    model = resolve()
    assert not is_model(model)
    assert model.get_string_custom_property("pushed_version") == ""
    assert "no version yet" in Path(model.uri, "NOTHING_PUSHED").read_text()


def test_a_version_that_was_removed_after_the_driver_ran_is_an_error(push: Push, resolve: Any) -> None:
    """Otherwise the cache would keep another model under its number."""
    push("5", "weights")
    with pytest.raises(FileNotFoundError, match=r"/6 does not exist: another process removed it.*Rerun"):
        resolve(newest_version="6")


@tfx.dsl.components.component
def Compare(last: tfx.dsl.components.InputArtifact[Model], diary: tfx.dsl.components.Parameter[str]):  # type: ignore[valid-type]  # noqa: N802
    with open(diary, "a") as file:
        file.write(last.get_string_custom_property("pushed_version") + "\n")


@dataclasses.dataclass
class Bench:
    """The ModelResolver and a component that compares with what it found, on the local runner."""

    folder: Path
    destination: Path
    runs: int = 0

    def run(self) -> dict[str, bool]:
        """Which of the two came from the cache."""
        self.runs += 1
        resolver = ModelResolver(push_destination=str(self.destination), code_version="1")
        compare = Compare(last=resolver.outputs["model"], diary=str(self.folder / "diary"))
        metadata = tfx.orchestration.metadata.sqlite_metadata_connection_config(str(self.folder / "metadata.sqlite"))
        dag = tfx.dsl.Pipeline(
            pipeline_name="bench",
            pipeline_root=str(self.folder / "artifacts"),
            components=[resolver, compare],
            enable_cache=True,
            metadata_connection_config=metadata,
        )
        runs = launch.run(compile_dag(dag), f"run-{self.runs}", started=lambda _: None, finished=lambda _: None)
        return {run.name: run.cached for run in runs}

    @property
    def compared(self) -> list[str]:
        return (self.folder / "diary").read_text().splitlines()


def test_an_unchanged_folder_is_cached_and_a_pushed_version_is_not(
    tmp_path: Path, destination: Path, push: Push
) -> None:
    bench = Bench(tmp_path, destination)
    hits, misses = {"ModelResolver": True, "Compare": True}, {"ModelResolver": False, "Compare": False}
    assert bench.run() == misses
    assert bench.run() == hits
    push("5", "first")
    assert bench.run() == misses
    assert bench.run() == hits
    push("6", "second")
    assert bench.run() == misses
    shutil.rmtree(destination / "6")
    # The older version is what would be replaced again; the comparison with it is known.
    assert bench.run() == hits
    assert bench.compared == ["", "5", "6"]
