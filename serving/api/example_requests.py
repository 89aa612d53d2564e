"""Classify, Regress and MultiInference: rejected, because Tandem exports no signature of their form.

Codes and messages are TensorFlow Serving's for a signature of another form. It checks the form (one input
`inputs`; outputs `classes` and `scores`, or `outputs`) and not the signature's method name, because TensorFlow 2
exports every signature with the one of Predict.
"""

from __future__ import annotations

from typing import NoReturn

import grpc
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import inference_pb2, model_pb2

from serving.api.served_models import DEFAULT_SIGNATURE, Servable
from serving.api.status import ServingError, invalid_argument

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"
_INPUTS = "inputs"
_CLASSES = "classes"
_SCORES = "scores"
_OUTPUTS = "outputs"


def reject_classify(servable: Servable, spec: model_pb2.ModelSpec) -> NoReturn:
    """Reject PredictionService.Classify.

    Raises:
        ServingError: INVALID_ARGUMENT for an unknown signature or one of another form, UNIMPLEMENTED for one of
            Classify's form.
    """
    definition = _signature(servable, spec)
    _check_classification(definition)
    raise _not_implemented("Classify", spec)


def reject_regress(servable: Servable, spec: model_pb2.ModelSpec) -> NoReturn:
    """Reject PredictionService.Regress.

    Raises:
        ServingError: INVALID_ARGUMENT for an unknown signature or one of another form, UNIMPLEMENTED for one of
            Regress' form.
    """
    definition = _signature(servable, spec)
    _check_regression(definition)
    raise _not_implemented("Regress", spec)


def reject_multi_inference(servable: Servable, request: inference_pb2.MultiInferenceRequest) -> NoReturn:
    """Reject PredictionService.MultiInference.

    Raises:
        ServingError: INVALID_ARGUMENT for tasks of several models, a signature twice, an unknown one or one of another
            form; UNIMPLEMENTED for methods other than classify and regress, and for signatures of their form.
    """
    for task, definition in zip(request.tasks, _task_definitions(servable, request), strict=True):
        if task.method_name == CLASSIFY_METHOD:
            _check_classification(definition)
        else:
            _check_regression(definition)
    raise _not_implemented("MultiInference", request.tasks[0].model_spec)


def _task_definitions(
    servable: Servable, request: inference_pb2.MultiInferenceRequest
) -> list[meta_graph_pb2.SignatureDef]:
    definitions: dict[str, meta_graph_pb2.SignatureDef] = {}
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid_argument("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        key = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if key in definitions:
            raise invalid_argument(f"Duplicate evaluation of signature: {key}")
        if key not in servable.signature_defs:
            raise invalid_argument(f"Requested signature not found in model graph: {key}")
        if task.method_name not in (CLASSIFY_METHOD, REGRESS_METHOD):
            raise ServingError(
                grpc.StatusCode.UNIMPLEMENTED,
                f"Unsupported signature method_name: {task.method_name}; expected {CLASSIFY_METHOD} or "
                f"{REGRESS_METHOD}",
            )
        definitions[key] = servable.signature_defs[key]
    return list(definitions.values())


def _signature(servable: Servable, spec: model_pb2.ModelSpec) -> meta_graph_pb2.SignatureDef:
    key = spec.signature_name or DEFAULT_SIGNATURE
    definition = servable.signature_defs.get(key)
    if definition is None:
        raise invalid_argument(
            f"No signature was found with the name: {key}; version {servable.version} of model {servable.name} has "
            f"{', '.join(sorted(servable.signature_defs))}"
        )
    return definition


def _check_classification(definition: meta_graph_pb2.SignatureDef) -> None:
    if len(definition.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(definition.outputs) not in (1, 2):
        raise invalid_argument(f"Expected one or two output Tensors, found {len(definition.outputs)}")
    if _INPUTS not in definition.inputs:
        raise invalid_argument(f"No classification inputs found in SignatureDef: {definition}")
    if _CLASSES not in definition.outputs and _SCORES not in definition.outputs:
        raise invalid_argument(
            "Expected classification signature outputs to contain at least one of "
            f'"{_CLASSES}" or "{_SCORES}". Signature was: {definition}'
        )


def _check_regression(definition: meta_graph_pb2.SignatureDef) -> None:
    if len(definition.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(definition.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if _INPUTS not in definition.inputs:
        raise invalid_argument(f"No regression inputs found in SignatureDef: {definition}")
    if _OUTPUTS not in definition.outputs:
        raise invalid_argument(f"No regression outputs found in SignatureDef: {definition}")


def _not_implemented(method: str, spec: model_pb2.ModelSpec) -> ServingError:
    return ServingError(
        grpc.StatusCode.UNIMPLEMENTED,
        f"{method} is not implemented by this server (signature {spec.signature_name or DEFAULT_SIGNATURE} of model "
        f"{spec.name}); send a Predict request, or serve the model with TensorFlow Serving",
    )
