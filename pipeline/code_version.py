"""Hashes of the code that a component runs: a part of its cache key, so that no cached result outlives its code."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("components", "recipe", "serving")
"""The packages whose modules components import; the versions of libraries are not part of a cache key."""


def code_version(*modules: str, root: Path = ROOT) -> str:
    """Hashes modules and, transitively, the modules of this project that they import.

    An import counts where it names a module or something defined in it, also inside functions. The `__init__` of a
    package counts only where it is imported itself, and imports for type checkers do not count: so a change in
    `recipe/evaluation.py` does not train a model again.

    Args:
        modules: Dotted names, such as `components.trainer.run_fn`.
        root: Folder that holds the packages.

    Returns:
        16 hexadecimal digits.

    Raises:
        ModuleNotFoundError: One of `modules` does not exist.
    """
    digest = hashlib.sha256()
    for name, path in sorted(imported_modules(*modules, root=root).items()):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def imported_modules(*modules: str, root: Path = ROOT) -> dict[str, Path]:
    """The modules that `code_version` hashes: dotted name to file."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = _file(name, root)
        if path is None:
            raise ModuleNotFoundError(f"no module {name} in {root}")
        found[name] = path
        waiting += _imports(ast.parse(path.read_bytes()), root)
    return found


def _file(name: str, root: Path) -> Path | None:
    """The file of one of the project's modules; None for anything else."""
    if name.partition(".")[0] not in PACKAGES:
        return None
    place = root.joinpath(*name.split("."))
    candidates = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _imports(node: ast.AST, root: Path) -> Iterator[str]:
    """The project's modules that the code below `node` imports when it runs."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for statement in node.orelse:
            yield from _imports(statement, root)
        return
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        submodules = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if _file(name, root) else node.module for name in submodules]
    yield from (name for name in names if _file(name, root))
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, root)
