"""A model is blessed only if a server loads it and its responses equal the evaluation; else the reason is recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.infra_validator import latency

Models = Callable[..., Path]


def assert_not_blessed(validated: Any, *words: str) -> None:
    assert not validated.blessed and not validated.blessed_for_tfx
    assert validated.files == {"INFRA_NOT_BLESSED": validated.reason}
    for word in words:
        assert word in validated.reason


def test_a_model_whose_responses_equal_the_evaluation_is_blessed(validate: Any, model: Models) -> None:
    """Its ratings depend on the rows' own moods, which `rate` and `evaluate` see alike only if they are sent."""
    validated = validate(model(), max_p99_ms=10_000)
    assert validated.blessed and validated.blessed_for_tfx
    assert (validated.reason, validated.files) == ("", {"INFRA_BLESSED": ""})
    p50, p99 = validated.latency_ms
    assert 0 < p50 <= p99


def test_a_model_that_is_too_slow_is_not_blessed_and_its_latency_is_kept(
    validate: Any, model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "REQUESTS", 40)
    validated = validate(model(), max_p99_ms=0.001)
    assert_not_blessed(validated, "expected p99 ≤ 0.001 ms", "serving.max_p99_ms")
    assert validated.latency_ms[1] > 0.001


def test_a_rating_that_is_not_the_evaluated_one_is_found(validate: Any, model: Models) -> None:
    assert_not_blessed(validate(model(evaluated=3.01)), "rate", "3.0000", "3.0100", "customer0", "article0")


def test_a_list_that_is_not_the_evaluated_one_is_found(validate: Any, model: Models) -> None:
    assert_not_blessed(validate(model(ranks=(1, 0))), "'article0'", "evaluated rank 2", "got rank 1")


def test_the_models_warm_up_requests_of_all_signatures_are_sent(validate: Any, model: Models) -> None:
    assert_not_blessed(validate(model(similar=float("inf"))), "warm-up request 1", "similar_items", "inf", "finite")


def test_a_rating_that_is_not_a_number_is_found(validate: Any, model: Models) -> None:
    assert_not_blessed(validate(model(rating=float("nan"))), "rate", "nan", "finite")


def test_a_model_that_recommends_nothing_is_found(validate: Any, model: Models) -> None:
    assert_not_blessed(validate(model(items=("", ""))), "recommend", "at least 1 item", "new user")


def test_a_model_without_a_signature_of_the_contract_is_found(validate: Any, model: Models) -> None:
    assert_not_blessed(validate(model(without="recommend")), "recommend", "rate")


@pytest.fixture
def truncated(model: Models, tmp_path: Path) -> Path:
    shutil.copytree(model(), tmp_path / "model")
    graph = tmp_path / "model" / "Format-Serving" / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:200])
    return tmp_path / "model"


def test_a_model_that_was_cut_off_is_found(validate: Any, truncated: Path) -> None:
    validated = validate(truncated)
    assert_not_blessed(validated, "server", "saved_model.pb")


def test_a_server_that_takes_too_long_is_stopped(validate: Any, model: Models) -> None:
    assert_not_blessed(validate(model(), start_timeout_s=0.2), "not ready after 0.2 s", "load average", "rerun")


def test_without_eval_examples_no_model_is_blessed(validate: Any, model: Models) -> None:
    assert_not_blessed(validate(model(), count=0), "no examples")
