"""Every signature through the client, with and without asyncio: requests and results."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import recommender_model
from conftest import push
from hypothesis import given, settings
from hypothesis import strategies as st
from recommender_model import ITEMS, K
from relay import Relay, relayed

from serving.server.model_server import ModelServer
from tandem_client import (
    AsyncRecommender,
    Embedding,
    FoundItem,
    InvalidRequest,
    Recommender,
    SignatureMissing,
    SimilarItem,
    TandemClientError,
)


@pytest.fixture(scope="module")
def client(all_signatures: str) -> Iterator[Recommender]:
    with Recommender(all_signatures, timeout=30) as made:
        yield made


@pytest.fixture(scope="module")
def everything(client: Recommender) -> list[str]:
    """All items for user 1, best first."""
    return [each.item_id for each in client.recommend("1", k=len(ITEMS)).items]


@pytest.fixture
def relay(all_signatures: str) -> Iterator[Relay]:
    with relayed(all_signatures) as made:
        yield made


def _ids(answer: Any) -> list[str]:
    return [each.item_id for each in answer.items]


# --- exclude, only, k -------------------------------------------------------------------------------------------------

_some_ids = st.lists(st.sampled_from([*ITEMS, "", "nothing", "é"]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(exclude=_some_ids, only=_some_ids, k=st.integers(1, 60))
def test_filters_only_remove_items(
    client: Recommender, everything: list[str], exclude: list[str], only: list[str], k: int
) -> None:
    found = _ids(client.recommend("1", k=k, exclude=exclude, only=only))
    given_ids = [each for each in only if each]
    assert found == [each for each in everything if each not in exclude and (each in only or not given_ids)][:k]


def test_each_user_of_a_batch_can_have_filters_of_their_own(client: Recommender) -> None:
    users, exclude, only = ["1", "unseen", "2"], [["i1", "i2"], [], ["i5"]], [[], ["i7", "i8"], ["i5", "i6"]]
    together = client.recommend_batch(users, k=40, exclude=exclude, only=only)
    alone = [
        client.recommend(user, k=40, exclude=less, only=these)
        for user, less, these in zip(users, exclude, only, strict=True)
    ]
    assert [_ids(each) for each in together] == [_ids(each) for each in alone]
    assert len(together[0].items) == 38 and sorted(_ids(together[1])) == ["i7", "i8"] and _ids(together[2]) == ["i6"]
    for_all = client.recommend_batch(users, k=40, exclude=["i9"])
    assert all(len(each.items) == 39 and "i9" not in _ids(each) for each in for_all)


def test_recommend_is_used_instead_of_recommend_filtered_if_possible(relay: Relay) -> None:
    with Recommender(relay.target, timeout=30) as client:
        plain = client.recommend("1", k=K)
        assert client.recommend("1", k=K, exclude=[], only=[""]) == plain
        assert {each.model_spec.signature_name for each in relay.predicts} == {"recommend"}
        assert all(set(each.inputs) == {"user_id"} for each in relay.predicts)
        longer = client.recommend("1", k=K + 1)
        assert _ids(longer)[:K] == _ids(plain) and len(longer.items) == K + 1
        assert relay.predicts[-1].model_spec.signature_name == "recommend_filtered"
        assert relay.predicts[-1].inputs["k"].int_val == [K + 1] and "exclude" not in relay.predicts[-1].inputs
        client.recommend_batch(["1", "2"], exclude=["i1"])
        request = relay.predicts[-1]
        assert request.model_spec.signature_name == "recommend_filtered"
        assert request.inputs["exclude"].tensor_shape.dim[0].size == 1, "one row for all users"
    assert len(plain.items) == K and plain.items[0].display["title"]


def test_k_above_the_catalogue_returns_the_catalogue(client: Recommender) -> None:
    assert len(client.recommend("1", k=100_000).items) == len(ITEMS)


def test_history_and_context_go_with_filters(client: Recommender) -> None:
    filtered = client.recommend("unseen", history=["i4"], context={"age": 2.0}, exclude=["i5"], k=40)
    plain = client.recommend("unseen", history=["i4"], context={"age": 2.0})
    assert not {"i4", "i5"} & set(_ids(filtered))
    assert _ids(filtered)[:5] == [each for each in _ids(plain) if each != "i5"][:5]
    assert filtered.items[0].score == pytest.approx(next(e for e in plain.items if e.item_id != "i5").score)
    assert _ids(filtered) != _ids(client.recommend("unseen", exclude=["i5"], k=40))


# --- similar, find, embed ---------------------------------------------------------------------------------------------


def test_similar_items_are_typed_and_never_the_item_itself(client: Recommender) -> None:
    answer = client.similar("i0", k=3)
    assert answer.item_id == "i0" and len(answer.items) == 3
    assert all(isinstance(each, SimilarItem) and each.display["title"] for each in answer.items)
    scores = [each.score for each in answer.items]
    assert scores == sorted(scores, reverse=True) and -1 <= scores[-1] <= scores[0] <= 1
    vectors = {each.id: each.vector for each in client.embed_item_batch(list(ITEMS))}

    def cosine(one: str, other: str) -> float:
        a, b = vectors[one], vectors[other]
        norm = (sum(x * x for x in a) * sum(x * x for x in b)) ** 0.5
        return float(sum(x * y for x, y in zip(a, b, strict=True)) / norm)

    nearest = sorted((each for each in ITEMS if each != "i0"), key=lambda each: -cosine("i0", each))[:3]
    assert _ids(answer) == nearest
    assert scores[0] == pytest.approx(cosine("i0", nearest[0]), abs=1e-5)
    batch = client.similar_batch(["i1", "nothing", "i0"], k=3)
    assert [each.item_id for each in batch] == ["i1", "nothing", "i0"]
    assert _ids(batch[2]) == nearest and batch[1].items == () and "i1" not in _ids(batch[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.item_id = "i1"  # type: ignore[misc]


def test_find_matches_the_beginning_of_words(client: Recommender) -> None:
    assert client.find("batman").items[0] == FoundItem("i0", {"title": "Batman (1989)"})
    assert _ids(client.find("BATman")) == ["i0", "i1", "i2"]
    assert _ids(client.find("bat", k=2)) == ["i0", "i1"]
    for text, expected in (("c++ (a", "i5"), ("amé", "i6"), ("what?", "i7"), ("8½", "i8"), ("[re", "i9")):
        assert _ids(client.find(text)) == [expected]
    assert client.find("").items == () and client.find(".*").items == ()


def test_inner_product_of_the_vectors_is_the_score(client: Recommender) -> None:
    best = client.recommend("2", k=1, history=["i3"], context={"age": 0.5}).items[0]
    query = client.embed_query("2", history=["i3"], context={"age": 0.5})
    item = client.embed_item(best.item_id)
    assert isinstance(query, Embedding) and query.id == "2" and item.id == best.item_id
    assert isinstance(item.vector, tuple) and len(item.vector) == len(query.vector) == 5
    assert sum(x * y for x, y in zip(query.vector, item.vector, strict=True)) == pytest.approx(best.score, rel=1e-5)
    assert client.embed_query_batch(["1", "2"], histories=[[], ["i3"]], context={"age": [1.0, 0.5]})[1] == query
    assert client.embed_query("unseen") != client.embed_query("1")


def test_new_items_have_vectors_from_their_columns(client: Recommender) -> None:
    new = client.embed_item(columns={"year": 2.5})
    assert new == Embedding("", (2.5,) * 5)
    assert client.embed_item("brand new", columns={"year": 2.5}).vector == new.vector
    assert [each.vector[0] for each in client.embed_item_batch(columns={"year": [1.0, 2.0]})] == [1.0, 2.0]
    with pytest.raises(InvalidRequest, match="expected an item_id, columns or both, got neither"):
        client.embed_item()
    with pytest.raises(InvalidRequest, match="expected item_ids or a column with one value per item, got neither"):
        client.embed_item_batch(columns={"year": 1.0})
    with pytest.raises(InvalidRequest, match=r"'item_id' is in the columns"):
        client.embed_item("i1", columns={"item_id": "i2"})
    with pytest.raises(InvalidRequest, match=r"'embed_item' has no input colour; its inputs are: item_id .*, year"):
        client.embed_item("i1", columns={"colour": "red"})


# --- invalid requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda r: r.recommend("1", exclude="i1"),
            "exclude: expected a sequence of str, got one str; pass ['i1'] if it",
        ),
        (lambda r: r.recommend("1", only={"i1"}), "only: expected a sequence of str, got set {'i1'}; pass a list"),
        (lambda r: r.recommend("1", exclude=[["i1"]]), "exclude: expected str, got list ['i1'] at position 0"),
        (lambda r: r.recommend("1", exclude=["i1", 2]), "exclude: expected str, got int 2 at position 1"),
        (lambda r: r.recommend_batch(["1"], only="i1"), "only: expected a sequence of str, got one str"),
        (lambda r: r.recommend_batch(["1"], only=7), "only: expected a sequence of str, got int 7"),
        (
            lambda r: r.recommend_batch(["1"], exclude=["i1", ["i2"]]),
            "exclude: expected ids for all users, or one sequence of ids per user, got ids and a list at position 1",
        ),
        (
            lambda r: r.recommend_batch(["1"], exclude=[["i1"], ["i2"]]),
            "exclude: expected 1 sequences, one per user, got 2",
        ),
        (lambda r: r.recommend_batch(["1"], exclude=[["i1", None]]), "exclude[0]: expected str, got NoneType None"),
        (lambda r: r.recommend("1", exclude=["i1"], context={"exclude": "i2"}), "'exclude' is in the context"),
        (lambda r: r.recommend("1", k=2**31), "k: expected an int from 1 to 2147483647"),
        (lambda r: r.similar(4), "item_id: expected a str, got int 4"),
        (lambda r: r.similar(["i1"]), "use similar_batch for several"),
        (lambda r: r.similar("i1", k=11), "'similar_items' returns at most 10 items, got k=11; pass k=10 or less"),
        (lambda r: r.find("bat", k=99), "'find_items' returns at most 10 items, got k=99"),
        (lambda r: r.find(3), "text: expected a str, got int 3"),
        (lambda r: r.find("x", k=0), "k: expected an int from 1"),
    ],
)
def test_wrong_inputs_are_named_before_anything_is_sent(
    client: Recommender, ask: Callable[[Recommender], Any], message: str
) -> None:
    with pytest.raises(InvalidRequest) as failure:
        ask(client)
    assert message in str(failure.value)
    assert failure.value.code is None


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recommender]:
    """Client of a model with `recommend`, `rate` and the Evaluator's signature only."""
    base = tmp_path_factory.mktemp("older")
    recommender_model.export(base / "1", signatures=("serving_default", "evaluate", "recommend", "rate"))
    with ModelServer(base, port=0, rest_port=0) as server:
        server.wait_until_available(60)
        with Recommender(f"127.0.0.1:{server.port}", timeout=30) as client:
            yield client


