"""Sampled negatives train the rating head only."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import types
from collections.abc import Callable, Sequence
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
from tensorflow_transform.tf_metadata import schema_utils

from components.trainer.data.batches import batches
from components.trainer.data.training_data import TrainingData, read_training_data
from components.trainer.model.recommender import TwoTaskRecommender
from components.trainer.run_fn import run_fn
from components.transform.preprocessing import preprocessing_fn
from recipe.columns import IS_POSITIVE, Columns, Negatives
from recipe.features import Features
from recipe.model import Model
from recipe.serving import Serving
from recipe.trainer import TrainerRecipe
from recipe.training import Training

Row = dict[str, Any]

SCHEMA = """
feature { name: "user" type: BYTES }
feature { name: "item" type: BYTES }
feature { name: "bought" type: FLOAT }
feature { name: "device" type: BYTES }
feature { name: "at" type: INT }
feature { name: "is_positive" type: FLOAT }
"""
COLUMNS = Columns(user_id="user", item_id="item", label="bought", timestamp="at")
FEATURES = Features.model_validate(
    {
        "query": [
            {"column": "user", "kind": "id"},
            {"column": "device", "kind": "categorical"},
            {"column": "at", "kind": "normalized"},
        ],
        "candidate": [{"column": "item", "kind": "id"}],
    }
)
ITEMS = [f"i{number}" for number in range(8)]
USERS = [f"u{number}" for number in range(6)]
NOW = 1_700_000_000


def interaction(user: str, item: str, at: int, device: str = "phone", positive: bool = True) -> Row:
    return {
        "user": user, "item": item, "bought": float(positive), "device": device, "at": NOW + at,
        IS_POSITIVE: float(positive),
    }  # fmt: skip


def purchases() -> list[Row]:
    """Even users buy i0, i1 and i2, odd ones i3, i4 and i5; i6 and i7 have no buyers."""
    return [interaction(user, ITEMS[3 * (place % 2) + each], 10 * each)
            for place, user in enumerate(USERS) for each in range(3)]  # fmt: skip


def negatives() -> list[Row]:
    """The items of the other users and, more often than any purchase, i7; later than all purchases."""
    rows = [interaction(user, ITEMS[3 * ((place + 1) % 2) + each], 500, "tablet", positive=False)
            for place, user in enumerate(USERS) for each in range(3)]  # fmt: skip
    return rows + [interaction(user, "i7", 600, "tablet", positive=False) for user in USERS] * 10


class Trained:
    """A run of the Trainer on rows, and its exported model."""

    def __init__(self, folder: Path, rows: Sequence[Row], recipe: TrainerRecipe, schema: str) -> None:
        self.recipe = recipe
        parsed = text_format.Parse(schema, schema_pb2.Schema())
        (folder / "schema.pbtxt").write_text(schema)
        config = {
            "features": recipe.features.model_dump_json(),
            "columns": recipe.columns.model_dump_json(),
            "negatives": recipe.negatives is not None,
        }
        names = [feature.name for feature in parsed.feature]
        metadata = tft.DatasetMetadata.from_feature_spec(schema_utils.schema_as_feature_spec(parsed).feature_spec)
        with beam.Pipeline("FnApiRunner") as pipeline, tft_beam.Context(temp_dir=str(folder / "temp")):
            splits = {"train": rows, "catalogue": [{"item": item} for item in ITEMS]}
            raw = {
                split: pipeline | split >> beam.Create([_encoded(row, names) for row in content])
                for split, content in splits.items()
            }
            everything = list(raw.values()) | beam.Flatten()
            transform_fn = (everything, metadata) | tft_beam.AnalyzeDataset(
                lambda inputs: preprocessing_fn(inputs, config)
            )
            _ = transform_fn | tft_beam.WriteTransformFn(str(folder / "transform"))
            for split, data in raw.items():
                transformed = ((data, metadata), transform_fn) | f"Transform{split}" >> tft_beam.TransformDataset()
                _ = (
                    transformed
                    | f"Encode{split}" >> tft_beam.EncodeTransformedDataset()
                    | f"Write{split}" >> beam.io.WriteToTFRecord(str(folder / split), file_name_suffix=".gz")
                )
        self.transform_output = tft.TFTransformOutput(str(folder / "transform"))
        self.files = {split: [str(folder / f"{split}*.gz")] for split in splits}
        arguments = types.SimpleNamespace(
            custom_config={"recipe": recipe.model_dump_json()},
            schema_path=str(folder / "schema.pbtxt"),
            transform_output=str(folder / "transform"),
            train_files=self.files["train"],
            eval_files=self.files["catalogue"],
            serving_model_dir=str(folder / "model"),
            model_run_dir=str(folder / "run"),
            hyperparameters=None,
        )
        run_fn(arguments)
        self._model = tf.saved_model.load(str(folder / "model"))

    def data(self) -> TrainingData:
        return read_training_data(
            self.files["train"],
            self.files["catalogue"],
            self.transform_output,
            self.recipe.features,
            self.recipe.columns,
            negatives=self.recipe.negatives is not None,
        )

    def recommend(self, user: str, **context: Any) -> list[str]:
        return list(self.scored(user, **context))

    def scored(self, user: str, device: str = "", at: int = int(np.iinfo(np.int64).min)) -> dict[str, float]:
        """Recommended items and their scores, without padding."""
        signature = self._model.signatures["recommend"]
        # TensorFlow Serving fills in these defaults by itself.
        answer = signature(user_id=tf.constant([user]), device=tf.constant([device]), at=tf.constant([at], tf.int64))
        pairs = zip(answer["item_ids"][0].numpy(), answer["scores"][0].numpy(), strict=True)
        return {item.decode(): float(score) for item, score in pairs if item}

    def rate(self, user: str, item: str) -> float:
        answer = self._model.signatures["rate"](
            user_id=tf.constant([user]), item_id=tf.constant([item]), device=tf.constant([""]),
            at=tf.constant([np.iinfo(np.int64).min]),
        )  # fmt: skip
        return float(answer["rating"][0])


def _encoded(row: Row, names: Sequence[str]) -> Row:
    values = {name: row.get(name) for name in names}
    return {
        name: None if value is None else [value.encode() if isinstance(value, str) else value]
        for name, value in values.items()
    }


def recipe(negatives: bool, **changes: Any) -> TrainerRecipe:
    parts: dict[str, Any] = {
        "columns": COLUMNS,
        "features": FEATURES,
        "model": Model(embedding_dim=8, id_dropout=0.0),
        "training": Training.model_validate(
            {"epochs": 60, "batch_size": 16, "optimizer": {"kind": "adam", "learning_rate": 0.02}}
        ),
        "serving": Serving(k=8),
        "negatives": Negatives(per_positive=1) if negatives else None,
    }
    return TrainerRecipe(**parts | changes)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    def run(rows: Sequence[Row], recipe: TrainerRecipe, schema: str = SCHEMA) -> Trained:
        return Trained(tmp_path_factory.mktemp("trained"), rows, recipe, schema)

    return run


@pytest.fixture(scope="module")
def implicit(train: Callable[..., Trained]) -> Trained:
    return train([*purchases(), *negatives()], recipe(negatives=True))


def test_negatives_are_not_popular(implicit: Trained) -> None:
    frequency = dict(zip(["", *_items(implicit)], implicit.data().item_frequencies().tolist(), strict=True))
    assert frequency == {"": 0, "i6": 0, "i7": 0} | dict.fromkeys(ITEMS[:6], 3)
    # i7 is in more rows than all bought items together, but only as a negative.
    assert implicit.recommend("a new user").index("i7") >= 6


def _items(trained: Trained) -> list[str]:
    return [item.decode() for item in trained.transform_output.vocabulary_by_name("item_id")]


@pytest.mark.parametrize(("user", "bought"), [("u0", ITEMS[:3]), ("u1", ITEMS[3:6])])
def test_bought_items_are_excluded_and_negatives_are_not(implicit: Trained, user: str, bought: list[str]) -> None:
    assert set(implicit.recommend(user)) == set(ITEMS) - set(bought)


def test_ratings_learn_from_negatives(implicit: Trained) -> None:
    for place, user in enumerate(USERS):
        ratings = {item: implicit.rate(user, item) for item in (*ITEMS[:6], "i7")}
        bought = ITEMS[3 * (place % 2) :][:3]
        assert min(ratings[item] for item in bought) > max(ratings[item] for item in ratings if item not in bought)


def test_stored_features_are_of_the_latest_interaction(implicit: Trained) -> None:
    # The negatives are later, and from another device than the purchases.
    for user in USERS:
        now = implicit.scored(user)
        assert now == pytest.approx(implicit.scored(user, device="phone", at=NOW + 20), abs=1e-5)
        assert now != pytest.approx(implicit.scored(user, device="tablet", at=NOW + 600), abs=1e-5)


def test_negatives_do_not_affect_the_retrieval_loss(implicit: Trained) -> None:
    data = implicit.data()
    model = TwoTaskRecommender(
        Model(embedding_dim=8, rating_weight=0), FEATURES.query, FEATURES.candidate, data, implicit.transform_output
    )
    (batch,) = batches(data, len(data.labels), seed=0)
    assert 0 < batch["positive"].numpy().mean() < 1
    real = {name: tf.boolean_mask(values, batch["positive"]) for name, values in batch.items() if name != "positive"}
    with_negatives, without = model.compute_loss(batch), model.compute_loss(real)
    assert float(without) > 0
    assert float(with_negatives) == pytest.approx(float(without), rel=1e-5)


def test_a_batch_of_negatives_only_has_a_rating_loss(implicit: Trained) -> None:
    data = implicit.data()
    (batch,) = batches(data, len(data.labels), seed=0)
    sampled = {name: tf.boolean_mask(values, ~batch["positive"].numpy()) for name, values in batch.items()}
    model = TwoTaskRecommender(
        Model(embedding_dim=8), FEATURES.query, FEATURES.candidate, data, implicit.transform_output
    )
    with tf.GradientTape() as tape:
        loss = model.compute_loss(sampled, training=True)
    gradients = tape.gradient(loss, model.trainable_variables)
    assert np.isfinite(float(loss)) and float(loss) > 0
    for gradient in gradients:
        if gradient is not None:
            assert np.isfinite(tf.convert_to_tensor(gradient).numpy()).all()


@pytest.mark.slow
def test_a_constant_label_gives_finite_values(train: Callable[..., Trained]) -> None:
    """No negatives, every label 1, no bounds in the schema: nothing to learn for the ratings, and nothing to break."""
    rows = [{name: value for name, value in row.items() if name != IS_POSITIVE} for row in purchases()]
    schema = "\n".join(line for line in SCHEMA.splitlines() if IS_POSITIVE not in line)
    trained = train(rows, recipe(negatives=False), schema)
    assert IS_POSITIVE not in trained.transform_output.transformed_feature_spec()
    for user in (*USERS, "a new user"):
        scores = list(trained.scored(user).values())
        assert scores and np.isfinite(scores).all()
        assert trained.rate(user, "i0") == pytest.approx(1.0, abs=0.5)
        assert trained.rate(user, "never heard of") == pytest.approx(1.0, abs=0.5)
