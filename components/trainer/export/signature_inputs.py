"""Inputs of signatures: which are optional, what stands for "not given", and how rows become raw columns.

TensorFlow Serving fills an optional input that a request leaves out with the default that the signature has. That
default means "not given" in every row: '' for strings, the smallest int64, NaN.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from recipe.columns import ColumnType

DTYPES = {"BYTES": tf.string, "INT": tf.int64, "FLOAT": tf.float32}
NOT_GIVEN: dict[str, Any] = {"BYTES": "", "INT": np.iinfo(np.int64).min, "FLOAT": float("nan")}

Outputs = dict[str, tf.Tensor]
Signature = Callable[..., Outputs]
Input = tuple[tf.TensorSpec, tf.Tensor | None]
"""An input's name, dtype and shape; and its default, None for one that must be given."""


def required(name: str) -> Input:
    """Strings [B] that must be given."""
    return tf.TensorSpec([None], tf.string, name=name), None


def column(name: str, kind: ColumnType) -> Input:
    """A raw column of the recipe, [B] or [1] for all rows; optional."""
    return tf.TensorSpec([None], DTYPES[kind], name=name), tf.constant([NOT_GIVEN[kind]], DTYPES[kind])


def optional_id(name: str) -> Input:
    """Ids string [B], or [1] for all rows, '' for none; optional."""
    return column(name, "BYTES")


def id_list(name: str) -> Input:
    """Ids string [B, n], or [1, n] for all rows, padded with ''; optional."""
    return tf.TensorSpec([None, None], tf.string, name=name), tf.constant([[""]])


def scalar(name: str, default: int) -> Input:
    """A whole number for the whole request, int32 []; optional."""
    return tf.TensorSpec([], tf.int32, name=name), tf.constant(default, tf.int32)


def signature(function: Callable[[Mapping[str, tf.Tensor]], Outputs], inputs: Sequence[Input]) -> Any:
    """`function` of inputs by name as a `tf.function` whose defaults a SavedModel keeps.

    Args:
        function: What the signature answers.
        inputs: Those that must be given first.
    """
    parameters = [
        inspect.Parameter(
            spec.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if default is None else default,
        )
        for spec, default in inputs
    ]

    def by_name(*args: tf.Tensor, **kwargs: tf.Tensor) -> Outputs:
        return function(dict(zip((spec.name for spec, _ in inputs), args, strict=False)) | kwargs)

    by_name.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    # AutoGraph would take most of the time that saving does, to find no control flow that needs it.
    return tf.function(by_name, input_signature=[spec for spec, _ in inputs], autograph=False)


def sparse(values: tf.Tensor, not_given: Any) -> tf.SparseTensor:
    """[B] to a sparse [B, 1] without the rows that say "not given"."""
    given = values == values if values.dtype.is_floating else tf.not_equal(values, tf.constant(not_given, values.dtype))
    rows = tf.where(given)
    indices = tf.concat([rows, tf.zeros_like(rows)], axis=1)
    return tf.SparseTensor(indices, tf.gather(values, rows[:, 0]), tf.stack([tf.size(values, tf.int64), 1]))


def dense(column: tf.SparseTensor) -> tf.Tensor:
    """The first string of each row, [B]; empty where there is none."""
    first = tf.where(tf.equal(column.indices[:, 1], 0))[:, 0]
    none = tf.fill(column.dense_shape[:1], "")
    return tf.tensor_scatter_nd_update(none, tf.gather(column.indices[:, :1], first), tf.gather(column.values, first))


def given_or(column: tf.SparseTensor, values: tf.Tensor | tf.SparseTensor, otherwise: tf.Tensor) -> tf.Tensor:
    """A transformed feature where its raw column has a value, else what stands in for it.

    Args:
        column: The raw column, [B, 1].
        values: The feature made of it, [B], or [B, values] dense or sparse.
        otherwise: [B] or [B, values].
    """
    if isinstance(values, tf.SparseTensor):
        values = tf.sparse.to_dense(values)
    rows = tf.cast(column.dense_shape[0], tf.int32)
    given = tf.math.unsorted_segment_max(tf.ones_like(column.indices[:, 0]), column.indices[:, 0], rows) > 0
    if values.shape.rank == 1:
        return tf.where(given, values, otherwise)
    width = tf.maximum(tf.shape(values)[1], tf.shape(otherwise)[1])
    padded = [tf.pad(rows, [[0, 0], [0, width - tf.shape(rows)[1]]]) for rows in (values, otherwise)]
    return tf.where(given[:, None], *padded)
