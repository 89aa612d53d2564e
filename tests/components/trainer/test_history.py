"""User histories: the items of each row and their pooling, compared with plain Python."""

from __future__ import annotations

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split
import math
from typing import Any, Literal

import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

from components.trainer.data.histories import Histories, HistoryBatches, whole_histories
from components.trainer.model.history_embedding import HistoryEmbedding
from recipe.features import History

USERS, ITEMS = 4, 7
Interaction = tuple[int, int, int, float]


def feature(**keys: Any) -> History:
    return History.model_validate({"column": "item", "kind": "history", "order": "any"} | keys)


def collect(rows: list[Interaction]) -> Histories:
    return Histories.collect(*arrays(rows), user_count=USERS, item_count=ITEMS)


def arrays(rows: list[Interaction]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    users, items, times, labels = zip(*rows, strict=True) if rows else ((), (), (), ())
    return np.array(users, int), np.array(items, int), np.array(times, int), np.array(labels, np.float32)


def expected_history(rows: list[Interaction], row: Interaction, order: str, length: int) -> list[int]:
    """The items that `row` sees, in order of time."""
    user, own, at, _ = row
    latest: dict[int, tuple[int, int]] = {}
    for place, (other, item, time, _label) in enumerate(rows):
        if other == user and user and item:
            latest[item] = max(latest.get(item, (time, place)), (time, place))
    seen = sorted((time, place, item) for item, (time, place) in latest.items())
    visible = [item for time, _, item in seen if order == "any" or time < at][-length:]
    return [item for item in visible if item != own]


def windows_of(histories: Histories, rows: list[Interaction], history: History) -> list[list[int]]:
    users, items, times, _ = arrays(rows)
    windows = histories.windows(users, items, times, history)
    return [[int(histories.items[place]) for place in range(begin, end) if place != own] for begin, end, own in windows]


interactions = st.lists(
    st.tuples(st.integers(0, USERS), st.integers(0, ITEMS), st.integers(0, 5), st.sampled_from([1.0, 3.0, 5.0])),
    max_size=30,
)


@given(rows=interactions, order=st.sampled_from(["any", "earlier"]), length=st.integers(1, 6))
@settings(deadline=None)
def test_a_history_has_the_user_s_other_items(rows: list[Interaction], order: str, length: int) -> None:
    found = windows_of(collect(rows), rows, feature(order=order, max_length=length))
    assert found == [expected_history(rows, row, order, length) for row in rows]


@given(rows=interactions, held_out=interactions)
@settings(deadline=None)
def test_rows_outside_the_histories_have_all_of_the_user_s_items(
    rows: list[Interaction], held_out: list[Interaction]
) -> None:
    pairs = {(user, item) for user, item, _, _ in rows}
    held = [row for row in held_out if (row[0], row[1]) not in pairs]
    found = windows_of(collect(rows), held, feature())
    for (user, *_), history in zip(held, found, strict=True):
        assert set(history) == {item for other, item, _, _ in rows if other == user and user and item}


@given(rows=interactions)
@settings(deadline=None)
def test_deviations_do_not_depend_on_the_user_s_mean(
    rows: list[Interaction],
) -> None:
    histories = collect(rows)
    mean = sum(row[3] for row in rows) / max(len(rows), 1)
    for user in range(USERS + 1):
        for place in range(histories.starts[user], histories.starts[user + 1]):
            item = int(histories.items[place])
            labels = [row[3] for row in rows if row[1] == item]
            item_mean = mean + sum(label - mean for label in labels) / (len(labels) + 10)
            latest = max(
                (row[2], number) for number, row in enumerate(rows) if row[0] == user and row[1] == item
            )  # fmt: skip
            assert histories.deviations[place] == pytest.approx(rows[latest[1]][3] - item_mean, abs=1e-5)


# --- pooled -----------------------------------------------------------------------------------------------------------

ROWS: list[Interaction] = [
    (1, 1, 10, 5.0), (1, 2, 20, 3.0), (1, 3, 30, 1.0), (2, 3, 5, 4.0), (2, 4, 6, 2.0), (3, 5, 1, 3.0)
]  # fmt: skip


def batch_of(rows: list[Interaction], history: History) -> dict[str, tf.Tensor]:
    histories = collect(ROWS)
    users, items, times, _ = arrays(rows)
    return HistoryBatches(histories, history)(
        tf.constant(users), tf.constant(histories.windows(users, items, times, history))
    )


def layer_of(history: History, seed: int = 3) -> HistoryEmbedding:
    tf.keras.utils.set_random_seed(seed)
    return HistoryEmbedding(history, ITEMS, 5, stddev=0.05)


@pytest.mark.parametrize("order", ["any", "earlier"])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("pooling", ["sum_sqrt", "mean"])
def test_sums_and_means_follow_the_formula(pooling: str, labels: bool, order: str) -> None:
    history = feature(pooling=pooling, labels=labels, order=order)
    layer, histories = layer_of(history), collect(ROWS)
    chosen = [ROWS[2], ROWS[0], ROWS[4], ROWS[5], (4, 1, 9, 2.0), (0, 1, 9, 2.0)]
    pooled = layer(batch_of(chosen, history)).numpy()
    tables = [weight.numpy() for weight in layer.weights]
    for row, found in zip(chosen, pooled, strict=True):
        seen = expected_history(ROWS, row, order, 1000)
        total = np.zeros(5)
        for item in seen:
            place = next(p for p in range(histories.starts[row[0]], histories.starts[row[0] + 1])
                         if histories.items[p] == item)  # fmt: skip
            total += tables[0][item] + (tables[1][item] * histories.deviations[place] if labels else 0)
        scale = math.sqrt(max(len(seen), 1)) if pooling == "sum_sqrt" else max(len(seen), 1)
        np.testing.assert_allclose(found, total / scale, atol=1e-6)


Pooling = Literal["sum_sqrt", "mean", "attention", "gru"]
POOLINGS: list[Pooling] = ["sum_sqrt", "mean", "attention", "gru"]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_row_s_own_item_is_excluded(pooling: Pooling) -> None:
    history = feature(pooling=pooling)
    layer, batch = layer_of(history), batch_of(ROWS, history)
    before = layer(batch).numpy()
    table = layer.weights[0]
    for item in range(1, ITEMS + 1):
        kept = table.numpy()
        changed = kept.copy()
        changed[item] += 1.0
        table.assign(changed)
        differs = np.abs(layer(batch).numpy() - before).max(axis=1) > 1e-6
        assert differs.tolist() == [item in expected_history(ROWS, row, "any", 1000) for row in ROWS]
        table.assign(kept)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_serving_pools_as_training_does(pooling: Pooling) -> None:
    """A batch's shared histories and one row a history are two ways of writing the same."""
    history = feature(pooling=pooling)
    layer = layer_of(history)
    seen = [expected_history(ROWS, row, "any", 1000) for row in ROWS]
    ragged = tf.ragged.constant(seen, tf.int64, ragged_rank=1)
    served = layer(whole_histories(ragged, tf.zeros_like(ragged, tf.float32)))
    np.testing.assert_allclose(served, layer(batch_of(ROWS, history)), atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_new_items_are_ignored_and_empty_histories_are_zeros(pooling: Pooling) -> None:
    layer = layer_of(feature(pooling=pooling))
    ragged = tf.ragged.constant([[2, 0, 5], [2, 5], [], [0]], tf.int64, ragged_rank=1)
    pooled = layer(whole_histories(ragged, tf.zeros_like(ragged, tf.float32))).numpy()
    np.testing.assert_allclose(pooled[0], pooled[1], atol=1e-6)
    assert np.abs(pooled[0]).max() > 0
    np.testing.assert_array_equal(pooled[2:], 0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_masked_rows_have_an_empty_history(pooling: Pooling) -> None:
    history = feature(pooling=pooling)
    layer, batch = layer_of(history), batch_of(ROWS, history)
    masked = np.array([True, False, False, True, False, True])
    pooled = layer(batch | {"masked": tf.constant(masked)}).numpy()
    np.testing.assert_array_equal(pooled[masked], 0)
    np.testing.assert_allclose(pooled[~masked], layer(batch).numpy()[~masked], atol=1e-6)


def test_gru_depends_on_the_order_and_a_sum_does_not() -> None:
    ragged = tf.ragged.constant([[1, 2, 3], [3, 2, 1]], tf.int64, ragged_rank=1)
    rows = whole_histories(ragged, tf.zeros_like(ragged, tf.float32))
    summed, recurrent = (layer_of(feature(pooling=pooling))(rows).numpy() for pooling in ("sum_sqrt", "gru"))
    np.testing.assert_allclose(summed[0], summed[1], atol=1e-6)
    assert np.abs(recurrent[0] - recurrent[1]).max() > 1e-4


def test_dropout_removes_items_in_training_only() -> None:
    layer = layer_of(feature(dropout=0.5))
    ragged = tf.ragged.constant([list(range(1, 8))] * 200, tf.int64, ragged_rank=1)
    rows = whole_histories(ragged, tf.zeros_like(ragged, tf.float32))
    assert np.ptp(layer(rows).numpy(), axis=0).max() == pytest.approx(0, abs=1e-5)
    trained = layer(rows, training=True).numpy()
    assert len(np.unique(trained.round(4), axis=0)) > 50


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_reach_the_items(pooling: Pooling) -> None:
    history = feature(pooling=pooling, labels=True)
    layer, batch = layer_of(history), batch_of(ROWS, history)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer(batch)))
    for weight, gradient in zip(layer.weights, tape.gradient(loss, layer.weights), strict=True):
        assert np.abs(tf.convert_to_tensor(gradient).numpy()).max() > 0, weight.name


def test_both_embeddings_of_an_item_start_differently() -> None:
    first, second = (weight.numpy() for weight in layer_of(feature(labels=True)).weights)
    assert not np.allclose(first, second)
