"""The recipe's `METRICS` as one TFMA metric, which TFMA loads by the class name in `measurement.py`.

TFMA's own metrics would each unpack every example again, have no per-user averages over an example's outputs, and omit
examples whose prediction is NaN, so that a model with such ratings could pass. Here one pass over batches of examples
computes all metrics and their baselines for each slice:

    top_{k}_accuracy         fraction of interactions whose item is in the top k of the catalogue: TFRS's
                             FactorizedTopK
    top_{k}_accuracy_unseen  the same without the items that the user interacted with in the train split
    ndcg_10, recall_10, mrr  averages over the users with interactions in the slice; ranks are among the items that
                             `recommend` returns: unseen items, unless the recipe sets exclude_seen: false
        recall_10            fraction of the user's interactions whose item is in the top 10
        ndcg_10              sum of 1 / log2(1 + rank) over those, relative to the ideal order (Järvelin and
                             Kekäläinen 2002, doi:10.1145/582415.582418)
        mrr                  1 / rank of the best-ranked item, at any rank (Voorhees 1999, TREC-8)
    coverage_10              fraction of the catalogue that is in at least one user's top 10 (Ge et al. 2010,
                             doi:10.1145/1864708.1864761)
    popularity_bias_10       mean of log(1 + interactions in the train split) over the recommended top tens, minus the
                             same mean over the items of the interactions: 0 if recommendations are as popular as
                             choices, log 2 if they are twice as popular; the popularity lift of Abdollahpouri et al.
                             2020, doi:10.1145/3383313.3418487, on the scale of self-information (Zhou et al. 2010,
                             doi:10.1073/pnas.1000488107)
    rmse, mae                of the predicted ratings

The query of each interaction has the context of its own example, so the ranks of one user may differ between examples;
ndcg_10 is clipped to 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tfx import components as _  # noqa: F401  (TFMA 0.52 loses names when it is imported before TFX)

from recipe.evaluation import METRICS, RATING_METRICS

EXAMPLE_COUNT = "example_count"
BASELINE = "baseline_"
"""Prefix of the name of a baseline's metric."""

TOP_K = (1, 5, 10, 50, 100)
LIST_LENGTH = 10

# Outputs of `evaluate` that the metrics read, of the model and of the baselines.
_RANKED = (
    *(f"top_{k}{suffix}_hit" for suffix in ("", "_unseen") for k in TOP_K),
    *("rank", "rank_unseen", f"top_{LIST_LENGTH}_items", f"top_{LIST_LENGTH}_popularity", "rating"),
)
_POPULAR = ("rank", "rank_unseen", f"top_{LIST_LENGTH}_items", f"top_{LIST_LENGTH}_popularity")
OUTPUTS = (
    *_RANKED,
    *(f"popularity_{name}" for name in _POPULAR),
    *("mean_rating", "user_key", "catalogue_size"),
    *("user_interactions", "user_activity", "item_interactions", "item_popularity"),
)

_RETRIEVAL = tuple(name for name in METRICS if name not in RATING_METRICS)

Outputs = Mapping[str, np.ndarray]
Found = dict[str, float]


class RecommenderMetrics(tfma.metrics.Metric):
    """The recipe's `METRICS`, their baselines with the prefix `BASELINE`, and `EXAMPLE_COUNT`, in one pass."""

    def __init__(self, name: str = "recommender", exclude_seen: bool = True) -> None:
        super().__init__(_computations, name=name, exclude_seen=exclude_seen)


def _computations(name: str, exclude_seen: bool, model_names: Sequence[str]) -> list[tfma.metrics.MetricComputation]:
    names = [*METRICS, *(BASELINE + metric for metric in METRICS), EXAMPLE_COUNT]
    return [
        tfma.metrics.MetricComputation(
            keys=[tfma.metrics.MetricKey(metric, model_name=model) for metric in names],
            preprocessors=None,
            combiner=_AllMetrics(model, exclude_seen),
        )
        for model in model_names
    ]


