"""Conversion of Python values to TensorProto columns and back, without numpy."""

from __future__ import annotations

import array
import math
import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from tandem_client import serving_pb2 as pb
from tandem_client.signatures import dtype_text

_FLOAT32_MAX = 3.4028234663852886e38
_INT_BITS = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}
_UINT_BITS = {"uint8": 8, "uint32": 32, "uint64": 64}
_FIELDS = {
    "float": "float_val",
    "double": "double_val",
    "int32": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint8": "int_val",
    "string": "string_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
}
_CONTENT_CODES = {"float": "f", "double": "d", "int64": "q", "int32": "i"}


def column(dtype: str, values: Iterable[Any]) -> pb.TensorProto:
    """Make a tensor of shape [B] with one value per row.

    Args:
        dtype: TensorFlow's name, such as `string`, `int64` or `float`.
        values: `str` or `bytes` for strings, integers for integers, numbers for floats, bools for bools.

    Raises:
        ValueError: a value of another dtype; names the position, the value and the remedy.
    """
    _require_sendable(dtype)
    converted = [_value(dtype, position, value) for position, value in enumerate(values)]
    tensor = _flat(dtype, converted)
    tensor.tensor_shape.dim.add(size=len(converted))
    return tensor


def scalar(dtype: str, value: Any) -> pb.TensorProto:
    """Make a tensor of shape [].

    Raises:
        ValueError: as `column`.
    """
    _require_sendable(dtype)
    tensor = _flat(dtype, [_value(dtype, 0, value)])
    tensor.tensor_shape.SetInParent()
    return tensor


def padded_strings(rows: Sequence[Sequence[str]]) -> pb.TensorProto:
    """Make a string tensor of shape [B, L] of rows of any lengths, padded with '' at the front.

    L is one more than the length of the longest row, so that the first column is all padding. If TensorFlow Serving
    batches requests of different L (`pad_variable_length_inputs`), it pads the shorter ones with their own first value
    (PadTensor in its batching_util.cc), which must be '' and not an item of the row.

    Args:
        rows: B rows; an empty row becomes padding.

    Raises:
        ValueError: a string that is not valid Unicode.
    """
    length = 1 + max(map(len, rows), default=0)
    tensor = pb.TensorProto(dtype=pb.DT_STRING)
    for size in (len(rows), length):
        tensor.tensor_shape.dim.add(size=size)
    for row in rows:
        tensor.string_val.extend([b""] * (length - len(row)))
        tensor.string_val.extend(each.encode("utf-8") for each in row)
    return tensor


def shape(tensor: pb.TensorProto) -> tuple[int, ...]:
    """Return the tensor's shape."""
    return tuple(dim.size for dim in tensor.tensor_shape.dim)


def values(tensor: pb.TensorProto) -> list[Any]:
    """Return all values in row-major order, strings as bytes.

    Raises:
        ValueError: an unsupported dtype, or values that do not fill the shape.
    """
    dtype = dtype_text(tensor.dtype)
    field = _FIELDS.get(dtype)
    if field is None:
        raise ValueError(f"dtype {dtype} is not supported by this client")
    elements = math.prod(shape(tensor))
    if tensor.tensor_content:
        found = _from_content(dtype, tensor.tensor_content, elements)
    else:
        found = list(getattr(tensor, field))
        if found and len(found) < elements:  # TensorFlow leaves out repetitions of the last value
            found += [found[-1]] * (elements - len(found))
        elif not found and elements:  # and all values that are zero
            found = [b"" if dtype == "string" else 0] * elements
    if len(found) != elements:
        raise ValueError(f"expected values for shape {list(shape(tensor))}, got {len(found)} values")
    return found


def _require_sendable(dtype: str) -> None:
    if dtype not in _FIELDS:
        raise ValueError(f"has dtype {dtype}, which this client does not support; omit the input if it is optional")


def _flat(dtype: str, converted: list[Any]) -> pb.TensorProto:
    """Make a tensor with these values and without a shape."""
    tensor = pb.TensorProto(dtype=f"DT_{dtype.upper()}")
    getattr(tensor, _FIELDS[dtype]).extend(converted)
    return tensor


def _value(dtype: str, position: int, value: Any) -> Any:
    if dtype == "string":
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return value.encode("utf-8")
    elif dtype == "bool":
        if isinstance(value, bool):
            return value
    elif isinstance(value, bool | str | bytes):
        pass
    elif dtype in ("float", "double"):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            pass
        else:
            if dtype == "float" and math.isfinite(number) and abs(number) > _FLOAT32_MAX:
                raise ValueError(f"expected {dtype}, got {value!r} at position {position}, which is out of range")
            return number
    else:
        try:
            integer = operator.index(value)
        except TypeError:
            pass
        else:
            low, high = _range(dtype)
            if not low <= integer < high:
                raise ValueError(f"expected {dtype}, {low} to {high - 1}, got {integer} at position {position}")
            return integer
    hint = {"string": "a str", "bool": "True or False", "float": "a number", "double": "a number"}.get(dtype, "an int")
    raise ValueError(f"expected {dtype}, got {type(value).__name__} {value!r} at position {position}; pass {hint}")


def _range(dtype: str) -> tuple[int, int]:
    if dtype in _INT_BITS:
        half = 1 << (_INT_BITS[dtype] - 1)
        return -half, half
    return 0, 1 << _UINT_BITS[dtype]


def _from_content(dtype: str, content: bytes, elements: int) -> list[Any]:
    if dtype == "string":
        return _strings_from_content(content, elements)
    code = _CONTENT_CODES.get(dtype)
    if code is None:
        raise ValueError(f"dtype {dtype} in tensor_content is not supported by this client")
    numbers = array.array(code)
    if len(content) != elements * numbers.itemsize:
        raise ValueError(f"expected tensor_content of {elements} values of {dtype}, got {len(content)} bytes")
    numbers.frombytes(content)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _strings_from_content(content: bytes, elements: int) -> list[Any]:
    """Read TensorFlow's encoding of strings: all lengths as varints, then all bytes."""
    lengths: list[int] = []
    position = length = shift = 0
    while len(lengths) < elements:
        if position >= len(content):
            raise ValueError("tensor_content ends inside the lengths of its strings")
        byte = content[position]
        position += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            lengths.append(length)
            length = shift = 0
    if position + sum(lengths) != len(content):
        raise ValueError("tensor_content does not match the lengths of its strings")
    strings = []
    for size in lengths:
        strings.append(content[position : position + size])
        position += size
    return strings
