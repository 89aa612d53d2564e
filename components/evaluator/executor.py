"""Executor of the Evaluator: TFMA measures the metrics, `verdict.py` applies the recipe's gates."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from tfx.components.evaluator import constants
from tfx.dsl.components.base import base_beam_executor
from tfx.dsl.io import fileio
from tfx.types import Artifact, artifact_utils
from tfx.types.standard_component_specs import (
    BASELINE_MODEL_KEY,
    BLESSING_KEY,
    EVALUATION_KEY,
    EXAMPLES_KEY,
    MODEL_KEY,
)
from tfx.utils import io_utils, path_utils

from components.evaluator.baseline_model import evaluation_error, missing_outputs
from components.evaluator.measurement import CANDIDATE, LAST_BLESSED, measure, read_measured
from components.evaluator.settings import EvaluatorSettings
from components.evaluator.verdict import VERDICT_FILE, Verdict, decide
from components.model_resolver.executor import is_model

SETTINGS_KEY = "settings"

REASON_PROPERTY = "reason"
"""Property of the blessing of a model that is not blessed: the failed gates. InfraValidator sets it too."""


class Executor(base_beam_executor.BaseBeamExecutor):
    """Evaluates the candidate and the last blessed model, writes `verdict.json` and the blessing.

    The outputs are those of TFX's Evaluator: TFMA's files, and a blessing with the properties and the file that TFX's
    Resolver and Pusher read. TFMA's own thresholds are not used: they have no baselines and pass if a slice has no
    examples.
    """

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:  # noqa: N802  (TFX's name)
        self._log_startup(input_dict, output_dict, exec_properties)
        settings = EvaluatorSettings.model_validate_json(exec_properties[SETTINGS_KEY])
        examples = input_dict[EXAMPLES_KEY]
        model = artifact_utils.get_single_instance(input_dict[MODEL_KEY])
        last = artifact_utils.get_single_instance(input_dict[BASELINE_MODEL_KEY]) if input_dict.get(
            BASELINE_MODEL_KEY) else None  # fmt: skip
        if last is not None and not is_model(last):
            last = None
        evaluation = artifact_utils.get_single_uri(output_dict[EVALUATION_KEY])
        verdict = self._evaluate(settings, examples, _path(model), _path(last) if last else None, evaluation)
        io_utils.write_string_file(os.path.join(evaluation, VERDICT_FILE), verdict.model_dump_json(indent=1))
        blessing = artifact_utils.get_single_instance(output_dict[BLESSING_KEY])
        _bless(blessing, verdict.blessed, model, last, exec_properties.get("current_component_id"))
        if not verdict.blessed:
            failures = "; ".join(map(str, verdict.failures())) or "the eval split has no examples"
            blessing.set_string_custom_property(REASON_PROPERTY, failures)
        logging.info("Blessed: %s. %s", verdict.blessed, "; ".join(map(str, verdict.bounds)))

    def _evaluate(
        self, settings: EvaluatorSettings, examples: Sequence[Artifact], candidate: str, last: str | None, output: str
    ) -> Verdict:
        problem = missing_outputs(last) if last is not None else None
        if last is not None and problem is None:
            try:
                self._measure(settings, examples, {CANDIDATE: candidate, LAST_BLESSED: last}, output)
                return decide(settings.gates, read_measured(output, has_last_blessed=True))
            except Exception:
                # Beam's error does not name the model. The last blessed model is skipped only if it also fails alone.
                problem = evaluation_error(last, examples)
                if problem is None:
                    raise
                fileio.rmtree(output)
                fileio.makedirs(output)
        if problem is not None:
            problem = f"cannot evaluate the last blessed model: {problem}"
            logging.warning("%s. Its change thresholds pass in this run.", problem)
        self._measure(settings, examples, {CANDIDATE: candidate}, output)
        return decide(settings.gates, read_measured(output, has_last_blessed=False), problem)

    def _measure(
        self, settings: EvaluatorSettings, examples: Sequence[Artifact], models: Mapping[str, str], output: str
    ) -> None:
        with self._make_beam_pipeline() as pipeline:
            measure(pipeline, examples, models, settings, output)


def _path(model: Artifact) -> str:
    path: str = path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model))
    return path


def _bless(blessing: Artifact, blessed: bool, model: Artifact, last: Artifact | None, component_id: str | None) -> None:
    """Set the properties and write the file of the blessing, as TFX's Evaluator does."""
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, model.uri)
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, model.id)
    if last is not None:
        blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY, last.uri)
        blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_ID_KEY, last.id)
    if component_id is not None:
        blessing.set_string_custom_property("component_id", component_id)
    name = constants.BLESSED_FILE_NAME if blessed else constants.NOT_BLESSED_FILE_NAME
    io_utils.write_string_file(os.path.join(blessing.uri, name), "")
    value = constants.BLESSED_VALUE if blessed else constants.NOT_BLESSED_VALUE
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, value)
