"""Driver of the ModelResolver: adds the latest version to the cache key before the cache is queried."""

from __future__ import annotations

from tfx.dsl.components.base import base_driver
from tfx.orchestration import data_types_utils, metadata
from tfx.orchestration.portable import base_driver as portable_base_driver
from tfx.orchestration.portable import data_types
from tfx.proto.orchestration import driver_output_pb2

from components.model_resolver.executor import NEWEST_VERSION_KEY, PUSH_DESTINATION_KEY, newest_version


class Driver(base_driver.BaseDriver, portable_base_driver.BaseDriver):
    """Makes the model cacheable: the key changes with each pushed version.

    It has two base classes, because TFX accepts only drivers of the older class and calls the newer one's method.
    Kubeflow Pipelines runs no driver; there the component is never cached.
    """

    def __init__(self, metadata_handle: metadata.Metadata) -> None:
        base_driver.BaseDriver.__init__(self, metadata_handle)
        portable_base_driver.BaseDriver.__init__(self, metadata_handle)

    def run(self, execution_info: data_types.ExecutionInfo) -> driver_output_pb2.DriverOutput:
        """Add the number of the latest version; empty if there is none."""
        newest = newest_version(execution_info.exec_properties[PUSH_DESTINATION_KEY])
        found = {NEWEST_VERSION_KEY: "" if newest is None else str(newest)}
        result = driver_output_pb2.DriverOutput()
        for name, value in {**execution_info.exec_properties, **found}.items():
            data_types_utils.set_metadata_value(result.exec_properties[name], value)
        return result
