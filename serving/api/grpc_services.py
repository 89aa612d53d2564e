"""TensorFlow Serving's gRPC services over a ServerCore."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.api.core import ServerCore
from serving.api.status import ServingError

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_ENTRYPOINT = "GRPC"
_logger = logging.getLogger(__name__)


def add_services(server: grpc.Server, core: ServerCore) -> None:
    """Register PredictionService and ModelService; call it before the server starts."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(core), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(core), server)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """tensorflow.serving.PredictionService; counts Predict, Classify and Regress, as TensorFlow Serving does."""

    def __init__(self, core: ServerCore) -> None:
        self._core = core

    def Predict(  # noqa: N802 - the method's name in the service
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        return self._counted("Predict", self._core.predict, request, context, context.time_remaining)

    def Classify(  # noqa: N802
        self, request: classification_pb2.ClassificationRequest, context: grpc.ServicerContext
    ) -> classification_pb2.ClassificationResponse:
        return self._counted("Classify", self._core.classify, request, context)

    def Regress(  # noqa: N802
        self, request: regression_pb2.RegressionRequest, context: grpc.ServicerContext
    ) -> regression_pb2.RegressionResponse:
        return self._counted("Regress", self._core.regress, request, context)

    def MultiInference(  # noqa: N802
        self, request: inference_pb2.MultiInferenceRequest, context: grpc.ServicerContext
    ) -> inference_pb2.MultiInferenceResponse:
        return _answered(self._core.multi_inference, request, context)

    def GetModelMetadata(  # noqa: N802
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        return _answered(self._core.get_model_metadata, request, context)

    def _counted(
        self, api: str, method: Callable[..., _Response], request: Any, context: grpc.ServicerContext, *more: Any
    ) -> _Response:
        started = time.perf_counter()
        code, result = _run(method, context, request, *more)
        elapsed = time.perf_counter() - started
        self._core.metrics.record_request(request.model_spec.name, api, _ENTRYPOINT, code, elapsed)
        return _respond(result, context)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """tensorflow.serving.ModelService."""

    def __init__(self, core: ServerCore) -> None:
        self._core = core

    def GetModelStatus(  # noqa: N802
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        return _answered(self._core.get_model_status, request, context)

    def HandleReloadConfigRequest(  # noqa: N802
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        return _answered(self._core.reload, request, context)


def _answered(method: Callable[[_Request], _Response], request: _Request, context: grpc.ServicerContext) -> _Response:
    return _respond(_run(method, context, request)[1], context)


def _run(
    method: Callable[..., _Response], context: grpc.ServicerContext, *arguments: Any
) -> tuple[grpc.StatusCode, _Response | ServingError]:
    if not context.is_active():  # the deadline passed in the queue
        failure = ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline exceeded before the request was started")
        return failure.code, failure
    try:
        return grpc.StatusCode.OK, method(*arguments)
    except ServingError as error:
        _logger.debug("%s failed: %s", type(arguments[0]).__name__, error.message)
        failure = error
    except Exception as error:
        _logger.exception("%s failed unexpectedly", type(arguments[0]).__name__)
        failure = ServingError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
    return failure.code, failure


def _respond(result: _Response | ServingError, context: grpc.ServicerContext) -> _Response:
    if not isinstance(result, ServingError):
        return result
    context.abort(result.code, result.wire_message)
    raise AssertionError("abort raises")
