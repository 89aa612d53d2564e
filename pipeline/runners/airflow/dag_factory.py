"""A recipe as an Airflow DAG: one task a component of `pipeline/dag.py`, between one that begins and one that judges.

Called by DAG files (`airflow_dag.py` beside this is one). TFX has a runner for Airflow of its own. It imports TFX in
every process of Airflow, every time a DAG file is read, and launches components in a way that the rest of TFX has left
behind. Here a task is a process of the Python that `TANDEM_PYTHON` names, which launches its component exactly as
`tandem run` does, so Airflow needs neither TensorFlow nor an environment that it agrees with.
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
from pipeline.runners.airflow.plan import Deployment, Plan, last_words, plan_for
from pipeline.workdir import (
    ASKED_FILE,
    ERROR_FILE,
    LOG_FILE,
    PLAN_FILE,
    RECIPE_FILE,
    RUNS_FOLDER,
    new_folder,
    run_folder,
)

BEGIN, VERDICT = "begin", "verdict"
"""The tasks besides the components."""

NO_SCHEDULE = "none"
"""What says that the recipe's schedule does not count."""

# Any day in the past: with catch-up off, Airflow begins with the latest interval.
START_DATE = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)

GATE_WORDS = {
    "at_least": "at least {}",
    "at_most": "at most {}",
    "may_drop": "may drop by {} from the last blessed model",
    "may_rise": "may rise by {} from the last blessed model",
    "beats_baseline_by": "better than the baseline by {}",
}


class SettingError(ValueError):
    """A DAG file or a TANDEM_* variable says something that cannot be used."""


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
    """The DAG of a recipe: of the one that the TANDEM_* variables name, or of `schema_dir`.

    An argument wins over its variable. With `schema_dir`, the variables about a recipe do not count at all, so that two
    DAGs in one Airflow never share a folder by accident; those about the machine do.

    Args:
        schema_dir: Folder with `recipe.yaml` and `schema.pbtxt`; TANDEM_SCHEMA_DIR.
        data: Folder with the CSVs; TANDEM_DATA.
        workdir: Folder for artifacts, ML Metadata and runs, on a disk that every worker has; TANDEM_WORKDIR.
        serving_dir: Folder that TensorFlow Serving watches; TANDEM_SERVING_DIR, else `serving/NAME` in `workdir`.
        preset: Name of a preset of `schema_dir`; TANDEM_PRESET.
        overrides: `key=value` changes to the recipe; TANDEM_SET, with spaces between them.
        schedule: Anything that Airflow takes, or `none`; TANDEM_SCHEDULE, else the recipe's. With `none`, or where none
            is given, the DAG runs only when it is triggered.
        retries: How often a task is tried again; TANDEM_RETRIES, else 2. Bad input and a closed gate are final.
        retry_delay: How long to wait before that; TANDEM_RETRY_DELAY in seconds, else a minute.
        python: The interpreter that has Tandem with TFX; TANDEM_PYTHON, else Airflow's own.
        beam_runner: direct, flink or spark; TANDEM_BEAM_RUNNER, else direct.
        beam_args: Options of Beam for it, as `tandem run --beam-arg` has them; TANDEM_BEAM_ARGS, with spaces between.
        dag_id: Name of the DAG; the recipe's by default.
        tags: Tags besides `tandem` and the recipe's name.
        default_args: Further arguments of every task, such as `pool` or `on_failure_callback`.
        dag_arguments: Further arguments of the DAG, such as `start_date` or `dagrun_timeout`.

    Raises:
        SettingError: A path is missing or relative, a number is none, or Airflow cannot read the schedule.
        PlanError: The recipe or the schema cannot be used.
    """
    machine = _Settings(os.environ)
    asked = machine if schema_dir is None else _Settings({})
    deployment = Deployment(
        schema_dir=asked.folder("SCHEMA_DIR", schema_dir),
        data=asked.folder("DATA", data),
        workdir=asked.folder("WORKDIR", workdir),
        serving_dir=asked.folder("SERVING_DIR", serving_dir) if asked.given("SERVING_DIR", serving_dir) else None,
        preset=asked.given("PRESET", preset),
        overrides=asked.words("SET", overrides),
        beam_runner=machine.engine(beam_runner),
        beam_args=machine.words("BEAM_ARGS", beam_args),
    )
    interpreter = str(machine.given("PYTHON", python) or sys.executable)
    plan = plan_for(deployment, interpreter)
    name = str(plan.recipe["name"])
    # The words come from where the schedule does, for the person who has to mend it.
    given, said = asked.given("SCHEDULE", schedule), "TANDEM_SCHEDULE or schedule"
    if given is None:
        given, said = plan.recipe["schedule"], f"{Path(deployment.schema_dir, 'recipe.yaml')}: schedule"
    delay = datetime.timedelta(seconds=machine.number("RETRY_DELAY", 60)) if retry_delay is None else retry_delay
    dag = DAG(
        dag_id=dag_id or name,
        description=_first_sentence(plan),
        doc_md=_documentation(plan),
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
            # The next run compares its model with the one that this run pushes.
            "max_active_runs": 1,
            **dag_arguments,
        },
    )
    try:
        dag.timetable.validate()
    except AirflowTimetableInvalid as error:
        raise SettingError(
            f"{said}: a cron expression, such as '30 4 * * *', or an Airflow preset, such as @daily, was wanted, "
            f"{given!r} was found: {error}"
        ) from None
    begin = Begin(task_id=BEGIN, plan=str(plan.path), workdir=deployment.workdir, dag=dag)
    tasks: dict[str, BaseOperator] = {}
    for component, before in plan.tasks.items():
        tasks[component] = RunComponent(
            task_id=component, component=component, python=interpreter, workdir=deployment.workdir, dag=dag
        )
        tasks[component].set_upstream([tasks[one] for one in before] or [begin])
    verdict = Judge(task_id=VERDICT, python=interpreter, workdir=deployment.workdir, dag=dag)
    verdict.set_upstream([tasks[component] for component in _last(plan)])
    return dag


