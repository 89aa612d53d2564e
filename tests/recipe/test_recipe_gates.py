"""Gates and slices of the recipe: what a gate may ask, of what, and what a wrong one is told."""

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
def test_every_metric_can_be_gated_on_a_slice_against_all_there_is(metric: str) -> None:
    change = "may_drop" if METRICS[metric] == "higher" else "may_rise"
    gate = f"{{metric: {metric}, slice: {{item_popularity: tail}}, at_least: 0, {change}: 1, beats_baseline_by: 0}}"
    recipe = load_recipe(MOVIELENS, [f"gates=[{gate}]"])
    assert recipe.gates[0].conditions == {"at_least": 0, change: 1, "beats_baseline_by": 0}
    assert recipe.gates[0].slice_key == ("item_popularity", "tail")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("gates.0.slice={user_activity: nwe}", "the slice user_activity has no part 'nwe'; did you mean 'new'?"),
        ("gates.0.slice={item_popularity: new}", "it has cold, tail, torso, head"),
        ("gates.0.slice={user_activity: new, gender: F}", "slice has 2 entries; one was wanted"),
        ("gates.0.slice={}", "slice has 0 entries; one was wanted"),
        ("gates.0.slice={gender: no}", "the value was read as false; put it in quotes"),
        ("gates.0.slice={gendr: F}", "gates.0.slice: no column 'gendr' in schema.pbtxt; did you mean 'gender'?"),
        ("gates.0.slice={rating: 5}", "gates.0.slice: a slice for each label would be too many"),
        ("gates.0.beats_baseline_by=-1", "greater than or equal to 0"),
        ("slices.columns=[gender, user_id]", "slices.columns.1: a slice for each user would be too many"),
        ("slices.columns=[timestamp]", "a slice for each moment would be too many"),
        ("slices.columns=[user_activity]", "'user_activity' is a slice that every dataset has; drop it here"),
        ("slices.columns=[occupaton]", "slices.columns.0: no column 'occupaton' in schema.pbtxt"),
        ("slices.user_activity=null", "gates.3 is for a slice of user_activity, which slices switches off"),
        ("slices.item_popularity={torso: 0.9, head: 0.5}", "torso is 0.9 and head 0.5"),
        ("slices.user_activity.heavy=1", "less than 1"),
        ("slices.usr_activity=null", "unknown key; did you mean 'user_activity'?"),
    ],
)
def test_a_wrong_gate_or_slice_is_told_where_it_stands(override: str, said: str) -> None:
    told = problem(override)
    assert said in told
    if "schema.pbtxt" not in said and "switches off" not in said:
        assert f"--set {override}" in told


def test_one_metric_may_have_gates_on_several_slices_and_conditions_but_each_only_once() -> None:
    gates = [
        "{metric: rmse, at_most: 1}",
        "{metric: rmse, may_rise: 1}",
        "{metric: rmse, at_most: 1, slice: {gender: F}}",
        "{metric: rmse, at_most: 1, slice: {gender: M}}",
    ]
    assert len(load_recipe(MOVIELENS, [f"gates=[{', '.join(gates)}]"]).gates) == 4
    told = problem(f"gates=[{', '.join([*gates, gates[2]])}]")
    assert "rmse where gender is F has two gates with at_most; keep one of them" in told


def test_values_of_slices_are_text_or_whole_numbers() -> None:
    assert Gate(metric="rmse", at_most=1, slice={"age": 25}).slice_key == ("age", "25")
