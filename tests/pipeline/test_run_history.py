"""`tandem runs` and `tandem diff`: lookup by name, status of runs, and differences of two runs."""

from __future__ import annotations

import datetime
import fcntl
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_marks import Marks, result
from tensorflow_metadata.proto.v0 import statistics_pb2

from pipeline.lineage import Lineage
from pipeline.run_history import RunError, diff_recipes, diff_runs, find_run, flat, list_runs, previous_run, read_run

TANDEM = Path(sys.executable).parent / "tandem"
FIRST, SECOND, THIRD = "20260101-120000", "20260101-130000", "20260202-120000"
RECIPE = {"name": "movielens", "model": {"embedding_dim": 64}, "gates": [{"metric": "rmse", "at_most": 1.0}]}

Done = subprocess.CompletedProcess[str]


def tandem(*arguments: str | Path) -> Done:
    return subprocess.run(
        [str(TANDEM), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip


@pytest.fixture
def three(marks: Marks) -> Marks:
    """A pushed run, one that its gates stopped, and a pushed one."""
    stopped = result(SECOND, pushed_model=None, blessed=False)
    stopped["verdict"]["blessed"] = False
    for run_id, found in ((FIRST, result(FIRST)), (SECOND, stopped), (THIRD, result(THIRD))):
        marks.folder(run_id, result=found, recipe=RECIPE, log="all is well")
    return marks


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [("latest", THIRD), ("previous", SECOND), (SECOND, SECOND), ("2026020", THIRD), ("20260101-13", SECOND)],
)
def test_a_run_is_found_by_id_prefix_latest_and_previous(three: Marks, name: str, meant: str) -> None:
    assert find_run(three.workdir, name) == meant


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("20260101", ["a prefix of 2 runs", FIRST, SECOND, "Use a longer one"]),
        ("lates", ["got 'lates'", "did you mean 'latest'?", THIRD]),
        ("20260101-120001", ["did you mean '20260101-120000'?"]),
        ("", ["got ''. Runs: "]),
    ],
)
def test_an_unknown_name_is_reported_with_the_runs(three: Marks, name: str, parts: list[str]) -> None:
    with pytest.raises(RunError) as caught:
        find_run(three.workdir, name)
    for part in parts:
        assert part in str(caught.value)


def test_an_only_run_has_no_previous_one(marks: Marks) -> None:
    marks.folder(FIRST, result=result(FIRST))
    assert find_run(marks.workdir, "latest") == FIRST
    with pytest.raises(RunError, match="the only run is 20260101-120000"):
        find_run(marks.workdir, "previous")


def test_a_workdir_without_runs_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there are no runs\. Run a recipe"):
        list_runs(tmp_path / "nowhere")


