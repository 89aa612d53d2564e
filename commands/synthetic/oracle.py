"""Upper bounds of the metrics on synthetic data, computed from the ground truth; `files.py` writes them.

Retrieval. Of all lists of 100 items, the list of the most probable items contains the chosen item most often. So no
model that scores items for a user and a time has more hits, on average, than the true p(i | u, t) (`ground_truth.py`).
Its hits are counted on sampled rows, with the definitions of `components/evaluator/metrics.py`:

    top_100_accuracy         the chosen item is among the 100 largest p(j | u, t) of the whole catalogue
    top_100_accuracy_unseen  the same without the user's items in the train split; as in a random split, each of the
                             user's other rows is in the train split with probability 1 - `EVAL_FRACTION`

Users choose among the items without an earlier interaction. A model that learns to rank those items lower can exceed
the first bound, but not the second.

`best_without_time` is for models without the time of the request as a feature. p is averaged over the months in
which the user is active,

    p(i | u) = sum over t of (fraction of the user's time in t) * p(i | u, t)

Rating. The best prediction in squared error is the expected rating. With stars from 1 to 5 and z(k) = (k + 1/2 - m) /
`RATING_NOISE`, P(r <= k) = Phi(z(k)) for k from 1 to 4, so

    E[r]   = 5 - sum over k of P(r <= k)
    E[r^2] = 25 - sum over k of (2 k + 1) P(r <= k)

and the smallest possible RMSE is the root of the mean of Var[r] = E[r^2] - E[r]^2 over the rows. Without the time, the
best prediction is the mean of E[r] over the months, weighted with (fraction of the user's time in t) * p(i | u, t); the
square of its distance from E[r] comes on top of Var[r].

Standard errors are those of a ratio of sums over users, because the rows of a user are correlated (Cochran 1977,
Sampling Techniques, section 2.11), without the correction for a finite population.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from commands.synthetic.ground_truth import (
    PERIOD_SECONDS,
    PERIODS,
    RATING_NOISE,
    Bools,
    Floats,
    GroundTruth,
    Ints,
    stream,
)
from commands.synthetic.sampling import InteractionBlock

LIST_LENGTH = 100
SAMPLE_ROWS, SAMPLE_USERS = 50_000, 2_000
"""A sample ends after the user with whom it reaches either of them."""
EVAL_FRACTION = 0.2

_SAMPLE, _SPLIT = 6, 7
_SCORES_AT_A_TIME = 1 << 22
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric on a sample, and its standard error (None for a sample of one user)."""

    value: float
    standard_error: float | None


@dataclasses.dataclass(frozen=True)
class UpperBounds:
    """Upper bounds of the metrics, and the metrics of the popularity baseline.

    Attributes:
        best: Upper bound by metric, given preference, popularity and time.
        best_without_time: Upper bound by metric, given preference and popularity.
        popularity: Metrics of the `LIST_LENGTH` most popular items.
        sample_rows: Number of rows in the sample.
        sample_users: Number of users in the sample; the sample has all of their rows.
    """

    best: dict[str, Estimate]
    best_without_time: dict[str, Estimate]
    popularity: dict[str, Estimate]
    sample_rows: int
    sample_users: int

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"eval_fraction": EVAL_FRACTION}


class Sample:
    """All rows of randomly drawn users, and the number of interactions of each item over all rows."""

    def __init__(self, ground_truth: GroundTruth) -> None:
        counts = ground_truth.users.counts
        order = stream(ground_truth.arguments.seed, _SAMPLE).permutation(len(counts))
        order = order[counts[order] > 0]
        enough = int(np.searchsorted(np.cumsum(counts[order]), SAMPLE_ROWS)) + 1
        self._users = np.sort(order[: min(enough, SAMPLE_USERS)])
        self._blocks: list[InteractionBlock] = []
        self.choices = np.zeros(ground_truth.arguments.items, np.int64)

    def add(self, block: InteractionBlock) -> None:
        self.choices += np.bincount(block.slots, minlength=len(self.choices))
        self._blocks.append(block.of(self._users))

    def rows(self) -> InteractionBlock:
        """Return the sampled rows, in the order of `InteractionBlock`."""
        names = [field.name for field in dataclasses.fields(InteractionBlock)]
        return InteractionBlock(*(np.concatenate([getattr(block, name) for block in self._blocks]) for name in names))


def find_upper_bounds(ground_truth: GroundTruth, sample: Sample) -> UpperBounds:
    """Compute the bounds. Memory and time grow with the number of items, not of interactions."""
    rows = sample.rows()
    seen = _Seen(rows, stream(ground_truth.arguments.seed, _SPLIT))
    variance = rating_moments(rows.means)[1]
    return UpperBounds(
        best=_ranked_by_month(ground_truth, rows, seen) | {"rmse": _root(_mean(rows.users, variance))},
        best_without_time=_ranked_without_time(ground_truth, rows, seen)
        | {"rmse": _root(_mean(rows.users, variance + _squared_bias_without_time(ground_truth, rows)))},
        popularity=_ranked_by_popularity(sample.choices, rows, seen),
        sample_rows=len(rows.users),
        sample_users=len(np.unique(rows.users)),
    )


