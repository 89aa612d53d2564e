"""TensorFlow Serving's model config file, `models.config`: the versions that a server loads and their labels.

The file is in the parent folder of the push destination. A server that polls it (TensorFlow Serving with
`--model_config_file` and `--model_config_file_poll_wait_seconds`, the embedded server with `--model-config-file`) reads
the labels from it. `tandem promote` and `tandem rollback` write it, the Pusher reads it.
"""

from __future__ import annotations

import os
import uuid

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2
from tfx.dsl.io import fileio

from recipe.errors import BadInput

FILE = "models.config"
STABLE = "stable"

_HEADER = "# Written by `tandem promote` and `tandem rollback`, which keep every setting, but no comment.\n"


class ModelConfigError(BadInput):
    """The file is invalid, or does not have the requested model. The message starts with the file."""


def config_path(folder: str) -> str:
    """Return the path of the model config file of a push destination."""
    return os.path.join(os.path.dirname(os.path.abspath(folder) if "://" not in folder else folder.rstrip("/")), FILE)


def read_config(path: str) -> model_server_config_pb2.ModelServerConfig | None:
    """Read the file; None if it does not exist.

    Raises:
        ModelConfigError: The file is not a text proto of ModelServerConfig.
    """
    if not fileio.exists(path):
        return None
    with fileio.open(path) as file:
        text = file.read()
    try:
        return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        raise ModelConfigError(
            f"{path}:{error}. Expected TensorFlow Serving's ModelServerConfig as text proto; fix or remove the file"
        ) from None


def write_config(path: str, config: model_server_config_pb2.ModelServerConfig) -> None:
    """Replace the file atomically, so that a server never reads a partial file."""
    staging = f"{path}.{uuid.uuid4().hex}.new"
    try:
        with fileio.open(staging, "w") as file:
            file.write(_HEADER + text_format.MessageToString(config))
        fileio.rename(staging, path, overwrite=True)
    except BaseException:
        if fileio.exists(staging):
            fileio.remove(staging)
        raise


def model_entry(
    config: model_server_config_pb2.ModelServerConfig, path: str, name: str
) -> model_server_config_pb2.ModelConfig:
    """Return the entry of one model.

    Args:
        config: Content of the file.
        path: Path of the file, for the message.
        name: Name of the model on the server.

    Raises:
        ModelConfigError: The file has no such model.
    """
    found: list[model_server_config_pb2.ModelConfig] = list(config.model_config_list.config)
    for entry in found:
        if entry.name == name:
            return entry
    names = ", ".join(repr(entry.name) for entry in found) or "(none)"
    raise ModelConfigError(f"{path}: expected one of the models {names}, got {name!r}. Set --model to one of them")


def versions_in_use(path: str) -> set[int]:
    """Return the versions of all models that have a label or that a `specific` version policy names.

    Raises:
        ModelConfigError: The file is invalid.
    """
    config = read_config(path)
    used: set[int] = set()
    for entry in config.model_config_list.config if config else ():
        used.update(entry.version_labels.values())
        used.update(entry.model_version_policy.specific.versions)
    return used
