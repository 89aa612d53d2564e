"""docs/serving.md, compared with a pushed MovieLens model over gRPC and REST.

The expected responses follow from the page alone, for any trained model.
`pytest tests/serving/test_pushed_model.py --target HOST:PORT --rest-target HOST:PORT` uses a running server
with the model `movielens`; otherwise the embedded server serves the model that the first run pushed.
"""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from conftest import Stubs
from contract_model import predict_request
from google.protobuf import text_format
from serving_page import DTYPES, Section, overview, sections
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from recipe import load_recipe, load_schema
from tandem_client import Recommender

# Without --target the model is that of the first run.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAME = "movielens"
SCHEMA_DIR = Path(__file__).resolve().parents[2] / "schemas" / NAME
USER, NEW_USER = "10", "unseen user"
FILM, OTHER_FILMS = "50", ["1", "100", "181", "258"]

Addresses = dict[str, str]


def _sections() -> dict[str, Section]:
    recipe = load_recipe(SCHEMA_DIR)
    schema = load_schema(SCHEMA_DIR, recipe)
    kinds = {schema_pb2.BYTES: "string", schema_pb2.INT: "int64", schema_pb2.FLOAT: "float"}
    types = {feature.name: kinds[feature.type] for feature in schema.feature}
    ids = {recipe.data.columns.user_id, recipe.data.columns.item_id}

    def columns(features: Any) -> dict[str, str]:
        return {feature.column: types[feature.column] for feature in features if feature.column not in ids}

    candidate = recipe.features.candidate
    return sections(
        {
            "*query columns*": columns(recipe.features.query),
            "*item columns*": columns(candidate),
            "*display columns*": columns(feature for feature in candidate if feature.display),
        }
    )


SECTIONS = _sections()


