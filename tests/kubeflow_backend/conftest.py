"""Compiled pipelines of the shipped recipes."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Last, because every folder of tests has a conftest.
sys.path.append(str(Path(__file__).parent))

from compiled_recipes import compile_recipe


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., Path]:
    """Compiles a shipped recipe; `compile_recipe` without the path."""
    count = iter(range(100))

    def run(name: str, *overrides: str, **options: Any) -> Path:
        return compile_recipe(tmp_path / f"pipeline-{next(count)}.yaml", name, *overrides, **options)

    return run
