"""The schema is a parameter of the compiled pipeline, and its content is part of the cache key."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from pathlib import Path

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split
import pytest
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.types import standard_artifacts
from tfx.utils import io_utils

from components.schema_gen.component import ImportSchemaGen
from components.schema_gen.executor import Executor

SCHEMAS = Path(__file__).resolve().parents[3] / "schemas"


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*/schema.pbtxt")), ids=lambda path: path.parent.name)
def test_the_curated_schema_is_unchanged(path: Path, tmp_path: Path) -> None:
    curated = text_format.Parse(path.read_text(), schema_pb2.Schema())
    artifact = standard_artifacts.Schema()
    artifact.uri = str(tmp_path)
    Executor().Do({}, {"schema": [artifact]}, ImportSchemaGen(curated, "1").exec_properties)
    assert io_utils.SchemaReader().read(str(tmp_path / "schema.pbtxt")) == curated


def test_another_schema_is_another_cache_key() -> None:
    one = schema_pb2.Schema(feature=[schema_pb2.Feature(name="user", type=schema_pb2.BYTES)])
    same = schema_pb2.Schema(feature=[schema_pb2.Feature(name="user", type=schema_pb2.BYTES)])
    other = schema_pb2.Schema(feature=[schema_pb2.Feature(name="user", type=schema_pb2.INT)])
    properties = ImportSchemaGen(one, "1").exec_properties
    assert properties == ImportSchemaGen(same, "1").exec_properties
    assert properties != ImportSchemaGen(other, "1").exec_properties
    assert properties != ImportSchemaGen(one, "2").exec_properties
