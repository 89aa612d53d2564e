"""Samples negatives: for every interaction some items of the catalogue that its user has no interaction with.

The draw for a user depends on the user's own rows, the catalogue and the seed alone: not on other users, on how the
rows are spread over workers, or on any library's random numbers.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from components.example_gen.split import Hashes, Mask, mix

Codes = npt.NDArray[np.int64]

_DENSE = 4
"""A user for whom more than one in so many untouched items is wanted gets them from a shuffled list."""
_ROUND = np.uint64(0xD1B54A32D192ED03)


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Negatives.

    Attributes:
        parents: The interaction that each belongs to, as a row number; ascending.
        items: The item of each, as its number in the catalogue.
    """

    parents: Codes
    items: Codes


def sample_negatives(
    users: Codes, user_hashes: Hashes, items: Codes, is_eval: Mask, catalogue_size: int, per_positive: int, seed: int
) -> Sampled:
    """Draws negatives for every row, uniformly among what its user has not touched.

    The negatives of one row are different items, and no pair of user and item is a negative of both splits. Where the
    user has plenty of untouched items, all negatives of the user are different. Where not, train and eval share the
    untouched items in proportion to their rows, and a row gets fewer than `per_positive` only if its share is smaller.

    Args:
        users: A number for each row's user, from 0; all rows of a user are here, in file order.
        user_hashes: For each of those numbers, a hash of the user's id.
        items: Each row's item, as its number in the catalogue.
        is_eval: Each row's split.
        catalogue_size: How many items there are.
        per_positive: How many negatives a row gets.
        seed: Another seed gives an independent draw.
    """
    if not len(users):
        return Sampled(np.array([], np.int64), np.array([], np.int64))
    seeds = mix(user_hashes ^ mix(np.full(1, np.uint64(seed % 2**64), dtype=np.uint64)))
    touched = np.unique(users * catalogue_size + items)
    rows_of = np.bincount(users, minlength=len(user_hashes))
    untouched = catalogue_size - np.bincount(touched // catalogue_size, minlength=len(user_hashes))
    dense = rows_of * per_positive * _DENSE > untouched
    by_user = np.argsort(users, kind="stable")
    starts = np.cumsum(rows_of) - rows_of
    # Each row's number among the rows of its user.
    ordinal = np.empty(len(users), dtype=np.int64)
    ordinal[by_user] = np.arange(len(users)) - np.repeat(starts, rows_of)

    sparse = np.flatnonzero(~dense[users])
    drawn = _draw(users[sparse], seeds, ordinal[sparse], touched, catalogue_size, per_positive)
    parents, found = [np.repeat(sparse, per_positive)], [drawn]
    for user in np.flatnonzero(dense & (rows_of > 0)).tolist():
        rows = by_user[starts[user] : starts[user] + rows_of[user]]
        first, last = np.searchsorted(touched, [user * catalogue_size, (user + 1) * catalogue_size])
        pool = np.delete(np.arange(catalogue_size), touched[first:last] - user * catalogue_size)
        pool = pool[np.argsort(mix(seeds[user] ^ mix(pool.astype(np.uint64))), kind="stable")]
        evals, trains = _shares(len(pool), int(is_eval[rows].sum()), len(rows), per_positive)
        for members, share in (
            (rows[is_eval[rows]], pool[:evals]),
            (rows[~is_eval[rows]], pool[evals : evals + trains]),
        ):
            each = min(per_positive, len(share))
            if each:
                # Around and around the shuffled list: neighbours in it are different items.
                parents.append(np.repeat(members, each))
                found.append(share[np.arange(len(members) * each) % len(share)])
    order = np.argsort(np.concatenate(parents), kind="stable")
    return Sampled(np.concatenate(parents)[order], np.concatenate(found)[order])


def _draw(
    users: Codes, seeds: Hashes, ordinals: Codes, touched: Codes, catalogue_size: int, per_positive: int
) -> Codes:
    """`per_positive` items for each row, none of them touched or drawn before by the same user."""
    owners = np.repeat(users, per_positive)
    slots = (ordinals[:, None] * per_positive + np.arange(per_positive)).ravel().astype(np.uint64)
    keys = mix(seeds[owners] ^ mix(slots))
    items = np.full(len(owners), -1, dtype=np.int64)
    open_slots = np.arange(len(owners))
    while len(open_slots):
        keys[open_slots] = mix(keys[open_slots] ^ _ROUND)
        drawn = (keys[open_slots] % np.uint64(catalogue_size)).astype(np.int64)
        pairs = owners[open_slots] * catalogue_size + drawn
        place = np.minimum(np.searchsorted(touched, pairs), len(touched) - 1)
        fresh = touched[place] != pairs
        # Of two slots that draw the same item, the first one has it.
        chosen = np.flatnonzero(fresh)
        chosen = chosen[np.sort(np.unique(pairs[chosen], return_index=True)[1])]
        items[open_slots[chosen]] = drawn[chosen]
        # Disjoint, so a sort does what a union would, several times faster.
        touched = np.sort(np.concatenate([touched, pairs[chosen]]))
        open_slots = np.delete(open_slots, chosen)
    return items


def _shares(untouched: int, eval_rows: int, rows: int, per_positive: int) -> tuple[int, int]:
    """How many of a user's untouched items are for eval and for train."""
    if eval_rows in (0, rows):
        return (untouched, 0) if eval_rows else (0, untouched)
    least = min(per_positive, untouched // 2)
    evals = min(max(round(untouched * eval_rows / rows), least), untouched - least)
    return evals, untouched - evals
