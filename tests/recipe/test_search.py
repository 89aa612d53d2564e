"""The section `tuner`: invalid search spaces are errors that name the line of the key."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipe import Recipe, RecipeError, load_recipe
from recipe.tuner import TunerRecipe

MOVIELENS = Path(__file__).resolve().parents[2] / "schemas" / "movielens"

PRESET = """\
model:
  embedding_dim: 16
  rating_head: {kind: dot, dimension: 16}
training:
  epochs: 2
tuner:
  trials: 3
  search:
    model.embedding_dim: {choices: [8, 16]}
    model.query_tower.layers: {choices: [[], [32, 16]]}
    training.optimizer.learning_rate: {low: 0.0001, high: 0.1, scale: log}
    training.batch_size: {low: 512, high: 4096, scale: log, step: 2}
    model.rating_head.dropout: {low: 0, high: 0.5, step: 0.1}
"""

Load = Callable[..., Recipe]
Problem = Callable[[str, str], str]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads the recipe of MovieLens with the preset in which `old` is replaced by `new`."""
    shutil.copytree(MOVIELENS, tmp_path / "schema", ignore=shutil.ignore_patterns("presets"))
    (tmp_path / "schema" / "presets").mkdir()

    def loaded(old: str = "", new: str = "", *overrides: str) -> Recipe:
        assert not old or PRESET.count(old) == 1
        (tmp_path / "schema" / "presets" / "mine.yaml").write_text(PRESET.replace(old, new) if old else PRESET)
        return load_recipe(tmp_path / "schema", overrides, "mine")

    return loaded


@pytest.fixture
def problem(load: Load, tmp_path: Path) -> Problem:
    """The error of loading, without the folder's path."""

    def message(old: str, new: str) -> str:
        with pytest.raises(RecipeError) as raised:
            load(old, new)
        return str(raised.value).replace(f"{tmp_path / 'schema' / 'presets'}/", "")

    return message


def test_search_space_is_loaded(load: Load) -> None:
    tuner = load().tuner
    assert tuner is not None and len(tuner.search) == 5
    assert tuner.search["training.batch_size"].ends(False) == (512, 4096)
    assert (tuner.objective.top_100_accuracy, tuner.objective.rmse) == (1, 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.embedding_dim: {", "model.embeding_dim: {",
         "mine.yaml:9: tuner.search.model.embeding_dim: 8: model.embeding_dim: unknown key; did you mean"),
        ("model.embedding_dim: {", "modle.embedding_dim: {",
         "mine.yaml:9: tuner.search.modle.embedding_dim: expected a key of model or training"),
        ("model.embedding_dim: {", "serving.k: {", "tuner.search.serving.k: expected a key of model or training"),
        ("model.embedding_dim: {", "model: {", "tuner.search.model: expected a key of model or training"),
        ("model.embedding_dim: {", "model.embedding_dim.more: {",
         "tuner.search.model.embedding_dim.more: model.embedding_dim is a value, so it has no key 'more'"),
        ("choices: [8, 16]", "choices: [8, wide]",
         "mine.yaml:9: tuner.search.model.embedding_dim: 'wide': model.embedding_dim: expected an integer"),
        ("choices: [8, 16]", "choices: [8]",
         "mine.yaml:9: tuner.search.model.embedding_dim.choices: expected at least 2 entries, got 1"),
        ("choices: [8, 16]", "low: 8", "expected choices, or both low and high; add the missing key"),
        ("choices: [8, 16]", "low: 8, high: 16.5",
         "mine.yaml:9: tuner.search.model.embedding_dim: high: expected an integer, got 16.5"),
        ("choices: [8, 16]", "low: 0, high: 16", "mine.yaml:9: tuner.search.model.embedding_dim: 0: model."),
        ("choices: [8, 16]", "low: 16, high: 8", "expected low < high, got low 16 and high 8"),
        ("choices: [8, 16]", "choices: [8, 16], low: 1", "expected choices or a range, got both"),
        ("low: 0.0001", "low: 0", "expected low > 0 with scale: log, got 0"),
        ("scale: log, step: 2", "scale: log, step: 1",
         "expected step > 1 with scale: log, where it is a factor, got 1"),
        ("high: 0.5, step", "high: 1, step", "mine.yaml:13: tuner.search.model.rating_head.dropout: 1.0: "),
        ("[[], [32, 16]]", "[[], [32, 0]]", "mine.yaml:10: tuner.search.model.query_tower.layers: [32, 0]: "),
        ("training.batch_size: {", "training.epochs: {", "tuner.search.training.epochs: the length of a trial"),
        ("training.batch_size: {", "training.validation.fraction: {",
         "its validation split are the same for all trials"),
        ("training.batch_size: {", "training.early_stopping.patience: {",
         "training.early_stopping.metric: required key is missing"),
        ("  trials: 3\n", "  trials: 3\n  algorithm: hyperband\n",
         "hyperband derives the number of trials from epochs"),
        ("  trials: 3\n", "  objective: {rsme: 1}\n", "mine.yaml:7: tuner.objective.rsme: unknown key; did you mean"),
        ("  trials: 3\n", "  objective: {rmse: 0}\n",
         "mine.yaml:7: tuner.objective: top_100_accuracy and rmse are both 0"),
        ("  epochs: 2\n", "  epochs: 2\n  seeds: 1\n", "mine.yaml:6: training.seeds: unknown key"),
    ],
)  # fmt: skip
def test_invalid_search_space_names_its_line(problem: Problem, old: str, new: str, message: str) -> None:
    assert message in problem(old, new)


