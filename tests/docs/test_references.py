"""Pages name files and functions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md")))
ARCHITECTURE = ROOT / "docs" / "architecture.md"

# A path of the repository, such as pipeline/dag.py; not a part of a URL or of a longer path, and no placeholder.
NAMED = re.compile(r"(?<![\w./:$<-])([a-z.][\w.-]*(?:/[\w.-]+)+\.(?:py|md|yaml|yml|pbtxt|proto|ipynb))\b")
LINK = re.compile(r"\]\(([^)\s:#]+)(?:#[^)]*)?\)")
PLACEHOLDER = re.compile(r"[A-Z]{4,}")
STEP = re.compile(r"^\|[^|]*\| `([\w./]+\.py)` \| `([\w.]+)` \|$", re.M)

# Paths on the reader's machine, not in this repository.
ELSEWHERE = re.compile(r"^(mine|dags|work|data|jars)/")


def named_files(page: Path) -> set[str]:
    return {path for path in NAMED.findall(page.read_text()) if not PLACEHOLDER.search(path)}


def definitions(path: Path) -> set[str]:
    """Names of the functions and classes of a module, methods as `Class.method`."""
    found: set[str] = set()
    if not path.exists():
        return found
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    folders = (ROOT, page.parent)
    missing = {
        path
        for path in named_files(page)
        if not ELSEWHERE.match(path) and not any((folder / path).exists() for folder in folders)
    }
    assert missing == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    missing = {link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()}
    assert missing == set()


def test_the_walks_name_functions_that_exist() -> None:
    steps = STEP.findall(ARCHITECTURE.read_text())
    assert len(steps) > 40
    missing = {f"{path}: {name}" for path, name in steps if name not in definitions(ROOT / path)}
    assert missing == set()


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_a_file_that_does_not_exist_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("See `pipeline/gone.py`, schemas/DATASET/recipe.yaml and https://example.com/a/b.py.")
    assert named_files(page) == {"pipeline/gone.py"}