class Begin(BaseOperator):
    """Makes the run's folder; what the run does from here on stands in it, whatever becomes of the recipe meanwhile.

    Returns the run's id, as `tandem runs` shows it, to the other tasks.
    """

    ui_color = "#e8eef7"

    def __init__(self, *, plan: str, workdir: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.plan = plan
        self.workdir = workdir

    def execute(self, context: Any) -> str:
        folder = new_folder(Path(self.workdir, RUNS_FOLDER))
        plan = json.loads(Path(self.plan).read_text(encoding="utf-8"))
        deployment = plan["deployment"]
        asked = {key: deployment[key] for key in ("schema_dir", "preset", "overrides")}
        asked |= {"airflow_dag": context["dag"].dag_id, "airflow_run": context["run_id"]}
        (folder / ASKED_FILE).write_text(json.dumps(asked, indent=1))
        (folder / RECIPE_FILE).write_text(json.dumps(plan["recipe"], indent=1))
        shutil.copyfile(self.plan, folder / PLAN_FILE)
        self.log.info("This is run %s of %s.", folder.name, self.workdir)
        return folder.name


class _TandemTask(BaseOperator):
    """Runs a module of Tandem in a process, with its output in the task's log and in the run's own."""

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
        if not (folder / PLAN_FILE).is_file():
            raise AirflowFailException(
                f"{folder} has no plan. Was the task {BEGIN!r} skipped, or the run's folder removed? Trigger a new "
                "run; what is done already comes from the cache."
            )
        command = [self.python, "-P", "-m", module, str(folder / PLAN_FILE), self.tandem_run, *arguments]
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
                # Ctrl-C does not reach a session of its own.
                self.on_kill()
        if code == 0:
            return
        message = last_words("".join(output)) or _ended(self.task_id, code)
        if code != NOT_BLESSED:
            (folder / ERROR_FILE).write_text(message, encoding="utf-8")
        raise (AirflowFailException if code in self.is_final else AirflowException)(message)

    def on_kill(self) -> None:
        """Ends the process and what it started, when somebody stops the task."""
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
        self._run_module("pipeline.runners.airflow.task", self.component)


class Judge(_TandemTask):
    """Writes what came of the run, and fails where nothing was pushed, so that the run is red."""

    ui_color = "#e7f4e4"

    def execute(self, context: Any) -> None:
        self._run_module("pipeline.runners.airflow.outcome")


class _Settings:
    """What the TANDEM_* variables say where an argument does not."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def given(self, name: str, argument: Any) -> Any:
        """The argument, else the variable; None where both say nothing."""
        return argument if argument is not None else self._variables.get(f"TANDEM_{name}") or None

    def folder(self, name: str, argument: str | Path | None) -> str:
        """An absolute path, which must be there to be given."""
        found = self.given(name, argument)
        if found is None:
            raise SettingError(
                f"TANDEM_{name} is not set. Set it to an absolute path for all of Airflow's processes, or give "
                f"recipe_dag the argument {name.lower()}; it must be given together with the argument schema_dir."
            )
        if not os.path.isabs(found):
            raise SettingError(
                f"TANDEM_{name} or {name.lower()}: an absolute path was wanted, {str(found)!r} was found; Airflow's "
                "processes run in no particular folder."
            )
        return os.path.normpath(found)

    def words(self, name: str, argument: Sequence[str] | None) -> tuple[str, ...]:
        """A list, which a variable has with spaces between."""
        return tuple(shlex.split(self.given(name, None) or "") if argument is None else argument)

    def engine(self, argument: str | None) -> str:
        """One of Beam's engines."""
        found = self.given("BEAM_RUNNER", argument) or BeamRunner.DIRECT.value
        if found not in list(BeamRunner):
            raise SettingError(
                f"TANDEM_BEAM_RUNNER or beam_runner: {', '.join(BeamRunner)} were wanted, {found!r} was found."
            )
        return str(found)

    def number(self, name: str, default: int) -> int:
        """A whole number, not negative."""
        found = self.given(name, None) or str(default)
        if not found.isdecimal():
            raise SettingError(f"TANDEM_{name}: a whole number was wanted, {found!r} was found.")
        return int(found)


def _ended(name: str, code: int) -> str:
    """What is known about a process that ended without a word."""
    if code < 0:
        what = f"{name} was killed by {signal.Signals(-code).name}"
        return f"{what}. The machine may have run out of memory." if code == -signal.SIGKILL else f"{what}."
    return f"{name} ended with exit code {code}. The task's log says why."


def _last(plan: Plan) -> list[str]:
    """The components that no other one waits for."""
    waited_for = {one for before in plan.tasks.values() for one in before}
    return [component for component in plan.tasks if component not in waited_for]


def _first_sentence(plan: Plan) -> str:
    text = " ".join(str(plan.recipe["description"]).split())
    return text.partition(". ")[0] or f"Tandem: {plan.recipe['name']}"


def _documentation(plan: Plan) -> str:
    """What the UI shows above the DAG, as Markdown."""
    deployment = plan.deployment
    serving = deployment.serving_dir or f"{deployment.workdir}/serving/{plan.recipe['name']}"
    gates = []
    for gate in plan.recipe["gates"]:
        where = "".join(f" where {key} is {value}" for key, value in (gate.get("slice") or {}).items())
        wanted = [words.format(gate[key]) for key, words in GATE_WORDS.items() if gate.get(key) is not None]
        gates.append(f"- `{gate['metric']}`{where}: {', '.join(wanted)}")
    return "\n".join(
        [
            str(plan.recipe["description"]).strip(),
            "",
            f"Recipe `{deployment.schema_dir}`, data `{deployment.data}`, runs in `{deployment.workdir}`. "
            f"A model that passes every gate is pushed to `{serving}`.",
            "",
            "**Gates**",
            "",
            *gates,
            "",
            f"**Red?** `{VERDICT}` red: the model did not pass, nothing was pushed, and the task's last line names the "
            "gate. A component red: its last line says what to mend; then clear the task, or trigger a new run if you "
            "changed the recipe or the data. What is done already comes from the cache. "
            f"`tandem report --workdir {deployment.workdir}` draws the whole run.",
        ]
    )
