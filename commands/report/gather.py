"""Collects the data of the report from a run's folder, ML Metadata and the artifacts; writes no HTML."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from commands.report import data_statistics
from commands.report.charts import (
    Chart,
    SliceScore,
    accuracy_chart,
    activity_chart,
    calibration_chart,
    curve_charts,
    error_interval,
    popularity_chart,
    ratings_chart,
    residuals_chart,
    slice_chart,
    times_chart,
    wilson_interval,
)
from commands.report.dag_svg import DagSvg, draw
from commands.report.words import metric_words, slice_name
from components.evaluator.verdict import Verdict
from pipeline.lineage import Lineage, Step, StoredArtifact
from pipeline.oracle_metrics import OracleComparison, compare_with_oracle
from pipeline.run_history import Change, Run, diff_recipes, list_runs, previous_run, schema_of, statistics_of
from pipeline.workdir import COMPARISON_FILE, COMPARISONS_FOLDER, REQUEST_FILE, RUNS_FOLDER, run_folder
from recipe.evaluation import METRICS

CURVES_FILE = "curves.json"
# Columns of curves.json that are not metrics.
NOT_CURVES = ("epoch", "steps", "seconds", "kept")
COMPARISON = f"{COMPARISONS_FOLDER}/{RUNS_FOLDER}/*/{COMPARISON_FILE}"

SLICES_DRAWN = 24


@dataclasses.dataclass(frozen=True)
class MadeFrom:
    """One artifact of the lineage from the CSVs to the pushed version."""

    what: str
    id: int
    component: str
    run_id: str
    uri: str


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """One metric of the model, the baseline and the last blessed model."""

    name: str
    model: float
    baseline: float | None
    last_blessed: float | None


@dataclasses.dataclass
class Facts:
    """Data of the report; fields of components that did not run are empty, and `notes` has the reason."""

    workdir: Path
    run: Run
    previous: Run | None
    arguments: dict[str, Any]
    """Arguments of the run: schema folder, preset and overrides; empty if not stored."""
    recipe_changes: tuple[Change, ...]
    steps: Sequence[Step]
    picture: DagSvg
    outputs: dict[str, dict[str, StoredArtifact]]
    """Artifacts by component and output key."""
    made_from: Sequence[MadeFrom]
    sources: Sequence[str]
    """File patterns of the CSVs."""
    data_folder: str
    charts: dict[str, list[Chart]] = dataclasses.field(default_factory=dict)
    """Charts by section: data, training, metrics, slices, calibration."""
    notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Sentences by section, mostly the reason why something is missing."""
    features: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    anomalies: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    validated: bool = False
    """Whether ExampleValidator has validated the data."""
    rejected: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)
    drift: list[data_statistics.Drift] = dataclasses.field(default_factory=list)
    drift_against: tuple[str, ...] = ()
    metrics: list[MetricRow] = dataclasses.field(default_factory=list)
    reached: list[OracleComparison] = dataclasses.field(default_factory=list)
    """Metrics compared with their upper bounds; empty unless the data is synthetic."""
    users: list[data_statistics.SampleUser] = dataclasses.field(default_factory=list)
    display_columns: tuple[str, ...] = ()
    period: tuple[float, float] | None = None
    """First and last timestamp of the train split, seconds since 1970."""

    @property
    def verdict(self) -> Verdict | None:
        return self.run.verdict

    def note(self, section: str, sentence: str) -> None:
        self.notes.setdefault(section, []).append(sentence)


def gather(workdir: Path, run_id: str, lineage: Lineage | None = None) -> Facts:
    """Collect the data of a run of `workdir`.

    Raises:
        RunError: The workdir has no runs.
    """
    lineage = lineage or Lineage(workdir)
    runs = list_runs(workdir, lineage)
    run = next(one for one in runs if one.run_id == run_id)
    previous = previous_run(runs, run)
    steps = lineage.steps(run_id)
    outputs = {step.component: lineage.outputs(step) for step in steps}
    examples = outputs.get("InteractionExampleGen", {}).get("examples")
    pushed = outputs.get("Pusher", {}).get("pushed_model") if run.pushed_model else None
    goal = pushed or outputs.get("Trainer", {}).get("model") or examples
    origin = lineage.origin(goal.id, without=("baseline_model",)) if goal is not None else []
    tables = {
        name: source
        for name, source in run.recipe.get("data", {}).get("sources", {}).items()
        if isinstance(source, Mapping)
    }
    complete = max(runs, key=lambda one: (one.recipe_name == run.recipe_name, len(one.components)))
    facts = Facts(
        workdir=workdir,
        run=run,
        previous=previous,
        arguments=_read_json(run_folder(workdir, run_id) / REQUEST_FILE),
        recipe_changes=diff_recipes(previous.recipe, run.recipe) if previous is not None else (),
        steps=steps,
        picture=draw(run, steps, lineage.types, [component.name for component in complete.components]),
        outputs=outputs,
        made_from=[
            MadeFrom(artifact.type, artifact.id, step.component, step.run_id, artifact.uri) for step, artifact in origin
        ],
        sources=[f"{name}: {source['files']}" for name, source in tables.items()],
        data_folder=next(
            (str(step.properties.get("input_base", "")) for step, artifact in origin if artifact.type == "Examples"), ""
        ),
    )
    _add_curves(facts)
    _add_metrics(facts)
    _add_slices(facts)
    _add_statistics(facts, runs, lineage)
    if examples is None or not Path(examples.uri).is_dir():
        why = f"{examples.uri} does not exist" if examples is not None else "the run has no examples"
        for section in ("data", "users", "calibration"):
            facts.note(section, f"Not available: {why}.")
    else:
        _add_examples(facts, examples.uri, lineage)
    return facts


