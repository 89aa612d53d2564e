"""The `tandem` command, and its subcommands as Python functions.

Example:
    from commands import serve_locally, write_movielens, write_report
    write_movielens(Path("data/movielens"))
    with serve_locally(Path("work/movielens/serving/movielens")) as client:
        client.recommend("42", k=10)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Before anything here imports TensorFlow: `components` decides which Keras it brings.
import components  # noqa: F401

if TYPE_CHECKING:
    from commands.batch_inference import run_batch
    from commands.compare.presets import compare_presets
    from commands.init.inspection import ColumnRoles
    from commands.init.recipe_writer import init_recipe
    from commands.local_serving import serve_locally
    from commands.movielens import write_movielens
    from commands.release import promote, rollback
    from commands.report.writing import write_report
    from commands.run_summary import print_run_summary
    from commands.tflite import export_tflite

__all__ = [
    "ColumnRoles",
    "compare_presets",
    "export_tflite",
    "init_recipe",
    "print_run_summary",
    "promote",
    "rollback",
    "run_batch",
    "serve_locally",
    "write_movielens",
    "write_report",
]

_MODULES = {
    "ColumnRoles": "commands.init.inspection",
    "compare_presets": "commands.compare.presets",
    "export_tflite": "commands.tflite",
    "init_recipe": "commands.init.recipe_writer",
    "print_run_summary": "commands.run_summary",
    "promote": "commands.release",
    "rollback": "commands.release",
    "run_batch": "commands.batch_inference",
    "serve_locally": "commands.local_serving",
    "write_movielens": "commands.movielens",
    "write_report": "commands.report.writing",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `tandem --help` imports none of them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
