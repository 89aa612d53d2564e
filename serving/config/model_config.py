"""The served models, their folders, version policies and version labels.

From TensorFlow Serving's model config file (text proto `ModelServerConfig`), a HandleReloadConfigRequest or
`--model-dir`. Rejects what TensorFlow Serving rejects, with its messages. Imports no TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tensorflow_serving.config import model_server_config_pb2

from serving.config.errors import ConfigError, ConfigFileError
from serving.config.text_proto import read_text_proto

_PLATFORM = "tensorflow"


@dataclass(frozen=True)
class Latest:
    """The `number` highest versions that load (`latest {}`)."""

    number: int = 1

    def selected(self, on_disk: Iterable[int]) -> list[int]:
        """Return the versions to load, highest first, until `limit` of them have loaded."""
        return sorted(on_disk, reverse=True)

    @property
    def limit(self) -> int | None:
        return self.number


@dataclass(frozen=True)
class Every:
    """Every version on disk (`all {}`)."""

    def selected(self, on_disk: Iterable[int]) -> list[int]:
        """Return the versions to load, highest first."""
        return sorted(on_disk, reverse=True)

    @property
    def limit(self) -> int | None:
        return None


@dataclass(frozen=True)
class Specific:
    """These versions only (`specific {}`)."""

    versions: frozenset[int]

    def selected(self, on_disk: Iterable[int]) -> list[int]:
        """Return the versions to load, highest first."""
        return sorted(self.versions.intersection(on_disk), reverse=True)

    @property
    def limit(self) -> int | None:
        return None


VersionPolicy = Latest | Every | Specific


@dataclass(frozen=True)
class ModelSettings:
    """Configuration of one model."""

    name: str
    """The model's name in requests."""
    base_path: Path
    """Folder that holds the numbered versions."""
    policy: VersionPolicy = field(default_factory=Latest)
    """Selects the versions to serve."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """Version number by label."""


def read_model_config_file(path: str | os.PathLike[str]) -> list[ModelSettings]:
    """Read the models of a model config file.

    Raises:
        ConfigFileError: the file cannot be read, is no ModelServerConfig, or TensorFlow Serving would reject it.
    """
    config = read_text_proto(path, model_server_config_pb2.ModelServerConfig())
    if config.WhichOneof("config") != "model_config_list":
        raise ConfigFileError(
            f"{path}: expected model_config_list {{ config {{ name: … base_path: … model_platform: "
            f'"{_PLATFORM}" }} }}, got no model_config_list'
        )
    try:
        return model_settings(config)
    except ConfigError as error:
        raise ConfigFileError(f"{path}: {error}") from error


def model_settings(config: model_server_config_pb2.ModelServerConfig) -> list[ModelSettings]:
    """Return the models of a ModelServerConfig with a model_config_list.

    Raises:
        ConfigError: TensorFlow Serving rejects it; the message is TensorFlow Serving's.
    """
    found: dict[str, ModelSettings] = {}
    for model in config.model_config_list.config:
        if model.name in found:
            raise ConfigError(f"Illegal to list model {model.name} multiple times in config list")
        if not os.path.isabs(model.base_path):
            raise ConfigError(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
                + (" (this server reads local folders only)" if "://" in model.base_path else "")
            )
        _check_platform(model)
        found[model.name] = ModelSettings(model.name, Path(model.base_path), _policy(model), dict(model.version_labels))
    return list(found.values())


def _check_platform(model: model_server_config_pb2.ModelConfig) -> None:
    if model.model_type:
        if model.model_platform:
            raise ConfigError(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and "
                f"ModelServerConfig::model_platform, model name is {model.name}"
            )
        if model.model_type == model_server_config_pb2.TENSORFLOW:
            return
        raise ConfigError(f"ModelServerConfig::model_type choice {model.model_type} not supported.")
    if not model.model_platform:
        raise ConfigError(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {model.name}; write "
            f'model_platform: "{_PLATFORM}"'
        )
    if model.model_platform != _PLATFORM:
        raise ConfigError(f"Model {model.name} requests unsupported platform {model.model_platform}")


def _policy(model: model_server_config_pb2.ModelConfig) -> VersionPolicy:
    policy = model.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return Every()
    if choice == "specific":
        if not policy.specific.versions:
            raise ConfigError(f"Model {model.name} has a specific version policy without versions; list at least one")
        return Specific(frozenset(policy.specific.versions))
    number = policy.latest.num_versions
    return Latest(number or 1)
