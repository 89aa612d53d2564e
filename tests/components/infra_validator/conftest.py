"""Small models with the contract's signatures, whole and broken, and the InfraValidator's real executor."""

from __future__ import annotations

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
from tfx.components.util import model_utils
from tfx.types import artifact_utils, standard_artifacts

from components.infra_validator.executor import BLESSING_KEY, EXAMPLES_KEY, MODEL_KEY, SETTINGS_KEY, Executor, Settings

USER, ITEM = "customer", "article"
FEW = 5


@dataclasses.dataclass(frozen=True)
class Validated:
    """The InfraBlessing artifact after a run."""

    blessed: bool
    reason: str
    files: dict[str, str]
    blessed_for_tfx: bool
    """What TFX's own Pusher would read from the artifact."""


def strings(name: str) -> tf.TensorSpec:
    return tf.TensorSpec([None], tf.string, name=name)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports a model that answers every request with the same two items.

    `rating` is what `rate` answers, `items` what `recommend` answers ('' is no item), `without` a signature left out.
    """

    def export(rating: float = 4.0, items: tuple[str, str] = ("i1", "i2"), without: str = "") -> Path:
        module = tf.Module()

        @tf.function(input_signature=[strings("examples")])
        def evaluate(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            ones = tf.ones_like(tf.strings.length(examples), tf.float32)
            return {"rating": 4.0 * ones, "top_100_hit": ones}

        @tf.function(input_signature=[strings("user_id")])
        def recommend(user_id: tf.Tensor) -> dict[str, tf.Tensor]:
            rows = tf.ones_like(tf.strings.length(user_id), tf.float32)[:, None]
            return {
                "item_ids": tf.repeat(tf.constant([items]), tf.shape(user_id)[0], axis=0),
                "scores": rows * tf.constant([[2.0, 1.0]]),
                "ratings": rows * tf.constant([[4.5, 3.5]]),
            }

        @tf.function(input_signature=[strings("user_id"), strings("item_id")])
        def rate(user_id: tf.Tensor, item_id: tf.Tensor) -> dict[str, tf.Tensor]:
            length = tf.strings.length(user_id) * 0 + tf.strings.length(item_id) * 0
            return {"rating": tf.cast(length, tf.float32) + np.float32(rating)}

        signatures = {"serving_default": evaluate, "evaluate": evaluate, "recommend": recommend, "rate": rate}
        signatures.pop(without, None)
        folder = tmp_path_factory.mktemp("model")
        tf.saved_model.save(module, str(folder / "Format-Serving"), signatures=signatures)
        return folder

    return export


@pytest.fixture(scope="session")
def validate(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Validated]:
    """Runs the executor as TFX does, on `count` raw eval examples."""

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
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())

        def artifact(kind: type, uri: Path) -> Any:
            made = kind()
            made.uri = str(uri)
            return made

        examples = artifact(standard_artifacts.Examples, folder / "examples")
        examples.split_names = artifact_utils.encode_split_names(["eval"])
        blessing = artifact(standard_artifacts.InfraBlessing, folder / "blessing")
        Executor().Do(
            {MODEL_KEY: [artifact(standard_artifacts.Model, candidate)], EXAMPLES_KEY: [examples]},
            {BLESSING_KEY: [blessing]},
            {SETTINGS_KEY: Settings(user_id=USER, item_id=ITEM, code_version="test", **settings).model_dump_json()},
        )
        return Validated(
            blessed=blessing.get_int_custom_property("blessed") == 1,
            reason=blessing.get_string_custom_property("reason") or "",
            files={path.name: path.read_text() for path in (folder / "blessing").iterdir()},
            blessed_for_tfx=model_utils.is_infra_validated(blessing),
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
    return {
        int(process)
        for thread in Path("/proc/self/task").iterdir()
        for process in (thread / "children").read_text().split()
    }
