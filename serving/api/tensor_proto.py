"""Conversion of TensorProto to numpy and back, as in TensorFlow Serving's C++.

`tf.make_tensor_proto` takes about ten times as long, and `tf.make_ndarray` does not read strings from `tensor_content`.
Responses use typed fields (`float_val`, `string_val`, …), TensorFlow Serving's default.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import grpc
import numpy as np
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.api.status import ServingError, invalid_argument

Array = np.ndarray[Any, np.dtype[Any]]

# A few bytes can have a huge shape, because the last value is repeated: limits what is allocated for them.
_IMPLICIT_ELEMENTS_LIMIT = 1 << 24


class _Field(NamedTuple):
    dtype: Any
    name: str


_FIELDS: dict[int, _Field] = {
    types_pb2.DT_FLOAT: _Field(np.float32, "float_val"),
    types_pb2.DT_DOUBLE: _Field(np.float64, "double_val"),
    types_pb2.DT_INT32: _Field(np.int32, "int_val"),
    types_pb2.DT_UINT8: _Field(np.uint8, "int_val"),
    types_pb2.DT_INT16: _Field(np.int16, "int_val"),
    types_pb2.DT_INT8: _Field(np.int8, "int_val"),
    types_pb2.DT_STRING: _Field(object, "string_val"),
    types_pb2.DT_INT64: _Field(np.int64, "int64_val"),
    types_pb2.DT_BOOL: _Field(np.bool_, "bool_val"),
    types_pb2.DT_HALF: _Field(np.float16, "half_val"),
    types_pb2.DT_UINT32: _Field(np.uint32, "uint32_val"),
    types_pb2.DT_UINT64: _Field(np.uint64, "uint64_val"),
}


def dtype_name(dtype: int) -> str:
    """Return the name of a DataType, such as `DT_STRING` for 7; the number if it is unknown."""
    return str(types_pb2.DataType.Name(dtype)) if dtype in types_pb2.DataType.values() else f"DataType {dtype}"


def shape_text(shape: Iterable[int]) -> str:
    """Return a shape as text, such as `[-1,100]`; -1 is any size."""
    return "[" + ",".join(str(size) for size in shape) + "]"


def to_ndarray(alias: str, tensor: tensor_pb2.TensorProto) -> Array:
    """Decode one input.

    Args:
        alias: the input's name, for the error message.
        tensor: values in the typed field or in `tensor_content`. If it has fewer values than elements, the last one is
            repeated; without values, all are zero or '', as in TensorFlow.

    Returns:
        An array of the tensor's shape; strings as an object array of bytes.

    Raises:
        ServingError: INVALID_ARGUMENT, values that do not match the shape, or an unsupported dtype.
    """
    field = _FIELDS.get(tensor.dtype)
    if field is None:
        raise _parsing_error(alias, f"dtype {dtype_name(tensor.dtype)} is not supported")
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if tensor.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise _parsing_error(alias, f"expected a shape with the size of each dimension, got {shape_text(shape)}")
    elements = math.prod(shape)
    if tensor.tensor_content:
        flat = _from_content(alias, tensor, field, elements)
    else:
        flat = _from_values(alias, tensor, field, elements)
    return flat.reshape(shape)


def fill(tensor: tensor_pb2.TensorProto, value: Any, dtype: int) -> None:
    """Encode one output into an empty tensor.

    Args:
        tensor: receives dtype, shape and values, without a copy of a large response.
        value: the session's value: an array or a scalar; strings as bytes in an object array.
        dtype: the output's `DataType` in the signature.

    Raises:
        ServingError: UNIMPLEMENTED for an unsupported dtype (complex, quantised, resources).
    """
    field = _FIELDS.get(dtype)
    if field is None:
        raise ServingError(grpc.StatusCode.UNIMPLEMENTED, f"Output of dtype {dtype_name(dtype)} cannot be returned")
    array = np.asarray(value, dtype=field.dtype)
    tensor.dtype = dtype
    tensor.tensor_shape.SetInParent()  # a scalar has a shape without dimensions
    for size in array.shape:
        tensor.tensor_shape.dim.add().size = size
    if dtype == types_pb2.DT_HALF:
        array = array.view(np.uint16)
    getattr(tensor, field.name).extend(array.ravel().tolist())


def _from_values(alias: str, tensor: tensor_pb2.TensorProto, field: _Field, elements: int) -> Array:
    values = getattr(tensor, field.name)
    if len(values) > elements:
        raise _parsing_error(
            alias, f"expected {elements} values of {_described(tensor)} in {field.name}, got {len(values)}"
        )
    if len(values) < elements and elements > _IMPLICIT_ELEMENTS_LIMIT:
        raise _parsing_error(alias, f"expected {elements} values of {_described(tensor)}, got {len(values)}")
    if tensor.dtype == types_pb2.DT_HALF:
        flat: Array = np.array(values, dtype=np.uint16).view(np.float16)
    elif tensor.dtype == types_pb2.DT_STRING:
        flat = np.empty(len(values), dtype=object)
        flat[:] = values
    else:
        try:
            flat = np.array(values, dtype=field.dtype)
        except OverflowError as error:
            raise _parsing_error(alias, f"a value is out of range for {dtype_name(tensor.dtype)}: {error}") from error
    if len(values) == elements:
        return flat
    rest: Any = flat[-1] if len(values) else (b"" if tensor.dtype == types_pb2.DT_STRING else 0)
    return np.concatenate([flat, np.full(elements - len(values), rest, dtype=flat.dtype)])


def _from_content(alias: str, tensor: tensor_pb2.TensorProto, field: _Field, elements: int) -> Array:
    content = tensor.tensor_content
    if tensor.dtype == types_pb2.DT_STRING:
        return _strings_from_content(alias, content, elements)
    size = elements * np.dtype(field.dtype).itemsize
    if len(content) != size:
        raise _parsing_error(
            alias, f"expected {size} bytes of tensor_content for {_described(tensor)}, got {len(content)}"
        )
    return np.frombuffer(content, dtype=field.dtype)


def _strings_from_content(alias: str, content: bytes, elements: int) -> Array:
    """Read TensorFlow's encoding of strings: all lengths as varints, then all bytes."""
    if elements > len(content):  # every string takes at least its length's one byte
        raise _parsing_error(alias, f"expected tensor_content of {elements} strings, got {len(content)} bytes")
    lengths = []
    position = 0
    for _ in range(elements):
        length = shift = 0
        while True:
            if position >= len(content) or shift > 28:
                raise _parsing_error(alias, "tensor_content ends inside the lengths of its strings")
            byte = content[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise _parsing_error(
            alias, f"expected {sum(lengths)} bytes of strings in tensor_content, got {len(content) - position}"
        )
    flat = np.empty(elements, dtype=object)
    for index, length in enumerate(lengths):
        flat[index] = content[position : position + length]
        position += length
    return flat


def _described(tensor: tensor_pb2.TensorProto) -> str:
    return f"{dtype_name(tensor.dtype)} {shape_text(dim.size for dim in tensor.tensor_shape.dim)}"


def _parsing_error(alias: str, reason: str) -> ServingError:
    return invalid_argument(f"tensor parsing error: {alias}: {reason}")
