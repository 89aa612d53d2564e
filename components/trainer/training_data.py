"""Transformed examples as arrays: the interactions to learn from and the catalogue to choose from.

Transform wrote numbers only, a few bytes a feature, so they are parsed once and kept; epochs then cost no parsing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from components.transform.preprocessing import LABEL, TIME, display_name
from pipeline.recipe import IS_POSITIVE, AnyFeature, Columns, Features, Identifier

Arrays = dict[str, np.ndarray]

PARSE_BATCH = 8192


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What the Trainer learns from. `R` interactions, `N` items; index 0 of items and users is "unknown"."""

    query: Arrays
    """Query features of each interaction, [R] or, for text and multi-value features, [R, values] padded with 0."""
    items: np.ndarray
    """int64 [R]: the vocabulary index of each interaction's item, 1 to N."""
    labels: np.ndarray
    """float32 [R]"""
    times: np.ndarray
    """int64 [R]: seconds; all 0 where the recipe has no timestamp."""
    positive: np.ndarray
    """bool [R]: False for sampled negatives, which teach the rating head only: nobody ever touched them."""
    catalogue: Arrays
    """Candidate features by item index, [N + 1] or [N + 1, values]; row 0, the unknown item, is all zeros."""
    display: Arrays
    """Display columns by item index, UTF-8 strings [N + 1]; row 0 is empty."""
    user_feature: str
    """Name of the query feature that holds the user index, 1 to U."""
    user_count: int
    """U"""

    @property
    def users(self) -> np.ndarray:
        """int64 [R]: the vocabulary index of each interaction's user."""
        return self.query[self.user_feature]

    @property
    def item_count(self) -> int:
        """N"""
        return len(next(iter(self.catalogue.values()))) - 1

    def item_frequencies(self) -> np.ndarray:
        """int64 [N + 1]: interactions of each item, sampled negatives left out."""
        return np.bincount(self.items[self.positive], minlength=self.item_count + 1)

    @property
    def has_negatives(self) -> bool:
        """Whether some of the interactions are sampled negatives."""
        return not self.positive.all()


def read_training_data(
    train_files: Sequence[str],
    catalogue_files: Sequence[str],
    transform_output: tft.TFTransformOutput,
    features: Features,
    columns: Columns,
    negatives: bool = False,
) -> TrainingData:
    """Reads the transformed `train` and `catalogue` splits.

    Args:
        train_files: File patterns of the split `train`.
        catalogue_files: File patterns of the split `catalogue`.
        transform_output: Output of Transform; its vocabularies give the counts.
        features: The recipe's features.
        columns: The recipe's columns.
        negatives: Whether the interactions hold sampled negatives.

    Raises:
        ValueError: A split has no examples.
    """
    item_feature = id_feature(features.candidate, columns.item_id)
    user_feature = id_feature(features.query, columns.user_id)
    parts = [item_feature.name, LABEL, *([TIME] if columns.timestamp else []), *([IS_POSITIVE] if negatives else [])]
    train = _read(train_files, transform_output, [*(feature.name for feature in features.query), *parts])
    shown = {feature.column: display_name(feature.column) for feature in features.candidate if feature.display}
    names = [feature.name for feature in features.candidate]
    found = _read(catalogue_files, transform_output, [*names, *shown.values()])
    item_count = int(transform_output.vocabulary_size_by_name(item_feature.name))
    by_index = {}
    for name, values in found.items():
        by_index[name] = np.zeros((item_count + 1, *values.shape[1:]), values.dtype)
        by_index[name][found[item_feature.name]] = values
        by_index[name][0] = 0
    for name in shown.values():
        by_index[name] = np.where(by_index[name] == 0, b"", by_index[name])
    return TrainingData(
        query={feature.name: train[feature.name] for feature in features.query},
        items=train[item_feature.name],
        labels=train[LABEL],
        times=train[TIME] if columns.timestamp else np.zeros(len(train[LABEL]), np.int64),
        positive=train[IS_POSITIVE] > 0 if negatives else np.ones(len(train[LABEL]), bool),
        catalogue={name: by_index[name] for name in names},
        display={column: by_index[name] for column, name in shown.items()},
        user_feature=user_feature.name,
        user_count=int(transform_output.vocabulary_size_by_name(user_feature.name)),
    )


def id_feature(features: Sequence[AnyFeature], column: str) -> Identifier:
    """The feature that identifies the user or the item; the recipe guarantees that there is one."""
    return next(feature for feature in features if isinstance(feature, Identifier) and feature.column == column)


def index_count(feature: AnyFeature, transform_output: tft.TFTransformOutput) -> int:
    """How many different indices `feature` can have after Transform, 0 included."""
    if feature.kind == "buckets":
        return feature.buckets + 1
    return int(transform_output.vocabulary_size_by_name(feature.name)) + 1


def _read(patterns: Sequence[str], transform_output: tft.TFTransformOutput, names: Sequence[str]) -> Arrays:
    every = transform_output.transformed_feature_spec()
    spec = {name: every[name] for name in names}
    files = tf.io.gfile.glob(list(patterns))
    dataset = (
        tf.data.TFRecordDataset(sorted(files), compression_type="GZIP")
        .batch(PARSE_BATCH)
        .map(lambda records: tf.io.parse_example(records, spec), num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    batches: list[Mapping[str, tf.Tensor | tf.SparseTensor]] = list(dataset)
    if not batches:
        raise ValueError(f"no examples in {list(patterns)}")
    return {name: _concatenate([batch[name] for batch in batches]) for name in names}


def _concatenate(parts: Sequence[tf.Tensor | tf.SparseTensor]) -> np.ndarray:
    if isinstance(parts[0], tf.SparseTensor):
        rows = tf.concat([tf.RaggedTensor.from_sparse(part) for part in parts], axis=0)
        dense = rows.to_tensor(0).numpy()
        # A feature without a single value still gets a column, so that its embedding average has a shape.
        return dense if dense.shape[1] else np.zeros((len(dense), 1), dense.dtype)
    return np.concatenate([part.numpy() for part in parts])
