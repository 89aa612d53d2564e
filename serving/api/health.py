"""The standard gRPC health service (grpc.health.v1) for the server, its services and each model by name.

"" and the services are SERVING when every configured model has an available version, and a model's name when that model
has one. All are NOT_SERVING while the server drains.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from serving.api.served_models import ServableVersions

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
# The protocol specifies the full names; TensorFlow Serving registers the short ones.
_SERVICES = (
    health.OVERALL_HEALTH,
    "tensorflow.serving.PredictionService",
    "tensorflow.serving.ModelService",
    "PredictionService",
    "ModelService",
)


class Health:
    """Health service that reports the state of the models."""

    def __init__(self) -> None:
        self._servicer = health.HealthServicer()
        self._models: Mapping[str, ServableVersions] = {}
        self._lock = threading.Lock()
        for service in _SERVICES:
            self._servicer.set(service, _NOT_SERVING)

    def add_to(self, server: grpc.Server) -> None:
        """Register the service; call it before the server starts."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def follow(self, models: Mapping[str, ServableVersions]) -> None:
        """Set the models to report, by name."""
        with self._lock:
            for name in set(self._models) - set(models):
                self._servicer.set(name, _SERVICE_UNKNOWN)
            self._models = dict(models)
        self.update()

    def update(self) -> None:
        """Update the reported states from the models."""
        with self._lock:
            available = {name: bool(versions.available()) for name, versions in self._models.items()}
            for name, is_available in available.items():
                self._servicer.set(name, _SERVING if is_available else _NOT_SERVING)
            every = bool(available) and all(available.values())
            for service in _SERVICES:
                self._servicer.set(service, _SERVING if every else _NOT_SERVING)

    def drain(self) -> None:
        """Report NOT_SERVING for everything from now on."""
        self._servicer.enter_graceful_shutdown()
