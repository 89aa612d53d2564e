"""The `evaluate` signature, compared with `recommend`, `rate` and NumPy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from components.trainer.data.training_data import TrainingData
from components.trainer.export import ServedRecommender
from components.trainer.model.rating import damped_means

World = Any
Loaded = Any
Example = Callable[[Any], bytes]

TOP_K = (1, 5, 10, 50, 100)
CONTEXT = ("at", "age", "Plan", "moods", "height")
NEW_USER = {"customer": "new user", "item": "g0i02"}


def words(values: np.ndarray) -> list[str]:
    return [value.decode() for value in values]


def given(row: dict[str, Any]) -> dict[str, list[Any]]:
    """A row's query columns as inputs of `recommend` and `rate`."""
    return {name: [row[name]] for name in CONTEXT if row.get(name) is not None}


@pytest.fixture(scope="module")
def chosen(world: World) -> list[dict[str, Any]]:
    """Users with seen items, unseen items, items without interactions and new items."""
    random = np.random.default_rng(3)
    rows = [{**row, "item": str(random.choice(world.items))} for row in world.interactions[:60]]
    rows += world.interactions[60:80]
    return [*rows, NEW_USER, {**NEW_USER, "item": "cold003"}, {"customer": "g0u01", "item": "never heard of"}]


@pytest.fixture(scope="module")
def evaluated(chosen: list[Any], unseen_items: Loaded, example: Example) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = unseen_items("evaluate", examples=[example(row) for row in chosen])
    return found


@pytest.fixture(scope="module")
def catalogue(world: World) -> list[str]:
    """Item ids in vocabulary order."""
    ids: list[str] = [value.decode() for value in world.transform_output.vocabulary_by_name("item_id")]
    return ids


@pytest.fixture(scope="module")
def counts(world: World) -> Counter[str]:
    return Counter(row["item"] for row in world.interactions)


def test_the_unseen_rank_is_the_position_in_recommend(
    world: World, chosen: list[Any], evaluated: dict[str, np.ndarray], unseen_items: Loaded
) -> None:
    compared = 0
    for place, row in enumerate(chosen):
        ranked = words(unseen_items("recommend", user_id=[row["customer"]], **given(row))["item_ids"][0])
        if row["item"] in ranked:
            assert evaluated["rank_unseen"][place] == ranked.index(row["item"])
            compared += 1
    assert compared > 50


def test_a_seen_item_stays_a_candidate_of_its_own_example(
    world: World, chosen: list[Any], evaluated: dict[str, np.ndarray], all_items: Loaded, unseen_items: Loaded
) -> None:
    compared = 0
    for place, row in enumerate(chosen):
        seen = world.seen(row["customer"])
        if row["item"] not in seen:
            continue
        ranked = words(all_items("recommend", user_id=[row["customer"]], **given(row))["item_ids"][0])
        if row["item"] in ranked:
            rank = ranked.index(row["item"])
            assert evaluated["rank"][place] == rank
            assert evaluated["rank_unseen"][place] == rank - sum(item in seen for item in ranked[:rank])
            compared += 1
    assert compared >= 20


def test_hits_are_ranks_below_k(evaluated: dict[str, np.ndarray]) -> None:
    for suffix in ("", "_unseen"):
        rank = evaluated[f"rank{suffix}"]
        for k in TOP_K:
            np.testing.assert_array_equal(evaluated[f"top_{k}{suffix}_hit"], (rank >= 0) & (rank < k))
    assert (evaluated["rank_unseen"] < evaluated["rank"]).any()


def test_an_item_outside_the_catalogue_has_no_rank(chosen: list[Any], evaluated: dict[str, np.ndarray]) -> None:
    place = [row["item"] for row in chosen].index("never heard of")
    assert [evaluated[name][place] for name in ("rank", "rank_unseen")] == [-1, -1]
    assert [evaluated[name][place] for name in ("popularity_rank", "popularity_rank_unseen")] == [-1, -1]
    assert evaluated["item_interactions"][place] == 0


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_top_10_items_are_those_of_recommend(
    chosen: list[Any],
    all_items: Loaded,
    unseen_items: Loaded,
    example: Example,
    catalogue: list[str],
    counts: Counter[str],
    exclude_seen: bool,
) -> None:
    loaded = unseen_items if exclude_seen else all_items
    evaluated = loaded("evaluate", examples=[example(row) for row in chosen])
    for place, row in enumerate(chosen):
        first = words(loaded("recommend", user_id=[row["customer"]], **given(row))["item_ids"][0, :10])
        assert [catalogue[item - 1] for item in evaluated["top_10_items"][place]] == first
        popularity = np.mean([math.log1p(counts[item]) for item in first])
        assert evaluated["top_10_popularity"][place] == pytest.approx(popularity, rel=1e-6)