# --- rating -----------------------------------------------------------------------------------------------------------


def rating_moments(means: Floats) -> tuple[Floats, Floats]:
    """Return expectation and variance of the rating for each mean m, float64 [n]."""
    expected, squared = np.full(len(means), 5.0), np.full(len(means), 25.0)
    for k in range(1, 5):
        at_most = _phi((k + 0.5 - means) / RATING_NOISE)
        expected -= at_most
        squared -= (2 * k + 1) * at_most
    return expected, squared - expected**2


def _phi(z: Floats) -> Floats:
    """Return the standard normal distribution function."""
    return np.array([0.5 * math.erfc(one) for one in (z / -math.sqrt(2)).tolist()])


def _squared_bias_without_time(ground_truth: GroundTruth, rows: InteractionBlock) -> Floats:
    """Return each row's squared difference of the best predictions without and with the time."""
    active = _months_active(ground_truth, rows.users)
    expected, chances = np.zeros((2, len(rows.users)))
    for period in range(PERIODS):
        periods = np.full(len(rows.users), period)
        chance = active[:, period] * ground_truth.chances(rows.users, periods, rows.slots)
        expected += chance * rating_moments(ground_truth.rating_means(rows.users, periods, rows.slots))[0]
        chances += chance
    without = expected / chances
    return (without - rating_moments(rows.means)[0]) ** 2


# --- retrieval --------------------------------------------------------------------------------------------------------


