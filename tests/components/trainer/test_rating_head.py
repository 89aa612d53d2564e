"""The rating head: initial biases, and ratings compared with the formula of each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from components.trainer.data.training_data import TrainingData
from components.trainer.model.rating import damped_means
from components.trainer.model.recommender import Encoded, TwoTaskRecommender

Build = Callable[..., TwoTaskRecommender]
BatchOf = Callable[[TrainingData, Sequence[int]], dict[str, tf.Tensor]]

HEADS: dict[str, dict[str, Any]] = {
    f"{kind} {inputs}": {"kind": kind, "inputs": inputs, "dimension": 5, "layers": [4]}
    for kind in ("dot", "mlp")
    for inputs in ("shared", "own", "both")
}


@pytest.fixture
def build(data: TrainingData, untrained: Build) -> Build:
    """`build(kind=…)`: a model of the rating task alone."""

    def make(spread: float = 0.0, **head: Any) -> TwoTaskRecommender:
        model = untrained(data, model={"retrieval_weight": 0, "id_dropout": 0, "rating_head": head})
        random = np.random.default_rng(7)
        for weight in model.trainable_variables:
            weight.assign_add(random.normal(scale=spread, size=weight.shape) if spread else tf.zeros_like(weight))
        return model

    return make


def layers(model: TwoTaskRecommender, *names: str) -> list[tf.Variable]:
    """The trained weights of the rating head's sublayers with these prefixes."""
    found = [each for each in model.rating_head.submodules if each.name.startswith(names)]
    return list({id(weight): weight for each in found for weight in each.trainable_variables}.values())


def encoded(model: TwoTaskRecommender, batch: dict[str, tf.Tensor]) -> tuple[Encoded, Encoded]:
    return model.encode_query(batch), model.encode_items(batch["item"])


def ratings(model: TwoTaskRecommender, batch: dict[str, tf.Tensor]) -> np.ndarray:
    return model.predict_ratings(*encoded(model, batch)).numpy()


def baseline(data: TrainingData, user_damping: float = 10, item_damping: float = 10) -> np.ndarray:
    """User and item means, damped by as many ratings at the global mean; a loop per user and item."""
    mean = data.labels.mean(dtype=np.float64)
    item = {
        i: (data.labels[data.items == i] - mean).sum() / ((data.items == i).sum() + item_damping)
        for i in set(data.items)
    }
    left = data.labels - mean - np.array([item[i] for i in data.items])
    user = {u: left[data.users == u].sum() / ((data.users == u).sum() + user_damping) for u in set(data.users)}
    return np.array([mean + item[i] + user[u] for i, u in zip(data.items, data.users, strict=True)])


# --- where it starts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_training_starts_at_the_damped_means(data: TrainingData, build: Build, batch_of: BatchOf, head: str) -> None:
    found = ratings(build(**HEADS[head]), batch_of(data, list(range(80))))
    np.testing.assert_allclose(found, baseline(data)[:80], atol=1e-5 if head.startswith("mlp") else 0.15)
    assert np.std(found) > 0.2


def test_the_recipe_sets_the_damping(data: TrainingData, build: Build, batch_of: BatchOf) -> None:
    batch = batch_of(data, list(range(80)))
    found = ratings(build(kind="mlp", user_damping=0, item_damping=3), batch)
    np.testing.assert_allclose(found, baseline(data, 0, 3)[:80], atol=1e-5)
    assert np.abs(found - baseline(data)[:80]).max() > 0.1


def test_the_recipe_sets_the_bias_rounds(data: TrainingData, build: Build, batch_of: BatchOf) -> None:
    batch = batch_of(data, list(range(80)))
    mean, user, item = damped_means(data, 4, 2, rounds=9)
    found = ratings(build(kind="mlp", user_damping=4, item_damping=2, bias_rounds=9), batch)
    np.testing.assert_allclose(found, mean + user[data.users[:80]] + item[data.items[:80]], atol=1e-5)
    assert np.abs(found - ratings(build(kind="mlp", user_damping=4, item_damping=2), batch)).max() > 0.01


def test_old_ratings_may_have_smaller_weights(data: TrainingData, build: Build, batch_of: BatchOf) -> None:
    batch = batch_of(data, list(range(24)))
    model = build(kind="mlp")
    squared = np.square(ratings(model, batch) - batch["label"].numpy())
    weights = np.random.default_rng(2).exponential(size=24).astype(np.float32)
    expected = (weights * squared).sum() / weights.sum()
    assert abs(expected - squared.mean()) > 0.01
    weighted = {**batch, "rating_weight": tf.constant(weights), "weight": tf.zeros(24)}
    assert float(model.compute_loss(weighted)) == pytest.approx(expected, rel=1e-4)


