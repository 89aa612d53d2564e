"""The exported SavedModel in a TensorFlow Serving session: signatures, defaults and results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from components.trainer.data.training_data import TrainingData
from components.trainer.export import ServedRecommender, label_bounds, save
from components.trainer.export.warm_up_requests import write_warm_up
from components.trainer.fitting.training_loop import train
from components.trainer.run_fn import run_fn

World = Any
Loaded = Any
Example = Callable[[Any], bytes]

TOP_K = (1, 5, 10, 50, 100)
CONTEXT = ("at", "age", "Plan", "moods", "height")


def words(values: np.ndarray) -> list[str]:
    return [value.decode() for value in values]


def given(row: dict[str, Any]) -> dict[str, list[Any]]:
    """A row's query columns as inputs of `recommend` and `rate`."""
    return {name: [row[name]] for name in CONTEXT if row[name] is not None}


# --- the signatures ---------------------------------------------------------------------------------------------------


def test_signatures_are_the_contract(all_items: Loaded) -> None:
    found = {
        name: (sorted(signature.inputs), sorted(signature.outputs)) for name, signature in all_items.signatures.items()
    }
    evaluated = sorted(
        [
            *(f"top_{k}{suffix}_hit" for k in TOP_K for suffix in ("", "_unseen")),
            *(f"{prefix}{name}" for name in ("rank", "rank_unseen") for prefix in ("", "popularity_")),
            *(f"{prefix}top_10_{name}" for name in ("items", "popularity") for prefix in ("", "popularity_")),
            *("rating", "mean_rating", "user_key", "catalogue_size"),
            *("user_interactions", "user_activity", "item_interactions", "item_popularity"),
        ]
    )
    assert found.pop("__saved_model_init_op", None) is not None
    assert found == {
        "serving_default": (["examples"], evaluated),
        "evaluate": (["examples"], evaluated),
        "recommend": (sorted(["user_id", *CONTEXT]), ["item_ids", "name", "ratings", "scores"]),
        "recommend_filtered": (
            sorted(["user_id", *CONTEXT, "exclude", "only", "k"]),
            ["item_ids", "name", "ratings", "scores"],
        ),
        "similar_items": (["item_id"], ["item_ids", "name", "scores"]),
        "find_items": (["text"], ["item_ids", "name"]),
        "rate": (sorted(["user_id", "item_id", *CONTEXT]), ["rating"]),
        "embed_query": (sorted(["user_id", *CONTEXT]), ["embedding"]),
        "embed_item": (["item_id", "name", "tags"], ["embedding"]),
    }


@pytest.mark.parametrize(
    ("signature", "required"),
    [
        ("recommend", {"user_id"}), ("recommend_filtered", {"user_id"}), ("similar_items", {"item_id"}),
        ("find_items", {"text"}), ("rate", {"user_id", "item_id"}), ("embed_query", {"user_id"}), ("embed_item", set()),
        ("evaluate", {"examples"}),
    ],
)  # fmt: skip
def test_optional_inputs_have_defaults_and_required_ones_have_none(
    all_items: Loaded, signature: str, required: set[str]
) -> None:
    definition = all_items.signatures[signature]
    assert set(definition.inputs) - set(definition.defaults) == required


def test_only_one_signature_has_a_scalar_so_that_a_server_can_batch_the_others(all_items: Loaded) -> None:
    scalars = {
        (name, key)
        for name, definition in all_items.signatures.items()
        for key, info in definition.inputs.items()
        if not info.tensor_shape.dim
    }
    assert scalars == {("recommend_filtered", "k")}


def test_only_operations_of_a_stock_server(all_items: Loaded) -> None:
    graph = all_items.meta_graph.graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    functions = {function.signature.name for function in graph.library.function}
    used = {node.op for node in nodes} - functions
    # raw_ops has the operations of TensorFlow itself; libraries that were loaded besides it are not in it.
    assert {op for op in used if not hasattr(tf.raw_ops, op)} == set()
    assert not {op for op in used if "PyFunc" in op or op.startswith("NumpyFunction")}


