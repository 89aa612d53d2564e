"""The best figures that any model can reach on synthetic data, from what is planted; `files.py` writes them down.

Retrieval. Of all lists of 100 items, the one with the most probable items holds the chosen one most often. So nothing
that scores items for a user and a time has more hits, on average, than the planted p(i | u, t) itself (`planted.py`).
Its hits are counted on rows that were really drawn, with the definitions of `components/evaluator/metrics.py`:

    top_100_accuracy         the chosen item is among the 100 largest p(j | u, t) of the whole catalogue
    top_100_accuracy_unseen  the same without the user's items in train; as in a random split, each of the user's other
                             rows is in train with probability 1 - `EVAL_FRACTION`

Users choose among the items that they do not have yet. A model that learns to put those down can therefore come above
the first figure, but not above the second one.

`best_without_time` is for models that do not see the time of a request. p is averaged over the months in which the user
is active,

    p(i | u) = sum over t of (share of the user's time in t) * p(i | u, t)

Rating. The best prediction in squared error is the expected rating. With stars from 1 to 5 and z(k) = (k + 1/2 - m) /
`RATING_NOISE`, P(r <= k) = Phi(z(k)) for k from 1 to 4, so

    E[r]   = 5 - sum over k of P(r <= k)
    E[r^2] = 25 - sum over k of (2 k + 1) P(r <= k)

and the smallest possible RMSE is the root of the mean of Var[r] = E[r^2] - E[r]^2 over the rows. Without the time, the
best prediction is the mean of E[r] over the months, weighted with (share of the user's time in t) * p(i | u, t); the
square of its distance from E[r] comes on top of Var[r].

Standard errors are those of a ratio of sums over users, because the rows of a user are alike (Cochran 1977, Sampling
Techniques, section 2.11), without the correction for a finite population.
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
"""A sample ends with the user with whom it reaches either."""
EVAL_FRACTION = 0.2

_SAMPLE, _SPLIT = 6, 7
_SCORES_AT_A_TIME = 1 << 22
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure measured on a sample, and its standard error; a sample of one user says nothing about it."""

    value: float
    standard_error: float | None


@dataclasses.dataclass(frozen=True)
class UpperBounds:
    """The best possible figures, and what recommending the same popular items to everybody reaches.

    Attributes:
        best: By metric, knowing taste, popularity and the time of the choice.
        best_without_time: By metric, without the time.
        popularity: By metric, of the `LIST_LENGTH` most chosen items.
        sample_rows: Rows that were looked at.
        sample_users: Users that these are all the rows of.
    """

    best: dict[str, Estimate]
    best_without_time: dict[str, Estimate]
    popularity: dict[str, Estimate]
    sample_rows: int
    sample_users: int

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"eval_fraction": EVAL_FRACTION}


class Sample:
    """All rows of users drawn at random, and the number of choices of each item over all rows."""

    def __init__(self, ground_truth: GroundTruth) -> None:
        counts = ground_truth.users.counts
        order = stream(ground_truth.arguments.seed, _SAMPLE).permutation(len(counts))
        order = order[counts[order] > 0]
        wanted = int(np.searchsorted(np.cumsum(counts[order]), SAMPLE_ROWS)) + 1
        self._users = np.sort(order[: min(wanted, SAMPLE_USERS)])
        self._blocks: list[InteractionBlock] = []
        self.choices = np.zeros(ground_truth.arguments.items, np.int64)

    def add(self, block: InteractionBlock) -> None:
        self.choices += np.bincount(block.slots, minlength=len(self.choices))
        self._blocks.append(block.of(self._users))

    def rows(self) -> InteractionBlock:
        """The sampled rows, in the order of `InteractionBlock`."""
        names = [field.name for field in dataclasses.fields(InteractionBlock)]
        return InteractionBlock(*(np.concatenate([getattr(block, name) for block in self._blocks]) for name in names))


def find_upper_bounds(ground_truth: GroundTruth, sample: Sample) -> UpperBounds:
    """Computes the figures. Memory and time grow with the items, and not with the interactions."""
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
    """Expectation and variance of the rating for each mean m, float64 [n]."""
    expected, squared = np.full(len(means), 5.0), np.full(len(means), 25.0)
    for k in range(1, 5):
        at_most = _phi((k + 0.5 - means) / RATING_NOISE)
        expected -= at_most
        squared -= (2 * k + 1) * at_most
    return expected, squared - expected**2


def _phi(z: Floats) -> Floats:
    """The standard normal distribution function."""
    return np.array([0.5 * math.erfc(one) for one in (z / -math.sqrt(2)).tolist()])