@dataclasses.dataclass
class _Side:
    """Sums of the model or of its baseline."""

    errors: np.ndarray
    """float64 [2]: sums of squared and of absolute rating errors, over all examples."""
    hits: np.ndarray
    """float64 [10]: hits for each k among all items, then among unseen items."""
    log_popularity: float
    """Sum over interactions of the mean log popularity of the top 10."""
    recommended: np.ndarray
    """int64, sorted: distinct items in the top tens."""


@dataclasses.dataclass
class _Sums:
    """Accumulator over the examples of a slice. It grows with the users and the recommended items in the slice."""

    examples: float
    positives: float
    """Number of interactions: examples that are not sampled negatives."""
    log_popularity: float
    """Sum of log(1 + interactions in the train split) over the interactions' items."""
    catalogue_size: int
    model: _Side
    baseline: _Side
    users: dict[int, np.ndarray]
    """By user key, float64 [7]: number of interactions; discounted gain and hits of the model and of the baseline; best
    reciprocal rank of the model and of the baseline."""


# The first columns of `_Sums.users` are sums, the others maxima.
_USER_SUMS = 5


class _AllMetrics(beam.CombineFn):
    """Combiner over batches of examples.

    The example weight, if set, is 1 for interactions and 0 for sampled negatives. Negatives contribute to rating
    metrics, but not to ranking metrics.
    """

    def __init__(self, model: str, exclude_seen: bool) -> None:
        self._model = model
        self._rank = "rank_unseen" if exclude_seen else "rank"

    def create_accumulator(self) -> _Sums:
        return _Sums(0.0, 0.0, 0.0, 0, _no_side(), _no_side(), {})

    def add_input(self, sums: _Sums, batch: Any) -> _Sums:
        outputs: Outputs = batch.get_predictions(self._model or None)
        # float64: sums of millions of float32 errors lose too many digits.
        labels = batch.get_labels(self._model or None).ravel().astype(np.float64)
        weights = batch.get_example_weights(self._model or None)
        positive = np.ones(len(labels), bool) if weights is None else weights.ravel() > 0
        sums.examples += len(labels)
        sums.model.errors += _errors(outputs["rating"], labels)
        sums.baseline.errors += _errors(outputs["mean_rating"], labels)
        if positive.any():
            self._add_interactions(sums, {name: outputs[name][positive] for name in OUTPUTS})
        return sums

    def _add_interactions(self, sums: _Sums, outputs: Outputs) -> None:
        sums.positives += len(outputs["rank"])
        sums.log_popularity += float(np.log1p(outputs["item_interactions"].astype(np.float64)).sum())
        sums.catalogue_size = max(sums.catalogue_size, int(outputs["catalogue_size"].max()))
        hits = [outputs[f"top_{k}{suffix}_hit"] for suffix in ("", "_unseen") for k in TOP_K]
        sums.model.hits += [float(hit.sum(dtype=np.float64)) for hit in hits]
        ranks = [outputs[f"popularity_rank{suffix}"].ravel() for suffix in ("", "_unseen")]
        sums.baseline.hits += [float(((rank >= 0) & (rank < k)).sum()) for rank in ranks for k in TOP_K]
        for side, prefix in ((sums.model, ""), (sums.baseline, "popularity_")):
            popularity = outputs[f"{prefix}top_{LIST_LENGTH}_popularity"]
            side.log_popularity += float(popularity.sum(dtype=np.float64))
            side.recommended = np.union1d(side.recommended, outputs[f"{prefix}top_{LIST_LENGTH}_items"])
        ids, owner = np.unique(outputs["user_key"].ravel(), return_inverse=True)
        table = np.zeros((len(ids), 7))
        table[:, 0] = np.bincount(owner, minlength=len(ids))
        for index, prefix in enumerate(("", "popularity_")):
            rank = outputs[f"{prefix}{self._rank}"].ravel().astype(np.float64)
            first = (rank >= 0) & (rank < LIST_LENGTH)
            gain = np.where(first, 1 / np.log2(np.maximum(rank, 0) + 2), 0.0)
            table[:, 1 + 2 * index] = np.bincount(owner, weights=gain, minlength=len(ids))
            table[:, 2 + 2 * index] = np.bincount(owner, weights=first, minlength=len(ids))
            reciprocal = np.where(rank >= 0, 1 / (np.maximum(rank, 0) + 1), 0.0)
            np.maximum.at(table[:, _USER_SUMS + index], owner, reciprocal)
        _add_users(sums.users, dict(zip(ids.tolist(), table, strict=True)))

    def merge_accumulators(self, accumulators: Iterable[_Sums]) -> _Sums:
        total = self.create_accumulator()
        for sums in accumulators:
            total.examples += sums.examples
            total.positives += sums.positives
            total.log_popularity += sums.log_popularity
            total.catalogue_size = max(total.catalogue_size, sums.catalogue_size)
            for side, other in ((total.model, sums.model), (total.baseline, sums.baseline)):
                side.errors += other.errors
                side.hits += other.hits
                side.log_popularity += other.log_popularity
                side.recommended = np.union1d(side.recommended, other.recommended)
            _add_users(total.users, sums.users)
        return total

    def extract_output(self, sums: _Sums) -> dict[tfma.metrics.MetricKey, float]:
        values = {EXAMPLE_COUNT: sums.examples}
        values |= _finished(sums, sums.model, 0)
        values |= {BASELINE + name: value for name, value in _finished(sums, sums.baseline, 1).items()}
        return {tfma.metrics.MetricKey(name, model_name=self._model): value for name, value in values.items()}


