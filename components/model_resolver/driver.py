"""Driver of the ModelResolver: makes the newest version part of the cache key, before the cache is asked."""

from __future__ import annotations

from typing import Any

from tfx.dsl.components.base import base_driver
from tfx.orchestration import data_types_utils, metadata
from tfx.orchestration.portable import base_driver as portable_base_driver
from tfx.orchestration.portable import data_types
from tfx.proto.orchestration import driver_output_pb2

from components.model_resolver.executor import NEWEST_VERSION_KEY, PUSH_DESTINATION_KEY, newest_version


class Driver(base_driver.BaseDriver, portable_base_driver.BaseDriver):
    """An unchanged folder gives the cached model, and with it the Evaluator's cached verdict; a new version never does.

    Two base classes, because TFX has two kinds of launchers: the local runner's calls `run`, Airflow's
    `resolve_exec_properties`. Kubeflow Pipelines calls neither; there nothing of this component may come from a cache.
    """

    def __init__(self, metadata_handle: metadata.Metadata) -> None:
        base_driver.BaseDriver.__init__(self, metadata_handle)
        portable_base_driver.BaseDriver.__init__(self, metadata_handle)

    def resolve_exec_properties(
        self, exec_properties: dict[str, Any], pipeline_info: Any = None, component_info: Any = None
    ) -> dict[str, Any]:
        """Adds the number of the newest version; empty where there is none."""
        newest = newest_version(exec_properties[PUSH_DESTINATION_KEY])
        return {**exec_properties, NEWEST_VERSION_KEY: "" if newest is None else str(newest)}

    def run(self, execution_info: data_types.ExecutionInfo) -> driver_output_pb2.DriverOutput:
        """The same for the portable launcher."""
        result = driver_output_pb2.DriverOutput()
        for name, value in self.resolve_exec_properties(execution_info.exec_properties).items():
            data_types_utils.set_metadata_value(result.exec_properties[name], value)
        return result
