"""Executor of the Evaluator: TFX's, and then the verdict."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_model_analysis as tfma
from absl import logging
from tfx.components.evaluator import constants, executor
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, proto_utils

from components.evaluator.eval_config import ROUNDING
from components.evaluator.metrics import EXAMPLE_COUNT
from components.evaluator.verdict import VERDICT_FILE, Bound, Condition, Verdict
from pipeline.recipe import METRICS


class Executor(executor.Executor):
    """Evaluates, blesses or not, and writes `verdict.json` into the evaluation artifact."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:  # noqa: N802  (TFX's name)
        super().Do(input_dict, output_dict, exec_properties)
        config = tfma.EvalConfig()
        proto_utils.json_to_proto(exec_properties[standard_component_specs.EVAL_CONFIG_KEY], config)
        evaluation = artifact_utils.get_single_uri(output_dict[standard_component_specs.EVALUATION_KEY])
        blessing = artifact_utils.get_single_instance(output_dict[standard_component_specs.BLESSING_KEY])
        blessed = blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY) == constants.BLESSED_VALUE
        has_baseline = bool(input_dict.get(standard_component_specs.BASELINE_MODEL_KEY))
        verdict = read_verdict(evaluation, config, blessed, has_baseline)
        io_utils.write_string_file(os.path.join(evaluation, VERDICT_FILE), verdict.model_dump_json(indent=1))
        logging.info("Blessed: %s. %s", verdict.blessed, "; ".join(map(str, verdict.bounds)))


def read_verdict(evaluation: str, config: tfma.EvalConfig, blessed: bool, has_baseline: bool) -> Verdict:
    """Reads TFMA's output.

    Args:
        evaluation: URI of the ModelEvaluation artifact.
        config: What TFMA was asked.
        blessed: TFMA's own decision; the bounds explain it, they do not make it.
        has_baseline: Whether a last blessed model was measured too.
    """
    metrics = _metrics(evaluation, "candidate" if has_baseline else None)
    baseline = _metrics(evaluation, "baseline") if has_baseline else {}
    validation = tfma.load_validation_result(evaluation)
    failed: dict[str, set[str]] = {}
    for per_slice in validation.metric_validations_per_slice:
        for failure in per_slice.failures:
            kinds = failed.setdefault(failure.metric_key.name, set())
            kinds.add("change" if failure.metric_key.is_diff else "value")
    bounds: list[Bound] = []
    for spec in config.metrics_specs:
        for metric in spec.metrics:
            name = next((known for known in METRICS if f'"{known}"' in metric.config), None)
            if name is not None:
                bounds.extend(_bounds(name, metric.threshold, metrics, baseline, failed.get(name, set())))
    return Verdict(
        blessed=blessed,
        examples=int(metrics.get(EXAMPLE_COUNT, 0)),
        metrics={name: metrics[name] for name in METRICS if name in metrics},
        baseline_metrics={name: baseline[name] for name in METRICS if name in baseline},
        bounds=tuple(bounds),
    )


def _bounds(
    name: str,
    threshold: tfma.MetricThreshold,
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    failed: set[str],
) -> Sequence[Bound]:
    limits: list[tuple[Condition, float, bool]] = []
    value = threshold.value_threshold
    if value.HasField("lower_bound"):
        limits.append(("at_least", value.lower_bound.value, "value" in failed))
    if value.HasField("upper_bound"):
        limits.append(("at_most", value.upper_bound.value, "value" in failed))
    if threshold.HasField("change_threshold") and name in baseline:
        change = threshold.change_threshold.absolute.value
        condition: Condition = "may_drop" if METRICS[name] == "higher" else "may_rise"
        rounding = ROUNDING if condition == "may_drop" else -ROUNDING
        limits.append((condition, baseline[name] + change + rounding, "change" in failed))
    measured = metrics.get(name)
    bounds = []
    for kind, limit, threshold_failed in limits:
        margin = None
        if measured is not None:
            margin = measured - limit if kind in ("at_least", "may_drop") else limit - measured
        # One failed value threshold may have two ends; the end that holds did not fail.
        holds = not threshold_failed or (kind in ("at_least", "at_most") and margin is not None and margin >= 0)
        passed = measured is not None and holds
        bounds.append(Bound(metric=name, condition=kind, limit=limit, measured=measured, passed=passed, margin=margin))
    return bounds


def _metrics(evaluation: str, model: str | None) -> dict[str, float]:
    """Metrics of the whole eval split by name; those that are not a finite number could not be computed."""
    result = tfma.load_eval_result(evaluation, model_name=model)
    found: dict[str, float] = {}
    for slice_key, outputs in result.slicing_metrics:
        if slice_key == ():
            for per_output in outputs.values():
                for by_class in per_output.values():
                    # TFMA hands proto JSON through, where NaN and infinity are strings.
                    found |= {name: float(value["doubleValue"]) for name, value in by_class.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}