def _no_side() -> _Side:
    return _Side(np.zeros(2), np.zeros(2 * len(TOP_K)), 0.0, np.zeros(0, np.int64))


def _errors(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    error = predicted.ravel().astype(np.float64) - labels
    return np.array([np.sum(error**2), np.sum(np.abs(error))])


def _add_users(users: dict[int, np.ndarray], more: Mapping[int, np.ndarray]) -> None:
    for user, row in more.items():
        found = users.get(user)
        if found is None:
            users[user] = row.copy()
        else:
            found[:_USER_SUMS] += row[:_USER_SUMS]
            np.maximum(found[_USER_SUMS:], row[_USER_SUMS:], out=found[_USER_SUMS:])


def _finished(sums: _Sums, side: _Side, index: int) -> Found:
    """Return the metrics of the model (`index` 0) or of the baseline (1); metrics without examples are omitted."""
    values: Found = {}
    if sums.positives:
        accuracies = [f"top_{k}_accuracy{suffix}" for suffix in ("", "_unseen") for k in TOP_K]
        values |= dict(zip(accuracies, (side.hits / sums.positives).tolist(), strict=True))
        users = np.array(list(sums.users.values()))
        interactions, gain, hits = users[:, 0], users[:, 1 + 2 * index], users[:, 2 + 2 * index]
        ideal = np.cumsum(1 / np.log2(np.arange(LIST_LENGTH) + 2))
        best = ideal[np.minimum(interactions, LIST_LENGTH).astype(int) - 1]
        recommended = side.recommended[side.recommended > 0]
        values |= {
            "ndcg_10": float(np.minimum(gain / best, 1.0).mean()),
            "recall_10": float((hits / interactions).mean()),
            "mrr": float(users[:, _USER_SUMS + index].mean()),
            "coverage_10": len(recommended) / sums.catalogue_size,
            "popularity_bias_10": (side.log_popularity - sums.log_popularity) / sums.positives,
        }
    if sums.examples:
        squared, absolute = (side.errors / sums.examples).tolist()
        values |= {"rmse": math.sqrt(squared), "mae": absolute}
    return values
