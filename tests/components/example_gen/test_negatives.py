"""Sampled negatives: never an item of the user, the requested number, and deterministic."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.example_gen.hashing import hash_values
from components.example_gen.negatives import SampledNegatives, sample_negatives

CASES = st.integers(1, 30).flatmap(
    lambda size: st.tuples(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, size - 1), st.booleans()), min_size=1, max_size=40),
        st.just(size),
        st.integers(1, 5),
        st.integers(-5, 5),
    )
)
Row = tuple[int, int, bool]


def sample(
    rows: list[Row], size: int, per_positive: int, seed: int, names: dict[int, int] | None = None
) -> SampledNegatives:
    """Sample for rows of user, item and whether it is eval; `names` renumbers the users of the batch."""
    known = sorted({user for user, _, _ in rows})
    numbers = {user: number for number, user in enumerate(known)} if names is None else names
    ids = sorted(numbers, key=lambda user: numbers[user])
    return sample_negatives(
        users=np.array([numbers[user] for user, _, _ in rows], dtype=np.int64),
        user_hashes=hash_values(pa.array([f"u{user}" for user in ids])),
        items=np.array([item for _, item, _ in rows], dtype=np.int64),
        is_eval=np.array([is_eval for _, _, is_eval in rows], dtype=bool),
        catalogue_size=size,
        per_positive=per_positive,
        seed=seed,
    )


@settings(deadline=None, max_examples=300)
@given(CASES)
def test_negatives_are_distinct_items_without_interaction_in_one_split(case: tuple[list[Row], int, int, int]) -> None:
    rows, size, per_positive, seed = case
    sampled = sample(rows, size, per_positive, seed)
    again = sample(rows, size, per_positive, seed)
    assert sampled.parents.tolist() == again.parents.tolist() == sorted(again.parents.tolist())
    assert sampled.items.tolist() == again.items.tolist()
    seen, splits = defaultdict(set), defaultdict(set)
    for user, item, _ in rows:
        seen[user].add(item)
    of_row = defaultdict(list)
    for parent, item in zip(sampled.parents.tolist(), sampled.items.tolist(), strict=True):
        user, _, is_eval = rows[parent]
        assert 0 <= item < size
        assert item not in seen[user]
        splits[user, item].add(is_eval)
        of_row[parent].append(item)
    assert all(len(found) == 1 for found in splits.values())
    for number, (user, _, is_eval) in enumerate(rows):
        assert len(set(of_row[number])) == len(of_row[number])
        available = size - len(seen[user])
        alone = all(other == is_eval for owner, _, other in rows if owner == user)
        # The available items of a user with rows in both splits are divided between them.
        assert len(of_row[number]) >= min(per_positive, available if alone else available // 2)
        assert len(of_row[number]) <= min(per_positive, available)


@settings(deadline=None)
@given(CASES)
def test_a_users_negatives_do_not_depend_on_other_users(case: tuple[list[Row], int, int, int]) -> None:
    rows, size, per_positive, seed = case
    whole = sample(rows, size, per_positive, seed)
    user = rows[0][0]
    numbers = [number for number, row in enumerate(rows) if row[0] == user]
    alone = sample([rows[number] for number in numbers], size, per_positive, seed)
    of_whole = [item for parent, item in zip(whole.parents.tolist(), whole.items.tolist(), strict=True)
                if rows[parent][0] == user]  # fmt: skip
    assert alone.items.tolist() == of_whole


@pytest.mark.parametrize("size", [60, 5000])  # few and many items for the rows of a user
def test_negatives_are_uniform_and_seeds_differ(size: int) -> None:
    rows = [(user, (user * 7 + k) % 10, k % 3 == 0) for user in range(3000) for k in range(4)]
    first, second = (sample(rows, size, 5, seed) for seed in (0, 1))
    assert len(first.items) == len(rows) * 5
    counts = np.bincount(first.items, minlength=size)
    assert counts[:10].sum() < counts[10:20].sum() or size > 100  # the first ten are items of users
    available = counts[10:]
    expected = len(first.items) / size
    assert available.mean() == pytest.approx(expected, rel=0.2)
    assert available.std() < 1.3 * np.sqrt(available.mean()) + 0.02 * available.mean()
    same = (first.items == second.items).mean()
    assert same < 0.1


def test_a_user_with_all_items_gets_no_negatives() -> None:
    rows = [(0, 0, False), (0, 1, True), (1, 0, False)]
    sampled = sample(rows, 2, 3, 0)
    assert Counter(zip(sampled.parents.tolist(), sampled.items.tolist(), strict=True)) == {(2, 1): 1}


def test_negatives_are_pinned() -> None:
    """Models are compared across versions of Tandem, so the same rows must get the same negatives."""
    rows = [(user, user, user == 2) for user in range(4)]
    assert sample(rows, 1000, 2, 7).items.tolist() == [249, 557, 166, 927, 875, 326, 557, 830]
