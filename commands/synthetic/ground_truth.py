"""The ground truth of a synthetic dataset: items, users, their preferences, and how both change over time.

Time is cut into `PERIODS` of a month. Within one of them, user u chooses item i, of cluster c, with probability

    p(i | u, t) = q(c | u, t) * w(i, t) / sum of w(j, t) over the items j of c
    q(c | u, t) = (1 - EXPLORING) * taste(c | u, t) + EXPLORING * (fraction of c in the sum of w(j, t) over all items)

among the items that the user has not interacted with. w(i, t) is a Zipf weight times a life cycle: 0 before the
item's launch, then an exponential decay towards a floor. A preference (`taste`) is spread over `HOMES` clusters; over
the months, the fraction `drift` of it moves from the first to the last of them. The rating is

    r = clip(round(m + RATING_NOISE * normal), 1, 5)
    m = RATING_MEAN + user bias + item bias + TASTE_EFFECT * taste(cluster of i | u, t)
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from recipe import BadInput

PERIODS = 24
START = 1_672_531_200
"""2023-01-01, UTC."""
PERIOD_SECONDS = 2_629_800
"""A twelfth of 365.25 days."""
SPAN_SECONDS = PERIODS * PERIOD_SECONDS

HOMES = 4
"""Number of clusters of a user's preference."""
EXPLORING = 0.1
"""Fraction of the choices that follow popularity instead of the user's preference."""

ZIPF_EXPONENT = 0.8
LIFE_FLOOR = 0.1
"""Fraction of an item's weight that remains long after its launch."""
LIFE_YEARS = 0.5
"""Median time constant of the decay."""

ACTIVITY_SIGMA = 1.0
"""Standard deviation of the logarithm of a user's number of interactions."""

RATING_MEAN = 2.8
USER_BIAS, ITEM_BIAS = 0.4, 0.5
"""Standard deviations."""
TASTE_EFFECT = 2.0
RATING_NOISE = 0.7

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class SyntheticError(BadInput):
    """The arguments are inconsistent, or the folder contains files of other arguments."""


@dataclasses.dataclass(frozen=True)
class SyntheticSpec:
    """Arguments of the generator; the same arguments give the same bytes.

    Attributes:
        users: Number of users in users.csv; with few interactions, some users have none.
        items: Number of items in items.csv.
        interactions: Number of valid rows in interactions.csv.
        seed: Random seed.
        clusters: Number of item clusters.
        drift: Fraction of a user's first preference that moves to another cluster over the two years, 0 to 1.
        broken: Fraction of malformed lines below the header, 0 to 0.5. They are added to the valid rows.
    """

    users: int = 2_000
    items: int = 1_000
    interactions: int = 100_000
    seed: int = 0
    clusters: int = 10
    drift: float = 0.5
    broken: float = 0.0

    def check(self) -> None:
        """Raise SyntheticError if the arguments are inconsistent."""
        for name, low in (("users", 1), ("items", 4), ("interactions", 1), ("seed", 0), ("clusters", 1)):
            if getattr(self, name) < low:
                raise SyntheticError(f"--{name}: expected at least {low}, got {getattr(self, name)}.")
        for name, high in (("drift", 1.0), ("broken", 0.5)):
            if not 0 <= getattr(self, name) <= high:
                raise SyntheticError(f"--{name}: expected a number from 0 to {high:g}, got {getattr(self, name):g}.")
        if self.clusters > self.items // 4:
            raise SyntheticError(
                f"--clusters: expected at most a quarter of the {self.items:,} items, got {self.clusters:,}. "
                "Decrease --clusters or increase --items."
            )
        most = self.users * self.most_of_a_user
        if self.interactions > most:
            raise SyntheticError(
                f"--interactions: expected at most {most:,}, got {self.interactions:,}: no user rates an item "
                f"twice, or more than a quarter of the {self.items:,} items. Increase "
                "--users or --items, or decrease --interactions."
            )

    @property
    def most_of_a_user(self) -> int:
        """Maximum number of interactions of a user, apart from rounding."""
        return self.items // 4

    @property
    def broken_lines(self) -> int:
        return round(self.interactions * self.broken / (1 - self.broken))


