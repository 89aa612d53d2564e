"""Transformed examples as arrays: the interactions to learn from and the catalogue to choose from.

Transform wrote numbers only, a few bytes a feature, so they are parsed once and kept; epochs then cost no parsing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from components.trainer.data.histories import Histories
from components.transform.preprocessing import LABEL, TIME, display_name
from recipe.columns import IS_POSITIVE, Columns
from recipe.features import AnyFeature, Features, History, Identifier

Arrays = dict[str, np.ndarray]

PARSE_BATCH = 8192


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What the Trainer learns from. `R` interactions, `N` items; index 0 of items and users is "unknown"."""

    query: Arrays
    """Query features of each interaction, [R] or, for text and multi-value features, [R, values] padded with 0. That of
    the history is int64 [R, 3], the `windows` of `histories`."""
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
    histories: Histories
    """What each user has interacted with, sampled negatives left out."""
    history: History | None = None
    """The recipe's history feature, if there is one."""

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

    def hold_out(
        self, fraction: float, kind: Literal["random", "latest"], seed: int
    ) -> tuple[TrainingData, TrainingData]:
        """Keeps some interactions from training, as the eval split is kept from it.

        Users whose interactions are all held out become unknown there, and no history holds an interaction that is
        held out.

        Args:
            fraction: The part that is held out.
            kind: Any interactions, or the latest ones.
            seed: Of the choice of `random`.

        Returns:
            What is left to train on, and what is held out.

        Raises:
            ValueError: One of the two would have no interactions.
        """
        rows = len(self.labels)
        order = (
            np.argsort(self.times, kind="stable") if kind == "latest" else np.random.default_rng(seed).permutation(rows)
        )
        count = round(rows * fraction)
        left, held = np.sort(order[: rows - count]), np.sort(order[rows - count :])
        if not self.positive[left].any() or not self.positive[held].any():
            raise ValueError(
                f"training.validation.fraction is {fraction:g}, which keeps {count} of {rows} rows of train for "
                "validation; interactions on both sides were wanted. Change the fraction, or leave validation out"
            )
        fit = self._rows(left)
        histories = _collect(
            fit.users, fit.items, fit.times, fit.labels, fit.positive, self.user_count, self.item_count
        )
        known = np.zeros(self.user_count + 1, bool)
        known[fit.users] = True
        validation = self._rows(held)
        users = np.where(known[validation.users], validation.users, 0)
        validation = dataclasses.replace(validation, query=validation.query | {self.user_feature: users})
        return fit._with_histories(histories), validation._with_histories(histories)

    def _rows(self, chosen: np.ndarray) -> TrainingData:
        return dataclasses.replace(
            self,
            query={name: values[chosen] for name, values in self.query.items()},
            items=self.items[chosen],
            labels=self.labels[chosen],
            times=self.times[chosen],
            positive=self.positive[chosen],
        )

    def _with_histories(self, histories: Histories) -> TrainingData:
        query = self.query
        if self.history is not None:
            windows = histories.windows(self.users, self.items, self.times, self.history)
            query = query | {self.history.name: windows}
        return dataclasses.replace(self, query=query, histories=histories)


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
    names = [feature.name for feature in features.for_transform().query]
    parts = [item_feature.name, LABEL, *([TIME] if columns.timestamp else []), *([IS_POSITIVE] if negatives else [])]
    train = _read(train_files, transform_output, [*names, *parts])
    shown = {feature.column: display_name(feature.column) for feature in features.candidate if feature.display}
    described = [feature.name for feature in features.candidate]
    found = _read(catalogue_files, transform_output, [*described, *shown.values()])
    item_count = int(transform_output.vocabulary_size_by_name(item_feature.name))
    by_index = {}
    for name, values in found.items():
        by_index[name] = np.zeros((item_count + 1, *values.shape[1:]), values.dtype)
        by_index[name][found[item_feature.name]] = values
        by_index[name][0] = 0
    for name in shown.values():
        by_index[name] = np.where(by_index[name] == 0, b"", by_index[name])
    positive = train[IS_POSITIVE] > 0 if negatives else np.ones(len(train[LABEL]), bool)
    users, items = train[user_feature.name], train[item_feature.name]
    times = train[TIME] if columns.timestamp else np.zeros(len(train[LABEL]), np.int64)
    user_count = int(transform_output.vocabulary_size_by_name(user_feature.name))
    histories = _collect(users, items, times, train[LABEL], positive, user_count, item_count)
    data = TrainingData(
        query={name: train[name] for name in names},
        items=items,
        labels=train[LABEL],
        times=times,
        positive=positive,
        catalogue={name: by_index[name] for name in described},
        display={column: by_index[name] for column, name in shown.items()},
        user_feature=user_feature.name,
        user_count=user_count,
        histories=histories,
        history=features.history,
    )
    return data._with_histories(histories)


def _collect(
    users: np.ndarray,
    items: np.ndarray,
    times: np.ndarray,
    labels: np.ndarray,
    positive: np.ndarray,
    user_count: int,
    item_count: int,
) -> Histories:
    return Histories.collect(
        users[positive],
        items[positive],
        times[positive],
        labels[positive],
        user_count=user_count,
        item_count=item_count,
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
