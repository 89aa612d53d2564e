"""The gRPC part that both clients share: methods, options and credentials of the channel."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from tandem_client import serving_pb2 as pb
from tandem_client.tls import Tls

PREDICT = "/tensorflow.serving.PredictionService/Predict"
GET_MODEL_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
GET_MODEL_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_RESPONSES: dict[str, Any] = {
    PREDICT: pb.PredictResponse,
    GET_MODEL_METADATA: pb.GetModelMetadataResponse,
    GET_MODEL_STATUS: pb.GetModelStatusResponse,
}
MAX_RETRIES = 4  # gRPC makes at most five attempts, whatever its configuration
_LOOPBACK = ("127.", "localhost:", "[::1]:")


@dataclass(frozen=True)
class Connection:
    """Target, credentials and channel options. Nothing is connected before the first request."""

    target: str
    """Address of the gRPC port, `host:port`."""
    tls: Tls | None
    """TLS options; None for an unencrypted connection."""
    options: tuple[tuple[str, Any], ...]
    """Channel options of gRPC."""

    @classmethod
    def checked(cls, target: str, retries: int, tls: bool | Tls) -> Connection:
        """Check the arguments and make a connection of them.

        Raises:
            ValueError: a URL as target, more retries than gRPC makes, or `tls` is neither a bool nor a Tls.
        """
        if target.startswith(("http://", "https://")):
            raise ValueError(
                f"target: expected the gRPC port as host:port, such as 127.0.0.1:8500, got the URL {target!r}"
            )
        if not 0 <= retries <= MAX_RETRIES:
            raise ValueError(
                f"retries: expected 0 to {MAX_RETRIES}, got {retries!r} (gRPC makes at most five attempts)"
            )
        if not isinstance(tls, bool | Tls):
            raise ValueError(f"tls: expected True, False or tandem_client.Tls(…), got {tls!r}")
        options = Tls() if tls is True else tls or None
        return cls(target, options, tuple(_channel_options(target, retries, options)))

    def channel(self, library: Any) -> Any:
        """Open a channel; `library` is grpc or grpc.aio."""
        if self.tls is None:
            return library.insecure_channel(self.target, options=self.options)
        credentials = grpc.ssl_channel_credentials(
            self.tls.root_certificates, self.tls.private_key, self.tls.certificate_chain
        )
        return library.secure_channel(self.target, credentials, options=self.options)


def methods(channel: Any) -> Mapping[str, Callable[..., Any]]:
    """Return the channel's methods by name."""
    return {
        name: channel.unary_unary(name, request_serializer=_serialize, response_deserializer=response.FromString)
        for name, response in _RESPONSES.items()
    }


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _channel_options(target: str, retries: int, tls: Tls | None) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # A connection per client: without this, clients of one target share their reconnection backoff.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    if target.startswith(_LOOPBACK):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot reach this machine's loopback
    if retries:
        policy = {
            "maxAttempts": retries + 1,
            "initialBackoff": "0.2s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        options.append(("grpc.enable_retries", 1))
        options.append(("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})))
    else:
        options.append(("grpc.enable_retries", 0))
    return options
