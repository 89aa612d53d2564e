"""A dataset of two groups of users and items, transformed, trained on and exported once per session."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import dataclasses
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_transform.tf_metadata import dataset_metadata

from components.trainer.data.training_data import TrainingData, read_training_data
from components.trainer.export import ServedRecommender, save
from components.trainer.fitting.training_loop import train
from components.trainer.model.recommender import TwoTaskRecommender
from components.transform.preprocessing import preprocessing_fn
from recipe.trainer import TrainerRecipe

Row = dict[str, Any]
Serve = Callable[..., ServedRecommender]

TYPES = {
    "customer": "BYTES", "item": "BYTES", "stars": "FLOAT", "at": "INT", "age": "INT", "Plan": "BYTES",
    "moods": "BYTES", "height": "FLOAT", "name": "BYTES", "tags": "BYTES",
}  # fmt: skip
DTYPES = {"BYTES": tf.string, "INT": tf.int64, "FLOAT": tf.float32}
SCHEMA = "".join(
    f'feature {{ name: "{name}" type: {kind} '
    + ("float_domain { min: 1 max: 5 }" if name == "stars" else "int_domain { min: 1 }" if name == "age" else "")
    + " }\n"
    for name, kind in TYPES.items()
)

RECIPE: dict[str, Any] = {
    "columns": {"user_id": "customer", "item_id": "item", "label": "stars", "timestamp": "at"},
    "features": {
        "query": [
            {"column": "customer", "kind": "id"},
            {"column": "at", "kind": "buckets", "buckets": 10, "boundaries": "uniform"},
            {"column": "at", "kind": "normalized"},
            {"column": "age", "kind": "buckets", "buckets": 4},
            {"column": "Plan", "kind": "categorical"},
            {"column": "moods", "kind": "multi_value"},
            {"column": "height", "kind": "normalized"},
        ],
        "candidate": [
            {"column": "item", "kind": "id"},
            {"column": "name", "kind": "text", "min_count": 1, "display": True},
            {"column": "tags", "kind": "multi_value"},
        ],
    },
    "model": {"embedding_dim": 8, "rating_head": {"dimension": 8}},
    "training": {"epochs": 40, "batch_size": 64, "optimizer": {"kind": "adam", "learning_rate": 0.02}, "seed": 1},
    "serving": {"k": 100, "exclude_seen": False},
}

USERS_PER_GROUP = 20
WARM_ITEMS_PER_GROUP = 15
COLD_ITEMS = 100


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with some of its values, at any depth, replaced."""
    result = dict(base)
    for key, value in changes.items():
        inner = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        result[key] = changed(base[key], value) if inner else value
    return result


@dataclasses.dataclass(frozen=True)
class World:
    """Users `g0u00` … and items `g0i00` … of two groups, their interactions, and the output of Transform."""

    interactions: list[Row]
    catalogue: list[Row]
    folder: Path
    transform_output: tft.TFTransformOutput
    schema: schema_pb2.Schema
    files: Mapping[str, list[str]]
    """File patterns of the transformed splits `train` and `catalogue`."""

    @property
    def feature_spec(self) -> dict[str, Any]:
        """How raw examples are parsed."""
        return {name: tf.io.VarLenFeature(DTYPES[kind]) for name, kind in TYPES.items()}

    @property
    def users(self) -> list[str]:
        return sorted({row["customer"] for row in self.interactions})

    @property
    def items(self) -> list[str]:
        return [row["item"] for row in self.catalogue]

    def seen(self, user: str) -> set[str]:
        return {row["item"] for row in self.interactions if row["customer"] == user}

    def latest(self, user: str) -> Row:
        """The user's last interaction."""
        return max((row for row in self.interactions if row["customer"] == user), key=lambda row: row["at"])

    def recipe(self, **changes: Any) -> TrainerRecipe:
        return TrainerRecipe.model_validate(changed(RECIPE, changes))

    def data(self, recipe: TrainerRecipe) -> TrainingData:
        return read_training_data(
            self.files["train"], self.files["catalogue"], self.transform_output, recipe.features, recipe.columns
        )


