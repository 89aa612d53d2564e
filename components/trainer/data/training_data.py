"""Transformed examples as arrays: the interactions of the train split and the catalogue.

Transformed features are numbers of a few bytes. They are parsed once and kept in memory, so that epochs do not parse.
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
    """The interactions and the catalogue in memory: R interactions, U users, N items.

    Index 0 of users and items is the OOV index.

    Example:
        >>> fit, validation = data.hold_out(0.1, "latest", seed=0)
        >>> len(data.labels), len(fit.labels), len(validation.labels)
        (440, 396, 44)
    """

    query: Arrays
    """Query features of each interaction by name: [R], or [R, values] padded with 0 for text and multi-value features.
    The history feature is int64 [R, 3], from `Histories.windows`."""
    items: np.ndarray
    """int64 [R]: vocabulary index of each interaction's item, 1 to N."""
    labels: np.ndarray
    """float32 [R]"""
    times: np.ndarray
    """int64 [R]: seconds; all 0 if the recipe has no timestamp."""
    positive: np.ndarray
    """bool [R]: False for sampled negatives, which contribute to the rating loss only."""
    catalogue: Arrays
    """Candidate features by name, [N + 1] or [N + 1, values] by item index; row 0, the OOV index, is all zeros."""
    display: Arrays
    """Display columns by name, UTF-8 strings [N + 1] by item index; row 0 is empty."""
    user_feature: str
    """Name of the query feature with the user index, 1 to U."""
    user_count: int
    """U"""
    histories: Histories
    """The items that each user interacted with, without sampled negatives."""
    history: History | None = None
    """The recipe's history feature; None if it has none."""

    @property
    def users(self) -> np.ndarray:
        """Vocabulary index of each interaction's user, int64 [R]."""
        return self.query[self.user_feature]

    @property
    def item_count(self) -> int:
        """N, the number of items in the catalogue."""
        return len(next(iter(self.catalogue.values()))) - 1

    def item_frequencies(self) -> np.ndarray:
        """Return the number of interactions of each item, without sampled negatives, int64 [N + 1]."""
        return np.bincount(self.items[self.positive], minlength=self.item_count + 1)

    @property
    def has_negatives(self) -> bool:
        """Whether some interactions are sampled negatives."""
        return not self.positive.all()

    def hold_out(
        self, fraction: float, kind: Literal["random", "latest"], seed: int
    ) -> tuple[TrainingData, TrainingData]:
        """Hold out a validation split.

        As in the eval split, a user without interactions on the training side has the OOV index on the validation side,
        and histories have training interactions only.

        Args:
            fraction: Fraction of rows to hold out, 0 to 1.
            kind: Hold out random rows, or the latest ones.
            seed: Random seed of `random`.

        Returns:
            The rows to train on, and the validation split.

        Raises:
            ValueError: One side would have no interactions.
        """
        rows = len(self.labels)
        order = (
            np.argsort(self.times, kind="stable") if kind == "latest" else np.random.default_rng(seed).permutation(rows)
        )
        count = round(rows * fraction)
        left, held = np.sort(order[: rows - count]), np.sort(order[rows - count :])
        if not self.positive[left].any() or not self.positive[held].any():
            raise ValueError(
                f"training.validation.fraction: {fraction:g} holds out {count} of {rows} rows of the train split; "
                "expected interactions on both sides. Change the fraction or remove training.validation."
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
    """Read the transformed `train` and `catalogue` splits.

    Args:
        train_files: File patterns of the train split.
        catalogue_files: File patterns of the catalogue split.
        transform_output: Output of Transform; its vocabularies define the numbers of users and items.
        features: The recipe's features.
        columns: The recipe's columns.
        negatives: Whether the interactions include sampled negatives.

    Raises:
        ValueError: A split has no examples.

    Example:
        >>> data = read_training_data(train_files, catalogue_files, transform_output, recipe.features, recipe.columns)
        >>> data.item_count
        130
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
    """Return the id feature of a column; the recipe guarantees that there is one.

    Example:
        >>> id_feature(recipe.features.candidate, "item").name
        'item_id'
    """
    return next(feature for feature in features if isinstance(feature, Identifier) and feature.column == column)


def index_count(feature: AnyFeature, transform_output: tft.TFTransformOutput) -> int:
    """Return the number of indices of a feature after Transform, index 0 included: the rows of its embedding table.

    Example:
        >>> index_count(id_feature(recipe.features.candidate, "item"), transform_output)
        131
    """
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
        raise ValueError(f"expected examples in {list(patterns)}, found none")
    return {name: _concatenate([batch[name] for batch in batches]) for name in names}


def _concatenate(parts: Sequence[tf.Tensor | tf.SparseTensor]) -> np.ndarray:
    if isinstance(parts[0], tf.SparseTensor):
        rows = tf.concat([tf.RaggedTensor.from_sparse(part) for part in parts], axis=0)
        dense = rows.to_tensor(0).numpy()
        # A feature without values gets one column, so that the mean of its embeddings has a static shape.
        return dense if dense.shape[1] else np.zeros((len(dense), 1), dense.dtype)
    return np.concatenate([part.numpy() for part in parts])
