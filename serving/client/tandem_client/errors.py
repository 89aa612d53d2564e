"""The client's errors. Every message names the server, the model and the remedy."""

from __future__ import annotations

from collections.abc import Sequence


class TandemClientError(Exception):
    """Base class of the client's errors; raised itself for server errors without a class of their own.

    Attributes:
        target: the server, `host:port`.
        model: the model's name.
        code: gRPC status name (`INTERNAL`, …) if the server sent one, else None.
    """

    def __init__(self, message: str, *, target: str, model: str, code: str | None = None) -> None:
        super().__init__(message)
        self.target = target
        self.model = model
        self.code = code


class ServerUnavailable(TandemClientError):
    """The server did not answer, after all retries."""


class DeadlineExceeded(TandemClientError):
    """No response within the timeout."""


class ModelNotFound(TandemClientError):
    """The server does not serve this model, this version of it, or a version with this label."""


class InvalidRequest(TandemClientError):
    """The request does not match the model's signature: nothing was sent, or the server rejected it."""


class SignatureMissing(InvalidRequest):
    """The served version lacks the signature. Nothing was sent.

    Attributes:
        signature: the missing signature.
        available: the model's signatures, sorted.
    """

    def __init__(self, message: str, *, target: str, model: str, signature: str, available: Sequence[str]) -> None:
        super().__init__(message, target=target, model=model)
        self.signature = signature
        self.available = tuple(available)
