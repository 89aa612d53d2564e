"""Airflow runs the DAG of `tandem run`, which is compiled again exactly when recipe, schema or code changes."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import contextlib
import dataclasses
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runners import launch
from pipeline.runners.airflow import compiled_dag

# isort: split
from tfx.proto.orchestration import pipeline_pb2

from pipeline.runners.airflow.compiled_dag import (
    CompiledDag,
    CompileError,
    CompileWarning,
    Deployment,
    compiled_dag_for,
    print_reason,
    printed_reason,
)
from pipeline.runners.local import run_recipe
from recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
BOOKS = ROOT / "schemas" / "books"
SAMPLE = ROOT / "tests" / "samples" / "books"
OVERRIDES = ("training.epochs=3",)


class Seen(Exception):
    """Carries what the local runner was given."""


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(str(BOOKS), str(SAMPLE), str(tmp_path / "work"), overrides=OVERRIDES)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> CompiledDag:
    """The compiled DAG of a shipped recipe, compiled in a separate process."""
    workdir = tmp_path_factory.mktemp("planned") / "work"
    return compiled_dag_for(Deployment(str(BOOKS), str(SAMPLE), str(workdir), overrides=OVERRIDES), sys.executable)


@pytest.fixture
def compiled_locally(planned: CompiledDag, monkeypatch: pytest.MonkeyPatch) -> pipeline_pb2.Pipeline:
    """The DAG of `tandem run` for the same recipe, data and folders."""
    given_dags: list[Any] = []

    def see(dag: Any, run_id: str, started: Any, finished: Any) -> list[Any]:
        given_dags.append(dag)
        raise Seen

    monkeypatch.setattr(launch, "run", see)
    with pytest.raises(Seen):
        run_recipe(BOOKS, SAMPLE, Path(planned.deployment.workdir), overrides=OVERRIDES)
    return given_dags[0]


def test_airflow_gets_the_components_edges_and_properties_that_the_local_runner_gets(
    planned: CompiledDag, compiled_locally: pipeline_pb2.Pipeline
) -> None:
    # Not as protos: what is packed in them may be packed in another order.
    assert planned.pipeline == json_format.MessageToDict(compiled_locally, preserving_proto_field_name=True)
    assert json_format.MessageToDict(
        json_format.ParseDict(planned.pipeline, pipeline_pb2.Pipeline()), preserving_proto_field_name=True
    ) == planned.pipeline  # fmt: skip
    nodes = [node.pipeline_node for node in compiled_locally.nodes]
    assert list(planned.tasks) == [node.node_info.id for node in nodes]
    assert planned.tasks == {node.node_info.id: tuple(node.upstream_nodes) for node in nodes}


def test_the_pusher_is_never_cached(planned: CompiledDag) -> None:
    pipeline = json_format.ParseDict(dict(planned.pipeline), pipeline_pb2.Pipeline())
    cached = {
        node.pipeline_node.node_info.id: node.pipeline_node.execution_options.caching_options.enable_cache
        for node in pipeline.nodes
    }
    assert [name for name, enabled in cached.items() if not enabled] == ["Pusher"]


def test_the_compiled_dag_has_the_resolved_recipe(planned: CompiledDag) -> None:
    assert planned.recipe == load_recipe(BOOKS, OVERRIDES).model_dump(mode="json")
    assert planned.recipe["training"]["epochs"] == 3


def test_reading_a_compiled_dag_imports_only_the_standard_library(planned: CompiledDag) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.runners.airflow import compiled_dag as m;"
        "print(m.compiled_dag_for(m.read_compiled_dag(Path(sys.argv[1])).deployment, sys.argv[2]).path);"
        "print(sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(planned.path), sys.executable],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path, modules = done.stdout.splitlines()
    assert path == str(planned.path)
    assert modules == str(["__main__", "components", "pipeline"])


# --- when it is compiled ----------------------------------------------------------------------------------------------


@pytest.fixture
def compiler_calls(tmp_path: Path) -> Callable[[], int]:
    """Makes `stand_in` beside it, a Python that compiles everything to one file; returns its number of calls."""
    calls = tmp_path / "calls"
    python = tmp_path / "stand_in"
    python.write_text(
        f"""#!{sys.executable}