@pytest.fixture(scope="module")
def addresses(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """Addresses `grpc` and `rest` of the server."""
    target, rest_target = (request.config.getoption(name, None) for name in ("--target", "--rest-target"))
    if target:
        assert rest_target, "--target without --rest-target: these tests need both"
        yield {"grpc": target, "rest": rest_target}
        return
    # A copy, because other tests push into the first run's folder.
    folder = tmp_path_factory.mktemp("pushed")
    model: Path = request.getfixturevalue("first_run").model
    shutil.copytree(model, folder / model.name)
    serve: Callable[..., AbstractContextManager[Addresses]] = request.getfixturevalue("serve")
    with serve(folder, "--model", NAME) as found:
        yield found


@pytest.fixture(scope="module")
def stubs(addresses: Addresses) -> Iterator[Stubs]:
    made = Stubs(addresses["grpc"])
    yield made
    made.channel.close()


@pytest.fixture(scope="module")
def client(addresses: Addresses) -> Iterator[Recommender]:
    with Recommender(addresses["grpc"], model=NAME, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def signatures(stubs: Stubs) -> dict[str, Any]:
    """SignatureDefs by name."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = NAME
    answer = stubs.prediction.GetModelMetadata(request, timeout=60)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(found)
    return dict(found.signature_def)


@pytest.fixture(scope="module")
def catalogue(stubs: Stubs) -> int:
    """Number of items."""
    return int(_predict(stubs, "evaluate", examples=[_example(USER, FILM)])["catalogue_size"][0])


def _example(user: str, item: str) -> bytes:
    example = tf.train.Example()
    for name, value in (("user_id", user), ("item_id", item)):
        example.features.feature[name].bytes_list.value.append(value.encode())
    return example.SerializeToString()


def _answer(stubs: Stubs, request: predict_pb2.PredictRequest) -> dict[str, Any]:
    response = stubs.prediction.Predict(request, timeout=60)
    return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}


def _predict(stubs: Stubs, signature: str, **inputs: Any) -> dict[str, Any]:
    return _answer(stubs, predict_request(signature, NAME, **inputs))


def _rest(addresses: Addresses, body: str | dict[str, Any]) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(addresses["rest"], timeout=60)
    text = body if isinstance(body, str) else json.dumps(body)
    connection.request("POST", f"/v1/models/{NAME}:predict", text.encode())
    response = connection.getresponse()
    status, answer = response.status, json.loads(response.read())
    connection.close()
    return status, answer


def _ids(answer: Any) -> list[str]:
    return [each.item_id for each in answer.items]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_model_has_the_signatures_of_the_page(signatures: dict[str, Any]) -> None:
    assert overview() == set(SECTIONS) == {name for name in signatures if not name.startswith("__")}


@pytest.mark.parametrize("signature", SECTIONS)
def test_tables_are_the_signatures(signatures: dict[str, Any], signature: str) -> None:
    section, definition = SECTIONS[signature], signatures[signature]
    width = signatures["embed_item"].outputs["embedding"].tensor_shape.dim[1].size
    for documented, exported in ((section.inputs, definition.inputs), (section.outputs, definition.outputs)):
        assert set(documented) == set(exported)
        for name, row in documented.items():
            assert tf.dtypes.as_dtype(exported[name].dtype) == DTYPES[row.dtype], name
            sizes = [dim.size for dim in exported[name].tensor_shape.dim]
            assert len(sizes) == len(row.shape), name
            for place, size in enumerate(sizes):
                assert row.allows(size, place, {"K": 100, "D": width}), (name, row.shape[place])
    for name, row in section.inputs.items():
        assert (row.default == "required") == (name not in definition.defaults), name
        if name in definition.defaults:
            assert row.is_default(tf.make_ndarray(definition.defaults[name])), name


@pytest.mark.parametrize("signature", SECTIONS)
def test_examples_of_the_page_have_the_same_response_over_grpc_and_rest(
    stubs: Stubs, addresses: Addresses, signature: str
) -> None:
    section = SECTIONS[signature]
    (body,), (text,) = section.requests, section.messages
    status, answer = _rest(addresses, body)
    assert status == 200, answer
    over_grpc = _answer(stubs, text_format.Parse(text, predict_pb2.PredictRequest()))
    assert set(over_grpc) == set(section.outputs)
    over_rest = answer["outputs"] if len(over_grpc) > 1 else dict.fromkeys(over_grpc, answer["outputs"])
    assert set(over_rest) == set(over_grpc)
    for name, values in over_grpc.items():
        assert values.size, name
        if values.dtype.kind == "O":
            assert over_rest[name] == np.vectorize(bytes.decode, otypes="O")(values).tolist(), name
        else:
            np.testing.assert_allclose(over_rest[name], values, rtol=1e-5, err_msg=name)


# --- rules for all signatures -----------------------------------------------------------------------------------------


def test_rows_of_a_batch_are_independent(client: Recommender) -> None:
    users, histories = [USER, NEW_USER, "20", NEW_USER], [[], [], [FILM], OTHER_FILMS]
    together = client.recommend_batch(users, k=100, histories=histories)
    for user, history, found in zip(users, histories, together, strict=True):
        alone = client.recommend(user, k=100, history=history)
        assert [each.score for each in found.items] == pytest.approx([each.score for each in alone.items], abs=1e-4)
        # The order of nearly equal scores may differ.
        assert len(set(_ids(found)) ^ set(_ids(alone))) <= 2
    ratings = client.rate_batch(users, [FILM] * 4, histories=histories)
    alone_ratings = [client.rate(user, FILM, history=history) for user, history in zip(users, histories, strict=True)]
    assert ratings == pytest.approx(alone_ratings, abs=1e-4)


@pytest.mark.parametrize("signature", SECTIONS)
def test_empty_batch_answers_an_empty_batch_in_every_signature(stubs: Stubs, signature: str) -> None:
    required = [name for name, row in SECTIONS[signature].inputs.items() if row.default == "required"]
    empty = tf.make_tensor_proto([], dtype=tf.string, shape=[0])
    answer = _predict(stubs, signature, **dict.fromkeys(required or ["item_id"], empty))
    assert set(answer) == set(SECTIONS[signature].outputs)
    assert {len(values) for values in answer.values()} == {0}


def test_new_users_and_unknown_items_are_no_errors(client: Recommender) -> None:
    for user in (USER, NEW_USER, "", "é"):
        items = client.recommend(user, k=100).items
        assert len({each.item_id for each in items}) == 100
        assert [each.score for each in items] == sorted((each.score for each in items), reverse=True)
        assert all(1 <= each.rating <= 5 and each.display["title"] for each in items)
    for user in (USER, NEW_USER):
        assert 1 <= client.rate(user, "no such film") <= 5
    assert _ids(client.recommend(NEW_USER)) == _ids(client.recommend("another unseen user"))
    assert _ids(client.recommend(NEW_USER)) != _ids(client.recommend(USER))


def test_rating_is_the_same_in_every_signature(client: Recommender, stubs: Stubs) -> None:
    listed = client.recommend(USER, k=20).items
    assert client.rate_batch([USER] * 20, [each.item_id for each in listed]) == pytest.approx(
        [each.rating for each in listed], abs=1e-4
    )
    users, films = [USER, "20", NEW_USER, USER], [FILM, "1", "1", "no such film"]
    for name in ("evaluate", "serving_default"):
        examples = [_example(user, film) for user, film in zip(users, films, strict=True)]
        evaluated = _predict(stubs, name, examples=examples)
        assert evaluated["rating"] == pytest.approx(client.rate_batch(users, films), abs=1e-4)
    assert evaluated["rank"][3] == -1, "an unknown item has no rank"


def test_new_users_history_counts_and_is_not_recommended(client: Recommender) -> None:
    plain, clicked = client.recommend(NEW_USER, k=100), client.recommend(NEW_USER, k=100, history=[FILM, *OTHER_FILMS])
    assert not {FILM, *OTHER_FILMS} & set(_ids(clicked))
    assert _ids(clicked)[:10] != _ids(plain)[:10]
    assert client.rate(NEW_USER, "172", history=[FILM]) != pytest.approx(client.rate(NEW_USER, "172"), abs=1e-6)
    assert client.recommend(NEW_USER, history=["", "no such film"]) == client.recommend(NEW_USER)


def test_context_of_the_request_counts(client: Recommender) -> None:
    plain = client.rate(USER, FILM)
    assert client.rate(USER, FILM, context={"occupation": "", "gender": ""}) == pytest.approx(plain, abs=1e-6)
    changed = client.rate(USER, FILM, context={"age": 7, "gender": "F", "occupation": "none"})
    assert changed != pytest.approx(plain, abs=1e-6)


# --- lists ------------------------------------------------------------------------------------------------------------


def test_only_items_seen_in_the_train_split_are_excluded(client: Recommender, stubs: Stubs, catalogue: int) -> None:
    evaluated = _predict(stubs, "evaluate", examples=[_example(USER, FILM), _example(NEW_USER, FILM)])
    rated, none = evaluated["user_interactions"]
    assert rated > 10 and none == 0
    assert len(client.recommend(USER, k=catalogue).items) == catalogue - rated
    assert len(client.recommend(NEW_USER, k=10 * catalogue).items) == catalogue


def test_filters_keep_the_order(client: Recommender, catalogue: int) -> None:
    everything = _ids(client.recommend(USER, k=catalogue))
    exclude, only = [*everything[:3], "no such film"], everything[1:40:4]
    assert _ids(client.recommend(USER, k=10, exclude=exclude)) == everything[3:13]
    assert _ids(client.recommend(USER, k=100, only=only)) == only
    expected = [each for each in only if each not in exclude]
    assert _ids(client.recommend(USER, k=4, exclude=exclude, only=only)) == expected[:4]
    assert _ids(client.recommend(USER, only=["no such film"])) == []
    assert _ids(client.recommend(USER, k=100)) == everything[:100]


def test_rank_is_the_position_in_the_served_list(client: Recommender, stubs: Stubs, catalogue: int) -> None:
    everything = _ids(client.recommend(NEW_USER, k=catalogue))
    places = [0, 9, 10, 99, 100, catalogue - 1]
    found = _predict(stubs, "evaluate", examples=[_example(NEW_USER, everything[place]) for place in places])
    assert found["rank"].tolist() == places
    assert found["rank_unseen"].tolist() == places
    for k in (1, 5, 10, 50, 100):
        assert found[f"top_{k}_hit"].tolist() == [float(place < k) for place in places]


def test_similar_items_exclude_the_item_and_are_sorted_by_score(client: Recommender) -> None:
    answer = client.similar(FILM, k=20)
    scores = [each.score for each in answer.items]
    assert len(set(_ids(answer))) == 20 and FILM not in _ids(answer)
    assert scores == sorted(scores, reverse=True) and -1 <= scores[-1] <= scores[0] <= 1 + 1e-6
    assert client.similar("no such film").items == ()


def test_title_search_finds_the_beginning_of_a_word(client: Recommender) -> None:
    titles = [each.display["title"] for each in client.find("star w").items]
    assert "Star Wars" in titles
    assert all("star w" in title.lower() for title in titles)
    assert _ids(client.find("STAR W")) == _ids(client.find("star w"))
    assert client.find("").items == () and client.find("tar w").items == ()


def test_inner_product_of_the_vectors_is_the_score(client: Recommender) -> None:
    for user, history in ((USER, []), (NEW_USER, [FILM])):
        listed = client.recommend(user, k=5, history=history).items
        query = np.array(client.embed_query(user, history=history).vector)
        vectors = np.array([each.vector for each in client.embed_item_batch([each.item_id for each in listed])])
        np.testing.assert_allclose(vectors @ query, [each.score for each in listed], rtol=1e-3, atol=1e-4)
    new = client.embed_item("new-1", columns={"title": "Batman (2031)", "genres": "Action|Crime"}).vector
    assert len(new) == len(vectors[0]) and np.isfinite(new).all()
    assert new != client.embed_item("new-1", columns={"title": "Casablanca"}).vector


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "inputs"),
    [
        ("recommend", {}),
        ("recommend", {"user_id": [4]}),
        ("recommend", {"user_id": [["1"]]}),
        ("recommend", {"user_id": ["1", "2", "3"], "age": [1, 2]}),
        ("recommend", {"user_id": ["1"], "colour": ["red"]}),
        ("recommend", {"user_id": ["1", "2", "3"], "history": [["1"], ["2"]]}),
        ("recommend_filtered", {"user_id": ["1"], "k": 0}),
        ("rate", {"user_id": ["1"]}),
        ("rate", {"user_id": ["1", "2"], "item_id": ["1", "2", "3"]}),
        ("evaluate", {"examples": ["no tf.Example"]}),
    ],
)
def test_invalid_requests_are_rejected_over_grpc_and_rest(
    stubs: Stubs, addresses: Addresses, signature: str, inputs: dict[str, Any]
) -> None:
    dtypes = {"k": tf.int32, "age": tf.int64}
    tensors = {name: tf.make_tensor_proto(value, dtypes.get(name)) for name, value in inputs.items()}
    with pytest.raises(grpc.RpcError) as rejected:
        _predict(stubs, signature, **tensors)
    assert rejected.value.code() == grpc.StatusCode.INVALID_ARGUMENT, rejected.value.details()
    status, answer = _rest(addresses, {"signature_name": signature, "inputs": inputs})
    assert status == 400 and answer["error"]
