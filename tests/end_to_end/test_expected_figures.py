"""The figures of `expected.yaml`: what each preset reaches is data, and a model that drifts away from it is noticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from recipe import load_recipe, preset_names
from recipe.evaluation import METRICS

ROOT = Path(__file__).resolve().parents[2]
SCHEMA_DIR = ROOT / "schemas" / "movielens"


class Figure(pydantic.BaseModel, extra="forbid"):
    """What a metric is, and how far it may be from that on another machine or with another seed."""

    expected: float
    tolerance: float = pydantic.Field(gt=0)

    def fits(self, measured: float) -> bool:
        return abs(measured - self.expected) <= self.tolerance


class Budget(pydantic.BaseModel, extra="forbid"):
    """Presets that are trained in the same way."""

    set: tuple[str, ...] = ()
    presets: dict[str, dict[str, Figure]]


def budgets() -> Mapping[str, Budget]:
    values = yaml.safe_load((SCHEMA_DIR / "expected.yaml").read_text(encoding="utf-8"))
    return {name: Budget.model_validate(budget) for name, budget in values.items()}


FULL = [name for name in budgets() if name != "reduced"]


def compare(tandem: Callable[..., Any], data: Path, workdir: Path, budget: Budget) -> dict[str, Any]:
    """Trains the presets of a budget as `tandem run` would; the rows by preset."""
    overrides = [part for override in budget.set for part in ("--set", override)]
    outcome = tandem(
        *("compare", *budget.presets, "--schema-dir", SCHEMA_DIR, "--data", data, "--workdir", workdir),
        *("--no-curves", "--json", *overrides),
    )
    assert outcome.code == 0, outcome.stderr
    return {row["preset"]: row for row in outcome.json["rows"]}


def misses(budget: Budget, rows: Mapping[str, Any]) -> list[str]:
    """Every figure that is not what was expected."""
    return [
        f"{preset}: {metric} is {rows[preset]['metrics'][metric]:.4f}, {figure.expected} ± {figure.tolerance} expected"
        for preset, figures in budget.presets.items()
        for metric, figure in figures.items()
        if not figure.fits(rows[preset]["metrics"][metric])
    ]


def test_figures_are_of_presets_that_are_there_and_of_the_split_that_they_name() -> None:
    found = budgets()
    # Each preset has expected metrics.
    assert set.union(*(set(found[name].presets) for name in FULL)) == set(preset_names(SCHEMA_DIR))
    assert "reduced" in found and "tutorial" in found["reduced"].presets
    for name, budget in found.items():
        assert set(budget.presets) <= set(preset_names(SCHEMA_DIR)), name
    for name in FULL:
        assert load_recipe(SCHEMA_DIR, found[name].set).data.split.kind == name


def test_a_figure_is_of_what_the_preset_is_trained_on() -> None:
    for budget in budgets().values():
        for preset, figures in budget.presets.items():
            model = load_recipe(SCHEMA_DIR, budget.set, preset).model
            expected = {"top_100_accuracy"} if model.retrieval_weight else set()
            expected |= {"rmse"} if model.rating_weight else set()
            assert expected <= set(figures) <= set(METRICS), preset


def test_a_figure_that_is_missed_is_told_either_way() -> None:
    budget = Budget.model_validate({"presets": {"a": {"rmse": {"expected": 1.0, "tolerance": 0.01}}}})
    assert misses(budget, {"a": {"metrics": {"rmse": 1.009}}}) == []
    for measured in (0.98, 1.02):
        assert misses(budget, {"a": {"metrics": {"rmse": measured}}}) == [
            f"a: rmse is {measured:.4f}, 1.0 ± 0.01 expected"
        ]


@pytest.mark.slow
def test_the_figures_of_a_reduced_budget(movielens: Path, tmp_path: Path, tandem: Callable[..., Any]) -> None:
    budget = budgets()["reduced"]
    assert misses(budget, compare(tandem, movielens, tmp_path / "work", budget)) == []


@pytest.mark.slow
@pytest.mark.floors
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("name", FULL)
def test_the_figures_of_every_preset(name: str, movielens: Path, tmp_path: Path, tandem: Callable[..., Any]) -> None:
    budget = budgets()[name]
    assert misses(budget, compare(tandem, movielens, tmp_path / "work", budget)) == []
