"""JSON bodies of REST's `:classify` and `:regress` to requests and back, as TensorFlow Serving reads and writes them.

A request carries `examples`, a list of objects (feature name to value or list of values), and optionally `context`, an
object of features that all examples share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, regression_pb2

from serving.api import json_tensor
from serving.api.status import ServingError, invalid_argument

_INT64 = range(-(2**63), 2**63)
_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


def fill_request(
    body: bytes, request: classification_pb2.ClassificationRequest | regression_pb2.RegressionRequest
) -> None:
    """Reads a `:classify` or `:regress` body into `request` (whose model name and version are set).

    Raises:
        ServingError: INVALID_ARGUMENT with the feature and the reason.
    """
    document = json_tensor.parse(body)
    json_tensor.fill_signature_name(document, request.model_spec)
    examples = request.input.example_list.examples
    if "context" in document:
        _fill_example(document["context"], request.input.example_list_with_context.context)
        examples = request.input.example_list_with_context.examples
    if "examples" not in document:
        raise json_tensor.format_error(
            document, "When method is classify, key 'examples' is expected and was not found"
        )
    if not isinstance(document["examples"], list):
        raise json_tensor.format_error(document, "Expecting 'examples' value to be an list/array")
    if not document["examples"]:
        raise json_tensor.format_error(document, "'examples' value is an empty array")
    for value in document["examples"]:
        _fill_example(value, examples.add())


def classification_json(response: classification_pb2.ClassificationResponse) -> bytes:
    """`{"results": [[[label, score], …], …]}`: a list of pairs for each example."""
    return json_tensor.dump(
        {
            "results": [
                [[each.label, _short(each.score)] for each in entry.classes]
                for entry in response.result.classifications
            ]
        }
    )


def regression_json(response: regression_pb2.RegressionResponse) -> bytes:
    """`{"results": [value, …]}`: a number for each example."""
    return json_tensor.dump({"results": [_short(each.value) for each in response.result.regressions]})


def _short(value: float) -> float:
    """The shortest decimal that reads back as the same float32."""
    return float(str(np.float32(value)))


def _fill_example(value: Any, example: tf.train.Example) -> None:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {json_tensor.json_type(value)}")
    for name, content in value.items():
        feature = example.features.feature[name]
        feature.SetInParent()
        for element in content if isinstance(content, list) else [content]:
            _add_value(element, name, feature)


def _add_value(value: Any, name: str, feature: tf.train.Feature) -> None:
    if isinstance(value, bool):
        _values(feature, "int64_list", name).append(int(value))
    elif isinstance(value, str):
        _values(feature, "bytes_list", name).append(value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, dict) and not json_tensor.is_object(value):
        _values(feature, "bytes_list", name).append(json_tensor.decode_base64(value))
    elif isinstance(value, float):
        _values(feature, "float_list", name).append(value)
    elif isinstance(value, int):
        if value not in _INT64:
            raise invalid_argument(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        _values(feature, "int64_list", name).append(value)
    else:
        raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {json_tensor.json_type(value)}")


def _values(feature: tf.train.Feature, kind: str, name: str) -> Any:
    found = feature.WhichOneof("kind")
    if found not in (None, kind):
        raise _mixed(name, found)
    return getattr(feature, kind).value


def _mixed(name: str, kind: str) -> ServingError:
    return invalid_argument(f"Unexpected element type in feature: {name} expecting type: {_KINDS[kind]}")