def test_no_table_forces_flex_operations(all_items: Loaded) -> None:
    graph = all_items.meta_graph.graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    tables = [node for node in nodes if node.op in ("HashTableV2", "MutableHashTableV2", "HashTable")]
    assert tables
    assert {(node.attr["key_dtype"].type, node.attr["value_dtype"].type) for node in tables} == {
        (tf.string.as_datatype_enum, tf.int64.as_datatype_enum)
    }


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_rates_as_rate_does(world: World, all_items: Loaded, example: Example) -> None:
    chosen = world.interactions[:40]
    evaluated = all_items("evaluate", examples=[example(row) for row in chosen])["rating"]
    for row, rating in zip(chosen, evaluated, strict=True):
        rated = all_items("rate", user_id=[row["customer"]], item_id=[row["item"]], **given(row))["rating"]
        np.testing.assert_allclose(rated, [rating], rtol=1e-4)


def test_serving_default_is_evaluate(world: World, all_items: Loaded, example: Example) -> None:
    examples = [example(row) for row in world.interactions[:10]]
    one, other = all_items("evaluate", examples=examples), all_items("serving_default", examples=examples)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_a_hit_is_what_recommend_returns(world: World, all_items: Loaded, example: Example) -> None:
    random = np.random.default_rng(2)
    rows = world.interactions[:60]
    ranked = [words(all_items("recommend", user_id=[row["customer"]], **given(row))["item_ids"][0]) for row in rows]
    # Every other item is from the first of the user's own list: a random one is hardly ever among five.
    items = [own[place % 6] if place % 2 else str(random.choice(world.items)) for place, own in enumerate(ranked)]
    chosen = [{**row, "item": item} for row, item in zip(rows, items, strict=True)]
    hits = all_items("evaluate", examples=[example(row) for row in chosen])
    seen = set()
    for place, (own, item) in enumerate(zip(ranked, items, strict=True)):
        for k in TOP_K:
            assert hits[f"top_{k}_hit"][place] == float(item in own[:k]), (item, k)
            seen.add((k, hits[f"top_{k}_hit"][place]))
    assert seen >= {(k, hit) for k in TOP_K[1:] for hit in (0.0, 1.0)}


def test_a_hit_is_what_a_sort_of_all_scores_finds(
    world: World, data: TrainingData, trained: Any, all_items: Loaded, example: Example
) -> None:
    # Missing values of a row have stored values in serving, which another test covers.
    chosen = [row for row in world.interactions if None not in row.values()][:60]
    model = trained[0]
    layer = world.transform_output.transform_features_layer()
    features = {
        name: tf.sparse.to_dense(values) if isinstance(values, tf.SparseTensor) else values
        for name, values in layer(tf.io.parse_example([example(row) for row in chosen], world.feature_spec)).items()
    }
    every = tf.range(1, data.item_count + 1, dtype=tf.int64)
    scores = model.encode_query(features).retrieval.numpy() @ model.encode_items(every).retrieval.numpy().T
    true = features["item_id"].numpy() - 1
    rank = (scores > scores[np.arange(len(chosen)), true][:, None]).sum(axis=1)
    hits = all_items("evaluate", examples=[example(row) for row in chosen])
    for k in TOP_K:
        np.testing.assert_array_equal(hits[f"top_{k}_hit"], (rank < k).astype(np.float32))


def test_equal_scores_count_in_the_order_recommend_returns_them(
    world: World, serve: Callable[..., ServedRecommender], example: Example
) -> None:
    served = serve(k=100, exclude_seen=False)
    (factors,) = served.ranker.index.variables
    factors.assign(tf.zeros_like(factors))
    user, item = tf.constant(["g0u00"]), tf.constant(world.items)
    ranked = words(served.signatures()["recommend"](user)["item_ids"].numpy()[0])
    examples = [example({"customer": "g0u00", "item": item}) for item in world.items]
    hits = served.signatures()["evaluate"](tf.constant(examples))
    assert len(item) > 100
    for k in TOP_K:
        hit = {item for item, counts in zip(world.items, hits[f"top_{k}_hit"].numpy(), strict=True) if counts}
        assert hit == set(ranked[:k])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("spread", ["all items", "one item"])
