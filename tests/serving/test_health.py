"""The standard gRPC health service: of the server, its services and models; NOT_SERVING while the server drains."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import Stubs, push, rounds_for
from contract_model import predict_request
from grpc_health.v1 import health_pb2

from serving.config.server_options import ServerOptions
from serving.server.model_server import ModelServer

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICES = ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService", "PredictionService")


def _health(stubs: Stubs, service: str = "") -> int:
    return int(stubs.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status)


def _become(stubs: Stubs, states: dict[str, int], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while (found := {service: _health(stubs, service) for service in states}) != states:
        assert time.monotonic() < deadline, f"{found} did not become {states}"
        time.sleep(0.02)


def test_serving_when_a_version_is_available(tmp_path: Path, exported: Callable[..., Path]) -> None:
    with ModelServer(tmp_path, port=0, rest_port=0, poll_interval_s=0.05) as server:
        stubs = Stubs(f"127.0.0.1:{server.port}")
        assert {_health(stubs, service) for service in (*_SERVICES, "recommender")} == {_NOT_SERVING}
        with pytest.raises(grpc.RpcError) as failure:
            _health(stubs, "no.such.Service")
        assert failure.value.code() is grpc.StatusCode.NOT_FOUND
        watched = stubs.health.Watch(health_pb2.HealthCheckRequest(service="recommender"), timeout=60)
        assert next(watched).status == _NOT_SERVING
        push(exported(), tmp_path, 1)
        assert next(watched).status == _SERVING
        watched.cancel()
        _become(stubs, dict.fromkeys((*_SERVICES, "recommender"), _SERVING))
        stubs.channel.close()


def test_server_is_serving_when_every_model_is(tmp_path: Path, exported: Callable[..., Path]) -> None:
    file = tmp_path / "models.config"

    def configure(*names: str) -> None:
        entries = (
            f'config {{ name: "{name}" base_path: "{tmp_path / name}" model_platform: "tensorflow" }}' for name in names
        )
        file.write_text(f"model_config_list {{ {' '.join(entries)} }}")

    (tmp_path / "films").mkdir()
    push(exported(), tmp_path / "films", 1)
    configure("films", "books")
    options = ServerOptions(model_config_file=file, model_config_file_poll_wait_s=0.05)
    with ModelServer(port=0, rest_port=0, poll_interval_s=0.05, options=options) as server:
        stubs = Stubs(f"127.0.0.1:{server.port}")
        _become(stubs, {"": _NOT_SERVING, "films": _SERVING, "books": _NOT_SERVING})
        (tmp_path / "books").mkdir()
        push(exported(), tmp_path / "books", 1)
        _become(stubs, {"": _SERVING, "films": _SERVING, "books": _SERVING})
        configure("films")
        _become(stubs, {"": _SERVING, "films": _SERVING, "books": health_pb2.HealthCheckResponse.SERVICE_UNKNOWN})
        stubs.channel.close()


def test_not_serving_while_running_requests_finish(tmp_path: Path, spinning: Path) -> None:
    push(spinning, tmp_path, 1)
    server = ModelServer(tmp_path, port=0, rest_port=0)
    server.start()
    server.wait_until_available(60)
    stubs = Stubs(f"127.0.0.1:{server.port}")
    assert _health(stubs) == _SERVING
    rounds = rounds_for(stubs, 4.0)
    call = stubs.prediction.Predict.future(predict_request("spin", rounds=np.array([rounds], np.int64)), timeout=120)
    time.sleep(0.3)
    stopping = threading.Thread(target=server.stop, args=(60,))
    stopping.start()
    time.sleep(0.5)  # longer than every stopping server keeps answering
    assert [_health(stubs, service) for service in ("", "recommender")] == [_NOT_SERVING] * 2
    with pytest.raises(grpc.RpcError) as failure:
        stubs.prediction.Predict(predict_request("spin", rounds=np.array([1], np.int64)), timeout=30)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not call.done(), "the long request must still be running"
    assert call.result().outputs["done"].int64_val == [rounds]
    stopping.join()
    stubs.channel.close()
