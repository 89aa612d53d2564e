"""ModelResolver: replaces TFX's Resolver with LatestBlessedModelStrategy by a component that runs everywhere.

A Resolver queries ML Metadata, and the open-source backend of Kubeflow Pipelines runs no Resolvers. This component
reads the push destination, which every orchestrator can read and which has the model that is being served.
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
    """The push destination as parameter, Model as output."""

    PARAMETERS: ClassVar = {
        PUSH_DESTINATION_KEY: component_spec.ExecutionParameter(type=str),
        CODE_VERSION_KEY: component_spec.ExecutionParameter(type=str),
    }
    INPUTS: ClassVar[dict[str, component_spec.ChannelParameter]] = {}
    OUTPUTS: ClassVar = {MODEL_KEY: component_spec.ChannelParameter(type=standard_artifacts.Model)}


class ModelResolver(base_component.BaseComponent):
    """Outputs `model`, a copy of the latest pushed version; without one, an artifact with the file `NOTHING_PUSHED`.

    The custom properties are `pushed_version`, `pushed_from` (folder of the version) and `origin` (URI of the Model
    artifact that was pushed); all are empty if nothing was pushed yet.
    """

    SPEC_CLASS = ModelResolverSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)
    DRIVER_CLASS = Driver

    def __init__(self, push_destination: str | data_types.RuntimeParameter, code_version: str) -> None:
        """Build the component.

        Args:
            push_destination: Folder of pushed versions.
            code_version: Hash of the component's code; part of the cache key.
        """
        spec = ModelResolverSpec(
            **{
                PUSH_DESTINATION_KEY: push_destination,
                CODE_VERSION_KEY: code_version,
                MODEL_KEY: types.Channel(type=standard_artifacts.Model),
            }
        )
        super().__init__(spec=spec)