@pytest.mark.parametrize(
    ("ask", "signature", "remedy"),
    [
        (
            lambda r: r.recommend("1", exclude=["i1"]),
            "recommend_filtered",
            "exclude, only and a k above serving.k need it",
        ),
        (lambda r: r.recommend("1", only=["i1"]), "recommend_filtered", "or query without them"),
        (lambda r: r.similar("i1"), "similar_items", "rerun the pipeline with this version of Tandem"),
        (lambda r: r.find("bat"), "find_items", "`display: true`"),
        (lambda r: r.embed_query("1"), "embed_query", "serve the model that it exports"),
        (lambda r: r.embed_item("1"), "embed_item", "serve the model that it exports"),
    ],
)
def test_missing_signature_is_named_with_the_available_ones(
    older: Recommender, ask: Callable[[Recommender], Any], signature: str, remedy: str
) -> None:
    with pytest.raises(SignatureMissing) as failure:
        ask(older)
    assert f"version 1 has no signature {signature!r}; it has: evaluate, rate, recommend, serving" in str(failure.value)
    assert remedy in str(failure.value) and older.target in str(failure.value)
    assert failure.value.signature == signature
    assert failure.value.available == ("evaluate", "rate", "recommend", "serving_default")


def test_longer_lists_of_a_model_without_filters_are_an_error(older: Recommender) -> None:
    assert len(older.recommend("1", k=K).items) == K
    with pytest.raises(InvalidRequest, match=r"'recommend' returns at most 10 items, got k=11; pass k=10 or less"):
        older.recommend("1", k=K + 1)