import json, sys
path, deployment = sys.argv[-2:]
open({str(calls)!r}, "a").write("x")
open(path, "w").write(json.dumps(
    {{"deployment": json.loads(deployment), "recipe": {{}}, "tasks": {{}}, "pipeline": {{}}}}
))
"""
    )
    python.chmod(0o755)
    return lambda: len(calls.read_text()) if calls.exists() else 0


@pytest.fixture
def stand_in(tmp_path: Path, deployment: Deployment) -> str:
    Path(deployment.workdir, compiled_dag.COMPILED_DAGS_FOLDER).mkdir(parents=True)
    return str(tmp_path / "stand_in")


def test_an_unchanged_recipe_is_compiled_once(
    deployment: Deployment, stand_in: str, compiler_calls: Callable[[], int]
) -> None:
    first = compiled_dag_for(deployment, stand_in)
    assert compiled_dag_for(deployment, stand_in) == first
    assert compiler_calls() == 1
    assert first.deployment == deployment


@pytest.mark.parametrize("file", ["recipe.yaml", "schema.pbtxt", "presets/tutorial.yaml"])
def test_a_changed_file_is_compiled_again_and_a_restored_one_is_not(
    deployment: Deployment, stand_in: str, compiler_calls: Callable[[], int], tmp_path: Path, file: str
) -> None:
    folder = tmp_path / "movielens"
    shutil.copytree(ROOT / "schemas" / "movielens", folder)
    ours = dataclasses.replace(deployment, schema_dir=str(folder), preset="tutorial")
    first = compiled_dag_for(ours, stand_in)
    text = (folder / file).read_text()
    (folder / file).write_text(text + "\n# changed\n")
    assert compiled_dag_for(ours, stand_in).path != first.path
    (folder / file).write_text(text)
    assert compiled_dag_for(ours, stand_in).path == first.path
    assert compiler_calls() == 2


@pytest.mark.parametrize(
    "change",
    [
        {"data": "/elsewhere"},
        {"serving_dir": "/served"},
        {"preset": "best"},
        {"overrides": ()},
        {"beam_runner": "flink"},
        {"beam_args": ("--parallelism=2",)},
    ],
)
def test_another_deployment_has_another_compiled_dag(
    deployment: Deployment, stand_in: str, compiler_calls: Callable[[], int], change: dict[str, Any]
) -> None:
    first = compiled_dag_for(deployment, stand_in)
    assert compiled_dag_for(dataclasses.replace(deployment, **change), stand_in).path != first.path
    assert compiler_calls() == 2


def test_changed_code_and_a_new_environment_are_compiled_again(
    deployment: Deployment, stand_in: str, compiler_calls: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiled_dag_for(deployment, stand_in)
    os.utime(stand_in, (1, 1))
    second = compiled_dag_for(deployment, stand_in)
    monkeypatch.setattr(compiled_dag, "PACKAGES", compiled_dag.PACKAGES[:-1])
    assert len({first.path, second.path, compiled_dag_for(deployment, stand_in).path}) == 3
    assert compiler_calls() == 3


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_an_invalid_recipe_is_reported_as_by_tandem_run(deployment: Deployment) -> None:
    wrong = dataclasses.replace(deployment, overrides=("training.epoch=3",))
    with pytest.raises(CompileError) as caught:
        compiled_dag_for(wrong, sys.executable)
    assert "training.epoch" in str(caught.value)
    assert "did you mean 'epochs'?" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not list(Path(deployment.workdir, compiled_dag.COMPILED_DAGS_FOLDER).glob("*.json"))


def test_invalid_options_of_beam_are_reported_as_by_tandem_run(deployment: Deployment) -> None:
    wrong = dataclasses.replace(deployment, beam_runner="flink", beam_args=("--flink_mster=h:8081",))
    with pytest.raises(CompileError, match="did you mean 'flink_master'"):
        compiled_dag_for(wrong, sys.executable)
    assert not list(Path(deployment.workdir, compiled_dag.COMPILED_DAGS_FOLDER).glob("*.json"))


def test_an_unknown_option_of_beam_is_a_warning_each_time_the_dag_file_is_parsed(deployment: Deployment) -> None:
    unknown = dataclasses.replace(deployment, beam_args=("--direct_num_worker=2",))
    for _ in range(2):
        with pytest.warns(CompileWarning, match="did you mean 'direct_num_workers'"):
            compiled_dag_for(unknown, sys.executable)


@pytest.mark.parametrize(
    ("python", "reason"), [("/nowhere/python", "No such file"), (shutil.which("false") or "", "could not compile")]
)
def test_an_unusable_python_is_reported_with_its_variable(deployment: Deployment, python: str, reason: str) -> None:
    with pytest.raises(CompileError, match="TANDEM_PYTHON") as caught:
        compiled_dag_for(deployment, python)
    assert reason in str(caught.value)


LINES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1)


@given(before=st.lists(LINES), message=st.lists(LINES, min_size=1), after=st.lists(LINES))
def test_the_printed_reason_is_found_between_other_output(
    before: list[str], message: list[str], after: list[str]
) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        print_reason("\n".join(message))
    output = "".join(f"{line}\n" for line in before) + printed.getvalue() + "".join(f"{line}\n" for line in after)
    assert printed_reason(output) == "\n".join(message)
    assert printed_reason("".join(f"{line}\n" for line in before)) is None
