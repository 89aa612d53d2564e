"""Executor of the ModelResolver: copies the latest pushed version into a Model artifact."""

from __future__ import annotations

import os
from typing import Any

from absl import logging
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import Artifact, artifact_utils
from tfx.utils import io_utils, path_utils

from components.pusher.push_destination import origin_of, pushed_versions, version_path

PUSH_DESTINATION_KEY = "push_destination"
CODE_VERSION_KEY = "code_version"
NEWEST_VERSION_KEY = "newest_version"
"""Property with the latest version; missing if the orchestrator runs no driver."""
MODEL_KEY = "model"

VERSION_PROPERTY = "pushed_version"
FOLDER_PROPERTY = "pushed_from"
ORIGIN_PROPERTY = "origin"

NOTHING_PUSHED_FILE = "NOTHING_PUSHED"
"""File of an artifact without a model; not all orchestrators keep custom properties."""


class Executor(base_executor.BaseExecutor):
    """Copies the version, because the Pusher may remove it later."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:  # noqa: N802  (TFX's name)
        """Copy the latest version.

        Args:
            input_dict: Empty.
            output_dict: `model`: one Model artifact.
            exec_properties: `push_destination`; `newest_version` if a driver ran.

        Raises:
            FileNotFoundError: The version was removed after the driver ran.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        folder = exec_properties[PUSH_DESTINATION_KEY]
        model = artifact_utils.get_single_instance(output_dict[MODEL_KEY])
        if NEWEST_VERSION_KEY in exec_properties:
            found = exec_properties[NEWEST_VERSION_KEY]
        else:
            newest = newest_version(folder)
            found = "" if newest is None else str(newest)
        path = version_path(folder, int(found)) if found else ""
        if found and not fileio.isdir(path):
            raise FileNotFoundError(f"{path} does not exist: another process removed it during this run. Rerun")
        model.set_string_custom_property(VERSION_PROPERTY, found)
        model.set_string_custom_property(FOLDER_PROPERTY, path)
        origin = (origin_of(path) or {}) if found else {}
        model.set_string_custom_property(ORIGIN_PROPERTY, str(origin.get("model", "")))
        if found:
            io_utils.copy_dir(path, path_utils.serving_model_dir(model.uri))
            logging.info("Last blessed model: %s", path)
        else:
            io_utils.write_string_file(os.path.join(model.uri, NOTHING_PUSHED_FILE), f"{folder} has no version yet\n")
            logging.info("Last blessed model: none; %s has no version yet.", folder)


def newest_version(folder: str) -> int | None:
    """Return the latest version of a push destination; None if there is none."""
    return max(pushed_versions(folder), default=None)


def is_model(artifact: Artifact) -> bool:
    """Whether a ModelResolver's artifact has a model; without one, nothing was pushed yet."""
    return not fileio.exists(os.path.join(artifact.uri, NOTHING_PUSHED_FILE))
