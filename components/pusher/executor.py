"""Executor of the Pusher: an immutable numbered version, complete or not there at all."""

from __future__ import annotations

import json
import os
import time
import uuid
from typing import Any

from absl import logging
from tfx.components.pusher import executor
from tfx.dsl.io import fileio
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, proto_utils

# Where a version comes from, for `tandem` and for whoever finds the folder.
ORIGIN_FILE = os.path.join("assets.extra", "tandem.json")


class Executor(executor.Executor):
    """Copies a blessed model beside the versions that TensorFlow Serving watches, then renames it into place."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:  # noqa: N802  (TFX's name)
        """Pushes the model if it is blessed.

        A model that already is the newest version is not pushed again. A new version's number is the time in seconds,
        or one more than the newest where the clock went backwards.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed = artifact_utils.get_single_instance(output_dict[standard_component_specs.PUSHED_MODEL_KEY])
        if not self.CheckBlessing(input_dict):
            self._MarkNotPushed(pushed)
            return
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties[standard_component_specs.PUSH_DESTINATION_KEY], destination)
        folder = destination.filesystem.base_directory
        model = artifact_utils.get_single_instance(input_dict[standard_component_specs.MODEL_KEY])
        versions = pushed_versions(folder)
        if versions and _origin(os.path.join(folder, str(versions[-1]))) == model.uri:
            version = versions[-1]
            logging.info("Version %d is this model already; nothing to copy.", version)
        else:
            version = max([int(time.time()), *(newest + 1 for newest in versions[-1:])])
            _publish(self.GetModelPath(input_dict), model.uri, folder, version)
            logging.info("Pushed version %d to %s.", version, folder)
        path = os.path.join(folder, str(version))
        io_utils.copy_dir(path, pushed.uri)
        self._MarkPushed(pushed, pushed_destination=path, pushed_version=str(version))


def pushed_versions(folder: str) -> list[int]:
    """The version numbers in a folder that TensorFlow Serving watches, ascending; empty where it does not exist."""
    if not fileio.isdir(folder):
        return []
    names = (name.rstrip("/") for name in fileio.listdir(folder))
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _publish(source: str, origin: str, folder: str, version: int) -> None:
    # TensorFlow Serving looks at names that are numbers only, so it never sees the copy before the rename.
    staging = os.path.join(folder, f".pushing-{version}-{uuid.uuid4().hex}")
    fileio.makedirs(folder)
    try:
        io_utils.copy_dir(source, staging)
        io_utils.write_string_file(os.path.join(staging, ORIGIN_FILE), json.dumps({"model": origin}))
        fileio.rename(staging, os.path.join(folder, str(version)))
    except BaseException:
        if fileio.exists(staging):
            fileio.rmtree(staging)
        raise


def _origin(path: str) -> str | None:
    """URI of the Model artifact that the version at `path` was copied from; None where it does not say."""
    target = os.path.join(path, ORIGIN_FILE)
    if not fileio.exists(target):
        return None
    with fileio.open(target) as file:
        return str(json.load(file).get("model"))
