"""Lifecycle of versions: hot reload under load, corrupt and incomplete versions, rollback, warm-up, unloading."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import contract_model
import grpc
import pytest
import tensorflow as tf
from conftest import Stubs, push
from contract_model import predict_request
from tensorflow_serving.apis import get_model_status_pb2

from serving.api.prometheus import ServingMetrics
from serving.api.served_models import State
from serving.config.model_config import ModelSettings
from serving.server.model_server import ModelServer, NoLoadableVersionError
from serving.server.servable import Servable
from serving.server.servable_loader import ServableLoader
from serving.server.versions import ServableVersions

_POLL_S = 0.05


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


class _Live:
    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.stubs = Stubs(f"127.0.0.1:{server.port}")

    def states(self) -> dict[int, int]:
        return {each.version: each.state for each in self.statuses()}

    def statuses(self) -> list[Any]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "recommender"
        return list(self.stubs.model.GetModelStatus(request, timeout=30).model_version_status)

    def answering(self) -> int:
        response = self.stubs.prediction.Predict(predict_request("recommend", user_id=["1"]), timeout=30)
        return int(response.model_spec.version.value)

    def wait_for(self, states: dict[int, int], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while self.states() != states:
            assert time.monotonic() < deadline, f"{self.states()} did not become {states}"
            time.sleep(0.02)


@pytest.fixture
def serve(base: Path) -> Iterator[Callable[[], _Live]]:
    started: list[_Live] = []

    def start() -> _Live:
        server = ModelServer(base, port=0, rest_port=0, poll_interval_s=_POLL_S)
        server.start()
        server.wait_until_available(60)
        started.append(_Live(server))
        return started[-1]

    yield start
    for live in started:
        live.stubs.channel.close()
        live.server.stop()


def _corrupt(version: Path) -> None:
    (data,) = version.glob("variables/*.data*")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(bytes(content))


def test_hot_reload_under_load_fails_no_request_and_mixes_no_versions(
    base: Path, exported: Callable[..., Path], serve: Callable[[], _Live]
) -> None:
    versions = {1: 0.0, 2: 50_000.0, 3: 100_000.0}
    folders = {number: exported(marker=marker) for number, marker in versions.items()}
    push(folders[1], base, 1)
    live = serve()
    stop = threading.Event()
    answers: list[tuple[int, float, float]] = []
    failures: list[BaseException] = []

    def load() -> None:
        while not stop.is_set():
            try:
                response = live.stubs.prediction.Predict(predict_request("recommend", user_id=["1"]), timeout=30)
            except grpc.RpcError as error:
                failures.append(error)
                return
            scores = response.outputs["scores"].float_val
            answers.append((response.model_spec.version.value, scores[0], scores[-1]))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in (2, 3):
        push(folders[number], base, number)
        live.wait_for({**{old: State.END for old in range(1, number)}, number: State.AVAILABLE})
        time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert {version for version, _, _ in answers} == {1, 2, 3}
    for version, best, worst in answers:
        assert abs(best - versions[version]) < 1000 and abs(worst - versions[version]) < 1000
    assert len(answers) > 200


def test_corrupt_version_is_skipped_and_reported_while_the_old_one_serves(
    base: Path, exported: Callable[..., Path], serve: Callable[[], _Live], caplog: pytest.LogCaptureFixture
) -> None:
    push(exported(), base, 1)
    live = serve()
    bad = shutil.copytree(exported(), base.parent / "bad")
    _corrupt(bad)
    push(bad, base, 2)
    live.wait_for({2: State.END, 1: State.AVAILABLE})
    assert live.answering() == 1
    failed, good = live.statuses()
    assert (failed.version, good.status.error_code) == (2, 0)
    assert failed.status.error_code == grpc.StatusCode.DATA_LOSS.value[0]
    assert str(base / "2") in failed.status.error_message
    assert any("version 2 of model recommender skipped" in record.message for record in caplog.records)
    # Not retried at each poll, and the next version loads.
    loads = [record for record in caplog.records if record.message.startswith("version 2 of model recommender skipped")]
    time.sleep(5 * _POLL_S)
    assert len(loads) == 1
    push(exported(), base, 3)
    live.wait_for({3: State.AVAILABLE, 2: State.END, 1: State.END})
    assert live.answering() == 3


def test_incomplete_version_is_loaded_when_it_is_complete(
    base: Path, exported: Callable[..., Path], serve: Callable[[], _Live]
) -> None:
    push(exported(), base, 1)
    live = serve()
    source = exported(marker=50_000.0)
    half = base / "2"
    half.mkdir()
    (half / "assets").mkdir()
    time.sleep(4 * _POLL_S)
    assert live.states() == {1: State.AVAILABLE}, "a folder without saved_model.pb is not ready yet"
    shutil.copy(source / "saved_model.pb", half)
    live.wait_for({2: State.END, 1: State.AVAILABLE})
    shutil.copytree(source / "variables", half / "variables")
    live.wait_for({2: State.AVAILABLE, 1: State.END})
    assert live.answering() == 2


def test_at_start_the_highest_version_that_loads_is_served(
    base: Path, exported: Callable[..., Path], serve: Callable[[], _Live]
) -> None:
    push(exported(), base, 4)
    (base / "10").mkdir()
    (base / "10" / "saved_model.pb").write_bytes(b"junk")
    (base / "notes").mkdir()
    live = serve()
    assert live.answering() == 4
    assert live.states() == {10: State.END, 4: State.AVAILABLE}


def test_removing_the_latest_version_serves_the_previous_one(
    base: Path, exported: Callable[..., Path], serve: Callable[[], _Live]
) -> None:
    push(exported(), base, 1)
    push(exported(), base, 2)
    live = serve()
    assert live.answering() == 2
    (base / "2").rename(base / ".2-withdrawn")
    live.wait_for({2: State.END, 1: State.AVAILABLE})
    assert live.answering() == 1
    shutil.rmtree(base / "1")
    time.sleep(4 * _POLL_S)
    assert live.answering() == 1, "with nothing left on disk, the served version stays"


def test_version_with_a_failing_warm_up_request_is_not_served(
    base: Path, exported: Callable[..., Path], serve: Callable[[], _Live]
) -> None:
    push(exported(), base, 1)
    live = serve()
    cold = shutil.copytree(exported(), base.parent / "cold")
    contract_model.write_warmup(cold, [predict_request("recommend", user_id=[["wrong rank"]])])
    push(cold, base, 2)
    live.wait_for({2: State.END, 1: State.AVAILABLE})
    message = live.statuses()[0].status.error_message
    assert "Warmup request 1" in message and "user_id" in message


def test_too_many_warm_up_records_and_junk_are_rejected(base: Path, exported: Callable[..., Path]) -> None:
    load = ServableLoader(ServingMetrics())
    many = shutil.copytree(exported(), base / "1")
    contract_model.write_warmup(many, [predict_request("rate", user_id=["1"], item_id=["i1"])] * 1001)
    with pytest.raises(Exception, match="exceeds the maximum"):
        load("recommender", 1, many)
    (many / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"junk" * 100)
    with pytest.raises(Exception, match="TFRecord format"):
        load("recommender", 1, many)
    with tf.io.TFRecordWriter(str(many / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        writer.write(b"\xff not a log")
    with pytest.raises(Exception, match="Failed to parse warmup record: number 1"):
        load("recommender", 1, many)


class _SlowServable:
    """Fake servable whose requests take as long as the test needs."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.closed = False

    def close(self) -> None:
        self.closed = True