def test_metric_of_a_disabled_task_cannot_be_an_objective(problem: Problem) -> None:
    message = problem("  embedding_dim: 16\n", "  embedding_dim: 16\n  rating_weight: 0\n")
    assert "tuner.objective.rmse: model.rating_weight is 0" in message


def test_whole_sections_can_be_choices(load: Load) -> None:
    choices = "choices: [{layers: [16], projection: false}, {layers: [32]}]"
    recipe = load("model.query_tower.layers: {choices: [[], [32, 16]]}", f"model.query_tower: {{{choices}}}")
    assert recipe.tuner is not None


# --- the Tuner's and the Trainer's parts ------------------------------------------------------------------------------


def test_hyperparameters_replace_values_of_the_recipe(load: Load) -> None:
    trainer = load().for_trainer()
    found: dict[str, Any] = {"model.embedding_dim": 8, "model.query_tower.layers": [32, 16], "training.batch_size": 700}
    changed = trainer.with_values(found)
    assert (changed.model.embedding_dim, changed.model.query_tower.layers, changed.training.batch_size) == (
        8, (32, 16), 700,
    )  # fmt: skip
    assert changed.model.rating_head == trainer.model.rating_head
    assert trainer.with_values({}) == trainer


def test_contradictory_hyperparameters_are_an_error(load: Load) -> None:
    trainer = load().for_trainer()
    with pytest.raises(RecipeError, match=r"model\.query_tower: expected an output of dimension 16, got 8"):
        trainer.with_values({"model.query_tower.layers": [8], "model.query_tower.projection": False})
    with pytest.raises(RecipeError, match=r"model\.embedding_dim"):
        trainer.with_values({"model.embedding_dim": "wide"})


def test_tuner_always_has_a_validation_split(load: Load) -> None:
    recipe = load()
    assert recipe.training.validation is None
    tuner = recipe.for_tuner()
    assert tuner.training.validation is not None and tuner.training.validation.kind == "random"
    assert load("", "", "data.split={kind: time}").for_tuner().training.validation.kind == "latest"  # type: ignore[union-attr]
    assert TunerRecipe.model_validate_json(tuner.model_dump_json()) == tuner


def test_search_space_is_not_in_the_trainers_recipe(load: Load) -> None:
    """The Trainer's recipe is a part of its cache key; hyperparameters are an input artifact."""
    assert load().for_trainer() == load("trials: 3", "trials: 4").for_trainer()
    assert load().for_tuner() != load("trials: 3", "trials: 4").for_tuner()
