"""A search in the DAG: KerasTuner tries the recipe's values, and the Trainer trains with the best of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
# None of them is the recipe's own value, so that what the Trainer takes can only come from the Tuner.
SEARCH = {
    "model.embedding_dim": {"choices": [5, 7]},
    "model.query_tower.layers": {"choices": [[6], [9, 6]]},
    "training.optimizer.learning_rate": {"low": 0.002, "high": 0.02, "scale": "log"},
}


def run(tandem: Callable[..., Any], workdir: Path, *overrides: str) -> Any:
    arguments = [part for override in overrides for part in ("--set", override)]
    data = ROOT / "tests" / "samples" / "books"
    return tandem("run", ROOT / "schemas" / "books", "--data", data, "--workdir", workdir, "--json", *arguments)


@pytest.fixture(scope="module")
def searched(tandem: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A run with three trials of one epoch, and its workdir."""
    workdir = tmp_path_factory.mktemp("work")
    tuner = {"trials": 3, "epochs": 1, "objective": {"rmse": 1}, "search": SEARCH}
    outcome = run(tandem, workdir, f"tuner={json.dumps(tuner)}", "training.epochs=1")
    assert outcome.code in (0, 3), outcome.stderr
    return outcome, workdir


def test_the_tuner_stands_before_the_trainer(searched: tuple[Any, Path]) -> None:
    order = list(searched[0].json["seconds"])
    assert order.index("Transform") < order.index("Tuner") < order.index("Trainer")


def test_the_best_trial_is_what_the_run_reports(searched: tuple[Any, Path]) -> None:
    outcome, workdir = searched
    (results,) = (workdir / "artifacts" / "Tuner" / "tuner_results").rglob("tuner_results.json")
    trials = json.loads(results.read_text())
    assert len(trials) == 3 and len({json.dumps(trial, sort_keys=True) for trial in trials}) == 3
    best = max(trials, key=lambda trial: trial["score"])
    found = outcome.json["hyperparameters"]
    assert set(found) == set(SEARCH)
    assert found["model.embedding_dim"] == best["model.embedding_dim"]
    assert found["model.query_tower.layers"] == json.loads(best["model.query_tower.layers"])
    assert found["training.optimizer.learning_rate"] == best["training.optimizer.learning_rate"]


def test_the_trainer_takes_what_was_found(searched: tuple[Any, Path]) -> None:
    import tensorflow as tf

    outcome, workdir = searched
    found = outcome.json["hyperparameters"]
    (checkpoint,) = (workdir / "artifacts" / "Trainer" / "model_run").rglob("checkpoint.index")
    shapes = [tuple(shape) for _, shape in tf.train.list_variables(str(checkpoint).removesuffix(".index"))]
    dimension, layers = found["model.embedding_dim"], found["model.query_tower.layers"]
    assert any(len(shape) == 2 and shape[1] == dimension and shape[0] > 20 for shape in shapes)
    assert any(len(shape) == 2 and shape[1] == layers[0] for shape in shapes)
    (curves,) = (workdir / "artifacts" / "Trainer" / "model_run").rglob("curves.json")
    rates = json.loads(curves.read_text())["learning_rate"]
    assert rates == pytest.approx([found["training.optimizer.learning_rate"]])


def test_a_second_run_searches_nothing_again_and_another_space_does(
    searched: tuple[Any, Path], tandem: Callable[..., Any]
) -> None:
    first, workdir = searched
    tuner = {"trials": 3, "epochs": 1, "objective": {"rmse": 1}, "search": SEARCH}
    again = run(tandem, workdir, f"tuner={json.dumps(tuner)}", "training.epochs=1")
    assert {"Tuner", "Trainer"} <= set(again.json["cached"])
    assert again.json["hyperparameters"] == first.json["hyperparameters"]
    without = run(tandem, workdir, "training.epochs=1")
    assert without.json["hyperparameters"] is None and "Tuner" not in without.json["seconds"]
