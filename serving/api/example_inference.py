"""Classify, Regress and MultiInference: tf.Examples in, classes or a number an example out.

As in TensorFlow Serving, any signature of the right form answers: one input `inputs` (serialized tf.Examples), outputs
`classes` and/or `scores` for classification, `outputs` for regression. The signature's method name is not looked at,
since TensorFlow 2 exports every signature with the one of Predict (TensorFlow Serving's default,
`--enable_signature_method_name_check=false`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import classification_pb2, inference_pb2, input_pb2, model_pb2, regression_pb2

from serving.api import tensor_proto
from serving.api.status import ServingError, invalid_argument
from serving.server.servable import DEFAULT_SIGNATURE, Servable

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"
_INPUTS = "inputs"
_CLASSES = "classes"
_SCORES = "scores"
_OUTPUTS = "outputs"
_RUNTIME = "TF1"

_Values = Mapping[str, Any]


def classify(
    servable: Servable, request: classification_pb2.ClassificationRequest
) -> classification_pb2.ClassificationResponse:
    """PredictionService.Classify.

    Raises:
        ServingError: INVALID_ARGUMENT for a signature that is not of classification's form or an empty input.
    """
    definition = _signature(servable, request.model_spec)
    fetches = _classification_outputs(definition)
    response = classification_pb2.ClassificationResponse()
    _fill_spec(response.model_spec, request.model_spec, servable)
    examples = _serialized_examples(request.input)
    values = _run(servable, definition, fetches, examples, "Classify")
    _fill_classifications(definition, values, len(examples), response.result)
    return response


def regress(servable: Servable, request: regression_pb2.RegressionRequest) -> regression_pb2.RegressionResponse:
    """PredictionService.Regress.

    Raises:
        ServingError: INVALID_ARGUMENT for a signature that is not of regression's form or an empty input.
    """
    definition = _signature(servable, request.model_spec)
    fetches = _regression_outputs(definition)
    response = regression_pb2.RegressionResponse()
    _fill_spec(response.model_spec, request.model_spec, servable)
    examples = _serialized_examples(request.input)
    values = _run(servable, definition, fetches, examples, "Regress")
    _fill_regressions(definition, values, len(examples), response.result)
    return response


def multi_inference(
    servable: Servable, request: inference_pb2.MultiInferenceRequest
) -> inference_pb2.MultiInferenceResponse:
    """PredictionService.MultiInference: several signatures of one model on the same examples, in one run of the graph.

    Raises:
        ServingError: INVALID_ARGUMENT for tasks of several models, one signature twice, an unknown one, one of another
            form; UNIMPLEMENTED for a method other than classify and regress.
    """
    definitions = _task_definitions(servable, request)
    inputs: set[str] = set()
    fetches: dict[str, str] = {}
    for task, definition in zip(request.tasks, definitions, strict=True):
        fetches |= _classification_outputs(definition) if _classifies(task) else _regression_outputs(definition)
        inputs.add(definition.inputs[_INPUTS].name)
    examples = _serialized_examples(request.input)
    names = sorted(fetches)
    values = dict(zip(names, servable.run_examples(sorted(inputs), names, examples), strict=True))
    servable.metrics.example_counts.record(len(examples), servable.name)
    servable.metrics.example_count_total.increment(servable.name, by=len(examples))
    response = inference_pb2.MultiInferenceResponse()
    for task, definition in zip(request.tasks, definitions, strict=True):
        result = response.results.add()
        if _classifies(task):
            _fill_classifications(definition, values, len(examples), result.classification_result)
        else:
            _fill_regressions(definition, values, len(examples), result.regression_result)
        _fill_spec(result.model_spec, task.model_spec, servable)
    return response


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
                f"Unsupported signature method_name: {task.method_name}; wanted {CLASSIFY_METHOD} or {REGRESS_METHOD}",
            )
        definitions[key] = servable.signature_defs[key]
    return list(definitions.values())


def _classifies(task: inference_pb2.InferenceTask) -> bool:
    return bool(task.method_name == CLASSIFY_METHOD)


def _signature(servable: Servable, spec: model_pb2.ModelSpec) -> meta_graph_pb2.SignatureDef:
    key = spec.signature_name or DEFAULT_SIGNATURE
    definition = servable.signature_defs.get(key)
    if definition is None:
        raise invalid_argument(
            f"No signature was found with the name: {key}; version {servable.version} of model {servable.name} has "
            f"{', '.join(sorted(servable.signature_defs))}"
        )
    return definition


def _classification_outputs(definition: meta_graph_pb2.SignatureDef) -> dict[str, str]:
    """Tensor name to output alias, of what a classification signature answers."""
    if len(definition.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(definition.outputs) not in (1, 2):
        raise invalid_argument(f"Expected one or two output Tensors, found {len(definition.outputs)}")
    if _INPUTS not in definition.inputs:
        raise invalid_argument(f"No classification inputs found in SignatureDef: {definition}")
    found = {definition.outputs[alias].name: alias for alias in (_CLASSES, _SCORES) if alias in definition.outputs}
    if not found:
        raise invalid_argument(
            "Expected classification signature outputs to contain at least one of "
            f'"{_CLASSES}" or "{_SCORES}". Signature was: {definition}'
        )
    return found


def _regression_outputs(definition: meta_graph_pb2.SignatureDef) -> dict[str, str]:
    """Tensor name to output alias, of what a regression signature answers."""
    if len(definition.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(definition.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if _INPUTS not in definition.inputs:
        raise invalid_argument(f"No regression inputs found in SignatureDef: {definition}")
    if _OUTPUTS not in definition.outputs:
        raise invalid_argument(f"No regression outputs found in SignatureDef: {definition}")
    return {definition.outputs[_OUTPUTS].name: _OUTPUTS}


def _run(
    servable: Servable,
    definition: meta_graph_pb2.SignatureDef,
    fetches: Mapping[str, str],
    examples: tensor_proto.Array,
    api: str,
) -> dict[str, Any]:
    names = sorted(fetches)
    started = time.perf_counter()
    values = servable.run_examples([definition.inputs[_INPUTS].name], names, examples)
    elapsed = time.perf_counter() - started
    servable.metrics.runtime_latency.record(elapsed * 1e6, servable.name, api, _RUNTIME)
    return dict(zip(names, values, strict=True))


def _serialized_examples(sent: input_pb2.Input) -> tensor_proto.Array:
    """bytes [B]; the context's features are part of each example, and the example's own win over them."""
    kind = sent.WhichOneof("kind")
    context = b""
    examples: Any = sent.example_list.examples
    if kind == "example_list_with_context":
        context = sent.example_list_with_context.context.SerializeToString()
        examples = sent.example_list_with_context.examples
    if not examples:
        raise invalid_argument("Input is empty.")
    array = np.empty(len(examples), dtype=object)
    # Two serialized messages one after the other are their merge: the later one's map entries replace the earlier's.
    array[:] = [context + example.SerializeToString() for example in examples]
    return array


def _fill_classifications(
    definition: meta_graph_pb2.SignatureDef, values: _Values, rows: int, result: classification_pb2.ClassificationResult
) -> None:
    classes = _matrix(definition, values, _CLASSES, types_pb2.DT_STRING, rows)
    scores = _matrix(definition, values, _SCORES, types_pb2.DT_FLOAT, rows)
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid_argument(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    for row in range(rows):
        entry = result.classifications.add()
        labels = None if classes is None else classes[row].tolist()
        numbers = None if scores is None else scores[row].tolist()
        for position in range(len(labels if labels is not None else numbers or ())):
            each = entry.classes.add()
            if labels is not None:
                each.label = labels[position].decode("utf-8", "replace")  # the field is text, so that it has to be
            if numbers is not None:
                each.score = numbers[position]


def _matrix(
    definition: meta_graph_pb2.SignatureDef, values: _Values, alias: str, dtype: int, rows: int
) -> tensor_proto.Array | None:
    if alias not in definition.outputs:
        return None
    info = definition.outputs[alias]
    value = np.asarray(values[info.name])
    if value.ndim != 2:
        raise invalid_argument(
            f"Expected Tensor shape: [batch_size num_classes] but got {tensor_proto.shape_text(value.shape)}"
        )
    if info.dtype != dtype:
        raise invalid_argument(
            f"Expected {alias} Tensor of {tensor_proto.dtype_name(dtype)}. Got: {tensor_proto.dtype_name(info.dtype)}"
        )
    if value.shape[0] != rows:
        raise invalid_argument(f"Expected {alias} output batch size of {rows}. Got: {value.shape[0]}")
    return value


def _fill_regressions(
    definition: meta_graph_pb2.SignatureDef, values: _Values, rows: int, result: regression_pb2.RegressionResult
) -> None:
    info = definition.outputs[_OUTPUTS]
    value = np.asarray(values[info.name])
    if not (value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1)):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{tensor_proto.shape_text(value.shape)}"
        )
    if value.shape[0] != rows:
        raise invalid_argument(f"Input batch size did not match output batch size: {rows} vs. {value.shape[0]}")
    if info.dtype != types_pb2.DT_FLOAT:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {tensor_proto.dtype_name(info.dtype)}")
    for number in value.ravel().tolist():
        result.regressions.add().value = number


def _fill_spec(spec: model_pb2.ModelSpec, asked: model_pb2.ModelSpec, servable: Servable) -> None:
    spec.name = servable.name
    spec.signature_name = asked.signature_name or DEFAULT_SIGNATURE
    spec.version.value = servable.version
