"""The `custom_config` of InteractionExampleGen, which the component writes and the executor reads.

All of it is part of the cache key: if the recipe's data section, the schema or the code changes, the files are read
again.
"""

from __future__ import annotations

import json

from google.protobuf import json_format, wrappers_pb2
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.proto import example_gen_pb2
from tfx.utils import proto_utils

from recipe.data import Data

CATALOGUE = "catalogue"
SPLITS = ("train", "eval", CATALOGUE)


def encode_config(data: Data, schema: schema_pb2.Schema, code_version: str) -> example_gen_pb2.CustomConfig:
    """Pack what the executor needs into a StringValue of JSON."""
    content = {
        "data": data.model_dump(mode="json"),
        "schema": json_format.MessageToDict(schema, preserving_proto_field_name=True),
        "code_version": code_version,
    }
    config = example_gen_pb2.CustomConfig()
    config.custom_config.Pack(wrappers_pb2.StringValue(value=json.dumps(content, sort_keys=True)))
    return config


def decode_config(custom_config: str) -> tuple[Data, schema_pb2.Schema]:
    """Reverse `encode_config`, given the JSON that TFX makes of the proto."""
    config = example_gen_pb2.CustomConfig()
    proto_utils.json_to_proto(custom_config, config)
    value = wrappers_pb2.StringValue()
    config.custom_config.Unpack(value)
    content = json.loads(value.value)
    return Data.model_validate(content["data"]), json_format.ParseDict(content["schema"], schema_pb2.Schema())
