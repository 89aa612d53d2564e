"""ModelResolver: what a TFX Resolver with LatestBlessedModelStrategy is for, as a component that runs everywhere.

A Resolver asks ML Metadata, and the open-source backend of Kubeflow Pipelines runs none. This component looks at the
push destination, which every orchestrator can read and which says what is really there to be replaced.
"""

from __future__ import annotations

from typing import ClassVar

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration import data_types
from tfx.types import component_spec, standard_artifacts

from components.model_resolver.driver import Driver
from components.model_resolver.executor import CODE_VERSION_KEY, MODEL_KEY, PUSH_DESTINATION_KEY, Executor


class ModelResolverSpec(component_spec.ComponentSpec):
    """A folder of versions in, Model out."""

    PARAMETERS: ClassVar = {
        PUSH_DESTINATION_KEY: component_spec.ExecutionParameter(type=str),
        CODE_VERSION_KEY: component_spec.ExecutionParameter(type=str),
    }
    INPUTS: ClassVar[dict[str, component_spec.ChannelParameter]] = {}
    OUTPUTS: ClassVar = {MODEL_KEY: component_spec.ChannelParameter(type=standard_artifacts.Model)}


class ModelResolver(base_component.BaseComponent):
    """Outputs `model`, a copy of the newest pushed version; without one, a Model artifact that says so.

    Its custom properties are `pushed_version`, `pushed_from` (the version's folder) and `origin` (URI of the Model
    artifact that was pushed); all are empty where nothing was pushed yet.
    """

    SPEC_CLASS = ModelResolverSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)
    DRIVER_CLASS = Driver

    def __init__(self, push_destination: str | data_types.RuntimeParameter, code_version: str) -> None:
        """Builds the component.

        Args:
            push_destination: The folder that the Pusher writes versions to.
            code_version: Changes with the code of the component; part of the cache key.
        """
        spec = ModelResolverSpec(
            **{
                PUSH_DESTINATION_KEY: push_destination,
                CODE_VERSION_KEY: code_version,
                MODEL_KEY: types.Channel(type=standard_artifacts.Model),
            }
        )
        super().__init__(spec=spec)
