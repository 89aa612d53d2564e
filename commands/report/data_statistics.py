"""Computes the data section of the report: distributions, anomalies, rejected rows and drift (TFDV).

Does not import TensorFlow, which the report of a run without examples does not need.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from components.example_validator.anomalies import describe_anomalies

# Threshold of the drift for features without a drift_comparator in the schema. Linf and the Jensen-Shannon divergence
# are between 0 and 1, and typical day-to-day noise is well below.
NOTABLE_DRIFT = 0.1

ANOMALIES_FILE = "SchemaDiff.pb"
REJECTED_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts by bin."""

    edges: np.ndarray
    """float64 [bins + 1]; if `discrete`, the values themselves [bins]."""
    counts: dict[str, np.ndarray]
    """int64 [bins] by split."""
    discrete: bool


@dataclasses.dataclass(frozen=True)
class SplitInteractions:
    """The raw examples of a split as columns, without sampled negatives."""

    users: np.ndarray
    """object (bytes) [n]."""
    items: np.ndarray
    """object (bytes) [n]."""
    labels: np.ndarray
    """float64 [n]."""
    times: np.ndarray | None
    """int64 [n], seconds since 1970; None if the recipe sets no timestamp column."""
    is_whole: bool
    """Whether these are all examples of the split; false for the first examples of a large split."""


@dataclasses.dataclass(frozen=True)
class Drift:
    """Distances of a feature's distribution from others."""

    feature: str
    measure: Literal["L∞", "JS"]
    distances: dict[str, float]
    """Distance by name of the compared data."""
    threshold: float
    """Threshold of the schema, or `NOTABLE_DRIFT`."""

    @property
    def is_notable(self) -> bool:
        return any(distance > self.threshold for distance in self.distances.values())


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Predicted and actual ratings of eval examples, in bins of about equal count by prediction."""

    predicted: np.ndarray
    """float64 [bins]: mean prediction."""
    actual: np.ndarray
    """float64 [bins]: mean label."""
    error: np.ndarray
    """float64 [bins]: half the width of the actual mean's 95 % confidence interval."""
    counts: np.ndarray
    """int64 [bins]."""
    residuals: np.ndarray
    """float64 [examples]: label minus prediction."""


@dataclasses.dataclass(frozen=True)
class ShownItem:
    """An item with its display columns."""

    item_id: str
    display: tuple[str, ...]
    """Non-missing values of the display columns."""
    rating: float
    """Label of a liked item, predicted rating of a recommended item."""
    chosen: bool = False
    """Whether the eval split has an interaction of the user with the item."""


@dataclasses.dataclass(frozen=True)
class SampleUser:
    """One user with liked and recommended items."""

    user_id: str
    kind: str
    """Kind of user, for example `A new user`."""
    interactions: int
    """Number of interactions in the train split."""
    liked: tuple[ShownItem, ...]
    recommended: tuple[ShownItem, ...]


# --- distributions ----------------------------------------------------------------------------------------------------


def label_histogram(splits: Mapping[str, SplitInteractions], bins: int = 20) -> Histogram:
    """Return the distribution of the labels; few distinct values are their own bins."""
    return _histogram({name: split.labels for name, split in splits.items()}, bins)


def time_histogram(splits: Mapping[str, SplitInteractions], bins: int = 30) -> Histogram | None:
    """Return the distribution of the timestamps; None without timestamps."""
    times = {name: split.times.astype(float) for name, split in splits.items() if split.times is not None}
    return _histogram(times, bins, discrete=False) if times else None


def _histogram(values: Mapping[str, np.ndarray], bins: int, discrete: bool = True) -> Histogram:
    together = np.concatenate(list(values.values()))
    together = together[np.isfinite(together)]
    different = np.unique(together)
    if discrete and len(different) <= bins:
        counts = {name: np.array([np.sum(split == one) for one in different]) for name, split in values.items()}
        return Histogram(different, counts, discrete=True)
    edges = np.histogram_bin_edges(together, bins)
    return Histogram(edges, {name: np.histogram(split, edges)[0] for name, split in values.items()}, discrete=False)


def counts_of(ids: np.ndarray) -> np.ndarray:
    """Return the number of interactions of each id, descending; int64 [distinct ids]."""
    counts = np.unique(ids.astype(bytes), return_counts=True)[1]
    return np.sort(counts)[::-1]


def activity_histogram(counts: np.ndarray) -> Histogram:
    """Return the number of users by number of interactions, in bins that double: 1, 2–3, 4–7, …"""
    top = int(np.log2(max(int(counts.max()), 1))) + 1
    edges = 2.0 ** np.arange(top + 1)
    return Histogram(edges, {"train": np.histogram(counts, edges)[0]}, discrete=False)