def stream(seed: int, *key: int) -> np.random.Generator:
    """Return a separate generator for each part of the data, so that the parts are independent of each other."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


_ITEMS, _USERS = 0, 1


@dataclasses.dataclass(frozen=True)
class Items:
    """The items, sorted by cluster; a position in this order is a slot.

    Attributes:
        number: int64 [items], item id of each slot in items.csv, from 1.
        cluster: int64 [items].
        starts: int64 [clusters + 1], the first slot of each cluster.
        weight: float64 [items], the Zipf weight.
        launch: float64 [items], months since the start of the time span; negative before it.
        life: float64 [items], months, the time constant of the decay.
        bias: float64 [items], rating bias.
    """

    number: Ints
    cluster: Ints
    starts: Ints
    weight: Floats
    launch: Floats
    life: Floats
    bias: Floats

    @staticmethod
    def draw(arguments: SyntheticSpec) -> Items:
        random = stream(arguments.seed, _ITEMS)
        count, clusters = arguments.items, arguments.clusters
        sizes = random.dirichlet(np.full(clusters, 5.0))
        cluster = random.choice(clusters, count, p=sizes)
        # Each cluster has an item from before the first month, so that every month has items to choose from.
        cluster[:clusters] = np.arange(clusters)
        launch = np.where(
            np.arange(count) < (count + 1) // 2, -PERIODS * random.random(count), PERIODS * random.random(count)
        )
        weight = random.permutation(np.arange(1, count + 1) ** -ZIPF_EXPONENT)
        life = 12 * LIFE_YEARS * np.exp(0.7 * random.standard_normal(count))
        # Popular items have higher ratings, as in real data.
        popular = np.log(weight) - np.log(weight).mean()
        bias = ITEM_BIAS * (0.3 * popular / max(popular.std(), 1e-9) + 0.954 * random.standard_normal(count))
        order = np.argsort(cluster, kind="stable")
        number = 1 + random.permutation(count)
        starts = np.searchsorted(cluster[order], np.arange(clusters + 1))
        return Items(number[order], cluster[order], starts, weight[order], launch[order], life[order], bias[order])

    def weights(self, period: int | Ints, slots: slice | Ints = slice(None)) -> Floats:
        """Return w(i, t) of slots in a month, float64, broadcast over both; 0 before the launch."""
        launch, life = self.launch[slots], self.life[slots]
        age = np.maximum(period + 0.5 - launch, 0)
        weights = self.weight[slots] * (LIFE_FLOOR + (1 - LIFE_FLOOR) * np.exp(-age / life))
        return np.where(np.floor(launch) <= period, weights, 0.0)


@dataclasses.dataclass(frozen=True)
class Users:
    """The users; the id of a user in users.csv is the position here plus 1.

    Attributes:
        homes: int32 [users, HOMES], clusters of each user's preference; they may repeat.
        shares: float64 [users, HOMES], fractions of the preference in the first month; the last is 0.
        counts: int64 [users], number of interactions of each user.
        joined: int64 [users], start of the user's interactions, seconds since `START`.
        left: int64 [users], end of the user's interactions, seconds since `START`.
        bias: float64 [users], rating bias.
        drift: Fraction of the first home that moves to the last one.
    """

    homes: npt.NDArray[np.int32]
    shares: Floats
    counts: Ints
    joined: Ints
    left: Ints
    bias: Floats
    drift: float

    @staticmethod
    def draw(arguments: SyntheticSpec) -> Users:
        random = stream(arguments.seed, _USERS)
        count, clusters = arguments.users, arguments.clusters
        liked = random.dirichlet(np.full(clusters, 5.0))
        homes = random.choice(clusters, (count, HOMES), p=liked).astype(np.int32)
        shares = np.zeros((count, HOMES))
        shares[:, :-1] = random.dirichlet((6.0, 3.0, 1.0), count)
        shares[:, :-1] = -np.sort(-shares[:, :-1], axis=1)
        joined = SPAN_SECONDS * np.where(random.random(count) < 0.3, 0.0, 0.95 * random.random(count))
        stay = SPAN_SECONDS * (0.02 + random.exponential(0.4, count))
        counts = _counts(np.exp(ACTIVITY_SIGMA * random.standard_normal(count)), arguments)
        bias = USER_BIAS * random.standard_normal(count)
        left = np.minimum(joined + stay, SPAN_SECONDS)
        return Users(homes, shares, counts, joined.astype(np.int64), left.astype(np.int64), bias, arguments.drift)

    def taste(self, users: Ints, periods: Ints) -> Floats:
        """Return the fractions of the users' homes in the given months, float64 [n, HOMES]."""
        shares = self.shares[users]
        moved = shares[:, 0] * self.drift * (periods + 0.5) / PERIODS
        shares[:, 0] -= moved
        shares[:, -1] += moved
        return shares


