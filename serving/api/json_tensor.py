"""Conversion of the REST API's JSON bodies to Predict requests and back, as in TensorFlow Serving.

A request has `instances` (row format: one element per batch row) or `inputs` (column format: one list per input).
Binary strings are objects `{"b64": "…"}`, as are outputs whose name ends in `_bytes`. Every input of the signature is
required: TensorFlow Serving applies a signature's defaults on gRPC only.
"""

from __future__ import annotations

import base64
import binascii
import enum
import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2

from serving.api import tensor_proto
from serving.api.status import ServingError, invalid_argument

_DEBUG_LIMIT = 256  # characters of a JSON value in an error message
_BYTES_SUFFIX = "_bytes"
_INT_RANGES = {
    types_pb2.DT_INT8: (-(2**31), 2**31),
    types_pb2.DT_INT16: (-(2**31), 2**31),
    types_pb2.DT_UINT8: (-(2**31), 2**31),
    types_pb2.DT_INT32: (-(2**31), 2**31),
    types_pb2.DT_INT64: (-(2**63), 2**63),
    types_pb2.DT_UINT32: (0, 2**32),
    types_pb2.DT_UINT64: (0, 2**64),
}
_VALUE_FIELDS = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_STRING: "string_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    **dict.fromkeys((types_pb2.DT_INT8, types_pb2.DT_INT16, types_pb2.DT_UINT8, types_pb2.DT_INT32), "int_val"),
}

SignatureLookup = Callable[[str], meta_graph_pb2.SignatureDef]
_Inputs = Mapping[str, meta_graph_pb2.TensorInfo]
_Defaults = Mapping[str, tensor_pb2.TensorProto]


class Format(enum.Enum):
    """Format of a request body; the response has the same."""

    ROW = "instances"
    COLUMN = "inputs"