def test_scores_that_are_not_finite_are_no_hits(
    world: World, serve: Callable[..., ServedRecommender], example: Example, poison: float, spread: str
) -> None:
    # A model that diverged must not pass the gate because every comparison with NaN is false.
    served = serve(k=10, exclude_seen=False)
    (factors,) = served.ranker.index.variables
    bad = factors.numpy()
    bad[:, slice(None) if spread == "all items" else 3] = poison
    factors.assign(bad)
    hits = served.signatures()["evaluate"](tf.constant([example(row) for row in world.interactions[:20]]))
    for k in TOP_K:
        assert not hits[f"top_{k}_hit"].numpy().any()


def test_an_item_outside_the_catalogue_is_no_hit_and_has_a_rating(all_items: Loaded, example: Example) -> None:
    found = all_items("evaluate", examples=[example({"customer": "g0u00", "item": "never heard of"})])
    assert all(found[f"top_{k}_hit"] == [0] for k in TOP_K)
    assert 1 <= found["rating"][0] <= 5


# --- recommend --------------------------------------------------------------------------------------------------------


def test_recommend_returns_k_different_items_best_first_with_their_names_and_ratings(
    world: World, all_items: Loaded
) -> None:
    answer = all_items("recommend", user_id=["g0u00", "g1u00"])
    names = {row["item"]: row["name"] for row in world.catalogue}
    assert {name: values.shape for name, values in answer.items()} == dict.fromkeys(
        ("item_ids", "name", "ratings", "scores"), (2, 100)
    )
    for items, shown, scores in zip(answer["item_ids"], answer["name"], answer["scores"], strict=True):
        assert len(set(items)) == 100
        assert [names[item] for item in words(items)] == words(shown)
        assert (np.diff(scores) <= 0).all()
    rated = all_items("rate", user_id=["g0u00"] * 100, item_id=answer["item_ids"][0])["rating"]
    np.testing.assert_allclose(answer["ratings"][0], rated, rtol=1e-4)


def test_results_of_a_batch_equal_those_of_single_users(world: World, unseen_items: Loaded) -> None:
    users = ["g0u01", "new user", "g1u02", "g0u01"]
    together = unseen_items("recommend", user_id=users)
    for place, user in enumerate(users):
        alone = unseen_items("recommend", user_id=[user])
        np.testing.assert_array_equal(together["item_ids"][place], alone["item_ids"][0])
        np.testing.assert_allclose(together["ratings"][place], alone["ratings"][0], rtol=1e-4)


def test_seen_items_are_excluded_and_an_exhausted_catalogue_is_padded(world: World, unseen_items: Loaded) -> None:
    answer = unseen_items("recommend", user_id=world.users)
    # k is 1000 in the recipe; a catalogue of 130 has no more to give.
    assert answer["item_ids"].shape == (len(world.users), len(world.items))
    for place, user in enumerate(world.users):
        items, seen = words(answer["item_ids"][place]), world.seen(user)
        rest = len(items) - len(seen)
        assert set(items[:rest]) == set(world.items) - seen
        assert items[rest:] == [""] * len(seen) == words(answer["name"][place, rest:])
        assert not answer["scores"][place, rest:].any() and not answer["ratings"][place, rest:].any()
        assert (answer["ratings"][place, :rest] >= 1).all()


def test_excluding_seen_items_keeps_the_order(world: World, all_items: Loaded, unseen_items: Loaded) -> None:
    every = words(all_items("recommend", user_id=["g1u07"])["item_ids"][0])
    unseen = words(unseen_items("recommend", user_id=["g1u07"])["item_ids"][0])
    expected = [item for item in every if item not in world.seen("g1u07")]
    assert unseen[: len(expected)] == expected


