"""The interface to the models that the API serves, and the states of their versions.

`core` and `health` use these protocols; `serving.server` implements them on SavedModels. So the API depends on no
TensorFlow session, and a test can serve anything that has these methods.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2

from serving.api.status import ServingError
from serving.config.model_config import ModelSettings

DEFAULT_SIGNATURE = "serving_default"
# Returns the seconds until the client's deadline; None for no deadline.
TimeRemaining = Callable[[], float | None]


class State(enum.IntEnum):
    """`ModelVersionStatus.State` of TensorFlow Serving's API."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """State of one version; `error` is the reason if the version ended because it failed to load."""

    version: int
    state: State
    error: ServingError | None = None


class Servable(Protocol):
    """One loaded version of a model."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def version(self) -> int:
        """The version's number."""

    @property
    def signature_defs(self) -> Mapping[str, meta_graph_pb2.SignatureDef]:
        """All signatures by name."""

    def predict(
        self, request: predict_pb2.PredictRequest, time_remaining: TimeRemaining | None = None
    ) -> predict_pb2.PredictResponse:
        """Run one signature."""


class ServableVersions(Protocol):
    """All versions of one model."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def base_path(self) -> Path:
        """The folder that holds the numbered versions."""

    def servable(self, version: int | None = None) -> AbstractContextManager[Servable]:
        """Hold this version, or the latest one, loaded for the length of the block.

        Raises:
            ServingError: NOT_FOUND, the version is not available.
        """

    def statuses(self, version: int | None = None) -> list[VersionStatus]:
        """Status of every version seen so far, newest first, or of this one.

        Raises:
            ServingError: NOT_FOUND, no such version was seen.
        """

    def available(self) -> list[int]:
        """Numbers of the available versions, ascending."""

    def start(self) -> None:
        """Start to follow the folder."""

    def reconfigure(self, settings: ModelSettings) -> None:
        """Apply another version policy or folder."""

    def stop(self, timeout: float) -> None:
        """Unload all versions; running requests get up to `timeout` seconds to finish."""

    def wait_until_polled(self, timeout: float | None = None) -> bool:
        """Wait until every version of the first poll was loaded or rejected; False after `timeout` seconds."""

    def wait_until_available(self, timeout: float | None = None) -> int | None:
        """Wait for an available version; its number, or None after `timeout` seconds."""

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until no request is running; False after `timeout` seconds."""
