"""The Airflow DAG of a recipe: one task per component of `pipeline/dag.py`, a first task and a result task.

DAG files call `recipe_dag`; `example_dag.py` is one. TFX's own AirflowDagRunner is not used: it imports TFX whenever
Airflow parses a DAG file, and launches components with TFX's deprecated launcher. Here a task starts a process of the
Python in `TANDEM_PYTHON`, which launches the component as `tandem run` does, so Airflow needs no TensorFlow.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from airflow import DAG
from airflow.exceptions import AirflowException, AirflowFailException, AirflowTimetableInvalid
from airflow.models import BaseOperator

from pipeline.beam import BeamRunner
from pipeline.exit_codes import BAD_INPUT, NOT_BLESSED
from pipeline.runners.airflow.compiled_dag import CompiledDag, Deployment, compiled_dag_for, printed_reason
from pipeline.workdir import (
    COMPILED_DAG_FILE,
    ERROR_FILE,
    LOG_FILE,
    REQUEST_FILE,
    RESOLVED_RECIPE_FILE,
    RUNS_FOLDER,
    new_folder,
    push_destination,
    run_folder,
)

BEGIN, VERDICT = "begin", "verdict"
"""Task ids of the first task and the result task."""

NO_SCHEDULE = "none"
"""The schedule that overrides the recipe's with none."""

# Any day in the past: with catch-up off, Airflow starts with the latest interval.
START_DATE = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)

GATE_CONDITIONS = {
    "at_least": "≥ {}",
    "at_most": "≤ {}",
    "may_drop": "may drop by {} from the last blessed model",
    "may_rise": "may rise by {} from the last blessed model",
    "beats_baseline_by": "better than the baseline by {}",
}


class SettingError(ValueError):
    """An argument of `recipe_dag` or a TANDEM_* variable is invalid."""


def recipe_dag(
    schema_dir: str | Path | None = None,
    *,
    data: str | Path | None = None,
    workdir: str | Path | None = None,
    serving_dir: str | Path | None = None,
    preset: str | None = None,
    overrides: Sequence[str] | None = None,
    schedule: Any = None,
    retries: int | None = None,
    retry_delay: datetime.timedelta | None = None,
    python: str | Path | None = None,
    beam_runner: str | None = None,
    beam_args: Sequence[str] | None = None,
    dag_id: str | None = None,
    tags: Sequence[str] = (),
    default_args: Mapping[str, Any] | None = None,
    **dag_arguments: Any,
) -> DAG:
    """Return the DAG of `schema_dir`, or of the recipe that the TANDEM_* variables specify.

    An argument takes precedence over its variable. With `schema_dir`, the variables of a recipe are ignored, so that
    two DAGs of one Airflow never share a folder by accident; the variables of the machine are used.

    Args:
        schema_dir: Folder with `recipe.yaml` and `schema.pbtxt`; TANDEM_SCHEMA_DIR.
        data: Folder with the CSVs; TANDEM_DATA.
        workdir: Folder for artifacts, ML Metadata and runs, on a disk that all workers mount; TANDEM_WORKDIR.
        serving_dir: Push destination; TANDEM_SERVING_DIR. Default: `serving/NAME` in `workdir`.
        preset: Name of a preset of `schema_dir`; TANDEM_PRESET.
        overrides: `key=value` overrides of the recipe; TANDEM_SET, separated by spaces.
        schedule: Any schedule of Airflow, or `none`; TANDEM_SCHEDULE. Default: the recipe's. With `none`, or without
            a schedule, the DAG runs only when it is triggered.
        retries: Number of retries of a task; TANDEM_RETRIES. Default: 2. Bad input and a failed gate are not retried.
        retry_delay: Time between retries; TANDEM_RETRY_DELAY in seconds. Default: 60 s.
        python: Python of an environment with Tandem and TFX; TANDEM_PYTHON. Default: Airflow's Python.
        beam_runner: direct, flink or spark; TANDEM_BEAM_RUNNER. Default: direct.
        beam_args: Beam's pipeline options, as for `tandem run --beam-arg`; TANDEM_BEAM_ARGS, separated by spaces.
        dag_id: Id of the DAG. Default: the recipe's name.
        tags: Tags in addition to `tandem` and the recipe's name.
        default_args: Further arguments of every task, such as `pool` or `on_failure_callback`.
        dag_arguments: Further arguments of the DAG, such as `start_date` or `dagrun_timeout`.

    Raises:
        SettingError: A path is missing or relative, or a number or the schedule is invalid.
        CompileError: The recipe, the schema or Beam's options are invalid.
    """
    machine = _Settings(os.environ)
    of_recipe = machine if schema_dir is None else _Settings({})
    serving = of_recipe.folder("SERVING_DIR", serving_dir) if of_recipe.given("SERVING_DIR", serving_dir) else None
    deployment = Deployment(
        schema_dir=of_recipe.folder("SCHEMA_DIR", schema_dir),
        data=of_recipe.folder("DATA", data),
        workdir=of_recipe.folder("WORKDIR", workdir),
        serving_dir=serving,
        preset=of_recipe.given("PRESET", preset),
        overrides=of_recipe.words("SET", overrides),
        beam_runner=machine.engine(beam_runner),
        beam_args=machine.words("BEAM_ARGS", beam_args),
    )
    interpreter = str(machine.given("PYTHON", python) or sys.executable)
    compiled = compiled_dag_for(deployment, interpreter)
    name = str(compiled.recipe["name"])
    given, source = of_recipe.given("SCHEDULE", schedule), "TANDEM_SCHEDULE or schedule"
    if given is None:
        given, source = compiled.recipe["schedule"], f"{Path(deployment.schema_dir, 'recipe.yaml')}: schedule"
    delay = datetime.timedelta(seconds=machine.number("RETRY_DELAY", 60)) if retry_delay is None else retry_delay
    dag = DAG(
        dag_id=dag_id or name,
        description=_first_sentence(compiled),
        doc_md=_documentation(compiled),
        schedule=None if given == NO_SCHEDULE else given,
        tags=list(dict.fromkeys(("tandem", name, *tags))),
        default_args={
            "retries": machine.number("RETRIES", 2) if retries is None else retries,
            "retry_delay": delay,
            **(default_args or {}),
        },
        **{
            "start_date": START_DATE,
            "catchup": False,
            # A run compares its model with the one that the previous run pushed.
            "max_active_runs": 1,
            **dag_arguments,
        },
    )
    try:
        dag.timetable.validate()
    except AirflowTimetableInvalid as error:
        raise SettingError(
            f"{source}: expected a cron expression, such as '30 4 * * *', or an Airflow preset, such as @daily, "
            f"got {given!r}: {error}"
        ) from None
    begin = Begin(task_id=BEGIN, compiled_dag=str(compiled.path), workdir=deployment.workdir, dag=dag)
    tasks: dict[str, BaseOperator] = {}
    for component, upstream in compiled.tasks.items():
        tasks[component] = RunComponent(
            task_id=component, component=component, python=interpreter, workdir=deployment.workdir, dag=dag
        )
        tasks[component].set_upstream([tasks[one] for one in upstream] or [begin])
    result = WriteResult(task_id=VERDICT, python=interpreter, workdir=deployment.workdir, dag=dag)
    result.set_upstream([tasks[component] for component in _leaves(compiled)])
    return dag


