"""Python values to TensorProto columns and back, without numpy."""

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
    """A tensor of shape [B] with one value a row.

    Args:
        dtype: TensorFlow's name of it, `string`, `int64`, `float`, …
        values: `str` or `bytes` for strings, integers for integers, numbers for floats, bools for bools.

    Raises:
        ValueError: a value that is not of this dtype; says where, what was found and what to pass.
    """
    _require_sendable(dtype)
    converted = [_value(dtype, position, value) for position, value in enumerate(values)]
    tensor = _flat(dtype, converted)
    tensor.tensor_shape.dim.add(size=len(converted))
    return tensor


def scalar(dtype: str, value: Any) -> pb.TensorProto:
    """A tensor of shape [].

    Raises:
        ValueError: as `column`.
    """
    _require_sendable(dtype)
    tensor = _flat(dtype, [_value(dtype, 0, value)])
    tensor.tensor_shape.SetInParent()
    return tensor


def padded_strings(rows: Sequence[Sequence[str]]) -> pb.TensorProto:
    """Rows of strings, of any lengths, as a string tensor of shape [B, L], padded with '' at the front.

    L is one more than the longest row has, so that the first column is all padding. TensorFlow Serving, where it
    batches requests of different L (`pad_variable_length_inputs`), fills the shorter ones up with their own first value
    (PadTensor in its batching_util.cc): that must be '', not somebody's item.

    Args:
        rows: B rows; an empty one becomes padding alone.

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
    """The tensor's shape."""
    return tuple(dim.size for dim in tensor.tensor_shape.dim)


def values(tensor: pb.TensorProto) -> list[Any]:
    """All values in row-major order: strings as bytes, numbers as Python's.

    Raises:
        ValueError: a dtype that this client does not read, or values that do not fill the shape.
    """
    dtype = dtype_text(tensor.dtype)
    field = _FIELDS.get(dtype)
    if field is None:
        raise ValueError(f"dtype {dtype} is not one this client reads")
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
        raise ValueError(f"{len(found)} values for shape {list(shape(tensor))}")
    return found


def _require_sendable(dtype: str) -> None:
    if dtype not in _FIELDS:
        raise ValueError(f"has dtype {dtype}, which this client does not send; leave it out if it is optional")


def _flat(dtype: str, converted: list[Any]) -> pb.TensorProto:
    """A tensor with these values and no shape yet."""
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
                raise ValueError(f"wants {dtype}; found {value!r} at position {position}, beyond its range")
            return number
    else:
        try:
            integer = operator.index(value)
        except TypeError:
            pass
        else:
            low, high = _range(dtype)
            if not low <= integer < high:
                raise ValueError(f"wants {dtype}; found {integer} at position {position}; pass {low} to {high - 1}")
            return integer
    hint = {"string": "a str", "bool": "True or False", "float": "a number", "double": "a number"}.get(dtype, "an int")
    raise ValueError(f"wants {dtype}; found {type(value).__name__} {value!r} at position {position}; pass {hint}")


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
        raise ValueError(f"dtype {dtype} in tensor_content is not one this client reads")
    numbers = array.array(code)
    if len(content) != elements * numbers.itemsize:
        raise ValueError(f"{len(content)} bytes of tensor_content for {elements} values of {dtype}")
    numbers.frombytes(content)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _strings_from_content(content: bytes, elements: int) -> list[Any]:
    """TensorFlow packs strings as all lengths, each a varint, then all bytes."""
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
        raise ValueError("tensor_content does not hold the bytes its string lengths announce")
    strings = []
    for size in lengths:
        strings.append(content[position : position + size])
        position += size
    return strings
