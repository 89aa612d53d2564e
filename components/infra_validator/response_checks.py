"""Checks of the server's responses against the exported model and against the outputs that the Evaluator measured."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from components.infra_validator.local_model import Arrays

# float32 sums in another order.
TOLERANCE = 1e-3
# Relative and absolute difference of equal scores.
TIE = 1e-5
# Fraction of positions that must agree: items with equal scores may swap positions.
AGREEING_POSITIONS = 0.99

Floats = npt.NDArray[np.floating[Any]]


class NotServable(Exception):
    """The candidate's responses are invalid, too slow or not those of the evaluation; the message is the reason."""


def check_finite(what: str, values: Any) -> None:
    """Check that all values are finite.

    Raises:
        NotServable: A value is NaN or infinite.
    """
    numbers = np.asarray(values, np.float64).ravel()
    for value in numbers[~np.isfinite(numbers)]:
        raise NotServable(f"{what}: expected finite numbers, got {value}")


def check_same(what: str, served: Arrays, local: Arrays) -> None:
    """Check that the server's outputs of a request equal those of the exported model in this process.

    Args:
        what: Name of the request, for the message.
        served: Outputs of the server.
        local: Outputs of the model in this process.

    Raises:
        NotServable: An output is missing, has another shape, is not finite, or differs.
    """
    if served.keys() != local.keys():
        raise NotServable(f"{what}: expected the outputs {sorted(local)}, got {sorted(served)}")
    for name, expected in local.items():
        found = served[name]
        if found.shape != expected.shape:
            raise NotServable(f"{what}: {name}: expected the shape {expected.shape}, got {found.shape}")
        if found.dtype.kind == "f":
            check_finite(f"{what}: {name}", found)
            same = _close(found, expected)
        else:
            same = found == expected
        # Items with equal scores may swap positions in lists.
        if np.mean(same) < (AGREEING_POSITIONS if found.ndim > 1 else 1.0):
            at = tuple(int(index) for index in np.argwhere(~same)[0])
            raise NotServable(
                f"{what}: {name}{list(at)}: expected {_shown(expected[at])} as in the exported model, got "
                f"{_shown(found[at])}"
            )


def check_ratings(served: Sequence[float], evaluated: Floats, users: Sequence[str], items: Sequence[str]) -> None:
    """Check that the ratings of `rate` equal those that the Evaluator measured for the same rows.

    Raises:
        NotServable: A rating differs.
    """
    for found, expected, user, item in zip(served, evaluated, users, items, strict=True):
        if not _close(np.float64(found), np.float64(expected)):
            raise NotServable(
                f"rate: expected the evaluated rating {expected:.4f} for user {user!r} and item {item!r}, got "
                f"{found:.4f}"
            )


def check_lists(
    served: Sequence[Sequence[str]],
    ordered_by: Sequence[Sequence[tuple[float, float]]],
    evaluated: Arrays,
    items: Sequence[str],
    *,
    length: int,
    exclude_seen: bool,
) -> None:
    """Check that the lists of `recommend` are those that the Evaluator measured.

    `evaluate` returns item indices, `recommend` item ids. The lists agree if the mapping of indices to ids is
    one-to-one over all rows and positions, and if the row's own item has the rank that `evaluate` returns.

    Args:
        served: B lists of item ids, best first.
        ordered_by: Score and rating of each item; the recipe orders by one of them or by both.
        evaluated: Outputs of `evaluate` for the same rows.
        items: The rows' own items.
        length: Number of items requested.
        exclude_seen: Whether `recommend` excludes items that the user interacted with in the train split.

    Raises:
        NotServable: They differ at more positions than equal scores explain.
    """
    pairs: list[tuple[int, str]] = []
    for row, listed in zip(evaluated["top_10_items"], served, strict=True):
        counted = [int(number) for number in row if number][:length]
        if len(listed[: len(row)]) != len(counted):
            raise NotServable(f"recommend: expected the {len(counted)} items of the evaluated list, got {len(listed)}")
        pairs += zip(counted, listed, strict=False)
    differing = len(pairs) - _agreeing(pairs)
    if differing > (1 - AGREEING_POSITIONS) * len(pairs):
        raise NotServable(
            f"recommend: expected the evaluated lists (top_10_items), got other items at {differing} of {len(pairs)} "
            "positions"
        )
    _check_own_items(served, ordered_by, evaluated["rank_unseen" if exclude_seen else "rank"], items, exclude_seen)


def _check_own_items(
    served: Sequence[Sequence[str]],
    ordered_by: Sequence[Sequence[tuple[float, float]]],
    ranks: npt.NDArray[np.int64],
    items: Sequence[str],
    exclude_seen: bool,
) -> None:
    for listed, values, rank, item in zip(served, ordered_by, ranks, items, strict=True):
        position = listed.index(item) if item in listed else None
        # No rank, beyond the end of the list, or seen in the train split and excluded.
        if rank < 0 or position == rank or (position is None and (exclude_seen or rank >= len(listed))):
            continue
        in_list = position is not None and rank < len(listed)
        if in_list and np.isclose(values[position or 0], values[rank], rtol=TIE, atol=TIE).any():
            continue
        found = "no rank" if position is None else f"rank {position + 1}"
        raise NotServable(f"recommend: expected the evaluated rank {rank + 1} of item {item!r}, got {found}")


def _agreeing(pairs: Sequence[tuple[int, str]]) -> int:
    """Return the number of pairs in a one-to-one mapping of indices to ids, chosen greedily."""
    numbers: set[int] = set()
    ids: set[str] = set()
    agreeing = 0
    for (number, item), count in collections.Counter(pairs).most_common():
        if number not in numbers and item not in ids:
            numbers.add(number)
            ids.add(item)
            agreeing += count
    return agreeing


def _close(found: Any, expected: Any) -> npt.NDArray[np.bool_]:
    return np.isclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def _shown(value: Any) -> str:
    return repr(value.decode(errors="replace")) if isinstance(value, bytes) else f"{value}"
