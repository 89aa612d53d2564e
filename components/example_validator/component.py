"""TFX's ExampleValidator with an executor that fails on anomalies; TFX's own only records them."""

from __future__ import annotations

from typing import ClassVar

from tfx import components as tfx_components
from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts, standard_component_specs
from tfx.types.standard_component_specs import ANOMALIES_KEY, EXCLUDE_SPLITS_KEY, SCHEMA_KEY, STATISTICS_KEY
from tfx.utils import json_utils

from components.example_validator.executor import Executor

CODE_VERSION_KEY = "code_version"


class ExampleValidatorSpec(standard_component_specs.ExampleValidatorSpec):
    """Inputs and outputs of TFX's ExampleValidator, and the hash of the component's code."""

    PARAMETERS: ClassVar = {
        **standard_component_specs.ExampleValidatorSpec.PARAMETERS,
        CODE_VERSION_KEY: component_spec.ExecutionParameter(type=str),
    }


class ExampleValidator(tfx_components.ExampleValidator):
    """Validates statistics against the schema; an anomaly fails the run before training."""

    SPEC_CLASS = ExampleValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, statistics: types.BaseChannel, schema: types.BaseChannel, code_version: str) -> None:
        """Build the component.

        Args:
            statistics: ExampleStatistics; every split in them is validated.
            schema: The curated schema.
            code_version: Hash of the component's code; part of the cache key.
        """
        spec = ExampleValidatorSpec(
            **{
                STATISTICS_KEY: statistics,
                SCHEMA_KEY: schema,
                EXCLUDE_SPLITS_KEY: json_utils.dumps([]),
                CODE_VERSION_KEY: code_version,
                ANOMALIES_KEY: types.Channel(type=standard_artifacts.ExampleAnomalies),
            }
        )
        # TFX's constructor makes a spec without the version.
        base_component.BaseComponent.__init__(self, spec=spec)