def test_ten_items_are_valid_for_any_model(tmp_path: Path) -> None:
    recommender_model.export(tmp_path / "1", items=ITEMS[:4], signatures=("recommend", "similar_items", "find_items"))
    with ModelServer(tmp_path, port=0, rest_port=0) as server:
        server.wait_until_available(60)
        with Recommender(f"127.0.0.1:{server.port}", timeout=30) as client:
            assert len(client.recommend("1").items) == 4
            assert len(client.similar("i0").items) == 3
            assert len(client.find("bat").items) == 4
            with pytest.raises(InvalidRequest, match="at most 4"):
                client.recommend("1", k=11)


def _available(client: Recommender, version: int) -> bool:
    deadline = time.monotonic() + 30
    while (version, "AVAILABLE") not in [(each.version, each.state) for each in client.status()]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return True


def test_new_version_with_longer_or_shorter_lists_is_detected(tmp_path: Path) -> None:
    versions = [
        recommender_model.export(tmp_path / "of 7", items=ITEMS[:7]),
        recommender_model.export(tmp_path / "long", k=30),
        recommender_model.export(tmp_path / "short", k=5),
    ]
    base = tmp_path / "model"
    base.mkdir()
    push(versions[0], base, 1)
    with ModelServer(base, port=0, rest_port=0, poll_interval_s=0.05) as server:
        server.wait_until_available(60)
        with relayed(f"127.0.0.1:{server.port}") as relay, Recommender(relay.target, timeout=30) as client:
            assert len(client.recommend("1", k=25).items) == 7
            with Recommender(relay.target, timeout=30) as other:
                assert len(other.similar("i0").items) == 6
                # The cached signatures return 7 items, the new ones 30.
                push(versions[1], base, 2)
                assert _available(client, 2)
                assert len(other.similar("i0", k=25).items) == 25
            assert [len(client.recommend("1", k=25).items) for _ in range(2)] == [25, 25]
            used = [each.model_spec.signature_name for each in relay.predicts if "user_id" in each.inputs]
            assert used == ["recommend_filtered", "recommend_filtered", "recommend"]
            # Now 30 and 5: `recommend` of the new version returns too few, which is detected, too.
            push(versions[2], base, 3)
            assert _available(client, 3)
            assert len(client.recommend("1", k=25).items) == 25
            with pytest.raises(InvalidRequest, match="at most 5"):
                client.similar("i0", k=25)


