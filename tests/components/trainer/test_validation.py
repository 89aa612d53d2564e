"""Metrics on the validation split, compared with TFRS's top-k metric and plain Python."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from components.trainer.data.batches import batches
from components.trainer.data.training_data import TrainingData
from components.trainer.fitting import validation
from components.trainer.fitting.validation import ValidationMetrics
from components.trainer.model.recommender import Encoded, TwoTaskRecommender

World = Any
Trained = tuple[TwoTaskRecommender, Any]


@pytest.fixture(scope="module")
def held(data: TrainingData) -> TrainingData:
    """A validation split with the histories of the rows to train on."""
    return data.hold_out(0.3, "random", seed=2)[1]


def scores_and_ratings(model: TwoTaskRecommender, held: TrainingData) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Scores [R, N + 1] and ratings [R] of the validation rows, in the order of the returned batch."""
    (batch,) = batches(held, len(held.labels), seed=1)
    query, items = model.encode_query(batch), model.encode_items(tf.range(held.item_count + 1, dtype=tf.int64))
    own = Encoded(*(tf.gather(part, batch["item"]) for part in items))
    scores = tf.matmul(query.retrieval, items.retrieval, transpose_b=True).numpy()
    return scores, model.predict_ratings(query, own).numpy(), batch


def seen_by(held: TrainingData, user: int) -> set[int]:
    return set(held.histories.items[held.histories.starts[user] : held.histories.starts[user + 1]].tolist())


def place(scores: np.ndarray, item: int, left_out: set[int]) -> int:
    """Rank of `item` among the candidates, with equal scores ordered by index."""
    candidates = [index for index in range(1, len(scores)) if index == item or index not in left_out]
    return sorted(candidates, key=lambda index: -scores[index]).index(item)


def test_metrics_equal_those_of_a_full_sort(trained: Trained, held: TrainingData) -> None:
    scores, ratings, batch = scores_and_ratings(trained[0], held)
    users, items = batch[held.user_feature].numpy(), batch["item"].numpy()
    found = ValidationMetrics(trained[0], held).compute()
    ranks = [place(row, item, set()) for row, item in zip(scores, items, strict=True)]
    unseen = [place(row, item, seen_by(held, user)) for row, item, user in zip(scores, items, users, strict=True)]
    assert found["top_100_accuracy"] == pytest.approx(np.mean([rank < 100 for rank in ranks]))
    assert found["top_100_accuracy_unseen"] == pytest.approx(np.mean([rank < 100 for rank in unseen]))
    assert found["rmse"] == pytest.approx(math.sqrt(np.mean((ratings - batch["label"].numpy()) ** 2)), rel=1e-5)
    # The world has 130 items, and the ranks that matter here are lower.
    assert any(one != other for one, other in zip(ranks, unseen, strict=True))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_top_k_equals_that_of_tfrs(
    trained: Trained, held: TrainingData, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "TOP_K", k)
    found = ValidationMetrics(trained[0], held).compute()["top_100_accuracy"]
    (batch,) = batches(held, len(held.labels), seed=1)
    ids = tf.range(1, held.item_count + 1, dtype=tf.int64)
    candidates = tf.data.Dataset.from_tensors((ids, trained[0].encode_items(ids).retrieval))
    top_k = tfrs.metrics.FactorizedTopK(candidates, ks=[k])
    own = trained[0].encode_items(batch["item"]).retrieval
    top_k.update_state(trained[0].encode_query(batch).retrieval, own, true_candidate_ids=batch["item"])
    assert 0 < found < 1
    assert found == pytest.approx(float(top_k.result()[0]), abs=1e-6)


def test_metrics_do_not_depend_on_the_batch_size(
    trained: Trained, held: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ValidationMetrics(trained[0], held).compute()
    monkeypatch.setattr(validation, "MAX_SCORES", 7 * (held.item_count + 1))
    assert ValidationMetrics(trained[0], held).compute() == pytest.approx(whole)


def test_ratings_are_clipped_as_in_the_served_model(trained: Trained, held: TrainingData) -> None:
    _, ratings, batch = scores_and_ratings(trained[0], held)
    found = ValidationMetrics(trained[0], held, bounds=(2.0, 3.0)).compute()["rmse"]
    clipped = np.clip(ratings, 2.0, 3.0)
    assert found == pytest.approx(math.sqrt(np.mean((clipped - batch["label"].numpy()) ** 2)), rel=1e-5)


def test_sampled_negatives_count_for_ratings_only(trained: Trained, held: TrainingData) -> None:
    positive = np.arange(len(held.labels)) % 3 > 0
    found = ValidationMetrics(trained[0], dataclasses.replace(held, positive=positive)).compute()
    only = held._rows(np.flatnonzero(positive))
    expected = ValidationMetrics(trained[0], only).compute()
    assert found["top_100_accuracy"] == pytest.approx(expected["top_100_accuracy"])
    assert found["rmse"] == pytest.approx(ValidationMetrics(trained[0], held).compute()["rmse"])
    assert found["rmse"] != pytest.approx(expected["rmse"], abs=1e-6)


def test_scores_that_are_not_finite_are_no_hits(world: World, data: TrainingData, held: TrainingData) -> None:
    recipe = world.recipe()
    features = recipe.features
    model = TwoTaskRecommender(recipe.model, features.query, features.candidate, data, world.transform_output)
    measured = ValidationMetrics(model, held)
    assert measured.compute()["top_100_accuracy"] > 0
    for variable in model.query_tower.trainable_variables:
        variable.assign(tf.fill(variable.shape, float("nan")))
    assert measured.compute()["top_100_accuracy"] == measured.compute()["top_100_accuracy_unseen"] == 0