def fill_predict_request(body: bytes, request: predict_pb2.PredictRequest, signature_def: SignatureLookup) -> Format:
    """Read a `:predict` body into `request`, whose model name and version are set.

    Args:
        body: JSON text.
        request: receives the signature name and the inputs.
        signature_def: returns a SignatureDef by name; "" is the default one.

    Raises:
        ServingError: INVALID_ARGUMENT, with the place and the reason.
    """
    document = parse(body)
    fill_signature_name(document, request.model_spec)
    name = request.model_spec.signature_name
    definition = signature_def(name)
    inputs, defaults = definition.inputs, definition.defaults
    if not inputs:
        raise invalid_argument(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    if "instances" in document and "inputs" in document:
        raise format_error(
            document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise format_error(document, "Expecting 'instances' to be an list/array")
        if not instances:
            raise format_error(document, "No values in 'instances' array")
        _fill_from_rows(instances, inputs, defaults, request)
        return Format.ROW
    if "inputs" in document:
        _fill_from_columns(document["inputs"], inputs, defaults, request)
        return Format.COLUMN
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def predict_response_json(response: predict_pb2.PredictResponse, layout: Format) -> bytes:
    """Write a `:predict` response: `predictions` for rows, `outputs` for columns; a single output is not named.

    Raises:
        ServingError: INVALID_ARGUMENT, outputs with different batch sizes cannot be written as rows.
    """
    outputs = {name: response.outputs[name] for name in sorted(response.outputs)}
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    if layout is Format.COLUMN:
        columns = {name: _json_values(name, tensor) for name, tensor in outputs.items()}
        return dump({"outputs": columns if len(columns) > 1 else next(iter(columns.values()))})
    batch = None
    for name, tensor in outputs.items():
        if not tensor.tensor_shape.dim:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        size = tensor.tensor_shape.dim[0].size
        if batch is not None and size != batch:
            raise invalid_argument(f"Tensor name: {name} has inconsistent batch size: {size} expecting: {batch}")
        batch = size
    columns = {name: _json_values(name, tensor) for name, tensor in outputs.items()}
    if len(columns) == 1:
        return dump({"predictions": next(iter(columns.values()))})
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return dump({"predictions": rows})


def dump(document: Any) -> bytes:
    """Write JSON; strings that are not UTF-8 are written as they are, as by TensorFlow Serving."""
    return json.dumps(document, ensure_ascii=False, indent=4).encode("utf-8", "surrogateescape")


def fill_signature_name(document: dict[str, Any], spec: model_pb2.ModelSpec) -> None:
    """Read the body's `signature_name`, if it has one.

    Raises:
        ServingError: INVALID_ARGUMENT, not a string.
    """
    if "signature_name" in document:
        if not isinstance(document["signature_name"], str):
            raise format_error(document, "not formatted correctly. 'signature_name' key must be a string value.")
        spec.signature_name = document["signature_name"]


def parse(body: bytes) -> dict[str, Any]:
    """Parse a request's JSON object.

    Raises:
        ServingError: INVALID_ARGUMENT, not JSON, or not an object.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    try:
        # Text after the first value is ignored, as by TensorFlow Serving's parser.
        document, _ = json.JSONDecoder().raw_decode(body.decode("utf-8-sig").lstrip())
    except json.JSONDecodeError as error:
        raise invalid_argument(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except UnicodeDecodeError as error:
        raise invalid_argument(f"JSON Parse error: not UTF-8 text at offset: {error.start}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply; an integer with thousands of digits
        raise invalid_argument(f"JSON Parse error: {type(error).__name__}: {error}") from error
    if not isinstance(document, dict):
        raise format_error(document, "Is not object")
    return document


def _fill_from_rows(
    instances: list[Any], inputs: _Inputs, defaults: _Defaults, request: predict_pb2.PredictRequest
) -> None:
    if not isinstance(instances[0], dict) and len(inputs) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            f"tensorinfo_map: each with the keys {','.join(sorted(inputs))}"
        )
    named = is_object(instances[0])
    columns = {name: _Column(name, info.dtype) for name, info in inputs.items()}
    for position, element in enumerate(instances):
        if named != is_object(element):
            expected, got = ("object", "list") if named else ("value/list", "object")
            raise invalid_argument(f"Expecting {expected} but got {got} at item {position} of input list")
        row = element if named else {next(iter(inputs)): element}
        for name, value in row.items():
            where = f"Failed to process element: {position}" + (f" key: {name}" if named else "")
            try:
                if name not in columns:
                    raise invalid_argument(f"JSON object: does not have named input: {name}")
                columns[name].add_row(value)
            except ServingError as error:
                raise invalid_argument(
                    f"{where} of 'instances' list. Error: INVALID_ARGUMENT: {error.message}"
                ) from error
        if set(row) != set(inputs):
            missing = ",".join(
                f"{name}{_default_hint(name, defaults, Format.ROW)}" for name in sorted(set(inputs) - set(row))
            )
            raise invalid_argument(
                f"Failed to process element: {position} of 'instances' list. JSON object: {_debug(element)} keys must "
                f"be equal to: {','.join(sorted(inputs))}. Missing: {missing}. REST requires every input, with or "
                "without a default in the signature"
            )
    for name, column in columns.items():
        request.inputs[name].CopyFrom(column.tensor(len(instances)))


def _fill_from_columns(value: Any, inputs: _Inputs, defaults: _Defaults, request: predict_pb2.PredictRequest) -> None:
    if not is_object(value):
        if len(inputs) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                f"tensorinfo_map: with the keys {','.join(sorted(inputs))}"
            )
        value = {next(iter(inputs)): value}
    for name in sorted(inputs):
        if name not in value:
            hint = _default_hint(name, defaults, Format.COLUMN)
            raise invalid_argument(
                f"Missing named input: {name} in 'inputs' object{hint}. REST requires every input, with or without a "
                f"default in the signature: {','.join(sorted(inputs))}"
            )
        column = _Column(name, inputs[name].dtype)
        column.add_row(value[name])
        request.inputs[name].CopyFrom(column.tensor(None))


def _default_hint(name: str, defaults: _Defaults, layout: Format) -> str:
    """Return the default of an input that may be omitted on gRPC, as a hint in an error message."""
    if name not in defaults:
        return ""
    value = _json_values(name, defaults[name])
    if (
        layout is Format.ROW and isinstance(value, list) and len(value) == 1
    ):  # the default's only row, which applies to all
        value = value[0]
    return f" (for its default send {_debug(value)})"


class _Column:
    """The values of one input; all elements have one shape."""

    def __init__(self, name: str, dtype: int) -> None:
        self.name = name
        self._dtype = dtype
        self._shape: tuple[int, ...] | None = None
        self._values: list[Any] = []

    def add_row(self, value: Any) -> None:
        shape = _shape(value)
        self._flatten(value, shape, 0)
        if self._shape is None:
            self._shape = shape
        elif self._shape != shape:
            expected, got = math.prod(self._shape), math.prod(shape)
            difference = (
                f"Expecting tensor size: {expected} but got: {got}"
                if expected != got
                else f"Expecting shape {tensor_proto.shape_text(self._shape)} but got: {tensor_proto.shape_text(shape)}"
            )
            raise invalid_argument(
                f"{difference} (an input has the same shape in all instances: pad the shorter lists)"
            )

    def _flatten(self, value: Any, shape: tuple[int, ...], level: int) -> None:
        if not isinstance(value, list):
            if level != len(shape):
                raise invalid_argument(
                    f"JSON Value: {_debug(value)} found at incorrect level: {level + 1} in the JSON DOM. Expected at "
                    f"level: {len(shape)}"
                )
            self._values.append(_tensor_value(value, self._dtype))
            return
        if level >= len(shape):
            raise invalid_argument(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
        if len(value) != shape[level]:
            raise invalid_argument(
                f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
            )
        for element in value:
            self._flatten(element, shape, level + 1)

    def tensor(self, rows: int | None) -> tensor_pb2.TensorProto:
        """Make a tensor of all values; `rows` is the batch dimension before the elements' shape, None for no such."""
        shape = (self._shape or ()) if rows is None else (rows, *(self._shape or ()))
        tensor = tensor_pb2.TensorProto(dtype=self._dtype)
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
        field = _VALUE_FIELDS.get(self._dtype)
        if field is not None:
            getattr(tensor, field).extend(self._values)
        return tensor


def _shape(value: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _tensor_value(value: Any, dtype: int) -> Any:
    """Convert one JSON value for the TensorProto field of `dtype`."""
    if dtype == types_pb2.DT_STRING:
        if isinstance(value, str):
            try:
                return value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise invalid_argument(f"JSON Value: {_debug(value)} is not valid Unicode: {error.reason}") from error
        if isinstance(value, dict):
            return decode_base64(value)
    elif dtype == types_pb2.DT_BOOL:
        if isinstance(value, bool):
            return value
    elif dtype in (types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE):
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                pass
    elif dtype in _INT_RANGES:
        low, high = _INT_RANGES[dtype]
        if isinstance(value, int) and not isinstance(value, bool) and low <= value < high:
            return value
    raise invalid_argument(
        f"JSON Value: {_debug(value)} Type: {json_type(value)} is not of expected type: "
        f"{tensor_proto.dtype_name(dtype).removeprefix('DT_').lower()}"
    )


def decode_base64(value: dict[str, Any]) -> bytes:
    """Decode a `{"b64": "…"}`.

    Raises:
        ServingError: INVALID_ARGUMENT, not such an object, or not base64.
    """
    text = value.get("b64")
    if len(value) != 1 or not isinstance(text, str):
        raise invalid_argument(f'JSON Value: {_debug(value)} not formatted correctly for base64 data: {{"b64": "…"}}')
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument(f"Unable to base64 decode: {error}") from error


def _json_values(name: str, tensor: tensor_pb2.TensorProto) -> Any:
    """Return a tensor as nested lists, and a scalar as its value."""
    array = tensor_proto.to_ndarray(name, tensor)
    if tensor.dtype == types_pb2.DT_STRING:
        values: list[Any] = [
            {"b64": base64.b64encode(each).decode("ascii")}
            if name.endswith(_BYTES_SUFFIX)
            else each.decode("utf-8", "surrogateescape")
            for each in array.ravel().tolist()
        ]
    elif array.dtype in (np.float32, np.float16):
        # The shortest text that reads back as the same float32: 0.2, not the 0.20000000298 of its double.
        values = [float(text) for text in array.ravel().astype(str).tolist()]
    else:
        values = array.ravel().tolist()
    return _nest(values, array.shape)


def _nest(values: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return values[0]
    for size in reversed(shape[1:]):
        if not size:
            return np.empty(shape).tolist()
        values = [values[start : start + size] for start in range(0, len(values), size)]
    return values


def is_object(value: Any) -> bool:
    """Whether a JSON value is an object, and not a base64 string."""
    return isinstance(value, dict) and not (len(value) == 1 and isinstance(value.get("b64"), str))


def json_type(value: Any) -> str:
    """Return TensorFlow Serving's name of a JSON value's type."""
    if isinstance(value, bool):
        return str(value)
    if value is None:
        return "Null"
    names: dict[type, str] = {dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
    return names[type(value)]


def _debug(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return f"(nested deeper than {sys.getrecursionlimit()})"
    return text[:_DEBUG_LIMIT].encode("utf-8", "replace").decode("utf-8")


def format_error(value: Any, reason: str) -> ServingError:
    """Make an INVALID_ARGUMENT error with the beginning of the value."""
    return invalid_argument(f"JSON Value: {_debug(value)} {reason}")
