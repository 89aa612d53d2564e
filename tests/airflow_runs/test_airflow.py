"""The DAG file in a real Airflow: parsing, `airflow dags test`, the scheduler, retries and failed runs."""

from __future__ import annotations

import csv
import dataclasses
import shlex
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow_home import NIGHTLY, AirflowHome, Pages, RunAtOnce

from components.infra_validator.server_process import serving
from tandem_client import Recommender

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.orchestrator("airflow"),
]

COMPONENTS = [
    "InteractionExampleGen", "StatisticsGen", "ImportSchemaGen", "ExampleValidator", "Transform", "Trainer",
    "ModelResolver", "Evaluator", "InfraValidator", "Pusher",
]  # fmt: skip
UPSTREAM = {
    "begin": [],
    "InteractionExampleGen": ["begin"],
    "StatisticsGen": ["InteractionExampleGen"],
    "ImportSchemaGen": ["StatisticsGen"],
    "ExampleValidator": ["ImportSchemaGen", "StatisticsGen"],
    "Transform": ["ExampleValidator", "ImportSchemaGen", "InteractionExampleGen"],
    "Trainer": ["ImportSchemaGen", "Transform"],
    "ModelResolver": ["Trainer"],
    "Evaluator": ["InteractionExampleGen", "ModelResolver", "Trainer"],
    "InfraValidator": ["Evaluator", "InteractionExampleGen", "Trainer"],
    "Pusher": ["Evaluator", "InfraValidator", "Trainer"],
    "verdict": ["Pusher"],
}

Results = Callable[[Path], list[dict[str, Any]]]
MakeHome = Callable[..., AirflowHome]


@pytest.fixture(scope="module")
def looked_at(home: AirflowHome) -> dict[str, Any]:
    """The DAG file as Airflow reads it."""
    return home.look()


@dataclasses.dataclass
class Scheduled:
    """Runs of the scheduler: a scheduled run whose Trainer is killed, then a manual run without that."""

    home: AirflowHome
    workdir: Path
    red: tuple[str, str]
    green: tuple[str, str]
    said_of_red: dict[str, Any]


@pytest.fixture(scope="module")
def scheduled(
    tmp_path_factory: pytest.TempPathFactory,
    airflow_home: MakeHome,
    movielens: Path,
    schema_dir: Path,
    python: Path,
    tandem: Callable[..., Any],
) -> Iterator[Scheduled]:
    workdir = tmp_path_factory.mktemp("scheduled") / "work"
    home = airflow_home(schema_dir=schema_dir, data=movielens, workdir=workdir, python=python, retries=1, retry_delay=1)
    (python.parent / "kill-half-way").write_text("StatisticsGen")
    (python.parent / "kill").write_text("Trainer")
    with home.scheduler():
        red = home.wait("scheduled")
        (said_of_red,) = tandem("runs", "--workdir", workdir, "--json").json
        (python.parent / "kill").unlink()
        done = home.airflow("dags", "trigger", "movielens")
        assert done.returncode == 0, done.stdout
        green = home.wait("manual")
    yield Scheduled(home, workdir, red, green, said_of_red)


def served_answer(workdir: Path, movielens: Path) -> None:
    """The pushed model returns recommendations for a user of the train split and a new user."""
    with (movielens / "items.csv").open(newline="") as source:
        items = {row["item_id"] for row in csv.DictReader(source)}
    with serving(workdir / "serving" / "movielens", "recommender") as target, Recommender(target) as client:
        for user in ("5", "a new user"):
            answer = client.recommend(user, k=10)
            assert len({item.item_id for item in answer.items}) == 10
            assert {item.item_id for item in answer.items} <= items
        assert 1 <= client.rate("5", "50") <= 5


def versions(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "serving" / "movielens").iterdir())


# --- reading the DAG file ---------------------------------------------------------------------------------------------


