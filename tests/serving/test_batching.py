"""Request batching: merged along dimension 0 and split again; TensorFlow Serving's parameters file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from conftest import Stubs, push, rounds_for
from contract_model import predict_request
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.api.prometheus import ServingMetrics
from serving.api.status import ServingError
from serving.config.batching_parameters import BatchingParameters
from serving.config.errors import ConfigFileError
from serving.config.server_options import ServerOptions
from serving.server.batching import Batcher
from serving.server.model_server import ModelServer, ServerStartError

_PARAMETERS = """
max_batch_size { value: 64 }
batch_timeout_micros { value: 20000 }
max_enqueued_batches { value: 1000 }
num_batch_threads { value: 2 }
"""


class _Recorder:
    """Fake signature `row -> 10 * row + scalar` that records its inputs."""

    def __init__(self, *, fails_on: float | None = None) -> None:
        self.runs: list[list[np.ndarray[Any, Any]]] = []
        self._fails_on = fails_on
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, *feeds: Any) -> Sequence[Any]:
        self.gate.wait(30)
        self.runs.append(list(feeds))
        values = feeds[0]
        if self._fails_on is not None and (values == self._fails_on).any():
            raise tf.errors.InvalidArgumentError(None, None, f"{self._fails_on} is rejected")
        offset = feeds[1] if len(feeds) > 1 and not feeds[1].ndim else 0
        texts = np.array([str(each).encode() for each in values.ravel()], object)
        return [values * 10 + offset, texts.reshape(values.shape)]


def _together(batcher: Batcher, recorder: _Recorder, requests: list[list[Any]], **run: Any) -> list[Any]:
    """Send the requests concurrently; return the response or the error of each."""
    queue = batcher.queue(recorder)

    def send(feeds: list[Any]) -> Any:
        try:
            return queue.run([np.asarray(feed) for feed in feeds], **run)
        except (ServingError, tf.errors.OpError) as error:
            return error

    with futures.ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(send, requests))


def _batcher(metrics: ServingMetrics | None = None, **parameters: Any) -> Batcher:
    given_or_default = {"max_batch_size": 64, "batch_timeout_s": 0.1, "max_enqueued_batches": 1000, **parameters}
    return Batcher(BatchingParameters(**given_or_default), metrics or ServingMetrics())


def test_concurrent_requests_are_one_run_and_each_gets_its_own_rows() -> None:
    recorder = _Recorder()
    metrics = ServingMetrics()
    requests = [[np.arange(rows) + 100 * rows] for rows in (1, 2, 3, 4)]
    answers = _together(_batcher(metrics), recorder, requests)
    assert [len(run[0]) for run in recorder.runs] == [10]
    for (sent,), (numbers, texts) in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(numbers, sent * 10)
        assert texts.tolist() == [str(each).encode() for each in sent]
    assert metrics.wrapped_run_count.value() == 1
    page = metrics.page()
    assert ":tensorflow:serving:batching_session:processed_batch_size_sum{} 10.0" in page
    assert ":tensorflow:serving:batching_session:input_batch_size_count{} 4" in page


def test_batch_runs_as_soon_as_it_is_full() -> None:
    recorder = _Recorder()
    started = time.monotonic()
    answers = _together(_batcher(max_batch_size=4, batch_timeout_s=20.0), recorder, [[[n, n]] for n in range(4)])
    assert time.monotonic() - started < 10
    assert [len(run[0]) for run in recorder.runs] == [4, 4]
    assert [answer[0].tolist() for answer in answers] == [[10 * n, 10 * n] for n in range(4)]


def test_scalars_of_different_value_are_never_merged() -> None:
    recorder = _Recorder()
    answers = _together(_batcher(), recorder, [[[n], np.int32(n % 2)] for n in range(6)])
    assert [answer[0].tolist() for answer in answers] == [[10 * n + n % 2] for n in range(6)]
    assert sorted(len(run[0]) for run in recorder.runs) == [3, 3]


@pytest.mark.parametrize("requests", [[[[], []]], [[[1, 2], [[5]]]], [[np.int32(7)]], [[]]])
def test_requests_without_common_rows_run_separately(requests: list[list[Any]]) -> None:
    """An empty batch, an input of one row for all, scalars only: TensorFlow Serving rejects these with batching."""
    ran: list[int] = []

    def executor(*feeds: Any) -> Sequence[Any]:
        ran.append(len(feeds))
        return ["answer"]

    batcher = _batcher()
    assert batcher.queue(executor).run([np.asarray(feed) for feed in requests[0]]) == ["answer"]
    assert ran == [len(requests[0])]


def test_other_shapes_behind_the_rows_are_not_merged_without_padding() -> None:
    recorder = _Recorder()
    answers = _together(_batcher(), recorder, [[np.ones((1, 2))], [np.ones((1, 3))], [np.ones((2, 2))]])
    assert sorted(run[0].shape for run in recorder.runs) == [(1, 3), (3, 2)]
    assert [answer[0].shape for answer in answers] == [(1, 2), (1, 3), (2, 2)]


def test_padding_repeats_each_requests_first_element() -> None:
    recorder = _Recorder()
    requests = [[np.array([[1, 2]])], [np.array([[3], [4]])]]
    _together(_batcher(pad_variable_length_inputs=True), recorder, requests)
    (run,) = recorder.runs
    assert sorted(map(tuple, run[0].tolist())) == [(1, 2), (3, 3), (4, 3)]


def test_batches_are_filled_up_to_an_allowed_size() -> None:
    recorder = _Recorder()
    metrics = ServingMetrics()
    answers = _together(_batcher(metrics, allowed_batch_sizes=(2, 8, 64)), recorder, [[[5]], [[6, 7]]])
    assert [len(run[0]) for run in recorder.runs] == [8]
    assert sorted(len(answer[0]) for answer in answers) == [1, 2]
    assert ':tensorflow:serving:batching_session:padding_size_sum{execution_batch_size="8"} 5.0' in metrics.page()


def test_failing_row_fails_its_own_request_only() -> None:
    recorder = _Recorder(fails_on=3)
    answers = _together(_batcher(), recorder, [[[n]] for n in range(5)])
    assert isinstance(answers.pop(3), tf.errors.InvalidArgumentError)
    assert [answer[0].tolist() for answer in answers] == [[0], [10], [20], [40]]
    assert len(recorder.runs) == 6


def test_more_rows_than_max_batch_size_are_rejected() -> None:
    with pytest.raises(ServingError, match="Task size 65 is larger than maximum input batch size 64") as failure:
        _batcher().queue(_Recorder()).run([np.arange(65)])
    assert failure.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_full_queue_rejects_requests() -> None:
    recorder = _Recorder()
    recorder.gate.clear()
    batcher = _batcher(max_batch_size=1, max_enqueued_batches=2, num_batch_threads=1)
    queue = batcher.queue(recorder)
    with futures.ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(queue.run, [np.array([0])])]
        time.sleep(0.2)  # the only batch thread runs it
        calls += [pool.submit(queue.run, [np.array([n])]) for n in (1, 2)]
        time.sleep(0.2)
        with pytest.raises(ServingError, match="currently 2 batches enqueued and max_enqueued_batches is 2") as failure:
            queue.run([np.array([3])])
        recorder.gate.set()
        assert [call.result(30)[0].tolist() for call in calls] == [[0], [10], [20]]
    assert failure.value.code is grpc.StatusCode.UNAVAILABLE


def test_request_whose_deadline_passed_in_the_queue_is_not_run() -> None:
    recorder = _Recorder()
    (answer,) = _together(_batcher(), recorder, [[[1]]], deadline=time.monotonic() + 0.01)
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer.message == "Run() timeout exceeded while waiting in batching queue"
    assert recorder.runs == []


def test_stopped_batcher_rejects_new_requests_and_finishes_its_queue() -> None:
    recorder = _Recorder()
    batcher = _batcher(batch_timeout_s=60.0)
    queue = batcher.queue(recorder)
    with futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(queue.run, [np.array([4])])
        time.sleep(0.1)
        batcher.stop()
        assert call.result(10)[0].tolist() == [40]
    with pytest.raises(ServingError, match="shutting down"):
        queue.run([np.array([5])])


_REQUESTS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 3), st.integers(0, 2)), min_size=1, max_size=12
)  # rows, width, scalar


@settings(max_examples=60, deadline=None)
@given(_REQUESTS, st.integers(9, 20), st.booleans(), st.sampled_from([0.0, 0.01]))
def test_batched_request_gets_the_response_of_a_single_one(
    requests: list[tuple[int, int, int]], size: int, padded: bool, timeout: float
) -> None:
    allowed = (5, size) if padded else ()
    batcher = _batcher(max_batch_size=size, allowed_batch_sizes=allowed, batch_timeout_s=timeout, num_batch_threads=2)
    feeds = [
        [np.arange(rows * width).reshape(rows, width) + 1000 * position, np.int64(scalar)]
        for position, (rows, width, scalar) in enumerate(requests)
    ]
    recorder = _Recorder()
    answers = _together(batcher, recorder, feeds)
    batcher.stop()
    for (values, scalar), answer in zip(feeds, answers, strict=True):
        np.testing.assert_array_equal(answer[0], values * 10 + scalar)
        assert answer[1].shape == values.shape
    assert all(len(run[0]) <= size for run in recorder.runs)


# -- the parameters file ----------------------------------------------------------------------------------------------


def test_parameters_file_and_its_defaults(tmp_path: Path) -> None:
    file = tmp_path / "batching.config"
    file.write_text(
        _PARAMETERS + 'thread_pool_name { value: "pool" } allowed_batch_sizes: 8 allowed_batch_sizes: 64\n'
        "pad_variable_length_inputs: true"
    )
    assert BatchingParameters.read(file) == BatchingParameters(64, 0.02, 1000, 2, (8, 64), True, "pool")
    file.write_text("")
    found = BatchingParameters.read(file)
    assert (found.max_batch_size, found.batch_timeout_s, found.max_enqueued_batches) == (1000, 0.0, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size must be positive; was 0"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be non-negative; was -1"),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
        ("max_enqueued_batches { value: 0 }", "max_enqueued_batches must be positive; was 0"),
        (
            "max_batch_size { value: 64 } allowed_batch_sizes: 32",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 32; expected 64",
        ),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 9 allowed_batch_sizes: 8",
            "allowed_batch_sizes entries must be monotonically increasing",
        ),
        ("enable_large_batch_splitting { value: true }", "are not supported by this server; raise max_batch_size"),
        ("max_batch_size: 64", "batching.config:1: "),
        ("\nmax_batch_sise { value: 64 }", "batching.config:2: "),
    ],
)
def test_wrong_parameters_are_rejected(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "batching.config"
    file.write_text(text)
    with pytest.raises(ConfigFileError) as failure:
        BatchingParameters.read(file)
    assert message in str(failure.value) and str(file) in str(failure.value)


def test_parameters_file_without_batching_is_rejected(tmp_path: Path) -> None:
    options = ServerOptions(batching_parameters_file=tmp_path / "batching.config")
    with pytest.raises(ServerStartError, match="add --enable-batching"):
        ModelServer(tmp_path, port=0, rest_port=0, options=options).start()


# -- over sockets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def batching(tmp_path: Path, exported: Callable[..., Path]) -> Any:
    (tmp_path / "model").mkdir()
    push(exported(), tmp_path / "model", 1)
    file = tmp_path / "batching.config"
    file.write_text(_PARAMETERS)
    options = ServerOptions(enable_batching=True, batching_parameters_file=file)
    with ModelServer(tmp_path / "model", port=0, rest_port=0, options=options) as server:
        server.wait_until_available(60)
        yield server


def test_served_answers_are_those_without_batching(batching: ModelServer, stubs: Stubs) -> None:
    batched = Stubs(f"127.0.0.1:{batching.port}")
    requests = [
        predict_request("recommend", user_id=[str(n % 4)], age=np.array([n], np.float32)) for n in range(40)
    ] + [
        predict_request("recommend", user_id=["1", "2"], history=[["i1", "i2"], ["i3", ""]]),
        predict_request("recommend", user_id=["1"] * 3),
        predict_request("rate", user_id=["1", "2"], item_id=["i1", "i2"]),
        predict_request("recommend", user_id=tf.make_tensor_proto([], tf.string, [0])),
    ]
    filtered = predict_request("recommend", user_id=["2"])
    filtered.output_filter.append("item_ids")
    requests.append(filtered)
    wrong = predict_request("recommend", user_id=["1", "2"], age=np.array([1, 2, 3], np.float32))
    rejected = batched.prediction.Predict.future(wrong, timeout=30)
    calls = [batched.prediction.Predict.future(request, timeout=60) for request in requests]
    assert rejected.exception().code() is grpc.StatusCode.INVALID_ARGUMENT
    for request, call in zip(requests, calls, strict=True):
        want = stubs.prediction.Predict(request, timeout=60)
        answer = call.result()
        assert set(answer.outputs) == set(want.outputs)
        for name, tensor in want.outputs.items():
            found = tf.make_ndarray(answer.outputs[name])
            if found.dtype == object:
                np.testing.assert_array_equal(found, tf.make_ndarray(tensor))
            else:
                np.testing.assert_allclose(found, tf.make_ndarray(tensor), rtol=1e-5)
    runs = batching.metrics.wrapped_run_count.value()
    assert runs < 30, f"{runs} runs for {len(requests)} requests: nothing was merged"
    batched.channel.close()


def test_server_does_not_run_a_request_whose_deadline_passed_in_the_queue(tmp_path: Path, spinning: Path) -> None:
    push(spinning, tmp_path, 1)
    file = tmp_path / "batching.config"
    file.write_text("max_batch_size { value: 1 } num_batch_threads { value: 1 } max_enqueued_batches { value: 100 }")
    options = ServerOptions(enable_batching=True, batching_parameters_file=file)
    with ModelServer(tmp_path, port=0, rest_port=0, options=options) as server:
        server.wait_until_available(60)
        stubs = Stubs(f"127.0.0.1:{server.port}")
        rounds = rounds_for(stubs, 2.0)
        long = stubs.prediction.Predict.future(predict_request("spin", rounds=np.array([rounds], np.int64)), timeout=60)
        time.sleep(0.2)
        runs = server.metrics.wrapped_run_count.value()
        for _ in range(5):
            with pytest.raises(grpc.RpcError) as failure:
                stubs.prediction.Predict(predict_request("spin", rounds=np.array([1], np.int64)), timeout=0.1)
            assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert long.result().outputs["done"].int64_val == [rounds]
        assert stubs.prediction.Predict(predict_request("spin", rounds=np.array([1], np.int64)), timeout=30)
        assert server.metrics.wrapped_run_count.value() == runs + 1, "requests after their deadline were not run"
        stubs.channel.close()
