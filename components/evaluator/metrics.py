"""What the Evaluator measures, as TFMA metrics; TFMA finds them by the names that eval_config.py gives it.

TFMA's own metrics would each unpack every example again, and its MeanAbsoluteError leaves out the examples whose
prediction is not a number, so that a model with such ratings could pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import apache_beam as beam
import tensorflow_model_analysis as tfma
from tfx import v1 as _  # noqa: F401  (TFMA 0.52 loses names when it is imported before TFX)

from pipeline.recipe import METRICS

EXAMPLE_COUNT = "example_count"
RATING_OUTPUT = "rating"
RATING_METRICS = ("rmse", "mae")

# The hits are 0 or 1 for each example, so their mean is the top-k accuracy.
HIT_OUTPUTS = {name: name.replace("_accuracy", "_hit") for name in METRICS if name not in RATING_METRICS}


class RecommenderMetric(tfma.metrics.Metric):
    """One of the recipe's `METRICS`, or `example_count`. Any number of them costs one pass over the examples."""

    def __init__(self, name: str) -> None:
        super().__init__(_computations, name=name)


def _computations(name: str, model_names: Sequence[str]) -> list[tfma.metrics.MetricComputation]:
    # Every metric asks for all of them; TFMA keeps one of equal computations.
    return [
        tfma.metrics.MetricComputation(
            keys=[tfma.metrics.MetricKey(metric, model_name=model) for metric in (*METRICS, EXAMPLE_COUNT)],
            preprocessors=None,
            combiner=_AllMetrics(model),
        )
        for model in model_names
    ]


class _AllMetrics(beam.CombineFn):
    """Sums over the examples of a slice: their number, squared and absolute errors, positives, and hits at each k.

    The example weight, where there is one, is 1 for interactions and 0 for sampled negatives. A negative's label counts
    for the ratings; its item is one that the user did not choose, so how it ranks says nothing about retrieval.
    """

    def __init__(self, model: str) -> None:
        self._model = model

    def create_accumulator(self) -> list[float]:
        return [0.0] * (4 + len(HIT_OUTPUTS))

    def add_input(self, sums: list[float], example: Any) -> list[float]:
        outputs = example.get_predictions(self._model or None)
        # A float64 sum of a million float32 errors is exact to more digits than anyone reads.
        error = outputs[RATING_OUTPUT].item() - example.get_labels(self._model or None).item()
        weights = example.get_example_weights(self._model or None)
        positive = 1.0 if weights is None else weights.item()
        sums[0] += 1.0
        sums[1] += error * error
        sums[2] += abs(error)
        sums[3] += positive
        for place, output in enumerate(HIT_OUTPUTS.values(), start=4):
            sums[place] += positive * outputs[output].item()
        return sums

    def merge_accumulators(self, accumulators: Iterable[list[float]]) -> list[float]:
        return [math.fsum(column) for column in zip(*accumulators, strict=True)]

    def extract_output(self, sums: list[float]) -> dict[tfma.metrics.MetricKey, float]:
        count, squared, absolute, positives, *hits = sums
        values = {EXAMPLE_COUNT: count}
        if count:
            values |= {"rmse": math.sqrt(squared / count), "mae": absolute / count}
        if positives:
            values |= {metric: hit / positives for metric, hit in zip(HIT_OUTPUTS, hits, strict=True)}
        return {tfma.metrics.MetricKey(name, model_name=self._model): value for name, value in values.items()}