def test_new_users_and_items_start_at_the_mean(data: TrainingData, build: Build, batch_of: BatchOf) -> None:
    batch = batch_of(data, [0])
    new_user = {**batch, "customer_id": tf.zeros_like(batch["customer_id"]), "item": tf.zeros_like(batch["item"])}
    assert ratings(build(kind="mlp"), new_user)[0] == pytest.approx(data.labels.mean(), abs=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_without_biases_ratings_are_the_output_of_kind(
    data: TrainingData, build: Build, batch_of: BatchOf, head: str
) -> None:
    model = build(**HEADS[head], biases=False, spread=0.1)
    assert not layers(model, "user_bias", "item_bias")
    batch = batch_of(data, list(range(20)))
    query, item = encoded(model, batch)
    assert not np.any(query.bias) and not np.any(item.bias)
    if head.startswith("dot"):
        np.testing.assert_allclose(ratings(model, batch), np.sum(query.rating * item.rating, axis=1), rtol=1e-5)
    assert np.std(ratings(build(**HEADS[head], biases=False), batch)) > 0


# --- inputs -----------------------------------------------------------------------------------------------------------


def zeroed(model: TwoTaskRecommender, *names: str) -> TwoTaskRecommender:
    for weight in layers(model, *names):
        weight.assign(tf.zeros_like(weight))
    return model


def test_dot_sums_own_and_projected_shared_factors(data: TrainingData, build: Build, batch_of: BatchOf) -> None:
    batch = batch_of(data, list(range(20)))
    both, projected, own = (build(kind="dot", inputs="both", dimension=5, spread=0.3) for _ in range(3))
    zeroed(projected, "rating_query_tower", "rating_candidate_tower")
    zeroed(own, "query_projection", "item_projection")
    for side in (0, 1):
        parts = [encoded(model, batch)[side].rating.numpy() for model in (both, projected, own)]
        assert all(part.shape == (20, 5) and part.std() > 0.1 for part in parts)
        np.testing.assert_allclose(parts[0], parts[1] + parts[2], rtol=1e-4, atol=1e-5)
    query, item = encoded(both, batch)
    expected = query.bias + item.bias + np.sum(query.rating * item.rating, axis=1)
    np.testing.assert_allclose(ratings(both, batch), expected, rtol=1e-5)


@pytest.mark.parametrize(("inputs", "width"), [("shared", 8), ("own", 5), ("both", 8 + 5)])
def test_mlp_concatenates_its_inputs(
    data: TrainingData, build: Build, batch_of: BatchOf, inputs: str, width: int
) -> None:
    model = build(kind="mlp", inputs=inputs, dimension=5, layers=[4, 3], activation="tanh", cross_layers=1, spread=0.3)
    batch = batch_of(data, list(range(20)))
    query, item = encoded(model, batch)
    assert query.rating.shape == item.rating.shape == [20, width]
    both = np.concatenate([query.rating, item.rating], axis=1)
    mlp = next(each for each in model.rating_head.submodules if each.name == "mlp")
    found = [weight.numpy() for weight in mlp.trainable_variables]
    by_shape = {weight.shape: weight for weight in found}
    sizes = [2 * width, 4, 3, 1]
    crossed = both * (both @ by_shape[2 * width, 2 * width] + by_shape[(2 * width,)]) + both
    hidden = np.tanh(crossed @ by_shape[sizes[0], sizes[1]] + by_shape[(4,)])
    hidden = np.tanh(hidden @ by_shape[sizes[1], sizes[2]] + by_shape[(3,)])
    added = (hidden @ by_shape[sizes[2], 1] + by_shape[(1,)])[:, 0]
    assert len(found) == len(by_shape) == 8
    np.testing.assert_allclose(ratings(model, batch), query.bias + item.bias + added, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_ratings_train_the_retrieval_towers_only_if_shared(
    data: TrainingData, build: Build, batch_of: BatchOf, head: str
) -> None:
    model = build(**HEADS[head], spread=0.1)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch_of(data, list(range(30))))
    watched = {"shared": model.query_tower.trainable_variables, "own": layers(model, "rating_query_tower")}
    gradients = tape.gradient(loss, watched)
    for inputs, found in gradients.items():
        assert all((gradient is not None) == (head.endswith((inputs, "both"))) for gradient in found)
        assert bool(found) == (inputs == "shared" or not head.endswith("shared"))


def test_own_towers_use_the_features_they_name(data: TrainingData, build: Build, batch_of: BatchOf) -> None:
    tower = {"features": ["customer_id", "moods_multi_value"], "combine": "sum", "projection": False}
    model = build(inputs="own", query_tower=tower, spread=0.3)
    batch = batch_of(data, list(range(9)))
    factors = model.encode_query(batch).rating.numpy()
    for name in data.query:
        other = {**batch, name: tf.reverse(batch[name], axis=[0])}
        changed = np.abs(model.encode_query(other).rating.numpy() - factors).max()
        assert (changed > 1e-3) == (name in tower["features"]), name


@pytest.mark.parametrize("head", HEADS)
def test_one_query_is_broadcast_to_many_items(data: TrainingData, build: Build, batch_of: BatchOf, head: str) -> None:
    model = build(**HEADS[head], spread=0.3)
    query, item = encoded(model, batch_of(data, list(range(6))))
    crossed = model.predict_ratings(
        Encoded(*(tf.expand_dims(part, 1) for part in query)), Encoded(*(tf.expand_dims(part, 0) for part in item))
    )
    assert crossed.shape == [6, 6]
    for row in range(6):
        alone = Encoded(*(tf.repeat(part[row : row + 1], 6, axis=0) for part in query))
        np.testing.assert_allclose(crossed[row], model.predict_ratings(alone, item), rtol=1e-4, atol=1e-5)


# --- penalties --------------------------------------------------------------------------------------------------------


def test_bias_l2_is_on_the_distance_from_the_damped_means(data: TrainingData, build: Build, batch_of: BatchOf) -> None:
    batch = batch_of(data, list(range(30)))
    plain, penalised = build(), build(bias_l2=3.0)
    assert float(penalised.compute_loss(batch)) == pytest.approx(float(plain.compute_loss(batch)), rel=1e-6)
    for model in (plain, penalised):
        (user,), (item,) = layers(model, "user_bias"), layers(model, "item_bias")
        user.assign_add(tf.fill(user.shape, 0.2))
        item.assign_add(tf.fill(item.shape, -0.3))
    found = float(penalised.compute_loss(batch)) - float(plain.compute_loss(batch))
    assert found == pytest.approx(3.0 * (0.2**2 + 0.3**2), rel=1e-3)


@pytest.mark.parametrize(("head", "count"), [("dot shared", 2), ("dot own", 0), ("dot both", 2), ("mlp own", 2)])
def test_l2_applies_to_the_head_s_layers(build: Build, head: str, count: int) -> None:
    model = build(**HEADS[head], l2=0.5, spread=0.2)
    kernels = [w.numpy() for w in layers(model, "query_projection", "item_projection", "mlp") if len(w.shape) == 2]
    assert len(kernels) == count
    assert float(sum(model.losses)) == pytest.approx(0.5 * sum(np.square(kernel).sum() for kernel in kernels), rel=1e-4)


@pytest.mark.parametrize("inputs", ["own", "both"])
def test_embeddings_of_own_towers_have_a_penalty_of_their_own(
    data: TrainingData, build: Build, batch_of: BatchOf, inputs: str
) -> None:
    batch = batch_of(data, list(range(30)))
    tower = {"features": ["customer_id"], "combine": "sum", "projection": False}
    losses = {}
    for l2 in (0.0, 2.0):
        model = build(inputs=inputs, query_tower={**tower, "embedding_l2": l2}, spread=0.3)
        losses[l2] = float(model.compute_loss(batch))
    own = zeroed(model, "query_projection").encode_query(batch).rating.numpy()
    assert losses[2.0] - losses[0.0] == pytest.approx(2.0 * np.square(own).sum(axis=1).mean(), rel=1e-3)


@pytest.mark.parametrize("inputs", ["shared", "own", "both"])
def test_factor_l2_is_the_mean_over_the_batch_of_squared_factors(
    data: TrainingData, build: Build, batch_of: BatchOf, inputs: str
) -> None:
    batch = batch_of(data, list(range(30)))
    plain, penalised = (build(inputs=inputs, factor_l2=l2, spread=0.3) for l2 in (0.0, 2.0))
    squared = sum(np.square(side.rating).sum(axis=1).mean() for side in encoded(plain, batch))
    found = float(penalised.compute_loss(batch)) - float(plain.compute_loss(batch))
    assert found == pytest.approx(2.0 * squared, rel=1e-3)


# --- first-order terms ------------------------------------------------------------------------------------------------


def test_a_linear_head_has_first_order_terms(data: TrainingData, build: Build, batch_of: BatchOf) -> None:
    batch = batch_of(data, list(range(9)))
    tower = {"features": ["customer_id", "Plan_categorical"], "combine": "sum", "projection": False}
    plain, linear = (build(inputs="own", query_tower=tower, linear=on) for on in (False, True))
    np.testing.assert_allclose(encoded(linear, batch)[0].bias, encoded(plain, batch)[0].bias)
    # The id has its bias already.
    (plans,) = layers(linear, "rating_query_terms")
    terms = np.random.default_rng(3).normal(size=plans.shape).astype(np.float32)
    plans.assign(terms)
    expected = encoded(plain, batch)[0].bias + terms[batch["Plan_categorical"], 0]
    np.testing.assert_allclose(encoded(linear, batch)[0].bias, expected, rtol=1e-5)
