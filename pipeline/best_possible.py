"""How close a model came to the best possible figures, which synthetic data knows of itself; `tandem run` tells it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.evaluator.verdict import Verdict

TRUTH = "truth.json"
"""Next to the CSVs: the arguments they were made with, and the best figures that a model can reach on them."""


@dataclasses.dataclass(frozen=True)
class Reached:
    """One metric between what knows nothing and what knows everything.

    Attributes:
        metric: Its name.
        baseline: Popularity, or user and item means.
        model: The model.
        best: What no model can beat, apart from chance.
        way: The share of the way from the baseline to the best that the model came; negative where it is worse than
            the baseline, None where the baseline is as good as the best.
    """

    metric: str
    baseline: float
    model: float
    best: float
    way: float | None


def best_possible(data: Path, split: Mapping[str, Any]) -> dict[str, float]:
    """The best figures by metric, if `data` is synthetic and its figures hold for the split of a recipe; else empty.

    Args:
        data: Folder with the CSVs.
        split: The recipe's `data.split`.
    """
    try:
        truth = json.loads((data / TRUTH).read_text(encoding="utf-8"))
        best = {str(metric): float(estimate["value"]) for metric, estimate in truth["best"].items()}
        fraction = float(truth["eval_fraction"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Any data may have a file of that name.
        return {}
    if split.get("kind") != "random":
        return {}
    same = math.isclose(fraction, split.get("eval_fraction", math.nan))
    return {metric: value for metric, value in best.items() if same or not metric.endswith("_unseen")}


def reached(best: Mapping[str, float], verdict: Verdict) -> list[Reached]:
    """The metrics that have all three figures."""
    found = []
    for metric, limit in best.items():
        if metric in verdict.metrics and metric in verdict.baselines:
            baseline, model = verdict.baselines[metric], verdict.metrics[metric]
            way = (model - baseline) / (limit - baseline) if limit != baseline else None
            found.append(Reached(metric, baseline, model, limit, way))
    return found
