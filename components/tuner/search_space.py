"""The recipe's search space as KerasTuner's hyperparameters."""

from __future__ import annotations

import json
from typing import Any

import keras_tuner

from components.trainer.fitting.hyperparameters import INTERNAL_PREFIX
from recipe.keys import takes_fractions
from recipe.tuner import Tuner, TunerRecipe

EPOCHS = f"{INTERNAL_PREFIX}epochs"


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


def _choices(choices: tuple[Any, ...]) -> list[Any]:
    if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices):
        return list(choices) if all(isinstance(choice, int) for choice in choices) else [float(c) for c in choices]
    return [json.dumps(choice) for choice in choices]
