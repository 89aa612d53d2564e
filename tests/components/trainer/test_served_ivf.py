"""The exported model with `index: ivf`, in a TensorFlow Serving session."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from components.trainer.export import save
from components.trainer.index.exact import ExactIndex
from components.trainer.index.ivf import IvfIndex
from recipe.serving import Index, Serving

World = Any
Loaded = Any
Example = Callable[[Any], bytes]
K = 10


@pytest.fixture(scope="module")
def exact(world: World, serve: Any, load: Any) -> Loaded:
    return exported(world, serve, load, "exact", index="exact")


@pytest.fixture(scope="module")
def careless(world: World, serve: Any, load: Any) -> Loaded:
    return exported(world, serve, load, "careless", index={"kind": "ivf", "recall": 0.3, "cells": 60})


def exported(world: World, serve: Any, load: Any, name: str, **serving: Any) -> Loaded:
    path = Path(world.folder, f"ivf_{name}")
    save(serve(k=K, exclude_seen=True, **serving), str(path), world.users[:3], world.items[:2])
    return load(path)


def words(values: np.ndarray) -> list[str]:
    return [value.decode() for value in values]


@pytest.mark.slow
def test_requests_with_only_or_a_large_k_equal_those_of_exact(world: World, exact: Loaded, careless: Loaded) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("recommend_filtered", {"user_id": world.users[:5], "k": 1000, "exclude": [world.items[:3]]}),
        ("recommend_filtered", {"user_id": world.users[:5], "k": 3, "only": [world.items[5:9]]}),
        ("recommend_filtered", {"user_id": world.users[:5], "only": [["no such item"]]}),
        ("similar_items", {"item_id": ["no such item"]}),
        ("recommend", {"user_id": []}),
        ("similar_items", {"item_id": []}),
    ]
    for signature, inputs in calls:
        one, other = exact(signature, **inputs), careless(signature, **inputs)
        assert one.keys() == other.keys()
        # The scores of items without interactions differ by rounding only, so that their order may differ.
        np.testing.assert_allclose(one["scores"], other["scores"], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(one["item_ids"][:, :1], other["item_ids"][:, :1])
        np.testing.assert_array_equal(np.sort(one["item_ids"]), np.sort(other["item_ids"]))


def test_the_index_is_exact_if_ivf_would_be_slower(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        served = serve(k=K, index={"kind": "ivf", "recall": 1.0, "cells": 1})
    assert isinstance(served.ranker.index, ExactIndex)
    assert "exported as exact, because ivf would be slower" in caplog.text
    assert isinstance(serve(k=K, index={"kind": "ivf", "recall": 0.3, "cells": 60}).ranker.index, IvfIndex)


@pytest.mark.slow
def test_a_hit_is_what_the_index_returns(world: World, careless: Loaded, exact: Loaded, example: Example) -> None:
    random = np.random.default_rng(2)
    seen = {user: world.seen(user) for user in world.users}
    chosen = [{**row, "item": str(random.choice(world.items))} for row in world.interactions[:150]]
    chosen = [row for row in chosen if row["item"] not in seen[row["customer"]]]
    answer = careless("evaluate", examples=[example(row) for row in chosen])
    found = set()
    for place, row in enumerate(chosen):
        context = {name: [row[name]] for name in ("at", "age", "Plan", "moods", "height") if row[name] is not None}
        ranked = words(careless("recommend", user_id=[row["customer"]], **context)["item_ids"][0])
        assert answer["top_10_unseen_hit"][place] == float(row["item"] in ranked), row
        found.add(answer["top_10_unseen_hit"][place])
    assert found == {0.0, 1.0}
    # Items that the index does not come upon have no place, where exact search has one for every item.
    assert (answer["rank"] == -1).any()
    assert (exact("evaluate", examples=[example(row) for row in chosen])["rank"] >= 0).all()


@pytest.mark.slow
def test_few_probes_return_k_items_for_each_user(world: World, careless: Loaded) -> None:
    every = careless("recommend", user_id=[*world.users, "new user"])
    assert (every["item_ids"] != b"").all()
    for user, items in zip(world.users, every["item_ids"], strict=False):
        assert not set(words(items)) & world.seen(user)
    most = careless("recommend_filtered", user_id=world.users[:2], k=1000)["item_ids"]
    for user, items in zip(world.users, most, strict=False):
        assert set(words(items[items != b""])) == set(world.items) - world.seen(user)
    listed = careless("recommend_filtered", user_id=["new user"], only=[world.items[-2:]])["item_ids"]
    assert set(words(listed[0, :2])) == set(world.items[-2:])


@pytest.mark.slow
def test_the_model_has_built_in_operations_only(careless: Loaded) -> None:
    graph = careless.meta_graph.graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    functions = {function.signature.name for function in graph.library.function}
    assert {node.op for node in nodes if not hasattr(tf.raw_ops, node.op)} <= functions
    assert not {node.op for node in nodes if "PyFunc" in node.op}


@pytest.mark.slow
def test_warm_up_has_requests_of_every_signature_that_the_model_answers(careless: Loaded) -> None:
    called = set()
    for record in tf.data.TFRecordDataset(str(careless.path / "assets.extra" / "tf_serving_warmup_requests")):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        called.add(request.model_spec.signature_name)
        careless(
            request.model_spec.signature_name,
            **{name: tf.make_ndarray(value) for name, value in request.inputs.items()},
        )
    assert called == set(careless.signatures) - {"__saved_model_init_op"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ivf", Index(kind="ivf", cells="auto", recall=0.98)),
        ("exact", Index(kind="exact")),
        ({"kind": "ivf", "recall": 0.9}, Index(kind="ivf", cells="auto", recall=0.9)),
        ({"kind": "ivf", "cells": 12}, Index(kind="ivf", cells=12, recall=0.98)),
    ],
)
def test_recipes(given: Any, expected: Any) -> None:
    found = Serving.model_validate({"index": given})
    assert found.index == expected
    assert Serving.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ifv", "did you mean 'ivf'"),
        ("hnsw", "expected exact, ivf or a mapping"),
        ({"kind": "ivf", "recall": 0}, "greater than 0"),
        ({"kind": "ivf", "recall": 1.1}, "less than or equal to 1"),
        ({"kind": "ivf", "cells": 0}, "greater than 0"),
        ({"kind": "ivf", "probes": 3}, "probes"),
        ({"kind": "exact", "recall": 0.9}, "exact has no recall"),
    ],
)
def test_invalid_index_sections_are_rejected(given: Any, message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        Serving.model_validate({"index": given})
