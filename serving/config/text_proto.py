"""TensorFlow Serving's configuration files (text protos): read, with file and line in every error.

`tensorflow-serving-api` ships `ModelServerConfig`; the other messages are in server_config.proto. Imports no
TensorFlow, so that a wrong file is reported before the seconds that its import takes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message

from serving.config.errors import ConfigFileError

_Message = TypeVar("_Message", bound=Message)


def read_text_proto(path: str | os.PathLike[str], message: _Message) -> _Message:
    """Parse a text proto into `message` and return it.

    Raises:
        ConfigFileError: the file cannot be read, or is not a text proto of this message; names the line.
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
            f"{place}: {error}; expected a text proto of TensorFlow Serving's {message.DESCRIPTOR.name}, whose fields "
            f"are {', '.join(field.name for field in message.DESCRIPTOR.fields)}"
        ) from error
