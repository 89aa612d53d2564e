"""Ragged operations, compared with TensorFlow's own."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from components.trainer.data.ragged_ops import boolean_mask, dense_boolean_mask, last_mask, value_rowids

ROWS = st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=6)


def ragged(rows: list[list[int]]) -> tf.RaggedTensor:
    return tf.ragged.constant(rows, tf.int64, ragged_rank=1, row_splits_dtype=tf.int64)


@given(ROWS)
def test_value_rowids(rows: list[list[int]]) -> None:
    np.testing.assert_array_equal(value_rowids(ragged(rows)), [row for row, values in enumerate(rows) for _ in values])


@given(ROWS)
def test_boolean_mask(rows: list[list[int]]) -> None:
    values = ragged(rows)
    found = boolean_mask(values, values.flat_values > 4)
    assert found.to_list() == [[value for value in row if value > 4] for row in rows]


@given(ROWS, st.integers(1, 4))
def test_last_mask(rows: list[list[int]], count: int) -> None:
    values = ragged(rows)
    assert boolean_mask(values, last_mask(values, count)).to_list() == [row[-count:] for row in rows]


@given(st.integers(0, 4).flatmap(lambda width: st.lists(st.lists(st.integers(0, 9), min_size=width, max_size=width))))
def test_dense_boolean_mask(rows: list[list[int]]) -> None:
    dense = tf.constant(np.array(rows, np.int64).reshape(len(rows), len(rows[0]) if rows else 0))
    found = dense_boolean_mask(dense, dense > 4)
    assert found.to_list() == [[value for value in row if value > 4] for row in rows]
