"""Versions are pushed one after the other, some corrupt, while clients send requests, none of which may fail.

`make soak` runs it for five minutes with a push every 20 s; the suite for half a minute with one every 2 s.
"""

from __future__ import annotations

import dataclasses
import http.client
import itertools
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest
from conftest import Stubs, push
from contract_model import predict_request
from grpc_health.v1 import health_pb2
from tensorflow_serving.apis import get_model_status_pb2

# Scores of neighbouring versions are this far apart, so that a response that mixes two versions is detected.
_MARKERS = (1e5, 2e5, 3e5, 4e5)
_CORRUPT_EVERY = 4
_KEEP = 3  # versions that stay on disk, as with the Pusher's keep_versions
_STATUS = get_model_status_pb2.ModelVersionStatus


def _marker(version: int) -> float:
    return _MARKERS[version % len(_MARKERS)]


@dataclasses.dataclass
class _Seen:
    """Responses that the clients received, of all threads."""

    answers: Counter[int] = dataclasses.field(default_factory=Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)
    slowest_s: float = 0.0

    def answer(self, version: int, scores: list[float], seconds: float) -> None:
        self.answers[version] += 1
        self.slowest_s = max(self.slowest_s, seconds)
        if any(abs(score - _marker(version)) > 1000 for score in (scores[0], scores[len(scores) // 2], scores[-1])):
            self.wrong.append(f"version {version} answered {scores[0]}…{scores[-1]}")


def _corrupt(version: Path) -> None:
    (data,) = version.glob("variables/*.data*")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(bytes(content))


def _grpc_client(target: str, stop: threading.Event, seen: _Seen) -> None:
    stubs = Stubs(target)
    for number in itertools.count():
        if stop.is_set():
            break
        users = [str(number % 2 + 1)] * (1 + number % 3)
        started = time.monotonic()
        try:
            response = stubs.prediction.Predict(predict_request("recommend", user_id=users), timeout=30)
            health = stubs.health.Check(health_pb2.HealthCheckRequest(), timeout=30).status
        except grpc.RpcError as error:
            seen.wrong.append(f"{error.code()}: {error.details()}")
            continue
        if health != health_pb2.HealthCheckResponse.SERVING:
            seen.wrong.append(f"health {health}")
        scores = list(response.outputs["scores"].float_val)
        seen.answer(response.model_spec.version.value, scores, time.monotonic() - started)
    stubs.channel.close()


def _rest_client(target: str, stop: threading.Event, seen: _Seen) -> None:
    """Send REST requests. Their responses do not name the version: all scores must be of one version."""
    row = {"user_id": "1", "occupation": "", "timestamp": 0, "age": 0.0, "history": [""]}
    body = json.dumps({"signature_name": "recommend", "instances": [row]})
    connection = http.client.HTTPConnection(target, timeout=30)
    while not stop.is_set():
        connection.request("POST", "/v1/models/recommender:predict", body)
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            seen.wrong.append(f"REST {response.status}: {text[:200]!r}")
            continue
        scores = json.loads(text)["predictions"][0]["scores"]
        if len({round(score / 1e5) for score in scores}) != 1:
            seen.wrong.append(f"REST answered {scores[0]}…{scores[-1]}")
    connection.close()


def _states(stubs: Stubs) -> dict[int, int]:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "recommender"
    return {each.version: each.state for each in stubs.model.GetModelStatus(request, timeout=30).model_version_status}


def _wait_until_loaded_or_rejected(stubs: Stubs, version: int) -> None:
    """Wait until the version was loaded or rejected, which can take longer than the time between two pushes."""
    deadline = time.monotonic() + 60
    while _states(stubs).get(version) not in (_STATUS.AVAILABLE, _STATUS.END):
        assert time.monotonic() < deadline, f"version {version} was not loaded"
        time.sleep(0.05)


def _push_versions(
    base: Path,
    exported: Callable[..., Path],
    stubs: Stubs,
    stop: threading.Event,
    every_s: float,
    corrupt: set[int],
) -> int:
    """Push versions until `stop` is set; return the last number."""
    version = 1
    while not stop.wait(every_s):
        version += 1
        folder = exported(marker=_marker(version))
        if version % _CORRUPT_EVERY == 0:
            corrupt.add(version)
            bad = shutil.copytree(folder, base.parent / f"corrupt-{version}")
            _corrupt(bad)
            folder = bad
        push(folder, base, version)
        _wait_until_loaded_or_rejected(stubs, version)
        old = base / str(version - _KEEP)
        if old.exists():
            shutil.rmtree(old)
    return version


@pytest.mark.slow
def test_no_client_sees_a_failed_or_mixed_answer(
    request: pytest.FixtureRequest, tmp_path: Path, exported: Callable[..., Path]
) -> None:
    seconds: float = request.config.getoption("--soak-seconds")
    every_s: float = request.config.getoption("--soak-push-every")
    base = tmp_path / "model"
    base.mkdir()
    for marker in _MARKERS:
        exported(marker=marker)
    push(exported(marker=_marker(1)), base, 1)
    command = [sys.executable, "-m", "serving.server", "--model-dir", str(base), "--port", "0", "--rest-port", "0"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, "--poll-interval", "0.2"], stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        seen, stop, corrupt = _Seen(), threading.Event(), set[int]()
        clients = [threading.Thread(target=_grpc_client, args=(line["grpc"], stop, seen)) for _ in range(3)]
        clients.append(threading.Thread(target=_rest_client, args=(line["rest"], stop, seen)))
        for client in clients:
            client.start()
        memory = [psutil.Process(process.pid).memory_info().rss]
        pushing = threading.Event()
        timer = threading.Timer(seconds, pushing.set)
        timer.start()
        stubs = Stubs(line["grpc"])
        last = _push_versions(base, exported, stubs, pushing, every_s, corrupt)
        good = max(set(range(1, last + 1)) - corrupt)
        deadline = time.monotonic() + 30
        while seen.answers[good] < 20 and not seen.wrong:
            assert time.monotonic() < deadline, f"version {good} is not available: {seen.answers}"
            time.sleep(0.1)
        memory.append(psutil.Process(process.pid).memory_info().rss)
        stop.set()
        for client in clients:
            client.join()
        states = _states(stubs)
        stubs.channel.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    print(
        f"\nsoak: {seconds:.0f} s, {last} versions, {len(corrupt)} of them corrupt, {seen.answers.total()} answers, "
        f"slowest {seen.slowest_s * 1e3:.0f} ms, server memory {memory[0] >> 20} to {memory[1] >> 20} MiB"
    )
    assert not seen.wrong, seen.wrong[:5]
    assert corrupt and not corrupt & set(seen.answers)
    assert set(seen.answers) == set(range(1, last + 1)) - corrupt
    assert states[good] == _STATUS.AVAILABLE
    assert all(states[version] == _STATUS.END for version in corrupt)
