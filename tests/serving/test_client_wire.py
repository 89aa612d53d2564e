"""tandem_client's messages are wire-compatible with TensorFlow Serving's in both directions."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2, predict_pb2

import tandem_client
from serving.config import server_config_pb2
from tandem_client import serving_pb2 as ours
from tandem_client import tensors

_PAIRS: dict[type[Message], type[Message]] = {
    ours.TensorShapeProto: tensor_shape_pb2.TensorShapeProto,
    ours.TensorProto: tensor_pb2.TensorProto,
    ours.TensorInfo: meta_graph_pb2.TensorInfo,
    ours.SignatureDef: meta_graph_pb2.SignatureDef,
    ours.SignatureDefMap: get_model_metadata_pb2.SignatureDefMap,
    ours.ModelSpec: model_pb2.ModelSpec,
    ours.PredictRequest: predict_pb2.PredictRequest,
    ours.PredictResponse: predict_pb2.PredictResponse,
    ours.GetModelMetadataRequest: get_model_metadata_pb2.GetModelMetadataRequest,
    ours.GetModelMetadataResponse: get_model_metadata_pb2.GetModelMetadataResponse,
    ours.GetModelStatusRequest: get_model_status_pb2.GetModelStatusRequest,
    ours.GetModelStatusResponse: get_model_status_pb2.GetModelStatusResponse,
}
_text = st.text(st.characters(codec="utf-8"), max_size=8)
_int64 = st.integers(-(2**63), 2**63 - 1)
_int32 = st.integers(-(2**31), 2**31 - 1)
_shape = st.fixed_dictionaries(
    {
        "dim": st.lists(st.fixed_dictionaries({"size": _int64, "name": _text}), max_size=3),
        "unknown_rank": st.booleans(),
    }
)
_dtype = st.sampled_from(list(ours.DataType.values()))
_tensor = st.fixed_dictionaries(
    {"dtype": _dtype, "tensor_shape": _shape},
    optional={
        "version_number": _int32,
        "tensor_content": st.binary(max_size=16),
        "float_val": st.lists(st.floats(width=32), max_size=4),
        "double_val": st.lists(st.floats(), max_size=4),
        "int_val": st.lists(_int32, max_size=4),
        "string_val": st.lists(st.binary(max_size=8), max_size=4),
        "int64_val": st.lists(_int64, max_size=4),
        "bool_val": st.lists(st.booleans(), max_size=4),
        "half_val": st.lists(_int32, max_size=4),
        "uint32_val": st.lists(st.integers(0, 2**32 - 1), max_size=4),
        "uint64_val": st.lists(st.integers(0, 2**64 - 1), max_size=4),
    },
)
_info = st.fixed_dictionaries({"name": _text, "dtype": _dtype, "tensor_shape": _shape})
_signature = st.fixed_dictionaries(
    {
        "inputs": st.dictionaries(_text, _info, max_size=2),
        "outputs": st.dictionaries(_text, _info, max_size=2),
        "method_name": _text,
        "defaults": st.dictionaries(_text, _tensor, max_size=2),
    }
)
_spec = st.one_of(
    st.fixed_dictionaries({"name": _text, "signature_name": _text}),
    st.fixed_dictionaries({"name": _text, "version": st.fixed_dictionaries({"value": _int64})}),
    st.fixed_dictionaries({"name": _text, "version_label": _text}),
)
_any = st.fixed_dictionaries({"type_url": _text, "value": st.binary(max_size=16)})
_status = st.fixed_dictionaries(
    {
        "version": _int64,
        "state": st.sampled_from(list(ours.ModelVersionStatus.State.values())),
        "status": st.fixed_dictionaries({"error_code": st.integers(0, 16), "error_message": _text}),
    }
)
_FIELDS: dict[type[Message], SearchStrategy[dict[str, Any]]] = {
    ours.TensorShapeProto: _shape,
    ours.TensorProto: _tensor,
    ours.TensorInfo: _info,
    ours.SignatureDef: _signature,
    ours.SignatureDefMap: st.fixed_dictionaries({"signature_def": st.dictionaries(_text, _signature, max_size=2)}),
    ours.ModelSpec: _spec,
    ours.PredictRequest: st.fixed_dictionaries(
        {
            "model_spec": _spec,
            "inputs": st.dictionaries(_text, _tensor, max_size=3),
            "output_filter": st.lists(_text, max_size=3),
        }
    ),
    ours.PredictResponse: st.fixed_dictionaries(
        {"model_spec": _spec, "outputs": st.dictionaries(_text, _tensor, max_size=3)}
    ),
    ours.GetModelMetadataRequest: st.fixed_dictionaries(
        {"model_spec": _spec, "metadata_field": st.lists(_text, max_size=3)}
    ),
    ours.GetModelMetadataResponse: st.fixed_dictionaries(
        {"model_spec": _spec, "metadata": st.dictionaries(_text, _any, max_size=2)}
    ),
    ours.GetModelStatusRequest: st.fixed_dictionaries({"model_spec": _spec}),
    ours.GetModelStatusResponse: st.fixed_dictionaries({"model_version_status": st.lists(_status, max_size=3)}),
}


def _build(kind: type[Message], fields: dict[str, Any]) -> Message:
    message = kind()
    _fill(message, fields)
    return message


def _fill(message: Message, fields: dict[str, Any]) -> None:
    """Fill a message as its constructor does, and maps of messages from dicts, which it does not accept."""
    for name, value in fields.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        target = getattr(message, name)
        if field.message_type is None:
            if isinstance(value, list):
                target.extend(value)
            else:
                setattr(message, name, value)
        elif field.message_type.GetOptions().map_entry:
            for key, entry in value.items():
                _fill(target[key], entry)
        elif isinstance(value, list):
            for entry in value:
                _fill(target.add(), entry)
        else:
            target.SetInParent()
            _fill(target, value)


@pytest.mark.parametrize("kind", _PAIRS, ids=lambda kind: kind.DESCRIPTOR.name)
def test_same_fields_serialize_to_the_same_bytes_and_parse_back(kind: type[Message]) -> None:
    theirs = _PAIRS[kind]

    @settings(max_examples=60, deadline=None)
    @given(_FIELDS[kind])
    def check(fields: dict[str, Any]) -> None:
        our_bytes = _build(kind, fields).SerializeToString(deterministic=True)
        their_bytes = _build(theirs, fields).SerializeToString(deterministic=True)
        assert our_bytes == their_bytes
        # A round trip through the other side's message changes nothing.
        assert theirs.FromString(our_bytes).SerializeToString(deterministic=True) == our_bytes
        assert kind.FromString(their_bytes).SerializeToString(deterministic=True) == their_bytes

    check()


@pytest.mark.parametrize("kind", _PAIRS, ids=lambda kind: kind.DESCRIPTOR.name)
def test_every_field_has_its_counterpart(kind: type[Message]) -> None:
    theirs = _PAIRS[kind].DESCRIPTOR.fields_by_name
    for field in kind.DESCRIPTOR.fields:
        other = theirs[field.name]
        assert (field.number, field.is_repeated, field.is_packed) == (other.number, other.is_repeated, other.is_packed)
        if kind is not ours.GetModelStatusResponse:
            assert field.json_name == other.json_name


def test_dtypes_have_tensorflows_numbers() -> None:
    assert all(types_pb2.DataType.Value(name) == number for name, number in ours.DataType.items())


def test_unknown_fields_and_dtypes_pass_through() -> None:
    info = meta_graph_pb2.TensorInfo(dtype=types_pb2.DT_BFLOAT16)
    info.coo_sparse.values_tensor_name = "x:0"
    data = info.SerializeToString(deterministic=True)
    assert ours.TensorInfo.FromString(data).SerializeToString(deterministic=True) == data


def test_generated_messages_are_up_to_date(tmp_path: Path) -> None:
    serving = Path(server_config_pb2.__file__).parents[1]
    script = serving / "generate_proto.py"
    # In a process of its own: protoc's library and TensorFlow's cannot be loaded together.
    subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True)
    # The stubs' wording depends on protoc's version; the modules' does not.
    for module in (Path(tandem_client.__file__).parent / "serving_pb2.py", Path(server_config_pb2.__file__)):
        assert (tmp_path / module.name).read_text() == module.read_text(), f"run {script}"


_COLUMNS = st.one_of(
    st.tuples(st.just("string"), st.lists(st.one_of(st.binary(max_size=9), _text), max_size=5)),
    st.tuples(st.just("int64"), st.lists(_int64, max_size=5)),
    st.tuples(st.just("int32"), st.lists(_int32, max_size=5)),
    st.tuples(st.just("float"), st.lists(st.floats(width=32, allow_nan=False), max_size=5)),
    st.tuples(st.just("double"), st.lists(st.floats(allow_nan=False), max_size=5)),
    st.tuples(st.just("bool"), st.lists(st.booleans(), max_size=5)),
)


@settings(max_examples=200, deadline=None)
@given(_COLUMNS)
def test_columns_are_tensors_that_tensorflow_reads(column: tuple[str, list[Any]]) -> None:
    dtype, values = column
    sent = tensors.column(dtype, values)
    read = tf.make_ndarray(tensor_pb2.TensorProto.FromString(sent.SerializeToString()))
    expected = [each.encode() if isinstance(each, str) else each for each in values]
    assert read.tolist() == expected
    assert read.shape == (len(values),)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(_text, max_size=4), max_size=4))
def test_ragged_rows_of_strings_are_a_matrix_padded_at_the_front(rows: list[list[str]]) -> None:
    sent = tensors.padded_strings(rows)
    read = tf.make_ndarray(tensor_pb2.TensorProto.FromString(sent.SerializeToString()))
    length = max(map(len, rows), default=0) + 1
    assert read.shape == (len(rows), length)
    for found, row in zip(read.tolist(), rows, strict=True):
        assert found == [b""] * (length - len(row)) + [each.encode() for each in row]
    # TensorFlow Serving's batching pads with the tensor's first value (PadTensor).
    assert not read.size or read.flat[0] == b""


@settings(max_examples=200, deadline=None)
@given(_COLUMNS)
def test_tensors_are_read_in_either_layout(column: tuple[str, list[Any]]) -> None:
    dtype, values = column
    expected = [each.encode() if isinstance(each, str) else each for each in values]
    numpy_dtypes = {"float": np.float32, "double": np.float64, "int32": np.int32, "int64": np.int64}
    if dtype in numpy_dtypes:
        array = np.array(expected, dtype=numpy_dtypes[dtype])
        packed = ours.TensorProto(dtype=f"DT_{dtype.upper()}", tensor_content=array.tobytes())
        packed.tensor_shape.dim.add(size=len(values))
        assert tensors.values(packed) == expected
    plain = tensor_pb2.TensorProto.FromString(tensors.column(dtype, values).SerializeToString())
    assert tensors.values(ours.TensorProto.FromString(plain.SerializeToString())) == expected


def test_last_value_is_repeated_and_missing_values_are_zero() -> None:
    repeated = ours.TensorProto(dtype="DT_FLOAT", float_val=[1.0, 2.0])
    repeated.tensor_shape.dim.add(size=4)
    assert tensors.values(repeated) == [1.0, 2.0, 2.0, 2.0]
    zeros = ours.TensorProto(dtype="DT_STRING")
    zeros.tensor_shape.dim.add(size=2)
    assert tensors.values(zeros) == [b"", b""]
    packed = ours.TensorProto(dtype="DT_STRING", tensor_content=b"\x02\x00\x81\x01ab" + b"c" * 129)
    packed.tensor_shape.dim.add(size=3)
    assert tensors.values(packed) == [b"ab", b"", b"c" * 129]


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        ("string", ["a", 3], "expected string, got int 3 at position 1; pass a str"),
        ("int64", [1, 2.5], "expected int64, got float 2.5 at position 1; pass an int"),
        ("int64", [True], "expected int64, got bool True at position 0"),
        ("int64", [2**63], "expected int64, -9223372036854775808 to 9223372036854775807, got"),
        ("int64", ["7"], "expected int64, got str '7'"),
        ("float", ["x"], "expected float, got str 'x' at position 0; pass a number"),
        ("float", [1e39], "which is out of range"),
        ("float", [None], "expected float, got NoneType None"),
        ("bool", [1], "expected bool, got int 1 at position 0; pass True or False"),
        ("half", [1], "has dtype half, which this client does not support"),
    ],
)
def test_values_of_another_type_are_rejected(dtype: str, values: list[Any], message: str) -> None:
    with pytest.raises(ValueError) as failure:
        tensors.column(dtype, values)
    assert message in str(failure.value)


def test_numpy_values_are_accepted() -> None:
    assert tensors.values(tensors.column("int64", np.array([1, 2], np.int64))) == [1, 2]
    assert tensors.values(tensors.column("float", np.array([0.5], np.float32))) == [0.5]


@pytest.mark.parametrize("content", [b"", b"\x80", struct.pack("<f", 1.0) + b"x"])
def test_content_that_does_not_fill_the_shape_is_rejected(content: bytes) -> None:
    for dtype in ("DT_FLOAT", "DT_STRING"):
        broken = ours.TensorProto(dtype=dtype, tensor_content=content or b"\x05")
        broken.tensor_shape.dim.add(size=2)
        with pytest.raises(ValueError):
            tensors.values(broken)
