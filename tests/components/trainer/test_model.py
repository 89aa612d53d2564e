"""Training finds what is planted in the data, and each switch of the recipe does what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from components.trainer.model import TwoTaskRecommender
from components.trainer.training import train
from components.trainer.training_data import TrainingData

World = Any
Losses = dict[str, list[float]]


def fit(world: World, data: TrainingData, **changes: Any) -> tuple[TwoTaskRecommender, Losses]:
    """One quick epoch of a changed recipe."""
    training = {"epochs": 1, "batch_size": 256, **changes.pop("training", {})}
    return train(world.recipe(training=training, **changes), data, world.transform_output)


def weights_of(model: TwoTaskRecommender, *layers: str) -> list[tf.Variable]:
    """The trained weights of the layers with these names."""
    return [weight for layer in model.submodules if layer.name in layers for weight in layer.trainable_variables]


def rows(data: TrainingData, chosen: list[int]) -> dict[str, tf.Tensor]:
    """A batch of the interactions with these numbers."""
    batch = {name: tf.constant(values[chosen]) for name, values in data.query.items()}
    return {**batch, "item": tf.constant(data.items[chosen]), "label": tf.constant(data.labels[chosen])}


def built(world: World, data: TrainingData, **changes: Any) -> TwoTaskRecommender:
    """An untrained model."""
    recipe = world.recipe(**changes)
    tf.keras.utils.set_random_seed(3)
    model = TwoTaskRecommender(
        recipe.model, recipe.features.query, recipe.features.candidate, data, world.transform_output
    )
    model.compute_loss(rows(data, [0, 1]))
    return model


# --- learning ---------------------------------------------------------------------------------------------------------


def test_retrieval_learns_which_group_s_items_a_user_takes(world: World, all_items: Any) -> None:
    answer = all_items("recommend", user_id=world.users)["item_ids"][:, :10]
    own = [
        [item.decode().startswith(user[:2]) for item in best] for user, best in zip(world.users, answer, strict=True)
    ]
    # Of what users took, 8 of 11 are their own group's; popularity alone would give a half.
    assert np.mean(own) > 0.7
    # Three quarters of the catalogue are items that nobody took.
    assert np.mean([item.startswith(b"cold") for item in answer.flat]) < 0.05


def test_rating_learns_whom_an_item_is_for(world: World, all_items: Any) -> None:
    unseen = [
        (user, item)
        for user in world.users
        for item in world.items
        if item.startswith("g") and item not in world.seen(user)
    ]
    wanted = np.array([4.5 if user[:2] == item[:2] else 1.5 for user, item in unseen])
    users, items = zip(*unseen, strict=True)
    found = all_items("rate", user_id=users, item_id=items)["rating"]
    mean = np.mean([row["stars"] for row in world.interactions])
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.6 * np.sqrt(np.mean((mean - wanted) ** 2))


def test_losses_fall(trained: tuple[TwoTaskRecommender, Losses]) -> None:
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
def test_a_weight_of_0_switches_a_task_off(
    world: World, data: TrainingData, weights: dict[str, float], idle: tuple[str, ...], busy: tuple[str, ...]
) -> None:
    model = built(world, data, model=weights)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(rows(data, list(range(50))), training=True)
    watched = {"idle": weights_of(model, *idle), "busy": weights_of(model, *busy)}
    assert watched["idle"] and watched["busy"]
    gradients = tape.gradient(loss, watched)
    assert all(gradient is None for gradient in gradients["idle"])
    assert all(gradient is not None for gradient in gradients["busy"])


def test_weights_weigh_the_losses(world: World, data: TrainingData) -> None:
    losses = {}
    for retrieval, rating in ((1, 0), (0, 1), (2, 3)):
        model = built(world, data, model={"retrieval_weight": retrieval, "rating_weight": rating, "id_dropout": 0})
        for weight in model.trainable_variables:
            weight.assign(tf.ones_like(weight) * 0.1)
        losses[retrieval, rating] = float(model.compute_loss(rows(data, list(range(50)))))
    assert losses[2, 3] == pytest.approx(2 * losses[1, 0] + 3 * losses[0, 1], rel=1e-4)


# --- negatives --------------------------------------------------------------------------------------------------------


def softmax_mass(model: TwoTaskRecommender, batch: dict[str, tf.Tensor]) -> np.ndarray:
    """How much of the softmax each item [N + 1] gets, averaged over the rows of a batch, in an all-zero model.

    The derivative of a softmax loss by an item's logit is its mass, less the share of rows it is the true item of.
    """
    for weight in model.trainable_variables:
        weight.assign(tf.zeros_like(weight))
    (popularity,) = weights_of(model, "item_popularity")
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch)
    gradient = tf.convert_to_tensor(tape.gradient(loss, popularity)).numpy()[:, 0]
    items = batch["item"].numpy()
    return gradient + np.bincount(items, minlength=len(gradient)) / len(items)


def one_row_of_each(data: TrainingData, items: list[int]) -> dict[str, tf.Tensor]:
    return rows(data, [int(np.flatnonzero(data.items == item)[0]) for item in items])


RETRIEVAL_ONLY = {"rating_weight": 0, "id_dropout": 0}


@pytest.mark.parametrize("corrected", [True, False])
def test_log_q_correction_makes_up_for_how_often_an_item_is_a_negative(
    world: World, data: TrainingData, corrected: bool
) -> None:
    frequencies = data.item_frequencies()
    often, seldom = int(frequencies.argmax()), int(np.where(frequencies >= 8, frequencies, 10**6).argmin())
    assert frequencies[often] > 2 * frequencies[seldom]
    model = built(world, data, model={**RETRIEVAL_ONLY, "retrieval": {"log_q_correction": corrected}})
    mass = softmax_mass(model, one_row_of_each(data, [often, seldom]))
    ratio = mass[seldom] / mass[often]
    if corrected:
        # Drawn more often and weighed less by the same factor, but for the smoothing of rare counts.
        assert ratio == pytest.approx(frequencies[often] / frequencies[seldom], rel=0.15)
    else:
        assert ratio == pytest.approx(1, rel=1e-4)


def test_an_accidental_hit_gets_no_softmax_mass(world: World, data: TrainingData) -> None:
    same = np.flatnonzero(data.items == data.items[0])[:4].tolist()
    assert len(same) == 4
    losses = {}
    for removed in (True, False):
        model = built(world, data, model={**RETRIEVAL_ONLY, "retrieval": {"remove_accidental_hits": removed}})
        losses[removed] = float(model.compute_loss(rows(data, same)))
    # Four copies of one item: without accidental hits nothing is left to confuse it with; with them it is one of four.
    assert losses[True] == pytest.approx(0, abs=1e-4)
    assert losses[False] == pytest.approx(np.log(4), abs=1e-3)


def test_retrieval_loss_does_not_grow_with_the_batch(world: World, data: TrainingData) -> None:
    model = built(world, data, model=RETRIEVAL_ONLY)
    chosen = list(range(40))
    twice = float(model.compute_loss(rows(data, chosen * 2)))
    assert twice == pytest.approx(float(model.compute_loss(rows(data, chosen))), rel=0.3)


# --- regularisation and unknowns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [{"l2": 10.0}, {"rating_head": {"l2": 10.0}}], ids=["towers", "biases"])
def test_l2_makes_the_loss_larger(world: World, data: TrainingData, where: dict[str, Any]) -> None:
    losses = []
    for changes in ({"id_dropout": 0}, {"id_dropout": 0, **where}):
        model = built(world, data, model=changes)
        loss = model.compute_loss(rows(data, list(range(100))), training=True)
        losses.append(float(loss) + float(sum(model.losses)))
    assert losses[1] > losses[0] + 0.1


def test_id_dropout_teaches_what_to_answer_to_strangers(world: World, data: TrainingData) -> None:
    moved = {}
    for share in (0.0, 0.5):
        model = built(world, data, model={"id_dropout": share})
        (table,) = weights_of(model, "customer_id")
        with tf.GradientTape() as tape:
            loss = model.compute_loss(rows(data, list(range(200))), training=True)
        moved[share] = float(tf.norm(tf.convert_to_tensor(tape.gradient(loss, table))[0]))
    assert moved[0.0] == 0
    assert moved[0.5] > 0


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
def test_dropout_is_on_in_training_and_off_in_serving(world: World, data: TrainingData, where: dict[str, Any]) -> None:
    model = built(world, data, model={"id_dropout": 0, **where})
    for weight in model.trainable_variables:
        weight.assign(weight + 0.3)
    batch = rows(data, list(range(30)))
    training = {float(model.compute_loss(batch, training=True)) for _ in range(3)}
    serving = {float(model.compute_loss(batch, training=False)) for _ in range(3)}
    assert len(training) == 3
    assert len(serving) == 1


def test_text_and_lists_are_the_mean_of_their_known_values(world: World, data: TrainingData) -> None:
    model = built(world, data)
    batch = {name: values[:1] for name, values in rows(data, [0]).items()}

    def embedded(*moods: int) -> np.ndarray:
        features = {**batch, "moods_multi_value": tf.constant([moods], tf.int64)}
        return model.encode_query(features).retrieval.numpy()

    np.testing.assert_allclose(embedded(1, 0, 0), embedded(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(embedded(1, 2), (embedded(1) + embedded(2)) / 2, rtol=1e-4, atol=1e-6)
    assert not np.allclose(embedded(1), embedded(2), atol=1e-6)
    assert np.isfinite(embedded(0, 0)).all()
