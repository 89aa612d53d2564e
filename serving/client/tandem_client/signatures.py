"""A model's signatures as the server describes them, by which requests are checked before they are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tandem_client import serving_pb2 as pb


@dataclass(frozen=True)
class TensorSpec:
    """An input or output.

    Attributes:
        name: its name in the signature.
        dtype: `string`, `int64`, `float`, … (TensorFlow's names).
        shape: a size for each dimension, -1 for any; None where even the rank is open.
        optional: an input that the model has a default for.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    optional: bool = False

    def describe(self) -> str:
        """`int64 [B]`: the first dimension of any size is the batch."""
        if self.shape is None:
            return self.dtype
        sizes = [("B" if not axis else "?") if size == -1 else str(size) for axis, size in enumerate(self.shape)]
        return f"{self.dtype} [{', '.join(sizes)}]"


@dataclass(frozen=True)
class Signature:
    """One thing a model can be asked."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True)
class ModelMetadata:
    """The signatures of one version."""

    version: int
    signatures: Mapping[str, Signature]


def read_metadata(response: pb.GetModelMetadataResponse) -> ModelMetadata:
    """Raises:
    KeyError: the answer carries no signatures.
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
    """`int64` for DT_INT64; the number for a dtype unknown here."""
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
