"""The Tuner's best hyperparameters as values of the recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

INTERNAL_PREFIX = "tuner/"
"""Prefix of the hyperparameters in which KerasTuner's Hyperband stores its state."""


def recipe_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's values by dotted key, without Hyperband's state.

    Args:
        config: From `HyperParameters.get_config`; the Trainer gets it as `fn_args.hyperparameters`.

    Example:
        >>> recipe_values({"values": {"training.epochs": 9, "model.query_tower.layers": "[64]", "tuner/epochs": 3}})
        {'training.epochs': 9, 'model.query_tower.layers': [64]}
    """
    return {
        key: json.loads(value) if isinstance(value, str) else value
        for key, value in config["values"].items()
        if not key.startswith(INTERNAL_PREFIX)
    }
