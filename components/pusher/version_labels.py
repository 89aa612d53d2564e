"""TensorFlow Serving's model config file, `models.config`: which versions a server loads, and what their labels are.

The file lies beside the model's folder of versions. A server that follows it (TensorFlow Serving with
`--model_config_file` and `--model_config_file_poll_wait_seconds`, the embedded one with `--model-config-file`) learns
from it where a label points. The Pusher reads it, `tandem promote` and `tandem rollback` write it.
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
    """The file cannot be read, or does not allow what was asked for; names the file."""


def config_path(folder: str) -> str:
    """Where the file of a folder of versions lies."""
    return os.path.join(os.path.dirname(os.path.abspath(folder) if "://" not in folder else folder.rstrip("/")), FILE)


def read_config(path: str) -> model_server_config_pb2.ModelServerConfig | None:
    """The file's content; None where there is no file.

    Raises:
        ModelConfigError: It is not the text proto that TensorFlow Serving reads.
    """
    if not fileio.exists(path):
        return None
    with fileio.open(path) as file:
        text = file.read()
    try:
        return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        raise ModelConfigError(
            f"{path}:{error}. It is not TensorFlow Serving's ModelServerConfig; mend the file or take it away"
        ) from None


def write_config(path: str, config: model_server_config_pb2.ModelServerConfig) -> None:
    """Replaces the file in one step: a server that reads it at any time finds the old one or the new one, whole."""
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
    """The entry of one model.

    Args:
        config: What `path` holds.
        path: For the message.
        name: Name that the server knows the model by.

    Raises:
        ModelConfigError: There is none.
    """
    found: list[model_server_config_pb2.ModelConfig] = list(config.model_config_list.config)
    for entry in found:
        if entry.name == name:
            return entry
    names = ", ".join(repr(entry.name) for entry in found) or "no model"
    raise ModelConfigError(f"{path} has no model {name!r}; it has {names}. Name one of them with --model")


def versions_in_use(path: str) -> set[int]:
    """Every version that a label points to, or that is to be served by its number, of any model of the file.

    Raises:
        ModelConfigError: The file cannot be read.
    """
    config = read_config(path)
    used: set[int] = set()
    for entry in config.model_config_list.config if config else ():
        used.update(entry.version_labels.values())
        used.update(entry.model_version_policy.specific.versions)
    return used
