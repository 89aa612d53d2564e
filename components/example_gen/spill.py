"""Partitions interactions into files by a hash of the user, so that all rows of a user can be processed together.

Grouping rows through Beam would shuffle them one by one, and grouping them in memory would need memory for all of them.
Instead each worker writes its rows to one file per partition, and the worker that processes a partition reads those:
memory is needed for one partition at a time.

    with Spill(partitions, lambda number: f"{folder}/{number}", lambda path: open(path, "wb")) as spill:
        spill.write(rows, rows.column("user_id"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import IO, Self

import numpy as np
import pyarrow as pa

from components.example_gen.hashing import hash_values

PARTITION_BYTES = 32 << 20
"""Approximate bytes of input per partition, which needs about ten times as much memory."""
MAX_PARTITIONS = 512
_BUFFERED_ROWS = 1 << 17
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


def count_partitions(input_bytes: int) -> int:
    """Return the number of partitions of about `PARTITION_BYTES` each."""
    return min(max(1, -(-input_bytes // PARTITION_BYTES)), MAX_PARTITIONS)


class Spill:
    """Write rows to one file for each partition that has any."""

    def __init__(self, partitions: int, name: Callable[[int], str], open_file: Callable[[str], IO[bytes]]) -> None:
        """Create the writer, without any file.

        Args:
            partitions: Number of partitions.
            name: Returns the path of a partition's file.
            open_file: Opens a file for writing bytes.
        """
        self.files: dict[int, str] = {}
        self._partitions = partitions
        self._name = name
        self._open = open_file
        self._streams: dict[int, IO[bytes]] = {}
        self._buffer: list[pa.RecordBatch] = []
        self._buffered: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []

    def write(self, rows: pa.RecordBatch, users: pa.Array) -> None:
        """Add rows, given the user of each."""
        self._buffer.append(rows)
        self._buffered.append((hash_values(users) % np.uint64(self._partitions)).astype(np.int64))
        if sum(map(len, self._buffered)) >= _BUFFERED_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._buffer:
            return
        rows = pa.Table.from_batches(self._buffer)
        numbers = np.concatenate(self._buffered)
        self._buffer, self._buffered = [], []
        # Stable, so that the rows of a user stay in file order.
        order = np.argsort(numbers, kind="stable")
        rows = rows.take(pa.array(order)) if self._partitions > 1 else rows
        present, starts = np.unique(numbers[order], return_index=True)
        ends = [*starts.tolist()[1:], len(order)]
        for partition, start, end in zip(present.tolist(), starts.tolist(), ends, strict=True):
            if partition not in self._streams:
                self.files[partition] = self._name(partition)
                self._streams[partition] = self._open(self.files[partition])
            self._streams[partition].write(_serialized(rows.slice(start, end - start)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self._flush()
        for stream in self._streams.values():
            stream.close()


def write_rows(rows: pa.Table, file: str, open_file: Callable[[str], IO[bytes]]) -> None:
    """Write rows to one file."""
    with open_file(file) as stream:
        stream.write(_serialized(rows))


def read_spilled(files: Sequence[str], open_file: Callable[[str], IO[bytes]]) -> pa.Table | None:
    """Return the rows of some files, in order; None if there are none."""
    tables = [table for file in files for table in _read(file, open_file)]
    return pa.concat_tables(tables) if tables else None


def _serialized(rows: pa.Table) -> bytes:
    """Return the rows as one Arrow stream; a file is one or several of them."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=_OPTIONS) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def _read(file: str, open_file: Callable[[str], IO[bytes]]) -> Iterable[pa.Table]:
    with open_file(file) as stream:
        source = pa.BufferReader(stream.read())
    while source.tell() < source.size():
        with pa.ipc.open_stream(source) as reader:
            yield reader.read_all()
