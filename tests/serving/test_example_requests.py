"""Classify, Regress and MultiInference on signatures of their own form, which no model of Tandem has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import inference_pb2, model_pb2

from serving.api.example_requests import reject_classify, reject_multi_inference, reject_regress
from serving.api.status import ServingError


def _definition(inputs: list[str], outputs: list[str]) -> meta_graph_pb2.SignatureDef:
    definition = meta_graph_pb2.SignatureDef()
    for name in inputs:
        definition.inputs[name].name = name
    for name in outputs:
        definition.outputs[name].name = name
    return definition


_SERVABLE: Any = SimpleNamespace(
    name="m",
    version=1,
    signature_defs={
        "classify": _definition(["inputs"], ["classes", "scores"]),
        "regress": _definition(["inputs"], ["outputs"]),
        "predict": _definition(["inputs"], ["vectors"]),
        "many": _definition(["inputs"], ["a", "b", "c"]),
        "other_input": _definition(["examples"], ["outputs"]),
    },
)


def _spec(signature: str) -> model_pb2.ModelSpec:
    return model_pb2.ModelSpec(name="m", signature_name=signature)


@pytest.mark.parametrize(
    ("reject", "signature", "message"),
    [
        (reject_classify, "regress", "Expected classification signature outputs to contain at least one of"),
        (reject_classify, "predict", "Expected classification signature outputs to contain at least one of"),
        (reject_classify, "many", "Expected one or two output Tensors, found 3"),
        (reject_classify, "other_input", "No classification inputs found in SignatureDef:"),
        (reject_regress, "classify", "Expected one output Tensor."),
        (reject_regress, "predict", "No regression outputs found in SignatureDef:"),
        (reject_regress, "other_input", "No regression inputs found in SignatureDef:"),
    ],
)
def test_signature_of_another_form_is_an_invalid_argument(reject: Any, signature: str, message: str) -> None:
    with pytest.raises(ServingError) as failure:
        reject(_SERVABLE, _spec(signature))
    assert failure.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.value.message.startswith(message)


def test_signature_of_the_right_form_is_unimplemented_with_a_remedy() -> None:
    request = inference_pb2.MultiInferenceRequest()
    request.tasks.add(method_name="tensorflow/serving/regress").model_spec.CopyFrom(_spec("regress"))
    request.tasks.add(method_name="tensorflow/serving/classify").model_spec.CopyFrom(_spec("classify"))
    for method, reject, argument in (
        ("Classify", reject_classify, _spec("classify")),
        ("Regress", reject_regress, _spec("regress")),
        ("MultiInference", reject_multi_inference, request),
    ):
        with pytest.raises(ServingError, match=f"^{method} is not implemented by this server .* Predict") as failure:
            reject(_SERVABLE, argument)
        assert failure.value.code is grpc.StatusCode.UNIMPLEMENTED
