"""docs/serving.md, compared with exported models: tables list their signatures, and examples run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from serving_page import DTYPES, overview, sections, unpacked
from tensorflow_serving.apis import predict_pb2

from components.trainer.export import ServedRecommender, save
from components.trainer.model.recommender import TwoTaskRecommender
from recipe import load_recipe

World = Any
Loaded = Any

ROOT = Path(__file__).parents[3]

# The columns of the models here.
QUERY = {"at": "int64", "age": "int64", "Plan": "string", "moods": "string", "height": "float"}
SECTIONS = sections(
    {
        "*query columns*": QUERY,
        "*item columns*": {"name": "string", "tags": "string"},
        "*display columns*": {"name": "string"},
    }
)


@pytest.fixture(scope="module")
def with_history(
    world: World,
    untrained: Callable[..., TwoTaskRecommender],
    load: Callable[[Path], Loaded],
    tmp_path_factory: pytest.TempPathFactory,
) -> Loaded:
    """An untrained model whose recipe has a history feature."""
    features = [{"column": "item", "kind": "history", "labels": True}]
    query = [feature.model_dump(mode="json", exclude_none=True) for feature in world.recipe().features.query]
    changes = {"features": {"query": [*query, *features]}}
    recipe = world.recipe(**changes)
    data = world.data(recipe)
    served = ServedRecommender(untrained(data, **changes), data, world.transform_output, recipe, world.schema)
    path = tmp_path_factory.mktemp("with_history")
    save(served, str(path), world.users[:3], world.items[:2])
    return load(path)


@pytest.fixture(params=["all_items", "with_history"])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return request.getfixturevalue(request.param)


def test_the_page_has_every_signature_and_no_other(loaded: Loaded) -> None:
    assert set(SECTIONS) == {name for name in loaded.signatures if not name.startswith("__")}
    assert overview() == set(SECTIONS)


@pytest.mark.parametrize("signature", SECTIONS)
def test_tables_are_the_signatures(loaded: Loaded, signature: str) -> None:
    section, definition = SECTIONS[signature], loaded.signatures[signature]
    has_history = "history" in loaded.signatures["recommend"].inputs
    for title, documented, exported in (
        ("input", section.inputs, definition.inputs),
        ("output", section.outputs, definition.outputs),
    ):
        expected = {name for name in documented if name != "history" or has_history}
        assert expected == set(exported), f"{title}s of {signature}"
        for name in expected:
            info, row = exported[name], documented[name]
            assert tf.dtypes.as_dtype(info.dtype) == DTYPES[row.dtype], name
            sizes = [dim.size for dim in info.tensor_shape.dim]
            assert not info.tensor_shape.unknown_rank and len(sizes) == len(row.shape), name
            for place, size in enumerate(sizes):
                assert row.allows(size, place, {"K": 100, "D": 9}), (name, row.shape[place])


@pytest.mark.parametrize("signature", SECTIONS)
def test_defaults_are_the_signatures(loaded: Loaded, signature: str) -> None:
    definition = loaded.signatures[signature]
    for name in definition.inputs:
        documented = SECTIONS[signature].inputs[name]
        if documented.default == "required":
            assert name not in definition.defaults
        else:
            assert documented.is_default(tf.make_ndarray(definition.defaults[name])), name


def _of_movielens() -> set[str]:
    """Inputs that the examples may name, which the models here do not have."""
    features = load_recipe(ROOT / "schemas" / "movielens").features
    columns = {feature.column for feature in (*features.query, *features.candidate)}
    return columns - {"user_id", "item_id"} | {"history"}


@pytest.mark.parametrize("signature", SECTIONS)
def test_examples_run(all_items: Loaded, signature: str) -> None:
    section = SECTIONS[signature]
    requests = []
    assert section.requests and section.messages
    for body in section.requests:
        request = json.loads(body)
        requests.append((request["signature_name"], {key: unpacked(value) for key, value in request["inputs"].items()}))
    for text in section.messages:
        message = text_format.Parse(text, predict_pb2.PredictRequest())
        definition = all_items.signatures[message.model_spec.signature_name]
        for key, tensor in message.inputs.items():
            assert key in _of_movielens() or tensor.dtype == definition.inputs[key].dtype
        inputs = {key: tf.make_ndarray(tensor).tolist() for key, tensor in message.inputs.items()}
        requests.append((message.model_spec.signature_name, inputs))
    for name, inputs in requests:
        assert name == signature or {name, signature} == {"evaluate", "serving_default"}
        known = {key: values for key, values in inputs.items() if key in all_items.signatures[name].inputs}
        assert set(inputs) - set(known) <= _of_movielens()
        answer = all_items(name, **{key: np.array(values) for key, values in known.items()})
        (rows,) = {len(values) for values in answer.values()}
        assert rows == max(len(values) for key, values in inputs.items() if key not in ("k", "exclude", "only"))
    rest, grpc = (requests[0][1], requests[-1][1])
    # REST takes every input; tests/serving/test_pushed_model.py compares the answers.
    left_out = rest.keys() - grpc.keys()
    assert grpc.keys() <= rest.keys()
    assert all(section.inputs[name].default != "required" for name in left_out & section.inputs.keys())
