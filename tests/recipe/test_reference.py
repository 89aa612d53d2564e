"""The recipe reference: docs/recipe.md is up to date and complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from recipe import Recipe
from recipe.evaluation import METRICS
from recipe.reference import PAGE, page, sections, sentence

ROOT = Path(__file__).resolve().parents[2]


def test_committed_page_is_up_to_date() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(), "run `make docs` and commit docs/recipe.md"


def test_every_key_has_a_description() -> None:
    undocumented = [
        f"{documented.section.__name__}.{name}"
        for documented in sections()
        for name in documented.section.model_fields
        if not sentence(documented.section, name)
    ]
    assert undocumented == []


def test_every_section_and_metric_is_on_the_page() -> None:
    text = page()
    for documented in sections():
        assert f"## {documented.title}\n" in text
        assert text.count(f'<a id="{documented.anchor}"></a>') == 1
    assert {"Recipe", "Data", "Negatives", "LeaveLastNSplit", "MultiValue", "Gate"} <= {
        documented.section.__name__ for documented in sections()
    }
    for metric in METRICS:
        assert f"| `{metric}` |" in text


def test_links_have_targets() -> None:
    text = page()
    for part in text.split("](#")[1:]:
        assert f'<a id="{part.partition(")")[0]}"></a>' in text


def keys(value: Any) -> set[str]:
    """Every key of a recipe; those of `rename` and `sum` are names of columns."""
    if isinstance(value, dict):
        own = set(map(str, value))
        return own.union(*(keys(inner) for name, inner in value.items() if name not in ("rename", "sum")))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in (ROOT / "schemas").glob("*/recipe.yaml")))
def test_keys_of_a_shipped_recipe_are_on_the_page(folder: str) -> None:
    values = yaml.safe_load((ROOT / "schemas" / folder / "recipe.yaml").read_text(encoding="utf-8"))
    Recipe.model_validate(values)
    text = page()
    for key in keys(values):
        assert f"| `{key}` |" in text, key
