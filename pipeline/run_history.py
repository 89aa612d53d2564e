"""The runs of a work folder: status and result of each, lookup by name, and the difference of two runs."""

from __future__ import annotations

import datetime
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2

from components.evaluator.verdict import VERDICT_FILE, Verdict
from pipeline.lineage import Lineage
from pipeline.result import RunResult
from pipeline.workdir import (
    COMPILED_DAG_FILE,
    ERROR_FILE,
    LOCK_FILE,
    LOG_FILE,
    RESOLVED_RECIPE_FILE,
    RESULT_FILE,
    RUNS_FOLDER,
)
from recipe import BadInput, Recipe
from recipe.errors import did_you_mean
from recipe.files import SCHEMA_FILE
from recipe.renamed import current_values

LATEST, PREVIOUS = "latest", "previous"

Status = Literal["pushed", "not blessed", "not servable", "failed", "stopped", "running"]

STATISTICS_FILE = "FeatureStats.pb"


class RunError(BadInput):
    """No run or several runs match a name, or a run has no gate results."""


class ComponentState(pydantic.BaseModel):
    """State and duration of one component of a run."""

    name: str
    seconds: float
    state: Literal["done", "cached", "failed", "unfinished"]


class Run(pydantic.BaseModel):
    """A run, complete or not."""

    run_id: str
    recipe_name: str
    recipe: dict[str, Any]
    """The resolved recipe, defaults and overrides included; empty if the run has none."""
    started: datetime.datetime
    """Local time, as in the run's id."""
    seconds: float
    status: Status
    error: str | None
    """Reason of a failed run; None if it did not fail."""
    components: tuple[ComponentState, ...]
    """Components that have started, in order."""
    rows: dict[str, int]
    verdict: Verdict | None
    """None if the Evaluator did not run, or another version of Tandem wrote the file."""
    best_possible: dict[str, float] = {}
    """Upper bound (oracle) of each metric; empty unless the data is synthetic."""
    not_servable: str | None
    pushed_model: str | None
    log: str | None

    @property
    def pushed_version(self) -> str | None:
        """The version number of the pushed model."""
        return Path(self.pushed_model).name if self.pushed_model else None

    @property
    def metrics(self) -> dict[str, float]:
        return self.verdict.metrics if self.verdict is not None else {}


class Change(pydantic.BaseModel):
    """A value that differs between two runs; None means that a run does not have it."""

    key: str
    before: Any
    after: Any


class RunDiff(pydantic.BaseModel):
    """Differences of two runs."""

    before: str
    after: str
    recipe: tuple[Change, ...]
    rows: tuple[Change, ...]
    data_schema: tuple[Change, ...]
    """By feature; the values are the features' text protos in schema.pbtxt."""
    statistics: tuple[Change, ...]
    """By `SPLIT.FEATURE.STATISTIC`."""
    metrics: tuple[Change, ...]
    """All metrics that at least one of the runs measured, changed or not."""
    not_comparable: dict[str, str]
    """Reason why a part is not compared, by field: a run did not reach it, or its artifacts do not exist any more."""


# --- reading ----------------------------------------------------------------------------------------------------------


def list_runs(workdir: Path, lineage: Lineage | None = None) -> list[Run]:
    """Return the runs of a work folder, oldest first: runs with a folder, and runs that only ML Metadata has.

    Raises:
        RunError: There is no run.
    """
    lineage = lineage or Lineage(workdir)
    run_ids = _run_ids(workdir, lineage)
    return [read_run(workdir, run_id, lineage) for run_id in run_ids]


def find_run(workdir: Path, name: str, lineage: Lineage | None = None) -> str:
    """Return the id of a run: `name` is `latest`, `previous` (the one before it), an id, or the prefix of an id.

    Raises:
        RunError: No run or several runs match.
    """
    run_ids = _run_ids(workdir, lineage or Lineage(workdir))
    if name == LATEST:
        return run_ids[-1]
    if name == PREVIOUS:
        if len(run_ids) < 2:
            raise RunError(f"{workdir}: there is no previous run; the only run is {run_ids[0]}.")
        return run_ids[-2]
    if name in run_ids:
        return name
    meant = [run_id for run_id in run_ids if name and run_id.startswith(name)]
    if len(meant) > 1:
        raise RunError(f"{workdir}: {name!r} is a prefix of {len(meant)} runs: {_listed(meant)}. Use a longer one.")
    if not meant:
        close = did_you_mean(name, (*run_ids, LATEST, PREVIOUS))
        raise RunError(
            f"{workdir}: expected {LATEST}, {PREVIOUS} or the id of a run or its prefix, got "
            f"{name!r}{close or '.'} Runs: {_listed(run_ids)}. `tandem runs` lists them."
        )
    return meant[0]


