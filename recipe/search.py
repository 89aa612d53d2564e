"""The check of `tuner.search`: `load_recipe` rejects a key or a value that the rest of the recipe does not allow."""

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
    """Where the Tuner would try a key that does not exist or a value that the key cannot have: the keys and messages.

    Each value is tried with the recipe's own values of the other keys; combinations are the Tuner's affair.
    """
    if recipe.tuner is None:
        return []
    problems: list[tuple[Key, str]] = []
    weights = {"top_100_accuracy": recipe.model.retrieval_weight, "rmse": recipe.model.rating_weight}
    for metric, weight in weights.items():
        if getattr(recipe.tuner.objective, metric) and not weight:
            task = "retrieval" if metric == "top_100_accuracy" else "rating"
            message = (
                f"tuner.objective.{metric}: model.{task}_weight is 0, so nothing is trained that it would measure; "
                "drop the key, or give the task a weight"
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
    """Why `key` cannot be searched in a recipe with the values `base`; empty where it can."""
    parts = dotted_key(key)
    if parts[0] not in ("model", "training") or len(parts) < 2:
        close = did_you_mean(str(parts[0]), ("model", "training"))
        return f"a key of model or training was wanted, such as model.embedding_dim{close}"
    if parts[:2] in (("training", "epochs"), ("training", "steps"), ("training", "validation")):
        return "how long a trial lasts and what measures it is the same for all trials; see tuner.epochs"
    fractions = takes_fractions(Recipe, key)
    for name in () if fractions or search.choices is not None else ("low", "high", "step"):
        bound = getattr(search, name)
        if bound is not None and bound != int(bound):
            return f"{name}: a whole number was wanted (found {bound!r})"
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