def test_new_users_get_all_items_and_an_average_score(world: World, all_items: Loaded, unseen_items: Loaded) -> None:
    answer = unseen_items("recommend", user_id=["new user", "", "another new user"])
    assert all(set(words(row)) == set(world.items) for row in answer["item_ids"])
    assert (answer["item_ids"] == answer["item_ids"][:1]).all()
    assert np.isfinite(answer["scores"]).all()
    groups = [item[:2] for item in words(all_items("recommend", user_id=["new user"])["item_ids"][0, :20])]
    assert {"g0", "g1"} <= set(groups)


@pytest.mark.parametrize(
    ("signature", "inputs", "shapes"),
    [
        ("recommend", {"user_id": []}, {(0, 100)}),
        ("recommend_filtered", {"user_id": []}, {(0, 10)}),
        ("recommend_filtered", {"user_id": [], "exclude": np.zeros([0, 0], str), "only": [["g0i00"]]}, {(0, 10)}),
        ("similar_items", {"item_id": []}, {(0, 100)}),
        ("find_items", {"text": []}, {(0, 100)}),
        ("rate", {"user_id": [], "item_id": []}, {(0,)}),
        ("embed_query", {"user_id": []}, {(0, 9)}),
        ("embed_item", {"item_id": []}, {(0, 9)}),
        ("embed_item", {"name": []}, {(0, 9)}),
        ("evaluate", {"examples": []}, {(0,), (0, 10)}),
    ],
)
def test_an_empty_batch_returns_an_empty_batch(
    all_items: Loaded, signature: str, inputs: dict[str, list[str]], shapes: set[tuple[int, ...]]
) -> None:
    assert {values.shape for values in all_items(signature, **inputs).values()} == shapes


# --- inputs not set ---------------------------------------------------------------------------------------------------


def test_inputs_that_are_not_set_have_stored_values(world: World, all_items: Loaded) -> None:
    now = max(row["at"] for row in world.interactions)
    for user in world.users[::4]:
        last = {**world.latest(user), "at": now}
        for name, inputs in (("rate", {"item_id": ["g0i03"]}), ("recommend", {})):
            short = all_items(name, user_id=[user], **inputs)
            full = all_items(name, user_id=[user], **inputs, **given(last))
            for output, values in short.items():
                if values.dtype.kind == "f":
                    np.testing.assert_allclose(values, full[output], rtol=1e-4, atol=1e-5)
                else:
                    np.testing.assert_array_equal(values, full[output])


@pytest.mark.parametrize(
    ("column", "one", "other"),
    [
        ("age", 20, 49), ("Plan", "free", "trial"), ("moods", "glad|sad|calm|calm|calm", "glad"), ("height", 0.5, 2.9),
        ("at", 880_000_000, 887_000_000),
    ],
)  # fmt: skip
def test_inputs_that_are_set_override_stored_values(all_items: Loaded, column: str, one: Any, other: Any) -> None:
    scores = [all_items("recommend", user_id=["g0u01"], **{column: [value]})["scores"] for value in (one, other)]
    assert not np.allclose(*scores, atol=1e-5)


def test_one_value_is_broadcast_and_unset_rows_have_stored_values(all_items: Loaded) -> None:
    users = ["g0u01", "g1u01", "new user"]
    one = all_items("rate", user_id=users, item_id=["g0i01"] * 3, age=[30])["rating"]
    each = all_items("rate", user_id=users, item_id=["g0i01"] * 3, age=[30] * 3)["rating"]
    np.testing.assert_array_equal(one, each)
    not_given = int(all_items.signatures["rate"].defaults["age"].int64_val[0])
    mixed = all_items("rate", user_id=users, item_id=["g0i01"] * 3, age=[30, not_given, 30])["rating"]
    alone = all_items("rate", user_id=users[1:2], item_id=["g0i01"])["rating"]
    np.testing.assert_allclose(mixed, [one[0], alone[0], one[2]], rtol=1e-5)