def _counts(activity: Floats, arguments: SyntheticSpec) -> Ints:
    """Return the number of interactions of each user: proportional to `activity`, up to the maximum."""
    most = arguments.most_of_a_user
    capped = np.zeros(len(activity), bool)
    expected = activity
    while True:
        left = arguments.interactions - most * int(capped.sum())
        free = activity[~capped].sum()
        expected = np.where(capped, most, activity * (left / free if free else 0.0))
        over = expected > most
        if not over.any():
            break
        capped |= over
    edges = np.floor(np.cumsum(expected) + 0.5).astype(np.int64)
    edges[-1] = arguments.interactions
    return np.diff(edges, prepend=0)


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The ground truth of a dataset.

    Attributes:
        arguments: Arguments of the generator.
        items: The items.
        users: The users.
        cluster_weights: float64 [PERIODS, clusters], sums of the items' weights.
        popularity: float64 [PERIODS, clusters], fraction of each cluster in the weights of a month.
    """

    arguments: SyntheticSpec
    items: Items
    users: Users
    cluster_weights: Floats
    popularity: Floats

    @staticmethod
    def draw(arguments: SyntheticSpec) -> GroundTruth:
        """Raise SyntheticError if the arguments are inconsistent."""
        arguments.check()
        items = Items.draw(arguments)
        sums = np.stack([np.add.reduceat(items.weights(period), items.starts[:-1]) for period in range(PERIODS)])
        return GroundTruth(arguments, items, Users.draw(arguments), sums, sums / sums.sum(axis=1, keepdims=True))

    def tastes(self, users: Ints, periods: Ints) -> Floats:
        """Return taste(c | u, t) of each user in the given months, float64 [n, clusters]."""
        tastes = np.zeros((len(users), self.arguments.clusters))
        rows = np.arange(len(users))
        for home, share in zip(self.users.homes[users].T, self.users.taste(users, periods).T, strict=True):
            tastes[rows, home] += share
        return tastes

    def cluster_chances(self, users: Ints, periods: Ints) -> Floats:
        """Return q(c | u, t), float64 [n, clusters]."""
        return (1 - EXPLORING) * self.tastes(users, periods) + EXPLORING * self.popularity[periods]

    def rating_means(self, users: Ints, periods: Ints, slots: Ints) -> Floats:
        """Return m of each row, the rating before noise, rounding and clipping; float64 [n]."""
        at_home = self.users.homes[users] == self.items.cluster[slots, None]
        match = np.where(at_home, self.users.taste(users, periods), 0.0).sum(axis=1)
        return RATING_MEAN + self.users.bias[users] + self.items.bias[slots] + TASTE_EFFECT * match

    def chances(self, users: Ints, periods: Ints, slots: Ints) -> Floats:
        """Return p(i | u, t) for a user without interactions; users and periods [n] are broadcast to the slots."""
        by_cluster = self.cluster_chances(users, periods) / self.cluster_weights[periods]
        clusters = self.items.cluster[slots]
        if slots.ndim == 1:
            return by_cluster[np.arange(len(users)), clusters] * self.items.weights(periods, slots)
        return np.take_along_axis(by_cluster, clusters, axis=1) * self.items.weights(periods[:, None], slots)
