"""The search: scores of trials, failed trials and errors that end the search."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import components  # noqa: F401  (decides on Keras before KerasTuner imports one)

# isort: split
import pytest

from components.trainer.fitting.callbacks import TrainingDiverged
from components.tuner import tuning
from recipe import RecipeError, load_recipe
from recipe.trainer import TrainerRecipe
from recipe.tuner import TunerRecipe

MOVIELENS = Path(__file__).resolve().parents[3] / "schemas" / "movielens"
CURVES = {
    "validation_top_100_accuracy": [0.1, 0.3, 0.2],
    "validation_rmse": [1.2, 1.0, 1.1],
    "kept": [0.0, 1.0, 0.0],
}

Search = Callable[..., tuning.RecipeTuner]


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """Run the search of a recipe with a function in place of training, to save time."""

    def run(
        train: Callable[[TrainerRecipe], dict[str, list[float]]], space: str, preset: str = "tutorial", **settings: Any
    ) -> Any:
        more = "".join(f", {name}: {value}" for name, value in settings.items())
        recipe: TunerRecipe = load_recipe(
            MOVIELENS, [f"tuner={{search: {{{space}}}{more}}}", "training.epochs=9"], preset
        ).for_tuner()
        monkeypatch.setattr(tuning, "train", lambda recipe, *_, **__: (None, train(recipe)))
        tuner = tuning.RecipeTuner(recipe, str(tmp_path))
        tuner.search(data=None, transform_output=None, bounds=None)
        return tuner

    return run


DIMENSIONS = "model.embedding_dim: {choices: [8, 16, 64]}"


def best(tuner: tuning.RecipeTuner) -> dict[str, Any]:
    return dict(tuner.get_best_hyperparameters()[0].values)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("{top_100_accuracy: 1}", 64), ("{rmse: 1}", 8), ("{top_100_accuracy: 1, rmse: 0.1}", 64)],
)
def test_the_best_trial_maximizes_the_objective(search: Search, objective: str, expected: int) -> None:
    def train(recipe: TrainerRecipe) -> dict[str, list[float]]:
        size = recipe.model.embedding_dim / 64
        return {"validation_top_100_accuracy": [size], "validation_rmse": [1 + size], "kept": [1.0]}

    assert best(search(train, DIMENSIONS, trials=12, objective=objective)) == {"model.embedding_dim": expected}


def test_a_trial_is_scored_by_the_kept_epoch(search: Search) -> None:
    tuner = search(lambda _: CURVES, DIMENSIONS, trials=2, objective="{top_100_accuracy: 2, rmse: 1}")
    assert tuner.oracle.get_best_trials()[0].score == pytest.approx(2 * 0.3 - 1.0)


def test_all_trials_have_the_same_validation_split(search: Search) -> None:
    seen: list[TrainerRecipe] = []
    search(lambda recipe: seen.append(recipe) or CURVES, DIMENSIONS, trials=3, epochs=2)
    assert len({recipe.training.validation for recipe in seen}) == 1 and seen[0].training.validation is not None
    assert {recipe.training.epochs for recipe in seen} == {2}


def test_trial_epochs_default_to_those_of_training(search: Search) -> None:
    seen: list[int] = []
    search(lambda recipe: seen.append(recipe.training.epochs) or CURVES, DIMENSIONS, trials=2)
    assert set(seen) == {9}


def test_hyperband_gives_most_trials_fewer_epochs(search: Search) -> None:
    seen: list[int] = []
    space = "training.optimizer.learning_rate: {low: 0.001, high: 0.1}"
    search(lambda recipe: seen.append(recipe.training.epochs) or CURVES, space, algorithm="hyperband", epochs=9)
    assert min(seen) == 1 and max(seen) == 9 and seen.count(1) > seen.count(9)


def test_bayesian_search_runs(search: Search) -> None:
    space = "training.optimizer.learning_rate: {low: 0.001, high: 0.1, scale: log}"
    assert len(search(lambda _: CURVES, space, algorithm="bayesian", trials=5).oracle.trials) == 5


def test_a_diverged_trial_is_not_the_best_and_does_not_end_the_search(search: Search) -> None:
    def train(recipe: TrainerRecipe) -> dict[str, list[float]]:
        if recipe.model.embedding_dim == 64:
            raise TrainingDiverged("loss is nan")
        return CURVES

    tuner = search(train, DIMENSIONS, trials=12)
    assert best(tuner)["model.embedding_dim"] != 64
    assert {trial.status for trial in tuner.oracle.trials.values()} == {"COMPLETED", "FAILED"}


def test_an_invalid_combination_of_values_is_a_failed_trial(search: Search) -> None:
    # Each value is valid alone; together, vectors of dimension 64 and 32 without a projection are not.
    layers, projection = "model.query_tower.layers", "model.query_tower.projection"
    space = f"{layers}: {{choices: [[64, 32], [64]]}}, {projection}: {{choices: [true, false]}}"
    tuner = search(lambda _: CURVES, space, preset="deep", trials=20)
    trials = {tuple(trial.hyperparameters.values.values()): trial.status for trial in tuner.oracle.trials.values()}
    assert {values for values, status in trials.items() if status == "FAILED"} == {("[64]", "false")}
    assert len(trials) == 4


def test_a_search_of_failed_trials_is_an_error_with_the_reason(search: Search) -> None:
    def train(recipe: TrainerRecipe) -> dict[str, list[float]]:
        raise TrainingDiverged("loss is nan")

    with pytest.raises(RecipeError, match=r"all 2 trials failed\. .*loss is nan"):
        search(train, DIMENSIONS, trials=2)


def test_an_unexpected_error_ends_the_search(search: Search) -> None:
    trained: list[int] = []

    def train(recipe: TrainerRecipe) -> dict[str, list[float]]:
        trained.append(1)
        raise KeyError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        search(train, DIMENSIONS, trials=5)
    assert len(trained) == 1
