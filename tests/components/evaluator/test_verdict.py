"""Gate results: from measured metrics to blessed or not blessed, with the message of each threshold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.evaluator.verdict import Measured, SliceKey, Verdict, decide
from recipe.evaluation import METRICS, Gate

NEW = ("user_activity", "new")


def whole(**values: Any) -> Measured:
    defaults = {"examples": 10, "metrics": {"rmse": 1.25, "top_100_accuracy": 0.4, "popularity_bias_10": 0.5}}
    return Measured.model_validate(defaults | values)


def text(gate: Gate, measured: Measured, problem: str | None = None) -> str:
    (bound,) = decide([gate], {None: measured, NEW: measured}, problem).bounds
    return str(bound)


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (Gate(metric="rmse", at_most=1.0), "rmse: threshold ≤ 1.0000, measured 1.2500"),
        (Gate(metric="rmse", at_least=2.0), "rmse: threshold ≥ 2.0000, measured 1.2500"),
        (
            Gate(metric="rmse", may_rise=0.1),
            "rmse: threshold ≤ 1.1000, measured 1.2500 (last blessed model: 1.0000)",
        ),
        (
            Gate(metric="top_100_accuracy", may_drop=0.02),
            "top_100_accuracy: threshold ≥ 0.4800, measured 0.4000 (last blessed model: 0.5000)",
        ),
        (
            Gate(metric="top_100_accuracy", beats_baseline_by=0.1),
            "top_100_accuracy: threshold ≥ 0.5500, measured 0.4000 (baseline, most popular items: 0.4500)",
        ),
        (
            Gate(metric="rmse", beats_baseline_by=0),
            "rmse: threshold ≤ 0.9500, measured 1.2500 (baseline, user and item means: 0.9500)",
        ),
        (
            Gate(metric="popularity_bias_10", beats_baseline_by=0.1),
            "popularity_bias_10: threshold ≤ 0.2000, measured 0.5000 (baseline, most popular items: 0.3000)",
        ),
        (
            Gate(metric="rmse", at_most=1.0, slice={"user_activity": "new"}),
            "rmse where user_activity is new: threshold ≤ 1.0000, measured 1.2500",
        ),
    ],
    ids=str,
)
def test_a_failed_gate_shows_metric_slice_threshold_and_measured_value(gate: Gate, expected: str) -> None:
    measured = whole(
        last_blessed={"rmse": 1.0, "top_100_accuracy": 0.5},
        baselines={"rmse": 0.95, "top_100_accuracy": 0.45, "popularity_bias_10": 0.3},
    )
    assert text(gate, measured) == expected
    assert not decide([gate], {None: measured, NEW: measured}).blessed


def test_a_threshold_and_a_value_that_misses_it_never_look_equal() -> None:
    found = text(Gate(metric="top_100_accuracy", at_least=0.27), whole(metrics={"top_100_accuracy": 0.26999996}))
    assert found == "top_100_accuracy: threshold ≥ 0.27000000, measured 0.26999996"


@pytest.mark.parametrize(
    ("gate", "measured", "problem", "expected", "passed"),
    [
        (
            Gate(metric="rmse", may_rise=0.1), whole(), None,
            "passed without a comparison: no model is blessed yet", True,
        ),
        (Gate(metric="rmse", may_rise=0.1), whole(), "it is broken", "it is broken", True),
        (
            Gate(metric="rmse", may_rise=0.1), whole(last_blessed={"mae": 1.0}), None,
            "the last blessed model has no rmse to compare with", True,
        ),
        (
            Gate(metric="rmse", beats_baseline_by=0.1), whole(), None,
            "the baseline has no rmse to compare with", False,
        ),
        (
            Gate(metric="rmse", at_most=9.0), whole(metrics={}), None,
            "not measured: some predicted ratings are NaN or infinite; training diverged",
            False,
        ),
        (
            Gate(metric="mrr", at_least=0.0), whole(metrics={"rmse": 1.0}), None,
            "not measured: all examples are sampled negatives, which ranking metrics do not count",
            False,
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_has_a_reason(
    gate: Gate, measured: Measured, problem: str | None, expected: str, passed: bool
) -> None:
    verdict = decide([gate], {None: measured}, problem)
    assert str(verdict.bounds[0]) == f"{gate.metric}: {expected}"
    assert verdict.bounds[0].passed is verdict.blessed is passed


@pytest.mark.parametrize(
    "condition", [{"at_least": 0.0}, {"at_most": 9.0}, {"may_drop": 1.0}, {"beats_baseline_by": 0.0}], ids=str
)
def test_a_gate_on_a_slice_without_examples_fails_with_every_condition(condition: dict[str, float]) -> None:
    gate = Gate(metric="top_100_accuracy", slice={"user_activity": "new"}, **condition)
    verdict = decide([gate], {None: whole()})
    assert not verdict.blessed
    (failure,) = verdict.failures()
    assert (failure.examples, failure.measured) == (0, None)
    assert str(failure) == (
        "top_100_accuracy where user_activity is new: not measured: no eval example is in this slice. Remove the "
        "gate, or change the split so that the slice has examples"
    )


def test_a_model_without_eval_examples_is_not_blessed_even_if_its_slices_pass() -> None:
    gate = Gate(metric="rmse", slice={"user_activity": "new"}, at_most=2.0)
    verdict = decide([gate], {NEW: whole()})
    assert not verdict.failures() and not verdict.blessed


def test_rounding_is_for_comparisons_only() -> None:
    """Two measurements of the same thing may differ in the last digit; a threshold of the recipe is exact."""
    just_below = whole(
        metrics={"coverage_10": 0.5 - 1e-12}, baselines={"coverage_10": 0.5}, last_blessed={"coverage_10": 0.5}
    )
    assert not decide([Gate(metric="coverage_10", at_least=0.5)], {None: just_below}).blessed
    assert decide([Gate(metric="coverage_10", may_drop=0, beats_baseline_by=0)], {None: just_below}).blessed


def test_every_condition_of_every_gate_is_listed_in_the_recipe_s_order() -> None:
    gates = [
        Gate(metric="rmse", beats_baseline_by=0.0, at_most=2.0, may_rise=0.1),
        Gate(metric="rmse", slice={"user_activity": "new"}, at_most=2.0),
        Gate(metric="top_100_accuracy", at_least=0.9),
    ]
    bounds = decide(gates, {None: whole(), NEW: whole(examples=3)}).bounds
    assert [(bound.metric, bound.condition, bound.slice, bound.examples) for bound in bounds] == [
        ("rmse", "at_most", None, 10),
        ("rmse", "may_rise", None, 10),
        ("rmse", "beats_baseline_by", None, 10),
        ("rmse", "at_most", {"user_activity": "new"}, 3),
        ("top_100_accuracy", "at_least", None, 10),
    ]


numbers = st.floats(-5, 5)
FOUND = st.fixed_dictionaries({}, optional={"rmse": numbers, "top_100_accuracy": numbers, "coverage_10": numbers})
MEASURED = st.builds(Measured, examples=st.integers(0, 3), metrics=FOUND, baselines=FOUND, last_blessed=FOUND)


@st.composite
def gates(draw: st.DrawFn) -> Gate:
    metric = draw(st.sampled_from(["rmse", "top_100_accuracy", "coverage_10"]))
    change = "may_drop" if METRICS[metric] == "higher" else "may_rise"
    keys = draw(
        st.lists(st.sampled_from(["at_least", "at_most", change, "beats_baseline_by"]), min_size=1, unique=True)
    )
    values = {key: draw(numbers) if key.startswith("at_") else draw(st.floats(0, 5)) for key in keys}
    return Gate(metric=metric, slice=draw(st.sampled_from([None, {"user_activity": "new"}])), **values)


@given(
    st.lists(gates(), min_size=1, max_size=4),
    st.dictionaries(st.sampled_from([None, NEW]), MEASURED),
    st.sampled_from([None, "it is broken"]),
)
def test_blessed_is_exactly_what_passes_every_bound_on_some_examples(
    chosen: list[Gate], measured: dict[SliceKey | None, Measured], problem: str | None
) -> None:
    verdict = decide(chosen, measured, problem)
    assert len(verdict.bounds) == sum(len(gate.conditions) for gate in chosen)
    assert verdict.blessed is (verdict.examples > 0 and not verdict.failures())
    for bound in verdict.bounds:
        assert str(bound)
        if bound.measured is None:
            assert not bound.passed
        elif bound.margin is not None:
            assert bound.passed is (bound.margin >= (0 if bound.reference is None else -1e-9))
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


@given(gates(), MEASURED.filter(lambda found: found.examples > 0), st.floats(0, 1))
def test_a_better_model_never_fails_where_a_worse_one_passes(gate: Gate, measured: Measured, better: float) -> None:
    """Unless the gate says at_most about what should be high, or at_least about what should be low."""
    wrong = "at_most" if METRICS[gate.metric] == "higher" else "at_least"
    if gate.metric not in measured.metrics or wrong in gate.conditions:
        return
    change = better if METRICS[gate.metric] == "higher" else -better
    improved = measured.model_copy(
        update={"metrics": measured.metrics | {gate.metric: measured.metrics[gate.metric] + change}}
    )
    before = decide([gate], {None: measured, NEW: measured})
    after = decide([gate], {None: improved, NEW: improved})
    assert after.blessed or not before.blessed
