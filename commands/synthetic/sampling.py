"""Samples the interactions in blocks of users, each with its own random stream; `files.py` writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from commands.synthetic.ground_truth import (
    EXPLORING,
    PERIOD_SECONDS,
    PERIODS,
    RATING_NOISE,
    START,
    Bools,
    Floats,
    GroundTruth,
    Ints,
    stream,
)

BLOCK_ROWS = 1 << 18
"""A block ends after the user with whom it reaches this number of rows."""

_CHOICES = 2
_ROUNDS = 30
_TIME_BITS = 26


@dataclasses.dataclass(frozen=True)
class InteractionBlock:
    """The rows of a block of users, sorted by user and time.

    Attributes:
        users: int64 [n], positions in `Users`.
        slots: int64 [n], slots in `Items`.
        periods: int64 [n], months from the start of the time span.
        times: int64 [n], seconds since 1970.
        means: float64 [n], the rating before noise, rounding and clipping.
        ratings: int8 [n], 1 to 5.
    """

    users: Ints
    slots: Ints
    periods: Ints
    times: Ints
    means: Floats
    ratings: npt.NDArray[np.int8]

    def of(self, users: Ints) -> InteractionBlock:
        """Return the rows of some users."""
        chosen = np.isin(self.users, users)
        return InteractionBlock(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def stream_interactions(ground_truth: GroundTruth) -> Iterator[InteractionBlock]:
    """Yield all interactions, about `BLOCK_ROWS` at a time. Users without interactions are in no block."""
    sampler = _ItemSampler(ground_truth)
    ends = np.cumsum(ground_truth.users.counts)
    first = block = 0
    while first < len(ends):
        begun = int(ends[first - 1]) if first else 0
        last = min(int(np.searchsorted(ends, begun + BLOCK_ROWS)), len(ends) - 1)
        users = np.repeat(np.arange(first, last + 1), ground_truth.users.counts[first : last + 1])
        if len(users):
            yield sampler.interactions(users, stream(ground_truth.arguments.seed, _CHOICES, block))
        first, block = last + 1, block + 1


class _ItemSampler:
    """Samples items from the ground-truth probabilities.

    Stores 8 bytes per item and month: within (month, cluster) number k, the cumulative fraction of each item in its
    cluster's weight, plus k, so that one binary search over the whole array finds the item.
    """

    def __init__(self, ground_truth: GroundTruth) -> None:
        self._ground_truth = ground_truth
        items, clusters = ground_truth.items, ground_truth.arguments.clusters
        self._cumulated = np.empty((PERIODS, len(items.number)))
        for period in range(PERIODS):
            weights = items.weights(period)
            for cluster in range(clusters):
                part = slice(items.starts[cluster], items.starts[cluster + 1])
                sums = np.cumsum(weights[part])
                self._cumulated[period, part] = sums / sums[-1] + (period * clusters + cluster)
        by_cluster = np.cumsum(ground_truth.popularity, axis=1)
        self._popular = by_cluster / by_cluster[:, -1:] + np.arange(PERIODS)[:, None]

    def interactions(self, users: Ints, random: np.random.Generator) -> InteractionBlock:
        """Sample the rows of a block.

        Args:
            users: User of each row, ascending.
            random: Generator of the block.
        """
        table = self._ground_truth.users
        joined, left = table.joined[users], table.left[users]
        times = joined + (random.random(len(users)) * (left - joined)).astype(np.int64)
        times = np.sort((_counted(users) << _TIME_BITS) | times) & ((1 << _TIME_BITS) - 1)
        periods = times // PERIOD_SECONDS
        slots = self._choose(users, periods, random)
        means = self._ground_truth.rating_means(users, periods, slots)
        noise = RATING_NOISE * random.standard_normal(len(users))
        ratings = np.clip(np.rint(means + noise), 1, 5).astype(np.int8)
        return InteractionBlock(users, slots, periods, START + times, means, ratings)

    def _choose(self, users: Ints, periods: Ints, random: np.random.Generator) -> Ints:
        """Sample a slot for each row without replacement per user.

        Each row takes the first of its independent draws that no earlier row of the same user has. All rows draw
        simultaneously; if two rows of a user have the same item, the later one draws again. The result does not depend
        on the order of the rounds: a row loses an item only to an earlier row, which keeps it.
        """
        thresholds = np.cumsum(self._ground_truth.users.taste(users, periods)[:, :-1], axis=1)
        slots = self._draw(users, periods, thresholds, random)
        rows = np.arange(len(users))
        for _ in range(_ROUNDS):
            again = _repeated(users[rows], slots[rows], len(self._ground_truth.items.number))
            if not again.any():
                return slots
            redrawn = rows[again]
            slots[redrawn] = self._draw(users[redrawn], periods[redrawn], thresholds[redrawn], random)
            # Users without repeated items are finished.
            rows = rows[np.isin(users[rows], np.unique(users[redrawn]), kind="table")]
        for user in np.unique(users[rows]):
            self._finish(user, rows[users[rows] == user], periods, slots, random)
        return slots

    def _draw(self, users: Ints, periods: Ints, thresholds: Floats, random: np.random.Generator) -> Ints:
        """Sample independently from p(i | u, t)."""
        clusters = self._ground_truth.arguments.clusters
        first = random.random(len(users))
        taste = (first - EXPLORING) / (1 - EXPLORING)
        home = (taste[:, None] >= thresholds).sum(axis=1)
        cluster = self._ground_truth.users.homes[users, home].astype(np.int64)
        exploring = np.flatnonzero(taste < 0)
        sought = periods[exploring] + first[exploring] / EXPLORING
        found = np.searchsorted(self._popular.ravel(), sought, side="right")
        cluster[exploring] = np.minimum(found - periods[exploring] * clusters, clusters - 1)
        # 32 bits: a float64 is exact even after the number of the month and cluster is added.
        within = (random.integers(0, 1 << 32, len(users), dtype=np.uint32) + 0.5) / (1 << 32)
        flat = np.searchsorted(self._cumulated.ravel(), periods * clusters + cluster + within, side="right")
        return flat - periods * len(self._ground_truth.items.number)

    def _finish(self, user: int, rows: Ints, periods: Ints, slots: Ints, random: np.random.Generator) -> None:
        """Sample one user's remaining rows exactly, without replacement, after too many rounds of rejection."""
        every = np.arange(len(self._ground_truth.items.number))
        taken = np.zeros(len(every), bool)
        chances: dict[int, Floats] = {}
        for row in rows:
            if taken[slots[row]]:
                period = int(periods[row])
                if period not in chances:
                    chances[period] = self._ground_truth.chances(np.array([user]), np.array([period]), every[None])[0]
                sums = np.cumsum(np.where(taken, 0.0, chances[period]))
                slots[row] = np.searchsorted(sums, random.random() * sums[-1], side="right")
            taken[slots[row]] = True


def _repeated(users: Ints, slots: Ints, items: int) -> Bools:
    """Return a mask of the rows whose item is in an earlier row of the same user."""
    bits = len(users).bit_length()
    keys = np.sort(((_counted(users) * items + slots) << bits) | np.arange(len(users)))
    again = np.zeros(len(users), bool)
    repeated = np.flatnonzero(keys[1:] >> bits == keys[:-1] >> bits) + 1
    again[keys[repeated] & ((1 << bits) - 1)] = True
    return again


def _counted(users: Ints) -> Ints:
    """Number the users from 0 in order of appearance."""
    return np.cumsum(np.diff(users, prepend=users[:1]) != 0)
