"""Towers, compared with a computation in NumPy from their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from components.trainer.data.training_data import TrainingData
from components.trainer.model.recommender import TwoTaskRecommender

Build = Callable[..., TwoTaskRecommender]
BatchOf = Callable[[TrainingData, Sequence[int]], dict[str, tf.Tensor]]

PLAIN: dict[str, Any] = {"retrieval": {"item_bias": False}, "id_dropout": 0}
BARE = {"projection": False, "combine": "sum"}


@pytest.fixture
def build(data: TrainingData, untrained: Build) -> Build:
    """`build(candidate_tower=…)`: a model whose retrieval factors are the towers' vectors, with weights far from 0."""

    def make(**model: Any) -> TwoTaskRecommender:
        made = untrained(data, model={**PLAIN, **model})
        random = np.random.default_rng(7)
        for weight in made.trainable_variables:
            weight.assign(random.normal(scale=0.5, size=weight.shape))
        return made

    return make


def weights(layer: tf.keras.layers.Layer, *names: str) -> list[np.ndarray]:
    """The trained weights of the sublayers with these names or prefixes, in the order of creation."""
    found = [each for name in names for each in layer.submodules if each.name == name or each.name.startswith(name)]
    unique = list({id(weight): weight for each in found for weight in each.trainable_variables}.values())
    return [weight.numpy() for weight in unique]


def items_vectors(model: TwoTaskRecommender, items: Sequence[int]) -> np.ndarray:
    return model.encode_items(tf.constant(items, tf.int64)).retrieval.numpy()


# --- features and how they meet ---------------------------------------------------------------------------------------


def test_without_projection_an_id_s_vector_is_its_embedding(build: Build) -> None:
    model = build(candidate_tower={"features": ["item_id"], "projection": False})
    (table,) = weights(model.candidate_tower, "item_id")
    np.testing.assert_allclose(items_vectors(model, [0, 3, 7]), table[[0, 3, 7]], rtol=1e-6)


def test_a_sum_adds_embeddings_and_numbers_times_a_learned_vector(
    data: TrainingData, build: Build, batch_of: BatchOf
) -> None:
    names = ["customer_id", "height_normalized"]
    model = build(query_tower={**BARE, "features": names})
    batch = batch_of(data, list(range(9)))
    ids, direction = (weights(model.query_tower, name)[0] for name in names)
    expected = ids[batch["customer_id"]] + batch["height_normalized"].numpy()[:, None] * direction
    np.testing.assert_allclose(model.encode_query(batch).retrieval, expected, rtol=1e-4, atol=1e-6)


