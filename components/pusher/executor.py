"""Executor of the Pusher: publishes an immutable numbered version atomically and removes old versions."""

from __future__ import annotations

from typing import Any

import pydantic
from absl import logging
from tfx.components.pusher import executor
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, json_utils, proto_utils

from components.pusher import push_destination as versions
from components.pusher.availability import wait_until_available
from components.pusher.version_labels import ModelConfigError, config_path, versions_in_use
from recipe.serving import WaitFor

SETTINGS_KEY = "settings"


class PusherSettings(pydantic.BaseModel):
    """Settings of the Pusher from the recipe's section `serving`."""

    keep_versions: int = 5
    """Number of latest versions to keep, in addition to versions with a label."""
    wait_for: WaitFor | None = None
    """The server that must report the new version as AVAILABLE before the run ends; None waits for no server."""


class Executor(executor.Executor):
    """Copies a blessed model into the push destination, then renames the copy to its version number."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:  # noqa: N802  (TFX's name)
        """Push the model if it is blessed, and remove old versions.

        A model that is the latest version is not pushed again. The version number is the time in seconds, or one more
        than the latest version if the clock is behind it.

        Raises:
            WouldGoBackwards: Another process pushed a later version in the meantime.
            NotAvailable: The server of `serving.wait_for` does not serve the version.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed = artifact_utils.get_single_instance(output_dict[standard_component_specs.PUSHED_MODEL_KEY])
        if not self.CheckBlessing(input_dict):
            self._MarkNotPushed(pushed)
            return
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties[standard_component_specs.PUSH_DESTINATION_KEY], destination)
        settings = _settings(exec_properties)
        folder = destination.filesystem.base_directory
        model = artifact_utils.get_single_instance(input_dict[standard_component_specs.MODEL_KEY])
        versions.remove_abandoned(folder)
        newest = max(versions.pushed_versions(folder), default=None)
        origin = None if newest is None else versions.origin_of(versions.version_path(folder, newest))
        if newest is not None and origin is not None and origin.get("model") == model.uri:
            version = newest
            logging.info("Skipped the push: the model is version %d of %s already.", version, folder)
        else:
            version = versions.next_version(folder)
            versions.publish(self.GetModelPath(input_dict), folder, version, {"model": model.uri})
            logging.info("Pushed version %d to %s.", version, folder)
        path = versions.version_path(folder, version)
        io_utils.copy_dir(path, pushed.uri)
        # Old versions are removed only after the server has the new one.
        if settings.wait_for is not None:
            wait = settings.wait_for
            wait_until_available(wait.target, wait.model, version, wait.timeout_s)
        _remove_old(folder, settings.keep_versions)
        self._MarkPushed(pushed, pushed_destination=path, pushed_version=str(version))


def _settings(exec_properties: Any) -> PusherSettings:
    custom = exec_properties.get(standard_component_specs.CUSTOM_CONFIG_KEY)
    values = (json_utils.loads(custom) if custom else None) or {}
    return PusherSettings.model_validate_json(values.get(SETTINGS_KEY, "{}"))


def _remove_old(folder: str, keep: int) -> None:
    config = config_path(folder)
    try:
        removed = versions.remove_old_versions(folder, keep, lambda: versions_in_use(config))
    except ModelConfigError as error:
        # A full disk is better than a label that points to a removed version.
        logging.warning("Removed no old version: %s", error)
        return
    if removed:
        logging.info("Removed versions %s; kept the latest %d.", ", ".join(map(str, removed)), keep)
