"""After a push the run can wait until a server serves the new version; if it does not, the error has the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from components.pusher import availability
from components.pusher.availability import NotAvailable
from recipe.serving import WaitFor

States = Callable[[], dict[int, tuple[str, str]]]


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Reports the state and the error of each version that the test sets."""

    def __init__(self, states: States) -> None:
        self.states = states

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802  (gRPC's name)
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, (state, error) in self.states().items():
            found = response.model_version_status.add(
                version=version, state=get_model_status_pb2.ModelVersionStatus.State.Value(state)
            )
            found.status.error_message, found.status.error_code = error, 3 if error else 0
        if not response.model_version_status:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no versions of {request.model_spec.name}")
        return response


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "POLL_S", 0.05)


@pytest.fixture
def serve() -> Iterator[Callable[[States], str]]:
    servers = []

    def start(states: States) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(states), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(0)


def wait_for(target: str, timeout_s: float = 10.0) -> WaitFor:
    return WaitFor(target=target, model="shop", timeout_s=timeout_s)


def test_a_push_ends_when_the_server_has_the_version(
    push: Any, make_model: Any, serving_dir: Path, serve: Callable[[States], str]
) -> None:
    """A server that first does not know the version, then loads it, then serves it."""
    start = time.monotonic()

    def states() -> dict[int, tuple[str, str]]:
        found = [int(path.name) for path in serving_dir.glob("*") if path.name.isdigit()]
        state = "LOADING" if time.monotonic() < start + 1 else "AVAILABLE"
        return {1: ("AVAILABLE", "")} | {number: (state, "") for number in found}

    result = push(make_model("a"), wait_for=wait_for(serve(states)))
    assert result.pushed == 1 and time.monotonic() - start >= 1


def test_a_server_that_cannot_load_the_version_ends_the_wait_immediately(
    push: Any, make_model: Any, serving_dir: Path, serve: Callable[[States], str]
) -> None:
    def states() -> dict[int, tuple[str, str]]:
        return {int(path.name): ("END", "out of memory") for path in serving_dir.glob("*") if path.name.isdigit()}

    with pytest.raises(NotAvailable, match=r"out of memory.*stays pushed.*tandem rollback"):
        push(make_model("a"), wait_for=wait_for(serve(states), timeout_s=60))
    assert len(list(serving_dir.iterdir())) == 1


@pytest.mark.parametrize(
    ("states", "message"),
    [({1: ("AVAILABLE", "")}, "versions of the server: 1 AVAILABLE"), ({}, "request failed.*no versions")],
)
def test_a_server_that_never_has_it_ends_the_wait_in_time(
    push: Any, make_model: Any, serve: Callable[[States], str], states: dict[int, Any], message: str
) -> None:
    target = serve(lambda: states)
    with pytest.raises(
        NotAvailable, match=rf"{target} does not serve version \d+ of model 'shop' after 0.3 s; {message}"
    ):
        push(make_model("a"), wait_for=wait_for(target, timeout_s=0.3))


def test_an_address_without_a_server_ends_the_wait_in_time(push: Any, make_model: Any) -> None:
    with pytest.raises(NotAvailable, match=r"127.0.0.1:1 does not serve .*request failed.*serving.wait_for"):
        push(make_model("a"), wait_for=wait_for("127.0.0.1:1", timeout_s=0.5))


def test_old_versions_stay_until_the_new_one_is_served(push: Any, make_model: Any, serving_dir: Path) -> None:
    push(make_model("a"))
    with pytest.raises(NotAvailable):
        push(make_model("b"), keep_versions=1, wait_for=wait_for("127.0.0.1:1", timeout_s=0.3))
    assert len(list(serving_dir.iterdir())) == 2
    push(make_model("b"), keep_versions=1)
    assert len(list(serving_dir.iterdir())) == 1, "pushed already, so only the old one goes"
