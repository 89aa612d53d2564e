"""The pipeline: the DAG, its runners, and the runs of a work folder.

Example:
    from pipeline import run_recipe
    result = run_recipe(Path("schemas/movielens"), Path("data/movielens"), Path("work/movielens"))
    print(result.blessed, result.metrics["rmse"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Before anything here imports TensorFlow: `components` decides which Keras it brings.
import components  # noqa: F401

if TYPE_CHECKING:
    from pipeline.beam import BeamOptions
    from pipeline.result import RunResult
    from pipeline.runners.local import ComponentFailure, run_recipe

__all__ = ["BeamOptions", "ComponentFailure", "RunResult", "run_recipe"]

_MODULES = {
    "BeamOptions": "pipeline.beam",
    "ComponentFailure": "pipeline.runners.local",
    "RunResult": "pipeline.result",
    "run_recipe": "pipeline.runners.local",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: Airflow's processes import this package with the standard library alone."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
