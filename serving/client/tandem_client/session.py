"""The calls between client and server that execute a query, without a connection.

They are generators that yield the next call and receive its response or error. So the synchronous client and the one
for asyncio share them, and differ only in how they wait.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from tandem_client import serving_pb2 as pb
from tandem_client.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, ServerUnavailable, TandemClientError
from tandem_client.protocol import ModelRef
from tandem_client.queries import Query, Row
from tandem_client.results import VersionStatus
from tandem_client.signatures import ModelMetadata, read_metadata
from tandem_client.transport import GET_MODEL_METADATA, GET_MODEL_STATUS, PREDICT

# A server scores the whole catalogue for all rows of a request at once: 1 GB for 256 rows and a million items.
ROWS_PER_CALL = 256
# The default message limit of gRPC servers and proxies is 4 MiB.
_MESSAGE_BYTES = 4 << 20
# A version is usually served for longer than one batch takes.
_MAX_VERSIONS = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One gRPC call: `method` is one of transport.py's."""

    method: str
    request: Any


Steps = Generator[Call, Any, T]


class _VersionGone(Exception):
    """The version that answered the first part of a batch was unloaded; the batch starts again."""


class Session:
    """A client's model, its signatures and the calls of its queries. Thread-safe."""

    def __init__(self, ref: ModelRef, timeout: float, rows_per_call: int, *, encrypted: bool) -> None:
        """Make a session without signatures; the first query requests them.

        Raises:
            ValueError: a timeout or number of rows that is not above 0.
        """
        if isinstance(rows_per_call, bool) or not isinstance(rows_per_call, int) or rows_per_call < 1:
            raise ValueError(f"rows_per_call: expected an int above 0, got {rows_per_call!r}")
        self.ref = ref
        self._timeout = _positive(timeout)
        self._rows_per_call = rows_per_call
        self._encrypted = encrypted
        self._metadata: ModelMetadata | None = None

    def deadline(self, timeout: float | None) -> float:
        """Return the monotonic time at which a call that starts now ends.

        Raises:
            ValueError: a timeout that is not above 0.
        """
        return time.monotonic() + (self._timeout if timeout is None else _positive(timeout))

    def predict(self, query: Query[Row]) -> Steps[list[Row]]:
        """Return the query's results, one per row, all of one version of the model; an empty batch is only checked.

        The server may have loaded another version since its signatures were read. So a request that does not match the
        cached signatures, or that the server rejects, is checked against current ones before it is an error.
        """
        metadata = self._metadata
        fresh = metadata is None
        if metadata is None:
            metadata = yield from self.metadata()
        for _ in range(_MAX_VERSIONS):
            try:
                return (yield from self._results(query, metadata))
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
        raise self.ref.error(
            f"{_MAX_VERSIONS} versions were replaced, one after the other, before they answered all {query.rows} rows; "
            "request fewer rows at once"
        )

    def metadata(self) -> Steps[ModelMetadata]:
        """Request the model's signatures."""
        request = pb.GetModelMetadataRequest(model_spec=self.ref.model_spec(), metadata_field=["signature_def"])
        response = yield Call(GET_MODEL_METADATA, request)
        try:
            metadata = read_metadata(response)
        except KeyError as error:
            raise self.ref.error(
                "expected signatures in the server's metadata, got none; check that the target is TensorFlow Serving"
            ) from error
        self._metadata = metadata
        return metadata

    def status(self) -> Steps[list[VersionStatus]]:
        """Request the status of all versions, newest first."""
        response = yield Call(GET_MODEL_STATUS, pb.GetModelStatusRequest(model_spec=self.ref.model_spec()))
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
        """Return the error of a request on a closed client."""
        return self.ref.error("the client is closed; make a new one")

    def translated(self, error: grpc.RpcError) -> TandemClientError:
        """Return the client's error for gRPC's, with gRPC's as its cause."""
        ours = self._translated(error)
        ours.__cause__ = error
        return ours

    def _results(self, query: Query[Row], metadata: ModelMetadata) -> Steps[list[Row]]:
        """Send the query in parts.

        Raises:
            _VersionGone: the version that answered the first part of the rows was unloaded.
        """
        # All parts are checked before one is sent; an empty batch is only checked.
        parts = []
        for start in range(0, max(query.rows, 1), self._rows_per_call):
            rows = slice(start, min(start + self._rows_per_call, query.rows))
            parts += query.requests(metadata, rows, _MESSAGE_BYTES)
        results: list[Row] = []
        version = 0
        for request, rows in parts if query.rows else ():
            if version:
                request.model_spec.version.value = version
            try:
                response = yield Call(PREDICT, request)
            except ModelNotFound as error:
                if results and self.ref.version is None:
                    raise _VersionGone from error
                raise
            version = response.model_spec.version.value
            if version != metadata.version:
                self._metadata = None
            results += query.read(request.model_spec.signature_name, response, rows)
        return results

    def _translated(self, error: grpc.RpcError) -> TandemClientError:
        code: grpc.StatusCode = error.code()
        details = error.details() or "no details"
        ref, name = self.ref, code.name
        where: dict[str, Any] = {"target": ref.target, "model": ref.model, "code": name}
        if code is grpc.StatusCode.UNAVAILABLE:
            tls = (
                "compare the root certificates and the server's name with the server's certificate"
                if self._encrypted
                else "pass tls if the server uses TLS"
            )
            return ServerUnavailable(
                f"{ref}: the server does not answer ({details}); start a server there (`tandem serve`), or correct the "
                f"target: host and port of gRPC (default 8500), not of REST; {tls}",
                **where,
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"{ref}: timed out ({details}); pass a longer timeout (the client's is {self._timeout} s) or request "
                "fewer rows at once",
                **where,
            )
        # For TensorFlow Serving, an unassigned label is an invalid argument (its server_core.cc).
        no_label = code is grpc.StatusCode.INVALID_ARGUMENT and ref.label is not None and "version label" in details
        if code is grpc.StatusCode.NOT_FOUND or no_label:
            return ModelNotFound(
                f"{ref}: not served there ({details}); check the model's name, version and label (status() of a client "
                "without a version lists the versions)",
                **where,
            )
        if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
            return ref.invalid(
                f"the server rejected the request ({details}); signatures() lists the model's inputs", name
            )
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ref.error(
                f"the request exceeds the server's resources ({details}); request fewer rows or items, or pass a "
                f"smaller rows_per_call (now {self._rows_per_call})",
                name,
            )
        return ref.error(f"the server failed with {name} ({details}); see the server's log", name)


def _positive(timeout: float) -> float:
    if not timeout > 0:
        raise ValueError(f"timeout: expected seconds above 0, got {timeout!r}")
    return timeout
