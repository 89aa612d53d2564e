"""`recommend_filtered`: excluded items, allowed items and k, compared with the order of `recommend`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

World = Any
Loaded = Any

NO_IDS = np.zeros([1, 0], str)


def words(values: np.ndarray) -> list[str]:
    return [value.decode() for value in values]


def padded(lists: list[list[str]]) -> list[list[str]]:
    """Lists of one length, at least 1."""
    width = max([1, *map(len, lists)])
    return [row + [""] * (width - len(row)) for row in lists]


@pytest.fixture(scope="module")
def order(world: World, unseen_items: Loaded) -> dict[str, list[str]]:
    """All items that each user may be recommended, in the order they are."""
    users = [*world.users[:4], "new user"]
    answer = unseen_items("recommend", user_id=users)["item_ids"]
    return {user: [item for item in words(row) if item] for user, row in zip(users, answer, strict=True)}


def test_the_defaults_return_the_top_10_of_recommend(world: World, unseen_items: Loaded) -> None:
    users = [*world.users[:3], "new user"]
    every, first = unseen_items("recommend", user_id=users), unseen_items("recommend_filtered", user_id=users)
    assert first.keys() == every.keys()
    for name, values in first.items():
        assert values.shape == (4, 10)
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, every[name][:, :10], rtol=1e-5)
        else:
            np.testing.assert_array_equal(values, every[name][:, :10])


def test_each_request_equals_a_filtered_sort(world: World, unseen_items: Loaded, order: dict[str, list[str]]) -> None:
    ids = st.sampled_from([*world.items[:40], "no such item", ""])
    rows = st.lists(
        st.tuples(st.sampled_from(sorted(order)), st.lists(ids, max_size=6), st.lists(ids, max_size=6)),
        min_size=1,
        max_size=4,
    )

    @settings(max_examples=60, deadline=None)
    @given(rows=rows, k=st.integers(1, 140))
    def check(rows: list[tuple[str, list[str], list[str]]], k: int) -> None:
        users, exclude, only = ([row[place] for row in rows] for place in range(3))
        answer = unseen_items("recommend_filtered", user_id=users, exclude=padded(exclude), only=padded(only), k=k)
        assert answer["item_ids"].shape == (len(rows), min(k, len(world.items)))
        for place, (user, left_out, allowed) in enumerate(rows):
            restricted = [item for item in allowed if item]
            expected = [
                item for item in order[user] if item not in left_out and (not restricted or item in restricted)
            ][:k]
            found = words(answer["item_ids"][place])
            assert found == expected + [""] * (len(found) - len(expected))
            rest = slice(len(expected), None)
            assert not answer["scores"][place, rest].any() and not answer["ratings"][place, rest].any()
            assert set(words(answer["name"][place, rest])) <= {""}
            assert (answer["ratings"][place, : len(expected)] >= 1).all()

    check()


@pytest.mark.parametrize("name", ["exclude", "only"])
def test_a_list_of_one_row_is_broadcast(unseen_items: Loaded, order: dict[str, list[str]], name: str) -> None:
    users, ids = sorted(order), order["new user"][:3]
    one = unseen_items("recommend_filtered", user_id=users, **{name: [ids]})
    each = unseen_items("recommend_filtered", user_id=users, **{name: [ids] * len(users)})
    np.testing.assert_array_equal(one["item_ids"], each["item_ids"])


@pytest.mark.parametrize("name", ["exclude", "only"])
@pytest.mark.parametrize("nothing", [NO_IDS, [[""]], [["", ""]]])
def test_empty_lists_have_no_effect(unseen_items: Loaded, name: str, nothing: Any) -> None:
    users = ["g0u01", "new user"]
    plain = unseen_items("recommend_filtered", user_id=users)["item_ids"]
    np.testing.assert_array_equal(
        unseen_items("recommend_filtered", user_id=users, **{name: nothing})["item_ids"], plain
    )
    one_a_row = np.broadcast_to(np.array(nothing, str), [2, np.array(nothing).shape[1]])
    np.testing.assert_array_equal(
        unseen_items("recommend_filtered", user_id=users, **{name: one_a_row})["item_ids"], plain
    )


def test_new_items_cannot_be_excluded_but_restrict_the_candidates(unseen_items: Loaded) -> None:
    plain = unseen_items("recommend_filtered", user_id=["g0u01"])
    left_out = unseen_items("recommend_filtered", user_id=["g0u01"], exclude=[["no such item"]])
    np.testing.assert_array_equal(left_out["item_ids"], plain["item_ids"])
    allowed = unseen_items("recommend_filtered", user_id=["g0u01", "g0u02"], only=[["no such item"], [""]])
    assert set(words(allowed["item_ids"][0])) == {""} and (allowed["item_ids"][1] != b"").all()


def test_only_does_not_include_seen_items(world: World, unseen_items: Loaded) -> None:
    seen = sorted(world.seen("g0u01"))
    answer = unseen_items("recommend_filtered", user_id=["g0u01"], only=[[*seen, "cold001"]])
    assert [item for item in words(answer["item_ids"][0]) if item] == ["cold001"]


def test_exclude_applies_also_without_exclude_seen(world: World, all_items: Loaded) -> None:
    seen = sorted(world.seen("g0u01"))
    answer = all_items("recommend_filtered", user_id=["g0u01"], only=[seen], exclude=[seen[:2]], k=100)
    assert {item for item in words(answer["item_ids"][0]) if item} == set(seen[2:])


def test_k_may_exceed_the_recipe_s(world: World, all_items: Loaded) -> None:
    answer = all_items("recommend_filtered", user_id=["g0u01"], k=120)
    assert len(set(words(answer["item_ids"][0]))) == 120
    assert all_items("recommend_filtered", user_id=["g0u01"], k=10**9)["item_ids"].shape == (1, len(world.items))


@pytest.mark.parametrize("k", [0, -1, -(2**31)])
def test_k_below_1_is_an_error(all_items: Loaded, k: int) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="k must be at least 1"):
        all_items("recommend_filtered", user_id=["g0u01"], k=k)


@pytest.mark.parametrize("name", ["exclude", "only"])
@pytest.mark.parametrize("rows", [2, 4])
def test_lists_for_another_number_of_rows_are_an_error(all_items: Loaded, name: str, rows: int) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        all_items("recommend_filtered", user_id=["a", "b", "c"], **{name: [["g0i00"]] * rows})