def _catalogue() -> list[Row]:
    items = []
    for group in (0, 1):
        for number in range(WARM_ITEMS_PER_GROUP):
            items.append(
                {"item": f"g{group}i{number:02}", "name": f"Story {number} of {group}", "tags": f"group{group}|story"}
            )
    for number in range(COLD_ITEMS):
        items.append({"item": f"cold{number:03}", "name": f"Cold {number}", "tags": "cold" if number % 2 else None})
    return items


def _interactions() -> list[Row]:
    random = np.random.default_rng(5)
    # Some items are much more popular than others.
    popularity = 1 / (1 + np.arange(WARM_ITEMS_PER_GROUP))
    popularity /= popularity.sum()
    by_id = {row["item"]: row for row in _catalogue()}
    hours = iter(random.permutation(2000).tolist())
    rows = []
    for group in (0, 1):
        for number in range(USERS_PER_GROUP):
            own = random.choice(WARM_ITEMS_PER_GROUP, 8, replace=False, p=popularity)
            other = random.choice(WARM_ITEMS_PER_GROUP, 3, replace=False, p=popularity)
            liked = [(f"g{group}i{item:02}", 4 + int(random.integers(2))) for item in own]
            disliked = [(f"g{1 - group}i{item:02}", 1 + int(random.integers(2))) for item in other]
            for place, (item, stars) in enumerate([*liked, *disliked]):
                rows.append(
                    {
                        "customer": f"g{group}u{number:02}",
                        "stars": float(stars),
                        "at": 880_000_000 + 3600 * next(hours),
                        # A user's columns change, so that the latest ones differ from the others.
                        "age": None if number == 3 else 20 + (place + number) % 30,
                        "Plan": ["free", "paid", "trial"][(place * 7 + number) % 3],
                        "moods": [None, "calm", "calm|glad", "glad|sad|calm"][(place * 5 + number) % 4],
                        "height": 1.5 + 0.02 * ((place + number) % 20),
                        **by_id[item],
                    }
                )
    return [rows[place] for place in random.permutation(len(rows))]


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
        for row in rows:
            example = tf.train.Example()
            for name, value in row.items():
                values = np.atleast_1d(value)
                feature = example.features.feature[name]
                if values.dtype.kind in "iu":
                    feature.int64_list.value.extend(values.tolist())
                elif values.dtype.kind == "f":
                    feature.float_list.value.extend(values.tolist())
                else:
                    feature.bytes_list.value.extend([value])
            writer.write(example.SerializeToString())
    return [f"{path}*"]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    recipe = TrainerRecipe.model_validate(RECIPE)
    config = {"features": recipe.features.model_dump_json(), "columns": recipe.columns.model_dump_json()}
    interactions, catalogue = _interactions(), _catalogue()
    rows = [
        {name: None if row.get(name) is None else [_encoded(row[name])] for name in TYPES}
        for row in (*interactions, *catalogue)
    ]
    spec = {name: tf.io.VarLenFeature(DTYPES[kind]) for name, kind in TYPES.items()}
    with beam.Pipeline("FnApiRunner") as pipeline, tft_beam.Context(temp_dir=str(folder / "temp")):
        raw = (pipeline | beam.Create(rows), dataset_metadata.DatasetMetadata.from_feature_spec(spec))
        (data, _), transform_fn = raw | tft_beam.AnalyzeAndTransformDataset(
            lambda inputs: preprocessing_fn(inputs, config)
        )
        _ = data | beam.combiners.ToList() | beam.Map(lambda found: (folder / "rows").write_bytes(pickle.dumps(found)))
        _ = transform_fn | tft_beam.WriteTransformFn(str(folder / "transform"))
    transformed = pickle.loads((folder / "rows").read_bytes())
    files = {
        "train": _write(folder / "train.gz", [row for row in transformed if row["customer_id"]]),
        "catalogue": _write(folder / "catalogue.gz", [row for row in transformed if not row["customer_id"]]),
    }
    (folder / "schema.pbtxt").write_text(SCHEMA)
    return World(
        interactions=interactions,
        catalogue=catalogue,
        folder=folder,
        transform_output=tft.TFTransformOutput(str(folder / "transform")),
        schema=text_format.Parse(SCHEMA, schema_pb2.Schema()),
        files=files,
    )


