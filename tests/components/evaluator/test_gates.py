"""The gates of the Evaluator: its metrics are correct, and a model that is not blessed has a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.evaluator.verdict import Bound
from recipe.evaluation import METRICS, Gate

# How much worse the worse model is.
SHIFT = 0.75
RANKS_LOST = 20
NAN_RANK = 7


def outcome(evaluated: Any) -> dict[tuple[str, str], bool]:
    """The results of all thresholds that had a value to compare with."""
    bounds = [bound for bound in evaluated.verdict.bounds if bound.limit is not None]
    return {(bound.metric, bound.condition): bound.passed for bound in bounds}


def bound(evaluated: Any, metric: str, condition: str) -> Bound:
    (found,) = (each for each in evaluated.verdict.bounds if (each.metric, each.condition) == (metric, condition))
    return found


@pytest.fixture(scope="module")
def good(model: Callable[..., Path]) -> Path:
    return model()


@pytest.fixture(scope="module")
def worse(model: Callable[..., Path]) -> Path:
    return model(shift=SHIFT, ranks_lost=RANKS_LOST)


# One evaluation takes seconds, so each one is shared by several tests.


@pytest.fixture(scope="module")
def passed(evaluate: Any, good: Path, rows: Any) -> Any:
    """A first model within its bounds, two of them met exactly."""
    expected = rows.metrics()
    return evaluate(
        good,
        [
            Gate(metric="rmse", at_most=expected["rmse"] + 0.1, may_rise=0.0),
            Gate(metric="mae", at_least=0.1, at_most=2.0),
            Gate(metric="top_100_accuracy", at_least=expected["top_100_accuracy"], may_drop=0.0),
            Gate(metric="top_5_accuracy", at_most=expected["top_5_accuracy"]),
            Gate(metric="rmse", beats_baseline_by=rows.baselines()["rmse"] - expected["rmse"]),
            Gate(metric="ndcg_10", beats_baseline_by=0),
        ],
    )


@pytest.fixture(scope="module")
def failed(evaluate: Any, good: Path, rows: Any) -> Any:
    """A first model outside some of its bounds."""
    expected = rows.metrics()
    return evaluate(
        good,
        [
            Gate(metric="rmse", at_least=0.0, at_most=expected["rmse"] - 0.01),
            Gate(metric="mae", at_least=expected["mae"] + 0.01, at_most=2.0),
            Gate(metric="top_100_accuracy", at_least=expected["top_100_accuracy"] + 0.01, may_drop=0.5),
            Gate(
                metric="top_10_accuracy",
                at_least=expected["top_10_accuracy"],
                at_most=expected["top_10_accuracy"] - 0.01,
            ),
            Gate(metric="top_50_accuracy", at_least=0.01),
            Gate(metric="rmse", beats_baseline_by=rows.baselines()["rmse"] - expected["rmse"] + 0.001),
            Gate(metric="ndcg_10", beats_baseline_by=0.9),
        ],
    )


@pytest.fixture(scope="module")
def against_better(evaluate: Any, worse: Path, good: Path, rows: Any) -> Any:
    """A candidate that is worse than the last blessed model: some bounds allow it, one to the last digit."""
    was, now = rows.metrics(), rows.worse(SHIFT, RANKS_LOST).metrics()
    lost = {name: abs(now[name] - was[name]) for name in METRICS}
    return evaluate(
        worse,
        [
            Gate(metric="rmse", at_most=10.0, may_rise=lost["rmse"]),
            Gate(metric="mae", may_rise=lost["mae"] - 1e-4),
            Gate(metric="top_100_accuracy", at_least=0.01, may_drop=lost["top_100_accuracy"]),
            Gate(metric="top_50_accuracy", at_least=0.01, may_drop=lost["top_50_accuracy"] - 1e-4),
        ],
        good,
    )


@pytest.fixture(scope="module")
def against_worse(evaluate: Any, model: Callable[..., Path], worse: Path, rows: Any) -> Any:
    """A candidate with better ratings than the last blessed model and the same ranks."""
    return evaluate(
        model(ranks_lost=RANKS_LOST),
        [
            Gate(metric="rmse", may_rise=0.0),
            Gate(metric="top_100_accuracy", may_drop=0.0),
            Gate(metric="top_10_accuracy", at_least=0.99, may_drop=0.0),
        ],
        worse,
    )


@pytest.fixture(scope="module")
def not_a_number(evaluate: Any, model: Callable[..., Path], good: Path) -> Any:
    """A candidate with some NaN ratings, and thresholds that any number passes."""
    return evaluate(
        model(nan_rank=NAN_RANK),
        [
            Gate(metric="rmse", at_most=1e6, may_rise=1e6),
            Gate(metric="mae", at_least=0.0, at_most=1e6, may_rise=1e6),
            Gate(metric="top_100_accuracy", at_least=0.0, may_drop=1.0),
        ],
        good,
    )


EVERY = ["passed", "failed", "against_better", "against_worse", "not_a_number"]


@pytest.mark.parametrize("name", EVERY)
def test_the_blessing_that_the_pusher_reads_is_what_the_verdict_says(name: str, request: Any) -> None:
    evaluated = request.getfixturevalue(name)
    assert evaluated.blessed is evaluated.verdict.blessed
    assert evaluated.blessing_files == {"BLESSED" if evaluated.blessed else "NOT_BLESSED"}
    assert evaluated.blessing["current_model_id"] == 7


@pytest.mark.parametrize("name", EVERY)
def test_a_model_is_blessed_exactly_when_no_bound_failed(name: str, request: Any) -> None:
    verdict = request.getfixturevalue(name).verdict
    assert verdict.blessed is not bool(verdict.failures())


@pytest.mark.parametrize("name", EVERY)
def test_a_margin_is_negative_exactly_where_a_bound_failed(name: str, request: Any) -> None:
    for each in request.getfixturevalue(name).verdict.bounds:
        if each.margin is not None:
            assert each.passed is (each.margin >= -1e-8), each
            distance = each.measured - each.limit
            lower = each.condition in ("at_least", "may_drop") or (each.metric != "rmse" and "beats" in each.condition)
            assert each.margin == pytest.approx(distance if lower else -distance)


def test_a_first_model_is_held_against_absolute_bounds_only(passed: Any) -> None:
    assert passed.blessed
    assert passed.verdict.last_blessed == {} and passed.verdict.last_blessed_problem is None
    skipped = [each for each in passed.verdict.bounds if each.limit is None]
    assert {(each.metric, each.condition) for each in skipped} == {
        ("rmse", "may_rise"),
        ("top_100_accuracy", "may_drop"),
    }
    assert all(each.passed and "no model is blessed yet" in str(each) for each in skipped)
    assert outcome(passed) == {
        ("rmse", "at_most"): True,
        ("mae", "at_least"): True,
        ("mae", "at_most"): True,
        ("top_100_accuracy", "at_least"): True,
        ("top_5_accuracy", "at_most"): True,
        ("rmse", "beats_baseline_by"): True,
        ("ndcg_10", "beats_baseline_by"): True,
    }


def test_a_bound_met_exactly_passes(passed: Any) -> None:
    assert bound(passed, "top_100_accuracy", "at_least").margin == 0
    assert bound(passed, "top_5_accuracy", "at_most").margin == 0


def test_only_the_end_of_a_gate_that_does_not_hold_fails(failed: Any) -> None:
    assert not failed.blessed
    assert outcome(failed) == {
        ("rmse", "at_least"): True,
        ("rmse", "at_most"): False,
        ("mae", "at_least"): False,
        ("mae", "at_most"): True,
        ("top_100_accuracy", "at_least"): False,
        ("top_10_accuracy", "at_least"): True,
        ("top_10_accuracy", "at_most"): False,
        ("top_50_accuracy", "at_least"): True,
        ("rmse", "beats_baseline_by"): False,
        ("ndcg_10", "beats_baseline_by"): False,
    }


def test_a_bound_on_the_baseline_is_told_on_the_metric_itself(failed: Any, rows: Any) -> None:
    found = bound(failed, "ndcg_10", "beats_baseline_by")
    baseline = rows.baselines()["ndcg_10"]
    assert found.reference == pytest.approx(baseline) and found.limit == pytest.approx(baseline + 0.9)
    assert f"(baseline, most popular items: {baseline:.4f})" in str(found)
    assert "baseline, user and item means: " in str(bound(failed, "rmse", "beats_baseline_by"))


def test_a_candidate_may_be_as_much_worse_as_the_gate_allows_and_no_more(against_better: Any) -> None:
    assert not against_better.blessed
    assert outcome(against_better) == {
        ("rmse", "at_most"): True,
        ("rmse", "may_rise"): True,
        ("mae", "may_rise"): False,
        ("top_100_accuracy", "at_least"): True,
        ("top_100_accuracy", "may_drop"): True,
        ("top_50_accuracy", "at_least"): True,
        ("top_50_accuracy", "may_drop"): False,
    }
    assert bound(against_better, "rmse", "may_rise").margin == pytest.approx(0, abs=1e-6)
    assert bound(against_better, "mae", "may_rise").margin == pytest.approx(-1e-4, abs=1e-6)
    assert bound(against_better, "top_50_accuracy", "may_drop").margin == pytest.approx(-1e-4, abs=1e-6)


def test_the_limit_of_a_relative_bound_is_told_on_the_metric_itself(against_better: Any, rows: Any) -> None:
    was, now = rows.metrics(), rows.worse(SHIFT, RANKS_LOST).metrics()
    assert bound(against_better, "rmse", "may_rise").limit == pytest.approx(now["rmse"], abs=1e-6)
    assert bound(against_better, "mae", "may_rise").limit == pytest.approx(now["mae"] - 1e-4, abs=1e-6)
    dropped = was["top_100_accuracy"] - now["top_100_accuracy"]
    assert bound(against_better, "top_100_accuracy", "may_drop").limit == pytest.approx(
        was["top_100_accuracy"] - dropped, abs=1e-6
    )


def test_a_better_candidate_and_an_equal_one_pass_when_nothing_may_be_lost(against_worse: Any) -> None:
    results = outcome(against_worse)
    assert results[("rmse", "may_rise")] and bound(against_worse, "rmse", "may_rise").margin > 0.1
    assert results[("top_100_accuracy", "may_drop")]
    assert bound(against_worse, "top_100_accuracy", "may_drop").margin == pytest.approx(0, abs=1e-12)


def test_an_absolute_bound_still_decides_when_the_relative_one_holds(against_worse: Any) -> None:
    assert not against_worse.blessed
    assert [(each.metric, each.condition) for each in against_worse.verdict.failures()] == [
        ("top_10_accuracy", "at_least")
    ]


def test_a_single_rating_that_is_not_a_number_fails_every_gate_on_ratings(not_a_number: Any, rows: Any) -> None:
    assert 0 < (rows.outputs["rank"] == NAN_RANK).sum() < 20, "the fixture needs a few such rows among many others"
    assert not not_a_number.blessed
    for each in not_a_number.verdict.bounds:
        assert each.passed is (each.metric == "top_100_accuracy"), each
    assert {each.metric for each in not_a_number.verdict.bounds} == {"rmse", "mae", "top_100_accuracy"}


def test_what_could_not_be_measured_is_told_as_such(not_a_number: Any, rows: Any) -> None:
    verdict = not_a_number.verdict
    assert "rmse" not in verdict.metrics and "mae" not in verdict.metrics
    assert verdict.metrics["top_100_accuracy"] == pytest.approx(rows.metrics()["top_100_accuracy"])
    assert verdict.last_blessed["rmse"] == pytest.approx(rows.metrics()["rmse"])
    assert bound(not_a_number, "rmse", "at_most").measured is None
    assert "some predicted ratings are NaN or infinite" in str(bound(not_a_number, "rmse", "at_most"))


def test_a_first_model_with_nothing_but_relative_bounds_is_blessed(evaluate: Any, worse: Path) -> None:
    """Otherwise there would never be a model to compare with."""
    evaluated = evaluate(worse, [Gate(metric="rmse", may_rise=0.0), Gate(metric="top_100_accuracy", may_drop=0.0)])
    assert [each.limit for each in evaluated.verdict.bounds] == [None, None]
    assert evaluated.verdict.blessed and evaluated.blessed
    assert evaluated.blessing_files == {"BLESSED"}


def test_the_blessing_says_what_was_compared_and_why_it_is_none(
    passed: Any, against_better: Any, good: Path, worse: Path
) -> None:
    assert against_better.blessing == {
        "current_model_id": 7,
        "current_model": str(worse),
        "baseline_model_id": 3,
        "baseline_model": str(good),
        "component_id": "Evaluator",
        "reason": "; ".join(map(str, against_better.verdict.failures())),
    }
    assert "threshold" in against_better.blessing["reason"]
    assert passed.blessing["reason"] == ""


def test_a_model_measured_on_no_examples_is_not_blessed(
    evaluate: Any, good: Path, rows: Any, examples: Callable[..., Path]
) -> None:
    none = examples(rows.only(rows.label > 99))
    evaluated = evaluate(good, [Gate(metric="rmse", at_most=9.0)], split_=none)
    assert not evaluated.verdict.blessed and not evaluated.blessed
    assert evaluated.verdict.examples == 0
    (failure,) = evaluated.verdict.failures()
    assert str(failure) == "rmse: not measured: the eval split has no examples"