def concentration(counts: np.ndarray, known_items: int, points: int = 101) -> tuple[np.ndarray, np.ndarray]:
    """Compute the Lorenz curve of popularity, most popular items first.

    Args:
        counts: Number of interactions of each item with interactions, descending.
        known_items: Number of items in the catalogue.
        points: Number of points.

    Returns:
        Fraction of the catalogue and fraction of its interactions, both float64 [points].
    """
    every = np.zeros(max(known_items, len(counts)))
    every[: len(counts)] = counts
    shares = np.concatenate([[0.0], np.cumsum(every) / every.sum()])
    place = np.linspace(0, len(every), points)
    return place / len(every), np.interp(place, np.arange(len(shares)), shares)


# --- anomalies and rejected rows --------------------------------------------------------------------------------------


def anomalies(uri: str, schema: schema_pb2.Schema) -> list[tuple[str, str, str]]:
    """Return split, feature and description of each anomaly that ExampleValidator found."""
    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(uri), "Split-*", ANOMALIES_FILE))):
        with open(path, "rb") as file:
            message = anomalies_pb2.Anomalies.FromString(file.read())
        split = os.path.basename(os.path.dirname(path)).removeprefix("Split-")
        found += [(split, feature, sentence) for feature, sentence in describe_anomalies(message, schema)]
    return found


def rejected_rows(uri: str) -> list[Mapping[str, Any]]:
    """Return the first rows that ExampleGen rejected: table, file, line, reason and row."""
    return list(itertools.islice(_rejected(uri), REJECTED_SHOWN))


def _rejected(uri: str) -> Iterator[Mapping[str, Any]]:
    for path in sorted(glob.glob(os.path.join(glob.escape(uri), "rejected", "*"))):
        with open(path, encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


# --- drift ------------------------------------------------------------------------------------------------------------


def drift(
    schema: schema_pb2.Schema,
    now: statistics_pb2.DatasetFeatureStatistics,
    others: Mapping[str, statistics_pb2.DatasetFeatureStatistics],
) -> list[Drift]:
    """Compute the distance of every feature from other statistics, as TFDV does for `drift_comparator`.

    Numeric features: Jensen-Shannon divergence of the histograms. String features: largest difference of a value's
    frequency (Linf).

    Args:
        schema: The curated schema, with optional thresholds.
        now: Statistics of the run.
        others: Statistics to compare with, by name.

    Returns:
        The features, sorted by distance, largest first.
    """
    # Importing TFDV takes seconds; a report without statistics does not need it.
    import tensorflow_data_validation as tfdv

    measuring = schema_pb2.Schema()
    measuring.CopyFrom(schema)
    thresholds: dict[str, float] = {}
    for feature in measuring.feature:
        measure = "infinity_norm" if feature.type == schema_pb2.BYTES else "jensen_shannon_divergence"
        thresholds[feature.name] = getattr(feature.drift_comparator, measure).threshold or NOTABLE_DRIFT
        # TFDV computes drift only for features with a threshold.
        feature.drift_comparator.Clear()
        getattr(feature.drift_comparator, measure).threshold = 1.0
    text = {feature.name for feature in measuring.feature if feature.type == schema_pb2.BYTES}
    distances: dict[str, dict[str, float]] = {}
    for name, other in others.items():
        result = tfdv.validate_statistics(_listed(now), measuring, previous_statistics=_listed(other))
        for info in result.drift_skew_info:
            if info.drift_measurements:
                distances.setdefault(".".join(info.path.step), {})[name] = info.drift_measurements[0].value
    found = [
        Drift(feature, "L∞" if feature in text else "JS", values, thresholds[feature])
        for feature, values in distances.items()
    ]
    return sorted(found, key=lambda one: (-max(one.distances.values()), one.feature))


def _listed(statistics: statistics_pb2.DatasetFeatureStatistics) -> statistics_pb2.DatasetFeatureStatisticsList:
    return statistics_pb2.DatasetFeatureStatisticsList(datasets=[statistics])


def feature_summaries(statistics: Mapping[str, statistics_pb2.DatasetFeatureStatistics]) -> list[dict[str, Any]]:
    """Return one row per feature for the table of columns: missing fraction by split, and a summary of the values."""
    rows: dict[str, dict[str, Any]] = {}
    for split, dataset in statistics.items():
        for feature in dataset.features:
            name = ".".join(feature.path.step) or feature.name
            kind = feature.WhichOneof("stats")
            figures = getattr(feature, kind) if kind else None
            common = getattr(figures, "common_stats", None)
            row = rows.setdefault(name, {"feature": name, "missing": {}, "values": ""})
            if common is not None:
                total = common.num_missing + common.num_non_missing
                row["missing"][split] = common.num_missing / total if total else 0.0
            if row["values"] or figures is None:
                continue
            if kind == "num_stats":
                row["values"] = f"{figures.min:.6g} to {figures.max:.6g}, mean {figures.mean:.6g}"
            elif kind == "string_stats":
                top: Sequence[Any] = figures.top_values
                first = f", most frequent {top[0].value}" if top else ""
                row["values"] = f"{figures.unique:,} distinct{first}"
    return [rows[name] for name in sorted(rows)]
