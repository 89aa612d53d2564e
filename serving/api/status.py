"""Errors as TensorFlow Serving reports them, on gRPC and REST: a canonical code and a message."""

from __future__ import annotations

import grpc

_MESSAGE_LIMIT = 1024  # TensorFlow Serving truncates messages here, so that they fit into HTTP/2 trailers
_CODES_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_HTTP_STATUS = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}


class ServingError(Exception):
    """A failed request or load.

    Attributes:
        code: canonical status code, as TensorFlow Serving's.
        message: starts with TensorFlow Serving's message, if it has one, followed by the details.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def number(self) -> int:
        """The code as a number of `tensorflow.error.Code`, which is gRPC's."""
        return int(self.code.value[0])

    @property
    def wire_message(self) -> str:
        """The message, truncated at TensorFlow Serving's limit."""
        if len(self.message) <= _MESSAGE_LIMIT:
            return self.message
        return self.message[:_MESSAGE_LIMIT] + "...TRUNCATED"

    @property
    def http_status(self) -> int:
        """The HTTP status of the code in TensorFlow Serving's REST API."""
        return _HTTP_STATUS.get(self.code, 500)


def invalid_argument(message: str) -> ServingError:
    """Make the error of an invalid request."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    """Make the error of a model or version that is not served."""
    return ServingError(grpc.StatusCode.NOT_FOUND, message)


def failed_precondition(message: str) -> ServingError:
    """Make the error of a request that the server's state does not allow."""
    return ServingError(grpc.StatusCode.FAILED_PRECONDITION, message)


def resource_exhausted(message: str) -> ServingError:
    """Make the error of exhausted time or memory."""
    return ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED, message)


def unavailable(message: str) -> ServingError:
    """Make the error of a valid request that a retry may answer."""
    return ServingError(grpc.StatusCode.UNAVAILABLE, message)


def code_from_number(number: int) -> grpc.StatusCode:
    """Convert a `tensorflow.error.Code`, as of a TensorFlow OpError, to gRPC's enum; UNKNOWN for other numbers."""
    return _CODES_BY_NUMBER.get(number, grpc.StatusCode.UNKNOWN)
