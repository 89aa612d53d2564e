"""The processes of Airflow's tasks: one component, with a retry after a crash, and the result at the end."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import contextlib
import json
from pathlib import Path

import pytest

from pipeline.dag import compile_dag

# isort: split
from google.protobuf import json_format
from run_marks import RESULT, Marks
from tfx import v1 as tfx

from pipeline.exit_codes import BAD_INPUT, FAILED, NOT_BLESSED
from pipeline.lineage import Lineage
from pipeline.run_history import read_run
from pipeline.runners.airflow import component_task, result_task
from pipeline.runners.airflow.compiled_dag import printed_reason
from pipeline.workdir import only_run_in
from recipe import BadInput, load_recipe

# TFX reads the annotations of component functions, so they cannot be strings (`from __future__ import annotations`).
Model = tfx.types.standard_artifacts.Model
Examples = tfx.types.standard_artifacts.Examples
RUN = "20260101-120000"
RECIPE = load_recipe(Path(__file__).resolve().parents[2] / "schemas" / "books").model_dump(mode="json")


class Killed(BaseException):
    """A process that is killed and writes no error."""


@tfx.dsl.components.component
def Read(examples: tfx.dsl.components.OutputArtifact[Examples], mood: tfx.dsl.components.Parameter[str]):  # type: ignore[valid-type]  # noqa: N802
    Path(examples.uri, "rows").write_text("1 2 3")
    (there,) = Path(mood).read_text().splitlines() or [""]
    if there == "killed":
        Path(examples.uri, "half-written").write_text("4 5")
        raise Killed
    if there == "bad input":
        raise BadInput("interactions.csv:3: expected a number, got 'x'")
    if there == "unwell":
        raise OSError("the disk is full\nand more")


@tfx.dsl.components.component
def Learn(  # noqa: N802
    examples: tfx.dsl.components.InputArtifact[Examples], model: tfx.dsl.components.OutputArtifact[Model]
):
    Path(model.uri, "weights").write_text(" ".join(sorted(path.name for path in Path(examples.uri).iterdir())))


class Tasks:
    """Runs the tasks of a compiled pipeline of two components."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.workdir = folder / "work"
        self.mood = folder / "mood"
        self._capfd = capfd
        self.mood.write_text("")
        read = Read(mood=str(self.mood))
        dag = tfx.dsl.Pipeline(
            pipeline_name="bench",
            pipeline_root=str(self.workdir / "artifacts"),
            components=[read, Learn(examples=read.outputs["examples"])],
            enable_cache=True,
            metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
                str(self.workdir / "metadata.sqlite")
            ),
        )
        pipeline = json_format.MessageToDict(compile_dag(dag), preserving_proto_field_name=True)
        deployment = {"schema_dir": "", "data": "", "workdir": str(self.workdir), "overrides": []}
        self._plan = folder / "plan.json"
        self._plan.write_text(
            json.dumps({"deployment": deployment, "recipe": RECIPE, "tasks": {}, "pipeline": pipeline})
        )  # fmt: skip

    def run(self, name: str, run_id: str = RUN) -> int:
        return component_task.main([str(self._plan), run_id, name])

    def reason(self) -> str | None:
        return printed_reason(self._capfd.readouterr().out)

    def states(self, run_id: str = RUN) -> dict[str, str]:
        return {step.component: step.state for step in Lineage(self.workdir).steps(run_id)}

    @property
    def learnt(self) -> list[str]:
        return [path.read_text() for path in self.workdir.glob("artifacts/Learn/model/*/weights")]


@pytest.fixture
def tasks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Tasks:
    return Tasks(tmp_path, capfd)


def test_components_run_in_order_and_are_cached_in_the_next_run(tasks: Tasks) -> None:
    assert [tasks.run("Read"), tasks.run("Learn")] == [0, 0]
    assert tasks.learnt == ["rows"]
    assert [tasks.run("Read", "20260101-130000"), tasks.run("Learn", "20260101-130000")] == [0, 0]
    assert tasks.states("20260101-130000") == {"Read": "cached", "Learn": "cached"}
    assert tasks.reason() is None


def test_a_component_that_is_complete_in_this_run_is_skipped(tasks: Tasks) -> None:
    """A user clears a successful task in Airflow's UI."""
    tasks.run("Read")
    tasks.mood.write_text("unwell")
    assert tasks.run("Read") == 0
    assert tasks.states() == {"Read": "done"}


def test_a_retry_after_a_failure_succeeds_in_the_same_run(tasks: Tasks) -> None:
    tasks.mood.write_text("unwell")
    assert tasks.run("Read") == FAILED
    assert tasks.reason() == "Read failed: OSError: the disk is full"
    assert tasks.states() == {"Read": "failed"}
    tasks.mood.write_text("")
    assert [tasks.run("Read"), tasks.run("Learn")] == [0, 0]
    assert tasks.states() == {"Read": "done", "Learn": "done"}


def test_a_retry_after_a_crash_does_not_see_partial_outputs(tasks: Tasks) -> None:
    tasks.mood.write_text("killed")
    with contextlib.suppress(Killed):
        tasks.run("Read")
    assert tasks.states() == {"Read": "unfinished"}
    assert list(tasks.workdir.rglob("half-written"))
    tasks.mood.write_text("")
    assert [tasks.run("Read"), tasks.run("Learn")] == [0, 0]
    assert tasks.learnt == ["rows"]


