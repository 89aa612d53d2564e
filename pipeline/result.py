"""The result of one run: what `tandem run --json` prints and the run's folder keeps."""

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
    """How long a component took in one run."""

    name: str
    seconds: float
    cached: bool


class Asked(pydantic.BaseModel):
    """What a run was asked for; its folder keeps it as `asked.json`, beside `recipe.json`, which is what came of it."""

    schema_dir: str
    preset: str | None
    overrides: tuple[str, ...]


class ServedLatency(pydantic.BaseModel):
    """What one caller of `recommend` waits for an answer of the embedded server, in milliseconds."""

    p50_ms: float
    p99_ms: float


class RunResult(pydantic.BaseModel):
    """What came of a run; `tandem run --json` prints it, and the run's folder keeps it."""

    run_id: str
    recipe: str
    """Name of the recipe."""
    preset: str | None = None
    """Name of the preset that stood in for sections of the recipe; None where there was none."""
    seconds: float
    components: tuple[ComponentTime, ...]
    rows: dict[str, int]
    """Rows read, rejected and merged with another, sampled negatives, and the rows of each split."""
    hyperparameters: dict[str, Any] | None = None
    """What the Tuner found and the Trainer took, by dotted key; None where nothing was searched."""
    metrics: dict[str, float]
    verdict: Verdict
    best_possible: dict[str, float] = {}
    """What no model can beat, by metric; synthetic data alone knows that of itself."""
    latency: ServedLatency | None = None
    """What the InfraValidator measured; None where it turned the model down before."""
    not_servable: str | None
    """Why the InfraValidator turned the model down; None where it did not."""
    blessed: bool
    """Whether the model passed every gate and can be served."""
    pushed_model: str | None
    """Path of the pushed version; None where nothing was pushed."""
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
    """What came of a run whose components are all done, as ML Metadata has it.

    Args:
        workdir: The run's work folder.
        run_id: The run's name there.
        recipe: The recipe's name.
        preset: The preset's name.
        seconds: What the whole run took.
        components: What its components took, in order.
        best: From `best_possible`.
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
    """The values that the Tuner found best."""
    from components.trainer.fitting.hyperparameters import recipe_values

    (file,) = Path(best.uri).iterdir()
    return recipe_values(json.loads(file.read_text()))
