"""Small models with the contract's signatures, whole and broken, and the InfraValidator's real executor."""

from __future__ import annotations

import contextlib
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from tfx.components.util import model_utils
from tfx.types import artifact_utils, standard_artifacts

from components.infra_validator.executor import (
    BLESSING_KEY,
    EXAMPLES_KEY,
    MODEL_KEY,
    SETTINGS_KEY,
    Executor,
    InfraValidatorSettings,
)
from components.infra_validator.latency import P50_PROPERTY, P99_PROPERTY

USER, ITEM, MOOD = "customer", "article", "mood"
FEW = 5
ITEMS = ("article0", "article1")


@dataclasses.dataclass(frozen=True)
class Validated:
    """The InfraBlessing artifact after a run."""

    blessed: bool
    reason: str
    files: dict[str, str]
    blessed_for_tfx: bool
    """What TFX's own Pusher would read from the artifact."""
    latency_ms: tuple[float, float] | None
    """p50 and p99."""


def strings(name: str) -> tf.TensorSpec:
    return tf.TensorSpec([None], tf.string, name=name)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports a model that recommends the same two items to all users, with ratings by the row's mood.

    `rating` is what `rate` answers without a mood, `evaluated` what `evaluate` says of it, `items` what `recommend`
    answers ('' is no item), `ranks` the places that `evaluate` counts their hits at, `similar` the score of the
    signature `similar_items`, which only the model's warm-up requests know, `without` a signature left out.
    """

    def export(
        rating: float = 3.0,
        evaluated: float = 3.0,
        items: tuple[str, str] = ITEMS,
        ranks: tuple[int, int] = (0, 1),
        similar: float = 0.5,
        without: str = "",
    ) -> Path:
        module = tf.Module()
        numbers = tf.constant([[place if item else 0 for place, item in enumerate(items, start=1)] + [0] * 8], tf.int64)

        def rated(mood: tf.Tensor, base: float) -> tf.Tensor:
            return np.float32(base) + 0.25 * tf.cast(tf.strings.length(mood), tf.float32)

        @tf.function(input_signature=[strings("examples")])
        def evaluate(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            row = tf.io.parse_example(
                examples, {name: tf.io.FixedLenFeature([], tf.string, default_value="") for name in (ITEM, MOOD)}
            )
            rank = tf.where(row[ITEM] == items[0], ranks[0], tf.where(row[ITEM] == items[1], ranks[1], -1))
            return {
                "rating": rated(row[MOOD], evaluated),
                "rank": tf.cast(rank, tf.int64),
                "rank_unseen": tf.cast(rank, tf.int64),
                "top_10_items": tf.repeat(numbers, tf.size(examples), axis=0),
            }

        no_mood = tf.constant([""])

        @tf.function(input_signature=[strings("user_id"), strings(MOOD)])
        def recommend(user_id: tf.Tensor, mood: tf.Tensor = no_mood) -> dict[str, tf.Tensor]:
            rows = tf.ones_like(tf.strings.length(user_id), tf.float32)[:, None]
            return {
                "item_ids": tf.repeat(tf.constant([items]), tf.shape(user_id)[0], axis=0),
                "scores": rows * tf.constant([[2.0, 1.0]]),
                "ratings": rows * tf.constant([[4.5, 3.5]]) + rated(mood, 0.0)[:, None],
            }

        @tf.function(input_signature=[strings("user_id"), strings("item_id"), strings(MOOD)])
        def rate(user_id: tf.Tensor, item_id: tf.Tensor, mood: tf.Tensor = no_mood) -> dict[str, tf.Tensor]:
            length = tf.strings.length(user_id) * 0 + tf.strings.length(item_id) * 0
            return {"rating": tf.cast(length, tf.float32) + rated(mood, rating)}

        @tf.function(input_signature=[strings("item_id")])
        def similar_items(item_id: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"item_ids": item_id[:, None], "scores": tf.fill([tf.size(item_id), 1], np.float32(similar))}

        signatures = {"serving_default": evaluate, "evaluate": evaluate, "recommend": recommend, "rate": rate}
        signatures["similar_items"] = similar_items
        signatures.pop(without, None)
        folder = tmp_path_factory.mktemp("model")
        tf.saved_model.save(module, str(folder / "Format-Serving"), signatures=signatures)
        write_warmup(folder / "Format-Serving" / "assets.extra" / "tf_serving_warmup_requests")
        return folder

    return export


def write_warmup(path: Path) -> None:
    """One request of `similar_items`."""
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = "similar_items"
    request.inputs["item_id"].CopyFrom(tf.make_tensor_proto(["article0", "article1"], tf.string))
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(log.SerializeToString())


@pytest.fixture(scope="session")
def validate(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Validated]:
    """Runs the executor as TFX does, on `count` raw eval examples; the first one has no mood."""

    def run(candidate: Path, *, count: int = FEW, **settings: Any) -> Validated:
        folder = tmp_path_factory.mktemp("infra_validator")
        (folder / "examples" / "Split-eval").mkdir(parents=True)
        options = tf.io.TFRecordOptions(compression_type="GZIP")
        with tf.io.TFRecordWriter(str(folder / "examples" / "Split-eval" / "data.gz"), options) as writer:
            for number in range(count):
                features = {
                    name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[f"{name}{number}".encode()]))
                    for name in (USER, ITEM)
                }
                if number:
                    features[MOOD] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"m" * number]))
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())

        def artifact(kind: type, uri: Path) -> Any:
            made = kind()
            made.uri = str(uri)
            return made

        examples = artifact(standard_artifacts.Examples, folder / "examples")
        examples.split_names = artifact_utils.encode_split_names(["eval"])
        blessing = artifact(standard_artifacts.InfraBlessing, folder / "blessing")
        configured = InfraValidatorSettings(user_id=USER, item_id=ITEM, code_version="test", **settings)
        Executor().Do(
            {MODEL_KEY: [artifact(standard_artifacts.Model, candidate)], EXAMPLES_KEY: [examples]},
            {BLESSING_KEY: [blessing]},
            {SETTINGS_KEY: configured.model_dump_json()},
        )
        found = [blessing.get_float_custom_property(name) for name in (P50_PROPERTY, P99_PROPERTY)]
        measured = blessing.has_custom_property(P99_PROPERTY)
        return Validated(
            blessed=blessing.get_int_custom_property("blessed") == 1,
            reason=blessing.get_string_custom_property("reason") or "",
            files={path.name: path.read_text() for path in (folder / "blessing").iterdir()},
            blessed_for_tfx=model_utils.is_infra_validated(blessing),
            latency_ms=(found[0], found[1]) if measured else None,
        )

    return run


@pytest.fixture(autouse=True)
def no_process_left() -> Any:
    """Fails a test that leaves a server, running or not waited for."""
    before = children()
    yield
    assert children() <= before


def children() -> set[int]:
    """Processes started by this one that have not been waited for."""
    found: set[int] = set()
    for thread in Path("/proc/self/task").iterdir():
        # A thread may end before its file is read.
        with contextlib.suppress(OSError):
            found.update(map(int, (thread / "children").read_text().split()))
    return found
