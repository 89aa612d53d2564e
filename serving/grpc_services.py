"""TensorFlow Serving's gRPC services over a ServerCore. Methods not overridden here answer UNIMPLEMENTED."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.core import ServerCore
from serving.status import ServingError

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_logger = logging.getLogger(__name__)


def add_services(server: grpc.Server, core: ServerCore) -> None:
    """Registers PredictionService and ModelService; call it before the server starts."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(core), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(core), server)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """tensorflow.serving.PredictionService: Predict and GetModelMetadata."""

    def __init__(self, core: ServerCore) -> None:
        self._core = core

    def Predict(  # noqa: N802 - the method's name on the wire
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        return _answer(self._core.predict, request, context)

    def GetModelMetadata(  # noqa: N802
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        return _answer(self._core.get_model_metadata, request, context)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """tensorflow.serving.ModelService: GetModelStatus."""

    def __init__(self, core: ServerCore) -> None:
        self._core = core

    def GetModelStatus(  # noqa: N802
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        return _answer(self._core.get_model_status, request, context)


def _answer(method: Callable[[_Request], _Response], request: _Request, context: grpc.ServicerContext) -> _Response:
    if not context.is_active():  # the deadline passed in the queue: nobody waits for the answer
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline exceeded before the request was started")
    try:
        return method(request)
    except ServingError as error:
        _logger.debug("%s failed: %s", getattr(method, "__name__", method), error.message)
        failure = error
    except Exception as error:
        _logger.exception("%s failed unexpectedly", getattr(method, "__name__", method))
        failure = ServingError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
    context.abort(failure.code, failure.wire_message)
    raise AssertionError("abort raises")