# --- training and metrics ---------------------------------------------------------------------------------------------


def _add_curves(facts: Facts) -> None:
    model_run = facts.outputs.get("Trainer", {}).get("model_run")
    curves = _read_json(Path(model_run.uri) / CURVES_FILE) if model_run is not None else {}
    if not curves:
        facts.note("training", "The run did not complete training." if model_run is None else
                   f"The curves in {model_run.uri} do not exist.")  # fmt: skip
        return
    runs = {"this run": _drawable(curves)}
    compared = _latest_comparison(facts.workdir, facts.run.recipe_name)
    runs |= {name: _drawable(found) for name, found in compared.items()}
    facts.charts["training"] = curve_charts(runs)
    if compared:
        facts.note("training", f"Compared with the presets of the latest `tandem compare`: {', '.join(compared)}.")
    kept = curves.get("kept", [])
    if 1 in kept and kept.index(1) + 1 < len(kept):
        facts.note(
            "training",
            f"The exported weights are those of epoch {kept.index(1) + 1}, the best on the validation split.",
        )
    if not any(name.startswith("validation_") for name in curves):
        facts.note("training", "The curves are metrics on the training examples. Set `training.validation` in the "
                   "recipe to hold out a validation split and evaluate it after every epoch.")  # fmt: skip


