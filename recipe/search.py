"""The check of `tuner.search`, which `load_recipe` calls: unknown keys, and values that the recipe does not allow."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pydantic

from recipe.errors import did_you_mean
from recipe.keys import Key, assign, dotted_key, takes_fractions
from recipe.messages import wording
from recipe.recipe import Recipe
from recipe.tuner import Search


def search_problems(recipe: Recipe) -> list[tuple[Key, str]]:
    """Return the unknown keys and invalid values of the search space, as keys and messages.

    Each value is validated with the recipe's values of the other keys. Combinations are not validated here: an invalid
    one is a failed trial.
    """
    if recipe.tuner is None:
        return []
    problems: list[tuple[Key, str]] = []
    weights = {"top_100_accuracy": recipe.model.retrieval_weight, "rmse": recipe.model.rating_weight}
    for metric, weight in weights.items():
        if getattr(recipe.tuner.objective, metric) and not weight:
            task = "retrieval" if metric == "top_100_accuracy" else "rating"
            message = (
                f"tuner.objective.{metric}: model.{task}_weight is 0, so the task of this metric is not trained; "
                f"remove the key, or set model.{task}_weight above 0"
            )
            problems.append((("tuner", "objective", metric), message))
    base = recipe.model_dump(mode="json", exclude_none=True, exclude={"tuner"})
    for key, search in recipe.tuner.search.items():
        problem = _search_problem(base, key, search)
        if problem:
            # The search's keys have dots themselves.
            problems.append((("tuner", "search", key), f"tuner.search.{key}: {problem}"))
    return problems


def _search_problem(base: Mapping[str, Any], key: str, search: Search) -> str:
    """The reason why `key` cannot be searched in a recipe with the values `base`, or an empty string."""
    parts = dotted_key(key)
    if parts[0] not in ("model", "training") or len(parts) < 2:
        close = did_you_mean(str(parts[0]), ("model", "training"))
        return f"expected a key of model or training, such as model.embedding_dim{close}"
    if parts[:2] in (("training", "epochs"), ("training", "steps"), ("training", "validation")):
        return (
            "the length of a trial and its validation split are the same for all trials; remove the key, and use "
            "tuner.epochs"
        )
    fractions = takes_fractions(Recipe, key)
    for name in () if fractions or search.choices is not None else ("low", "high", "step"):
        bound = getattr(search, name)
        if bound is not None and bound != int(bound):
            return f"{name}: expected an integer, got {bound!r}"
    for value in search.choices if search.choices is not None else search.ends(fractions):
        values: dict[str, Any] = copy.deepcopy(dict(base))
        try:
            assign(values, parts, value)
            Recipe.model_validate(values)
        except KeyError as error:
            return str(error.args[0])
        except pydantic.ValidationError as error:
            return f"{value!r}: {wording(Recipe, error.errors()[0], values)[1]}"
    return ""
