"""A model goes to people only if a real server loads it and answers; if not, the reason says what to look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Models = Callable[..., Path]


def assert_turned_down(validated: Any, *words: str) -> None:
    assert not validated.blessed and not validated.blessed_for_tfx
    assert validated.files == {"INFRA_NOT_BLESSED": validated.reason}
    for word in words:
        assert word in validated.reason


def test_a_model_that_answers_is_blessed(validate: Any, model: Models) -> None:
    validated = validate(model())
    assert validated.blessed and validated.blessed_for_tfx
    assert (validated.reason, validated.files) == ("", {"INFRA_BLESSED": ""})


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
    assert_turned_down(validate(model(), start_timeout_s=0.2), "not ready in time")


def test_without_an_example_to_ask_with_nothing_is_blessed(validate: Any, model: Models) -> None:
    assert_turned_down(validate(model(), count=0), "no example")
