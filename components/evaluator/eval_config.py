"""The recipe's gates as TFMA metrics and thresholds over the exported model's `evaluate` signature."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow_model_analysis as tfma
from google.protobuf import wrappers_pb2
from tensorflow_model_analysis.proto import config_pb2
from tfx import v1 as _  # noqa: F401  (TFMA 0.52 loses names when it is imported before TFX)

from components.evaluator.metrics import EXAMPLE_COUNT, RecommenderMetric
from pipeline.recipe import IS_POSITIVE, METRICS, Gate

SIGNATURE = "evaluate"

# TFMA's floats are compared exactly; a change of nothing must pass `may_drop: 0`.
ROUNDING = 1e-9


def eval_config(gates: Sequence[Gate], label: str, negatives: bool = False) -> tfma.EvalConfig:
    """Every metric Tandem knows, with the thresholds of `gates`.

    Args:
        gates: The recipe's gates.
        label: The raw feature that holds the label.
        negatives: Whether the examples hold sampled negatives, which count for the ratings only.
    """
    thresholds = {gate.metric: _threshold(gate) for gate in gates}
    # Without any threshold that applies, TFMA decides nothing, and a first model with relative gates only needs a yes.
    thresholds[EXAMPLE_COUNT] = _threshold(Gate.model_construct(metric=EXAMPLE_COUNT, at_least=1.0))
    metrics = [
        tfma.MetricConfig(
            class_name=RecommenderMetric.__name__,
            module=RecommenderMetric.__module__,
            config=f'{{"name": "{name}"}}',
            threshold=thresholds.get(name),
        )
        for name in (*METRICS, EXAMPLE_COUNT)
    ]
    models = [
        # With a type, TFMA need not load the model once more to find out that it is not a Keras one.
        tfma.ModelSpec(
            name=name,
            model_type=tfma.TF_GENERIC,
            signature_name=SIGNATURE,
            label_key=label,
            example_weight_key=IS_POSITIVE if negatives else "",
            is_baseline=name == "baseline",
        )
        for name in ("candidate", "baseline")
    ]
    return tfma.EvalConfig(
        model_specs=models,
        slicing_specs=[tfma.SlicingSpec()],
        # Not weighted as a whole: each metric knows whether a negative counts for it.
        metrics_specs=[
            tfma.MetricsSpec(metrics=metrics, example_weights=config_pb2.ExampleWeightOptions(unweighted=True))
        ],
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