def test_concatenated_numbers_have_width_1(data: TrainingData, build: Build, batch_of: BatchOf) -> None:
    names = ["customer_id", "height_normalized"]
    model = build(query_tower={"features": names})
    batch = batch_of(data, list(range(9)))
    (ids,) = weights(model.query_tower, "customer_id")
    kernel, bias = weights(model.query_tower, "projection")
    combined = np.concatenate([ids[batch["customer_id"]], batch["height_normalized"].numpy()[:, None]], axis=1)
    assert kernel.shape == (9, 8)
    np.testing.assert_allclose(model.encode_query(batch).retrieval, combined @ kernel + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_a_tower_uses_only_the_features_it_names(
    data: TrainingData, build: Build, batch_of: BatchOf, combine: str
) -> None:
    batch = batch_of(data, list(range(9)))
    model = build(query_tower={"features": ["customer_id", "Plan_categorical"], "combine": combine})
    vectors = model.encode_query(batch).retrieval.numpy()
    assert len(weights(model.query_tower, "age", "moods", "at", "height")) == 0
    for name in data.query:
        other = {**batch, name: tf.reverse(batch[name], axis=[0])}
        changed = np.abs(model.encode_query(other).retrieval.numpy() - vectors).max()
        assert (changed > 1e-3) == (name in ("customer_id", "Plan_categorical")), name


def test_output_dim_is_the_width_of_both_towers_vectors(data: TrainingData, build: Build, batch_of: BatchOf) -> None:
    model = build(embedding_dim=6, output_dim=11)
    assert model.encode_query(batch_of(data, [0])).retrieval.shape == [1, 11]
    assert model.encode_items(tf.constant([1, 2], tf.int64)).retrieval.shape == [2, 11]
    (table,) = weights(model.candidate_tower, "item_id")
    assert table.shape[1] == 6


# --- layers -----------------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "linear": lambda x: x,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_layers_and_a_projection(build: Build, activation: str) -> None:
    model = build(candidate_tower={"features": ["item_id"], "layers": [5, 3], "activation": activation})
    (vectors,) = weights(model.candidate_tower, "item_id")
    first, b1, second, b2, last, b3 = weights(model.candidate_tower, "hidden", "projection")
    act = ACTIVATIONS[activation]
    expected = act(act(vectors @ first + b1) @ second + b2) @ last + b3
    np.testing.assert_allclose(items_vectors(model, range(20)), expected[:20], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_cross_layers_follow_dcn_v2(build: Build, rank: int | None, count: int) -> None:
    tower = {"features": ["item_id"], "projection": False, "cross_layers": count, "cross_rank": rank}
    model = build(candidate_tower=tower)
    (first,) = weights(model.candidate_tower, "item_id")
    found = weights(model.candidate_tower, "cross")
    size = 2 if rank is None else 3
    assert len(found) == size * count
    expected = first
    for place in range(count):
        *matrices, bias = found[size * place :][:size]
        product = expected
        for matrix in matrices:
            product = product @ matrix
        expected = first * (product + bias) + expected
    assert rank is None or found[0].shape == (8, rank)
    np.testing.assert_allclose(items_vectors(model, range(20)), expected[:20], rtol=1e-3, atol=1e-3)


def test_cross_layers_come_before_dense_ones(build: Build) -> None:
    model = build(candidate_tower={"features": ["item_id"], "projection": False, "cross_layers": 1, "layers": [8]})
    (first,) = weights(model.candidate_tower, "item_id")
    matrix, bias = weights(model.candidate_tower, "cross")
    kernel, last = weights(model.candidate_tower, "hidden")
    expected = np.maximum((first * (first @ matrix + bias) + first) @ kernel + last, 0)
    np.testing.assert_allclose(items_vectors(model, range(20)), expected[:20], rtol=1e-3, atol=1e-3)


# --- dropout and penalties --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tower",
    [{"projection": False}, {}, {"cross_layers": 1}, {"layers": [8]}],
    ids=["bare", "projected", "crossed", "deep"],
)
def test_dropout_applies_in_training_only(build: Build, tower: dict[str, Any]) -> None:
    model = build(candidate_tower={"features": ["item_id"], "dropout": 0.5, **tower})
    items = tf.range(1, 60, dtype=tf.int64)
    serving = model.encode_items(items).retrieval.numpy()
    np.testing.assert_array_equal(model.encode_items(items).retrieval, serving)
    training = model.encode_items(items, training=True).retrieval.numpy()
    assert np.abs(training - serving).max() > 0.1
    if tower == {"projection": False}:
        # What stays is scaled up, so that the mean stays too.
        left = training != 0
        assert left.mean() == pytest.approx(0.5, abs=0.1)
        np.testing.assert_allclose(training[left], 2 * serving[left], rtol=1e-5)


@pytest.mark.parametrize("side", ["query_tower", "candidate_tower"])
def test_l2_applies_to_the_layers_weights(build: Build, side: str) -> None:
    tower = {"layers": [4], "cross_layers": 2, "cross_rank": 2, "l2": 0.1}
    model = build(**{side: tower})
    kernels = [weight for weight in weights(getattr(model, side), "cross", "hidden", "projection") if weight.ndim == 2]
    # Two low-rank cross layers, one hidden layer, the projection.
    assert len(kernels) == 2 * 2 + 1 + 1
    assert float(sum(model.losses)) == pytest.approx(0.1 * sum(np.square(kernel).sum() for kernel in kernels), rel=1e-4)
    assert build(**{side: {**tower, "l2": 0}}).losses == []


@pytest.mark.parametrize("candidates", ["batch", "catalogue"])
def test_embedding_l2_is_the_mean_over_the_batch_of_squared_embeddings(
    data: TrainingData, build: Build, batch_of: BatchOf, candidates: str
) -> None:
    batch = batch_of(data, [0, 1, 2, 3])
    towers = {
        "query_tower": {"features": ["customer_id", "Plan_categorical", "height_normalized"]},
        "candidate_tower": {"features": ["item_id"]},
    }
    losses = {}
    for l2 in (0.0, 2.0):
        model = build(
            **{name: {**tower, "embedding_l2": l2} for name, tower in towers.items()},
            retrieval={"candidates": candidates, "item_bias": False},
        )
        losses[l2] = float(model.compute_loss(batch))
    (users,) = weights(model.query_tower, "customer_id")
    (plans,) = weights(model.query_tower, "Plan")
    (items,) = weights(model.candidate_tower, "item_id")
    squared = (
        np.square(users[batch["customer_id"]]) + np.square(plans[batch["Plan_categorical"]])
        + np.square(items[batch["item"]])
    )  # fmt: skip
    assert losses[2.0] - losses[0.0] == pytest.approx(2.0 * squared.sum(axis=1).mean(), rel=1e-3)