def test_bad_input_has_its_own_exit_code_because_a_retry_would_fail(tasks: Tasks) -> None:
    tasks.mood.write_text("bad input")
    assert tasks.run("Read") == BAD_INPUT
    assert tasks.reason() == "Read: interactions.csv:3: expected a number, got 'x'"


def test_a_component_without_inputs_fails(tasks: Tasks) -> None:
    """A user marks a task as successful in Airflow's UI that has not run."""
    assert tasks.run("Learn") == FAILED
    assert "Learn did not run: an upstream component has no outputs" in (tasks.reason() or "")


def test_tasks_run_in_parallel_but_not_beside_tandem_run(tasks: Tasks) -> None:
    with only_run_in(tasks.workdir):
        assert tasks.run("Read") == FAILED
        assert "another run is in progress" in (tasks.reason() or "")
    with only_run_in(tasks.workdir, kind=component_task.fcntl.LOCK_SH):
        assert tasks.run("Read") == 0
        with pytest.raises(BadInput, match="another run is in progress"), only_run_in(tasks.workdir):
            pass


# --- the result ------------------------------------------------------------------------------------------------------


@pytest.fixture
def last_task(marks: Marks, capfd: pytest.CaptureFixture[str]) -> "ResultTask":
    return ResultTask(marks, capfd)


class ResultTask:
    """Runs the result task of a run whose components are complete."""

    def __init__(self, marks: Marks, capfd: pytest.CaptureFixture[str]) -> None:
        self.marks = marks
        self._capfd = capfd

    def run(self, blessed: bool, servable: bool, pushed: bool) -> int:
        evaluation = self.marks.workdir / "evaluation"
        evaluation.mkdir()
        found = json.loads(json.dumps(RESULT["verdict"])) | {"blessed": blessed}
        found["bounds"][0] |= {"passed": blessed}
        (evaluation / "verdict.json").write_text(json.dumps(found))
        examples = self.marks.artifact("Examples", rows_read=1000, rows_train=800)
        infra = {"blessed": int(servable), **({} if servable else {"reason": "no signature recommend"})}
        destination = {"pushed": int(pushed), **({"pushed_destination": "/served/17"} if pushed else {})}
        for component, state, key, artifact in (
            ("InteractionExampleGen", "cached", "examples", examples),
            ("Evaluator", "done", "evaluation", self.marks.artifact("ModelEvaluation", evaluation)),
            ("InfraValidator", "done", "blessing", self.marks.artifact("InfraBlessing", **infra)),
            ("Pusher", "done", "pushed_model", self.marks.artifact("PushedModel", **destination)),
        ):
            self.marks.step(RUN, component, state, outputs=[(key, artifact)])
        data = self.marks.workdir / "data"
        data.mkdir()
        (data / "truth.json").write_text('{"best": {"rmse": {"value": 0.7}}, "eval_fraction": 0.2}')
        deployment = {
            "schema_dir": "", "data": str(data), "workdir": str(self.marks.workdir), "preset": "best", "overrides": [],
        }  # fmt: skip
        recipe = {"name": "movielens", "data": {"split": {"kind": "random", "eval_fraction": 0.2}}}
        plan = {"deployment": deployment, "recipe": recipe, "tasks": {}, "pipeline": {}}
        folder = self.marks.folder(RUN, plan=plan, recipe={"name": "movielens"})
        return result_task.main([str(folder / "plan.json"), RUN])

    def reason(self) -> str | None:
        return printed_reason(self._capfd.readouterr().out)


def test_a_pushed_model_succeeds_and_the_run_is_in_the_history(last_task: ResultTask) -> None:
    assert last_task.run(blessed=True, servable=True, pushed=True) == 0
    run = read_run(last_task.marks.workdir, RUN)
    assert (run.status, run.pushed_model, run.recipe_name) == ("pushed", "/served/17", "movielens")
    assert run.rows["read"] == 1000 and run.rows["rejected"] == 0
    assert [(one.name, one.state) for one in run.components][:2] == [
        ("InteractionExampleGen", "cached"), ("Evaluator", "done"),
    ]  # fmt: skip
    written = json.loads((last_task.marks.workdir / "runs" / RUN / "result.json").read_text())
    assert written["preset"] == "best"
    assert run.best_possible == {"rmse": 0.7}


def test_a_failed_gate_is_reported_with_threshold_and_value(last_task: ResultTask) -> None:
    assert last_task.run(blessed=False, servable=True, pushed=False) == NOT_BLESSED
    reason = last_task.reason() or ""
    assert reason.startswith("not blessed: top_100_accuracy: threshold ≥ 0.2700")
    assert "Nothing was pushed" in reason
    assert read_run(last_task.marks.workdir, RUN).status == "not blessed"


def test_a_model_that_cannot_be_served_has_its_own_reason(last_task: ResultTask) -> None:
    assert last_task.run(blessed=True, servable=False, pushed=False) == NOT_BLESSED
    assert (last_task.reason() or "").startswith("not servable: no signature recommend")
    assert read_run(last_task.marks.workdir, RUN).status == "not servable"


def test_a_run_with_unfinished_tasks_is_running(marks: Marks) -> None:
    marks.folder(RUN, plan={}, recipe={"name": "movielens"})
    assert read_run(marks.workdir, RUN).status == "running"
    marks.folder(RUN, error="Trainer was killed by SIGKILL.")
    run = read_run(marks.workdir, RUN)
    assert (run.status, run.error) == ("failed", "Trainer was killed by SIGKILL.")
