"""Upper bounds of metrics (oracle), which only synthetic data has, and how close a model comes to them.

`tandem data synthetic` writes them, `tandem run` and the report compare with them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.evaluator.verdict import Verdict

TRUTH = "truth.json"
"""File beside synthetic CSVs: the arguments of the generator, and the upper bound of each metric."""


@dataclasses.dataclass(frozen=True)
class OracleComparison:
    """One metric of a model between its baseline and its upper bound.

    Attributes:
        metric: Name of the metric.
        baseline: Value of the baseline: the most popular items, or user and item means.
        model: Value of the model.
        best: Upper bound, apart from chance.
        way: `(model - baseline) / (best - baseline)`; negative if the model is worse than the baseline, None if the
            baseline equals the upper bound.
    """

    metric: str
    baseline: float
    model: float
    best: float
    way: float | None


def oracle_metrics(data: Path, split: Mapping[str, Any]) -> dict[str, float]:
    """Return the upper bounds by metric; empty if `data` is not synthetic or they do not apply to the recipe's split.

    Args:
        data: Folder with the CSVs.
        split: The recipe's `data.split`.
    """
    try:
        truth = json.loads((data / TRUTH).read_text(encoding="utf-8"))
        best = {str(metric): float(estimate["value"]) for metric, estimate in truth["best"].items()}
        fraction = float(truth["eval_fraction"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Other data may have a file of this name.
        return {}
    if split.get("kind") != "random":
        return {}
    same = math.isclose(fraction, split.get("eval_fraction", math.nan))
    return {metric: value for metric, value in best.items() if same or not metric.endswith("_unseen")}


def compare_with_oracle(best: Mapping[str, float], verdict: Verdict) -> list[OracleComparison]:
    """Return the metrics that have a baseline, a value and an upper bound."""
    found = []
    for metric, limit in best.items():
        if metric in verdict.metrics and metric in verdict.baselines:
            baseline, model = verdict.baselines[metric], verdict.metrics[metric]
            way = (model - baseline) / (limit - baseline) if limit != baseline else None
            found.append(OracleComparison(metric, baseline, model, limit, way))
    return found
