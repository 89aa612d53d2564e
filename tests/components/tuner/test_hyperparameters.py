"""Conversion between the recipe's search space and KerasTuner's hyperparameters."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import math
from typing import Any

import components  # noqa: F401  (decides on Keras before KerasTuner imports one)

# isort: split
import keras_tuner
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.trainer.fitting.hyperparameters import recipe_values
from components.tuner.search_space import search_space
from recipe.tuner import Search, Tuner


def sampled(tuner: Tuner, seed: int) -> dict[str, Any]:
    """The recipe's values of a random trial, converted as from the Tuner to the Trainer."""
    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective=keras_tuner.Objective("score", "max"), hyperparameters=search_space(tuner), seed=seed
    )
    space = search_space(tuner)
    space.values = oracle._random_values()
    return recipe_values(space.get_config())


@given(
    st.lists(
        st.one_of(
            st.integers(-5, 100), st.booleans(), st.none(), st.text(max_size=4),
            st.lists(st.integers(1, 9), max_size=3),
            st.dictionaries(st.sampled_from(["layers", "dropout"]), st.integers(0, 3), max_size=2),
        ),
        min_size=2, max_size=5,
    ),
    st.integers(0, 1000),
)  # fmt: skip
@settings(deadline=None, max_examples=100)
def test_a_choice_round_trips(choices: list[Any], seed: int) -> None:
    tuner = Tuner(search={"model.query_tower.layers": Search(choices=tuple(choices))})
    found = sampled(tuner, seed)["model.query_tower.layers"]
    assert any(found == choice and type(found) is type(choice) for choice in choices)


@pytest.mark.parametrize("choices", [(8, 16), (8.0, 16.0), (8, 16.5)])
def test_numeric_choices_stay_ordered_numbers(choices: tuple[float, ...]) -> None:
    (hyperparameter,) = search_space(Tuner(search={"model.embedding_dim": Search(choices=choices)})).space
    assert hyperparameter.ordered
    assert list(hyperparameter.values) == list(choices)


@given(st.floats(1e-6, 1e-2), st.floats(2, 100), st.sampled_from(["linear", "log"]), st.integers(0, 1000))
@settings(deadline=None, max_examples=100)
def test_a_range_of_floats_stays_within_its_bounds(low: float, times: float, scale: Any, seed: int) -> None:
    key = "training.optimizer.learning_rate"
    found = sampled(Tuner(search={key: Search(low=low, high=low * times, scale=scale)}), seed)[key]
    assert isinstance(found, float)
    assert low * (1 - 1e-9) <= found <= low * times * (1 + 1e-9)


@given(st.integers(1, 50), st.integers(1, 200), st.sampled_from(["linear", "log"]), st.integers(0, 1000))
@settings(deadline=None, max_examples=100)
def test_a_range_of_integers_gives_integers(low: int, more: int, scale: Any, seed: int) -> None:
    key = "model.embedding_dim"
    found = sampled(Tuner(search={key: Search(low=low, high=low + more, scale=scale)}), seed)[key]
    assert isinstance(found, int) and low <= found <= low + more


def test_a_step_on_a_log_scale_is_a_factor() -> None:
    tuner = Tuner(search={"training.batch_size": Search(low=512, high=4096, step=2, scale="log")})
    found = {sampled(tuner, seed)["training.batch_size"] for seed in range(40)}
    assert found == {512, 1024, 2048, 4096}
    tuner = Tuner(search={"model.id_dropout": Search(low=0, high=0.5, step=0.25)})
    assert {sampled(tuner, seed)["model.id_dropout"] for seed in range(40)} == {0, 0.25, 0.5}


def test_a_log_scale_samples_orders_of_magnitude_uniformly() -> None:
    tuner = Tuner(search={"training.optimizer.learning_rate": Search(low=1e-4, high=1e-2, scale="log")})
    found = [math.log10(sampled(tuner, seed)["training.optimizer.learning_rate"]) for seed in range(200)]
    assert 60 < sum(value < -3 for value in found) < 140


def test_hyperband_s_state_is_not_part_of_the_recipe() -> None:
    config = {"values": {"model.l2": 0.5, "tuner/epochs": 3, "tuner/bracket": 1}}
    assert recipe_values(config) == {"model.l2": 0.5}
