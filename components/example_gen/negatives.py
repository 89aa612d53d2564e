"""Samples negatives (`data.negatives`): for every interaction, items that its user has no interaction with.

The negatives of a user depend on the user's own rows, the catalogue and the seed alone: not on other users, on the
number of workers, or on any library's random numbers. The executor calls it.

    sampled = sample_negatives(users, hash_values(user_ids), items, is_eval, len(item_ids), per_positive=4, seed=0)
    negative_ids = item_ids.take(pa.array(sampled.items))  # of the interactions sampled.parents
"""

from __future__ import annotations

import dataclasses

import numpy as np

from components.example_gen.duplicates import Codes
from components.example_gen.hashing import Hashes, mix
from components.example_gen.rows import Mask

_DENSE = 4
"""A user who needs more than one in this many items without interaction gets them from a shuffled list."""
_ROUND = np.uint64(0xD1B54A32D192ED03)


@dataclasses.dataclass(frozen=True)
class SampledNegatives:
    """Negatives of a batch of interactions.

    Attributes:
        parents: The interaction that each belongs to, as a row number; ascending.
        items: The item of each, as its number in the catalogue.
    """

    parents: Codes
    items: Codes


def sample_negatives(
    users: Codes, user_hashes: Hashes, items: Codes, is_eval: Mask, catalogue_size: int, per_positive: int, seed: int
) -> SampledNegatives:
    """Sample negatives for every row, uniformly from the items that its user has no interaction with.

    The negatives of one row are distinct items, and no pair of user and item is a negative of both splits. If the user
    has many items without interaction, all negatives of the user are distinct. If not, these items are divided between
    train and eval in proportion to their rows, and a row gets fewer than `per_positive` only if its part is smaller.

    Args:
        users: A number for each row's user, from 0; with all rows of each user, in file order.
        user_hashes: For each of those numbers, a hash of the user's id.
        items: Each row's item, as its number in the catalogue.
        is_eval: Whether each row is in the eval split.
        catalogue_size: Number of items.
        per_positive: Number of negatives per row.
        seed: Random seed.
    """
    if not len(users):
        return SampledNegatives(np.array([], np.int64), np.array([], np.int64))
    seeds = mix(user_hashes ^ mix(np.full(1, np.uint64(seed % 2**64), dtype=np.uint64)))
    excluded = np.unique(users * catalogue_size + items)
    rows_of = np.bincount(users, minlength=len(user_hashes))
    available = catalogue_size - np.bincount(excluded // catalogue_size, minlength=len(user_hashes))
    dense = rows_of * per_positive * _DENSE > available
    by_user = np.argsort(users, kind="stable")
    starts = np.cumsum(rows_of) - rows_of
    # Each row's number among the rows of its user.
    ordinal = np.empty(len(users), dtype=np.int64)
    ordinal[by_user] = np.arange(len(users)) - np.repeat(starts, rows_of)

    sparse = np.flatnonzero(~dense[users])
    drawn = _draw(users[sparse], seeds, ordinal[sparse], excluded, catalogue_size, per_positive)
    parents, found = [np.repeat(sparse, per_positive)], [drawn]
    for user in np.flatnonzero(dense & (rows_of > 0)).tolist():
        rows = by_user[starts[user] : starts[user] + rows_of[user]]
        first, last = np.searchsorted(excluded, [user * catalogue_size, (user + 1) * catalogue_size])
        pool = np.delete(np.arange(catalogue_size), excluded[first:last] - user * catalogue_size)
        pool = pool[np.argsort(mix(seeds[user] ^ mix(pool.astype(np.uint64))), kind="stable")]
        evals, trains = _shares(len(pool), int(is_eval[rows].sum()), len(rows), per_positive)
        for members, share in (
            (rows[is_eval[rows]], pool[:evals]),
            (rows[~is_eval[rows]], pool[evals : evals + trains]),
        ):
            each = min(per_positive, len(share))
            if each:
                # Cyclically through the shuffled list: neighbours in it are distinct items.
                parents.append(np.repeat(members, each))
                found.append(share[np.arange(len(members) * each) % len(share)])
    order = np.argsort(np.concatenate(parents), kind="stable")
    return SampledNegatives(np.concatenate(parents)[order], np.concatenate(found)[order])


def _draw(
    users: Codes, seeds: Hashes, ordinals: Codes, excluded: Codes, catalogue_size: int, per_positive: int
) -> Codes:
    """Draw `per_positive` items for each row, none of them an interaction or an earlier draw of the same user."""
    owners = np.repeat(users, per_positive)
    slots = (ordinals[:, None] * per_positive + np.arange(per_positive)).ravel().astype(np.uint64)
    keys = mix(seeds[owners] ^ mix(slots))
    items = np.full(len(owners), -1, dtype=np.int64)
    open_slots = np.arange(len(owners))
    while len(open_slots):
        keys[open_slots] = mix(keys[open_slots] ^ _ROUND)
        drawn = (keys[open_slots] % np.uint64(catalogue_size)).astype(np.int64)
        pairs = owners[open_slots] * catalogue_size + drawn
        place = np.minimum(np.searchsorted(excluded, pairs), len(excluded) - 1)
        fresh = excluded[place] != pairs
        # If two slots draw the same item, the first one keeps it.
        chosen = np.flatnonzero(fresh)
        chosen = chosen[np.sort(np.unique(pairs[chosen], return_index=True)[1])]
        items[open_slots[chosen]] = drawn[chosen]
        # Disjoint, so sorting gives their union, several times faster than np.union1d.
        excluded = np.sort(np.concatenate([excluded, pairs[chosen]]))
        open_slots = np.delete(open_slots, chosen)
    return items


def _shares(available: int, eval_rows: int, rows: int, per_positive: int) -> tuple[int, int]:
    """Return the number of a user's items without interaction for eval and for train."""
    if eval_rows in (0, rows):
        return (available, 0) if eval_rows else (0, available)
    least = min(per_positive, available // 2)
    evals = min(max(round(available * eval_rows / rows), least), available - least)
    return evals, available - evals
