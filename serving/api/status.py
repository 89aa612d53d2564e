"""Failures as TensorFlow Serving reports them: a canonical code and a message, on gRPC and on REST alike."""

from __future__ import annotations

import grpc

_MESSAGE_LIMIT = 1024  # TensorFlow Serving cuts messages here, so that they fit into HTTP/2 trailers
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
    """A request or a load that failed.

    Attributes:
        code: canonical status code, the one TensorFlow Serving answers in the same situation.
        message: begins with TensorFlow Serving's own wording, where it has one, and goes on with found and wanted.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def number(self) -> int:
        """The code as the number in `tensorflow.error.Code` (the same as gRPC's)."""
        return int(self.code.value[0])

    @property
    def wire_message(self) -> str:
        """The message, cut at TensorFlow Serving's limit."""
        if len(self.message) <= _MESSAGE_LIMIT:
            return self.message
        return self.message[:_MESSAGE_LIMIT] + "...TRUNCATED"

    @property
    def http_status(self) -> int:
        """The HTTP status that TensorFlow Serving's REST API gives this code."""
        return _HTTP_STATUS.get(self.code, 500)


def invalid_argument(message: str) -> ServingError:
    """The request is at fault."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    """The model or the version is not served here."""
    return ServingError(grpc.StatusCode.NOT_FOUND, message)


def failed_precondition(message: str) -> ServingError:
    """The server is not in a state in which it can do this."""
    return ServingError(grpc.StatusCode.FAILED_PRECONDITION, message)


def resource_exhausted(message: str) -> ServingError:
    """The time or the room for it ran out."""
    return ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED, message)


def unavailable(message: str) -> ServingError:
    """Nothing is wrong with the request; another try may be answered."""
    return ServingError(grpc.StatusCode.UNAVAILABLE, message)


def code_from_number(number: int) -> grpc.StatusCode:
    """`tensorflow.error.Code` (as on a TensorFlow OpError) to gRPC's enum; UNKNOWN for a number outside it."""
    return _CODES_BY_NUMBER.get(number, grpc.StatusCode.UNKNOWN)
