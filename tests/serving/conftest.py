"""A model server with the contract model, in this process; or, with --target, the server to be tested.

`pytest tests/serving --target HOST:PORT --rest-target HOST:PORT` runs the contract tests (test_grpc_contract.py,
test_rest_contract.py, test_client.py) against a server that is running already, such as a real TensorFlow Serving that
serves the folder written by `python tests/serving/contract_model.py DIR` as the model `recommender`.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import contract_model
import recommender_model
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.server import ModelServer
from tandem_client import Recommender


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("serving")
    group.addoption("--target", default=None, help="gRPC host:port of a running server to test instead of our own")
    group.addoption("--rest-target", default=None, help="its REST host:port; without it, REST tests are skipped")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`exported(marker=…, items=…, history=…)`: a version folder, made once for each set of arguments.

    Copy it before you change it.
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


@pytest.fixture(scope="session")
def all_signatures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Target of a server whose model has every signature of the contract (see recommender_model.py)."""
    base = tmp_path_factory.mktemp("recommender")
    recommender_model.export(base / "1")
    with ModelServer(base, port=0, rest_port=0) as server:
        server.wait_until_available(60)
        yield f"127.0.0.1:{server.port}"


class Stubs:
    """tensorflow-serving-api's own stubs."""

    def __init__(self, target: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.insecure_channel(target, options=options)
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(self.channel)


@pytest.fixture(scope="session")
def stubs(target: str) -> Iterator[Stubs]:
    made = Stubs(target)
    yield made
    made.channel.close()


@pytest.fixture(scope="session")
def recommender(target: str) -> Iterator[Recommender]:
    with Recommender(target, timeout=30) as made:
        yield made


def push(version_folder: Path, base: Path, number: int) -> Path:
    """As the Pusher does it: the whole version under another name, then one rename."""
    scratch = base / f".pushing-{number}"
    shutil.copytree(version_folder, scratch)
    final = base / str(number)
    scratch.rename(final)
    return final