def test_an_evaluated_row_without_a_column_has_the_stored_value(
    world: World, all_items: Loaded, example: Example
) -> None:
    evaluated = all_items("evaluate", examples=[example({"customer": "g0u01", "item": "g0i01"})])["rating"]
    rated = all_items("rate", user_id=["g0u01"], item_id=["g0i01"])["rating"]
    np.testing.assert_allclose(evaluated, rated, rtol=1e-5)


def test_inputs_of_different_lengths_are_an_error(all_items: Loaded) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        all_items("rate", user_id=["g0u01"] * 3, item_id=["g0i01"] * 2)
    with pytest.raises(tf.errors.InvalidArgumentError):
        all_items("recommend", user_id=["g0u01"] * 3, age=[30, 31])


# --- ratings ----------------------------------------------------------------------------------------------------------


def test_ratings_stay_within_the_schema_s_domain(world: World, all_items: Loaded) -> None:
    ratings = all_items("recommend", user_id=[*world.users, "new user"])["ratings"]
    assert ratings.min() >= 1 and ratings.max() <= 5
    far = all_items("rate", user_id=["g0u00", "g0u00"], item_id=["g0i00", "?"], height=[1e6, -1e6])["rating"]
    assert ((far >= 1) & (far <= 5)).all()


@pytest.mark.parametrize(
    ("domain", "bounds"),
    [
        ("float_domain { min: 1 max: 5 }", (1.0, 5.0)),
        ("int_domain { min: 0 max: 1 }", (0.0, 1.0)),
        ("int_domain { max: 10 }", None),
        ("float_domain { min: 1 }", None),
        ("", None),
    ],
)
def test_a_domain_with_an_open_end_does_not_clip(domain: str, bounds: tuple[float, float] | None) -> None:
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    schema = text_format.Parse(f'feature {{ name: "stars" type: FLOAT {domain} }}', schema_pb2.Schema())
    assert label_bounds(schema, "stars") == bounds


# --- warm-up and run_fn -----------------------------------------------------------------------------------------------


def warm_up(loaded: Loaded) -> list[tuple[str, set[str]]]:
    """Runs the model's warm-up requests; returns the signatures they ask for, each with the inputs it is given."""
    requests = []
    for record in tf.data.TFRecordDataset(str(loaded.path / "assets.extra" / "tf_serving_warmup_requests")):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        answer = loaded(request.model_spec.signature_name, **inputs)
        rows = {len(values) for name, values in inputs.items() if name not in ("exclude", "only", "k", "history")}
        assert {len(values) for values in answer.values()} == rows
        requests.append((request.model_spec.signature_name, set(inputs)))
    return requests


def test_warm_up_requests_run_and_cover_every_signature_and_filter(all_items: Loaded) -> None:
    requests = warm_up(all_items)
    assert {name for name, _ in requests} == set(all_items.signatures) - {"__saved_model_init_op"}
    assert ("recommend_filtered", {"user_id", "exclude", "only", "k"}) in requests
    assert len(requests) <= 1000


def test_too_many_warm_up_requests_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected at most 1000 warm-up requests, .* got 1001"):
        write_warm_up(str(tmp_path), [("recommend", {"user_id": ["u"]})] * 1001)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_run_fn_trains_on_train_and_exports(world: World, load: Callable[[Path], Loaded], tmp_path: Path) -> None:
    recipe = world.recipe(training={"epochs": 2}, serving={"k": 5, "exclude_seen": True})
    run_fn(
        SimpleNamespace(
            custom_config={"recipe": recipe.model_dump_json()},
            schema_path=str(world.folder / "schema.pbtxt"),
            transform_output=str(world.folder / "transform"),
            train_files=world.files["train"],
            eval_files=world.files["catalogue"],
            serving_model_dir=str(tmp_path / "serving"),
            model_run_dir=str(tmp_path / "run"),
            hyperparameters=None,
        )
    )
    loaded = load(tmp_path / "serving")
    (answer,) = loaded("recommend", user_id=["g0u00"])["item_ids"]
    assert len(answer) == 5 and not set(words(answer)) & world.seen("g0u00")
    assert warm_up(loaded)
    curves = json.loads((tmp_path / "run" / "curves.json").read_text())
    assert all(len(values) == 2 and np.isfinite(values).all() for values in curves.values())
    assert "loss" in curves