# --- asyncio ----------------------------------------------------------------------------------------------------------

_CALLS: list[Callable[[Any], Any]] = [
    lambda r: r.recommend("1", k=3),
    lambda r: r.recommend("1", k=25, exclude=["i1"], only=list(ITEMS[:20]), history=["i5"], context={"age": 1.0}),
    lambda r: r.recommend_batch(["1", "unseen"], histories=[["i1"], []], exclude=[["i2"], []]),
    lambda r: r.recommend_batch([]),
    lambda r: r.rate("1", "i4", history=["i5"]),
    lambda r: r.rate_batch(["1", "2"], ["i4", "i5"], context={"age": [1.0, 2.0]}),
    lambda r: r.similar("i1", k=4),
    lambda r: r.similar_batch(["i1", "nothing"]),
    lambda r: r.find("bat"),
    lambda r: r.embed_query("1", context={"age": 3}),
    lambda r: r.embed_query_batch(["1", "2"]),
    lambda r: r.embed_item("i1"),
    lambda r: r.embed_item_batch(columns={"year": [1.0, 2.0]}),
    lambda r: r.status(),
    lambda r: r.signatures(),
    lambda r: r.recommend(42),
    lambda r: r.recommend("1", k=0),
    lambda r: r.similar("i1", k=11),
    lambda r: r.recommend("1", context={"colour": "red"}),
]


