"""Whether two answers are the same one: what came over the wire, and what the exported model says offline."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from components.infra_validator.offline import Arrays

# float32, summed in another order.
TOLERANCE = 1e-3
# Scores this close to each other are equal.
TIE = 1e-5
# Items with equal scores may change places between two computations of the same list.
AGREEING_PLACES = 0.99

Floats = npt.NDArray[np.floating[Any]]


class NotServable(Exception):
    """The candidate does not answer as it should; the text is the reason."""


def check_finite(what: str, values: Any) -> None:
    """Raises:
    NotServable: One of the values is no finite number.
    """
    numbers = np.asarray(values, np.float64).ravel()
    for value in numbers[~np.isfinite(numbers)]:
        raise NotServable(f"{what} answered {value}, a finite number was wanted")


def check_same(what: str, served: Arrays, offline: Arrays) -> None:
    """Holds every output of a signature over the wire against the same request offline.

    Args:
        what: Names the request.
        served: Outputs over the wire.
        offline: Outputs of the model in this process.

    Raises:
        NotServable: An output is missing, has another shape, is no finite number, or differs.
    """
    if served.keys() != offline.keys():
        raise NotServable(f"{what} answered {sorted(served)}, the exported model answers {sorted(offline)}")
    for name, expected in offline.items():
        found = served[name]
        if found.shape != expected.shape:
            raise NotServable(f"{what}: {name} has the shape {found.shape}, {expected.shape} in the exported model")
        if found.dtype.kind == "f":
            check_finite(f"{what}, {name},", found)
            same = _close(found, expected)
        else:
            same = found == expected
        # Lists may differ where scores are equal; one value a row may not.
        if np.mean(same) < (AGREEING_PLACES if found.ndim > 1 else 1.0):
            place = tuple(int(index) for index in np.argwhere(~same)[0])
            raise NotServable(
                f"{what}: {name}{list(place)} is {_shown(found[place])} over the wire, {_shown(expected[place])} in "
                "the exported model"
            )


def check_ratings(served: Sequence[float], evaluated: Floats, users: Sequence[str], items: Sequence[str]) -> None:
    """Holds `rate`'s answers for eval rows against the ratings that the Evaluator measures for the same rows.

    Raises:
        NotServable: One is another number.
    """
    for found, expected, user, item in zip(served, evaluated, users, items, strict=True):
        if not _close(np.float64(found), np.float64(expected)):
            raise NotServable(
                f"rate answers {found:.4f} for user {user!r} and item {item!r} over the wire, but the Evaluator "
                f"measured {expected:.4f} for this row: what would be served is not what was evaluated"
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
    """Holds `recommend`'s lists against the lists and ranks that the Evaluator's metrics are made of.

    `evaluate` names items by number, `recommend` by id. So they agree if, over all rows and places, one number always
    stands where one id stands, and if the row's own item has the place that `evaluate` calls its rank.

    Args:
        served: B lists of item ids, best first, as long as `recommend` answers them.
        ordered_by: Score and rating of each of them: the order is by one of them or by both, as the recipe says.
        evaluated: Outputs of `evaluate` for the same rows.
        items: The rows' own items.
        length: How many items were asked for.
        exclude_seen: Whether `recommend` leaves out what the user has interacted with in train.

    Raises:
        NotServable: They disagree at more places than equal scores explain.
    """
    pairs: list[tuple[int, str]] = []
    for row, answer in zip(evaluated["top_10_items"], served, strict=True):
        counted = [int(number) for number in row if number][:length]
        if len(answer[: len(row)]) != len(counted):
            raise NotServable(
                f"recommend answers {len(answer)} items to a user for whom evaluate counts {len(counted)}: the "
                "Evaluator measured other lists than would be served"
            )
        pairs += zip(counted, answer, strict=False)
    disagreeing = len(pairs) - _agreeing(pairs)
    if disagreeing > (1 - AGREEING_PLACES) * len(pairs):
        raise NotServable(
            f"recommend's first items disagree with evaluate's top_10_items at {disagreeing} of {len(pairs)} places: "
            "the Evaluator measured other lists than would be served"
        )
    _check_own_items(served, ordered_by, evaluated["rank_unseen" if exclude_seen else "rank"], items, exclude_seen)


def _check_own_items(
    served: Sequence[Sequence[str]],
    ordered_by: Sequence[Sequence[tuple[float, float]]],
    ranks: npt.NDArray[np.int64],
    items: Sequence[str],
    exclude_seen: bool,
) -> None:
    for answer, values, rank, item in zip(served, ordered_by, ranks, items, strict=True):
        place = answer.index(item) if item in answer else None
        # No rank, further down than the list goes, or seen in train and left out.
        if rank < 0 or place == rank or (place is None and (exclude_seen or rank >= len(answer))):
            continue
        listed = place is not None and rank < len(answer)
        if listed and np.isclose(values[place or 0], values[rank], rtol=TIE, atol=TIE).any():
            continue
        where = "not in" if place is None else f"at place {place + 1} of"
        raise NotServable(
            f"item {item!r} is {where} recommend's list, but at place {rank + 1} in the list that the Evaluator "
            "measured: it is another list than would be served"
        )


def _agreeing(pairs: Sequence[tuple[int, str]]) -> int:
    """How many pairs fit the best one-to-one mapping of numbers to ids that can be read from them, greedily."""
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