class Begin(BaseOperator):
    """Make the run's folder and copy the compiled DAG into it, so that later edits of the recipe do not affect the run.

    The XCom value is the run's id, as `tandem runs` shows it.
    """

    ui_color = "#e8eef7"

    def __init__(self, *, compiled_dag: str, workdir: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.compiled_dag = compiled_dag
        self.workdir = workdir

    def execute(self, context: Any) -> str:
        folder = new_folder(Path(self.workdir, RUNS_FOLDER))
        compiled = json.loads(Path(self.compiled_dag).read_text(encoding="utf-8"))
        deployment = compiled["deployment"]
        request = {key: deployment[key] for key in ("schema_dir", "preset", "overrides")}
        request |= {"airflow_dag": context["dag"].dag_id, "airflow_run": context["run_id"]}
        (folder / REQUEST_FILE).write_text(json.dumps(request, indent=1))
        (folder / RESOLVED_RECIPE_FILE).write_text(json.dumps(compiled["recipe"], indent=1))
        shutil.copyfile(self.compiled_dag, folder / COMPILED_DAG_FILE)
        self.log.info("Started run %s in %s.", folder.name, self.workdir)
        return folder.name


class _TandemTask(BaseOperator):
    """Run a module of Tandem in a process, with its output in the task's log and in the run's log."""

    template_fields: ClassVar[Sequence[str]] = ("tandem_run",)
    is_final: ClassVar[tuple[int, ...]] = (BAD_INPUT, NOT_BLESSED)

    def __init__(self, *, python: str, workdir: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.python = python
        self.workdir = workdir
        self.tandem_run = f"{{{{ ti.xcom_pull(task_ids='{BEGIN}') }}}}"
        self._process: subprocess.Popen[str] | None = None

    def _run_module(self, module: str, *arguments: str) -> None:
        folder = run_folder(Path(self.workdir), self.tandem_run)
        if not (folder / COMPILED_DAG_FILE).is_file():
            raise AirflowFailException(
                f"{folder / COMPILED_DAG_FILE} does not exist: the task {BEGIN!r} was skipped, or the run's folder was "
                "removed. Trigger a new run; completed components are cached."
            )
        command = [self.python, "-P", "-m", module, str(folder / COMPILED_DAG_FILE), self.tandem_run, *arguments]
        self.log.info("Running %s", shlex.join(command))
        (folder / ERROR_FILE).unlink(missing_ok=True)
        output: list[str] = []
        with open(folder / LOG_FILE, "a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command, cwd=self.workdir, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                encoding="utf-8", errors="replace", start_new_session=True,
            )  # fmt: skip
            assert self._process.stdout is not None
            try:
                for line in self._process.stdout:
                    self.log.info("%s", line.rstrip())
                    log.write(line)
                    output.append(line)
                code = self._process.wait()
            finally:
                # Ctrl-C does not reach the process, which has its own session.
                self.on_kill()
        if code == 0:
            return
        message = printed_reason("".join(output)) or _exit_reason(self.task_id, code)
        if code != NOT_BLESSED:
            (folder / ERROR_FILE).write_text(message, encoding="utf-8")
        raise (AirflowFailException if code in self.is_final else AirflowException)(message)

    def on_kill(self) -> None:
        """End the process and its children when the task is stopped."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)


class RunComponent(_TandemTask):
    """One component of the DAG."""

    ui_color = "#fff7e0"

    def __init__(self, *, component: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.component = component

    def execute(self, context: Any) -> None:
        self._run_module("pipeline.runners.airflow.component_task", self.component)


class WriteResult(_TandemTask):
    """Write the run's result, and fail if no model was pushed, so that the DAG run fails."""

    ui_color = "#e7f4e4"

    def execute(self, context: Any) -> None:
        self._run_module("pipeline.runners.airflow.result_task")


class _Settings:
    """Arguments of `recipe_dag` with the TANDEM_* variables as defaults."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def given(self, name: str, argument: Any) -> Any:
        """Return the argument or else the variable; None if neither is set."""
        return argument if argument is not None else self._variables.get(f"TANDEM_{name}") or None

    def folder(self, name: str, argument: str | Path | None) -> str:
        """Return an absolute path, which is required."""
        found = self.given(name, argument)
        if found is None:
            raise SettingError(
                f"TANDEM_{name} is not set. Set it to an absolute path for all of Airflow's processes, or pass "
                f"{name.lower()} to recipe_dag, which is required together with schema_dir."
            )
        if not os.path.isabs(found):
            raise SettingError(
                f"TANDEM_{name} or {name.lower()}: expected an absolute path, got {str(found)!r}. Airflow's processes "
                "have different working directories."
            )
        return os.path.normpath(found)

    def words(self, name: str, argument: Sequence[str] | None) -> tuple[str, ...]:
        """Return a list, which a variable has separated by spaces."""
        return tuple(shlex.split(self.given(name, None) or "") if argument is None else argument)

    def engine(self, argument: str | None) -> str:
        """Return the name of a Beam runner."""
        found = self.given("BEAM_RUNNER", argument) or BeamRunner.DIRECT.value
        if found not in list(BeamRunner):
            raise SettingError(
                f"TANDEM_BEAM_RUNNER or beam_runner: expected one of {', '.join(BeamRunner)}, got {found!r}."
            )
        return str(found)

    def number(self, name: str, default: int) -> int:
        """Return a non-negative integer."""
        found = self.given(name, None) or str(default)
        if not found.isdecimal():
            raise SettingError(f"TANDEM_{name}: expected a non-negative integer, got {found!r}.")
        return int(found)


def _exit_reason(name: str, code: int) -> str:
    """Return the reason why a process failed that printed none."""
    if code < 0:
        killed = f"{name} was killed by {signal.Signals(-code).name}."
        return f"{killed} The machine may have run out of memory." if code == -signal.SIGKILL else killed
    return f"{name} failed with exit code {code}. Full traceback: the task's log."


def _leaves(compiled: CompiledDag) -> list[str]:
    """Return the components without downstream components."""
    upstream = {one for each in compiled.tasks.values() for one in each}
    return [component for component in compiled.tasks if component not in upstream]


def _first_sentence(compiled: CompiledDag) -> str:
    text = " ".join(str(compiled.recipe["description"]).split())
    return text.partition(". ")[0] or f"Tandem: {compiled.recipe['name']}"


def _documentation(compiled: CompiledDag) -> str:
    """Return the DAG's documentation in Airflow's UI, as Markdown."""
    deployment, recipe = compiled.deployment, compiled.recipe
    serving = deployment.serving_dir or push_destination(Path(deployment.workdir), recipe["name"])
    gates = []
    for gate in recipe["gates"]:
        slice_ = "".join(f" where {key} is {value}" for key, value in (gate.get("slice") or {}).items())
        conditions = [text.format(gate[key]) for key, text in GATE_CONDITIONS.items() if gate.get(key) is not None]
        gates.append(f"- `{gate['metric']}`{slice_}: {', '.join(conditions)}")
    return "\n".join(
        [
            str(recipe["description"]).strip(),
            "",
            f"Recipe `{deployment.schema_dir}`, data `{deployment.data}`, runs in `{deployment.workdir}`. "
            f"A model that passes every gate is pushed to `{serving}`.",
            "",
            "**Gates**",
            "",
            *gates,
            "",
            f"**Failed tasks.** `{VERDICT}`: the model is not blessed, nothing was pushed; the last line of its log "
            "has the gate and its threshold. A component: the last line has the cause. Fix it, then clear the task, "
            "or trigger a new run if you changed the recipe or the data; completed components are cached. Report of "
            f"all runs: `tandem report --workdir {deployment.workdir}`.",
        ]
    )
