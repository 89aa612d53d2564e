"""Executor of the Pusher: an immutable numbered version, complete or not there at all."""

from __future__ import annotations

from typing import Any

import pydantic
from absl import logging
from tfx.components.pusher import executor
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, json_utils, proto_utils

from components.pusher import push_destination as versions
from components.pusher.version_labels import ModelConfigError, config_path, versions_in_use
from components.pusher.waiting import wait_until_served
from recipe.serving import WaitFor

SETTINGS_KEY = "settings"


class Settings(pydantic.BaseModel):
    """What becomes of the serving folder after a push."""

    keep_versions: int = 5
    """How many of the newest versions stay; those that a label points to stay besides."""
    wait_for: WaitFor | None = None
    """The server that has to answer with the new version before the run goes on; None waits for nobody."""


class Executor(executor.Executor):
    """Copies a blessed model beside the versions that TensorFlow Serving watches, then renames it into place."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:  # noqa: N802  (TFX's name)
        """Pushes the model if it is blessed, and removes old versions.

        A model that already is the newest version is not pushed again. A new version's number is the time in seconds,
        or one more than the newest where the clock went backwards.

        Raises:
            WouldGoBackwards: Somebody else pushed a newer version meanwhile.
            NotServed: The server that the recipe says to wait for does not answer with the version.
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
            logging.info("Version %d is this model already; nothing to copy.", version)
        else:
            version = versions.next_version(folder)
            versions.publish(self.GetModelPath(input_dict), folder, version, {"model": model.uri})
            logging.info("Pushed version %d to %s.", version, folder)
        path = versions.version_path(folder, version)
        io_utils.copy_dir(path, pushed.uri)
        # The old version is not taken away before a server has the new one.
        if settings.wait_for is not None:
            wait = settings.wait_for
            wait_until_served(wait.target, wait.model, version, wait.timeout_s)
        _remove_old(folder, settings.keep_versions)
        self._MarkPushed(pushed, pushed_destination=path, pushed_version=str(version))


def _settings(exec_properties: Any) -> Settings:
    custom = exec_properties.get(standard_component_specs.CUSTOM_CONFIG_KEY)
    values = (json_utils.loads(custom) if custom else None) or {}
    return Settings.model_validate_json(values.get(SETTINGS_KEY, "{}"))


def _remove_old(folder: str, keep: int) -> None:
    config = config_path(folder)
    try:
        removed = versions.remove_old_versions(folder, keep, lambda: versions_in_use(config))
    except ModelConfigError as error:
        # Nobody can tell which versions have labels; a full disk is better than a label that points nowhere.
        logging.warning("No old version was removed: %s", error)
        return
    if removed:
        logging.info("Removed version %s: the newest %d are kept.", ", ".join(map(str, removed)), keep)
