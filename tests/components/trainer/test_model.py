"""Training learns the structure of the data, and each key of the recipe has its documented effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from components.trainer.data.batches import batches
from components.trainer.data.training_data import TrainingData
from components.trainer.fitting.training_loop import train
from components.trainer.model.recommender import TwoTaskRecommender

World = Any
Losses = dict[str, list[float]]
Build = Callable[..., TwoTaskRecommender]
BatchOf = Callable[[TrainingData, Sequence[int]], dict[str, tf.Tensor]]

CANDIDATE_FEATURES = [{"column": "item", "kind": "id"}, {"column": "name", "kind": "text", "min_count": 1}]


def fit(world: World, data: TrainingData, **changes: Any) -> tuple[TwoTaskRecommender, Losses]:
    """One quick epoch of a changed recipe."""
    training = {"epochs": 1, "batch_size": 256, **changes.pop("training", {})}
    return train(world.recipe(training=training, **changes), data, world.transform_output)


def weights_of(model: TwoTaskRecommender, *layers: str) -> list[tf.Variable]:
    """The trained weights of the layers with these names."""
    return [weight for layer in model.submodules if layer.name in layers for weight in layer.trainable_variables]


# --- learning ---------------------------------------------------------------------------------------------------------


def test_retrieval_learns_the_items_of_a_user_s_group(world: World, all_items: Any) -> None:
    answer = all_items("recommend", user_id=world.users)["item_ids"][:, :10]
    own = [
        [item.decode().startswith(user[:2]) for item in best] for user, best in zip(world.users, answer, strict=True)
    ]
    # 8 of a user's 11 items are of the user's group; popularity alone would give a half.
    assert np.mean(own) > 0.65
    # Three quarters of the catalogue are items without interactions.
    assert np.mean([item.startswith(b"cold") for item in answer.flat]) < 0.05


def test_rating_learns_the_group_of_an_item(world: World, all_items: Any) -> None:
    unseen = [
        (user, item)
        for user in world.users
        for item in world.items
        if item.startswith("g") and item not in world.seen(user)
    ]
    expected = np.array([4.5 if user[:2] == item[:2] else 1.5 for user, item in unseen])
    users, items = zip(*unseen, strict=True)
    found = all_items("rate", user_id=users, item_id=items)["rating"]
    mean = np.mean([row["stars"] for row in world.interactions])
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.6 * np.sqrt(np.mean((mean - expected) ** 2))


def test_losses_decrease(trained: tuple[TwoTaskRecommender, Losses]) -> None:
    losses = trained[1]["loss"]
    assert len(losses) == 40
    assert losses[-1] < 0.8 * losses[0]


def test_the_same_seed_gives_the_same_model_and_another_seed_another(world: World, data: TrainingData) -> None:
    first, again, other = (fit(world, data, training={"seed": seed})[1]["loss"] for seed in (5, 5, 6))
    assert first == again
    assert first != other


# --- the two tasks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "idle", "busy"),
    [
        ({"rating_weight": 0}, ("user_bias", "item_bias", "rating_head"), ("item_popularity",)),
        ({"retrieval_weight": 0}, ("item_popularity",), ("user_bias", "item_bias")),
    ],
    ids=["retrieval alone", "rating alone"],
)
def test_a_weight_of_0_disables_a_task(
    data: TrainingData,
    weights: dict[str, float],
    idle: tuple[str, ...],
    busy: tuple[str, ...],
    untrained: Build,
    batch_of: BatchOf,
) -> None:
    model = untrained(data, model=weights)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch_of(data, list(range(50))), training=True)
    watched = {"idle": weights_of(model, *idle), "busy": weights_of(model, *busy)}
    assert watched["idle"] and watched["busy"]
    gradients = tape.gradient(loss, watched)
    assert all(gradient is None for gradient in gradients["idle"])
    assert all(gradient is not None for gradient in gradients["busy"])


def test_task_weights_multiply_the_losses(data: TrainingData, untrained: Build, batch_of: BatchOf) -> None:
    losses = {}
    for retrieval, rating in ((1, 0), (0, 1), (2, 3)):
        model = untrained(data, model={"retrieval_weight": retrieval, "rating_weight": rating, "id_dropout": 0})
        for weight in model.trainable_variables:
            weight.assign(tf.ones_like(weight) * 0.1)
        losses[retrieval, rating] = float(model.compute_loss(batch_of(data, list(range(50)))))
    assert losses[2, 3] == pytest.approx(2 * losses[1, 0] + 3 * losses[0, 1], rel=1e-4)


def test_learned_weights_start_at_the_recipe_s_and_follow_kendall_et_al(
    data: TrainingData, untrained: Build, batch_of: BatchOf
) -> None:
    batch = batch_of(data, list(range(60)))
    tasks = {"retrieval_weight": 2.0, "rating_weight": 0.7, "id_dropout": 0}
    fixed = {
        task: float(untrained(data, model={**tasks, f"{other}_weight": 0}).compute_loss(batch))
        / tasks[f"{task}_weight"]
        for task, other in (("retrieval", "rating"), ("rating", "retrieval"))
    }
    model = untrained(data, model={**tasks, "weighting": "uncertainty"})
    variances = {weight.name.split("_log")[0].split("/")[-1]: weight for weight in weights_of(model, "task_weights")}
    assert sorted(variances) == ["rating", "retrieval"]

    def expected() -> float:
        s = {task: float(variance) for task, variance in variances.items()}
        return (
            np.exp(-s["retrieval"]) * fixed["retrieval"] + s["retrieval"] / 2
            + np.exp(-s["rating"]) * fixed["rating"] / 2 + s["rating"] / 2
        )  # fmt: skip

    # exp(-s) is the weight of the softmax loss, and half of it that of the squared error.
    assert np.exp(-float(variances["retrieval"])) == pytest.approx(2.0, rel=1e-5)
    assert np.exp(-float(variances["rating"])) / 2 == pytest.approx(0.7, rel=1e-5)
    assert float(model.compute_loss(batch)) == pytest.approx(expected(), rel=1e-5)
    variances["retrieval"].assign(1.5)
    variances["rating"].assign(-0.5)
    assert float(model.compute_loss(batch)) == pytest.approx(expected(), rel=1e-5)


def test_learned_weights_converge_to_the_noise(world: World, data: TrainingData) -> None:
    model, _ = fit(world, data, model={"weighting": "uncertainty"}, training={"epochs": 30})
    (retrieval, rating) = sorted(weights_of(model, "task_weights"), key=lambda weight: "rating" in weight.name)
    # From a variance of 1/2 (a weight of 1) towards the squared error, which is larger; from 1 towards twice the loss.
    assert float(rating) > np.log(0.5) + 0.1
    assert float(retrieval) > 0.1


@pytest.mark.parametrize("idle", ["retrieval", "rating"])
def test_a_disabled_task_has_no_learned_weight(
    data: TrainingData, untrained: Build, batch_of: BatchOf, idle: str
) -> None:
    model = untrained(data, model={"weighting": "uncertainty", f"{idle}_weight": 0})
    (variance,) = weights_of(model, "task_weights")
    assert idle not in variance.name
    left_out = {"retrieval": "item_popularity", "rating": "user_bias"}[idle]
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch_of(data, list(range(50))), training=True)
    assert tape.gradient(loss, weights_of(model, left_out)) == [None]


# --- regularisation and unknowns --------------------------------------------------------------------------------------


def test_id_dropout_trains_the_oov_embedding(data: TrainingData, untrained: Build, batch_of: BatchOf) -> None:
    moved = {}
    for share in (0.0, 0.5):
        model = untrained(data, model={"id_dropout": share})
        (table,) = weights_of(model, "customer_id")
        with tf.GradientTape() as tape:
            loss = model.compute_loss(batch_of(data, list(range(200))), training=True)
        moved[share] = float(tf.norm(tf.convert_to_tensor(tape.gradient(loss, table))[0]))
    assert moved[0.0] == 0
    assert moved[0.5] > 0


def test_a_new_user_gets_a_score_between_those_of_the_users(
    data: TrainingData, trained: tuple[TwoTaskRecommender, Losses], untrained: Build
) -> None:
    # One request from every user, the unknown one first.
    query = {name: np.repeat(values[:1], data.user_count + 1, axis=0) for name, values in data.query.items()}
    query[data.user_feature] = np.arange(data.user_count + 1)
    items = tf.range(1, data.item_count + 1, dtype=tf.int64)
    scores, distances = {}, {}
    for name, model in (("before", untrained(data)), ("after", trained[0])):
        scores[name] = model.encode_query(query).retrieval.numpy() @ model.encode_items(items).retrieval.numpy().T
        distances[name] = np.abs(scores[name] - scores[name][1:].mean(axis=0)).mean(axis=1)
    assert distances["after"][1:].mean() > 5 * distances["before"][1:].mean()
    assert distances["after"][0] < distances["after"][1:].min()


HISTORY = {
    "candidate": CANDIDATE_FEATURES,
    "query": [{"column": "customer", "kind": "id"}, {"column": "item", "kind": "history", "order": "any"}],
}


@pytest.mark.parametrize("share", [0.0, 0.999999])
def test_cold_start_dropout_removes_id_history_and_bias(world: World, untrained: Build, share: float) -> None:
    features = {"features": HISTORY}
    data = world.data(world.recipe(**features))
    model = untrained(data, **features, model={"id_dropout": 0, "cold_start_dropout": share})
    (batch,) = batches(data, len(data.labels), seed=0)
    watched = weights_of(model, "customer_id"), weights_of(model, "item_history"), weights_of(model, "user_bias")
    assert all(len(weights) == 1 for weights in watched)
    for training in (True, False):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(batch, training=training)
        ids, history, bias = (
            tf.convert_to_tensor(gradient).numpy() for gradient in tape.gradient(loss, [each[0] for each in watched])
        )
        hidden = training and share > 0
        for gradient in (ids, bias):
            assert np.any(gradient[0]) == hidden
            assert np.any(gradient[1:]) != hidden
        # Rounding errors of the cumulative sums remain.
        assert (np.abs(history).max() > 1e-4) != hidden


@pytest.mark.parametrize(
    "where",
    [
        {"query_tower": {"dropout": 0.5}},
        {"candidate_tower": {"dropout": 0.5}},
        {"rating_head": {"dropout": 0.5}},
        {"rating_head": {"kind": "mlp", "dropout": 0.5, "layers": [4]}},
    ],
    ids=["query tower", "candidate tower", "dot head", "mlp head"],
)
def test_dropout_is_on_in_training_and_off_in_serving(
    data: TrainingData, where: dict[str, Any], untrained: Build, batch_of: BatchOf
) -> None:
    model = untrained(data, model={"id_dropout": 0, **where})
    for weight in model.trainable_variables:
        weight.assign(weight + 0.3)
    batch = batch_of(data, list(range(30)))
    training = {float(model.compute_loss(batch, training=True)) for _ in range(3)}
    serving = {float(model.compute_loss(batch, training=False)) for _ in range(3)}
    assert len(training) == 3
    assert len(serving) == 1


def test_text_and_multi_value_features_are_means_without_the_oov_index(
    data: TrainingData, untrained: Build, batch_of: BatchOf
) -> None:
    model = untrained(data)
    batch = {name: values[:1] for name, values in batch_of(data, [0]).items()}

    def embedded(*moods: int) -> np.ndarray:
        features = {**batch, "moods_multi_value": tf.constant([moods], tf.int64)}
        return model.encode_query(features).retrieval.numpy()

    np.testing.assert_allclose(embedded(1, 0, 0), embedded(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(embedded(1, 2), (embedded(1) + embedded(2)) / 2, rtol=1e-4, atol=1e-6)
    assert not np.allclose(embedded(1), embedded(2), atol=1e-6)
    assert np.isfinite(embedded(0, 0)).all()


# --- penalties --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidates", ["batch", "catalogue"])
def test_l2_applies_to_the_retrieval_towers_vectors(
    data: TrainingData, untrained: Build, batch_of: BatchOf, candidates: str
) -> None:
    batch = batch_of(data, list(range(40)))
    # Without a bias and with nothing normalised the factors are the towers' vectors.
    model = {"id_dropout": 0, "retrieval": {"item_bias": False, "candidates": candidates}}
    plain, penalised = (untrained(data, model={**model, "l2": l2}) for l2 in (0.0, 3.0))
    vectors = [plain.encode_query(batch).retrieval.numpy(), plain.encode_items(batch["item"]).retrieval.numpy()]
    expected = 3.0 * sum(np.square(side).sum(axis=1).mean() for side in vectors)
    found = float(penalised.compute_loss(batch)) - float(plain.compute_loss(batch))
    assert expected > 0.01
    assert found == pytest.approx(expected, rel=1e-3)


# --- where and in how many bits it runs -------------------------------------------------------------------------------


EVERYTHING: dict[str, dict[str, Any]] = {
    "dot": {"rating_head": {"inputs": "both", "dropout": 0.2}, "weighting": "uncertainty"},
    "mlp": {
        "query_tower": {"layers": [16], "cross_layers": 1, "cross_rank": 4, "activation": "gelu", "dropout": 0.1},
        "rating_head": {"kind": "mlp", "inputs": "both", "cross_layers": 1, "layers": [8]},
        "retrieval": {"uniform_negatives": 16, "hard_negatives": 20, "normalize": True, "temperature": 0.1},
    },
    "catalogue": {"retrieval": {"candidates": "catalogue"}, "l2": 0.01, "cold_start_dropout": 0.2},
}
WITH_HISTORY = {
    "candidate": CANDIDATE_FEATURES,
    "query": [
        {"column": "customer", "kind": "id"},
        {"column": "height", "kind": "normalized"},
        {"column": "item", "kind": "history", "order": "any", "labels": True},
    ],
}


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("options", EVERYTHING)
def test_mixed_precision_changes_little_and_outputs_are_float32(
    world: World, untrained: Build, policy: str, options: str
) -> None:
    changes = {"model": EVERYTHING[options], "features": WITH_HISTORY}
    data = world.data(world.recipe(**changes))
    (batch,) = batches(data, len(data.labels), seed=0)
    losses, ratings = {}, {}
    for chosen in ("float32", policy):
        tf.keras.mixed_precision.set_global_policy(chosen)
        try:
            model = untrained(data, **changes)
            with tf.GradientTape() as tape:
                loss = model.compute_loss(batch)
            query, item = model.encode_query(batch), model.encode_items(batch["item"])
            ratings[chosen] = model.predict_ratings(query, item)
        finally:
            tf.keras.mixed_precision.set_global_policy("float32")
        assert all(part.dtype == tf.float32 for part in (*query, *item, loss, ratings[chosen]))
        assert all(weight.dtype == tf.float32 for weight in model.trainable_variables)
        for gradient in tape.gradient(loss, model.trainable_variables):
            assert gradient is None or np.isfinite(tf.convert_to_tensor(gradient).numpy()).all()
        losses[chosen] = float(loss)
    assert losses[policy] == pytest.approx(losses["float32"], rel=0.01)
    np.testing.assert_allclose(ratings[policy], ratings["float32"], atol=0.05)


@pytest.mark.parametrize("options", EVERYTHING)
def test_all_variables_exist_before_the_first_step(
    data: TrainingData, untrained: Build, batch_of: BatchOf, options: str
) -> None:
    model = untrained(data, model=EVERYTHING[options])
    before = {variable.ref() for variable in model.variables}
    model.compute_loss(batch_of(data, list(range(30))), training=True)
    assert {variable.ref() for variable in model.variables} == before


@pytest.mark.slow
@pytest.mark.parametrize("options", EVERYTHING)
def test_a_distribution_strategy_trains_the_model(
    data: TrainingData, untrained: Build, batch_of: BatchOf, options: str
) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = untrained(data, model={**EVERYTHING[options], "id_dropout": 0})
        model.compile(tf.keras.optimizers.Adam(0.01))
    dataset = tf.data.Dataset.from_tensors(batch_of(data, list(range(64)))).repeat(12)
    losses = model.fit(dataset, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("options", EVERYTHING)
def test_xla_compiles_a_step(data: TrainingData, untrained: Build, batch_of: BatchOf, options: str) -> None:
    model = untrained(data, model={**EVERYTHING[options], "cold_start_dropout": 0}, training={"xla": True})
    batch = batch_of(data, list(range(40)))
    batch["positive"] = tf.constant([place % 4 > 0 for place in range(40)])

    def step() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(batch)
        gradients = tape.gradient(loss, model.trainable_variables)
        return loss, [tf.convert_to_tensor(gradient) for gradient in gradients if gradient is not None]

    loss, gradients = step()
    compiled_loss, compiled_gradients = tf.function(step, jit_compile=True)()
    assert float(compiled_loss) == pytest.approx(float(loss), rel=1e-4)
    for found, expected in zip(compiled_gradients, gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-4)
