"""Prints the installed packages that Tandem does not need at run time, one a line, for kubeflow/image/Dockerfile.

The lock file has one list for users and developers. What an image needs is what the projects' own dependencies and the
extra `kubeflow` ask for, and what those ask for in turn; the rest (linters, test tools) only makes it larger.
"""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Extras of ours that an image needs.
EXTRAS = ("kubeflow",)


def wanted(projects: list[Path]) -> list[Requirement]:
    """What the projects ask for at run time, our own distributions left out.

    Args:
        projects: their `pyproject.toml` files.
    """
    found: list[Requirement] = []
    for path in projects:
        project = tomllib.loads(path.read_text())["project"]
        extras = project.get("optional-dependencies", {})
        found += map(
            Requirement, [*project["dependencies"], *(each for name in EXTRAS for each in extras.get(name, ()))]
        )
    return [requirement for requirement in found if not requirement.name.startswith("tandem")]


def needed(requirements: list[Requirement]) -> set[str]:
    """Canonical names of the installed packages that the requirements lead to, extras and markers honoured."""
    extras: dict[str, set[str]] = {}
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in extras and requirement.extras <= extras[name]:
            continue
        known = extras.setdefault(name, {""})
        known |= requirement.extras
        try:
            asks = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            raise SystemExit(
                f"{name} is needed and not installed. Run `make lock` and build the image again."
            ) from None
        for each in map(Requirement, asks):
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in known):
                waiting.append(each)
    return set(extras)


def main(projects: list[str]) -> int:
    if not projects:
        raise SystemExit("usage: development_packages.py PYPROJECT.TOML…")
    installed = {canonicalize_name(each.metadata["Name"]) for each in metadata.distributions()}
    ours = {name for name in installed if name.startswith("tandem")}
    print("\n".join(sorted(installed - ours - needed(wanted([Path(each) for each in projects])))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
