"""A model's signatures as the server reports them; requests are checked against them before they are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tandem_client import serving_pb2 as pb


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output."""

    name: str
    """Name in the signature."""
    dtype: str
    """TensorFlow's name of the dtype, such as `string`, `int64` or `float`."""
    shape: tuple[int, ...] | None
    """Size of each dimension, -1 for any size; None for any rank."""
    optional: bool = False
    """Whether the input has a default in the signature."""

    def describe(self) -> str:
        """Return dtype and shape as text, such as `int64 [B]`; B is the batch dimension."""
        if self.shape is None:
            return self.dtype
        sizes = [("B" if not axis else "?") if size == -1 else str(size) for axis, size in enumerate(self.shape)]
        return f"{self.dtype} [{', '.join(sizes)}]"


@dataclass(frozen=True)
class Signature:
    """A named function of the model with typed inputs and outputs."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True)
class ModelMetadata:
    """The signatures of one version."""

    version: int
    signatures: Mapping[str, Signature]


def read_metadata(response: pb.GetModelMetadataResponse) -> ModelMetadata:
    """Read the signatures from a GetModelMetadata response.

    Raises:
        KeyError: the response holds no signatures.
    """
    if "signature_def" not in response.metadata:
        raise KeyError("signature_def")
    # Not Any.Unpack: the type it names is TensorFlow Serving's, ours has the same fields under another package.
    definitions = pb.SignatureDefMap.FromString(response.metadata["signature_def"].value)
    return ModelMetadata(
        version=response.model_spec.version.value,
        signatures={
            name: _signature(name, definition)
            for name, definition in sorted(definitions.signature_def.items())
            if definition.method_name
        },
    )


def dtype_text(dtype: int) -> str:
    """Return `int64` for DT_INT64, and the number for a dtype that is not in serving.proto."""
    try:
        return pb.DataType.Name(dtype).removeprefix("DT_").lower()
    except ValueError:
        return f"dtype {dtype}"


def _signature(name: str, definition: pb.SignatureDef) -> Signature:
    return Signature(
        name=name,
        inputs={
            key: _spec(key, definition.inputs[key], key in definition.defaults) for key in sorted(definition.inputs)
        },
        outputs={key: _spec(key, definition.outputs[key], False) for key in sorted(definition.outputs)},
    )


def _spec(name: str, info: pb.TensorInfo, optional: bool) -> TensorSpec:
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(name=name, dtype=dtype_text(info.dtype), shape=shape, optional=optional)
