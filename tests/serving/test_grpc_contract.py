"""TensorFlow Serving's gRPC API through tensorflow-serving-api's stubs: responses, error codes and messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import contract_model
import grpc
import numpy as np
import pytest
import tensorflow as tf
from conftest import Stubs, push
from contract_model import predict_request
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.server.model_server import ModelServer


def _predict(stubs: Stubs, request: predict_pb2.PredictRequest) -> dict[str, Any]:
    response = stubs.prediction.Predict(request, timeout=30)
    return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}


def _refused(stubs: Stubs, request: predict_pb2.PredictRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as failure:
        stubs.prediction.Predict(request, timeout=30)
    return failure.value.code(), failure.value.details()


def test_the_exported_model_declares_optional_inputs_by_defaults(stubs: Stubs) -> None:
    definition = _signature_defs(stubs)["recommend"]
    assert set(definition.inputs) == {"user_id", "occupation", "timestamp", "age", "history"}
    assert set(definition.defaults) == {"occupation", "timestamp", "age", "history"}
    assert [dim.size for dim in definition.inputs["history"].tensor_shape.dim] == [-1, -1]
    assert tf.make_ndarray(definition.defaults["history"]).tolist() == [[b""]]


def test_recommend_returns_k_items_per_user_best_first(stubs: Stubs) -> None:
    answer = _predict(stubs, predict_request("recommend", user_id=["1", "2", "unseen"]))
    assert set(answer) == {"item_ids", "scores", "ratings", "title"}
    assert {values.shape for values in answer.values()} == {(3, contract_model.TOP_K)}
    assert (np.diff(answer["scores"], axis=1) <= 0).all()
    assert len(set(answer["item_ids"][0])) == contract_model.TOP_K
    assert not np.array_equal(answer["item_ids"][0], answer["item_ids"][1])


def test_response_names_model_version_and_signature(stubs: Stubs) -> None:
    spec = stubs.prediction.Predict(predict_request("recommend", user_id=["1"]), timeout=30).model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("recommender", 1, "recommend")


def test_missing_optional_input_counts_as_its_default(stubs: Stubs) -> None:
    left_out = _predict(stubs, predict_request("recommend", user_id=["1"]))
    spelled = _predict(
        stubs,
        predict_request(
            "recommend",
            user_id=["1"],
            occupation=[""],
            timestamp=np.array([0], np.int64),
            age=np.array([0], np.float32),
            history=[[""]],
        ),
    )
    np.testing.assert_array_equal(left_out["scores"], spelled["scores"])


def test_default_history_of_one_row_applies_to_all_rows(stubs: Stubs) -> None:
    users = ["1", "unseen", "2"]
    left_out = _predict(stubs, predict_request("recommend", user_id=users))
    for padding in ([[""]], [["", ""]] * 3, tf.make_tensor_proto([], tf.string, [3, 0])):
        spelled = _predict(stubs, predict_request("recommend", user_id=users, history=padding))
        np.testing.assert_array_equal(left_out["scores"], spelled["scores"])
        np.testing.assert_array_equal(left_out["item_ids"], spelled["item_ids"])


def test_history_reaches_its_own_row_only(stubs: Stubs) -> None:
    users = ["1", "unseen", "unseen"]
    plain = _predict(stubs, predict_request("recommend", user_id=users))
    history = [["", ""], ["i4", "i5"], ["i6", "never heard of"]]
    given = _predict(stubs, predict_request("recommend", user_id=users, history=history))
    np.testing.assert_array_equal(given["item_ids"][0], plain["item_ids"][0])
    for row, touched in ((1, {b"i4", b"i5"}), (2, {b"i6"})):
        assert not touched & set(given["item_ids"][row])
        assert not np.array_equal(given["item_ids"][row], plain["item_ids"][row])
    assert not np.array_equal(given["item_ids"][1], given["item_ids"][2])
    rated = {
        name: _predict(stubs, predict_request("rate", user_id=["unseen"], item_id=["i9"], **inputs))["rating"]
        for name, inputs in (("plain", {}), ("history", {"history": [["i4", "i5"]]}))
    }
    assert rated["plain"] != pytest.approx(rated["history"])


def test_strings_of_rank_two_in_tensor_content_are_read(stubs: Stubs) -> None:
    packed = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_content=b"\x02\x00\x02\x02i4i5i6")
    for size in (2, 2):
        packed.tensor_shape.dim.add(size=size)
    answer = _predict(stubs, predict_request("recommend", user_id=["1", "2"], history=packed))
    spelled = _predict(stubs, predict_request("recommend", user_id=["1", "2"], history=[["i4", ""], ["i5", "i6"]]))
    np.testing.assert_array_equal(answer["scores"], spelled["scores"])


def test_optional_inputs_reach_the_graph(stubs: Stubs) -> None:
    plain = _predict(stubs, predict_request("recommend", user_id=["1", "1"]))
    request = predict_request(
        "recommend", user_id=["1", "1"], age=np.array([1, 5], np.float32), timestamp=np.array([10, 20], np.int64)
    )
    shifted = _predict(stubs, request)
    np.testing.assert_allclose(
        shifted["scores"] - plain["scores"], np.array([[11.0], [25.0]]).repeat(100, 1), rtol=1e-4
    )


def test_default_signature_is_serving_default(stubs: Stubs) -> None:
    example = tf.train.Example()
    example.features.feature["user_id"].bytes_list.value.append(b"1")
    example.features.feature["item_id"].bytes_list.value.append(b"i4")
    examples = [example.SerializeToString()] * 3
    default = _predict(stubs, predict_request("", examples=examples))
    named = _predict(stubs, predict_request("evaluate", examples=examples))
    assert default["rating"].shape == (3,) and default["top_100_hit"].shape == (3,)
    np.testing.assert_array_equal(default["rating"], named["rating"])
    rated = _predict(stubs, predict_request("rate", user_id=["1"], item_id=["i4"]))
    np.testing.assert_allclose(default["rating"][:1], rated["rating"], rtol=1e-6)


def test_empty_batch_answers_an_empty_batch(stubs: Stubs) -> None:
    empty = tf.make_tensor_proto([], dtype=tf.string, shape=[0])
    answer = _predict(stubs, predict_request("recommend", user_id=empty))
    assert answer["scores"].shape == (0, contract_model.TOP_K)


def test_output_filter_selects_outputs(stubs: Stubs) -> None:
    request = predict_request("recommend", user_id=["1"])
    request.output_filter.extend(["title", "item_ids"])
    answer = _predict(stubs, request)
    assert set(answer) == {"title", "item_ids"}
    full = _predict(stubs, predict_request("recommend", user_id=["1"]))
    np.testing.assert_array_equal(answer["item_ids"], full["item_ids"])
    np.testing.assert_array_equal(answer["title"], full["title"])


def test_tensor_content_and_repeated_last_value_are_read(stubs: Stubs) -> None:
    content = tensor_pb2.TensorProto(dtype=types_pb2.DT_INT64, tensor_content=np.array([7, 7], np.int64).tobytes())
    content.tensor_shape.dim.add(size=2)
    repeated = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[2.0])
    repeated.tensor_shape.dim.add(size=2)
    compressed = _predict(stubs, predict_request("recommend", user_id=["1", "2"], timestamp=content, age=repeated))
    spelled = _predict(
        stubs,
        predict_request(
            "recommend", user_id=["1", "2"], timestamp=np.array([7, 7], np.int64), age=np.array([2, 2], np.float32)
        ),
    )
    np.testing.assert_array_equal(compressed["scores"], spelled["scores"])


def test_strings_in_tensor_content_are_read(stubs: Stubs) -> None:
    packed = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_content=b"\x01\x06" + b"1" + b"unseen")
    packed.tensor_shape.dim.add(size=2)
    answer = _predict(stubs, predict_request("recommend", user_id=packed))
    spelled = _predict(stubs, predict_request("recommend", user_id=["1", "unseen"]))
    np.testing.assert_array_equal(answer["item_ids"], spelled["item_ids"])


@pytest.mark.parametrize("version", [None, 1])
def test_requests_may_name_the_version(stubs: Stubs, version: int | None) -> None:
    assert _predict(stubs, predict_request("recommend", version=version, user_id=["1"]))


def test_unknown_model_is_not_found(stubs: Stubs) -> None:
    code, message = _refused(stubs, predict_request("recommend", model="nope", user_id=["1"]))
    assert code is grpc.StatusCode.NOT_FOUND
    assert message.startswith("Servable not found for request: Latest(nope)")


def test_unknown_version_is_not_found(stubs: Stubs) -> None:
    code, message = _refused(stubs, predict_request("recommend", version=77, user_id=["1"]))
    assert code is grpc.StatusCode.NOT_FOUND
    assert message.startswith("Servable not found for request: Specific(recommender, 77)")


def test_unknown_signature_is_a_failed_precondition(stubs: Stubs) -> None:
    code, message = _refused(stubs, predict_request("nope", user_id=["1"]))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert message.startswith('Serving signature key "nope" not found.')


def test_missing_required_input_is_named(stubs: Stubs) -> None:
    code, message = _refused(stubs, predict_request("recommend", age=np.array([1], np.float32)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "user_id" in message and "not found in request and no default value provided" in message


def test_missing_input_of_a_signature_without_defaults_is_named(stubs: Stubs) -> None:
    code, message = _refused(stubs, predict_request("evaluate"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith("input size does not match signature: 0!=1 len({}) != len({examples}).")
    assert "Missing but required: {examples}" in message


def test_unexpected_input_is_named(stubs: Stubs) -> None:
    code, message = _refused(stubs, predict_request("recommend", user_id=["1"], colour=["red"]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith("Inputs contains invalid name.") and "colour" in message


def test_wrong_dtype_is_named(stubs: Stubs) -> None:
    code, message = _refused(stubs, predict_request("recommend", user_id=np.array([1], np.int64)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "to be string but int64 is provided" in message


def test_wrong_rank_is_an_invalid_argument(stubs: Stubs) -> None:
    code, _ = _refused(stubs, predict_request("recommend", user_id=[["1"], ["2"]]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("history", ["i4", ["i4"], [[["i4"]]]], ids=["scalar", "rank 1", "rank 3"])
def test_history_of_another_rank_is_an_invalid_argument(stubs: Stubs, history: Any) -> None:
    code, _ = _refused(stubs, predict_request("recommend", user_id=["1"], history=history))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_wrong_history_is_reported_with_expected_and_actual_shape(embedded_only: None, stubs: Stubs) -> None:
    _, message = _refused(stubs, predict_request("rate", user_id=["1"], item_id=["i1"], history=["i4"]))
    assert message.startswith("Incompatible shape for input history of signature rate: expected [-1,-1] (-1 is any")
    assert message.endswith("got [1]")
    _, message = _refused(stubs, predict_request("recommend", user_id=["1"], history=[[4, 5]]))
    assert "input history of signature recommend: expected DT_STRING [-1,-1], got DT_INT32 [1,2]" in message
    _, message = _refused(stubs, predict_request("recommend", user_id=["1", "2"], history=[["i4"]] * 3))
    assert "Signature recommend expects inputs with one number of rows, got: history [3,1], user_id [2]" in message


@pytest.mark.parametrize("rows", [0, 3])
def test_another_number_of_histories_than_users_is_an_invalid_argument(stubs: Stubs, rows: int) -> None:
    history = tf.make_tensor_proto([b"i4"] * rows, tf.string, [rows, 1])
    for inputs in ({"user_id": ["1", "2"]}, {"user_id": ["1", "2"], "item_id": ["i1", "i2"]}):
        signature = "rate" if "item_id" in inputs else "recommend"
        code, _ = _refused(stubs, predict_request(signature, **inputs, history=history))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_history_of_another_dtype_is_an_invalid_argument(stubs: Stubs) -> None:
    code, message = _refused(stubs, predict_request("recommend", user_id=["1"], history=[[4]]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "to be string but int32 is provided" in message


def test_model_without_the_input_rejects_a_history(
    embedded_only: None, tmp_path: Path, exported: Callable[..., Path]
) -> None:
    push(exported(history=False), tmp_path, 1)
    with ModelServer(tmp_path, port=0, rest_port=0) as server:
        server.wait_until_available(60)
        without = Stubs(f"127.0.0.1:{server.port}")
        assert _predict(without, predict_request("recommend", user_id=["1"]))
        code, message = _refused(without, predict_request("recommend", user_id=["1"], history=[["i4"]]))
        without.channel.close()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith("Inputs contains invalid name.") and "history" in message


def test_inputs_of_different_length_are_an_invalid_argument(stubs: Stubs) -> None:
    code, _ = _refused(stubs, predict_request("recommend", user_id=["1", "2"], age=np.array([1, 2, 3], np.float32)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_values_that_do_not_fill_the_shape_are_an_invalid_argument(stubs: Stubs) -> None:
    broken = tensor_pb2.TensorProto(dtype=types_pb2.DT_INT64, tensor_content=b"123")
    broken.tensor_shape.dim.add(size=2)
    code, message = _refused(stubs, predict_request("recommend", user_id=["1", "2"], timestamp=broken))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith("tensor parsing error: timestamp")


def test_unknown_output_in_filter_is_named(stubs: Stubs) -> None:
    request = predict_request("recommend", user_id=["1"])
    request.output_filter.append("nope")
    code, message = _refused(stubs, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith("output tensor alias not found in signature: nope")


def test_duplicate_output_in_filter_is_rejected(stubs: Stubs) -> None:
    request = predict_request("recommend", user_id=["1"])
    request.output_filter.extend(["title", "title"])
    assert _refused(stubs, request) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "duplicate output tensor alias: title",
    )


def test_request_without_model_spec_is_rejected(stubs: Stubs) -> None:
    assert _refused(stubs, predict_pb2.PredictRequest()) == (grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")


def test_request_without_model_name_is_rejected(stubs: Stubs) -> None:
    code, message = _refused(stubs, predict_request("recommend", model="", user_id=["1"]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith("ModelSpec has no name specified.")


def test_unassigned_label_is_rejected(stubs: Stubs) -> None:
    request = predict_request("recommend", user_id=["1"])
    request.model_spec.version_label = "canary"
    assert _refused(stubs, request)[0] is grpc.StatusCode.INVALID_ARGUMENT


def _signature_defs(stubs: Stubs) -> Any:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "recommender"
    response = stubs.prediction.GetModelMetadata(request, timeout=30)
    assert (response.model_spec.name, response.model_spec.version.value) == ("recommender", 1)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    return signatures.signature_def


def test_metadata_holds_every_signature(stubs: Stubs) -> None:
    definitions = _signature_defs(stubs)
    assert {"serving_default", "evaluate", "recommend", "rate"} <= set(definitions)
    assert definitions["recommend"].outputs["item_ids"].tensor_shape.dim[1].size == contract_model.TOP_K


@pytest.mark.parametrize(
    ("model", "fields", "code", "message"),
    [
        ("recommender", [], grpc.StatusCode.INVALID_ARGUMENT, "must specify at least one metadata_field"),
        ("recommender", ["weather"], grpc.StatusCode.INVALID_ARGUMENT, "Metadata field weather is not supported"),
        ("nope", ["signature_def"], grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(nope)"),
    ],
)
def test_bad_metadata_requests(
    stubs: Stubs, model: str, fields: list[str], code: grpc.StatusCode, message: str
) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = model
    with pytest.raises(grpc.RpcError) as failure:
        stubs.prediction.GetModelMetadata(request, timeout=30)
    assert failure.value.code() is code
    assert message in failure.value.details()


def _status_request(model: str, version: int | None = None) -> get_model_status_pb2.GetModelStatusRequest:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = model
    if version is not None:
        request.model_spec.version.value = version
    return request


@pytest.mark.parametrize("version", [None, 1])
def test_status_of_a_served_version(stubs: Stubs, version: int | None) -> None:
    response = stubs.model.GetModelStatus(_status_request("recommender", version), timeout=30)
    (status,) = response.model_version_status
    assert status.version == 1
    assert status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert status.status.error_code == 0


@pytest.mark.parametrize(
    ("model", "version", "message"),
    [
        ("nope", None, "Could not find any versions of model nope"),
        ("recommender", 77, "Could not find version 77 of model recommender"),
    ],
)
def test_status_of_an_unknown_model_or_version(stubs: Stubs, model: str, version: int | None, message: str) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        stubs.model.GetModelStatus(_status_request(model, version), timeout=30)
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    assert failure.value.details().startswith(message)


def _classification(signature: str, model: str = "recommender", version: int | None = None) -> Any:
    request = classification_pb2.ClassificationRequest()
    _fill_example_request(request, signature, model, version)
    return request


def _regression(signature: str, model: str = "recommender", version: int | None = None) -> Any:
    request = regression_pb2.RegressionRequest()
    _fill_example_request(request, signature, model, version)
    return request


def _fill_example_request(request: Any, signature: str, model: str, version: int | None) -> None:
    request.model_spec.name, request.model_spec.signature_name = model, signature
    if version is not None:
        request.model_spec.version.value = version
    request.input.example_list.examples.append(tf.train.Example())


def _inference(*tasks: tuple[str, str, str]) -> Any:
    request = inference_pb2.MultiInferenceRequest()
    for model, signature, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = model, signature
    request.input.example_list.examples.append(tf.train.Example())
    return request


_CLASSIFY, _REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
_INVALID, _NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (_classification("recommend"), _INVALID, "Expected one input Tensor."),
        (_classification("evaluate"), _INVALID, "No classification inputs found in SignatureDef:"),
        (_classification(""), _INVALID, "No classification inputs found in SignatureDef:"),
        (_classification("nope"), _INVALID, "No signature was found with the name: nope"),
        (_classification("", model="nope"), _NOT_FOUND, "Servable not found for request: Latest(nope)"),
        (_classification("", version=77), _NOT_FOUND, "Servable not found for request: Specific(recommender, 77)"),
        (_classification("", model=""), _INVALID, "ModelSpec has no name specified."),
        (classification_pb2.ClassificationRequest(), _INVALID, "Missing ModelSpec"),
        (_regression("rate"), _INVALID, "Expected one input Tensor."),
        (_regression("evaluate"), _INVALID, "Expected one output Tensor."),
        (_regression(""), _INVALID, "Expected one output Tensor."),
        (_regression("nope"), _INVALID, "No signature was found with the name: nope"),
        (_regression("", model="nope"), _NOT_FOUND, "Servable not found for request: Latest(nope)"),
        (_regression("", version=77), _NOT_FOUND, "Servable not found for request: Specific(recommender, 77)"),
        (regression_pb2.RegressionRequest(), _INVALID, "Missing ModelSpec"),
        (_inference(), _INVALID, "ModelSpec has no name specified."),
        (_inference(("recommender", "evaluate", _REGRESS)), _INVALID, "Expected one output Tensor."),
        (_inference(("recommender", "rate", _CLASSIFY)), _INVALID, "Expected one input Tensor."),
        (_inference(("nope", "evaluate", _REGRESS)), _NOT_FOUND, "Servable not found for request: Latest(nope)"),
        (
            _inference(("recommender", "evaluate", _REGRESS), ("other", "rate", _REGRESS)),
            _INVALID,
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            _inference(*[("recommender", "evaluate", _REGRESS)] * 2),
            _INVALID,
            "Duplicate evaluation of signature: evaluate",
        ),
        (
            _inference(("recommender", "nope", _REGRESS)),
            _INVALID,
            "Requested signature not found in model graph: nope",
        ),
        (
            _inference(("recommender", "evaluate", "tensorflow/serving/predict")),
            grpc.StatusCode.UNIMPLEMENTED,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
    ],
)
def test_requests_with_examples_are_rejected_as_by_tensorflow_serving(
    stubs: Stubs, request_: Any, code: grpc.StatusCode, message: str
) -> None:
    methods = {
        classification_pb2.ClassificationRequest: stubs.prediction.Classify,
        regression_pb2.RegressionRequest: stubs.prediction.Regress,
        inference_pb2.MultiInferenceRequest: stubs.prediction.MultiInference,
    }
    with pytest.raises(grpc.RpcError) as failure:
        methods[type(request_)](request_, timeout=30)
    assert failure.value.code() is code
    assert failure.value.details().startswith(message)


def test_reload_request_without_a_model_list_is_rejected(stubs: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        stubs.model.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), timeout=30)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.value.details().startswith("ServerModelConfig type not supported by HandleReloadConfigRequest.")


def test_request_after_its_deadline_is_not_answered(stubs: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        stubs.prediction.Predict(predict_request("recommend", user_id=["1"] * 2000), timeout=0.001)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_requests_above_grpcs_default_size_are_served(stubs: Stubs) -> None:
    request = predict_request("rate", user_id=["x" * 1000] * 5000, item_id=["i1"] * 5000)
    assert request.ByteSize() > 4 << 20
    assert _predict(stubs, request)["rating"].shape == (5000,)
