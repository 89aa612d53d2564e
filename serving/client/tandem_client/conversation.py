"""What is said between client and server to answer a question, without a connection.

The steps are generators that yield the next call and are sent its answer, or thrown its error. So the client with
asyncio and the one without share them, and differ in how they wait.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from tandem_client import serving_pb2 as pb
from tandem_client.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, ServerUnavailable, TandemClientError
from tandem_client.protocol import Asked
from tandem_client.questions import Question, Row
from tandem_client.results import VersionStatus
from tandem_client.signatures import ModelMetadata, read_metadata
from tandem_client.transport import GET_MODEL_METADATA, GET_MODEL_STATUS, PREDICT

# A server scores the whole catalogue for all rows of a call at once: a million items are 1 GB for so many rows.
ROWS_PER_CALL = 256
# What gRPC servers and proxies take unless told otherwise is 4 MiB.
_MESSAGE_BYTES = 4 << 20
# A version is never in use for as short as it takes to answer one batch; where it is, this is often enough.
_VERSIONS_TRIED = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One gRPC call: `method` is one of transport.py's."""

    method: str
    request: Any


Steps = Generator[Call, Any, T]


class _VersionGone(Exception):
    """A batch has to be asked again: its first part was answered by a version that has been unloaded since."""


class Conversation:
    """What a client knows of its model, and its questions to the server. Safe in any number of threads."""

    def __init__(self, asked: Asked, timeout: float, rows_per_call: int, *, encrypted: bool) -> None:
        """Raises:
        ValueError: a timeout or number of rows that is not above 0.
        """
        if isinstance(rows_per_call, bool) or not isinstance(rows_per_call, int) or rows_per_call < 1:
            raise ValueError(f"rows_per_call is {rows_per_call!r}; pass an int above 0")
        self.asked = asked
        self._timeout = _positive(timeout)
        self._rows_per_call = rows_per_call
        self._encrypted = encrypted
        self._metadata: ModelMetadata | None = None

    def deadline(self, timeout: float | None) -> float:
        """When a call that starts now has to end, on the monotonic clock.

        Raises:
            ValueError: a timeout that is not above 0.
        """
        return time.monotonic() + (self._timeout if timeout is None else _positive(timeout))

    def ask(self, question: Question[Row]) -> Steps[list[Row]]:
        """The question's results, one a row, all of them by one version of the model; an empty batch is only checked.

        The server may have loaded another version since its signatures were read. So what does not fit the remembered
        ones, or is refused by the server, is checked against fresh ones before it is called an error.
        """
        metadata = self._metadata
        fresh = metadata is None
        if metadata is None:
            metadata = yield from self.metadata()
        for _ in range(_VERSIONS_TRIED):
            try:
                return (yield from self._answers(question, metadata))
            except _VersionGone:
                metadata = yield from self.metadata()
                fresh = True
            except (InvalidRequest, ModelNotFound):
                if fresh:
                    raise
                current = yield from self.metadata()
                if current.signatures == metadata.signatures:
                    raise
                metadata = current
                fresh = True
        raise self.asked.error(
            f"{_VERSIONS_TRIED} versions in turn were replaced before they had answered all of {question.rows} rows; "
            "ask for fewer rows at once"
        )

    def metadata(self) -> Steps[ModelMetadata]:
        """The model's signatures, asked for anew."""
        request = pb.GetModelMetadataRequest(model_spec=self.asked.model_spec(), metadata_field=["signature_def"])
        response = yield Call(GET_MODEL_METADATA, request)
        try:
            metadata = read_metadata(response)
        except KeyError as error:
            raise self.asked.error("the server's metadata holds no signatures; is it TensorFlow Serving?") from error
        self._metadata = metadata
        return metadata

    def status(self) -> Steps[list[VersionStatus]]:
        """The versions that the server knows, newest first."""
        response = yield Call(GET_MODEL_STATUS, pb.GetModelStatusRequest(model_spec=self.asked.model_spec()))
        statuses = [
            VersionStatus(
                version=each.version,
                state=pb.ModelVersionStatus.State.Name(each.state),
                error_code=each.status.error_code,
                error_message=each.status.error_message,
            )
            for each in response.model_version_status
        ]
        return sorted(statuses, key=lambda each: each.version, reverse=True)

    def closed(self) -> TandemClientError:
        """What asking a closed client is."""
        return self.asked.error("the client was closed, make a new one")

    def translated(self, error: grpc.RpcError) -> TandemClientError:
        """gRPC's error as the cause of one of ours, which says what to do."""
        ours = self._translated(error)
        ours.__cause__ = error
        return ours

    def _answers(self, question: Question[Row], metadata: ModelMetadata) -> Steps[list[Row]]:
        """Raises:
        _VersionGone: the version that answered the first part of the rows is not there for a later one.
        """
        # Everything is checked before anything is sent; of an empty batch there is only that.
        parts = []
        for start in range(0, max(question.rows, 1), self._rows_per_call):
            rows = slice(start, min(start + self._rows_per_call, question.rows))
            parts += question.requests(metadata, rows, _MESSAGE_BYTES)
        answers: list[Row] = []
        version = 0
        for request, rows in parts if question.rows else ():
            if version:
                request.model_spec.version.value = version
            try:
                response = yield Call(PREDICT, request)
            except ModelNotFound as error:
                if answers and self.asked.version is None:
                    raise _VersionGone from error
                raise
            version = response.model_spec.version.value
            if version != metadata.version:
                self._metadata = None
            answers += question.read(request.model_spec.signature_name, response, rows)
        return answers

    def _translated(self, error: grpc.RpcError) -> TandemClientError:
        code: grpc.StatusCode = error.code()
        details = error.details() or "no details"
        asked, name = self.asked, code.name
        where: dict[str, Any] = {"target": asked.target, "model": asked.model, "code": name}
        if code is grpc.StatusCode.UNAVAILABLE:
            tls = (
                "compare the root certificates and the server's name with the server's certificate"
                if self._encrypted
                else "pass tls where the server wants TLS"
            )
            return ServerUnavailable(
                f"{asked}: nobody answers ({details}); start a server there (`tandem serve`), or correct the "
                f"target: host and port of gRPC (8500 unless set otherwise), not of REST; {tls}",
                **where,
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"{asked}: no answer in time ({details}); pass a longer timeout (the client's is "
                f"{self._timeout} s) or ask for fewer rows at once",
                **where,
            )
        # TensorFlow Serving calls a label that nobody assigned an invalid argument (its server_core.cc).
        no_label = code is grpc.StatusCode.INVALID_ARGUMENT and asked.label is not None and "version label" in details
        if code is grpc.StatusCode.NOT_FOUND or no_label:
            return ModelNotFound(
                f"{asked}: not served there ({details}); check the model's name, and its versions and labels "
                "(status() of a client without a version tells the versions)",
                **where,
            )
        if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
            return asked.invalid(
                f"the server refused the request ({details}); signatures() tells what the model takes", name
            )
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return asked.error(
                f"too much at once for the server ({details}); ask for fewer rows or items, or pass a smaller "
                f"rows_per_call (it is {self._rows_per_call})",
                name,
            )
        return asked.error(f"the server failed with {name} ({details}); its log says more", name)


def _positive(timeout: float) -> float:
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout!r}; pass seconds above 0")
    return timeout