IDS_ONLY = {
    "query": [{"column": "customer", "kind": "id"}],
    "candidate": [{"column": "item", "kind": "id"}],
}

OPTIONS: dict[str, dict[str, Any]] = {
    "mlp head, deep towers, adagrad": {
        "model": {
            "rating_head": {"kind": "mlp", "layers": [8, 4], "dropout": 0.2, "l2": 0.01},
            "query_tower": {"layers": [16], "dropout": 0.2},
            "candidate_tower": {"layers": [16, 8], "dropout": 0.2},
            "l2": 0.01,
        },
        "training": {"optimizer": {"kind": "adagrad", "learning_rate": 0.1}},
    },
    "retrieval alone, adamw": {
        "model": {"rating_weight": 0, "retrieval": {"log_q_correction": False, "remove_accidental_hits": False}},
        "training": {"optimizer": {"kind": "adamw"}},
    },
    "rating alone": {"model": {"retrieval_weight": 0}},
    "crossed towers, normalised, own mlp head": {
        "model": {
            "query_tower": {"cross_layers": 2, "cross_rank": 2, "activation": "gelu"},
            "candidate_tower": {"combine": "sum", "projection": False},
            "rating_head": {"kind": "mlp", "inputs": "own", "cross_layers": 1, "layers": [4]},
            "retrieval": {"normalize": True, "temperature": 0.1, "item_bias": False, "uniform_negatives": 20},
        }
    },
    "whole catalogue, both inputs, learned weights": {
        "model": {
            "output_dim": 4,
            "rating_head": {"inputs": "both", "linear": True, "biases": False},
            "retrieval": {"candidates": "catalogue", "hard_negatives": 20},
            "weighting": "uncertainty",
            "cold_start_dropout": 0.2,
        }
    },
    "ids alone": {"features": IDS_ONLY, "model": {"id_dropout": 0}},
}


@pytest.mark.parametrize(
    "options",
    [pytest.param(name, marks=() if name.startswith("mlp head") else pytest.mark.slow) for name in OPTIONS],
)
def test_every_kind_of_model_trains_and_serves(
    world: World, load: Callable[[Path], Loaded], tmp_path: Path, example: Example, options: str
) -> None:
    changes = {**OPTIONS[options], "training": {"epochs": 1, "batch_size": 256, **OPTIONS[options].get("training", {})}}
    recipe = world.recipe(**changes)
    data = world.data(recipe)
    model, curves = train(recipe, data, world.transform_output)
    assert all(np.isfinite(values).all() for values in curves.values())
    served = ServedRecommender(model, data, world.transform_output, recipe, world.schema)
    save(served, str(tmp_path), world.users[:2], world.items[:2])
    loaded = load(tmp_path)
    answer = loaded("recommend", user_id=["g0u00", "new user"])
    assert (answer["item_ids"] != b"").all()
    assert np.isfinite(answer["scores"]).all() and np.isfinite(answer["ratings"]).all()
    assert np.isfinite(loaded("rate", user_id=["g0u00"], item_id=["g0i00"])["rating"]).all()
    evaluated = loaded("evaluate", examples=[example(world.interactions[0])])
    assert all(np.isfinite(values).all() for values in evaluated.values() if values.dtype.kind == "f")
    assert warm_up(loaded)
