"""Responses must equal the evaluation, except for the order of equal scores."""

from __future__ import annotations

from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.infra_validator.latency import measure
from components.infra_validator.response_checks import NotServable, check_lists, check_ratings, check_same

# What a neighbour on the machine takes is not the test's.
patient = settings(deadline=None, max_examples=30)

CATALOGUE = [f"item{number}" for number in range(1, 31)]


class Lists:
    """Rows of a model that ranks the whole catalogue, each in an order of its own."""

    def __init__(self, seed: int, rows: int = 40, length: int = 20) -> None:
        random = np.random.default_rng(seed)
        self.orders = [random.permutation(len(CATALOGUE)) for _ in range(rows)]
        self.served = [[CATALOGUE[index] for index in order[:length]] for order in self.orders]
        # A score and a rating for each place.
        self.ordered_by = [[(-float(place), float(place) ** 2) for place in range(length)] for _ in range(rows)]
        self.items = [CATALOGUE[index] for index in random.integers(len(CATALOGUE), size=rows)]
        ranks = [
            int(np.flatnonzero(order == CATALOGUE.index(item))[0])
            for order, item in zip(self.orders, self.items, strict=True)
        ]
        self.evaluated = {
            "top_10_items": np.array([order[:10] + 1 for order in self.orders]),
            "rank": np.array(ranks),
            "rank_unseen": np.array(ranks),
        }
        self.length = length

    def check(self, **changes: Any) -> None:
        options = {"length": self.length, "exclude_seen": False, **changes}
        check_lists(self.served, self.ordered_by, self.evaluated, self.items, **options)


@patient
@given(st.integers(0, 1000), st.sampled_from([3, 10, 20]))
def test_lists_in_the_evaluated_order_agree(seed: int, length: int) -> None:
    Lists(seed, length=length).check()


@patient
@given(st.integers(0, 1000), st.data())
def test_another_item_at_one_position_of_every_list_is_found(seed: int, data: st.DataObject) -> None:
    lists = Lists(seed)
    place = data.draw(st.integers(0, 9))
    for answer in lists.served:
        answer[place], answer[place + 1] = answer[place + 1], answer[place]
    with pytest.raises(NotServable, match=r"expected the evaluated"):
        lists.check()


@patient
@given(st.integers(0, 1000))
def test_ids_that_are_one_row_off_are_found(seed: int) -> None:
    """Each index maps to one id, but to the id of its neighbour: the ranks of the rows' own items differ."""
    lists = Lists(seed)
    off = dict(zip(CATALOGUE, [*CATALOGUE[1:], CATALOGUE[0]], strict=True))
    lists.served = [[off[item] for item in answer] for answer in lists.served]
    with pytest.raises(NotServable, match=r"expected the evaluated rank"):
        lists.check()


@pytest.mark.parametrize("equal", ["score", "rating"])
def test_items_with_equal_scores_may_swap_positions(equal: str) -> None:
    """A recipe orders by score or by rating; of two items that are equal there, either may come first."""
    lists = Lists(1)
    lists.items = [answer[12] for answer in lists.served]
    lists.evaluated["rank"] = np.full(len(lists.items), 12)
    lists.check()
    for answer in lists.served:
        answer[12], answer[13] = answer[13], answer[12]
    with pytest.raises(NotServable, match=r"evaluated rank 13 .*got rank 14"):
        lists.check()
    for values in lists.ordered_by:
        score, rating = values[13]
        values[12] = (score, values[12][1]) if equal == "score" else (values[12][0], rating)
    lists.check()


def test_a_seen_item_may_be_missing_from_the_list() -> None:
    lists = Lists(3)
    for row, answer in enumerate(lists.served):
        lists.items[row] = "seen in train"
        assert "seen in train" not in answer
    lists.evaluated["rank_unseen"] = np.zeros(len(lists.items), int)
    lists.check(exclude_seen=True)
    lists.evaluated["rank"] = np.zeros(len(lists.items), int)
    with pytest.raises(NotServable, match=r"got no rank"):
        lists.check(exclude_seen=False)


def test_shorter_lists_than_evaluated_are_found() -> None:
    lists = Lists(4)
    lists.served[7] = lists.served[7][:4]
    with pytest.raises(NotServable, match=r"expected the 10 items .* got 4"):
        lists.check()


def test_unknown_items_have_no_rank() -> None:
    lists = Lists(5)
    lists.evaluated["rank"] = np.full(len(lists.items), -1)
    lists.check()


@patient
@given(st.lists(st.floats(1, 5), min_size=1, max_size=20), st.floats(0.01, 1), st.data())
def test_one_other_rating_among_many_is_found(ratings: list[float], difference: float, data: st.DataObject) -> None:
    names = [f"u{number}" for number in range(len(ratings))]
    check_ratings([rating + 1e-5 for rating in ratings], np.array(ratings), names, names)
    place = data.draw(st.integers(0, len(ratings) - 1))
    served = [rating + difference * (number == place) for number, rating in enumerate(ratings)]
    with pytest.raises(NotServable, match=rf"'u{place}'"):
        check_ratings(served, np.array(ratings), names, names)


@pytest.mark.parametrize(
    ("served", "message"),
    [
        ({"ids": np.array([[b"a"]], object)}, "expected the outputs"),
        ({"ids": np.array([[b"a", b"b"]], object), "scores": np.array([[1.0]])}, "shape"),
        ({"ids": np.array([[b"b"]], object), "scores": np.array([[1.0]])}, "expected 'a'.*got 'b'"),
        ({"ids": np.array([[b"a"]], object), "scores": np.array([[1.5]])}, "1.5"),
        ({"ids": np.array([[b"a"]], object), "scores": np.array([[np.nan]])}, "nan"),
    ],
)
def test_the_same_request_must_get_the_same_response(served: dict[str, Any], message: str) -> None:
    local = {"ids": np.array([[b"a"]], object), "scores": np.array([[1.0]])}
    check_same("it", local, local)
    with pytest.raises(NotServable, match=message):
        check_same("it", served, local)


def test_one_slow_round_does_not_reject_a_model() -> None:
    """Other load on the machine slowed down the first round."""
    rounds = iter([0.02] * 150)

    def call(number: int) -> None:
        import time

        time.sleep(next(rounds, 0.0))

    found = measure(call, limit_ms=15)
    assert found.p99_ms < 15 and found.p50_ms <= found.p99_ms