def test_the_dag_file_is_read_without_errors_and_shows_the_recipe(home: AirflowHome, looked_at: dict[str, Any]) -> None:
    assert looked_at["errors"] == {}
    (dag,) = looked_at["dags"].values()
    assert list(looked_at["dags"]) == ["movielens"]
    assert {task: found["upstream"] for task, found in dag["tasks"].items()} == UPSTREAM
    recipe = yaml.safe_load((Path(home.settings["TANDEM_SCHEMA_DIR"]) / "recipe.yaml").read_text())
    assert recipe["description"].split(".")[0] in dag["description"] + dag["doc"]
    assert "`top_100_accuracy`: ≥ 0.01" in dag["doc"]
    assert dag["tags"] == ["movielens", "tandem"]
    assert dag["schedule"] == "30 4 * * *"
    assert dag["catchup"] is False
    assert dag["max_active_runs"] == 1
    assert {task["retries"] for task in dag["tasks"].values()} == {2}
    assert {task["retry_delay"] for task in dag["tasks"].values()} == {60.0}


def test_reading_the_dag_file_imports_nothing_heavy_and_takes_no_time(looked_at: dict[str, Any]) -> None:
    assert looked_at["heavy"] == []
    assert looked_at["again_s"] < 1


def test_a_second_recipe_is_a_second_file_and_shares_no_folder_with_the_first(
    home: AirflowHome, schema_dir: Path, tmp_path: Path
) -> None:
    file = home.home / "dags" / "shop.py"
    file.write_text(
        "from pipeline.runners.airflow import recipe_dag\n\n"
        f"folders = dict(schema_dir={str(schema_dir)!r}, data={str(tmp_path)!r}, workdir={str(tmp_path / 'work')!r})\n"
        "dag = recipe_dag(**folders, dag_id='shop', tags=['ours'], default_args={'queue': 'big'})\n"
        "often = recipe_dag(**folders, dag_id='often', schedule='@hourly')\n"
        "never = recipe_dag(**folders, dag_id='never', schedule='none')\n"
    )
    try:
        with home.other(serving_dir="/served", preset="best", set="training.epochs=0", retries=5) as changed:
            # The first one now has a preset and a change that cannot be.
            looked_at = changed.look()
    finally:
        file.unlink()
    assert [path for path in looked_at["errors"] if path.endswith("shop.py")] == []
    shop = looked_at["dags"]["shop"]
    assert f"pushed to `{tmp_path / 'work/serving/movielens'}`" in shop["doc"]
    schedules = [looked_at["dags"][name]["schedule"] for name in ("shop", "often", "never")]
    assert schedules == [NIGHTLY, "0 * * * *", "None"]
    assert shop["tags"] == ["movielens", "ours", "tandem"]
    # Variables of the machine apply to every DAG.
    assert {task["retries"] for task in shop["tasks"].values()} == {5}