class _Seen:
    """Assigns a user's rows to the train split for each row in the eval split.

    The rows are divided into 1 / `EVAL_FRACTION` folds, as in cross-validation: each fold is the eval split once.
    """

    def __init__(self, rows: InteractionBlock, random: np.random.Generator) -> None:
        self.starts = np.flatnonzero(np.diff(rows.users, prepend=-1))
        self.ends = np.append(self.starts[1:], len(rows.users))
        self._part = random.integers(0, round(1 / EVAL_FRACTION), len(rows.users))

    def before(self, part: slice, scores: Floats, own: Ints) -> Ints:
        """Count the user's items in the train split with a higher score than the chosen item.

        Args:
            part: The n rows of one user.
            scores: float64 [requests, n], scores of the items of these rows.
            own: int64 [n], request of each row.
        """
        parts = self._part[part]
        found = np.empty(len(parts), np.int64)
        step = max(1, _SCORES_AT_A_TIME // len(parts))
        for start in range(0, len(parts), step):
            rows = np.arange(start, min(start + step, len(parts)))
            theirs = scores[own[rows]]
            before = (theirs > theirs[np.arange(len(rows)), rows, None]) & (parts != parts[rows, None])
            found[rows] = before.sum(axis=1)
        return found

    def users(self) -> list[slice]:
        return [slice(start, end) for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]


def _ranked_by_month(ground_truth: GroundTruth, rows: InteractionBlock, seen: _Seen) -> dict[str, Estimate]:
    """Rank each row's item by p(i | u, t)."""
    ranks = np.zeros(len(rows.users), np.int64)
    items = ground_truth.items
    for period in np.unique(rows.periods).tolist():
        here = np.flatnonzero(rows.periods == period)
        weights, slots = items.weights(period), rows.slots[here]
        factors = (
            ground_truth.cluster_chances(rows.users[here], rows.periods[here]) / ground_truth.cluster_weights[period]
        )
        own = items.cluster[slots]
        chances = factors[np.arange(len(here)), own] * weights[slots]
        for cluster in range(ground_truth.arguments.clusters):
            sorted_weights = np.sort(weights[items.starts[cluster] : items.starts[cluster + 1]])
            # In its own cluster the item's exact weight: with a rounding error it would outrank itself.
            sought = np.where(own == cluster, weights[slots], chances / factors[:, cluster])
            ranks[here] += len(sorted_weights) - np.searchsorted(sorted_weights, sought, side="right")
    before = np.zeros_like(ranks)
    for part in seen.users():
        periods, own = np.unique(rows.periods[part], return_inverse=True)
        slots = np.broadcast_to(rows.slots[part], (len(periods), part.stop - part.start))
        scores = ground_truth.chances(np.full(len(periods), rows.users[part.start]), periods, slots)
        before[part] = seen.before(part, scores, own)
    return _accuracies(rows, ranks, before)


def _ranked_without_time(ground_truth: GroundTruth, rows: InteractionBlock, seen: _Seen) -> dict[str, Estimate]:
    """Rank each row's item by p(i | u)."""
    ranks, before = np.zeros(len(rows.users), np.int64), np.zeros(len(rows.users), np.int64)
    strongest = _StrongestFirst(ground_truth)
    for part in seen.users():
        user = rows.users[part.start : part.start + 1]
        factors = ground_truth.cluster_chances(user.repeat(PERIODS), np.arange(PERIODS)) / ground_truth.cluster_weights
        factors *= _months_active(ground_truth, user).T
        chosen = strongest.scores(factors, rows.slots[part])
        # Long enough that a hit is found even if all other items of the user are excluded.
        others = strongest.top_scores(factors, LIST_LENGTH + len(chosen))
        # Sums of different lengths round differently, and no item may outrank itself.
        ranks[part] = len(others) - np.searchsorted(others, chosen * (1 + _ROUNDING), side="right")
        before[part] = seen.before(part, chosen[None], np.zeros(len(chosen), np.int64))
    return _accuracies(rows, ranks, before)


class _StrongestFirst:
    """Finds a user's largest scores, sums over months of factor(cluster, t) * w(i, t), without scoring every item.

    A score is at most (sum of the cluster's factors) * (the item's largest weight). With the items of a cluster sorted
    by their largest weight, the items that can exceed a threshold are a prefix.
    """

    def __init__(self, ground_truth: GroundTruth) -> None:
        self._items = ground_truth.items
        largest = functools.reduce(np.maximum, map(ground_truth.items.weights, range(PERIODS)))
        clusters = range(ground_truth.arguments.clusters)
        starts = ground_truth.items.starts
        self._orders = [starts[one] + np.argsort(-largest[starts[one] : starts[one + 1]]) for one in clusters]
        self._largest = [largest[order] for order in self._orders]

    def scores(self, factors: Floats, slots: Ints) -> Floats:
        """Return the exact scores of slots; factors are float64 [PERIODS, clusters]."""
        weights = self._items.weights(np.arange(PERIODS)[:, None], slots)
        return np.asarray((factors[:, self._items.cluster[slots]] * weights).sum(axis=0))

    def top_scores(self, factors: Floats, count: int) -> Floats:
        """Return the largest scores, ascending: all above a threshold, and at least `count` if possible."""
        first = self.scores(factors, np.concatenate([order[:count] for order in self._orders]))
        threshold = np.partition(first, -count)[-count] if len(first) > count else 0.0
        # Lower by more than the rounding error.
        threshold *= 1 - _ROUNDING
        candidates = [
            order[: np.searchsorted(-largest, -threshold / total, side="right")]
            for order, largest, total in zip(self._orders, self._largest, factors.sum(axis=0).tolist(), strict=True)
        ]
        return np.sort(self.scores(factors, np.concatenate(candidates)))


def _months_active(ground_truth: GroundTruth, users: Ints) -> Floats:
    """Return the fraction of each user's time in each month, float64 [n, PERIODS]."""
    joined, left = ground_truth.users.joined[users, None], ground_truth.users.left[users, None]
    edges = np.clip(np.arange(PERIODS + 1) * PERIOD_SECONDS, joined, left)
    return np.diff(edges, axis=1) / (left - joined)


def _ranked_by_popularity(choices: Ints, rows: InteractionBlock, seen: _Seen) -> dict[str, Estimate]:
    """Rank each row's item by its number of interactions."""
    places = np.empty(len(choices), np.int64)
    places[np.argsort(-choices, kind="stable")] = np.arange(len(choices))
    ranks = places[rows.slots]
    before = np.zeros_like(ranks)
    for part in seen.users():
        before[part] = seen.before(
            part, -ranks[None, part].astype(np.float64), np.zeros(part.stop - part.start, np.int64)
        )
    return _accuracies(rows, ranks, before)


def _accuracies(rows: InteractionBlock, ranks: Ints, before: Ints) -> dict[str, Estimate]:
    name = f"top_{LIST_LENGTH}_accuracy"
    return {
        name: _mean(rows.users, ranks < LIST_LENGTH),
        f"{name}_unseen": _mean(rows.users, ranks - before < LIST_LENGTH),
    }


def _mean(users: Ints, values: Floats | Bools) -> Estimate:
    """Return a mean over rows, with the standard error of a sample of users."""
    owner = np.unique(users, return_inverse=True)[1]
    rows = np.bincount(owner)
    sums = np.bincount(owner, weights=values)
    mean = float(sums.sum() / rows.sum())
    if len(rows) < 2:
        return Estimate(mean, None)
    error = math.sqrt(len(rows) / (len(rows) - 1) * float(np.sum((sums - mean * rows) ** 2))) / float(rows.sum())
    return Estimate(mean, error)


def _root(squared: Estimate) -> Estimate:
    """Return the square root, with its standard error to first order."""
    root = math.sqrt(squared.value)
    return Estimate(root, None if squared.standard_error is None else squared.standard_error / (2 * root))
