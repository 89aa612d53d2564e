"""Operations on ragged tensors in few TensorFlow ops.

TensorFlow's own functions take fifty ops or more, with assertions on input that is valid here. Each op of a SavedModel
is optimized for each signature when a server loads it, and runs in each request.
"""

from __future__ import annotations

import tensorflow as tf


def value_rowids(rows: tf.RaggedTensor) -> tf.Tensor:
    """Return the row index of each value, as `rows.value_rowids()` does.

    Args:
        rows: [B, None] with V values.

    Returns:
        int64 [V]

    Example:
        >>> value_rowids(tf.ragged.constant([[7, 8], [], [9]], row_splits_dtype=tf.int64)).numpy()
        array([0, 0, 2])
    """
    values = tf.range(tf.size(rows.flat_values, tf.int64))
    return tf.searchsorted(rows.row_limits(), values, side="right", out_type=tf.int64)


def boolean_mask(rows: tf.RaggedTensor, mask: tf.Tensor) -> tf.RaggedTensor:
    """Return the values where the mask is true, in the same rows.

    Args:
        rows: [B, None] with V values.
        mask: bool [V], one for each value.

    Returns:
        [B, None]

    Example:
        >>> rows = tf.ragged.constant([[7, 8], [], [9]], row_splits_dtype=tf.int64)
        >>> boolean_mask(rows, rows.flat_values > 7).to_list()
        [[8], [], [9]]
    """
    before = tf.concat([[0], tf.cumsum(tf.cast(mask, tf.int64))], axis=0)
    splits = tf.gather(before, rows.row_splits)
    return tf.RaggedTensor.from_row_splits(tf.gather(rows.flat_values, tf.where(mask)[:, 0]), splits, validate=False)


def last_mask(rows: tf.RaggedTensor, count: int) -> tf.Tensor:
    """Return a mask of the last `count` values of each row.

    Args:
        rows: [B, None] with V values.
        count: Number of values of each row for which the mask is true.

    Returns:
        bool [V], one for each value.

    Example:
        >>> last_mask(tf.ragged.constant([[7, 8], [], [9]], row_splits_dtype=tf.int64), 1).numpy()
        array([False,  True,  True])
    """
    positions = tf.range(tf.size(rows.flat_values, tf.int64))
    return positions >= tf.gather(rows.row_limits(), value_rowids(rows)) - count


def dense_boolean_mask(values: tf.Tensor, mask: tf.Tensor) -> tf.RaggedTensor:
    """Return the values of a dense tensor where the mask is true, as ragged rows.

    Args:
        values: [B, L]
        mask: bool [B, L]

    Returns:
        [B, None]

    Example:
        >>> values = tf.constant([[7, 0], [0, 0]])
        >>> dense_boolean_mask(values, values > 0).to_list()
        [[7], []]
    """
    lengths = tf.reduce_sum(tf.cast(mask, tf.int64), axis=1)
    return tf.RaggedTensor.from_row_lengths(tf.gather_nd(values, tf.where(mask)), lengths, validate=False)