def read_run(workdir: Path, run_id: str, lineage: Lineage | None = None) -> Run:
    """Read a run, complete or not, from its folder and ML Metadata."""
    lineage = lineage or Lineage(workdir)
    folder = workdir / RUNS_FOLDER / run_id
    steps = lineage.steps(run_id)
    # An earlier version wrote the recipe with the old names of renamed keys.
    recipe, _ = current_values(Recipe, _json(folder / RESOLVED_RECIPE_FILE))
    result = _result(folder / RESULT_FILE)
    log = folder / LOG_FILE
    examples = lineage.output(run_id, "InteractionExampleGen", "examples")
    rows = _rows(examples.properties) if examples is not None else {}
    known: dict[str, Any]
    if result is not None:
        known = {
            "recipe_name": result.recipe,
            "seconds": result.seconds,
            "components": tuple(
                ComponentState(name=one.name, seconds=one.seconds, state="cached" if one.cached else "done")
                for one in result.components
            ),
            "rows": rows | result.rows,
            "verdict": result.verdict,
            "best_possible": result.best_possible,
            "not_servable": result.not_servable,
            "pushed_model": result.pushed_model,
            "status": _verdict_status(result.pushed_model, result.not_servable, result.verdict),
            "error": None,
        }
    else:
        evaluation = lineage.output(run_id, "Evaluator", "evaluation")
        infra = lineage.output(run_id, "InfraValidator", "blessing")
        pushed = lineage.output(run_id, "Pusher", "pushed_model")
        verdict = _verdict(Path(evaluation.uri) / VERDICT_FILE) if evaluation is not None else None
        not_servable = str(infra.properties.get("reason", "")) or None if infra is not None else None
        destination = pushed.properties.get("pushed_destination") if pushed is not None else None
        # A run of another orchestrator has no folder; it is complete if its last component is.
        complete = pushed is not None and not folder.is_dir()
        known = {
            "recipe_name": str(recipe.get("name", "")),
            "seconds": max((step.started + step.seconds for step in steps), default=0.0)
            - min((step.started for step in steps), default=0.0),
            "components": tuple(
                ComponentState(name=step.component, seconds=step.seconds, state=step.state) for step in steps
            ),
            "rows": rows,
            "verdict": verdict,
            "not_servable": not_servable,
            "pushed_model": destination,
        }
        if complete:
            known |= {"status": _verdict_status(destination, not_servable, verdict), "error": None}
        else:
            known |= _unfinished(workdir, folder, [step.component for step in steps if step.state == "failed"])
    return Run(
        run_id=run_id,
        recipe=recipe,
        started=_started(run_id, steps[0].started if steps else None),
        log=str(log) if log.is_file() else None,
        **known,
    )


def read_verdict(workdir: Path, run_id: str) -> tuple[Run, Verdict]:
    """Return a run and its gate results.

    Raises:
        RunError: The Evaluator did not run, or another version of Tandem wrote the results.
    """
    run = read_run(workdir, run_id)
    if run.verdict is None:
        log = run.log or workdir / RUNS_FOLDER / run_id / LOG_FILE
        raise RunError(
            f"{workdir}: run {run_id} has no gate results: the Evaluator did not run, or another version of Tandem "
            f"wrote them. Full logs: {log}. `tandem runs` shows the status of all runs."
        )
    return run, run.verdict


def previous_run(runs: Sequence[Run], run: Run) -> Run | None:
    """Return the latest earlier run of the same recipe, by name; None if `run` is the first."""
    earlier = [one for one in runs if one.run_id < run.run_id and one.recipe_name == run.recipe_name]
    return earlier[-1] if earlier else None


def _run_ids(workdir: Path, lineage: Lineage) -> list[str]:
    folder = workdir / RUNS_FOLDER
    folders = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    run_ids = sorted({*folders, *lineage.run_ids})
    if not run_ids:
        raise RunError(
            f"{workdir}: there are no runs. Run a recipe with `tandem run`, or set --workdir to another folder."
        )
    return run_ids


def _listed(run_ids: Sequence[str]) -> str:
    shown = ", ".join(run_ids[-5:])
    return f"{shown} and {len(run_ids) - 5} earlier ones" if len(run_ids) > 5 else shown


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _result(path: Path) -> RunResult | None:
    try:
        return RunResult.model_validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError):
        # The run is not complete, or another version of Tandem wrote the file; ML Metadata has the rest.
        return None


def _verdict(path: Path) -> Verdict | None:
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError):
        return None


def _rows(properties: Mapping[str, Any]) -> dict[str, int]:
    return {
        name.removeprefix("rows_"): int(value) for name, value in properties.items() if name.startswith("rows_")
    }  # fmt: skip


def _verdict_status(pushed: str | None, not_servable: str | None, verdict: Verdict | None) -> Status:
    if pushed:
        return "pushed"
    return "not servable" if not_servable and (verdict is None or verdict.blessed) else "not blessed"


