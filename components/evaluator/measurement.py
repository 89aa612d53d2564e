"""Runs TFMA on the `evaluate` signature of exported models over raw examples, and reads its results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.extractors import (
    example_weights_extractor,
    features_extractor,
    labels_extractor,
    predictions_extractor,
)
from tensorflow_model_analysis.proto import config_pb2
from tfx.components.util import tfxio_utils
from tfx.types import Artifact, artifact_utils
from tfx.utils import io_utils

from components.evaluator.metrics import BASELINE, EXAMPLE_COUNT, RecommenderMetrics
from components.evaluator.settings import EvaluatorSettings
from components.evaluator.slices import slice_extractor
from components.evaluator.verdict import Measured, SliceKey
from recipe.columns import IS_POSITIVE
from recipe.evaluation import METRICS

SIGNATURE = "evaluate"
SPLIT = "eval"

CANDIDATE = "candidate"
LAST_BLESSED = "last_blessed"


def eval_config(settings: EvaluatorSettings, models: Sequence[str]) -> tfma.EvalConfig:
    """Return TFMA's configuration, without thresholds: `verdict.py` applies the gates.

    Args:
        settings: Settings from the recipe.
        models: Names of the models, the candidate first.
    """
    metrics = tfma.MetricConfig(
        class_name=RecommenderMetrics.__name__,
        module=RecommenderMetrics.__module__,
        config=json.dumps({"exclude_seen": settings.exclude_seen}),
    )
    return tfma.EvalConfig(
        model_specs=[
            # With a type, TFMA does not load the model to detect whether it is a Keras model.
            tfma.ModelSpec(
                # TFMA expects no name for a single model.
                name=name if len(models) > 1 else "",
                model_type=tfma.TF_GENERIC,
                signature_name=SIGNATURE,
                label_key=settings.label,
                example_weight_key=IS_POSITIVE if settings.negatives else "",
                is_baseline=name == LAST_BLESSED,
            )
            for name in models
        ],
        slicing_specs=[tfma.SlicingSpec()],
        # Unweighted: each metric handles sampled negatives itself.
        metrics_specs=[
            tfma.MetricsSpec(metrics=[metrics], example_weights=config_pb2.ExampleWeightOptions(unweighted=True))
        ],
    )


def measure(
    pipeline: beam.Pipeline,
    examples: Sequence[Artifact],
    models: Mapping[str, str],
    settings: EvaluatorSettings,
    output: str,
) -> None:
    """Add the evaluation to a Beam pipeline.

    Args:
        pipeline: The pipeline.
        examples: Artifacts of raw examples with the split `eval`.
        models: Folder of each exported model by name, the candidate first.
        settings: Settings from the recipe.
        output: Folder for TFMA's results.
    """
    config = eval_config(settings, list(models))
    shared = [
        tfma.default_eval_shared_model(path, model_name=spec.name, eval_config=config)
        for path, spec in zip(models.values(), config.model_specs, strict=True)
    ]
    model = shared if len(shared) > 1 else shared[0]
    make_source = tfxio_utils.get_tfxio_factory_from_artifact(
        examples=list(examples),
        telemetry_descriptors=["Evaluator"],
        raw_record_column_name=tfma.ARROW_INPUT_COLUMN,
    )
    read = [
        pipeline | f"Read[{index}]" >> make_source(io_utils.all_files_pattern(uri)).BeamSource()
        for index, uri in enumerate(artifact_utils.get_split_uris(list(examples), SPLIT))
    ]
    extractors = [
        features_extractor.FeaturesExtractor(eval_config=config),
        labels_extractor.LabelsExtractor(eval_config=config),
        example_weights_extractor.ExampleWeightsExtractor(eval_config=config),
        predictions_extractor.PredictionsExtractor(eval_config=config, eval_shared_model=model),
        slice_extractor(settings.slices, settings.slice_columns, CANDIDATE if len(models) > 1 else None),
    ]
    _ = (
        read
        | "Flatten" >> beam.Flatten()
        | "Evaluate"
        >> tfma.ExtractEvaluateAndWriteResults(
            eval_shared_model=model, eval_config=config, extractors=extractors, output_path=output
        )
    )


def read_measured(output: str, has_last_blessed: bool) -> dict[SliceKey | None, Measured]:
    """Return TFMA's results by slice; the key of the whole eval split is None.

    Metrics that are NaN or infinite are omitted.

    Args:
        output: Folder of TFMA's results.
        has_last_blessed: Whether the last blessed model was evaluated too.
    """
    candidate = _values(output, CANDIDATE if has_last_blessed else None)
    last = _values(output, LAST_BLESSED) if has_last_blessed else {}
    return {
        key: Measured(
            examples=int(values.get(EXAMPLE_COUNT, 0)),
            metrics=_only_metrics(values),
            baselines=_only_metrics({name.removeprefix(BASELINE): value for name, value in values.items()
                                     if name.startswith(BASELINE)}),
            last_blessed=_only_metrics(last.get(key, {})),
        )
        for key, values in {None: {}, **candidate}.items()
    }  # fmt: skip


def _values(output: str, model: str | None) -> dict[SliceKey | None, dict[str, float]]:
    found: dict[SliceKey | None, dict[str, float]] = {}
    for key, outputs in tfma.load_eval_result(output, model_name=model).slicing_metrics:
        values = found.setdefault(_slice_key(key), {})
        for per_output in outputs.values():
            for by_class in per_output.values():
                # TFMA returns proto JSON, where NaN and infinity are strings.
                values |= {name: float(value["doubleValue"]) for name, value in by_class.items()}
    return found


def _slice_key(key: Any) -> SliceKey | None:
    return (str(key[0][0]), str(key[0][1])) if key else None


def _only_metrics(values: Mapping[str, float]) -> dict[str, float]:
    return {name: values[name] for name in METRICS if name in values and math.isfinite(values[name])}
