"""TensorFlow Serving's REST API over real sockets: row and column format, base64, status, metadata, errors."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from typing import Any

import contract_model
import numpy as np
import prometheus_client.parser as prometheus_parser
import pytest
import tensorflow as tf
from conftest import Stubs
from contract_model import predict_request

_PREDICT = "/v1/models/recommender:predict"
_ROW = {"user_id": "1", "occupation": "", "timestamp": 0, "age": 0.0, "history": [""]}
_COLUMNS = {"user_id": ["1"], "occupation": [""], "timestamp": [0], "age": [0.0], "history": [[""]]}


def _call(rest_target: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(rest_target, timeout=30)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body)
    connection.request(method, path, data)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    if not text:
        return response.status, None
    assert response.headers["Content-Type"] == "application/json"
    return response.status, json.loads(text)


def _predict(rest_target: str, body: Any, path: str = _PREDICT) -> tuple[int, Any]:
    return _call(rest_target, "POST", path, body)


def _recommend(**fields: Any) -> dict[str, Any]:
    return {"signature_name": "recommend", **fields}


def test_row_format_answers_like_grpc(rest_target: str, stubs: Stubs) -> None:
    rows = [_ROW, {**_ROW, "user_id": "2", "age": 4}]
    status, answer = _predict(rest_target, _recommend(instances=rows))
    assert status == 200
    over_grpc = stubs.prediction.Predict(
        predict_request("recommend", user_id=["1", "2"], age=np.array([0, 4], np.float32)), timeout=30
    )
    assert set(answer) == {"predictions"}
    for row, prediction in enumerate(answer["predictions"]):
        assert set(prediction) == {"item_ids", "scores", "ratings", "title"}
        for name in ("item_ids", "title"):
            assert prediction[name] == [each.decode() for each in tf.make_ndarray(over_grpc.outputs[name])[row]]
        np.testing.assert_array_equal(
            np.float32(prediction["scores"]), tf.make_ndarray(over_grpc.outputs["scores"])[row]
        )


def test_column_format_answers_like_row_format(rest_target: str) -> None:
    _, rows = _predict(rest_target, _recommend(instances=[_ROW]))
    status, columns = _predict(rest_target, _recommend(inputs=_COLUMNS))
    assert status == 200
    assert {name: values[0] for name, values in columns["outputs"].items()} == rows["predictions"][0]


def test_histories_in_either_format_answer_like_grpc(rest_target: str, stubs: Stubs) -> None:
    users, histories = ["1", "unseen"], [["", "i4"], ["i5", "i6"]]
    response = stubs.prediction.Predict(predict_request("recommend", user_id=users, history=histories), timeout=30)
    expected = [[each.decode() for each in row] for row in tf.make_ndarray(response.outputs["item_ids"])]
    rows = [{**_ROW, "user_id": user, "history": history} for user, history in zip(users, histories, strict=True)]
    encoded = {"b64": base64.b64encode(b"i6").decode()}
    rows[1]["history"] = ["i5", encoded]
    status, answer = _predict(rest_target, _recommend(instances=rows))
    assert (status, [row["item_ids"] for row in answer["predictions"]]) == (200, expected)
    columns = {**_COLUMNS, "user_id": users, "history": [["", "i4"], ["i5", encoded]]}
    status, answer = _predict(rest_target, _recommend(inputs=columns))
    assert (status, answer["outputs"]["item_ids"]) == (200, expected)


def test_one_row_of_a_column_applies_to_all_users_and_an_empty_history_is_none(rest_target: str) -> None:
    users = ["1", "unseen"]
    status, spelled = _predict(rest_target, _recommend(inputs={**_COLUMNS, "user_id": users, "history": [["i4"]] * 2}))
    assert status == 200
    assert _predict(rest_target, _recommend(inputs={**_COLUMNS, "user_id": users, "history": [["i4"]]})) == (
        200,
        spelled,
    )
    plain = _predict(rest_target, _recommend(instances=[_ROW]))
    assert plain[0] == 200
    assert _predict(rest_target, _recommend(instances=[{**_ROW, "history": []}])) == plain


@pytest.mark.parametrize(
    "body",
    [
        _recommend(instances=[{**_ROW, "history": "i4"}]),
        _recommend(instances=[{**_ROW, "history": [["i4"]]}]),
        _recommend(inputs={**_COLUMNS, "history": ["i4"]}),
        _recommend(inputs={**_COLUMNS, "history": "i4"}),
    ],
    ids=["row of rank 0", "row of rank 2", "column of rank 1", "column of rank 0"],
)
def test_history_of_another_rank_is_rejected(embedded_only: None, rest_target: str, body: Any) -> None:
    status, answer = _predict(rest_target, body)
    assert status == 400
    assert "Incompatible shape for input history of signature recommend: expected [-1,-1]" in answer["error"]


def test_missing_input_with_a_default_has_a_hint(embedded_only: None, rest_target: str) -> None:
    row = {name: value for name, value in _ROW.items() if name not in ("history", "timestamp")}
    _, answer = _predict(rest_target, _recommend(instances=[row]))
    assert (
        'Missing: history (for its default send [""]),timestamp (for its default send 0). REST requires every input'
        in answer["error"]
    )
    columns = {name: value for name, value in _COLUMNS.items() if name != "history"}
    status, answer = _predict(rest_target, _recommend(inputs=columns))
    assert status == 400
    assert "Missing named input: history in 'inputs' object (for its default send [[\"\"]])" in answer["error"]
    _, answer = _predict(rest_target, _recommend(instances=[{**_ROW, "history": ["i4", "i5"]}] * 2 + [_ROW]))
    assert "(an input has the same shape in all instances: pad the shorter lists)" in answer["error"]


def test_floats_are_written_as_short_as_their_float32(rest_target: str) -> None:
    _, answer = _predict(rest_target, _recommend(instances=[_ROW]))
    assert all(len(str(score).replace("-", "")) <= 13 for score in answer["predictions"][0]["scores"])


def test_base64_strings_and_the_default_signature(rest_target: str) -> None:
    example = tf.train.Example()
    example.features.feature["user_id"].bytes_list.value.append(b"1")
    example.features.feature["item_id"].bytes_list.value.append(b"i4")
    encoded = {"b64": base64.b64encode(example.SerializeToString()).decode()}
    status, answer = _predict(rest_target, {"instances": [encoded, encoded]})
    assert status == 200
    assert set(answer["predictions"][0]) == {"rating", "top_100_hit"}
    assert _predict(rest_target, {"instances": [{"examples": encoded}] * 2}) == (200, answer)
    _, columns = _predict(rest_target, {"inputs": [encoded, encoded]})
    assert columns["outputs"]["rating"] == [row["rating"] for row in answer["predictions"]]


def test_single_output_is_not_named(rest_target: str) -> None:
    body = {"signature_name": "rate", "inputs": {**_COLUMNS, "item_id": ["i4"]}}
    status, answer = _predict(rest_target, body)
    assert status == 200
    assert [type(each) for each in answer["outputs"]] == [float]
    rows = {"signature_name": "rate", "instances": [{**_ROW, "item_id": "i4"}]}
    assert _predict(rest_target, rows) == (200, {"predictions": answer["outputs"]})


def test_empty_batch_in_column_format(rest_target: str) -> None:
    empty = {name: [] for name in _COLUMNS} | {"history": [[]]}  # JSON can express the shape [1, 0], but not [0, L]
    status, answer = _predict(rest_target, _recommend(inputs=empty))
    assert (status, answer["outputs"]["item_ids"]) == (200, [])


@pytest.mark.parametrize(
    ("method", "body", "message"),
    [
        ("classify", b"", "JSON Parse error: The document is empty"),
        ("classify", {"signature_name": 5}, "'signature_name' key must be a string value."),
        ("classify", {"signature_name": "nope"}, "No signature was found with the name: nope"),
        ("classify", {"signature_name": "recommend"}, "Expected one input Tensor."),
        ("classify", {"signature_name": "evaluate"}, "No classification inputs found in SignatureDef:"),
        ("classify", {}, "No classification inputs found in SignatureDef:"),
        ("regress", {"signature_name": "nope"}, "No signature was found with the name: nope"),
        ("regress", {"signature_name": "rate"}, "Expected one input Tensor."),
        ("regress", {"signature_name": "evaluate"}, "Expected one output Tensor."),
        ("regress", {}, "Expected one output Tensor."),
    ],
)
def test_classify_and_regress_are_rejected_as_by_tensorflow_serving(
    rest_target: str, method: str, body: Any, message: str
) -> None:
    if isinstance(body, dict):
        body = {**body, "examples": [{"user_id": "1"}]}
    status, answer = _call(rest_target, "POST", f"/v1/models/recommender:{method}", body)
    assert (status, set(answer)) == (400, {"error"})
    assert message in answer["error"]


@pytest.mark.parametrize("method", ["classify", "regress"])
def test_classify_and_regress_of_an_unknown_model_or_version_are_not_found(rest_target: str, method: str) -> None:
    body = {"examples": [{"user_id": "1"}]}
    for path, request in (("nope", "Latest(nope)"), ("recommender/versions/77", "Specific(recommender, 77)")):
        status, answer = _call(rest_target, "POST", f"/v1/models/{path}:{method}", body)
        assert status == 404
        assert answer["error"].startswith(f"Servable not found for request: {request}")


def test_unassigned_label_in_the_path_is_rejected(rest_target: str) -> None:
    status, answer = _predict(rest_target, _recommend(instances=[_ROW]), "/v1/models/recommender/labels/canary:predict")
    assert status == 400
    assert answer["error"].startswith("Unrecognized servable version label: canary")


def test_prometheus_page_counts_requests_under_tensorflow_servings_names(rest_target: str, stubs: Stubs) -> None:
    """TensorFlow Serving needs `--monitoring_config_file` for it: kubeflow/manifests/serving/monitoring.config."""

    def samples() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        connection = http.client.HTTPConnection(rest_target, timeout=30)
        connection.request("GET", "/monitoring/prometheus/metrics")
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        assert response.status == 200 and response.headers["Content-Type"].startswith("text/plain")
        assert "# TYPE :tensorflow:serving:request_count counter\n" in text
        assert "# TYPE :tensorflow:serving:request_latency histogram\n" in text
        families = prometheus_parser.text_string_to_metric_families(text)
        # The parser adds the suffix of Prometheus' client library to counters.
        return {
            (each.name.removesuffix("_total"), frozenset(each.labels.items())): each.value
            for family in families
            for each in family.samples
        }

    def labelled(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
        return f":tensorflow:serving:{name}", frozenset(labels.items())

    def call() -> None:
        stubs.prediction.Predict(predict_request("recommend", user_id=["1"]), timeout=30)
        _predict(rest_target, _recommend(instances=[_ROW]))
        _predict(rest_target, _recommend(instances=[]))

    call()
    before = samples()
    call()
    after = samples()
    latency = {"model_name": "recommender", "API": "Predict", "entrypoint": "GRPC"}
    rest_latency = {"model_name": "recommender", "API": "predict", "entrypoint": "REST"}
    increases = {
        labelled("request_count", model_name="recommender", status="OK"): 2,
        labelled("request_count", model_name="recommender", status="INVALID_ARGUMENT"): 1,
        labelled("request_latency_count", **latency): 1,
        labelled("request_latency_bucket", **latency, le="+Inf"): 1,
        labelled("request_latency_count", **rest_latency): 1,
    }
    for key, increase in increases.items():
        assert after[key] - before[key] == increase, key
    spent = labelled("request_latency_sum", **latency)
    assert 10 < after[spent] - before[spent] < 30e6, "microseconds"
    limits = [
        dict(labels)["le"]
        for name, labels in after
        if name == labelled("request_latency_bucket")[0] and dict(labels)["API"] == "Predict"
    ]
    assert {"10", "18", "32.4", "58.32", "104.976", "188.957"} <= set(limits) and len(limits) == 34


def test_version_in_the_path(rest_target: str) -> None:
    body = _recommend(instances=[_ROW])
    assert _predict(rest_target, body, "/v1/models/recommender/versions/1:predict") == _predict(rest_target, body)


def test_status(rest_target: str) -> None:
    entry = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/recommender", "/v1/models/recommender/versions/1"):
        assert _call(rest_target, "GET", path) == (200, {"model_version_status": [entry]})


def test_metadata(rest_target: str) -> None:
    status, answer = _call(rest_target, "GET", "/v1/models/recommender/metadata")
    assert status == 200
    assert answer["model_spec"]["name"] == "recommender"
    assert answer["model_spec"]["version"] == "1"
    definition = answer["metadata"]["signature_def"]["signature_def"]["recommend"]
    assert definition["inputs"]["user_id"]["dtype"] == "DT_STRING"
    assert definition["outputs"]["item_ids"]["tensor_shape"]["dim"][1]["size"] == str(contract_model.TOP_K)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"{nonsense", "JSON Parse error:"),
        (b"\xff\xfe", "JSON Parse error:"),
        (b"[" * 100_000, "JSON Parse error:"),
        (b"[1]", "Is not object"),
        ({"signature_name": 3, "instances": [1]}, "'signature_name' key must be a string value."),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"instances": [1], "inputs": [1]}, "expecting only one of 'inputs' or 'instances' keys to exist"),
        ({"instances": 5}, "Expecting 'instances' to be an list/array"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": [{"b64": "?"}]}, "base64"),
        ({"instances": [7]}, "is not of expected type: string"),
        (_recommend(instances=["1"]), "expecting list of objects as multiple input tensors required"),
        (_recommend(instances=[{"user_id": "1"}]), "keys must be equal to: age,history,occupation,timestamp,user_id"),
        (_recommend(instances=[{**_ROW, "history": [4]}]), "is not of expected type: string"),
        (
            _recommend(instances=[{**_ROW, "history": ["i4", "i5"]}] * 2 + [_ROW]),
            "Failed to process element: 2 key: history of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor "
            "size: 2 but got: 1",
        ),
        (_recommend(inputs={**_COLUMNS, "history": [["i4"], ["i5", "i6"]]}), "Encountered list at unexpected size: 2"),
        (_recommend(instances=[{**_ROW, "colour": 1}]), "does not have named input: colour"),
        (_recommend(instances=[{**_ROW, "age": "old"}]), "is not of expected type: float"),
        (_recommend(instances=[{**_ROW, "timestamp": 1.5}]), "is not of expected type: int64"),
        (_recommend(instances=[{**_ROW, "timestamp": 2**63}]), "is not of expected type: int64"),
        (_recommend(instances=[{**_ROW, "timestamp": True}]), "is not of expected type: int64"),
        (_recommend(instances=[_ROW, {**_ROW, "age": [1]}]), "Failed to process element: 1 key: age"),
        (_recommend(instances=[_ROW, ["1"]]), "Expecting object but got list at item 1"),
        (_recommend(inputs={"user_id": ["1"]}), "Missing named input:"),
        (_recommend(inputs=["1"]), "expecting an object as multiple input tensors required"),
        (_recommend(inputs={**_COLUMNS, "user_id": ["1", ["2"]]}), "unexpected level"),
        ({"signature_name": "nope", "instances": [1]}, 'Serving signature name: "nope" not found in signature def'),
    ],
)
def test_bad_bodies(rest_target: str, body: Any, message: str) -> None:
    status, answer = _predict(rest_target, body)
    assert status == 400
    assert set(answer) == {"error"}
    assert message in answer["error"]


def test_inputs_that_the_model_rejects(rest_target: str) -> None:
    status, answer = _predict(rest_target, _recommend(inputs={**_COLUMNS, "user_id": [["1"]]}))
    assert status == 400 and answer["error"]
    status, answer = _predict(rest_target, _recommend(inputs={**_COLUMNS, "history": [["i4"]] * 3}))
    assert status == 400 and answer["error"]
    status, answer = _predict(rest_target, _recommend(inputs={**_COLUMNS, "age": [1, 2, 3], "user_id": ["1", "2"]}))
    assert status == 400 and answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/v1/models/nope:predict", 404, "Servable not found for request: Latest(nope)"),
        ("POST", "/v1/models/recommender/versions/77:predict", 404, "Servable not found for request: Specific("),
        ("POST", f"/v1/models/recommender/versions/{9**30}:predict", 400, "to numeric"),
        ("POST", "/v1/models/recommender:guess", 400, "Malformed request: POST /v1/models/recommender:guess"),
        ("GET", "/v1/models/nope", 404, "Could not find any versions of model nope"),
        ("GET", "/v1/models/recommender/versions/77", 404, "Could not find version 77 of model recommender"),
        ("GET", "/v1/models/nope/metadata", 404, "Servable not found for request: Latest(nope)"),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("GET", "/v1/other", 400, "Malformed request: GET /v1/other"),
        ("PUT", "/v1/models/recommender", 400, "Malformed request: PUT /v1/models/recommender"),
    ],
)
def test_bad_paths(rest_target: str, method: str, path: str, status: int, message: str) -> None:
    body = _recommend(instances=[_ROW]) if method == "POST" else None
    found, answer = _call(rest_target, method, path, body)
    assert (found, set(answer)) == (status, {"error"})
    assert answer["error"].startswith(message) or message in answer["error"]


def test_paths_outside_the_api_are_not_found(rest_target: str) -> None:
    assert _call(rest_target, "GET", "/elsewhere")[0] == 404


def test_one_connection_serves_many_requests_chunked_ones_too(rest_target: str) -> None:
    connection = http.client.HTTPConnection(rest_target, timeout=30)
    body = json.dumps(_recommend(instances=[_ROW])).encode()
    connection.request("POST", _PREDICT, body)
    plain = json.loads(connection.getresponse().read())
    sock = connection.sock
    connection.request("POST", _PREDICT, iter([body[:10], body[10:]]), encode_chunked=True)
    assert json.loads(connection.getresponse().read()) == plain
    connection.request("GET", "/v1/models/nope")
    assert connection.getresponse().read()
    connection.request("POST", _PREDICT, body)
    assert json.loads(connection.getresponse().read()) == plain
    assert connection.sock is sock
    connection.close()


def test_malformed_http_ends_that_connection_only(embedded_only: None, rest_target: str) -> None:
    host, port = rest_target.split(":")
    for nonsense in (
        b"\x00\x01\x02\r\n\r\n",
        b"POST /v1/models/recommender:predict HTTP/1.1\r\nContent-Length: -4\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(nonsense)
            assert b"400" in connection.recv(65536)
    assert _call(rest_target, "GET", "/v1/models/recommender")[0] == 200
