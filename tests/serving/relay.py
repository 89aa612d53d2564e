"""A gRPC server between a client and a model server that forwards and records requests, and can change them.

With it a test sees the client's requests and connections, and gives a server TLS, labels or errors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from tensorflow_serving.apis import predict_pb2


@dataclass(frozen=True)
class Seen:
    """A received request."""

    method: str
    request: bytes
    peer: str
    seconds_left: float

    @property
    def predict(self) -> predict_pb2.PredictRequest:
        """Return the PredictRequest."""
        return predict_pb2.PredictRequest.FromString(self.request)


class Relay(grpc.GenericRpcHandler):
    """Forwards requests. Set `before`, which returns the request to forward, to change, delay or reject requests."""

    def __init__(self, target: str) -> None:
        self.channel = grpc.insecure_channel(target, options=[("grpc.max_receive_message_length", -1)])
        self.calls: list[Seen] = []
        self.before: Callable[[Seen, grpc.ServicerContext], bytes] = lambda seen, _: seen.request
        self.port = 0
        self._lock = threading.Lock()

    @property
    def target(self) -> str:
        return f"localhost:{self.port}"

    @property
    def predicts(self) -> list[predict_pb2.PredictRequest]:
        """Return the Predict requests so far."""
        return [each.predict for each in self.calls if each.method.endswith("/Predict")]

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        forward = self.channel.unary_unary(details.method)

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            seen = Seen(details.method, request, context.peer(), context.time_remaining())
            with self._lock:
                self.calls.append(seen)
            try:
                answer: bytes = forward(self.before(seen, context), timeout=30)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
                raise
            return answer

        return grpc.unary_unary_rpc_method_handler(handle)


@contextmanager
def relayed(target: str, credentials: grpc.ServerCredentials | None = None, port: int = 0) -> Iterator[Relay]:
    """Run a relay on a port of localhost, 0 for a free one; with TLS if credentials are given."""
    relay = Relay(target)
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[relay], options=[("grpc.so_reuseport", 0)])
    address = f"localhost:{port}"
    relay.port = (
        server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    )
    server.start()
    try:
        yield relay
    finally:
        server.stop(0).wait()
        relay.channel.close()
