"""The standard gRPC health service (grpc.health.v1): the server as a whole, its services, and each model by its name.

"" and the services are SERVING once every configured model answers; a model's name is, once that model does. All turn
NOT_SERVING when the server drains.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from serving.api.servables import ServableVersions

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
# The full names are what the protocol asks for, the short ones what TensorFlow Serving registers.
_SERVICES = (
    health.OVERALL_HEALTH,
    "tensorflow.serving.PredictionService",
    "tensorflow.serving.ModelService",
    "PredictionService",
    "ModelService",
)


class Health:
    """Keeps the health service's answers in step with the models."""

    def __init__(self) -> None:
        self._servicer = health.HealthServicer()
        self._models: Mapping[str, ServableVersions] = {}
        self._lock = threading.Lock()
        for service in _SERVICES:
            self._servicer.set(service, _NOT_SERVING)

    def add_to(self, server: grpc.Server) -> None:
        """Registers the service; call it before the server starts."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def follow(self, models: Mapping[str, ServableVersions]) -> None:
        """These are the models from now on, by their names."""
        with self._lock:
            for name in set(self._models) - set(models):
                self._servicer.set(name, _SERVICE_UNKNOWN)
            self._models = dict(models)
        self.update()

    def update(self) -> None:
        """Looks anew which models answer."""
        with self._lock:
            answering = {name: bool(versions.available()) for name, versions in self._models.items()}
            for name, answers in answering.items():
                self._servicer.set(name, _SERVING if answers else _NOT_SERVING)
            every = bool(answering) and all(answering.values())
            for service in _SERVICES:
                self._servicer.set(service, _SERVING if every else _NOT_SERVING)

    def drain(self) -> None:
        """Everything is NOT_SERVING from now on, whatever the models do."""
        self._servicer.enter_graceful_shutdown()
