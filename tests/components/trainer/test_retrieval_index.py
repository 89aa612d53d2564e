"""The exact index, compared with brute force in NumPy."""

from __future__ import annotations

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from components.trainer.index.exact import ExactIndex
from components.trainer.index.retrieval_index import RetrievalIndex

ITEMS, WIDTH = 9, 3

# Few distinct values, so that many scores are equal.
numbers = st.integers(-2, 2).map(float)
rows = st.lists(numbers, min_size=WIDTH, max_size=WIDTH)
tables = st.lists(rows, min_size=ITEMS, max_size=ITEMS).map(lambda table: np.array(table, np.float32))
items = st.lists(st.integers(1, ITEMS), max_size=12)
request_lists = st.lists(st.tuples(rows, items, st.lists(st.integers(0, ITEMS), max_size=4)), max_size=4)


def ragged(lists: list[list[int]]) -> tf.RaggedTensor:
    flat = [item for row in lists for item in row]
    return tf.RaggedTensor.from_row_lengths(tf.constant(flat, tf.int64), tf.constant(list(map(len, lists)), tf.int64))


def brute_force(scores: np.ndarray, excluded: list[int], only: list[int], k: int) -> list[int]:
    """The best k items by score and then by number, padded with 0."""
    allowed = set(only) - {0} if only else set(range(1, ITEMS + 1))
    best = sorted(allowed - set(excluded), key=lambda item: (-scores[item - 1], item))[:k]
    return best + [0] * (k - len(best))


@settings(max_examples=60, deadline=None)
@given(table=tables, requests=request_lists, k=st.integers(1, ITEMS + 3), dynamic=st.booleans())
def test_search_equals_a_sort(table: np.ndarray, requests: list[tuple], k: int, dynamic: bool) -> None:  # type: ignore[type-arg]
    index = ExactIndex(table)
    queries = np.array([query for query, _, _ in requests], np.float32).reshape(-1, WIDTH)
    excluded, only = ([row[place] for row in requests] for place in (1, 2))
    found = index.search(queries, tf.constant(k) if dynamic else k, ragged(excluded), ragged(only))
    assert found.items.shape == found.scores.shape == (len(requests), k)
    for place, query in enumerate(queries):
        expected = brute_force(table @ query, excluded[place], only[place], k)
        assert found.items[place].numpy().tolist() == expected
        scores = [float(table[item - 1] @ query) if item else 0.0 for item in expected]
        assert found.scores[place].numpy().tolist() == pytest.approx(scores)


@settings(max_examples=60, deadline=None)
@given(table=tables, requests=request_lists)
def test_rank_equals_the_position_in_a_search(table: np.ndarray, requests: list[tuple]) -> None:  # type: ignore[type-arg]
    index: RetrievalIndex = ExactIndex(table)
    queries = np.array([query for query, _, _ in requests], np.float32).reshape(-1, WIDTH)
    item = [(only or [0])[0] for _, _, only in requests]
    excluded = [row for _, row, _ in requests]
    every, others = index.rank(queries, tf.constant(item, tf.int64), ragged(excluded))
    for place, query in enumerate(queries):
        if item[place] == 0:
            assert (every[place], others[place]) == (-1, -1)
            continue
        order = brute_force(table @ query, [], [], ITEMS)
        assert every[place] == order.index(item[place])
        kept = [other for other in order if other == item[place] or other not in excluded[place]]
        assert others[place] == kept.index(item[place])


def test_excluded_and_only_are_optional() -> None:
    index = ExactIndex(np.arange(6, dtype=np.float32)[:, None])
    assert index.search(tf.ones([1, 1]), 3).items.numpy().tolist() == [[6, 5, 4]]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_an_item_has_no_rank_if_scores_are_not_finite(poison: float) -> None:
    table = np.ones((4, 1), np.float32)
    table[2] = poison
    ranks = ExactIndex(table).rank(tf.ones([2, 1]), tf.constant([1, 3], tf.int64), ragged([[], [1]]))
    assert [rank.numpy().tolist() for rank in ranks] == [[-1, -1], [-1, -1]]


def test_vectors_are_returned_and_item_0_is_zeros() -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3) + 1
    found = ExactIndex(table).vectors(tf.constant([4, 0, 1], tf.int64))
    np.testing.assert_array_equal(found, [table[3], np.zeros(3), table[0]])
    assert ExactIndex(table).vectors(tf.zeros([0], tf.int64)).shape == (0, 3)


def test_an_item_is_excluded_from_its_row_only() -> None:
    index = ExactIndex(np.arange(4, dtype=np.float32)[:, None])
    found = index.search(tf.ones([3, 1]), 2, ragged([[4], [], [4, 4, 3]]), ragged([[], [1, 0], []]))
    assert found.items.numpy().tolist() == [[3, 2], [1, 0], [2, 1]]
