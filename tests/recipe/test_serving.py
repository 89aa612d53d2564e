"""The section `serving`: valid and invalid values of `rank_by`."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipe import RecipeError, load_recipe
from recipe.serving import RankBy
from recipe.trainer import TrainerRecipe

MOVIELENS = Path(__file__).parents[2] / "schemas" / "movielens"


@pytest.mark.parametrize(
    ("override", "weights"),
    [
        ("serving.k=100", (1, 0)),
        ("serving.rank_by=score", (1, 0)),
        ("serving.rank_by=rating", (0, 1)),
        ("serving.rank_by={score: 0.7, rating: 0.3}", (0.7, 0.3)),
        ("serving.rank_by={score: 0, rating: 2}", (0, 2)),
    ],
)
def test_names_are_short_for_weights(override: str, weights: tuple[float, float]) -> None:
    recipe = load_recipe(MOVIELENS, [override])
    assert recipe.serving.rank_by == RankBy(score=weights[0], rating=weights[1])
    assert TrainerRecipe.model_validate_json(recipe.for_trainer().model_dump_json()).serving == recipe.serving


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ratings", "serving.rank_by: expected score, rating or weights such as {score: 0.7, rating: 0.3}, "
         "got 'ratings'; did you mean 'rating'?"),
        ("{score: 1}", "serving.rank_by.rating: required key is missing"),
        ("{score: 1, ratings: 1}", "serving.rank_by.ratings: unknown key; did you mean 'rating'?"),
        ("{score: -1, rating: 1}", "serving.rank_by.score: expected a number ≥ 0, got -1"),
        ("{score: 0, rating: 0}", "serving.rank_by: score and rating are both 0; set at least one of them above 0"),
        ("3", "serving.rank_by: expected a mapping, got 3"),
    ],
)  # fmt: skip
def test_invalid_rank_by_names_the_expected_value(value: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(MOVIELENS, [f"serving.rank_by={value}"])
    assert message in str(error.value)


@pytest.mark.parametrize("order", ["rating", "{score: 0.9, rating: 0.1}"])
def test_rank_by_rating_requires_the_rating_task(order: str) -> None:
    with pytest.raises(RecipeError, match=r"model\.rating_weight is 0, so the rating task is not trained"):
        load_recipe(MOVIELENS, [f"serving.rank_by={order}", "model.rating_weight=0"])
    assert load_recipe(MOVIELENS, ["serving.rank_by=score", "model.rating_weight=0"])
