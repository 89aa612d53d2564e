"""The best hyperparameters of a Tuner run as values of the recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

INTERNAL_PREFIX = "tuner/"
"""Hyperband stores values of its own among the hyperparameters, with names that start with this."""


def found_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's values in a configuration of KerasTuner's hyperparameters, by dotted key.

    Args:
        config: What `HyperParameters.get_config` gives; the Trainer gets it as `fn_args.hyperparameters`.
    """
    return {
        key: json.loads(value) if isinstance(value, str) else value
        for key, value in config["values"].items()
        if not key.startswith(INTERNAL_PREFIX)
    }
