"""Print the installed packages that Tandem does not need at run time, one per line, for kubeflow/image/Dockerfile.

The lock file has one list for users and developers. An image needs the dependencies of both projects and of the extra
`kubeflow`, with their own dependencies; other packages (linters, test tools) would only make it larger.
"""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Extras that an image needs.
EXTRAS = ("kubeflow",)


def requirements(projects: list[Path]) -> list[Requirement]:
    """Run-time requirements of the projects, without our own distributions.

    Args:
        projects: The `pyproject.toml` files.
    """
    found: list[Requirement] = []
    for path in projects:
        project = tomllib.loads(path.read_text())["project"]
        extras = project.get("optional-dependencies", {})
        found += map(
            Requirement, [*project["dependencies"], *(each for name in EXTRAS for each in extras.get(name, ()))]
        )
    return [requirement for requirement in found if not requirement.name.startswith("tandem")]


def needed(roots: list[Requirement]) -> set[str]:
    """Canonical names of the installed packages that `roots` need, with extras and markers evaluated."""
    extras: dict[str, set[str]] = {}
    waiting = list(roots)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in extras and requirement.extras <= extras[name]:
            continue
        known = extras.setdefault(name, {""})
        known |= requirement.extras
        try:
            found = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            raise SystemExit(f"{name} is required but not installed. Run `make lock` and rebuild the image.") from None
        for each in map(Requirement, found):
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in known):
                waiting.append(each)
    return set(extras)


def main(projects: list[str]) -> int:
    if not projects:
        raise SystemExit("usage: development_packages.py PYPROJECT.TOML…")
    installed = {canonicalize_name(each.metadata["Name"]) for each in metadata.distributions()}
    ours = {name for name in installed if name.startswith("tandem")}
    print("\n".join(sorted(installed - ours - needed(requirements([Path(each) for each in projects])))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
