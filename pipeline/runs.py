"""The runs of a workdir: what became of each, which one a name means, and what changed between two of them."""

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
from pipeline.workdir import ERROR_FILE, LOCK_FILE, LOG_FILE, PLAN_FILE, RECIPE_FILE, RESULT_FILE, RUNS_FOLDER
from recipe import BadInput, Recipe
from recipe.errors import did_you_mean
from recipe.files import SCHEMA_FILE
from recipe.renamed import current_values

LATEST, PREVIOUS = "latest", "previous"

Status = Literal["pushed", "not blessed", "not servable", "failed", "stopped", "running"]

STATISTICS_FILE = "FeatureStats.pb"


class RunError(BadInput):
    """No run has the name that was given, or several have."""


class ComponentOutcome(pydantic.BaseModel):
    """One component of one run."""

    name: str
    seconds: float
    state: Literal["done", "cached", "failed", "unfinished"]


class Run(pydantic.BaseModel):
    """What is known about a run, however far it got."""

    run_id: str
    recipe_name: str
    recipe: dict[str, Any]
    """As it was used, defaults and overrides included; empty where the run left none."""
    started: datetime.datetime
    """In local time, like the run's name."""
    seconds: float
    status: Status
    error: str | None
    """Why a run failed, in words; None where it did not."""
    components: tuple[ComponentOutcome, ...]
    """Those that began, in order."""
    rows: dict[str, int]
    verdict: Verdict | None
    """None where the Evaluator did not get to it, or where another version of Tandem wrote it."""
    best_possible: dict[str, float] = {}
    """What no model can beat, by metric; empty where nobody knows."""
    not_servable: str | None
    pushed_model: str | None
    log: str | None

    @property
    def pushed_version(self) -> str | None:
        """The number that TensorFlow Serving knows the pushed model by."""
        return Path(self.pushed_model).name if self.pushed_model else None

    @property
    def metrics(self) -> dict[str, float]:
        return self.verdict.metrics if self.verdict is not None else {}


class Change(pydantic.BaseModel):
    """A value that differs between two runs; None stands for "not there"."""

    key: str
    before: Any
    after: Any


class RunDiff(pydantic.BaseModel):
    """What changed from one run to another."""

    before: str
    after: str
    recipe: tuple[Change, ...]
    rows: tuple[Change, ...]
    data_schema: tuple[Change, ...]
    """By feature; the values are the features as schema.pbtxt writes them."""
    statistics: tuple[Change, ...]
    """By `SPLIT.FEATURE.FIGURE`."""
    metrics: tuple[Change, ...]
    """All metrics that both or one of them measured, changed or not."""
    not_comparable: dict[str, str]
    """Why a part of the data is not compared, by field: a run did not get to it, or its artifacts are gone."""


# --- reading ----------------------------------------------------------------------------------------------------------


def list_runs(workdir: Path, lineage: Lineage | None = None) -> list[Run]:
    """The runs of a workdir, oldest first: those with a folder, and those that only ML Metadata knows.

    Raises:
        RunError: There is no run.
    """
    lineage = lineage or Lineage(workdir)
    run_ids = _run_ids(workdir, lineage)
    return [read_run(workdir, run_id, lineage) for run_id in run_ids]


def find_run(workdir: Path, name: str, lineage: Lineage | None = None) -> str:
    """The id of the run that `name` means: `latest`, `previous` (the one before it), an id, or the beginning of one.

    Raises:
        RunError: No run is meant, or several are.
    """
    run_ids = _run_ids(workdir, lineage or Lineage(workdir))
    if name == LATEST:
        return run_ids[-1]
    if name == PREVIOUS:
        if len(run_ids) < 2:
            raise RunError(f"{workdir} has one run only, {run_ids[0]}, so there is no previous one.")
        return run_ids[-2]
    if name in run_ids:
        return name
    meant = [run_id for run_id in run_ids if name and run_id.startswith(name)]
    if len(meant) > 1:
        raise RunError(f"{name!r} is the beginning of {len(meant)} runs: {_listed(meant)}. Write more of it.")
    if not meant:
        close = did_you_mean(name, (*run_ids, LATEST, PREVIOUS))
        raise RunError(
            f"{workdir} has no run {name!r}{close}; an id or its beginning, {LATEST} or {PREVIOUS} was wanted. "
            f"Runs there: {_listed(run_ids)}. `tandem runs` shows them."
        )
    return meant[0]