def test_old_version_is_unloaded_after_its_last_request(base: Path) -> None:
    made: dict[int, _SlowServable] = {}

    def loader(name: str, version: int, path: Path) -> Servable:
        made[version] = _SlowServable(version)
        return made[version]  # type: ignore[return-value]

    versions = ServableVersions(ModelSettings("m", base), loader)
    for number in (1, 2):
        (base / str(number)).mkdir()
        (base / str(number) / "saved_model.pb").touch()
        if number == 1:
            versions.poll()
            call = versions.servable()
            assert call.__enter__().version == 1
    versions.poll()
    with versions.servable() as latest:
        assert latest.version == 2
    (old,) = versions.statuses(1)
    assert old.state == State.UNLOADING and not made[1].closed
    call.__exit__(None, None, None)
    deadline = time.monotonic() + 10
    while versions.statuses(1)[0].state != State.END:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert made[1].closed and not made[2].closed
    versions.stop(5)
    assert made[2].closed


def test_statuses_of_ended_versions_do_not_grow_without_bound(base: Path) -> None:
    def loader(name: str, version: int, path: Path) -> Servable:
        raise ValueError("never loads")

    versions = ServableVersions(ModelSettings("m", base), loader)
    for number in itertools.count(1):
        (base / str(number)).mkdir()
        (base / str(number) / "saved_model.pb").touch()
        versions.poll()
        if number == 120:
            break
    statuses = versions.statuses()
    assert len(statuses) == 100
    assert statuses[0].version == 120
    assert statuses[0].error is not None and "never loads" in statuses[0].error.message


def test_waits_for_a_first_version(base: Path, exported: Callable[..., Path]) -> None:
    with ModelServer(base, port=0, rest_port=0, poll_interval_s=_POLL_S) as server:
        with pytest.raises(TimeoutError, match="expected folders named by a number"):
            server.wait_until_available(0.3)
        stubs = Stubs(f"127.0.0.1:{server.port}")
        with pytest.raises(grpc.RpcError) as failure:
            stubs.prediction.Predict(predict_request("recommend", user_id=["1"]), timeout=30)
        assert failure.value.code() is grpc.StatusCode.NOT_FOUND
        push(exported(), base, 7)
        assert server.wait_until_available(30) == 7
        assert stubs.prediction.Predict(predict_request("recommend", user_id=["1"]), timeout=30)
        stubs.channel.close()


def test_fail_fast_reports_why_no_version_loads(base: Path) -> None:
    (base / "3").mkdir()
    (base / "3" / "saved_model.pb").write_bytes(b"junk")
    with (
        ModelServer(base, port=0, rest_port=0) as server,
        pytest.raises(NoLoadableVersionError, match=r"version 3 is END: Loading SavedModel .*3 failed"),
    ):
        server.wait_until_available(30, fail_fast=True)


def test_stop_lets_a_running_request_finish(base: Path, exported: Callable[..., Path]) -> None:
    push(exported(), base, 1)
    server = ModelServer(base, port=0, rest_port=0)
    server.start()
    server.wait_until_available(60)
    stubs = Stubs(f"127.0.0.1:{server.port}")
    users = ["1"] * 5_000  # long enough to be running when the server stops
    call = stubs.prediction.Predict.future(predict_request("recommend", user_id=users), timeout=60)
    time.sleep(0.1)
    server.stop(grace=30)
    assert len(call.result().outputs["scores"].tensor_shape.dim) == 2
    with pytest.raises(grpc.RpcError) as failure:
        stubs.prediction.Predict(predict_request("recommend", user_id=["1"]), timeout=2)
    assert failure.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    stubs.channel.close()
