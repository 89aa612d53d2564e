"""InfraValidator with the embedded server, which every orchestrator can run.

TFX's own requires Docker or Kubernetes and does not compile for Kubeflow Pipelines v2.
"""

from __future__ import annotations

from typing import ClassVar

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts

from components.infra_validator.executor import (
    BLESSING_KEY,
    EXAMPLES_KEY,
    MODEL_KEY,
    SETTINGS_KEY,
    Executor,
    InfraValidatorSettings,
)


class InfraValidatorSpec(component_spec.ComponentSpec):
    """Model and raw examples as inputs, InfraBlessing as output."""

    PARAMETERS: ClassVar = {SETTINGS_KEY: component_spec.ExecutionParameter(type=str)}
    INPUTS: ClassVar = {
        MODEL_KEY: component_spec.ChannelParameter(type=standard_artifacts.Model),
        EXAMPLES_KEY: component_spec.ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS: ClassVar = {BLESSING_KEY: component_spec.ChannelParameter(type=standard_artifacts.InfraBlessing)}


class InfraValidator(base_component.BaseComponent):
    """Blesses a model whose responses equal those of the evaluation, within the latency threshold of the recipe."""

    SPEC_CLASS = InfraValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, model: types.BaseChannel, examples: types.BaseChannel, settings: InfraValidatorSettings) -> None:
        spec = InfraValidatorSpec(
            **{
                MODEL_KEY: model,
                EXAMPLES_KEY: examples,
                SETTINGS_KEY: settings.model_dump_json(),
                BLESSING_KEY: types.Channel(type=standard_artifacts.InfraBlessing),
            }
        )
        super().__init__(spec=spec)
