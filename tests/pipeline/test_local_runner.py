"""The local runner reports progress, uses the cache, and stops at the first failure."""

import gc
import io
import logging
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import dag
from pipeline.runners import launch
from pipeline.runners.local import start_tfx

# isort: split
from tfx import v1 as tfx

# TFX reads the annotations of component functions, so they cannot be strings (`from __future__ import annotations`).
Model = tfx.types.standard_artifacts.Model
Examples = tfx.types.standard_artifacts.Examples


class Unwell(Exception):
    pass


def note(diary: str, line: str) -> None:
    with open(diary, "a") as file:
        file.write(line + "\n")


@tfx.dsl.components.component
def Read(examples: tfx.dsl.components.OutputArtifact[Examples], diary: tfx.dsl.components.Parameter[str]):  # type: ignore[valid-type]  # noqa: N802
    note(diary, "Read")
    Path(examples.uri, "rows").write_text("1 2 3")
    examples.set_int_custom_property("rows", 3)


@tfx.dsl.components.component
def Learn(  # noqa: N802
    examples: tfx.dsl.components.InputArtifact[Examples],
    model: tfx.dsl.components.OutputArtifact[Model],
    diary: tfx.dsl.components.Parameter[str],
):
    note(diary, "Learn")
    if Path(diary).with_name("unwell").exists():
        raise Unwell("no rows to learn from")
    Path(model.uri, "weights").write_text(Path(examples.uri, "rows").read_text())


@tfx.dsl.components.component
def Publish(model: tfx.dsl.components.InputArtifact[Model], diary: tfx.dsl.components.Parameter[str]):  # noqa: N802
    note(diary, "Publish " + Path(model.uri, "weights").read_text())


class Bench:
    """Runs a pipeline of three components and keeps the runner's events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[str] = []
        self._diary = folder / "diary"
        self._runs = 0

    def run(self) -> list[launch.ComponentRun]:
        self.events = []
        self._diary.write_text("")
        self._runs += 1
        diary = str(self._diary)
        read = Read(diary=diary)
        learn = Learn(examples=read.outputs["examples"], diary=diary)
        publish = Publish(model=learn.outputs["model"], diary=diary)
        pipeline = tfx.dsl.Pipeline(
            pipeline_name="bench",
            pipeline_root=str(self.folder / "artifacts"),
            components=[read, learn, publish],
            enable_cache=True,
            metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
                str(self.folder / "metadata.sqlite")
            ),
        )
        return launch.run(
            dag.compile_dag(pipeline),
            f"run-{self._runs}",
            started=lambda name: self.events.append(f"{name} starts"),
            finished=lambda run: self.events.append(f"{run.name} {'cached' if run.cached else 'done'}"),
        )

    @property
    def executed(self) -> list[str]:
        return self._diary.read_text().splitlines()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def unwell(tmp_path: Path) -> Callable[[], None]:
    """Makes Learn fail; the returned function fixes it."""
    (tmp_path / "unwell").write_text("")
    return (tmp_path / "unwell").unlink


def test_each_component_is_reported_before_and_after_it_runs(bench: Bench) -> None:
    runs = bench.run()
    assert bench.events == [
        *("Read starts", "Read done"),
        *("Learn starts", "Learn done"),
        *("Publish starts", "Publish done"),
    ]
    assert bench.executed == ["Read", "Learn", "Publish 1 2 3"]
    assert [run.name for run in runs] == ["Read", "Learn", "Publish"]
    assert all(0 < run.seconds < 60 for run in runs)


def test_outputs_have_uri_and_properties(bench: Bench) -> None:
    read, learn, publish = bench.run()
    (examples,) = read.outputs["examples"]
    assert examples.get_int_custom_property("rows") == 3
    assert Path(examples.uri, "rows").is_file()
    assert Path(learn.outputs["model"][0].uri, "weights").read_text() == "1 2 3"
    assert publish.outputs == {}


def test_a_second_run_is_cached(bench: Bench) -> None:
    first = bench.run()
    second = bench.run()
    assert bench.executed == []
    assert bench.events == [
        *("Read starts", "Read cached"),
        *("Learn starts", "Learn cached"),
        *("Publish starts", "Publish cached"),
    ]
    assert second[1].outputs["model"][0].uri == first[1].outputs["model"][0].uri
    assert second[0].outputs["examples"][0].get_int_custom_property("rows") == 3


def test_components_without_caching_run_every_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dag, "NEVER_CACHED", ("Publish",))
    bench.run()
    runs = bench.run()
    assert bench.executed == ["Publish 1 2 3"]
    assert [run.cached for run in runs] == [True, True, False]


def test_a_failure_names_the_component_keeps_the_cause_and_stops_the_run(
    bench: Bench, unwell: Callable[[], None]
) -> None:
    with pytest.raises(launch.ComponentError) as caught:
        bench.run()
    assert caught.value.component == "Learn"
    assert 0 < caught.value.seconds < 60
    assert type(caught.value.__cause__) is Unwell
    assert str(caught.value.__cause__) == "no rows to learn from"
    assert bench.events == ["Read starts", "Read done", "Learn starts"]
    assert bench.executed == ["Read", "Learn"]


def test_after_a_failure_the_next_run_uses_completed_components(bench: Bench, unwell: Callable[[], None]) -> None:
    with pytest.raises(launch.ComponentError):
        bench.run()
    fix = unwell
    fix()
    runs = bench.run()
    assert bench.executed == ["Learn", "Publish 1 2 3"]
    assert [run.cached for run in runs] == [True, False, False]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.root, "handlers", list(logging.root.handlers))
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_objects_of_imports_are_excluded_from_garbage_collection(collector: None) -> None:
    """TensorFlow and TFX are a million objects, which would slow down every component."""
    with start_tfx(Console(file=io.StringIO())):
        assert gc.isenabled()
        assert gc.get_freeze_count() > 500_000
