"""The verdict's words are what a person reads when a model is turned down."""

from __future__ import annotations

from typing import Any

import pytest

from components.evaluator.verdict import Bound, Verdict


def make(**changes: Any) -> Bound:
    values = {
        "metric": "rmse",
        "condition": "at_most",
        "limit": 1.0,
        "measured": 1.25,
        "passed": False,
        "margin": -0.25,
    }
    return Bound.model_validate(values | changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "rmse: at most 1.0000 wanted, 1.2500 measured"),
        ({"condition": "at_least"}, "rmse: at least 1.0000 wanted, 1.2500 measured"),
        ({"condition": "may_rise"}, "rmse: at most 1.0000 wanted (last blessed model), 1.2500 measured"),
        (
            {"metric": "top_100_accuracy", "condition": "may_drop", "limit": 0.27, "measured": 0.123456},
            "top_100_accuracy: at least 0.2700 wanted (last blessed model), 0.1235 measured",
        ),
        ({"measured": None, "margin": None}, "rmse: at most 1.0000 wanted, nothing measured"),
    ],
)
def test_a_bound_says_what_was_wanted_and_what_was_measured(changes: dict[str, Any], text: str) -> None:
    assert str(make(**changes)) == text


def test_the_text_never_shows_the_same_number_for_a_limit_and_a_value_that_misses_it() -> None:
    text = str(make(limit=0.27, condition="at_least", measured=0.26999996, margin=-4e-8))
    assert text == "rmse: at least 0.27000000 wanted, 0.26999996 measured"


def test_failures_are_the_bounds_that_did_not_pass_in_the_recipe_s_order() -> None:
    bounds = (make(metric="mae"), make(passed=True, margin=0.1), make(metric="top_1_accuracy"))
    verdict = Verdict(blessed=False, examples=3, metrics={}, baseline_metrics={}, bounds=bounds)
    assert [bound.metric for bound in verdict.failures()] == ["mae", "top_1_accuracy"]


def test_a_verdict_survives_its_file() -> None:
    bounds = (make(), make(measured=None, margin=None))
    verdict = Verdict(blessed=False, examples=3, metrics={"rmse": 1.25}, baseline_metrics={"rmse": 1.0}, bounds=bounds)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
