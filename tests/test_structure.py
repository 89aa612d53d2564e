"""The size and the names of modules: what import-linter does not check."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("commands", "pipeline", "components", "recipe", "serving", "benchmarks", "environment", "kubeflow")


def modules(package: str) -> dict[Path, int]:
    """Lines of every module below a package; generated code is left out."""
    found = (path for path in (ROOT / package).rglob("*.py") if not path.name.endswith("_pb2.py"))
    return {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in found}


@pytest.mark.parametrize(("package", "most"), [*((name, 800) for name in PACKAGES), ("recipe", 350)])
def test_no_module_is_too_long(package: str, most: int) -> None:
    lengths = modules(package)
    assert lengths
    assert {str(path): lines for path, lines in lengths.items() if lines > most} == {}


def test_pipeline_is_the_pipeline_and_nothing_else() -> None:
    assert sum(modules("pipeline").values()) < 4000


@pytest.mark.parametrize(
    "name", ["verdict", "versions", "metrics", "options", "tls", "model_config", "settings", "plan"]
)
def test_a_module_name_means_one_thing(name: str) -> None:
    names = Counter(path.name for package in PACKAGES for path in modules(package))
    assert names[f"{name}.py"] <= 1
