"""The sections `gates` and `slices`: valid metrics, slices and thresholds, and the errors of invalid ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipe import RecipeError, load_recipe, load_schema
from recipe.evaluation import METRICS, Gate

MOVIELENS = Path(__file__).resolve().parents[2] / "schemas" / "movielens"


def problem(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_schema(MOVIELENS, load_recipe(MOVIELENS, overrides))
    return str(caught.value)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_have_all_thresholds_on_a_slice(metric: str) -> None:
    change = "may_drop" if METRICS[metric] == "higher" else "may_rise"
    gate = f"{{metric: {metric}, slice: {{item_popularity: tail}}, at_least: 0, {change}: 1, beats_baseline_by: 0}}"
    recipe = load_recipe(MOVIELENS, [f"gates=[{gate}]"])
    assert recipe.gates[0].conditions == {"at_least": 0, change: 1, "beats_baseline_by": 0}
    assert recipe.gates[0].slice_key == ("item_popularity", "tail")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "gates.0.slice={user_activity: nwe}",
            "gates.0.slice: expected one of new, light, heavy for user_activity, got 'nwe'; did you mean 'new'?",
        ),
        (
            "gates.0.slice={item_popularity: new}",
            "expected one of cold, tail, torso, head for item_popularity, got 'new'",
        ),
        (
            "gates.0.slice={user_activity: new, gender: F}",
            "gates.0.slice: expected one entry, such as {user_activity: new}, got 2",
        ),
        ("gates.0.slice={}", "gates.0.slice: expected one entry, such as {user_activity: new}, got 0"),
        ("gates.0.slice={gender: no}", "expected a string or integer, got false; put the value in quotes"),
        (
            "gates.0.slice={gendr: F}",
            "gates.0.slice: expected a column of schema.pbtxt, got 'gendr'; did you mean 'gender'?",
        ),
        (
            "gates.0.slice={rating: 5}",
            "gates.0.slice: expected a column with few distinct values, got 'rating', the label",
        ),
        ("gates.0.beats_baseline_by=-1", "gates.0.beats_baseline_by: expected a number ≥ 0, got -1"),
        (
            "slices.columns=[gender, user_id]",
            "slices.columns.1: expected a column with few distinct values, got 'user_id'",
        ),
        ("slices.columns=[timestamp]", "got 'timestamp', the timestamp; use user_activity and item_popularity"),
        ("slices.columns=[user_activity]", "'user_activity' is a built-in slice; remove it from the columns"),
        ("slices.columns=[occupaton]", "slices.columns.0: expected a column of schema.pbtxt, got 'occupaton'"),
        ("slices.user_activity=null", "gates.3.slice: user_activity is disabled in slices"),
        ("slices.item_popularity={torso: 0.9, head: 0.5}", "expected torso ≤ head, got torso 0.9 and head 0.5"),
        ("slices.user_activity.heavy=1", "slices.user_activity.heavy: expected a number < 1, got 1"),
        ("slices.usr_activity=null", "unknown key; did you mean 'user_activity'?"),
    ],
)
def test_invalid_gate_or_slice_names_its_key(override: str, expected: str) -> None:
    message = problem(override)
    assert expected in message
    if "schema.pbtxt" not in expected and "is disabled" not in expected:
        assert f"--set {override}" in message


def test_threshold_of_a_metric_on_a_slice_is_unique() -> None:
    gates = [
        "{metric: rmse, at_most: 1}",
        "{metric: rmse, may_rise: 1}",
        "{metric: rmse, at_most: 1, slice: {gender: F}}",
        "{metric: rmse, at_most: 1, slice: {gender: M}}",
    ]
    assert len(load_recipe(MOVIELENS, [f"gates=[{', '.join(gates)}]"]).gates) == 4
    message = problem(f"gates=[{', '.join([*gates, gates[2]])}]")
    assert "gates: duplicate at_most for rmse where gender is F; remove one of them" in message


def test_slice_values_are_strings_or_integers() -> None:
    assert Gate(metric="rmse", at_most=1, slice={"age": 25}).slice_key == ("age", "25")
