"""`preprocessing_fn`, the entry point of Transform: the recipe's features as a TensorFlow graph.

In all features with indices, index 0 is the OOV index, for missing values and for values outside the vocabulary;
vocabulary entry or bucket `i` has index `i + 1`. The same graph runs in training, evaluation and serving, so that there
is no training/serving skew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from recipe.columns import IS_POSITIVE, Columns
from recipe.features import (
    AnyFeature,
    Buckets,
    Categorical,
    Features,
    History,
    Identifier,
    MultiValue,
    Normalized,
    Text,
)

LABEL = "label"
"""Name of the transformed label."""
TIME = "time"
"""Name of the transformed timestamp."""


def display_name(column: str) -> str:
    """Return the name of the transformed feature with a display column's strings.

    Example:
        >>> display_name("title")
        'title_display'
    """
    return f"{column}_display"


def preprocessing_fn(inputs: Mapping[str, tf.SparseTensor], custom_config: Mapping[str, Any]) -> dict[str, Any]:
    """Transform raw columns into the recipe's features.

    Args:
        inputs: Raw columns by name, each a SparseTensor [batch, 1] of string, int64 or float32; an empty row is a
            missing value.
        custom_config: `features` and `columns`: the recipe's sections as JSON; `negatives`: whether the examples
            include sampled negatives.

    Returns:
        Features by `Feature.name`: ids, categories and buckets are int64 [batch]; text and multi-value features are
        SparseTensors int64 [batch, values]; normalized numbers are float32 [batch]. `label` is float32 [batch], and so
        is `is_positive` with sampled negatives. `time` is int64 [batch], seconds, if the recipe has a timestamp.
    """
    features = Features.model_validate_json(custom_config["features"])
    columns = Columns.model_validate_json(custom_config["columns"])
    outputs = {
        feature.name: _transform(inputs[feature.column], feature) for feature in (*features.query, *features.candidate)
    }
    for feature in features.candidate:
        if feature.display:
            outputs[display_name(feature.column)] = _dense(inputs[feature.column], "")
    outputs[LABEL] = tf.cast(_dense(inputs[columns.label], 0), tf.float32)
    if columns.timestamp is not None:
        outputs[TIME] = _dense(inputs[columns.timestamp], 0)
    if custom_config.get("negatives"):
        outputs[IS_POSITIVE] = _dense(inputs[IS_POSITIVE], 1.0)
    return outputs


def _transform(column: tf.SparseTensor, feature: AnyFeature) -> tf.Tensor | tf.SparseTensor:
    match feature:
        case Identifier():
            return _dense(_indices(column, feature.name), 0)
        case Categorical():
            return _dense(_indices(column, feature.name, min_count=feature.min_count), 0)
        case Text():
            words = _split_words(_dense(column, ""))
            return _indices(words, feature.name, min_count=feature.min_count, size=feature.vocabulary_size)
        case MultiValue():
            values = _split(_dense(column, ""), feature.separator)
            return _indices(values, feature.name, min_count=feature.min_count)
        case Buckets():
            return _dense(_buckets(column, feature), 0)
        case Normalized():
            # float64, because float32 rounds timestamps to more than a minute.
            return tf.cast(_dense(tft.scale_to_z_score(_cast(column, tf.float64)), 0.0), tf.float32)
        case History():
            raise TypeError(
                f"{feature.name}: expected a feature of Transform, got a history, which the Trainer builds. Pass "
                "Features.for_transform()"
            )


def _dense(column: tf.SparseTensor, missing: Any) -> tf.Tensor:
    """Return the value of each row, [batch]; `missing` for an empty row."""
    shape = tf.stack([column.dense_shape[0], 1])
    default = tf.constant(missing, dtype=column.dtype)
    return tf.squeeze(tf.sparse.to_dense(tf.SparseTensor(column.indices, column.values, shape), default), axis=1)


def _map(column: tf.SparseTensor, values: tf.Tensor) -> tf.SparseTensor:
    return tf.SparseTensor(column.indices, values, column.dense_shape)


def _cast(column: tf.SparseTensor, dtype: tf.DType) -> tf.SparseTensor:
    return _map(column, tf.cast(column.values, dtype))


def _indices(column: tf.SparseTensor, name: str, *, min_count: int = 1, size: int | None = None) -> tf.SparseTensor:
    """Return vocabulary indices: 1 + the position in the vocabulary `name`, 0 for values outside it."""
    vocabulary = tft.vocabulary(
        column, top_k=size, frequency_threshold=min_count if min_count > 1 else None, vocab_filename=name
    )
    found = tft.apply_vocabulary(column, vocabulary, default_value=-1)
    return _map(found, found.values + 1)


def _split_words(text: tf.Tensor) -> tf.SparseTensor:
    # Marks are part of words: most words in Hindi and Thai have marks, and so have decomposed accents.
    words = tf.strings.regex_replace(tf.strings.lower(text, encoding="utf-8"), r"[^\pL\pM\pN]+", " ")
    return _split(words, " ")


def _split(text: tf.Tensor, separator: str) -> tf.SparseTensor:
    """Return the values between separators, without surrounding spaces and without empty values."""
    values = tf.strings.split(text, sep=separator)
    values = values.with_values(tf.strings.strip(values.values))
    # Via a ragged tensor, because TFT rejects sparse rows whose values are not left-aligned.
    return tf.ragged.boolean_mask(values, tf.not_equal(values, "")).to_sparse()


def _buckets(column: tf.SparseTensor, feature: Buckets) -> tf.SparseTensor:
    """Return bucket indices: 1 + the bucket of each number; the first and the last bucket are unbounded."""
    if feature.boundaries == "quantile":
        cut = tft.bucketize(_cast(column, tf.float32), feature.buckets)
        return _map(cut, tf.cast(cut.values, tf.int64) + 1)
    numbers = _cast(column, tf.float64)
    low, high = tft.min(numbers), tft.max(numbers)
    scaled = (numbers.values - low) / tf.maximum(high - low, tf.constant(1e-9, tf.float64))
    # Clipped before the cast, because an outlier may exceed the range of int64.
    last = tf.constant(feature.buckets - 1, tf.float64)
    cut = tf.clip_by_value(tf.floor(scaled * feature.buckets), tf.zeros_like(last), last)
    return _map(numbers, tf.cast(cut, tf.int64) + 1)
