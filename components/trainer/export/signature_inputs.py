"""Inputs of signatures: optional inputs, their defaults, and the conversion to raw columns.

TensorFlow Serving replaces an optional input that a request does not have by the signature's default. That default
denotes "not set" in all rows: '' for strings, the smallest int64, NaN.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from recipe.columns import ColumnType

DTYPES = {"BYTES": tf.string, "INT": tf.int64, "FLOAT": tf.float32}
UNSET: dict[str, Any] = {"BYTES": "", "INT": np.iinfo(np.int64).min, "FLOAT": float("nan")}

Outputs = dict[str, tf.Tensor]
Signature = Callable[..., Outputs]
Input = tuple[tf.TensorSpec, tf.Tensor | None]
"""An input's name, dtype and shape; and its default, None for a required input."""


def required(name: str) -> Input:
    """Return a required input, string [B].

    Example:
        >>> required("user_id")
        (TensorSpec(shape=(None,), dtype=tf.string, name='user_id'), None)
    """
    return tf.TensorSpec([None], tf.string, name=name), None


def column(name: str, kind: ColumnType) -> Input:
    """Return an optional input for a raw column, [B], or [1] for all rows.

    Example:
        >>> spec, default = column("age", "INT")
        >>> spec.dtype, default.numpy() == UNSET["INT"]
        (tf.int64, array([ True]))
    """
    return tf.TensorSpec([None], DTYPES[kind], name=name), tf.constant([UNSET[kind]], DTYPES[kind])


def optional_id(name: str) -> Input:
    """Return an optional input for ids, string [B], or [1] for all rows; '' is no id.

    Example:
        >>> optional_id("item_id")[1].numpy()
        array([b''], dtype=object)
    """
    return column(name, "BYTES")


def id_list(name: str) -> Input:
    """Return an optional input for lists of ids, string [B, n], or [1, n] for all rows, padded with ''.

    Example:
        >>> id_list("exclude")[0].shape
        TensorShape([None, None])
    """
    return tf.TensorSpec([None, None], tf.string, name=name), tf.constant([[""]])


def scalar(name: str, default: int) -> Input:
    """Return an optional input for an integer of the request, int32 [].

    Example:
        >>> int(scalar("k", 10)[1])
        10
    """
    return tf.TensorSpec([], tf.int32, name=name), tf.constant(default, tf.int32)


def signature(function: Callable[[Mapping[str, tf.Tensor]], Outputs], inputs: Sequence[Input]) -> Any:
    """Return a `tf.function` with the input signature and defaults that a SavedModel saves.

    Args:
        function: Maps inputs by name to outputs by name.
        inputs: The inputs, required ones first.

    Example:
        >>> double = signature(lambda inputs: {"doubled": 2 * inputs["k"]}, [scalar("k", 10)])
        >>> int(double()["doubled"]), int(double(k=tf.constant(3))["doubled"])
        (20, 6)
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
    # The functions have no control flow for AutoGraph to convert, and it would take most of the export's time.
    return tf.function(by_name, input_signature=[spec for spec, _ in inputs], autograph=False)


def sparse(values: tf.Tensor, unset: Any) -> tf.SparseTensor:
    """Return values [B] as a sparse tensor [B, 1] without the rows that are not set.

    Example:
        >>> sparse(tf.constant(["a", ""]), UNSET["BYTES"]).values.numpy()
        array([b'a'], dtype=object)
    """
    given = values == values if values.dtype.is_floating else tf.not_equal(values, tf.constant(unset, values.dtype))
    rows = tf.where(given)
    indices = tf.concat([rows, tf.zeros_like(rows)], axis=1)
    return tf.SparseTensor(indices, tf.gather(values, rows[:, 0]), tf.stack([tf.size(values, tf.int64), 1]))


def dense(column: tf.SparseTensor) -> tf.Tensor:
    """Return the first string of each row, [B]; '' for an empty row.

    Example:
        >>> dense(sparse(tf.constant(["a", ""]), UNSET["BYTES"])).numpy()
        array([b'a', b''], dtype=object)
    """
    first = tf.where(tf.equal(column.indices[:, 1], 0))[:, 0]
    none = tf.fill(column.dense_shape[:1], "")
    return tf.tensor_scatter_nd_update(none, tf.gather(column.indices[:, :1], first), tf.gather(column.values, first))


def value_or_default(column: tf.SparseTensor, values: tf.Tensor | tf.SparseTensor, default: tf.Tensor) -> tf.Tensor:
    """Return a transformed feature in rows where the raw column has a value, and the default in the other rows.

    Args:
        column: The raw column, [B, 1].
        values: The transformed feature, [B], or [B, values] dense or sparse.
        default: [B] or [B, values]

    Example:
        >>> column = sparse(tf.constant(["a", ""]), UNSET["BYTES"])
        >>> value_or_default(column, tf.constant([7, 0]), tf.constant([1, 2])).numpy()
        array([7, 2], dtype=int32)
    """
    if isinstance(values, tf.SparseTensor):
        values = tf.sparse.to_dense(values)
    rows = tf.cast(column.dense_shape[0], tf.int32)
    given = tf.math.unsorted_segment_max(tf.ones_like(column.indices[:, 0]), column.indices[:, 0], rows) > 0
    if values.shape.rank == 1:
        return tf.where(given, values, default)
    width = tf.maximum(tf.shape(values)[1], tf.shape(default)[1])
    padded = [tf.pad(rows, [[0, 0], [0, width - tf.shape(rows)[1]]]) for rows in (values, default)]
    return tf.where(given[:, None], *padded)
