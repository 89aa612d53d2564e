"""Upper bounds of metrics, and how close a model comes to them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from components.evaluator.verdict import Verdict
from pipeline.oracle_metrics import compare_with_oracle, oracle_metrics

BEST = {name: {"value": value} for name, value in
        {"top_100_accuracy": 0.5, "top_100_accuracy_unseen": 0.6, "rmse": 0.7}.items()}  # fmt: skip
TRUTH = {"best": BEST, "eval_fraction": 0.2}
RANDOM = {"kind": "random", "eval_fraction": 0.2}


def test_the_upper_bounds_apply_only_to_their_split(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    assert oracle_metrics(tmp_path, RANDOM) == {name: one["value"] for name, one in BEST.items()}
    # With less of train, less is seen.
    assert list(oracle_metrics(tmp_path, {**RANDOM, "eval_fraction": 0.5})) == ["top_100_accuracy", "rmse"]
    assert oracle_metrics(tmp_path, {"kind": "time", "eval_fraction": 0.2}) == {}


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"best": 3, "eval_fraction": 0.2}', '{"best": {"rmse": 1}}'])
def test_other_data_has_no_upper_bounds(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "truth.json").write_text(text)
    assert oracle_metrics(tmp_path, RANDOM) == {}


def test_the_fraction_is_between_baseline_and_upper_bound() -> None:
    values: dict[str, Any] = {"examples": 1, "last_blessed": {}, "blessed": True, "bounds": [], "slices": []}
    verdict = Verdict(
        metrics={"rmse": 0.8, "top_100_accuracy": 0.2, "top_100_accuracy_unseen": 0.5},
        baselines={"rmse": 0.9, "top_100_accuracy": 0.3, "top_100_accuracy_unseen": 0.6},
        **values,
    )
    best = {"rmse": 0.7, "top_100_accuracy": 0.5, "top_100_accuracy_unseen": 0.6, "mrr": 1.0}
    found = {one.metric: one for one in compare_with_oracle(best, verdict)}
    assert list(found) == ["rmse", "top_100_accuracy", "top_100_accuracy_unseen"]
    way = found["rmse"].way
    assert way is not None and math.isclose(way, 0.5)
    way = found["top_100_accuracy"].way
    assert way is not None and math.isclose(way, -0.5)
    assert found["top_100_accuracy_unseen"].way is None
