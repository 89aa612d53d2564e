"""The result of one run, which `tandem run --json` prints and the run's folder keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from components.evaluator.verdict import VERDICT_FILE, Verdict
from pipeline.lineage import Lineage, StoredArtifact
from pipeline.workdir import LOG_FILE, run_folder


class ComponentTime(pydantic.BaseModel):
    """Duration of a component in one run."""

    name: str
    seconds: float
    cached: bool


class RunRequest(pydantic.BaseModel):
    """Arguments of a run; its folder keeps them in `asked.json`, beside the resolved recipe in `recipe.json`."""

    schema_dir: str
    preset: str | None
    overrides: tuple[str, ...]


class ServedLatency(pydantic.BaseModel):
    """Latency of `recommend` in milliseconds: 1 client, gRPC, the embedded server."""

    p50_ms: float
    p99_ms: float


class RunResult(pydantic.BaseModel):
    """Result of a complete run."""

    run_id: str
    recipe: str
    """Name of the recipe."""
    preset: str | None = None
    """Name of the preset; None without one."""
    seconds: float
    components: tuple[ComponentTime, ...]
    rows: dict[str, int]
    """Number of rows read, rejected and merged, of sampled negatives, and of rows in each split."""
    hyperparameters: dict[str, Any] | None = None
    """The Tuner's best hyperparameters, by dotted key; None without a Tuner."""
    metrics: dict[str, float]
    verdict: Verdict
    best_possible: dict[str, float] = {}
    """Upper bound (oracle) of each metric; empty unless the data is synthetic."""
    latency: ServedLatency | None = None
    """Latency that InfraValidator measured; None if it rejected the model before."""
    not_servable: str | None
    """Reason why InfraValidator did not bless the model; None if it did."""
    blessed: bool
    """Whether Evaluator and InfraValidator blessed the model."""
    pushed_model: str | None
    """Path of the pushed version; None if nothing was pushed."""
    log: str


def result_of(
    workdir: Path,
    run_id: str,
    recipe: str,
    preset: str | None,
    seconds: float,
    components: Sequence[ComponentTime],
    best: Mapping[str, float],
) -> RunResult:
    """Return the result of a run whose components are complete, from ML Metadata.

    Args:
        workdir: The run's work folder.
        run_id: Id of the run.
        recipe: Name of the recipe.
        preset: Name of the preset.
        seconds: Duration of the run.
        components: Durations of the components, in order.
        best: Upper bounds of metrics, from `oracle_metrics`.
    """
    lineage = Lineage(workdir)
    outputs = {step.component: lineage.outputs(step) for step in lineage.steps(run_id)}
    examples, pushed = outputs["InteractionExampleGen"]["examples"], outputs["Pusher"]["pushed_model"].properties
    infra = outputs["InfraValidator"]["blessing"].properties
    verdict = Verdict.model_validate_json(Path(outputs["Evaluator"]["evaluation"].uri, VERDICT_FILE).read_text())
    servable = infra.get("blessed") == 1
    counts = ("read", "rejected", "merged", "negatives", "train", "eval", "catalogue")
    return RunResult(
        run_id=run_id,
        recipe=recipe,
        preset=preset,
        seconds=round(seconds, 2),
        components=tuple(components),
        rows={name: examples.properties.get(f"rows_{name}", 0) for name in counts},
        hyperparameters=_found(outputs["Tuner"]["best_hyperparameters"]) if "Tuner" in outputs else None,
        metrics=verdict.metrics,
        verdict=verdict,
        best_possible=dict(best),
        latency=_latency(infra),
        not_servable=None if servable else str(infra.get("reason", "")),
        blessed=verdict.blessed and servable,
        pushed_model=str(pushed["pushed_destination"]) if pushed.get("pushed") == 1 else None,
        log=str(run_folder(workdir, run_id) / LOG_FILE),
    )


def _latency(infra_blessing: Mapping[str, Any]) -> ServedLatency | None:
    from components.infra_validator.latency import P50_PROPERTY, P99_PROPERTY

    if P99_PROPERTY not in infra_blessing:
        return None
    p50, p99 = (infra_blessing[name] for name in (P50_PROPERTY, P99_PROPERTY))
    return ServedLatency(p50_ms=round(p50, 3), p99_ms=round(p99, 3))


def _found(best: StoredArtifact) -> dict[str, Any]:
    """Return the Tuner's best hyperparameters."""
    from components.trainer.fitting.hyperparameters import recipe_values

    (file,) = Path(best.uri).iterdir()
    return recipe_values(json.loads(file.read_text()))
