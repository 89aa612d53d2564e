"""Fixtures: a model server with the contract model in this process, or the server given by --target.

`pytest tests/serving/test_grpc_contract.py tests/serving/test_rest_contract.py tests/serving/test_client.py
--target HOST:PORT --rest-target HOST:PORT` runs the contract tests against a running server, such as TensorFlow Serving
with the folder of `python tests/serving/contract_model.py DIR` as the model `recommender` (docs/server.md).
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parent))

import contract_model
import recommender_model
from grpc_health.v1 import health_pb2_grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.server.model_server import ModelServer
from tandem_client import Recommender


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("serving")
    group.addoption("--target", default=None, help="gRPC host:port of a running server to test instead of our own")
    group.addoption("--rest-target", default=None, help="its REST host:port; without it, REST tests are skipped")
    group.addoption("--soak-seconds", type=float, default=24.0, help="how long the soak test runs")
    group.addoption("--soak-push-every", type=float, default=2.0, help="seconds from one pushed version to the next")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`exported(marker=…, items=…, history=…)`: a version folder, made once per set of arguments.

    Copy it before changing it.
    """
    made: dict[tuple[object, ...], Path] = {}
    base = tmp_path_factory.mktemp("exported")

    def get(*, marker: float = 0.0, items: tuple[str, ...] = contract_model.ITEMS, history: bool = True) -> Path:
        key = (marker, items, history)
        if key not in made:
            made[key] = contract_model.export(base / str(len(made)), marker=marker, items=items, history=history)
        return made[key]

    return get


@pytest.fixture(scope="session")
def own_server(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    base = tmp_path_factory.mktemp("model")
    shutil.copytree(exported(), base / "1")
    with ModelServer(base, port=0, rest_port=0) as server:
        server.wait_until_available(60)
        yield server


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> str:
    given: str | None = request.config.getoption("--target", default=None)
    return given or f"127.0.0.1:{request.getfixturevalue('own_server').port}"


@pytest.fixture(scope="session")
def rest_target(request: pytest.FixtureRequest) -> str:
    given: str | None = request.config.getoption("--rest-target", default=None)
    if given:
        return given
    if request.config.getoption("--target", default=None):
        pytest.skip("--target without --rest-target")
    return f"127.0.0.1:{request.getfixturevalue('own_server').rest_port}"


@pytest.fixture
def embedded_only(request: pytest.FixtureRequest) -> None:
    """Skip a test of the embedded server's own messages and features with --target."""
    if request.config.getoption("--target", default=None):
        pytest.skip("about the embedded server")


@pytest.fixture(scope="session")
def all_signatures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Target of a server whose model has every signature (see recommender_model.py)."""
    base = tmp_path_factory.mktemp("recommender")
    recommender_model.export(base / "1")
    with ModelServer(base, port=0, rest_port=0) as server:
        server.wait_until_available(60)
        yield f"127.0.0.1:{server.port}"


class Stubs:
    """The stubs of tensorflow-serving-api."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        if credentials is None:
            self.channel = grpc.insecure_channel(target, options=options)
        else:
            self.channel = grpc.secure_channel(target, credentials, options=options)
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)


@pytest.fixture(scope="session")
def stubs(target: str) -> Iterator[Stubs]:
    made = Stubs(target)
    yield made
    made.channel.close()


@pytest.fixture(scope="session")
def recommender(target: str) -> Iterator[Recommender]:
    with Recommender(target, timeout=30) as made:
        yield made


@pytest.fixture(scope="session")
def spinning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version folder whose signature `spin` multiplies matrices `rounds` [B] times and returns [B]."""

    class Spinning(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, "rounds")])  # type: ignore[untyped-decorator]
        def spin(self, rounds: tf.Tensor) -> dict[str, tf.Tensor]:
            start = tf.ones([200, 200])
            _, product = tf.while_loop(
                lambda done, _: done < tf.reduce_max(rounds),
                lambda done, value: (done + 1, tf.tanh(tf.matmul(value, start))),
                (tf.constant(0, tf.int64), start),
            )
            return {"done": rounds + tf.cast(tf.reduce_max(product), tf.int64) * 0}

    module = Spinning()
    folder = tmp_path_factory.mktemp("spinning") / "1"
    tf.saved_model.save(module, str(folder), signatures={"spin": module.spin})
    return folder


def rounds_for(stubs: Stubs, seconds: float) -> int:
    """Return the number of rounds for which `spin` takes about this time on this machine."""
    started = time.monotonic()
    request = contract_model.predict_request("spin", rounds=np.array([300], np.int64))
    stubs.prediction.Predict(request, timeout=60)
    return max(1, round(300 * seconds / (time.monotonic() - started)))


def push(version_folder: Path, base: Path, number: int) -> Path:
    """Push as the Pusher does: write the version under a temporary name, then rename it."""
    scratch = base / f".pushing-{number}"
    shutil.copytree(version_folder, scratch)
    final = base / str(number)
    scratch.rename(final)
    return final