def test_evaluate_recommend_and_rate_agree_for_the_same_users_and_items(
    chosen: list[Any], evaluated: dict[str, np.ndarray], unseen_items: Loaded
) -> None:
    """Evaluated values equal served values bit by bit."""
    for place, row in enumerate(chosen):
        answer = unseen_items("recommend", user_id=[row["customer"]], **given(row))
        first = set(words(answer["item_ids"][0, :100]))
        rated = unseen_items("rate", user_id=[row["customer"]], item_id=[row["item"]], **given(row))["rating"]
        np.testing.assert_allclose(evaluated["rating"][place], rated[0], rtol=1e-6)
        if row["item"] in words(answer["item_ids"][0]):
            assert evaluated["top_100_unseen_hit"][place] == float(row["item"] in first)
            again = answer["ratings"][0][words(answer["item_ids"][0]).index(row["item"])]
            np.testing.assert_allclose(again, rated[0], rtol=1e-5)


def test_hits_are_the_items_of_the_top_100(world: World, unseen_items: Loaded, example: Example) -> None:
    row = {**world.interactions[0]}
    every = [{**row, "item": item} for item in world.items if item not in world.seen(row["customer"])]
    hits = unseen_items("evaluate", examples=[example(each) for each in every])["top_100_unseen_hit"]
    counted = {each["item"] for each, hit in zip(every, hits, strict=True) if hit}
    answer = words(unseen_items("recommend", user_id=[row["customer"]], **given(row))["item_ids"][0, :100])
    assert len(every) > 100 and counted == set(answer)


def test_the_popularity_baseline_is_a_sort_of_the_training_counts(
    world: World, chosen: list[Any], evaluated: dict[str, np.ndarray], catalogue: list[str], counts: Counter[str]
) -> None:
    ordered = sorted(catalogue, key=lambda item: -counts[item])
    for place, row in enumerate(chosen):
        seen = world.seen(row["customer"])
        unseen = [item for item in ordered if item not in seen]
        if row["item"] in catalogue:
            rank = ordered.index(row["item"])
            assert evaluated["popularity_rank"][place] == rank
            ahead = sum(item in seen for item in ordered[:rank])
            assert evaluated["popularity_rank_unseen"][place] == rank - ahead
        assert [catalogue[item - 1] for item in evaluated["popularity_top_10_items"][place]] == unseen[:10]
        popularity = np.mean([math.log1p(counts[item]) for item in unseen[:10]])
        assert evaluated["popularity_top_10_popularity"][place] == pytest.approx(popularity, rel=1e-6)


def test_the_rating_baseline_is_the_damped_means(
    data: TrainingData, chosen: list[Any], evaluated: dict[str, np.ndarray], world: World, catalogue: list[str]
) -> None:
    mean, user_bias, item_bias = damped_means(data)
    users = [value.decode() for value in world.transform_output.vocabulary_by_name("customer_id")]
    for place, row in enumerate(chosen):
        user = users.index(row["customer"]) + 1 if row["customer"] in users else 0
        item = catalogue.index(row["item"]) + 1 if row["item"] in catalogue else 0
        expected = np.clip(mean + user_bias[user] + item_bias[item], 1, 5)
        assert evaluated["mean_rating"][place] == pytest.approx(expected, rel=1e-5)


def test_examples_have_the_interaction_counts_of_user_and_item(
    world: World, chosen: list[Any], evaluated: dict[str, np.ndarray], counts: Counter[str]
) -> None:
    users = Counter(row["customer"] for row in world.interactions)
    for place, row in enumerate(chosen):
        user, item = users[row["customer"]], counts[row["item"]]
        assert (evaluated["user_interactions"][place], evaluated["item_interactions"][place]) == (user, item)
        fewer_users = np.mean([count < user for count in users.values()])
        fewer_items = np.mean([count < item for count in counts.values()])
        assert evaluated["user_activity"][place] == pytest.approx(fewer_users)
        assert evaluated["item_popularity"][place] == pytest.approx(fewer_items)
        assert evaluated["catalogue_size"][place] == len(world.items)
    assert {0} < set(evaluated["item_popularity"].tolist())


def test_an_example_without_a_user_is_a_new_user_s(unseen_items: Loaded, example: Example) -> None:
    found = unseen_items("evaluate", examples=[example({"item": "g0i02"})])
    assert found["user_interactions"] == [0] and found["rank_unseen"] == found["rank"]


def test_each_user_has_a_distinct_key_also_new_users(chosen: list[Any], unseen_items: Loaded, example: Example) -> None:
    users = [row["customer"] for row in chosen] + ["a new user", "another new user", "a new user"]
    found = unseen_items("evaluate", examples=[example({"customer": user, "item": "g0i02"}) for user in users])
    keys: dict[str, set[int]] = {}
    for user, key in zip(users, found["user_key"].tolist(), strict=True):
        keys.setdefault(user, set()).add(key)
    assert all(len(values) == 1 for values in keys.values())
    assert len({key for values in keys.values() for key in values}) == len(keys)


def test_scores_that_are_not_finite_have_no_rank(
    world: World, serve: Callable[..., ServedRecommender], example: Example
) -> None:
    served = serve(k=10, exclude_seen=True)
    (factors,) = served.ranker.index.variables
    factors.assign(tf.fill(tf.shape(factors), float("nan")))
    found = served.signatures()["evaluate"](tf.constant([example(row) for row in world.interactions[:5]]))
    assert (found["rank"].numpy() == -1).all() and (found["rank_unseen"].numpy() == -1).all()
    assert (found["popularity_rank"].numpy() >= 0).all(), "the baseline has no part in that"
