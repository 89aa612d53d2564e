"""The recipe's search space as KerasTuner's hyperparameters, and what was found as the recipe's values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import keras_tuner

from recipe.keys import takes_fractions
from recipe.tuner import Tuner, TunerRecipe

# Hyperband keeps its own books among the hyperparameters.
_BOOKKEEPING = "tuner/"
EPOCHS = f"{_BOOKKEEPING}epochs"


def search_space(tuner: Tuner) -> keras_tuner.HyperParameters:
    """Every key of the search as a hyperparameter of the same name.

    Choices that are not all numbers are written as JSON, because KerasTuner's own are words and numbers only.
    """
    space = keras_tuner.HyperParameters()
    for key, search in tuner.search.items():
        if search.choices is not None:
            space.Choice(key, _choices(search.choices))
            continue
        low, high = search.ends(takes_fractions(TunerRecipe, key))
        if takes_fractions(TunerRecipe, key):
            space.Float(key, low, high, step=search.step, sampling=search.scale)
        else:
            step = None if search.step is None else int(search.step)
            space.Int(key, int(low), int(high), step=step, sampling=search.scale)
    return space


def found_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's values in a configuration of KerasTuner's hyperparameters, by dotted key.

    Args:
        config: What `HyperParameters.get_config` gives; the Trainer gets it as `fn_args.hyperparameters`.
    """
    return {
        key: json.loads(value) if isinstance(value, str) else value
        for key, value in config["values"].items()
        if not key.startswith(_BOOKKEEPING)
    }


def _choices(choices: tuple[Any, ...]) -> list[Any]:
    if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices):
        return list(choices) if all(isinstance(choice, int) for choice in choices) else [float(c) for c in choices]
    return [json.dumps(choice) for choice in choices]