def _encoded(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


@pytest.fixture(scope="session")
def data(world: World) -> TrainingData:
    return world.data(world.recipe())


@pytest.fixture(scope="session")
def trained(world: World, data: TrainingData) -> tuple[TwoTaskRecommender, dict[str, list[float]]]:
    """The model of `RECIPE`, and its losses."""
    return train(world.recipe(), data, world.transform_output)


@pytest.fixture(scope="session")
def serve(world: World, data: TrainingData, trained: tuple[TwoTaskRecommender, Any]) -> Serve:
    """`serve(k=…, exclude_seen=…)`: the trained model as it is exported."""

    def make(**serving: Any) -> ServedRecommender:
        recipe = world.recipe(serving=serving)
        return ServedRecommender(trained[0], data, world.transform_output, recipe, world.schema)

    return make


@pytest.fixture(scope="session")
def untrained(world: World) -> Callable[..., TwoTaskRecommender]:
    """`untrained(data, model=…, features=…)`: a model of a changed recipe, always with the same initial weights."""

    def build(data: TrainingData, **changes: Any) -> TwoTaskRecommender:
        recipe = world.recipe(**changes)
        tf.keras.utils.set_random_seed(3)
        return TwoTaskRecommender(
            recipe.model,
            recipe.features.query,
            recipe.features.candidate,
            data,
            world.transform_output,
            static_shapes=recipe.training.xla,
        )

    return build


@pytest.fixture(scope="session")
def batch_of() -> Callable[[TrainingData, Sequence[int]], dict[str, tf.Tensor]]:
    """`batch_of(data, numbers)`: the interactions with these row numbers, as a batch of `batches`."""

    def gather(data: TrainingData, chosen: Sequence[int]) -> dict[str, tf.Tensor]:
        batch = {name: tf.constant(values[chosen]) for name, values in data.query.items()}
        return {**batch, "item": tf.constant(data.items[chosen]), "label": tf.constant(data.labels[chosen])}

    return gather


class Loaded:
    """A SavedModel in the session that TensorFlow Serving's loader makes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        with graph.as_default():
            self.meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(path))
        self.signatures = self.meta_graph.signature_def

    def __call__(self, signature: str, **inputs: Any) -> dict[str, np.ndarray]:
        """Runs a signature; an input that is not given gets the signature's default, as TensorFlow Serving does it."""
        definition = self.signatures[signature]
        feeds = {}
        for name, info in definition.inputs.items():
            if name in inputs:
                dtype = tf.dtypes.as_dtype(info.dtype).as_numpy_dtype
                feeds[info.name] = np.array(inputs.pop(name), dtype)
            else:
                feeds[info.name] = tf.make_ndarray(definition.defaults[name])
        assert not inputs, f"{signature} has no inputs {sorted(inputs)}"
        return self._session.run({name: info.name for name, info in definition.outputs.items()}, feeds)


@pytest.fixture(scope="session")
def load() -> Callable[[Path], Loaded]:
    return Loaded


@pytest.fixture(scope="session")
def all_items(world: World, serve: Serve) -> Loaded:
    """Exported with `exclude_seen: false` and k 100."""
    path = world.folder / "all_items"
    save(serve(k=100, exclude_seen=False), str(path), world.users[:3], world.items[:2])
    return Loaded(path)


@pytest.fixture(scope="session")
def unseen_items(world: World, serve: Serve) -> Loaded:
    """Exported with `exclude_seen: true` and a k beyond the whole catalogue."""
    path = world.folder / "unseen_items"
    save(serve(k=1000, exclude_seen=True), str(path), world.users[:3], world.items[:2])
    return Loaded(path)


@pytest.fixture(scope="session")
def example() -> Callable[[Mapping[str, Any]], bytes]:
    """A row as InteractionExampleGen writes it: one value per feature, none for a missing value."""

    def serialize(row: Mapping[str, Any]) -> bytes:
        message = tf.train.Example()
        for name, kind in TYPES.items():
            value = row.get(name)
            feature = message.features.feature[name]
            if value is None:
                continue
            if kind == "BYTES":
                feature.bytes_list.value.append(value.encode())
            elif kind == "INT":
                feature.int64_list.value.append(value)
            else:
                feature.float_list.value.append(value)
        return message.SerializeToString()

    return serialize
