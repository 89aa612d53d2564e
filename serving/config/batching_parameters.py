"""TensorFlow Serving's batching parameters file, read and checked; `serving.server.batching` applies it.

Imports no TensorFlow, so that a wrong file is reported before the seconds that its import takes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from serving.config.errors import ConfigFileError
from serving.config.server_config_pb2 import BatchingParameters as BatchingParametersProto
from serving.config.text_proto import read_text_proto


@dataclass(frozen=True)
class BatchingParameters:
    """TensorFlow Serving's `BatchingParameters` with its defaults."""

    max_batch_size: int = 1000
    batch_timeout_s: float = 0.0
    max_enqueued_batches: int = 10
    num_batch_threads: int = max(1, os.cpu_count() or 1)
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    # TensorFlow Serving's name of the threads without a parameters file.
    thread_pool_name: str = "model_server_batch_threads"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> BatchingParameters:
        """Read a batching parameters file.

        Raises:
            ConfigFileError: the file cannot be read, or has values that TensorFlow Serving rejects or only it supports.
        """
        message = read_text_proto(path, BatchingParametersProto())
        defaults = cls()
        if message.enable_large_batch_splitting.value or message.HasField("max_execution_batch_size"):
            raise ConfigFileError(
                f"{path}: enable_large_batch_splitting and max_execution_batch_size are not supported by this server; "
                "raise max_batch_size to the size of the largest request instead"
            )

        def number(field: str, default: int, least: int) -> int:
            value = int(getattr(message, field).value) if message.HasField(field) else default
            if value < least:
                expected = "positive" if least else "non-negative"
                raise ConfigFileError(f"{path}: {field} must be {expected}; was {value}")
            return value

        parameters = cls(
            max_batch_size=number("max_batch_size", defaults.max_batch_size, 1),
            batch_timeout_s=number("batch_timeout_micros", 0, 0) / 1e6,
            max_enqueued_batches=number("max_enqueued_batches", defaults.max_enqueued_batches, 1),
            num_batch_threads=number("num_batch_threads", defaults.num_batch_threads, 1),
            allowed_batch_sizes=tuple(message.allowed_batch_sizes),
            pad_variable_length_inputs=message.pad_variable_length_inputs,
            thread_pool_name=message.thread_pool_name.value,
        )
        parameters._check_allowed_batch_sizes(path)
        return parameters

    def _check_allowed_batch_sizes(self, path: str | os.PathLike[str]) -> None:
        sizes = self.allowed_batch_sizes
        if not sizes:
            return
        if list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
            raise ConfigFileError(
                f"{path}: allowed_batch_sizes entries must be monotonically increasing; was {list(sizes)}"
            )
        if sizes[-1] != self.max_batch_size:
            raise ConfigFileError(
                f"{path}: Last entry in allowed_batch_sizes must match max_batch_size; last entry was {sizes[-1]}; "
                f"expected {self.max_batch_size}"
            )

    def padded(self, rows: int) -> int:
        """Return the smallest allowed batch size of at least `rows`."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)
