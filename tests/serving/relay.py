"""A gRPC server between a client and a model server: forwards calls byte by byte, keeps what it saw, and can interfere.

With it a test sees what the client sends and over which connection, and lets a server have TLS, labels, or a bad day.
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
    """A call as it came in."""

    method: str
    request: bytes
    peer: str
    seconds_left: float

    @property
    def predict(self) -> predict_pb2.PredictRequest:
        """The request of a Predict call."""
        return predict_pb2.PredictRequest.FromString(self.request)


class Relay(grpc.GenericRpcHandler):
    """Set `before` to change, delay or refuse requests: of the call and its context it makes what is forwarded."""

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
        """The Predict requests so far."""
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
    """A relay on a port of localhost, 0 for a free one; with TLS where credentials are given."""
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
