"""The retrieval loss with each choice of candidates and weights, compared with NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from components.trainer.data.training_data import TrainingData
from components.trainer.fitting.training_loop import train
from components.trainer.model.recommender import TwoTaskRecommender
from components.trainer.model.retrieval import BatchSoftmax

World = Any
Build = Callable[..., TwoTaskRecommender]
BatchOf = Callable[[TrainingData, Sequence[int]], dict[str, tf.Tensor]]

RETRIEVAL_ONLY: dict[str, Any] = {"rating_weight": 0, "id_dropout": 0}


@pytest.fixture
def build(data: TrainingData, untrained: Build) -> Build:
    """`build(normalize=…)`: a model of the retrieval task alone, with vectors that make a difference."""

    def make(**retrieval: Any) -> TwoTaskRecommender:
        model = untrained(data, model={**RETRIEVAL_ONLY, "retrieval": retrieval})
        random = np.random.default_rng(7)
        for weight in model.trainable_variables:
            weight.assign_add(random.normal(scale=0.2, size=weight.shape))
        return model

    return make


def item_bias(model: TwoTaskRecommender) -> tf.Variable:
    (weight,) = [
        weight for layer in model.submodules if layer.name == "item_popularity" for weight in layer.trainable_variables
    ]
    return weight


def scores(model: TwoTaskRecommender, batch: dict[str, tf.Tensor], items: Sequence[int]) -> np.ndarray:
    """float64 [batch, items]"""
    query = model.encode_query(batch).retrieval.numpy().astype(np.float64)
    return query @ model.encode_items(tf.constant(items, tf.int64)).retrieval.numpy().T


def softmax_losses(logits: np.ndarray, true: Sequence[int]) -> np.ndarray:
    """Loss of each row of logits [rows, candidates], with the positive `true`; -inf is no candidate."""
    return np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(logits)), true]


def hardest(logits: np.ndarray, true: Sequence[int], count: int) -> np.ndarray:
    """The same without all negatives but the `count` highest of each row."""
    kept = np.full_like(logits, -np.inf)
    for row, (values, own) in enumerate(zip(logits, true, strict=True)):
        negatives = [place for place in np.argsort(-values, kind="stable") if place != own][:count]
        kept[row, [own, *negatives]] = values[[own, *negatives]]
    return kept


def shares(data: TrainingData) -> np.ndarray:
    counted = np.bincount(data.items, minlength=data.item_count + 1) + 1
    return counted / counted.sum()


# --- candidates of a batch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hits_removed", [True, False])
@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("hard", [None, 5])
@pytest.mark.parametrize("drawn", [0, 30])
def test_the_batch_loss_follows_the_formula(
    data: TrainingData,
    build: Build,
    batch_of: BatchOf,
    monkeypatch: pytest.MonkeyPatch,
    hits_removed: bool,
    corrected: bool,
    hard: int | None,
    drawn: int,
) -> None:
    batch = batch_of(data, list(range(24)))
    items = batch["item"].numpy()
    assert len(set(items)) < len(items)
    # Some sampled negatives are in the batch, and some are duplicates.
    extra = [*items[:3], *np.random.default_rng(1).integers(1, data.item_count + 1, drawn)][:drawn]
    monkeypatch.setattr(
        BatchSoftmax, "sample_negatives", lambda self, training: tf.constant(extra, tf.int64, shape=[len(extra)])
    )
    model = build(
        remove_accidental_hits=hits_removed, log_q_correction=corrected, hard_negatives=hard, uniform_negatives=drawn
    )
    candidates = np.array([*items, *extra], np.int64)
    logits = scores(model, batch, candidates)
    if corrected:
        # The expected number of candidates of an item: by its probability in the batch, uniform among the negatives.
        logits -= np.log((24 * shares(data)[candidates] + drawn / data.item_count) / (24 + drawn))
    true = np.arange(24)
    if hits_removed:
        logits[(candidates[None, :] == items[:, None]) & (np.arange(len(candidates)) != true[:, None])] = -np.inf
    if hard is not None:
        logits = hardest(logits, true, hard)
    assert float(model.compute_loss(batch)) == pytest.approx(softmax_losses(logits, true).mean(), rel=1e-4)


def test_rare_items_of_a_large_catalogue_are_corrected(
    data: TrainingData, build: Build, batch_of: BatchOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    frequencies = np.full(data.item_count + 1, 1e9)
    batch = batch_of(data, list(range(24)))
    items = batch["item"].numpy()
    frequencies[items[0]], frequencies[items[1]] = 2_000, 100_000
    monkeypatch.setattr(TrainingData, "item_frequencies", lambda self: frequencies)
    model = build(remove_accidental_hits=False)
    logits = scores(model, batch, items) - np.log(frequencies[items] + 1)
    assert float(model.compute_loss(batch)) == pytest.approx(softmax_losses(logits, np.arange(24)).mean(), rel=1e-4)


def test_uniform_negatives_are_resampled_in_training_only(data: TrainingData, build: Build, batch_of: BatchOf) -> None:
    batch = batch_of(data, [0, 1, 2])
    model = build(uniform_negatives=2000, log_q_correction=False)

    def candidate_counts(training: bool) -> np.ndarray:
        """Number of times that each item is a candidate: its mass in a softmax of equal logits."""
        for weight in model.trainable_variables:
            weight.assign(tf.zeros_like(weight))
        with tf.GradientTape() as tape:
            loss = model.compute_loss(batch, training=training)
        return tf.convert_to_tensor(tape.gradient(loss, item_bias(model))).numpy()[:, 0]

    found = candidate_counts(training=True)
    others = np.setdiff1d(np.arange(1, data.item_count + 1), batch["item"])
    assert found[0] == 0
    assert (found[others] > 0).all()
    # 2000 draws from 130 items: 15.4 each on average, with a standard deviation of 3.9.
    assert found[others].std() / found[others].mean() == pytest.approx((data.item_count / 2000) ** 0.5, rel=0.3)
    assert not np.array_equal(found, candidate_counts(training=True))
    np.testing.assert_array_equal(candidate_counts(training=False), candidate_counts(training=False))


def test_uniform_negatives_lower_the_scores_of_items_without_interactions(world: World, data: TrainingData) -> None:
    cold = np.flatnonzero(data.item_frequencies() == 0)[1:]
    moved = {}
    for drawn in (0, 64):
        recipe = world.recipe(
            model={"retrieval": {"uniform_negatives": drawn}}, training={"epochs": 2, "batch_size": 128}
        )
        model, _ = train(recipe, data, world.transform_output)
        bias = item_bias(model).numpy()[:, 0]
        moved[drawn] = np.abs(bias[cold] - bias[cold][0]).max()
    assert moved[0] == 0
    assert moved[64] > 0


@pytest.mark.parametrize("corrected", [True, False])
def test_log_q_correction_cancels_the_sampling_probability(
    data: TrainingData, build: Build, batch_of: BatchOf, corrected: bool
) -> None:
    frequencies = data.item_frequencies()
    often, seldom = int(frequencies.argmax()), int(np.where(frequencies >= 8, frequencies, 10**6).argmin())
    assert frequencies[often] > 2 * frequencies[seldom]
    model = build(log_q_correction=corrected)
    for weight in model.trainable_variables:
        weight.assign(tf.zeros_like(weight))
    batch = batch_of(data, [int(np.flatnonzero(data.items == item)[0]) for item in (often, seldom)])
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch)
    # The derivative of a softmax loss by an item's logit is its mass, less the share of rows it is the true item of.
    mass = tf.convert_to_tensor(tape.gradient(loss, item_bias(model))).numpy()[:, 0] + np.bincount(
        batch["item"], minlength=data.item_count + 1
    ) / len(batch["item"])
    # Drawn more often and weighed less by the same factor, but for the smoothing of rare counts.
    expected = frequencies[often] / frequencies[seldom] if corrected else 1.0
    assert mass[seldom] / mass[often] == pytest.approx(expected, rel=0.15 if corrected else 1e-4)


def test_an_accidental_hit_gets_no_softmax_mass(data: TrainingData, build: Build, batch_of: BatchOf) -> None:
    same = np.flatnonzero(data.items == data.items[0])[:4].tolist()
    assert len(same) == 4
    losses = {
        removed: float(build(remove_accidental_hits=removed).compute_loss(batch_of(data, same)))
        for removed in (True, False)
    }
    # Four copies of one item: without accidental hits nothing is left to confuse it with; with them it is one of four.
    assert losses[True] == pytest.approx(0, abs=1e-4)
    assert losses[False] == pytest.approx(np.log(4), abs=1e-3)


def test_retrieval_loss_does_not_grow_with_the_batch(data: TrainingData, build: Build, batch_of: BatchOf) -> None:
    model = build()
    chosen = list(range(40))
    twice = float(model.compute_loss(batch_of(data, chosen * 2)))
    assert twice == pytest.approx(float(model.compute_loss(batch_of(data, chosen))), rel=0.3)


# --- the whole catalogue ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [None, 1, 5, 10_000])
def test_the_catalogue_loss_follows_the_formula(
    data: TrainingData, build: Build, batch_of: BatchOf, hard: int | None
) -> None:
    model = build(candidates="catalogue", hard_negatives=hard)
    batch = batch_of(data, list(range(24)))
    true = batch["item"].numpy() - 1
    logits = scores(model, batch, range(1, data.item_count + 1))
    if hard is not None:
        logits = hardest(logits, true, hard)
    assert float(model.compute_loss(batch)) == pytest.approx(softmax_losses(logits, true).mean(), rel=1e-4)


@pytest.mark.parametrize("rating_weight", [0, 1])
def test_the_catalogue_is_embedded_once_for_both_tasks(
    data: TrainingData, untrained: Build, batch_of: BatchOf, monkeypatch: pytest.MonkeyPatch, rating_weight: int
) -> None:
    model = untrained(data, model={"retrieval": {"candidates": "catalogue"}, "rating_weight": rating_weight})
    embedded = []
    call = model.candidate_tower.call

    def counted(features: dict[str, tf.Tensor], training: bool = False) -> Any:
        embedded.append(len(features["item_id"]))
        return call(features, training)

    monkeypatch.setattr(model.candidate_tower, "call", counted)
    model.compute_loss(batch_of(data, list(range(300))), training=True)
    assert embedded == [data.item_count + 1]


@pytest.mark.parametrize("candidates", ["batch", "catalogue"])
def test_both_kinds_of_candidates_give_the_rating_head_the_batch_s_items(
    data: TrainingData, untrained: Build, batch_of: BatchOf, candidates: str
) -> None:
    # The weight of the retrieval loss is close to 0, so that the loss is the squared error.
    model = untrained(data, model={"id_dropout": 0, "retrieval_weight": 1e-9, "retrieval": {"candidates": candidates}})
    batch = batch_of(data, list(range(50)))
    ratings = model.predict_ratings(model.encode_query(batch), model.encode_items(batch["item"])).numpy()
    expected = np.square(ratings - batch["label"].numpy()).mean()
    assert float(model.compute_loss(batch)) == pytest.approx(expected, rel=1e-5)


# --- weights and negatives of implicit data ---------------------------------------------------------------------------


@pytest.mark.parametrize("candidates", ["batch", "catalogue"])
def test_weights_multiply_the_rows_losses(data: TrainingData, build: Build, batch_of: BatchOf, candidates: str) -> None:
    model = build(candidates=candidates)
    batch = batch_of(data, list(range(24)))
    weights = np.random.default_rng(2).exponential(size=24).astype(np.float32)
    items = batch["item"].numpy()
    if candidates == "catalogue":
        losses = softmax_losses(scores(model, batch, range(1, data.item_count + 1)), items - 1)
    else:
        logits = scores(model, batch, items) - np.log(shares(data)[items])
        logits[(items[None, :] == items[:, None]) & ~np.eye(24, dtype=bool)] = -np.inf
        losses = softmax_losses(logits, np.arange(24))
    expected = (weights * losses).sum() / weights.sum()
    assert abs(expected - losses.mean()) > 0.01
    assert float(model.compute_loss({**batch, "weight": tf.constant(weights)})) == pytest.approx(expected, rel=1e-4)
    nothing = {**batch, "weight": tf.zeros(24)}
    assert float(model.compute_loss(nothing)) == 0


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("drawn", [0, 20])
@pytest.mark.parametrize("candidates", ["batch", "catalogue"])
def test_sampled_negatives_are_neither_positives_nor_candidates(
    data: TrainingData, build: Build, batch_of: BatchOf, candidates: str, drawn: int, weighted: bool
) -> None:
    if candidates == "catalogue" and drawn:
        pytest.skip("nothing is drawn where every item is a candidate")
    model = build(candidates=candidates, uniform_negatives=drawn)
    batch = batch_of(data, list(range(40)))
    if weighted:
        batch["weight"] = tf.constant(np.linspace(0.1, 2, 40), tf.float32)
    positive = np.arange(40) % 3 > 0
    alone = {name: tf.boolean_mask(values, positive) for name, values in batch.items()}
    found = float(model.compute_loss({**batch, "positive": tf.constant(positive)}))
    assert found == pytest.approx(float(model.compute_loss(alone)), rel=1e-5)
    assert found != pytest.approx(float(model.compute_loss(batch)), rel=1e-5)
    assert float(model.compute_loss({**batch, "positive": tf.zeros(40, tf.bool)})) == 0


# --- scores -----------------------------------------------------------------------------------------------------------


def test_untrained_scores_are_log_popularities(data: TrainingData, untrained: Build, batch_of: BatchOf) -> None:
    model = untrained(data, model=RETRIEVAL_ONLY)
    found = scores(model, batch_of(data, [0, 5]), range(1, data.item_count + 1))
    expected = np.log(shares(data)[1:])
    np.testing.assert_allclose(found - found.mean(axis=1, keepdims=True), [expected - expected.mean()] * 2, atol=0.1)


def test_without_item_bias_untrained_scores_ignore_popularity(
    data: TrainingData, build: Build, batch_of: BatchOf
) -> None:
    with_bias, without = build(), build(item_bias=False)
    batch = batch_of(data, [0, 5])
    assert with_bias.encode_query(batch).retrieval.shape == [2, 9]
    assert without.encode_query(batch).retrieval.shape == [2, 8]
    assert without.encode_items(batch["item"]).retrieval.shape == [2, 8]
    assert not [layer for layer in without.submodules if layer.name == "item_popularity"]


def test_normalised_vectors_have_length_1_and_the_temperature_divides_their_product(
    data: TrainingData, build: Build, batch_of: BatchOf
) -> None:
    batch = batch_of(data, list(range(20)))
    sides = []
    for normalize, temperature in ((False, 1.0), (True, 1.0), (True, 0.05)):
        model = build(normalize=normalize, temperature=temperature)
        sides.append([model.encode_query(batch).retrieval.numpy(), model.encode_items(batch["item"]).retrieval.numpy()])
    plain, unit, cold = sides
    for side in (0, 1):
        lengths = np.linalg.norm(plain[side][:, :8], axis=1, keepdims=True)
        assert lengths.std() > 0.01
        np.testing.assert_allclose(unit[side][:, :8], plain[side][:, :8] / lengths, rtol=1e-4, atol=1e-6)
    products, biases = unit[0][:, :8] @ unit[1][:, :8].T, unit[1][:, 8]
    assert np.abs(products).max() <= 1.00001
    # The bias is added after the temperature.
    np.testing.assert_allclose(cold[0] @ cold[1].T, products / 0.05 + biases, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(cold[1][:, :8], axis=1), 1, rtol=1e-5)
