"""Ragged tensors in few ops: what TensorFlow's own functions do in fifty or more, asserts on correct input included.

Each op of a SavedModel is optimised again for each signature when a server loads it, and run in each request.
"""

from __future__ import annotations

import tensorflow as tf


def row_of_each(rows: tf.RaggedTensor) -> tf.Tensor:
    """int64 [V]: the row that each of the V values of `rows` [B, None] is in, as `rows.value_rowids()` says."""
    values = tf.range(tf.size(rows.flat_values, tf.int64))
    return tf.searchsorted(rows.row_limits(), values, side="right", out_type=tf.int64)


def kept(rows: tf.RaggedTensor, mask: tf.Tensor) -> tf.RaggedTensor:
    """The values of `rows` [B, None] where `mask`, bool [V] with one for each of the V values, is true; all B rows."""
    before = tf.concat([[0], tf.cumsum(tf.cast(mask, tf.int64))], axis=0)
    splits = tf.gather(before, rows.row_splits)
    return tf.RaggedTensor.from_row_splits(tf.gather(rows.flat_values, tf.where(mask)[:, 0]), splits, validate=False)


def last(rows: tf.RaggedTensor, count: int) -> tf.Tensor:
    """bool [V]: whether each of the V values of `rows` [B, None] is one of the last `count` of its row."""
    places = tf.range(tf.size(rows.flat_values, tf.int64))
    return places >= tf.gather(rows.row_limits(), row_of_each(rows)) - count


def kept_of_dense(values: tf.Tensor, mask: tf.Tensor) -> tf.RaggedTensor:
    """The values [B, L] where `mask`, bool [B, L], is true, as rows [B, None]."""
    lengths = tf.reduce_sum(tf.cast(mask, tf.int64), axis=1)
    return tf.RaggedTensor.from_row_lengths(tf.gather_nd(values, tf.where(mask)), lengths, validate=False)
