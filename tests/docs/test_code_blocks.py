"""Python and recipe YAML of the pages: names exist, and keys are valid."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator

import pydantic
import pytest
import yaml
from markdown_it import MarkdownIt
from shell import PAGES, ROOT

from recipe import Recipe

OURS = ("recipe", "pipeline", "commands", "serving", "tandem_client")


def fences(language: str) -> Iterator[tuple[str, str]]:
    """Place and text of each block in a language."""
    for page in PAGES:
        for token in MarkdownIt().parse(page.read_text()):
            if token.type == "fence" and token.info.strip() == language and token.map is not None:
                yield f"{page.relative_to(ROOT)}:{token.map[0] + 1}", token.content


PYTHON = dict(fences("python"))
SECTIONS = {
    f"{place}: {key}": (key, value)
    for place, text in fences("yaml")
    for key, value in yaml.safe_load(text).items()
    if key in Recipe.model_fields and "apiVersion" not in text  # a manifest of Kubernetes
}
MOVIELENS = yaml.safe_load((ROOT / "schemas" / "movielens" / "recipe.yaml").read_text())


@pytest.mark.parametrize("place", PYTHON)
def test_python_imports_what_exists(place: str) -> None:
    # A page may use await outside of a function, as a notebook does.
    tree = compile(PYTHON[place], place, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            source = importlib.import_module(node.module)
            known = {*dir(source), *getattr(source, "__all__", ())}
            assert {each.name for each in node.names} <= known


@pytest.mark.parametrize("place", SECTIONS)
def test_sections_of_recipes_are_valid(place: str) -> None:
    key, value = SECTIONS[place]
    if isinstance(value, dict):  # a page may show a part of a section
        value = MOVIELENS.get(key, {}) | value
    pydantic.TypeAdapter(Recipe.model_fields[key].rebuild_annotation()).validate_python(value)


def test_pages_have_python_and_sections() -> None:
    assert len(PYTHON) > 5 and {key for key, _ in SECTIONS.values()} >= {"features", "gates", "tuner", "slices"}
