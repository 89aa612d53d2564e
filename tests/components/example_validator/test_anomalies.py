"""Anomalies fail the run before training, with a message for each feature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import pytest
from tensorflow_metadata.proto.v0 import anomalies_pb2

from components.example_validator.executor import AnomalyError
from recipe import BadInput

Validate = Callable[[Mapping[str, pd.DataFrame]], Any]


def complaint(validate: Validate, splits: Mapping[str, pd.DataFrame]) -> list[str]:
    """The lines of the error about single features."""
    with pytest.raises(AnomalyError) as caught:
        validate(splits)
    first, *found, last = str(caught.value).splitlines()
    assert first.startswith("the data has anomalies against schema.pbtxt")
    assert "Nothing was trained" in last and "Fix the data" in last and "schema.pbtxt" in last
    return [line.strip() for line in found]


def test_data_without_anomalies_passes_in_every_split(validate: Validate, rows: pd.DataFrame) -> None:
    anomalies = validate({"train": rows, "eval": rows[:5]})
    assert anomalies.get_json_value_custom_property("blessed") == {"train": 1, "eval": 1}


def test_an_anomaly_is_bad_input() -> None:
    assert issubclass(AnomalyError, BadInput), "the command line would end with 1 (failure) instead of 2 (bad input)"


BROKEN = {
    "gender (eval): expected F, M, got X (~50%); if they are valid, add them to string_domain.": {
        "gender": ["F", "X"] * 10
    },
    "age (eval): expected at most 120, got 150; if it is valid, raise max of int_domain.": {"age": [30] * 19 + [150]},
    "age (eval): expected at least 1, got -1; if it is valid, lower min of int_domain.": {"age": [30] * 19 + [-1]},
    "rating (eval): expected at most 5, got 9.5; if it is valid, raise max of float_domain.": {
        "rating": [4.0] * 19 + [9.5]
    },
    "rating (eval): expected at least 1, got 0.5; if it is valid, lower min of float_domain.": {
        "rating": [4.0] * 19 + [0.5]
    },
    "at (eval): expected at most 4102444800, got 1700000000000; if it is valid, raise max of int_domain.": {
        "at": [1_700_000_000] * 19 + [1_700_000_000_000]
    },
    "gender (eval): expected a value in at least 50 % of the rows, got 25 %; if it may be missing, lower min_fraction "
    "of presence.": {"gender": ["F"] * 5 + [None] * 15},
    "age (eval): expected data of type: INT but got STRING; if the data is valid, change its type in the schema.": {
        "age": ["30"] * 20
    },
    "colour (eval): not in the schema; add it to the schema, or remove it from the data.": {"colour": ["red"] * 20},
}


@pytest.mark.parametrize(("line", "change"), BROKEN.items())
def test_an_anomaly_is_reported_with_feature_split_reason_and_remedy(
    validate: Validate, rows: pd.DataFrame, line: str, change: dict[str, list[Any]]
) -> None:
    assert complaint(validate, {"train": rows, "eval": rows.assign(**change)}) == [line]


def test_a_column_that_is_missing_is_named(validate: Validate, rows: pd.DataFrame) -> None:
    assert complaint(validate, {"train": rows.drop(columns="rating"), "eval": rows}) == [
        "rating (train): expected a value in at least 100 % of the rows, got 0 %; if it may be missing, lower "
        "min_fraction of presence."
    ]


def test_all_anomalies_are_reported_together_and_each_one_once(validate: Validate, rows: pd.DataFrame) -> None:
    broken = rows.assign(age=[150] * 20, gender=["X"] * 20)
    lines = complaint(validate, {"train": broken, "eval": broken.assign(rating=9.0)})
    assert [line.split(":")[0] for line in lines] == ["age (train, eval)", "gender (train, eval)", "rating (eval)"]


def test_a_long_list_of_allowed_values_is_cut(validate: Validate, rows: pd.DataFrame) -> None:
    (line,) = complaint(validate, {"train": rows, "eval": rows.assign(country=["XX"] * 20)})
    assert "expected c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, and 18 more, got " in line


def test_the_anomalies_are_kept_for_tools_that_read_them(validate: Validate, rows: pd.DataFrame, tmp_path: Any) -> None:
    with pytest.raises(AnomalyError):
        validate({"train": rows, "eval": rows.assign(age=[150] * 20)})
    kept = {
        split: anomalies_pb2.Anomalies.FromString(
            (tmp_path / "anomalies" / f"Split-{split}" / "SchemaDiff.pb").read_bytes()
        )
        for split in ("train", "eval")
    }
    assert {split: set(each.anomaly_info) for split, each in kept.items()} == {"train": set(), "eval": {"age"}}
