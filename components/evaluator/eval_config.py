"""The recipe's gates as TFMA metrics and thresholds over the exported model's `evaluate` signature."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow_model_analysis as tfma
from google.protobuf import wrappers_pb2
from tfx import v1 as _  # noqa: F401  (TFMA 0.52 loses names when it is imported before TFX)

from pipeline.recipe import METRICS, Gate

SIGNATURE = "evaluate"
RATING_OUTPUT = "rating"

# TFMA's floats are compared exactly; a change of nothing must pass `may_drop: 0`.
ROUNDING = 1e-9

_RATING_METRICS = {"rmse": "RootMeanSquaredError", "mae": "MeanAbsoluteError"}


def eval_config(gates: Sequence[Gate], label: str) -> tfma.EvalConfig:
    """Every metric Tandem knows, with the thresholds of `gates`.

    The hits are 0 or 1 for each example, so their mean prediction is the top-k accuracy.
    """
    gated = {gate.metric: gate for gate in gates}
    specs: dict[str, list[tfma.MetricConfig]] = {}
    for metric in METRICS:
        rating = metric in _RATING_METRICS
        output = RATING_OUTPUT if rating else metric.replace("_accuracy", "_hit")
        config = tfma.MetricConfig(
            class_name=_RATING_METRICS[metric] if rating else "MeanPrediction",
            config=f'{{"name": "{metric}"}}',
            threshold=_threshold(gated[metric]) if metric in gated else None,
        )
        specs.setdefault(output, []).append(config)
    specs[RATING_OUTPUT].append(tfma.MetricConfig(class_name="ExampleCount"))
    models = [
        tfma.ModelSpec(name=name, signature_name=SIGNATURE, label_key=label, is_baseline=name == "baseline")
        for name in ("candidate", "baseline")
    ]
    return tfma.EvalConfig(
        model_specs=models,
        slicing_specs=[tfma.SlicingSpec()],
        metrics_specs=[tfma.MetricsSpec(output_names=[output], metrics=metrics) for output, metrics in specs.items()],
    )


def _threshold(gate: Gate) -> tfma.MetricThreshold:
    threshold = tfma.MetricThreshold()
    if gate.at_least is not None:
        threshold.value_threshold.lower_bound.CopyFrom(wrappers_pb2.DoubleValue(value=gate.at_least))
    if gate.at_most is not None:
        threshold.value_threshold.upper_bound.CopyFrom(wrappers_pb2.DoubleValue(value=gate.at_most))
    if gate.may_drop is not None:
        threshold.change_threshold.direction = tfma.MetricDirection.HIGHER_IS_BETTER
        threshold.change_threshold.absolute.value = -gate.may_drop - ROUNDING
    if gate.may_rise is not None:
        threshold.change_threshold.direction = tfma.MetricDirection.LOWER_IS_BETTER
        threshold.change_threshold.absolute.value = gate.may_rise + ROUNDING
    return threshold