def read_run(workdir: Path, run_id: str, lineage: Lineage | None = None) -> Run:
    """Everything the run's folder and ML Metadata know about a run, finished or not."""
    lineage = lineage or Lineage(workdir)
    folder = workdir / RUNS_FOLDER / run_id
    steps = lineage.steps(run_id)
    # An earlier version wrote the recipe with the old names of renamed keys.
    recipe, _ = current_values(Recipe, _json(folder / RECIPE_FILE))
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
                ComponentOutcome(name=one.name, seconds=one.seconds, state="cached" if one.cached else "done")
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
        refused = str(infra.properties.get("reason", "")) or None if infra is not None else None
        destination = pushed.properties.get("pushed_destination") if pushed is not None else None
        # A run of another orchestrator has no folder here; its last step tells that it is complete.
        complete = pushed is not None and not folder.is_dir()
        known = {
            "recipe_name": str(recipe.get("name", "")),
            "seconds": max((step.started + step.seconds for step in steps), default=0.0)
            - min((step.started for step in steps), default=0.0),
            "components": tuple(
                ComponentOutcome(name=step.component, seconds=step.seconds, state=step.state) for step in steps
            ),
            "rows": rows,
            "verdict": verdict,
            "not_servable": refused,
            "pushed_model": destination,
        }
        if complete:
            known |= {"status": _verdict_status(destination, refused, verdict), "error": None}
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
    """A run and what its gates decided.

    Raises:
        RunError: It did not come to a verdict, or another version of Tandem wrote it.
    """
    run = read_run(workdir, run_id)
    if run.verdict is None:
        log = run.log or workdir / RUNS_FOLDER / run_id / LOG_FILE
        raise RunError(
            f"{workdir}: the run {run_id} did not come to a verdict, or another version of tandem wrote it; why is at "
            f"the end of {log}. `tandem runs` shows the runs that have one."
        )
    return run, run.verdict


def previous_run(runs: Sequence[Run], run: Run) -> Run | None:
    """The latest run before `run` of the same recipe, by name; None where it is the first."""
    earlier = [one for one in runs if one.run_id < run.run_id and one.recipe_name == run.recipe_name]
    return earlier[-1] if earlier else None


def _run_ids(workdir: Path, lineage: Lineage) -> list[str]:
    folder = workdir / RUNS_FOLDER
    folders = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    run_ids = sorted({*folders, *lineage.run_ids})
    if not run_ids:
        raise RunError(
            f"{workdir}: no runs here. Run a recipe first (`tandem run`), or give --workdir the right folder."
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
        # Not there yet, or written by a version that knew other fields; ML Metadata tells the rest.
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
    """Status and error of a run without a result."""
    error = folder / ERROR_FILE
    if error.is_file():
        return {"status": "failed", "error": error.read_text(encoding="utf-8").strip()}
    if failed:
        return {"status": "failed", "error": f"{failed[-1]} failed; the log says why."}
    if (folder / PLAN_FILE).is_file():
        # Nothing holds the workdir's lock between the tasks of an orchestrator, which alone knows whether it goes on.
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
        "error": "The run ended without a word: its process was killed, or the machine went down. The same command "
        "goes on from the last finished component.",
    }


def _is_locked(path: Path) -> bool:
    """Whether a run holds the workdir's lock."""
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
    """What changed from `before` to `after` in recipe, data and metrics."""
    lineage = lineage or Lineage(workdir)
    metrics = list(dict.fromkeys((*before.metrics, *after.metrics)))
    data: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
        "rows": (before.rows, after.rows),
        "data_schema": (_schema(lineage, before.run_id), _schema(lineage, after.run_id)),
        "statistics": (_figures(lineage, before.run_id), _figures(lineage, after.run_id)),
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
    """The keys whose values differ, as `--set` writes them."""
    return _changes(dict(flat(before)), dict(flat(after)))


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings and lists by dotted key; a list of plain values is a value itself."""
    if isinstance(value, Mapping) and value:
        for name, child in value.items():
            yield from flat(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(child, Mapping | list | tuple) for child in value):
        for index, child in enumerate(value):
            yield from flat(child, f"{key}.{index}")
    else:
        yield key, value


def statistics_of(lineage: Lineage, run_id: str) -> dict[str, statistics_pb2.DatasetFeatureStatistics]:
    """TFDV's statistics of a run's raw examples, by split; empty where the run did not get that far."""
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
    """The curated schema that a run used; empty where the run did not get that far."""
    artifact = lineage.output(run_id, "ImportSchemaGen", "schema")
    path = Path(artifact.uri) / SCHEMA_FILE if artifact is not None else None
    if path is None or not path.is_file():
        return schema_pb2.Schema()
    return text_format.Parse(path.read_text(encoding="utf-8"), schema_pb2.Schema())


def _schema(lineage: Lineage, run_id: str) -> dict[str, str]:
    features = schema_of(lineage, run_id).feature
    return {feature.name: text_format.MessageToString(feature, as_one_line=True).strip() for feature in features}


def _figures(lineage: Lineage, run_id: str) -> dict[str, float]:
    """The figures of each feature in each split that a person compares."""
    found = {}
    for split, statistics in statistics_of(lineage, run_id).items():
        for feature in statistics.features:
            name = f"{split}.{'.'.join(feature.path.step) or feature.name}"
            kind = feature.WhichOneof("stats")
            figures = getattr(feature, kind) if kind else None
            common = getattr(figures, "common_stats", None)
            if common is not None:
                found[f"{name}.missing"] = float(common.num_missing)
            for figure in {"num_stats": ("mean", "std_dev", "min", "max"), "string_stats": ("unique",)}.get(kind, ()):
                found[f"{name}.{figure}"] = float(f"{getattr(figures, figure):.6g}")
    return found


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    return tuple(
        Change(key=key, before=before.get(key), after=after.get(key))
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key) or (key in before) != (key in after)
    )
