"""What can go wrong when asking a recommender. Every message names the server, the model, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence


class TandemClientError(Exception):
    """Base of this client's errors; raised itself for failures of the server that have no class of their own.

    Attributes:
        target: the server asked, `host:port`.
        model: the model's name.
        code: gRPC status name (`INTERNAL`, …) where the server answered one, else None.
    """

    def __init__(self, message: str, *, target: str, model: str, code: str | None = None) -> None:
        super().__init__(message)
        self.target = target
        self.model = model
        self.code = code


class ServerUnavailable(TandemClientError):
    """Nobody answered, after all retries."""


class DeadlineExceeded(TandemClientError):
    """No answer within the timeout."""


class ModelNotFound(TandemClientError):
    """The server does not serve this model, or not this version of it, or has no version under this label."""


class InvalidRequest(TandemClientError):
    """The request does not fit the model's signature; nothing was sent, or the server refused it."""


class SignatureMissing(InvalidRequest):
    """The model cannot be asked this: its version lacks the signature. Nothing was sent.

    Attributes:
        signature: the one needed.
        available: those the model has, sorted.
    """

    def __init__(self, message: str, *, target: str, model: str, signature: str, available: Sequence[str]) -> None:
        super().__init__(message, target=target, model=model)
        self.signature = signature
        self.available = tuple(available)
