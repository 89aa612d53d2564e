"""Histories in the exported model: stored ones, and those of requests (fold-in)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.trainer.export import ServedRecommender, save
from components.trainer.fitting.training_loop import train

World = Any
Loaded = Any

# Each user has eight items of one group and three of the other, so that the counts of the other items reveal the group
# of the excluded one, unlike in real data.
HISTORY = {"column": "item", "kind": "history", "order": "earlier", "labels": True}


@pytest.fixture(scope="module")
def export(world: World, load: Callable[[Path], Loaded]) -> Callable[..., Loaded]:
    """Trains on the history alone and exports, once for each set of keys of the feature."""
    made: dict[str, Loaded] = {}

    def make(exclude_seen: bool = False, **keys: Any) -> Loaded:
        name = f"history_{exclude_seen}_{keys}"
        if name not in made:
            features = [{"column": "customer", "kind": "id"}, HISTORY | keys]
            recipe = world.recipe(
                features={"query": features},
                model={"query_tower": {"features": ["item_history"]}, "retrieval": {"candidates": "catalogue"}},
                training={"epochs": 25},
                serving={"exclude_seen": exclude_seen},
            )
            data = world.data(recipe)
            model, _ = train(recipe, data, world.transform_output)
            path = world.folder / f"history{len(made)}"
            served = ServedRecommender(model, data, world.transform_output, recipe, world.schema)
            save(served, str(path), world.users[:3], world.items[:2])
            made[name] = load(path)
        return made[name]

    return make


@pytest.fixture(scope="module")
def model(export: Callable[..., Loaded]) -> Loaded:
    return export()


def items_of(answer: dict[str, np.ndarray], row: int = 0, k: int = 5) -> list[str]:
    return [item.decode() for item in answer["item_ids"][row][:k]]


def scores_of(answer: dict[str, np.ndarray], row: int = 0) -> dict[str, float]:
    return dict(zip(items_of(answer, row, 1000), answer["scores"][row].tolist(), strict=True))


def test_a_new_user_s_history_affects_recommendations(world: World, export: Callable[..., Loaded]) -> None:
    """A new user with the history of a user of the train split gets the same scores."""
    plain = export(labels=False)
    answers = []
    for user in world.users[:3]:
        known = scores_of(plain("recommend", user_id=[user]))
        items = sorted({row["item"]: row["at"] for row in world.interactions if row["customer"] == user}.items(),
                       key=lambda pair: pair[1])  # fmt: skip
        told = scores_of(plain("recommend", user_id=["new user"], history=[[item for item, _ in items]]))
        assert told == pytest.approx(known, abs=1e-4)
        answers.append(list(told))
    assert answers[0] != answers[1] != answers[2]


def test_history_is_optional_and_padding_is_ignored(model: Loaded) -> None:
    bare = model("recommend", user_id=["new user"])
    padded = model("recommend", user_id=["new user"], history=[["", "", ""]])
    unknown = model("recommend", user_id=["new user"], history=[["", "no such item"]])
    assert scores_of(bare) == scores_of(padded) == scores_of(unknown)
    clicked = [model("recommend", user_id=["new user"], history=[row]) for row in (["g0i01"], ["", "g0i01", "", "?"])]
    assert scores_of(clicked[0]) == scores_of(clicked[1]) != scores_of(bare)


def test_rows_do_not_affect_each_other(model: Loaded) -> None:
    rows = [["", "g0i00"], ["g1i00", "g1i01"], ["", ""]]
    together = model("recommend", user_id=["new user"] * 3, history=rows)
    for place, row in enumerate(rows):
        alone = model("recommend", user_id=["new user"], history=[row])
        assert scores_of(together, place) == pytest.approx(scores_of(alone), abs=1e-5)


def test_the_stored_history_is_that_of_the_train_split(world: World, model: Loaded) -> None:
    """Without labels, the same history in the request gives the same scores."""
    user = world.users[0]
    known = model("recommend", user_id=[user])
    assert scores_of(known) != scores_of(model("recommend", user_id=["new user"]))


def test_history_items_are_appended_without_duplicates(world: World, export: Callable[..., Loaded]) -> None:
    plain = export(labels=False)
    user = world.users[0]
    seen = sorted(world.seen(user))
    fresh = next(item for item in world.items if item not in seen and not item.startswith("cold"))
    known = scores_of(plain("recommend", user_id=[user]))
    # Items of the stored history and duplicates have no effect.
    for row in (seen[:2], [seen[0], seen[0]]):
        assert scores_of(plain("recommend", user_id=[user], history=[row])) == pytest.approx(known, abs=1e-4)
    on_top = scores_of(plain("recommend", user_id=[user], history=[[fresh]]))
    assert on_top == pytest.approx(
        scores_of(plain("recommend", user_id=["new user"], history=[[*seen, fresh]])), abs=1e-4
    )
    assert on_top != pytest.approx(known, abs=1e-4)


@pytest.mark.slow
def test_only_the_latest_max_length_items_are_used(export: Callable[..., Loaded]) -> None:
    short = export(labels=False, max_length=2)
    long = short("recommend", user_id=["new user"], history=[["g0i00", "g0i01", "g1i00", "g1i01"]])
    latest = short("recommend", user_id=["new user"], history=[["g1i00", "g1i01"]])
    assert scores_of(long) == pytest.approx(scores_of(latest), abs=1e-5)


@pytest.mark.slow
def test_history_items_are_not_recommended(world: World, export: Callable[..., Loaded]) -> None:
    unseen = export(exclude_seen=True)
    user = world.users[0]
    given = [item for item in world.items if item not in world.seen(user)][:3]
    answer = items_of(unseen("recommend", user_id=[user], history=[given]), k=1000)
    assert not set(answer) & (world.seen(user) | set(given))


def test_ratings_depend_on_the_history(model: Loaded) -> None:
    rated = [
        model("rate", user_id=["new user"], item_id=["g0i03"], history=[[click]])["rating"].item()
        for click in ("g0i00", "g1i00")
    ]
    assert rated[0] != rated[1]


def test_evaluate_uses_the_stored_history(world: World, model: Loaded, example: Callable[[Any], bytes]) -> None:
    rows = world.interactions[:20]
    found = model("evaluate", examples=[example(row) for row in rows])["rating"]
    for row, rating in zip(rows, found, strict=True):
        rated = model("rate", user_id=[row["customer"]], item_id=[row["item"]])["rating"].item()
        assert rating == pytest.approx(rated, abs=1e-5)


def test_the_history_input_exists_only_with_the_feature(model: Loaded, all_items: Loaded) -> None:
    for signature in ("recommend", "rate"):
        assert list(model.signatures[signature].inputs["history"].tensor_shape.dim) != []
        assert [dim.size for dim in model.signatures[signature].inputs["history"].tensor_shape.dim] == [-1, -1]
        assert "history" in model.signatures[signature].defaults
        assert "history" not in all_items.signatures[signature].inputs