@settings(deadline=None)
@given(st.data())
def test_every_unique_prefix_finds_its_run(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    stamps = data.draw(st.lists(st.integers(10, 99), min_size=1, max_size=6, unique=True))
    run_ids = [f"202601{stamp % 28 + 1:02}-12{stamp:02}00" for stamp in stamps]
    workdir = tmp_path_factory.mktemp("runs")
    for run_id in run_ids:
        (workdir / "runs" / run_id).mkdir(parents=True)
    run_id = data.draw(st.sampled_from(run_ids))
    name = run_id[: data.draw(st.integers(1, len(run_id)))]
    if sum(one.startswith(name) for one in run_ids) == 1:
        assert find_run(workdir, name) == run_id
    else:
        with pytest.raises(RunError, match="a prefix of"):
            find_run(workdir, name)


# --- what became of them ----------------------------------------------------------------------------------------------


def test_a_complete_run_is_read_from_its_result(three: Marks) -> None:
    first, second, _ = list_runs(three.workdir)
    assert (first.status, second.status) == ("pushed", "not blessed")
    assert first.metrics == {"top_100_accuracy": 0.4, "rmse": 0.9}
    assert (first.pushed_version, second.pushed_version) == ("17", None)
    assert first.started == datetime.datetime(2026, 1, 1, 12)
    assert [(one.name, one.state) for one in first.components] == [
        ("InteractionExampleGen", "cached"), ("Trainer", "done")
    ]  # fmt: skip
    assert first.rows["train"] == 800 and first.recipe == RECIPE and first.error is None


def test_a_model_that_is_not_servable_has_its_own_status(marks: Marks) -> None:
    marks.folder(FIRST, result=result(FIRST, pushed_model=None, blessed=False, not_servable="no variables"))
    run = read_run(marks.workdir, FIRST)
    assert (run.status, run.not_servable) == ("not servable", "no variables")


def test_a_failed_run_has_its_reason_and_completed_components(marks: Marks) -> None:
    examples = marks.artifact("Examples", rows_read=10, rows_train=8)
    marks.folder(FIRST, recipe=RECIPE, error="Transform: column 'x' is missing", log="…")
    marks.step(FIRST, "InteractionExampleGen", outputs=[("examples", examples)])
    marks.step(FIRST, "Transform", "failed")
    run = read_run(marks.workdir, FIRST)
    assert (run.status, run.error) == ("failed", "Transform: column 'x' is missing")
    assert [(one.name, one.state) for one in run.components] == [
        ("InteractionExampleGen", "done"), ("Transform", "failed")
    ]  # fmt: skip
    assert run.rows == {"read": 10, "train": 8}
    assert run.verdict is None and run.recipe_name == "movielens"


def test_a_run_without_a_result_is_running_while_it_holds_the_lock_and_stopped_after(marks: Marks) -> None:
    marks.folder(FIRST, recipe=RECIPE)
    marks.folder(SECOND, recipe=RECIPE)
    with open(marks.workdir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        statuses = [run.status for run in list_runs(marks.workdir)]
        assert statuses == ["stopped", "running"]
    run = read_run(marks.workdir, SECOND)
    assert run.status == "stopped"
    assert "killed" in (run.error or "")


def test_a_result_of_another_version_is_read_from_ml_metadata(marks: Marks, tmp_path: Path) -> None:
    pushed = marks.artifact("PushedModel", pushed=1, pushed_destination="serving/movielens/18")
    evaluation = marks.artifact("ModelEvaluation", tmp_path / "evaluation")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "verdict.json").write_text(json.dumps(result(FIRST)["verdict"]))
    marks.step(FIRST, "Evaluator", outputs=[("evaluation", evaluation)])
    marks.step(FIRST, "Pusher", outputs=[("pushed_model", pushed)])
    # No folder: another orchestrator ran it.
    run = read_run(marks.workdir, FIRST)
    assert (run.status, run.pushed_version, run.metrics["rmse"]) == ("pushed", "18", 0.9)
    # A folder whose result has other fields: the same facts, and no crash.
    marks.folder(FIRST, result={"run_id": FIRST, "verdict": {"was": "different"}}, recipe=RECIPE)
    assert read_run(marks.workdir, FIRST).metrics["rmse"] == 0.9


def test_the_previous_run_is_the_one_before_of_the_same_recipe(marks: Marks) -> None:
    for run_id, recipe in ((FIRST, "movielens"), (SECOND, "books"), (THIRD, "movielens")):
        marks.folder(run_id, result=result(run_id, recipe=recipe))
    runs = list_runs(marks.workdir)
    before = previous_run(runs, runs[2])
    assert before is not None and before.run_id == FIRST
    assert previous_run(runs, runs[1]) is None


# --- differences ------------------------------------------------------------------------------------------------------


def test_renamed_key_is_no_difference(marks: Marks) -> None:
    """The recipe of a run of an earlier version has the old name."""
    model = {"embedding_dim": 64}
    marks.folder(FIRST, recipe=RECIPE | {"model": model | {"stranger_dropout": 0.1}})
    marks.folder(SECOND, recipe=RECIPE | {"model": model | {"cold_start_dropout": 0.1}})
    lineage = Lineage(marks.workdir)
    assert read_run(marks.workdir, FIRST, lineage).recipe == read_run(marks.workdir, SECOND, lineage).recipe


def test_recipes_differ_by_key_as_set_writes_them() -> None:
    before = {"model": {"dim": 64, "layers": [64, 32]}, "gates": [{"at_least": 0.3}], "old": True}
    after = {"model": {"dim": 32, "layers": [64]}, "gates": [{"at_least": 0.3}, {"at_most": 1}], "new": None}
    changes = {change.key: (change.before, change.after) for change in diff_recipes(before, after)}
    assert changes == {
        "model.dim": (64, 32),
        "model.layers": ([64, 32], [64]),
        "gates.1.at_most": (None, 1),
        "old": (True, None),
        "new": (None, None),
    }


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=2), children, max_size=3)
    ),
    max_leaves=8,
)
recipes = st.dictionaries(st.text("abc", min_size=1, max_size=2), values, max_size=4)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(recipes, recipes)
def test_recipes_differ_exactly_where_a_value_does(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert diff_recipes(before, before) == ()
    flat_before, flat_after = dict(flat(before)), dict(flat(after))
    differing = {change.key for change in diff_recipes(before, after)}
    for key in {*flat_before, *flat_after}:
        same = key in flat_before and key in flat_after and flat_before[key] == flat_after[key]
        assert (key not in differing) == same


@pytest.fixture
def with_data(marks: Marks, tmp_path: Path) -> Marks:
    """Two runs on data that changed: an age domain in the schema, the ages, and the rows."""
    for run_id, top, mean, rows in ((FIRST, 99, 30.5, 100), (SECOND, 120, 31.25, 90)):
        home = tmp_path / run_id
        (home / "schema").mkdir(parents=True)
        (home / "statistics" / "Split-train").mkdir(parents=True)
        (home / "schema" / "schema.pbtxt").write_text(
            f'feature {{ name: "age" type: INT int_domain {{ min: 1 max: {top} }} }}\n'
            'feature { name: "user_id" type: BYTES }\n'
        )
        statistics = text_format.Parse(
            f"""datasets {{ num_examples: {rows} features {{
                path {{ step: "age" }} type: INT
                num_stats {{ common_stats {{ num_non_missing: {rows} num_missing: 2 }} mean: {mean} min: 7 max: 73 }}
            }} }}""",
            statistics_pb2.DatasetFeatureStatisticsList(),
        )
        (home / "statistics" / "Split-train" / "FeatureStats.pb").write_bytes(statistics.SerializeToString())
        marks.folder(run_id, result=result(run_id, rows={"read": rows, "train": rows}), recipe=RECIPE)
        for component, key, kind in (
            ("ImportSchemaGen", "schema", "Schema"), ("StatisticsGen", "statistics", "ExampleStatistics")
        ):  # fmt: skip
            marks.step(run_id, component, outputs=[(key, marks.artifact(kind, home / key))])
    return marks


def test_rows_schema_statistics_and_metrics_are_compared(with_data: Marks) -> None:
    before, after = list_runs(with_data.workdir)
    after.verdict.metrics["rmse"] = 0.88  # type: ignore[union-attr]
    found = diff_runs(with_data.workdir, before, after)
    assert {(one.key, one.before, one.after) for one in found.rows} == {("read", 100, 90), ("train", 100, 90)}
    (schema,) = found.data_schema
    assert schema.key == "age" and "max: 99" in schema.before and "max: 120" in schema.after
    assert [(one.key, one.before, one.after) for one in found.statistics] == [("train.age.mean", 30.5, 31.25)]
    assert {(one.key, one.before, one.after) for one in found.metrics} == {
        ("top_100_accuracy", 0.4, 0.4), ("rmse", 0.9, 0.88)
    }  # fmt: skip
    assert found.recipe == () and found.not_comparable == {}


def test_a_run_without_data_is_no_difference(with_data: Marks) -> None:
    with_data.folder(THIRD, recipe=RECIPE, error="failed")
    lineage = Lineage(with_data.workdir)
    before, after = (read_run(with_data.workdir, run_id, lineage) for run_id in (SECOND, THIRD))
    found = diff_runs(with_data.workdir, before, after, lineage)
    assert found.statistics == found.data_schema == found.rows == ()
    assert set(found.not_comparable) == {"rows", "data_schema", "statistics"}
    assert THIRD in found.not_comparable["statistics"] and SECOND not in found.not_comparable["statistics"]


# --- the commands -----------------------------------------------------------------------------------------------------


def test_runs_prints_one_line_per_run(three: Marks) -> None:
    done = tandem("runs", "--workdir", three.workdir)
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert [heading in header for heading in ("run", "status", "top-100", "RMSE", "version")] == [True] * 5
    assert [line.split()[0] for line in lines] == [FIRST, SECOND, THIRD]
    assert "pushed" in lines[0] and "0.9000" in lines[0] and "17" in lines[0]
    assert "not blessed" in lines[1]


def test_runs_and_diff_are_json_for_programs(with_data: Marks) -> None:
    done = tandem("runs", "--workdir", with_data.workdir, "--json")
    runs = json.loads(done.stdout)
    assert [run["run_id"] for run in runs] == [FIRST, SECOND]
    assert runs[0]["status"] == "pushed" and runs[0]["metrics"]["rmse"] == 0.9
    done = tandem("diff", "previous", "latest", "--workdir", with_data.workdir, "--json")
    found = json.loads(done.stdout)
    assert (found["before"], found["after"]) == (FIRST, SECOND)
    assert found["statistics"] == [{"key": "train.age.mean", "before": 30.5, "after": 31.25}]


def test_diff_prints_what_changed(with_data: Marks) -> None:
    with_data.folder(SECOND, recipe={**RECIPE, "model": {"embedding_dim": 32}})
    done = tandem("diff", FIRST, "latest", "--workdir", with_data.workdir)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    assert lines["model.embedding_dim"] == ["64", "32"]
    assert lines["train.age.mean"] == ["30.5", "31.25"]
    assert lines["rmse"] == ["0.9000", "0.9000", "0"]


@pytest.mark.parametrize("command", [("runs",), ("diff", "latest", "previous"), ("report",)], ids=lambda one: one[0])
def test_a_workdir_without_runs_is_bad_input(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = tandem(*command, "--workdir", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "there are no runs" in done.stderr and "Traceback" not in done.stderr


def test_commands_about_runs_do_not_import_tensorflow(three: Marks) -> None:
    command = [sys.executable, "-X", "importtime", str(TANDEM), "runs", "--workdir", str(three.workdir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    modules = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "ml_metadata" in modules
    assert not modules & {"tensorflow", "tfx", "apache_beam", "tensorflow_data_validation", "plotly"}


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[BaseException], Path]:
    """Runs a recipe whose DAG raises; returns the workdir."""
    from pipeline.runners import local as running

    def stop(error: BaseException) -> Path:
        def raise_it(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(running, "_run", raise_it)
        monkeypatch.setattr(
            running, "resolve_sources", lambda *_: SimpleNamespace(interactions=SimpleNamespace(bytes=0))
        )
        monkeypatch.setattr(running, "check_features", lambda *_: None)
        with pytest.raises(type(error)):
            running.run_recipe(Path(__file__).resolve().parents[2] / "schemas" / "movielens", tmp_path, tmp_path / "w")
        return tmp_path / "w"

    return stop


def test_a_run_that_fails_leaves_its_reason(stopping: Callable[[BaseException], Path]) -> None:
    (run,) = list_runs(stopping(ValueError("the disk is full")))
    assert (run.status, run.error) == ("failed", "the disk is full")


def test_a_run_that_is_stopped_by_hand_says_so(stopping: Callable[[BaseException], Path]) -> None:
    (run,) = list_runs(stopping(KeyboardInterrupt()))
    assert run.status == "failed" and "Ctrl-C" in (run.error or "")
