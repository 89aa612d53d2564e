"""Turns a batch of strings into typed columns and puts aside the rows in which a cell is not what it must be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.example_gen.errors import BadRow, shown
from components.example_gen.reader import Batch, Indices, read_batches
from components.example_gen.sources import Column
from pipeline.recipe import ColumnType

ARROW_TYPES: dict[ColumnType, pa.DataType] = {"BYTES": pa.string(), "INT": pa.int64(), "FLOAT": pa.float32()}

_NUMBER = {"INT": r"^-?[0-9]+$", "FLOAT": r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"}
_WANTED: dict[ColumnType, str] = {"BYTES": "text", "INT": "a whole number", "FLOAT": "a number"}
_INT64 = range(-(2**63), 2**63)

Mask = npt.NDArray[np.bool_]


def read_rows(
    stream: IO[bytes], file: str, columns: Sequence[Column]
) -> Iterator[tuple[pa.RecordBatch, Indices, list[BadRow]]]:
    """Reads a CSV and checks its rows.

    Yields:
        Per block: the good rows (BYTES as string, INT as int64, FLOAT as float32; a missing value is null), the line
        each stands on, and the bad rows in line order.

    Raises:
        DataError: The file cannot be read as CSV; see `reader.read_batches`.
    """
    for batch in read_batches(stream, file, [column.name for column in columns]):
        yield parse(batch, columns)


def parse(batch: Batch, columns: Sequence[Column]) -> tuple[pa.RecordBatch, Indices, list[BadRow]]:
    """Checks one batch; see `read_rows`."""
    arrays = []
    reasons: dict[int, list[str]] = {}
    for column in columns:
        array, bad = _parse_column(batch.columns.column(column.name), column)
        arrays.append(array)
        for place in np.flatnonzero(bad).tolist():
            cell = batch.columns.column(column.name)[place].as_py()
            reasons.setdefault(place, []).append(_reason(column, cell))
    typed = pa.RecordBatch.from_arrays(arrays, [column.name for column in columns])
    records = batch.records
    rejected = list(batch.malformed)
    if reasons:
        for place, why in reasons.items():
            record = int(records[place])
            rejected.append(
                BadRow(batch.block.file, batch.block.line(record), "; ".join(why), batch.block.text(record))
            )
        rejected.sort(key=lambda row: row.line)
        good = np.ones(len(records), dtype=bool)
        good[list(reasons)] = False
        typed, records = typed.filter(pa.array(good)), records[good]
    return typed, batch.block.lines(records), rejected


def _parse_column(cells: pa.StringArray, column: Column) -> tuple[pa.Array, Mask]:
    """The column's values, and which rows are bad; their values mean nothing."""
    bad = np.zeros(len(cells), dtype=bool)
    values: pa.Array = cells
    if column.type != "BYTES":
        values, bad = _numbers(cells, column.type)
        for bound, outside in ((column.minimum, pc.less), (column.maximum, pc.greater)):
            if bound is not None:
                bad |= _mask(outside(values, pa.scalar(bound)))
    if column.required and values.null_count:
        bad |= _mask(values.is_null())
    return values, bad


def _numbers(cells: pa.StringArray, kind: ColumnType) -> tuple[pa.Array, Mask]:
    """Parses decimal numbers; spaces around them are allowed, NaN and infinity are not."""
    bad = np.zeros(len(cells), dtype=bool)
    try:
        values = cells.cast(ARROW_TYPES[kind])
    except pa.ArrowInvalid:
        text = pc.ascii_trim_whitespace(cells)
        blank = pc.equal(text, "")
        bad = _mask(pc.invert(pc.or_(pc.match_substring_regex(text, _NUMBER[kind]), blank)))
        if kind == "INT":
            for long in np.flatnonzero(_mask(pc.greater(pc.binary_length(text), 18)) & ~bad):
                bad[long] = int(text[int(long)].as_py()) not in _INT64
        values = pc.if_else(pc.or_(pa.array(bad), blank), None, text).cast(ARROW_TYPES[kind])
    if kind == "FLOAT":
        bad |= _mask(pc.invert(pc.is_finite(values)))
    return values, bad


def _mask(condition: pa.BooleanArray) -> Mask:
    return np.asarray(pc.fill_null(condition, False).to_numpy(zero_copy_only=False), dtype=bool)


def _reason(column: Column, cell: str | None) -> str:
    wanted = _WANTED[column.type]
    # A schema keeps the bounds of a FLOAT as float32, which has 7 digits.
    low, high = (f"{bound:.7g}" if isinstance(bound, float) else bound for bound in (column.minimum, column.maximum))
    if low is not None and high is not None:
        wanted += f" from {low} to {high}"
    elif low is not None:
        wanted += f" of at least {low}"
    elif high is not None:
        wanted += f" of at most {high}"
    return f"{column.name}: found {'nothing' if cell is None else shown(cell)}, wanted {wanted}"