def _drawable(curves: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {name: list(values) for name, values in curves.items() if name not in NOT_CURVES}


def _latest_comparison(workdir: Path, recipe_name: str) -> dict[str, Mapping[str, Sequence[float]]]:
    """Return the curves of the latest `tandem compare` in this workdir, by preset."""
    found = sorted(workdir.glob(COMPARISON))
    comparison = _read_json(found[-1]) if found else {}
    if comparison.get("recipe") != recipe_name:
        return {}
    curves: dict[str, Mapping[str, Sequence[float]]] = {}
    for trained in comparison.get("trained", ()):
        if trained.get("curves"):
            curves.setdefault(trained["preset"], trained["curves"])
    return curves


def _add_metrics(facts: Facts) -> None:
    verdict = facts.verdict
    if verdict is None:
        for section in ("metrics", "slices"):
            facts.note(section, "Not available: the run did not complete evaluation.")
        return
    facts.metrics = [
        MetricRow(name, verdict.metrics[name], verdict.baselines.get(name), verdict.last_blessed.get(name))
        for name in dict.fromkeys((*METRICS, *verdict.metrics))
        if name in verdict.metrics
    ]
    facts.reached = compare_with_oracle(facts.run.best_possible, verdict)
    if verdict.last_blessed_problem:
        facts.note("metrics", f"{verdict.last_blessed_problem[:1].upper()}{verdict.last_blessed_problem[1:]}.")
    compared = {
        "this model": verdict.metrics,
        "most popular items": verdict.baselines,
        "last blessed model": verdict.last_blessed,
    }
    for suffix in ("", "_unseen"):
        series = {
            name: {
                k: values[f"top_{k}_accuracy{suffix}"]
                for k in (1, 5, 10, 50, 100)
                if f"top_{k}_accuracy{suffix}" in values
            }
            for name, values in compared.items()
        }
        chart = accuracy_chart(series, unseen=bool(suffix))
        if chart is not None:
            facts.charts.setdefault("metrics", []).append(chart)


def _add_slices(facts: Facts) -> None:
    verdict = facts.verdict
    if verdict is None:
        return
    if not verdict.slices:
        facts.note("slices", "No slices were evaluated. The recipe sets them in `slices` and `gates`.")
        return
    gated = [bound.metric for bound in verdict.bounds if bound.slice]
    hits = "top_100_accuracy_unseen" if "top_100_accuracy_unseen" in verdict.metrics else "top_100_accuracy"
    for metric in dict.fromkeys((hits, "rmse", *gated)):
        scores = [
            SliceScore(
                slice_name(found.name, found.value),
                found.examples,
                found.metrics[metric],
                *_interval(metric, found.metrics[metric], found.examples),
                found.baselines.get(metric),
            )
            for found in verdict.slices
            if metric in found.metrics
        ]
        if scores:
            # The built-in slices come first, then the most frequent values of columns.
            shown = scores[:SLICES_DRAWN]
            facts.charts.setdefault("slices", []).append(slice_chart(metric, shown, verdict.metrics.get(metric)))
            if len(scores) > len(shown) and metric == hits:
                facts.note("slices", f"Shows {len(shown)} of {len(scores)} slices; `tandem gates` prints all of them.")


def _interval(metric: str, measured: float, count: int) -> tuple[float | None, float | None]:
    if metric.startswith("top_"):
        return wilson_interval(measured, count)
    return error_interval(measured, count) if metric == "rmse" else (None, None)


# --- data -------------------------------------------------------------------------------------------------------------


def _add_statistics(facts: Facts, runs: Sequence[Run], lineage: Lineage) -> None:
    run = facts.run
    statistics = statistics_of(lineage, run.run_id)
    schema = schema_of(lineage, run.run_id)
    facts.features = data_statistics.feature_summaries(statistics)
    found = facts.outputs.get("ExampleValidator", {}).get("anomalies")
    if found is not None:
        facts.validated = True
        facts.anomalies = data_statistics.anomalies(found.uri, schema)
    if "train" not in statistics or not schema.feature:
        facts.note("drift", "Not available: the run has no statistics.")
        return
    others = {}
    if "eval" in statistics:
        others["eval split"] = statistics["eval"]
    mine = facts.outputs["StatisticsGen"]["statistics"].id
    for other in reversed([one for one in runs if one.run_id < run.run_id and one.recipe_name == run.recipe_name]):
        before = lineage.output(other.run_id, "StatisticsGen", "statistics")
        if before is None:
            continue
        if before.id == mine:
            facts.note("drift", f"No drift since run {other.run_id}: the data is unchanged.")
            break
        earlier = statistics_of(lineage, other.run_id)
        if "train" in earlier:
            others[f"run {other.run_id}"] = earlier["train"]
            break
    else:
        facts.note("drift", "There is no earlier run to compare with.")
    if others:
        facts.drift = data_statistics.drift(schema, statistics["train"], others)
        facts.drift_against = tuple(others)


def _add_examples(facts: Facts, uri: str, lineage: Lineage) -> None:
    # Importing TensorFlow takes seconds; a report without examples does not need it.
    from commands.report import exported_model

    facts.rejected = data_statistics.rejected_rows(uri)
    run = facts.run
    columns = run.recipe.get("data", {}).get("columns")
    schema = schema_of(lineage, run.run_id)
    if not columns or not schema.feature:
        facts.note("data", "No distributions: the run ended before ImportSchemaGen.")
        return
    splits = {name: exported_model.read_interactions(uri, name, columns, schema) for name in ("train", "eval")}
    train = splits["train"]
    if not all(split.is_whole for split in splits.values()):
        facts.note("data", f"Distributions of the first {exported_model.MAX_EXAMPLES:,} examples of each split.")
    if len(train.users):
        charts = [ratings_chart(data_statistics.label_histogram(splits), columns["label"])]
        times = data_statistics.time_histogram(splits)
        if times is not None and train.times is not None:
            charts.append(times_chart(times))
            facts.period = float(train.times.min()), float(train.times.max())
        users, items = data_statistics.counts_of(train.users), data_statistics.counts_of(train.items)
        charts.append(activity_chart(data_statistics.activity_histogram(users), float(np.median(users)), len(users)))
        charts.append(popularity_chart(*data_statistics.concentration(items, run.rows.get("catalogue", 0))))
        facts.charts["data"] = charts
    model = facts.outputs.get("Trainer", {}).get("model")
    path = exported_model.servable(model.uri) if model is not None else None
    if path is None:
        why = "no model was trained" if model is None else f"the model in {model.uri} does not exist"
        for section in ("calibration", "users"):
            facts.note(section, f"Not available: {why}.")
        return
    display = [one["column"] for one in run.recipe.get("features", {}).get("candidate", ()) if one.get("display")]
    facts.display_columns = tuple(display)
    try:
        with exported_model.ExportedModel(path) as served:
            found = exported_model.calibration(served, uri, columns, schema)
            if found is not None:
                facts.charts["calibration"] = [
                    calibration_chart(found, columns["label"]),
                    residuals_chart(found),
                ]
                if sum(found.counts) == exported_model.MAX_RATED:
                    facts.note("calibration", f"Measured on the first {exported_model.MAX_RATED:,} eval examples.")
            titles = exported_model.read_display(uri, columns, display, schema)
            facts.users = exported_model.sample_users(served, train, splits["eval"], titles, display)
    except exported_model.ModelUnavailable as error:
        for section in ("calibration", "users"):
            facts.note(section, f"Not available: calling the exported model failed: {error}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def best_and_worst(facts: Facts) -> tuple[str, str] | None:
    """Return the slices with the highest and the lowest main retrieval metric; None without slices."""
    verdict = facts.verdict
    if verdict is None:
        return None
    metric = "top_100_accuracy_unseen" if "top_100_accuracy_unseen" in verdict.metrics else "top_100_accuracy"
    measured = [
        (found.metrics[metric], slice_name(found.name, found.value))
        for found in verdict.slices
        if metric in found.metrics
    ]
    if len(measured) < 2:
        return None
    high, low = max(measured), min(measured)
    label = metric_words(metric).label
    return f"{high[1]} ({label} {high[0]:.1%})", f"{low[1]} ({label} {low[0]:.1%})"
