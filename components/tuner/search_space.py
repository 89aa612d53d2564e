"""The recipe's search space as KerasTuner hyperparameters."""

from __future__ import annotations

import json
from typing import Any

import keras_tuner

from components.trainer.fitting.hyperparameters import INTERNAL_PREFIX
from recipe.keys import takes_fractions
from recipe.tuner import Tuner, TunerRecipe

EPOCHS = f"{INTERNAL_PREFIX}epochs"
"""Hyperband's hyperparameter for the number of epochs of a trial."""


def search_space(tuner: Tuner) -> keras_tuner.HyperParameters:
    """Return a hyperparameter for each key of the search, with the key as its name.

    Choices that are not all numbers are JSON strings, because KerasTuner accepts strings and numbers only.

    Args:
        tuner: The section `tuner` of the recipe.

    Example:
        >>> tuner = Tuner(search={"model.embedding_dim": {"choices": [32, 64]}})
        >>> search_space(tuner).space[0].values
        [32, 64]
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
