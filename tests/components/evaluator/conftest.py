"""Raw examples that say what a model is to answer, models that answer it, and the Evaluator's real executor."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split
import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils, standard_artifacts, standard_component_specs
from tfx.utils import json_utils, proto_utils

from components.evaluator.eval_config import eval_config
from components.evaluator.executor import Executor
from components.evaluator.verdict import VERDICT_FILE, Verdict
from pipeline.recipe import METRICS, Gate

EXAMPLES = 300
LABEL = "stars"


@dataclasses.dataclass(frozen=True)
class Rows:
    """The eval split, as arrays."""

    label: np.ndarray
    predicted: np.ndarray
    rank: np.ndarray

    def metrics(self, shift: float = 0.0, ranks_lost: int = 0) -> dict[str, float]:
        """What a `Model` with these settings scores, by plain numpy."""
        error = (self.predicted + np.float32(shift)).astype(np.float64) - self.label
        expected = {"rmse": float(np.sqrt(np.mean(error**2))), "mae": float(np.mean(np.abs(error)))}
        for name in METRICS.keys() - expected.keys():
            expected[name] = float(np.mean(self.rank + ranks_lost < int(name.split("_")[1])))
        return expected


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What the Evaluator's executor left behind."""

    verdict: Verdict
    blessed: bool
    """As the blessing artifact has it."""
    blessing_files: set[str]
    blessed_model: int


@pytest.fixture(scope="session")
def rows() -> Rows:
    generator = np.random.default_rng(5)
    label = generator.integers(1, 6, EXAMPLES).astype(np.float32)
    predicted = (label + generator.normal(0, 0.8, EXAMPLES)).astype(np.float32)
    return Rows(label, predicted, generator.integers(0, 200, EXAMPLES))


@pytest.fixture(scope="session")
def examples(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the first `count` rows as the eval split of an Examples artifact."""

    def write(count: int = EXAMPLES) -> Path:
        folder = tmp_path_factory.mktemp("examples")
        (folder / "Split-eval").mkdir()
        options = tf.io.TFRecordOptions(compression_type="GZIP")
        with tf.io.TFRecordWriter(str(folder / "Split-eval" / "data-00000-of-00001.gz"), options) as writer:
            for label, predicted, rank in list(zip(rows.label, rows.predicted, rows.rank, strict=True))[:count]:
                features = {
                    LABEL: tf.train.Feature(float_list=tf.train.FloatList(value=[label])),
                    "predicted": tf.train.Feature(float_list=tf.train.FloatList(value=[predicted])),
                    "rank": tf.train.Feature(int64_list=tf.train.Int64List(value=[rank])),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
        return folder

    return write


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports a model that answers the example's own prediction plus `shift`, and a rank that is `ranks_lost` worse.

    With `nan_rank`, the rating of the examples of that rank is not a number.
    """

    def export(shift: float = 0.0, ranks_lost: int = 0, nan_rank: int = -1) -> Path:
        module = tf.Module()

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def evaluate(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
            parsed = tf.io.parse_example(
                serialized,
                {"predicted": tf.io.FixedLenFeature([], tf.float32), "rank": tf.io.FixedLenFeature([], tf.int64)},
            )
            rating = tf.where(parsed["rank"] == nan_rank, np.float32("nan"), parsed["predicted"] + shift)
            hits = {f"top_{k}_hit": tf.cast(parsed["rank"] + ranks_lost < k, tf.float32) for k in (1, 5, 10, 50, 100)}
            return {"rating": rating, **hits}

        folder = tmp_path_factory.mktemp("model")
        signatures = {"serving_default": evaluate, "evaluate": evaluate}
        tf.saved_model.save(module, str(folder / "Format-Serving"), signatures=signatures)
        return folder

    return export


@pytest.fixture(scope="session")
def evaluate(examples: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Evaluated]:
    """Runs the executor as TFX does and reads what it wrote."""

    def run(
        candidate: Path,
        gates: Sequence[Gate],
        baseline: Path | None = None,
        split: Path | None = None,
        negatives: bool = False,
    ) -> Evaluated:
        folder = tmp_path_factory.mktemp("evaluator")

        def artifact(kind: type, uri: Path, identifier: int = 0) -> Any:
            made = kind()
            made.uri = str(uri)
            made.id = identifier
            return made

        data = artifact(standard_artifacts.Examples, split or examples())
        data.split_names = artifact_utils.encode_split_names(["eval"])
        inputs = {
            standard_component_specs.EXAMPLES_KEY: [data],
            standard_component_specs.MODEL_KEY: [artifact(standard_artifacts.Model, candidate, 7)],
        }
        if baseline is not None:
            inputs[standard_component_specs.BASELINE_MODEL_KEY] = [artifact(standard_artifacts.Model, baseline, 3)]
        blessing = artifact(standard_artifacts.ModelBlessing, folder / "blessing")
        outputs = {
            standard_component_specs.EVALUATION_KEY: [
                artifact(standard_artifacts.ModelEvaluation, folder / "evaluation")
            ],
            standard_component_specs.BLESSING_KEY: [blessing],
        }
        # Not as beam_pipeline_args, because TFX would then package itself for remote workers, which takes seconds.
        context = base_beam_executor.BaseBeamExecutor.Context(
            tmp_dir=str(folder / "tmp"),
            unique_id="1",
            make_beam_pipeline_fn=lambda: beam.Pipeline(argv=["--runner=FnApiRunner"]),
        )
        Executor(context).Do(
            inputs,
            outputs,
            {
                standard_component_specs.EVAL_CONFIG_KEY: proto_utils.proto_to_json(
                    eval_config(gates, LABEL, negatives)
                ),
                standard_component_specs.EXAMPLE_SPLITS_KEY: json_utils.dumps(["eval"]),
            },
        )
        text = (folder / "evaluation" / VERDICT_FILE).read_text()
        return Evaluated(
            verdict=Verdict.model_validate_json(text),
            blessed=blessing.get_int_custom_property("blessed") == 1,
            blessing_files={path.name for path in (folder / "blessing").iterdir()},
            blessed_model=blessing.get_int_custom_property("current_model_id"),
        )

    return run