@pytest.mark.parametrize("ask", _CALLS, ids=range(len(_CALLS)))
def test_asyncio_gives_the_same_answers_and_errors(client: Recommender, ask: Callable[[Any], Any]) -> None:
    async def awaited() -> Any:
        async with AsyncRecommender(client.target, timeout=30) as other:
            return await ask(other)

    try:
        expected = ask(client)
    except InvalidRequest as error:
        with pytest.raises(type(error)) as failure:
            asyncio.run(awaited())
        assert str(failure.value) == str(error)
    else:
        assert asyncio.run(awaited()) == expected


def test_both_clients_have_the_same_surface() -> None:
    def surface(kind: type) -> dict[str, Any]:
        methods = {name: each for name, each in vars(kind).items() if callable(each) and not name.startswith("_")}
        return {name: inspect.signature(each) for name, each in methods.items()}

    assert surface(Recommender) == surface(AsyncRecommender)
    assert inspect.signature(Recommender) == inspect.signature(AsyncRecommender)
    coroutines = [
        name for name in surface(AsyncRecommender) if not inspect.iscoroutinefunction(getattr(AsyncRecommender, name))
    ]
    assert coroutines == []


def test_tasks_share_one_connection_and_one_metadata_request_each(relay: Relay, client: Recommender) -> None:
    async def many() -> list[Any]:
        async with AsyncRecommender(relay.target, timeout=30) as other:
            await other.recommend("1")
            return await asyncio.gather(*(other.recommend(user) for user in ["1", "2", "unseen"] * 10))

    assert asyncio.run(many()) == [client.recommend(user) for user in ["1", "2", "unseen"] * 10]
    assert len({each.peer for each in relay.calls}) == 1
    assert sum(each.method.endswith("GetModelMetadata") for each in relay.calls) == 1


def test_client_made_before_the_loop_works_and_is_an_error_after_close(all_signatures: str) -> None:
    client = AsyncRecommender(all_signatures, timeout=30)

    async def ask() -> None:
        assert (await client.recommend("1")).items
        await client.close()
        await client.close()
        with pytest.raises(TandemClientError, match="make a new one"):
            await client.recommend("1")

    asyncio.run(ask())


def test_cancelling_a_task_ends_its_call(relay: Relay) -> None:
    arrived, ended = threading.Event(), threading.Event()

    def hang(seen: Any, context: Any) -> bytes:
        if seen.method.endswith("/Predict") and not arrived.is_set():
            context.add_callback(ended.set)
            arrived.set()
            ended.wait(20)
        request: bytes = seen.request
        return request

    async def ask() -> None:
        async with AsyncRecommender(relay.target, timeout=30) as client:
            task = asyncio.create_task(client.recommend("1"))
            await asyncio.to_thread(arrived.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(ended.wait, 10), "the server's request ended"
            assert (await client.recommend("1")).items, "the client stays usable"

    relay.before = hang
    asyncio.run(ask())