def _squared_bias_without_time(ground_truth: GroundTruth, rows: InteractionBlock) -> Floats:
    """Of each row, the squared distance of the best prediction without the time from that with it."""
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
    """Says which of a user's rows are in train where another one is in eval.

    The rows are dealt into 1 / `EVAL_FRACTION` parts; of those, each is eval once and the others are train.
    """

    def __init__(self, rows: InteractionBlock, random: np.random.Generator) -> None:
        self.starts = np.flatnonzero(np.diff(rows.users, prepend=-1))
        self.ends = np.append(self.starts[1:], len(rows.users))
        self._part = random.integers(0, round(1 / EVAL_FRACTION), len(rows.users))

    def before(self, part: slice, scores: Floats, own: Ints) -> Ints:
        """How many of the user's items in train stand before the chosen one.

        Args:
            part: The rows of one user, n of them.
            scores: float64 [requests, n], of the items of these rows; a higher one stands before.
            own: int64 [n], the request that each row makes.
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
    """Ranks each row's item by p(i | u, t)."""
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
            # In its own cluster the item's weight as it is: a rounding error would set it before itself.
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
    """Ranks each row's item by p(i | u)."""
    ranks, before = np.zeros(len(rows.users), np.int64), np.zeros(len(rows.users), np.int64)
    strongest = _StrongestFirst(ground_truth)
    for part in seen.users():
        user = rows.users[part.start : part.start + 1]
        factors = ground_truth.cluster_chances(user.repeat(PERIODS), np.arange(PERIODS)) / ground_truth.cluster_weights
        factors *= _months_active(ground_truth, user).T
        chosen = strongest.scores(factors, rows.slots[part])
        # Deep enough that a hit stays one when all of the user's other items are left out.
        others = strongest.top_scores(factors, LIST_LENGTH + len(chosen))
        # Sums of another number of items may be rounded otherwise, and no item stands before itself.
        ranks[part] = len(others) - np.searchsorted(others, chosen * (1 + _ROUNDING), side="right")
        before[part] = seen.before(part, chosen[None], np.zeros(len(chosen), np.int64))
    return _accuracies(rows, ranks, before)


class _StrongestFirst:
    """Finds a user's largest scores, sums over months of factor(cluster, t) * w(i, t), without scoring every item.

    No score is above (sum of the cluster's factors) * (the item's largest weight). With the items of a cluster in the
    order of their largest weights, those that can come above a threshold stand together in front.
    """

    def __init__(self, ground_truth: GroundTruth) -> None:
        self._items = ground_truth.items
        largest = functools.reduce(np.maximum, map(ground_truth.items.weights, range(PERIODS)))
        clusters = range(ground_truth.arguments.clusters)
        starts = ground_truth.items.starts
        self._orders = [starts[one] + np.argsort(-largest[starts[one] : starts[one + 1]]) for one in clusters]
        self._largest = [largest[order] for order in self._orders]

    def scores(self, factors: Floats, slots: Ints) -> Floats:
        """Exact scores of slots; factors are float64 [PERIODS, clusters]."""
        weights = self._items.weights(np.arange(PERIODS)[:, None], slots)
        return np.asarray((factors[:, self._items.cluster[slots]] * weights).sum(axis=0))

    def top_scores(self, factors: Floats, count: int) -> Floats:
        """The largest scores, ascending: at least `count` of them, if there are so many items, and none is left out."""
        first = self.scores(factors, np.concatenate([order[:count] for order in self._orders]))
        threshold = np.partition(first, -count)[-count] if len(first) > count else 0.0
        # Lower by more than what rounding can do.
        threshold *= 1 - _ROUNDING
        candidates = [
            order[: np.searchsorted(-largest, -threshold / total, side="right")]
            for order, largest, total in zip(self._orders, self._largest, factors.sum(axis=0).tolist(), strict=True)
        ]
        return np.sort(self.scores(factors, np.concatenate(candidates)))


def _months_active(ground_truth: GroundTruth, users: Ints) -> Floats:
    """The share of each user's time in each month, float64 [n, PERIODS]."""
    joined, left = ground_truth.users.joined[users, None], ground_truth.users.left[users, None]
    edges = np.clip(np.arange(PERIODS + 1) * PERIOD_SECONDS, joined, left)
    return np.diff(edges, axis=1) / (left - joined)


def _ranked_by_popularity(choices: Ints, rows: InteractionBlock, seen: _Seen) -> dict[str, Estimate]:
    """Ranks each row's item by how often it was chosen."""
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
    """A mean over rows, with the standard error of a sample of users."""
    owner = np.unique(users, return_inverse=True)[1]
    rows = np.bincount(owner)
    sums = np.bincount(owner, weights=values)
    mean = float(sums.sum() / rows.sum())
    if len(rows) < 2:
        return Estimate(mean, None)
    error = math.sqrt(len(rows) / (len(rows) - 1) * float(np.sum((sums - mean * rows) ** 2))) / float(rows.sum())
    return Estimate(mean, error)


def _root(squared: Estimate) -> Estimate:
    """The root, with its standard error to first order."""
    root = math.sqrt(squared.value)
    return Estimate(root, None if squared.standard_error is None else squared.standard_error / (2 * root))
