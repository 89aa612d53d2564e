"""`similar_items`, `find_items` and the embeddings of the exported model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from components.trainer.data.training_data import TrainingData
from components.trainer.export import ServedRecommender
from components.trainer.export.text_search import MAX_TEXT_LENGTH, TextSearch

World = Any
Loaded = Any

CONTEXT = ("at", "age", "Plan", "moods", "height")


def words(values: np.ndarray) -> list[str]:
    return [value.decode() for value in values]


def given_columns(row: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [row[name]] for name in CONTEXT if row.get(name) is not None}


# --- similar_items ----------------------------------------------------------------------------------------------------


def test_an_item_is_not_similar_to_itself(world: World, unseen_items: Loaded) -> None:
    answer = unseen_items("similar_items", item_id=world.items)
    assert answer["item_ids"].shape == (len(world.items), len(world.items))
    names = {row["item"]: row["name"] for row in world.catalogue}
    for item, found, shown, scores in zip(
        world.items, answer["item_ids"], answer["name"], answer["scores"], strict=True
    ):
        assert set(words(found)) == {*world.items, ""} - {item}
        assert [names.get(other, "") for other in words(found)] == words(shown)
        assert (np.diff(scores[:-1]) <= 0).all() and scores[-1] == 0


def test_scores_are_cosines_of_the_vectors_without_the_item_bias(world: World, all_items: Loaded) -> None:
    vectors = all_items("embed_item", item_id=world.items)["embedding"][:, :-1]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    answer = all_items("similar_items", item_id=world.items[:20])
    for place in range(20):
        expected = [cosines[place, world.items.index(item)] for item in words(answer["item_ids"][place])]
        np.testing.assert_allclose(answer["scores"][place], expected, atol=1e-5)


def test_items_of_a_group_are_similar(world: World, all_items: Loaded) -> None:
    warm = [item for item in world.items if not item.startswith("cold")]
    answer = all_items("similar_items", item_id=warm)
    same = [
        other[:2] == item[:2]
        for item, found in zip(warm, answer["item_ids"], strict=True)
        for other in [other for other in words(found) if not other.startswith("cold")][:5]
    ]
    # Chance level is a little less than half.
    assert np.mean(same) > 0.65


def test_a_new_item_has_no_similar_items(all_items: Loaded) -> None:
    answer = all_items("similar_items", item_id=["no such item", "g0i00", ""])
    assert set(words(answer["item_ids"][0])) == set(words(answer["item_ids"][2])) == {""}
    assert not answer["scores"][[0, 2]].any()
    np.testing.assert_array_equal(answer["item_ids"][1:2], all_items("similar_items", item_id=["g0i00"])["item_ids"])


# --- find_items -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def popularity(world: World) -> Counter[str]:
    return Counter(row["item"] for row in world.interactions)


def find(loaded: Loaded, text: str) -> list[str]:
    return [item for item in words(loaded("find_items", text=[text])["item_ids"][0]) if item]


@pytest.mark.parametrize("text", ["Story 7", "story 7", "  STORY 7 "])
def test_a_column_that_starts_with_the_text_is_found(world: World, all_items: Loaded, text: str) -> None:
    assert set(find(all_items, text)) == {"g0i07", "g1i07"}


def test_a_later_word_is_found_and_the_inside_of_a_word_is_not(world: World, unseen_items: Loaded) -> None:
    # "Story 1 of 0" and "Cold 12".
    assert set(find(unseen_items, "of")) == {item for item in world.items if not item.startswith("cold")}
    assert find(unseen_items, "tory") == find(unseen_items, "old") == []


def test_starts_of_columns_rank_first_and_then_popular_items(
    data: TrainingData, unseen_items: Loaded, popularity: Counter[str]
) -> None:
    found = find(unseen_items, "Story")
    counts = [popularity[item] for item in found]
    assert counts == sorted(counts, reverse=True) and len(counts) == 30 and counts[0] > counts[-1]
    frequencies = data.item_frequencies()
    titles = {7: "Batman Returns", 3: "The Batman", 90: "Batman", 5: "Bat", 4: "the  bat-batman"}
    column = np.array([titles.get(item, "").encode() for item in range(len(frequencies))], object)
    search = TextSearch(dataclasses.replace(data, display={"title": column}))
    found_items = search.search(tf.constant(["batman", "BAT", "the bat"]), 6).numpy().tolist()
    popular = sorted([3, 4], key=lambda item: (-frequencies[item], item))
    starts = sorted([7, 90], key=lambda item: (-frequencies[item], item))
    assert found_items[0] == [*starts, *popular, 0, 0]
    assert set(found_items[1][:3]) == {7, 90, 5} and set(found_items[1][3:5]) == {3, 4}
    assert found_items[2] == [3, 0, 0, 0, 0, 0]


@settings(max_examples=80, deadline=None)
@given(
    text=st.text(st.sampled_from("ab .\\+*?()|[]{}^$-_#&~'\"\0\n/éß…漢"), min_size=1, max_size=6), before=st.booleans()
)
def test_all_characters_are_literal(data: TrainingData, text: str, before: bool) -> None:
    column = np.array([b""] * (data.item_count + 1), object)
    column[5] = (("word " if before else "") + text + " after").encode()
    column[6] = b"something else"
    search = TextSearch(dataclasses.replace(data, display={"title": column}))
    found = search.search(tf.constant([text.encode()]), 3).numpy().tolist()
    assert found == [[5 if text.strip(" \n") else 0, 0, 0]]


def test_all_display_columns_are_searched(data: TrainingData) -> None:
    columns = {name: np.array([b""] * (data.item_count + 1), object) for name in ("title", "author")}
    columns["title"][2], columns["author"][3] = b"Of Orwell", b"George Orwell"
    search = TextSearch(dataclasses.replace(data, display=columns))
    assert set(search.search(tf.constant(["orwell"]), 2).numpy()[0].tolist()) == {2, 3}


def test_empty_invalid_and_too_long_texts_match_no_items(all_items: Loaded) -> None:
    texts = [b"", b"  ", b"\xff\xfe", b"S" * 100_000, b"Story"]
    answer = all_items("find_items", text=texts)["item_ids"]
    assert [bool((row != b"").any()) for row in answer] == [False, False, False, False, True]
    assert MAX_TEXT_LENGTH >= 100


def test_results_of_a_batch_equal_single_requests(all_items: Loaded) -> None:
    texts = ["Cold 1", "", "Story 3", "nothing of the kind"]
    together = all_items("find_items", text=texts)
    for place, text in enumerate(texts):
        alone = all_items("find_items", text=[text])
        for name, values in together.items():
            np.testing.assert_array_equal(values[place], alone[name][0])


def test_without_display_columns_there_is_no_find_items(
    world: World, data: TrainingData, trained: tuple[Any, Any]
) -> None:
    bare = dataclasses.replace(data, display={})
    served = ServedRecommender(trained[0], bare, world.transform_output, world.recipe(), world.schema)
    assert "find_items" not in served.signatures()
    assert "find_items" not in {name for name, _ in served.warm_up_requests(["u"], ["g0i00"])}


# --- embeddings -------------------------------------------------------------------------------------------------------


def test_the_product_of_both_embeddings_is_the_score(world: World, all_items: Loaded) -> None:
    rows = [world.latest(user) for user in world.users[:5]]
    items = all_items("embed_item", item_id=world.items)["embedding"]
    for row in [*rows, {"customer": "new user"}]:
        query = all_items("embed_query", user_id=[row["customer"]], **given_columns(row))["embedding"][0]
        answer = all_items("recommend", user_id=[row["customer"]], **given_columns(row))
        expected = [items[world.items.index(item)] @ query for item in words(answer["item_ids"][0])]
        np.testing.assert_allclose(answer["scores"][0], expected, rtol=1e-4, atol=1e-5)


def test_an_external_vector_store_finds_the_items_of_recommend(world: World, all_items: Loaded) -> None:
    """SearchResult by product, without knowing anything of the model."""
    items = all_items("embed_item", item_id=world.items)["embedding"]
    queries = all_items("embed_query", user_id=world.users)["embedding"]
    answer = all_items("recommend", user_id=world.users)["item_ids"]
    for query, found in zip(queries, answer, strict=True):
        nearest = [world.items[place] for place in np.argsort(-(items @ query), kind="stable")[:10]]
        assert len(set(nearest) & set(words(found[:10]))) >= 9


def test_columns_equal_to_the_catalogue_s_give_the_same_vector(world: World, all_items: Loaded) -> None:
    rows = [row for row in world.catalogue if row["tags"]][:10]
    ids = [row["item"] for row in rows]
    known = all_items("embed_item", item_id=ids)["embedding"]
    for names in (["name"], ["tags"], ["name", "tags"]):
        columns = {name: [row[name] for row in rows] for name in names}
        np.testing.assert_allclose(all_items("embed_item", item_id=ids, **columns)["embedding"], known, rtol=1e-5)
    other = all_items("embed_item", item_id=ids, tags=["cold"])["embedding"]
    assert not np.allclose(other, known, atol=1e-3)


def test_a_new_item_is_encoded_from_its_columns(world: World, all_items: Loaded) -> None:
    columns = {"name": ["Story 0 of 0", "Story 0 of 1"], "tags": ["group0|story", "group1|story"]}
    fresh = all_items("embed_item", item_id=["brand new", "newer still"], **columns)["embedding"]
    nameless = all_items("embed_item", **columns)["embedding"]
    np.testing.assert_allclose(fresh, nameless, rtol=1e-6)
    bare = all_items("embed_item", item_id=["brand new"])["embedding"]
    assert not np.allclose(fresh[:1], bare, atol=1e-3)
    # Users like new items of their own group better.
    queries = all_items("embed_query", user_id=world.users)["embedding"]
    scores = queries @ fresh.T
    own = np.array([int(user[1]) for user in world.users])
    likes = scores[np.arange(len(own)), own] > scores[np.arange(len(own)), 1 - own]
    assert likes.mean() > 0.9


def test_a_column_of_one_value_is_broadcast_and_other_lengths_are_an_error(all_items: Loaded) -> None:
    one = all_items("embed_item", item_id=["g0i00", "new", ""], tags=["cold"])["embedding"]
    each = all_items("embed_item", item_id=["g0i00", "new", ""], tags=["cold"] * 3)["embedding"]
    np.testing.assert_array_equal(one, each)
    with pytest.raises(tf.errors.InvalidArgumentError):
        all_items("embed_item", item_id=["a", "b", "c"], tags=["cold"] * 2)
