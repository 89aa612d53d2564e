"""ImportSchemaGen with the schema as a parameter; TFX's own reads a file, which every orchestrator would need.

A compiled pipeline is then complete without other files, and the cache key has the schema's content instead of the
file's path.
"""

from __future__ import annotations

from typing import ClassVar

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts
from tfx.types.standard_component_specs import SCHEMA_KEY

from components.schema_gen.executor import CODE_VERSION_KEY, CONTENT_KEY, Executor


class ImportSchemaGenSpec(component_spec.ComponentSpec):
    """A text proto as parameter, Schema as output."""

    PARAMETERS: ClassVar = {
        CONTENT_KEY: component_spec.ExecutionParameter(type=str),
        CODE_VERSION_KEY: component_spec.ExecutionParameter(type=str),
    }
    INPUTS: ClassVar[dict[str, component_spec.ChannelParameter]] = {}
    OUTPUTS: ClassVar = {SCHEMA_KEY: component_spec.ChannelParameter(type=standard_artifacts.Schema)}


class ImportSchemaGen(base_component.BaseComponent):
    """Outputs `schema`, a Schema artifact with the curated schema."""

    SPEC_CLASS = ImportSchemaGenSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, schema: schema_pb2.Schema, code_version: str) -> None:
        """Build the component.

        Args:
            schema: The curated schema.
            code_version: Hash of the component's code; part of the cache key.
        """
        spec = ImportSchemaGenSpec(
            **{
                CONTENT_KEY: text_format.MessageToString(schema),
                CODE_VERSION_KEY: code_version,
                SCHEMA_KEY: types.Channel(type=standard_artifacts.Schema),
            }
        )
        super().__init__(spec=spec)
