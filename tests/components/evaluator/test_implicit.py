"""Sampled negatives at the gate: they count for the ratings, and not for what the model would recommend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipe.evaluation import METRICS, RATING_METRICS, Gate


@pytest.fixture(scope="module")
def is_positive(rows: Any) -> np.ndarray:
    """bool: every third row is an interaction, the others are sampled negatives."""
    return np.arange(len(rows.label)) % 3 == 0


def test_negatives_weigh_in_the_ratings_and_not_in_what_is_retrieved(
    evaluate: Any, model: Callable[..., Path], examples: Callable[..., Path], rows: Any, is_positive: np.ndarray
) -> None:
    expected, unmarked = rows.metrics(is_positive), rows.metrics()
    for name in METRICS:
        same = name in RATING_METRICS
        assert (expected[name] == pytest.approx(unmarked[name], abs=1e-4)) is same, f"{name} cannot show it here"
    evaluated = evaluate(
        model(),
        [
            Gate(metric="top_100_accuracy", at_least=expected["top_100_accuracy"] - 1e-6, may_drop=0.0),
            Gate(metric="rmse", at_most=expected["rmse"] + 1e-6),
        ],
        model(ranks_lost=5),
        examples(rows, is_positive),
        negatives=True,
    )
    verdict = evaluated.verdict
    assert verdict.metrics == pytest.approx(expected, abs=1e-6)
    assert verdict.baselines == pytest.approx(rows.baselines(is_positive), abs=1e-6)
    assert verdict.examples == len(rows.label)
    for part in verdict.slices:
        inside = rows.slice(part.name, part.value)
        assert part.metrics == pytest.approx(rows.only(inside).metrics(is_positive[inside]), abs=1e-6)
    assert evaluated.blessed and len(verdict.bounds) == 3


def test_without_a_single_interaction_there_is_no_top_k_and_the_gate_fails(
    evaluate: Any, model: Callable[..., Path], examples: Callable[..., Path], rows: Any
) -> None:
    evaluated = evaluate(
        model(),
        [Gate(metric="top_100_accuracy", at_least=0.0)],
        split_=examples(rows, np.zeros(len(rows.label), bool)),
        negatives=True,
    )
    assert not evaluated.blessed
    (bound,) = evaluated.verdict.bounds
    assert (bound.metric, bound.measured, bound.passed) == ("top_100_accuracy", None, False)
    assert "sampled negative" in str(bound)
    assert evaluated.verdict.metrics["rmse"] == pytest.approx(rows.metrics()["rmse"], abs=1e-6)