def test_a_mistake_in_the_recipe_is_an_import_error_that_names_the_line(
    home: AirflowHome, schema_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "movielens"
    shutil.copytree(schema_dir, broken)
    text = (broken / "recipe.yaml").read_text().replace("epochs:", "epoch:")
    (broken / "recipe.yaml").write_text(text)
    line = 1 + text[: text.index("epoch:")].count("\n")
    with home.other(schema_dir=broken) as changed:
        (error,) = changed.look()["errors"].values()
    assert f"{broken}/recipe.yaml:{line}" in error
    assert "did you mean 'epochs'?" in error


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ({"data": ""}, ["TANDEM_DATA is not set", "absolute path", "pass data to recipe_dag"]),
        ({"workdir": "work"}, ["TANDEM_WORKDIR", "expected an absolute path, got 'work'"]),
        ({"schedule": "nightly"}, ["TANDEM_SCHEDULE or schedule", "@daily", "got 'nightly'"]),
        (
            {"schedule": "", "set": "schedule='61 4 * * *'"},
            ["recipe.yaml: schedule: expected a cron", "got '61 4 * * *'"],
        ),
        ({"retries": "twice"}, ["TANDEM_RETRIES: expected a non-negative integer, got 'twice'"]),
        ({"beam_runner": "flunk"}, ["TANDEM_BEAM_RUNNER", "direct, flink, spark, dataflow", "got 'flunk'"]),
        ({"beam_args": "--flink_master=h:8081"}, ["has no effect with --beam-runner direct"]),
        ({"python": "/nowhere/python"}, ["/nowhere/python: cannot be executed", "Set TANDEM_PYTHON to the Python"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_variable_is_an_import_error_that_names_it(
    home: AirflowHome, setting: dict[str, str], parts: list[str]
) -> None:
    with home.other(**setting) as changed:
        (error,) = changed.look()["errors"].values()
    for part in parts:
        assert part in error


# --- airflow dags test ------------------------------------------------------------------------------------------------


def test_the_whole_dag_runs_to_a_served_model(tested: RunAtOnce, movielens: Path, results: Results) -> None:
    assert tested.code == 0, tested.output[-3000:]
    (result,) = results(tested.workdir)
    assert result["blessed"] is True
    assert [component["name"] for component in result["components"]] == COMPONENTS
    assert result["pushed_model"] == str(tested.workdir / "serving" / "movielens" / versions(tested.workdir)[0])
    served_answer(tested.workdir, movielens)


def test_runs_of_airflow_are_in_the_history_with_gates_and_report(
    tested: RunAtOnce, tandem: Callable[..., Any], tmp_path: Path
) -> None:
    first = tandem("runs", "--workdir", tested.workdir, "--json").json[0]
    assert first["status"] == "pushed"
    assert first["run_id"] in tested.output
    gates = tandem("gates", first["run_id"], "--workdir", tested.workdir, "--json")
    assert gates.json["blessed"] is True
    report = tandem("report", first["run_id"], "--workdir", tested.workdir, "--out", tmp_path / "report.html")
    assert report.code == 0, report.stderr
    assert first["run_id"] in (tmp_path / "report.html").read_text()


def test_a_model_that_fails_its_gate_is_not_pushed_and_the_run_fails(
    tested: RunAtOnce, schema_dir: Path, results: Results, tandem: Callable[..., Any], tmp_path: Path
) -> None:
    closed = tmp_path / "movielens"
    shutil.copytree(schema_dir, closed)
    text = (closed / "recipe.yaml").read_text()
    (closed / "recipe.yaml").write_text(text.replace("at_least: 0.01", "at_least: 0.99"))
    before, runs = versions(tested.workdir), len(results(tested.workdir))
    with tested.home.other(schema_dir=closed) as home:
        done = home.airflow("dags", "test", "movielens")
    assert done.returncode != 0
    assert versions(tested.workdir) == before
    result = results(tested.workdir)[runs]
    assert result["blessed"] is False and result["pushed_model"] is None
    # Other components are cached; only the gate is evaluated again.
    assert [one["name"] for one in result["components"] if not one["cached"]] == [
        *("ModelResolver", "Evaluator", "Pusher")
    ]
    ((run_id,),) = home.rows("select run_id from dag_run where state = 'failed'")
    assert {task for task, (state, _) in home.states(run_id).items() if state != "success"} == {"verdict"}
    assert "AirflowFailException: not blessed: top_100_accuracy: threshold ≥ 0.9900" in done.stdout
    assert "Nothing was pushed" in done.stdout
    assert tandem("runs", "--workdir", tested.workdir, "--json").json[-1]["status"] == "not blessed"


# --- the scheduler ----------------------------------------------------------------------------------------------------


def test_a_killed_task_is_retried_without_its_partial_outputs(scheduled: Scheduled) -> None:
    run_id, _ = scheduled.red
    states = scheduled.home.states(run_id)
    assert states["StatisticsGen"] == ("success", 2)
    assert "StatisticsGen was killed by SIGKILL" in scheduled.home.log(run_id, "StatisticsGen")
    assert not list(scheduled.workdir.rglob("half-written"))


def test_a_task_that_fails_each_time_fails_the_run_with_its_reason(scheduled: Scheduled) -> None:
    run_id, state = scheduled.red
    assert state == "failed"
    states = scheduled.home.states(run_id)
    assert states["Trainer"] == ("failed", 2)
    assert states["verdict"][0] == "upstream_failed"
    assert scheduled.said_of_red["status"] == "failed"
    assert "Trainer was killed by SIGKILL" in scheduled.said_of_red["error"]


def test_the_next_run_uses_the_cache_and_pushes_a_model(
    scheduled: Scheduled, results: Results, movielens: Path
) -> None:
    run_id, state = scheduled.green
    assert state == "success", scheduled.home.states(run_id)
    red, green = results(scheduled.workdir)
    assert red == {}
    assert [one["name"] for one in green["components"] if one["cached"]] == COMPONENTS[:5]
    assert versions(scheduled.workdir) == [Path(green["pushed_model"]).name]
    served_answer(scheduled.workdir, movielens)


@pytest.fixture(scope="module")
def pages(scheduled: Scheduled) -> Iterator[Pages]:
    """Airflow's web pages after both runs."""
    with scheduled.home.webserver() as found:
        yield found


def test_the_api_has_the_dag_and_the_retries_of_its_tasks(pages: Pages) -> None:
    dag = pages.api("/dags/movielens/details")
    assert dag["description"] == "Film ratings from 1 to 5 stars (MovieLens-100K)."
    assert dag["schedule_interval"] == {"__type": "CronExpression", "value": NIGHTLY}
    assert {tag["name"] for tag in dag["tags"]} == {"tandem", "movielens"}
    assert (dag["catchup"], dag["is_paused"], dag["has_import_errors"]) == (False, False, False)
    assert "**Gates**" in dag["doc_md"] and "top_100_accuracy" in dag["doc_md"]
    tasks = pages.api("/dags/movielens/tasks")["tasks"]
    assert {task["task_id"] for task in tasks} == set(UPSTREAM)
    assert {(task["retries"], task["retry_delay"]["seconds"]) for task in tasks} == {(1.0, 1)}
    assert pages.api("/importErrors")["import_errors"] == []


def test_the_api_has_the_failed_run_and_task(pages: Pages, scheduled: Scheduled) -> None:
    runs = {run["dag_run_id"]: run for run in pages.api("/dags/movielens/dagRuns")["dag_runs"]}
    for run_id, state in (scheduled.red, scheduled.green):
        assert runs[run_id]["state"] == state
        tasks = pages.api(f"/dags/movielens/dagRuns/{urllib.parse.quote(run_id)}/taskInstances")["task_instances"]
        assert {task["task_id"] for task in tasks if task["state"] == "failed"} == (
            {"Trainer"} if state == "failed" else set()
        )
    # Catch-up is off: one run for the latest night, and the manual one.
    assert {run["run_type"] for run in runs.values()} == {"scheduled", "manual"} and len(runs) == 2


def test_the_dag_s_page_shows_its_description_and_schedule(pages: Pages) -> None:
    text = pages.page("/dags/movielens/grid")
    assert "Film ratings from 1 to 5 stars (MovieLens-100K)." in text
    assert f"Schedule: {NIGHTLY}" in text
    listed = pages.page("/home")
    for shown in ("movielens", "tandem", NIGHTLY):
        assert shown in listed


def test_the_log_of_a_task_has_its_command(scheduled: Scheduled) -> None:
    run_id, _ = scheduled.green
    log = scheduled.home.log(run_id, "Pusher")
    (line,) = (line for line in log.splitlines() if "Running /" in line)
    command = shlex.split(line.partition("Running ")[2])
    assert command[1:4] == ["-P", "-m", "pipeline.runners.airflow.component_task"]
    assert Path(command[4]).is_file()
