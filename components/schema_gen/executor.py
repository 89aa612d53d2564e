"""Executor of ImportSchemaGen: writes the schema file of the Schema artifact."""

from __future__ import annotations

import os
from typing import Any

from tfx.components.schema_gen.executor import DEFAULT_FILE_NAME
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.types.standard_component_specs import SCHEMA_KEY
from tfx.utils import io_utils

CONTENT_KEY = "schema_content"
CODE_VERSION_KEY = "code_version"


class Executor(base_executor.BaseExecutor):
    """Writes `schema.pbtxt` into the artifact, as TFX's ImportSchemaGen does."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:  # noqa: N802  (TFX's name)
        self._log_startup(input_dict, output_dict, exec_properties)
        target = os.path.join(artifact_utils.get_single_uri(output_dict[SCHEMA_KEY]), DEFAULT_FILE_NAME)
        io_utils.write_string_file(target, exec_properties[CONTENT_KEY])