def _unfinished(workdir: Path, folder: Path, failed: Sequence[str]) -> dict[str, Any]:
    """Return status and error of a run without a result."""
    error = folder / ERROR_FILE
    if error.is_file():
        return {"status": "failed", "error": error.read_text(encoding="utf-8").strip()}
    if failed:
        return {"status": "failed", "error": f"{failed[-1]} failed. Full traceback: {folder / LOG_FILE}."}
    if (folder / COMPILED_DAG_FILE).is_file():
        # Between two tasks of Airflow, no process holds the lock of the work folder.
        return {"status": "running", "error": None}
    newest = (
        max((path.name for path in folder.parent.iterdir() if path.is_dir()), default="")
        if folder.parent.is_dir()
        else ""
    )
    if newest == folder.name and _is_locked(workdir / LOCK_FILE):
        return {"status": "running", "error": None}
    return {
        "status": "stopped",
        "error": "The process ended without an error message: it was killed, or the machine stopped. Rerun; completed "
        "components are cached.",
    }


def _is_locked(path: Path) -> bool:
    """Whether a run holds the lock of the work folder."""
    try:
        with open(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _started(run_id: str, first_step: float | None) -> datetime.datetime:
    try:
        return datetime.datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return datetime.datetime.fromtimestamp(first_step or 0)


# --- comparing --------------------------------------------------------------------------------------------------------


def diff_runs(workdir: Path, before: Run, after: Run, lineage: Lineage | None = None) -> RunDiff:
    """Compare two runs by recipe, data and metrics."""
    lineage = lineage or Lineage(workdir)
    metrics = list(dict.fromkeys((*before.metrics, *after.metrics)))
    data: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
        "rows": (before.rows, after.rows),
        "data_schema": (_schema(lineage, before.run_id), _schema(lineage, after.run_id)),
        "statistics": (_statistics(lineage, before.run_id), _statistics(lineage, after.run_id)),
    }
    missing = {
        part: " and ".join(run.run_id for run, found in zip((before, after), both, strict=True) if not found)
        for part, both in data.items()
    }
    return RunDiff(
        before=before.run_id,
        after=after.run_id,
        recipe=diff_recipes(before.recipe, after.recipe),
        **{part: () if missing[part] else _changes(*both) for part, both in data.items()},
        metrics=tuple(
            Change(key=name, before=before.metrics.get(name), after=after.metrics.get(name)) for name in metrics
        ),
        not_comparable={part: f"run {runs} has none" for part, runs in missing.items() if runs},
    )


def diff_recipes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    """Return the keys whose values differ, dotted as in `--set`."""
    return _changes(dict(flat(before)), dict(flat(after)))


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings and lists by dotted key; a list of scalars is one value."""
    if isinstance(value, Mapping) and value:
        for name, child in value.items():
            yield from flat(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(child, Mapping | list | tuple) for child in value):
        for index, child in enumerate(value):
            yield from flat(child, f"{key}.{index}")
    else:
        yield key, value


def statistics_of(lineage: Lineage, run_id: str) -> dict[str, statistics_pb2.DatasetFeatureStatistics]:
    """Return TFDV's statistics of a run's raw examples, by split; empty if StatisticsGen did not run."""
    artifact = lineage.output(run_id, "StatisticsGen", "statistics")
    found = {}
    for folder in sorted(Path(artifact.uri).glob("Split-*")) if artifact is not None else ():
        path = folder / STATISTICS_FILE
        if path.is_file():
            datasets = statistics_pb2.DatasetFeatureStatisticsList.FromString(path.read_bytes()).datasets
            if datasets:
                found[folder.name.removeprefix("Split-")] = datasets[0]
    return found


def schema_of(lineage: Lineage, run_id: str) -> schema_pb2.Schema:
    """Return the curated schema of a run; empty if ImportSchemaGen did not run."""
    artifact = lineage.output(run_id, "ImportSchemaGen", "schema")
    path = Path(artifact.uri) / SCHEMA_FILE if artifact is not None else None
    if path is None or not path.is_file():
        return schema_pb2.Schema()
    return text_format.Parse(path.read_text(encoding="utf-8"), schema_pb2.Schema())


def _schema(lineage: Lineage, run_id: str) -> dict[str, str]:
    features = schema_of(lineage, run_id).feature
    return {feature.name: text_format.MessageToString(feature, as_one_line=True).strip() for feature in features}


_COMPARED_STATISTICS = {"num_stats": ("mean", "std_dev", "min", "max"), "string_stats": ("unique",)}


def _statistics(lineage: Lineage, run_id: str) -> dict[str, float]:
    """Return the statistics that are compared, by split and feature."""
    found = {}
    for split, statistics in statistics_of(lineage, run_id).items():
        for feature in statistics.features:
            name = f"{split}.{'.'.join(feature.path.step) or feature.name}"
            kind = feature.WhichOneof("stats")
            values = getattr(feature, kind) if kind else None
            common = getattr(values, "common_stats", None)
            if common is not None:
                found[f"{name}.missing"] = float(common.num_missing)
            for statistic in _COMPARED_STATISTICS.get(kind, ()):
                found[f"{name}.{statistic}"] = float(f"{getattr(values, statistic):.6g}")
    return found


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    return tuple(
        Change(key=key, before=before.get(key), after=after.get(key))
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key) or (key in before) != (key in after)
    )
