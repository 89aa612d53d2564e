"""A last blessed model that cannot be measured any more must neither stop the pipeline nor be ignored silently."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipe.evaluation import Gate

GATES = [
    Gate(metric="rmse", at_most=5.0, may_rise=0.0),
    Gate(metric="top_100_accuracy", at_least=0.01, may_drop=0.0),
]


@pytest.fixture(scope="module")
def worse(model: Callable[..., Path]) -> Path:
    """Its relative gates would fail beside the last blessed model."""
    return model(shift=1.0, ranks_lost=30)


def corrupt(path: Path) -> Path:
    (path / "Format-Serving" / "saved_model.pb").write_bytes(b"not a model")
    return path


def without_variables(path: Path) -> Path:
    shutil.rmtree(path / "Format-Serving" / "variables")
    return path


INCOMPATIBLE: dict[str, tuple[Callable[[Callable[..., Path]], Path], str]] = {
    "an older export": (
        lambda model: model(lacking=("rank_unseen", "mean_rating")),
        "its signature 'evaluate' has no output rank_unseen, mean_rating",
    ),
    "other features": (lambda model: model(other_types=("user_activity",)), "it fails on the current examples"),
    "no model": (lambda model: corrupt(model()), "cannot read its files"),
    "half a model": (lambda model: without_variables(model()), "it fails on the current examples"),
}


@pytest.mark.parametrize("case", INCOMPATIBLE)
def test_value_thresholds_apply_without_the_last_blessed_model(
    evaluate: Any, model: Callable[..., Path], worse: Path, rows: Any, case: str
) -> None:
    make, reason = INCOMPATIBLE[case]
    evaluated = evaluate(worse, GATES, make(model))
    verdict = evaluated.verdict
    assert reason in verdict.last_blessed_problem
    assert verdict.last_blessed == {}
    assert verdict.metrics == pytest.approx(rows.worse(1.0, 30).metrics(), abs=1e-6)
    assert evaluated.blessed
    assert [(each.condition, each.limit is None, reason in str(each)) for each in verdict.bounds] == [
        ("at_most", False, False), ("may_rise", True, True), ("at_least", False, False), ("may_drop", True, True)
    ]  # fmt: skip


def test_a_model_that_fails_a_value_threshold_then_is_not_blessed(
    evaluate: Any, model: Callable[..., Path], worse: Path
) -> None:
    gates = [Gate(metric="rmse", at_most=0.5, may_rise=0.0)]
    evaluated = evaluate(worse, gates, model(lacking=("rank",)))
    assert not evaluated.blessed and evaluated.blessing_files == {"NOT_BLESSED"}


def test_a_compatible_model_is_compared(evaluate: Any, model: Callable[..., Path], worse: Path) -> None:
    evaluated = evaluate(worse, GATES, model())
    assert evaluated.verdict.last_blessed_problem is None
    assert not evaluated.blessed


def test_a_candidate_that_cannot_be_measured_is_an_error(evaluate: Any, model: Callable[..., Path]) -> None:
    """The error must not be attributed to the last blessed model."""
    with pytest.raises(Exception, match="user_activity"):
        evaluate(model(other_types=("user_activity",)), GATES, model())


def test_nothing_pushed_yet_is_no_model_to_compare_with_and_no_problem(
    evaluate: Any, worse: Path, tmp_path: Path
) -> None:
    """The ModelResolver's artifact for a folder that does not exist."""
    from tfx.types import standard_artifacts

    from components.model_resolver.executor import Executor

    resolved = standard_artifacts.Model()
    resolved.uri = str(tmp_path / "resolved")
    Executor().Do({}, {"model": [resolved]}, {"push_destination": str(tmp_path / "serving")})
    evaluated = evaluate(worse, GATES, Path(resolved.uri))
    assert evaluated.blessed
    assert evaluated.verdict.last_blessed_problem is None
    assert evaluated.verdict.last_blessed == {}
    skipped = [str(each) for each in evaluated.verdict.bounds if each.limit is None]
    assert len(skipped) == 2 and all("no model is blessed yet" in each for each in skipped)
    assert evaluated.blessing["baseline_model"] == ""
