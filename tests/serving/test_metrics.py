"""TensorFlow Serving's metrics: names, buckets and labels; loads and warm-ups are counted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import prometheus_client.parser as prometheus_parser
import pytest
import tensorflow as tf
from contract_model import predict_request
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_serving.apis import prediction_log_pb2

from serving.api.prometheus import Counter, Distribution, ServingMetrics
from serving.api.status import ServingError
from serving.server.servable_loader import ServableLoader


def test_page_before_the_first_request_is_empty() -> None:
    assert ServingMetrics().page() == "\n"


def test_counter_and_histogram_lines() -> None:
    metrics = ServingMetrics()
    metrics.record_request("m", "Predict", "GRPC", grpc.StatusCode.OK, 25e-6)
    metrics.record_request("m", "Predict", "GRPC", grpc.StatusCode.NOT_FOUND, 1.0)
    lines = metrics.page().splitlines()
    assert lines[0] == "# TYPE :tensorflow:serving:request_count counter"
    assert lines[1:3] == [
        ':tensorflow:serving:request_count{model_name="m",status="NOT_FOUND"} 1',
        ':tensorflow:serving:request_count{model_name="m",status="OK"} 1',
    ]
    labels = 'model_name="m",API="Predict",entrypoint="GRPC"'
    assert lines[3] == "# TYPE :tensorflow:serving:request_latency histogram"
    assert lines[4:7] == [
        f':tensorflow:serving:request_latency_bucket{{{labels},le="10"}} 0',
        f':tensorflow:serving:request_latency_bucket{{{labels},le="18"}} 0',
        f':tensorflow:serving:request_latency_bucket{{{labels},le="32.4"}} 1',
    ]
    assert lines[-3].endswith(',le="+Inf"} 1')
    assert lines[-2:] == [
        f":tensorflow:serving:request_latency_sum{{{labels}}} 25.0",
        f":tensorflow:serving:request_latency_count{{{labels}}} 1",
    ]


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=50))
def test_every_value_is_in_the_first_bucket_whose_limit_is_above_it(values: list[float]) -> None:
    distribution = Distribution("/d", scale=1, growth=2, buckets=14)
    for value in values:
        distribution.record(value)
    (family,) = prometheus_parser.text_string_to_metric_families("\n".join(distribution.lines()) + "\n")
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            assert sample.value == sum(value < float(sample.labels["le"]) for value in values)
        elif sample.name.endswith("_count"):
            assert sample.value == len(values)
        else:
            assert sample.value == pytest.approx(sum(values))


@given(st.text(max_size=30))
def test_any_model_name_gives_a_page_that_parses(name: str) -> None:
    counter = Counter("/c", "model_name")
    counter.increment(name)
    lines = "\n".join(counter.lines()) + "\n"
    (family,) = prometheus_parser.text_string_to_metric_families(lines)
    assert [sample.value for sample in family.samples] == [1]
    # The parser splits lines at more characters than the format does.
    if len(lines.splitlines()) == 2 and not set(name) & set("\\{}"):
        assert family.samples[0].labels == {"model_name": name}


def test_number_of_label_values_is_bounded() -> None:
    counter = Counter("/c", "model_name", "status")
    distribution = Distribution("/d", "model_name", scale=1, growth=2, buckets=3)
    for number in range(1500):
        counter.increment(f"model {number}", "NOT_FOUND")
        distribution.record(1, f"model {number}")
    assert len(list(counter.lines())) == 1002
    assert counter.value("(other)", "(other)") == 500
    assert len(list(distribution.lines())) == 1 + 1001 * 6


def _warmup(folder: Path, *logs: prediction_log_pb2.PredictionLog) -> None:
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        for log in logs:
            writer.write(log.SerializeToString())


def test_loads_and_warm_ups_are_counted(tmp_path: Path, exported: Callable[..., Path]) -> None:
    folder = shutil.copytree(exported(), tmp_path / "1")
    predict, unknown, classify = (prediction_log_pb2.PredictionLog() for _ in range(3))
    predict.predict_log.request.CopyFrom(predict_request("recommend", user_id=["1"]))
    _warmup(folder, predict, predict)
    metrics = ServingMetrics()
    load = ServableLoader(metrics)
    load("recommender", 1, folder).close()
    path = str(folder)
    assert metrics.load_attempts.value(path, "success") == 1
    assert metrics.load_latency.value(path) > 1000
    assert metrics.warmup_records.value(path, "OK") == 2
    latency = f':tensorflow:serving:model_warmup_latency_count{{model_path="{path}",status="OK"}} 1'
    assert latency in metrics.page()

    unknown.predict_log.request.CopyFrom(predict_request("nope", user_id=["1"]))
    _warmup(folder, predict, unknown)
    with pytest.raises(ServingError, match=r'Warmup request 2 .* Serving signature key "nope" not found'):
        load("recommender", 1, folder)
    assert 'model_warmup_latency_count{model_path="' + path + '",status="FAILED_PRECONDITION"} 1' in metrics.page()
    classify.classify_log.request.model_spec.name = "recommender"
    _warmup(folder, predict, classify)
    with pytest.raises(ServingError, match="Unsupported log_type for warmup: classify_log in record 2"):
        load("recommender", 1, folder)
    session_run = prediction_log_pb2.PredictionLog(session_run_log=prediction_log_pb2.SessionRunLog())
    _warmup(folder, session_run)
    with pytest.raises(ServingError, match="Unsupported log_type for warmup: session_run_log in record 1"):
        load("recommender", 1, folder)
    (folder / "saved_model.pb").write_bytes(b"junk")
    with pytest.raises(ServingError):
        load("recommender", 1, folder)
    assert (metrics.load_attempts.value(path, "success"), metrics.load_attempts.value(path, "fail")) == (4, 1)
