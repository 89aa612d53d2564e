"""Transformed examples as arrays, compared with the rows that they come from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from components.trainer.data.batches import batches
from components.trainer.data.training_data import TrainingData, index_count, read_training_data
from components.trainer.model.rating import damped_means

World = Any


def ids(world: World, feature: str) -> list[str]:
    """The ids of a vocabulary by index; index 0 is unknown."""
    return ["", *(word.decode() for word in world.transform_output.vocabulary_by_name(feature))]


def test_interactions_are_read_completely(world: World, data: TrainingData) -> None:
    users, items = ids(world, "customer_id"), ids(world, "item_id")
    found = Counter(
        (users[user], items[item], float(label))
        for user, item, label in zip(data.users, data.items, data.labels, strict=True)
    )
    assert found == Counter((row["customer"], row["item"], row["stars"]) for row in world.interactions)
    assert (data.user_count, data.item_count) == (len(world.users), len(world.items))
    assert (data.items.dtype, data.users.dtype, data.labels.dtype) == (np.int64, np.int64, np.float32)


def test_each_item_has_a_row_and_the_oov_row_is_empty(world: World, data: TrainingData) -> None:
    items = ids(world, "item_id")
    names = {row["item"]: row["name"] for row in world.catalogue}
    assert [name.decode() for name in data.display["name"]] == ["", *(names[item] for item in items[1:])]
    assert data.catalogue["item_id"].tolist() == list(range(data.item_count + 1))
    for name, values in data.catalogue.items():
        assert not values[0].any(), name


def test_an_item_outside_the_vocabulary_leaves_the_oov_row_empty(world: World, tmp_path: Path) -> None:
    # TFT keeps no id that is blank or has a line break; such an item has index 0.
    path, gzip = str(tmp_path / "catalogue.gz"), tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(path, gzip) as writer:
        files = tf.io.gfile.glob(world.files["catalogue"])
        for number, record in enumerate(tf.data.TFRecordDataset(files, compression_type="GZIP")):
            example = tf.train.Example.FromString(record.numpy())
            if number == 0:
                example.features.feature["item_id"].int64_list.value[:] = [0]
            writer.write(example.SerializeToString())
    recipe = world.recipe()
    data = read_training_data(world.files["train"], [path], world.transform_output, recipe.features, recipe.columns)
    assert data.display["name"][0] == b""
    assert not any(values[0].any() for values in data.catalogue.values())


def test_features_of_several_values_are_padded_with_0(world: World, data: TrainingData) -> None:
    words = [b"", *world.transform_output.vocabulary_by_name("tags_multi_value")]
    items = ids(world, "item_id")
    tags = {row["item"]: row["tags"] for row in world.catalogue}
    for index, row in enumerate(data.catalogue["tags_multi_value"].tolist()):
        expected = (tags.get(items[index]) or "").split("|")
        assert [words[word].decode() for word in row if word] == [tag for tag in expected if tag]
    assert data.query["moods_multi_value"].shape == (len(data.labels), 3)


def test_item_frequencies_count_interactions(world: World, data: TrainingData) -> None:
    counts = Counter(row["item"] for row in world.interactions)
    assert data.item_frequencies().tolist() == [0, *(counts[item] for item in ids(world, "item_id")[1:])]


def test_index_counts_include_the_oov_index(world: World) -> None:
    recipe = world.recipe()
    counts = {
        feature.name: index_count(feature, world.transform_output)
        for feature in (*recipe.features.query, *recipe.features.candidate)
        if feature.kind != "normalized"
    }
    data = world.data(recipe)
    for name, values in {**data.query, **data.catalogue}.items():
        if name in counts:
            assert values.min() >= 0 and values.max() < counts[name], name
    assert counts["customer_id"] == len(world.users) + 1
    assert counts["at_buckets"] == 11


def test_an_empty_split_is_an_error_that_names_its_files(world: World) -> None:
    recipe = world.recipe()
    with pytest.raises(ValueError, match="nothing-here"):
        read_training_data(
            [str(world.folder / "nothing-here*")], world.files["catalogue"], world.transform_output,
            recipe.features, recipe.columns,
        )  # fmt: skip


def test_batches_have_each_interaction_once_per_epoch_reshuffled(data: TrainingData) -> None:
    dataset = batches(data, batch_size=100, seed=3)
    orders = []
    for _ in range(2):
        epoch = list(dataset)
        assert [len(batch["label"]) for batch in epoch] == [100] * 4 + [40]
        rows = np.concatenate([np.stack([batch["customer_id"], batch["item"]], axis=1) for batch in epoch])
        assert sorted(map(tuple, rows)) == sorted(zip(data.users, data.items, strict=True))
        orders.append(rows.tolist())
    assert orders[0] != orders[1]


def test_rows_of_a_batch_stay_together(data: TrainingData) -> None:
    rows = {
        (user, item): (label, height)
        for user, item, label, height in zip(
            data.users, data.items, data.labels, data.query["height_normalized"], strict=True
        )
    }
    (batch,) = batches(data, batch_size=10_000, seed=3)
    found = zip(
        batch["customer_id"].numpy(), batch["item"].numpy(), batch["label"].numpy(),
        batch["height_normalized"].numpy(), strict=True,
    )  # fmt: skip
    for user, item, label, height in found:
        assert rows[user, item] == (label, height)


def test_damped_means_are_koren_s_baseline(data: TrainingData) -> None:
    mean, user_bias, item_bias = damped_means(data)
    labels = [float(label) for label in data.labels]
    assert mean == pytest.approx(sum(labels) / len(labels))
    for item in range(data.item_count + 1):
        rest = [label - mean for label, other in zip(labels, data.items, strict=True) if other == item]
        assert item_bias[item] == pytest.approx(sum(rest) / (10 + len(rest)), abs=1e-6)
    for user in range(data.user_count + 1):
        rest = [
            label - mean - item_bias[item]
            for label, item, other in zip(labels, data.items, data.users, strict=True)
            if other == user
        ]
        assert user_bias[user] == pytest.approx(sum(rest) / (10 + len(rest)), abs=1e-6)
    assert user_bias[0] == item_bias[0] == 0


def test_after_many_rounds_the_biases_are_the_ridge_regression_of_both_sides(data: TrainingData) -> None:
    mean, user_bias, item_bias = damped_means(data, user_damping=2, item_damping=3, rounds=200)
    users, items = np.eye(data.user_count + 1)[data.users], np.eye(data.item_count + 1)[data.items]
    damping = np.diag([2.0] * (data.user_count + 1) + [3.0] * (data.item_count + 1))
    sides = np.hstack([users, items])
    solution = np.linalg.solve(sides.T @ sides + damping, sides.T @ (data.labels - data.labels.mean()))
    np.testing.assert_allclose(mean + user_bias[data.users] + item_bias[data.items],
                               data.labels.mean() + sides @ solution, atol=1e-5)  # fmt: skip
    assert user_bias[data.users].mean() == pytest.approx(0, abs=1e-9)
    assert user_bias[0] == 0


def test_each_round_of_biases_fits_better_than_the_one_before(data: TrainingData) -> None:
    def loss(rounds: int) -> float:
        mean, user_bias, item_bias = damped_means(data, 2, 3, rounds)
        level = mean - data.labels.mean()
        errors = data.labels - mean - user_bias[data.users] - item_bias[data.items]
        rated = np.unique(data.users)
        return float(
            np.square(errors).sum() + 2 * np.square(user_bias[rated] + level).sum() + 3 * np.square(item_bias).sum()
        )

    losses = [loss(rounds) for rounds in (1, 2, 5, 20)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[1]


# --- the validation split ---------------------------------------------------------------------------------------------


def pairs(data: TrainingData) -> Counter[tuple[int, int]]:
    return Counter(zip(data.items.tolist(), data.times.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["random", "latest"])
def test_hold_out_partitions_the_rows(data: TrainingData, kind: str) -> None:
    fit, validation = data.hold_out(0.2, kind, seed=1)  # type: ignore[arg-type]
    assert len(validation.labels) == round(0.2 * len(data.labels))
    assert pairs(fit) + pairs(validation) == pairs(data)
    for half in (fit, validation):
        assert all(len(values) == len(half.labels) for values in (*half.query.values(), half.positive))


def test_latest_rows_are_held_out(data: TrainingData) -> None:
    fit, validation = data.hold_out(0.2, "latest", seed=1)
    assert fit.times.max() <= validation.times.min()


def test_another_seed_holds_out_other_rows(data: TrainingData) -> None:
    chosen = [pairs(data.hold_out(0.2, "random", seed=seed)[1]) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_users_whose_rows_are_all_held_out_are_new_users(data: TrainingData) -> None:
    fit, validation = data.hold_out(0.9, "random", seed=3)
    known = set(fit.users.tolist())
    assert not set(data.users.tolist()) <= known
    assert set(validation.users.tolist()) <= known | {0}
    assert 0 in validation.users


def test_histories_have_no_held_out_interactions(world: World) -> None:
    history = {"column": "item", "kind": "history", "order": "any"}
    recipe = world.recipe(features={"query": [*world.recipe().model_dump()["features"]["query"], history]})
    data = world.data(recipe)
    fit, validation = data.hold_out(0.3, "random", seed=5)
    trained = set(zip(fit.users.tolist(), fit.items.tolist(), strict=True))
    assert fit.histories is validation.histories
    for user in range(data.user_count + 1):
        own = fit.histories.items[fit.histories.starts[user] : fit.histories.starts[user + 1]]
        assert {(user, item) for item in own.tolist()} == {pair for pair in trained if pair[0] == user}
    windows = validation.query["item_history"]
    assert (windows[:, 2] == -1).all()
    assert (windows[:, 1] - windows[:, 0] == np.diff(fit.histories.starts)[validation.users]).all()


def test_a_validation_split_that_leaves_no_training_rows_is_rejected(data: TrainingData) -> None:
    with pytest.raises(ValueError, match=r"fraction: 0\.0001 holds out 0 of"):
        data.hold_out(0.0001, "random", seed=1)


@pytest.mark.parametrize("task", ["", "rating_"])
def test_recent_interactions_have_larger_weights(data: TrainingData, task: str) -> None:
    half_life: Any = {f"{task}recency_half_life_days": 2.0}
    (batch,) = batches(data, len(data.labels), seed=1, **half_life)
    (plain,) = batches(data, len(data.labels), seed=1)
    assert set(batch) - set(plain) == {f"{task}weight"}
    weights = batch[f"{task}weight"].numpy()
    assert weights.max() == 1.0
    age = np.sort((data.times.max() - data.times) / 86_400)
    np.testing.assert_allclose(np.sort(weights)[::-1], 0.5 ** (age / 2), rtol=1e-5)
