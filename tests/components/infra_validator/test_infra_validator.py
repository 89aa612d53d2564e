"""A model goes to people only if a real server loads it and answers; if not, the reason says what to look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.infra_validator import latency

Models = Callable[..., Path]


def assert_turned_down(validated: Any, *words: str) -> None:
    assert not validated.blessed and not validated.blessed_for_tfx
    assert validated.files == {"INFRA_NOT_BLESSED": validated.reason}
    for word in words:
        assert word in validated.reason


def test_a_model_that_answers_as_it_was_evaluated_is_blessed(validate: Any, model: Models) -> None:
    """Its ratings depend on the rows' own moods, which `rate` and `evaluate` see alike only if they are sent."""
    validated = validate(model(), max_p99_ms=10_000)
    assert validated.blessed and validated.blessed_for_tfx
    assert (validated.reason, validated.files) == ("", {"INFRA_BLESSED": ""})
    p50, p99 = validated.latency_ms
    assert 0 < p50 <= p99


def test_a_model_that_is_too_slow_is_turned_down_and_its_times_are_kept(
    validate: Any, model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "REQUESTS", 40)
    validated = validate(model(), max_p99_ms=0.001)
    assert_turned_down(validated, "too slow", "serving.max_p99_ms", "0.001")
    assert validated.latency_ms[1] > 0.001


def test_a_rating_that_is_not_the_evaluated_one_is_found(validate: Any, model: Models) -> None:
    assert_turned_down(validate(model(evaluated=3.01)), "rate", "3.0000", "3.0100", "customer0", "article0")


def test_a_list_that_is_not_the_evaluated_one_is_found(validate: Any, model: Models) -> None:
    assert_turned_down(validate(model(ranks=(1, 0))), "'article0'", "at place 1", "at place 2", "Evaluator")


def test_the_models_own_warm_up_requests_are_asked_whatever_their_signature(validate: Any, model: Models) -> None:
    assert_turned_down(validate(model(similar=float("inf"))), "warm-up request 1", "similar_items", "inf", "finite")


def test_a_rating_that_is_not_a_number_is_found(validate: Any, model: Models) -> None:
    assert_turned_down(validate(model(rating=float("nan"))), "rate", "nan", "finite")


def test_a_model_that_recommends_nothing_is_found(validate: Any, model: Models) -> None:
    assert_turned_down(validate(model(items=("", ""))), "recommend", "no item", "new user")


def test_a_model_without_a_signature_of_the_contract_is_found(validate: Any, model: Models) -> None:
    assert_turned_down(validate(model(without="recommend")), "recommend", "rate")


@pytest.fixture
def truncated(model: Models, tmp_path: Path) -> Path:
    shutil.copytree(model(), tmp_path / "model")
    graph = tmp_path / "model" / "Format-Serving" / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:200])
    return tmp_path / "model"


def test_a_model_that_was_cut_off_is_found(validate: Any, truncated: Path) -> None:
    validated = validate(truncated)
    assert_turned_down(validated, "server", "saved_model.pb")


def test_a_server_that_takes_too_long_is_stopped(validate: Any, model: Models) -> None:
    assert_turned_down(validate(model(), start_timeout_s=0.2), "not ready in time (0.2 s)", "wanted the", "run again")


def test_without_an_example_to_ask_with_nothing_is_blessed(validate: Any, model: Models) -> None:
    assert_turned_down(validate(model(), count=0), "no example")
