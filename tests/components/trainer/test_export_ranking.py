"""`serving.rank_by`: the order in which retrieved items are served and evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from components.trainer.export import ServedRecommender

World = Any
Answer = dict[str, np.ndarray]
Call = Callable[..., Answer]

K = 25
WEIGHTS = {"score": 0.3, "rating": 0.7}
ORDERS: dict[str, Any] = {"score": "score", "rating": "rating", "blend": WEIGHTS}
NEW_USER = "new user"


def words(values: np.ndarray) -> list[str]:
    return [value.decode() for value in values]


@pytest.fixture(scope="module")
def call(serve: Callable[..., ServedRecommender]) -> Callable[..., Answer]:
    """`call(order, signature, exclude_seen=…, **inputs)`: the outputs of a model with that order."""
    made: dict[tuple[str, bool], Mapping[str, Any]] = {}

    def answer(order: str, signature: str, exclude_seen: bool = True, **inputs: Any) -> Answer:
        key = (order, exclude_seen)
        if key not in made:
            made[key] = serve(k=K, exclude_seen=exclude_seen, rank_by=ORDERS[order]).signatures()
        given = {name: tf.constant(values) for name, values in inputs.items()}
        return {name: values.numpy() for name, values in made[key][signature](**given).items()}

    return answer


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


@pytest.mark.parametrize("order", ["rating", "blend"])
def test_retrieved_items_are_served_in_the_order_of_rank_by(world: World, call: Call, order: str) -> None:
    users = [*world.users[:6], NEW_USER]
    retrieved, served = call("score", "recommend", user_id=users), call(order, "recommend", user_id=users)
    assert (retrieved["item_ids"] != served["item_ids"]).any()
    for row in range(len(users)):
        before = {item: place for place, item in enumerate(words(retrieved["item_ids"][row]))}
        places = [before[item] for item in words(served["item_ids"][row])]
        assert sorted(places) == list(range(K))
        for name in ("scores", "ratings"):
            np.testing.assert_allclose(served[name][row], retrieved[name][row][places], rtol=1e-4)
        np.testing.assert_array_equal(served["name"][row], retrieved["name"][row][places])
        scores, ratings = served["scores"][row], served["ratings"][row]
        keys = ratings if order == "rating" else (
            WEIGHTS["score"] * standardised(scores) + WEIGHTS["rating"] * standardised(ratings)
        )  # fmt: skip
        assert (np.diff(keys) <= 1e-5).all()


def test_equal_ratings_stay_in_the_order_of_their_scores(world: World, serve: Callable[..., ServedRecommender]) -> None:
    served = serve(k=K, exclude_seen=False, rank_by="rating")
    for variable in served.ranker.variables:
        if variable.name.startswith(("item_rating", "item_bias")):
            variable.assign(tf.zeros_like(variable))
    answer = served.signatures()["recommend"](tf.constant(world.users[:3]))
    assert len(set(answer["ratings"][0].numpy().tolist())) == 1
    assert (np.diff(answer["scores"].numpy()) <= 0).all()


@pytest.mark.parametrize("order", ["rating", "blend"])
@pytest.mark.parametrize("k", [1, 10, K, K + 10, 1000])
def test_the_top_items_do_not_depend_on_k(world: World, call: Call, order: str, k: int) -> None:
    users = [*world.users[:4], NEW_USER]
    served = call(order, "recommend", user_id=users)["item_ids"]
    filtered = call(order, "recommend_filtered", user_id=users, k=k)
    assert filtered["item_ids"].shape == (len(users), min(k, len(world.items)))
    shared = min(k, K)
    np.testing.assert_array_equal(filtered["item_ids"][:, :shared], served[:, :shared])
    # Beyond the recipe's k they follow by score.
    for row, scores in enumerate(filtered["scores"][:, K:]):
        assert (np.diff(scores[filtered["item_ids"][row, K:] != b""]) <= 0).all()


def test_padding_stays_last(world: World, call: Call) -> None:
    for order in ORDERS:
        only = [["g0i00", "cold001", "cold002"]]
        answer = call(order, "recommend_filtered", user_id=[NEW_USER], only=only, k=6)
        assert sorted(words(answer["item_ids"][0])[:3]) == sorted(only[0])
        assert words(answer["item_ids"][0])[3:] == [""] * 3
        assert not answer["ratings"][0, 3:].any() and not answer["scores"][0, 3:].any()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_evaluated_ranks_are_of_the_served_order(
    world: World, call: Call, example: Callable[[Any], bytes], order: str, exclude_seen: bool
) -> None:
    catalogue = words(world.transform_output.vocabulary_by_name("item_id"))
    random = np.random.default_rng(4)
    rows = [{"customer": str(random.choice(world.users)), "item": str(random.choice(catalogue))} for _ in range(60)]
    rows += [{"customer": row["customer"], "item": row["item"]} for row in world.interactions[:40]]
    examples = [example(row) for row in rows]
    found = call(order, "evaluate", exclude_seen, examples=examples)
    by_score = call("score", "evaluate", exclude_seen, examples=examples)
    rank = "rank_unseen" if exclude_seen else "rank"
    compared = 0
    for place, row in enumerate(rows):
        served = words(call(order, "recommend", exclude_seen, user_id=[row["customer"]])["item_ids"][0])
        assert [catalogue[item - 1] for item in found["top_10_items"][place]] == served[:10]
        if row["item"] in served:
            assert found[rank][place] == served.index(row["item"])
            compared += 1
        else:
            assert found[rank][place] >= (K if row["item"] not in world.seen(row["customer"]) else 0)
    assert compared > 10
    for name, values in found.items():
        if "_hit" in name or name.startswith("popularity"):
            np.testing.assert_array_equal(values, by_score[name])
    changed = (found[rank] != by_score[rank]).any()
    assert changed == (order != "score")
    # Items beyond the retrieved ones keep their ranks.
    np.testing.assert_array_equal(found[rank] < K, by_score[rank] < K)


def test_a_seen_item_has_the_rank_it_would_have_if_unseen(
    world: World, call: Call, example: Callable[[Any], bytes]
) -> None:
    """An example's own item is a candidate, although the user interacted with it."""
    user = world.users[0]
    seen = sorted(world.seen(user))
    found = call("rating", "evaluate", examples=[example({"customer": user, "item": item}) for item in seen])
    by_score = call("score", "evaluate", examples=[example({"customer": user, "item": item}) for item in seen])
    retrieved = [place for place, rank in enumerate(by_score["rank_unseen"]) if 0 <= rank < K]
    assert retrieved
    for place in retrieved:
        others = [item for item in seen if item != seen[place]]
        answer = call("rating", "recommend_filtered", False, user_id=[user], exclude=[others], k=K)
        assert found["rank_unseen"][place] == words(answer["item_ids"][0]).index(seen[place])
