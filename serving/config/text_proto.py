"""TensorFlow Serving's configuration files (text protos): read, with the file and line in every error.

`tensorflow-serving-api` carries ModelServerConfig alone. The other messages are small; they are declared here, with
TensorFlow Serving's field names and numbers, in a descriptor pool of their own, so that they never collide with another
package's. Imports no TensorFlow: a wrong file is told before its seconds of start-up.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message

from serving.config.errors import ConfigFileError

_Message = TypeVar("_Message", bound=Message)
_FILE = "tandem/serving_config.proto"
_PACKAGE = "tandem.serving_config"
_TYPES = descriptor_pb2.FieldDescriptorProto
# message: {field: (number, type or message, repeated)}
_SCHEMA: dict[str, dict[str, tuple[int, int | str, bool]]] = {
    "Int64Value": {"value": (1, _TYPES.TYPE_INT64, False)},
    "StringValue": {"value": (1, _TYPES.TYPE_STRING, False)},
    "BoolValue": {"value": (1, _TYPES.TYPE_BOOL, False)},
    # servables/tensorflow/session_bundle_config.proto
    "BatchingParameters": {
        "max_batch_size": (1, "Int64Value", False),
        "batch_timeout_micros": (2, "Int64Value", False),
        "max_enqueued_batches": (3, "Int64Value", False),
        "num_batch_threads": (4, "Int64Value", False),
        "thread_pool_name": (5, "StringValue", False),
        "allowed_batch_sizes": (6, _TYPES.TYPE_INT64, True),
        "pad_variable_length_inputs": (7, _TYPES.TYPE_BOOL, False),
        "enable_large_batch_splitting": (8, "BoolValue", False),
        "max_execution_batch_size": (9, "Int64Value", False),
    },
    # config/monitoring_config.proto
    "PrometheusConfig": {"enable": (1, _TYPES.TYPE_BOOL, False), "path": (2, _TYPES.TYPE_STRING, False)},
    "MonitoringConfig": {"prometheus_config": (1, "PrometheusConfig", False)},
    # config/ssl_config.proto
    "SSLConfig": {
        "server_key": (1, _TYPES.TYPE_STRING, False),
        "server_cert": (2, _TYPES.TYPE_STRING, False),
        "custom_ca": (3, _TYPES.TYPE_STRING, False),
        "client_verify": (4, _TYPES.TYPE_BOOL, False),
    },
}


def read_text_proto(path: str | os.PathLike[str], message: _Message) -> _Message:
    """Parses a text proto into `message` and returns it.

    Raises:
        ConfigFileError: no such file, or not a text proto of this message; names the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFileError(f"{path}: cannot be read: {error}") from error
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        line = error.GetLine()
        place = f"{path}:{line}" if line else str(path)
        raise ConfigFileError(
            f"{place}: {error}; wanted a text proto of TensorFlow Serving's {message.DESCRIPTOR.name}, whose fields "
            f"are {', '.join(field.name for field in message.DESCRIPTOR.fields)}"
        ) from error


def batching_parameters() -> Any:
    """An empty `BatchingParameters`."""
    return _MESSAGES["BatchingParameters"]()


def monitoring_config() -> Any:
    """An empty `MonitoringConfig`."""
    return _MESSAGES["MonitoringConfig"]()


def ssl_config() -> Any:
    """An empty `SSLConfig`."""
    return _MESSAGES["SSLConfig"]()


def _declare() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto3")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            label = _TYPES.LABEL_REPEATED if repeated else _TYPES.LABEL_OPTIONAL
            declared = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                declared.type = _TYPES.TYPE_MESSAGE
                declared.type_name = f".{_PACKAGE}.{kind}"
            else:
                declared.type = descriptor_pb2.FieldDescriptorProto.Type.ValueType(kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _SCHEMA}


_MESSAGES = _declare()
