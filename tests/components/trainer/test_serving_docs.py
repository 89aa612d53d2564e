"""docs/serving.md against exported models: its tables are their signatures, and its examples run."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2

from components.trainer.export import ServedRecommender, save
from components.trainer.model import TwoTaskRecommender
from pipeline.recipe import load_recipe

World = Any
Loaded = Any

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "serving.md").read_text()

# What stands for columns in the tables, and the columns of the models here.
QUERY = {"at": "int64", "age": "int64", "Plan": "string", "moods": "string", "height": "float"}
COLUMNS = {
    "*query columns*": QUERY,
    "*item columns*": {"name": "string", "tags": "string"},
    "*display columns*": {"name": "string"},
}
DTYPES = {"string": tf.string, "float": tf.float32, "int64": tf.int64, "int32": tf.int32}


@dataclasses.dataclass(frozen=True)
class Documented:
    """One line of a table."""

    dtype: str
    shape: list[str]
    default: str


@dataclasses.dataclass(frozen=True)
class Section:
    inputs: dict[str, Documented]
    outputs: dict[str, Documented]
    requests: list[str]
    """REST bodies."""
    messages: list[str]
    """`PredictRequest`s in text format."""


def _table(lines: list[str], title: str) -> dict[str, Documented]:
    start = next(place for place, line in enumerate(lines) if line.startswith(f"| {title} |"))
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        names, dtype, shape, last = (cell.strip() for cell in line.strip("|").split("|"))
        dimensions = [part.strip() for part in shape.strip("`[]").split(",") if part.strip()]
        for name in names.split(", "):
            columns = COLUMNS.get(name, {name.strip("`"): dtype})
            found |= {column: Documented(kind, dimensions, last.strip("`")) for column, kind in columns.items()}
    return found


def _sections() -> Iterator[tuple[str, Section]]:
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title, *lines = part.splitlines()
        names = re.findall("`(.+?)`", title)
        blocks = {kind: re.findall(rf"```{kind}\n(.*?)```", part, re.DOTALL) for kind in ("json", "textproto")}
        for name in names:
            yield name, Section(_table(lines, "input"), _table(lines, "output"), blocks["json"], blocks["textproto"])


SECTIONS = dict(_sections())


@pytest.fixture(scope="module")
def with_history(
    world: World,
    untrained: Callable[..., TwoTaskRecommender],
    load: Callable[[Path], Loaded],
    tmp_path_factory: pytest.TempPathFactory,
) -> Loaded:
    """A model whose recipe has a history feature; it answers as badly as one that nobody trained."""
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
    overview = PAGE[PAGE.index("| signature |") : PAGE.index("## What holds")]
    assert {name for line in overview.splitlines()[2:] for name in re.findall(r"`(\w+)`", line)} == set(SECTIONS)


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
            for size, dimension in zip(sizes, row.shape, strict=True):
                assert size == {"B": -1, "10": 10, "K": 100, "D": 9}.get(dimension, -1), (name, dimension)


@pytest.mark.parametrize("signature", SECTIONS)
def test_defaults_are_the_signatures(loaded: Loaded, signature: str) -> None:
    definition = loaded.signatures[signature]
    for name in definition.inputs:
        default = SECTIONS[signature].inputs[name].default
        if default == "required":
            assert name not in definition.defaults
            continue
        exported = tf.make_ndarray(definition.defaults[name])
        if default != "not given":
            wanted = np.array(json.loads(default))
            assert (
                exported.tolist()
                == (wanted.astype("S").astype(object) if wanted.dtype.kind == "U" else wanted).tolist()
            )
        elif exported.dtype.kind == "f":
            assert exported.shape == (1,) and np.isnan(exported).all()
        else:
            assert exported.tolist() == ([np.iinfo(np.int64).min] if exported.dtype.kind == "i" else [b""])


def _of_movielens() -> set[str]:
    """Columns that the examples may name, which the models here do not have."""
    features = load_recipe(ROOT / "schemas" / "movielens").features
    return {feature.column for feature in (*features.query, *features.candidate)} - {"user_id", "item_id"}


def _unpacked(values: Any) -> Any:
    if isinstance(values, dict):
        return base64.b64decode(values["b64"])
    return [_unpacked(value) for value in values] if isinstance(values, list) else values


@pytest.mark.parametrize("signature", SECTIONS)
def test_examples_run(all_items: Loaded, signature: str) -> None:
    section = SECTIONS[signature]
    asked = []
    assert section.requests and section.messages
    for body in section.requests:
        request = json.loads(body)
        asked.append((request["signature_name"], {key: _unpacked(value) for key, value in request["inputs"].items()}))
    for text in section.messages:
        message = text_format.Parse(text, predict_pb2.PredictRequest())
        definition = all_items.signatures[message.model_spec.signature_name]
        for key, tensor in message.inputs.items():
            assert key in _of_movielens() or tensor.dtype == definition.inputs[key].dtype
        inputs = {key: tf.make_ndarray(tensor).tolist() for key, tensor in message.inputs.items()}
        asked.append((message.model_spec.signature_name, inputs))
    for name, inputs in asked:
        assert name == signature or {name, signature} == {"evaluate", "serving_default"}
        known = {key: values for key, values in inputs.items() if key in all_items.signatures[name].inputs}
        assert set(inputs) - set(known) <= _of_movielens()
        answer = all_items(name, **{key: np.array(values) for key, values in known.items()})
        (rows,) = {len(values) for values in answer.values()}
        assert rows == max(len(values) for key, values in inputs.items() if key not in ("k", "exclude", "only"))
    rest, grpc = (asked[0][1], asked[-1][1])
    assert rest.keys() == grpc.keys(), "both examples ask the same"
