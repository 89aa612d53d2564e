"""Parses batches of strings into typed columns, and rejects rows with malformed cells. The executor calls it.

with open(file, "rb") as stream:
    for rows in read_rows(stream, file, sources.interactions):
        print(rows.columns, rows.bad)
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.example_gen import times
from components.example_gen.csv_reader import WHOLE_FILE, Batch, ByteRange, Indices, Origin, read_batches
from components.example_gen.data_errors import BadRow, shown
from components.example_gen.json_reader import read_json_batches
from components.example_gen.table_layout import Column, Table
from components.example_gen.times import parse_times
from recipe.columns import ColumnType

ARROW_TYPES: dict[ColumnType, pa.DataType] = {"BYTES": pa.string(), "INT": pa.int64(), "FLOAT": pa.float32()}

_NUMBER = {"INT": r"^-?[0-9]+$", "FLOAT": r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"}
_EXPECTED: dict[ColumnType, str] = {"BYTES": "a string", "INT": "an integer", "FLOAT": "a number"}
_INT64 = range(-(2**63), 2**63)
_FAR = 2.5e11  # seconds; about the year 9900

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one block.

    Attributes:
        columns: The valid rows: BYTES as string, INT as int64, FLOAT as float32; a missing value is null.
        origin: Source of the rows.
        records: For each valid row, its record in `origin`.
        bad: The rejected rows, in file order.
    """

    columns: pa.RecordBatch
    origin: Origin
    records: Indices
    bad: list[BadRow]

    def places(self) -> pa.Array:
        """Return the location of each valid row: a line as int64, or a key as string."""
        return self.origin.places(self.records)

    def reject(self, reasons: Mapping[int, Sequence[str]]) -> Rows:
        """Reject more rows: those at the given positions in `columns`."""
        if not reasons:
            return self
        more = [self.origin.bad_row(int(self.records[place]), "; ".join(why)) for place, why in reasons.items()]
        bad = sorted([*self.bad, *more], key=lambda row: row.line or 0)
        good = np.ones(len(self.records), dtype=bool)
        good[list(reasons)] = False
        return Rows(self.columns.filter(pa.array(good)), self.origin, self.records[good], bad)


def read_rows(stream: IO[bytes], file: str, table: Table, byte_range: ByteRange = WHOLE_FILE) -> Iterator[Rows]:
    """Read a file of `table`, or a byte range of it, block by block, and check its rows.

    Raises:
        DataError: The file cannot be read; see `csv_reader.read_batches` and `json_reader.read_json_batches`.
    """
    cells = [column.name_in_file for column in table.columns]
    if table.format == "json":
        batches = read_json_batches(stream, file, table.records, cells)
    else:
        batches = read_batches(stream, file, cells, byte_range=byte_range)
    for batch in batches:
        yield parse(batch, table.columns)


def parse(batch: Batch, columns: Sequence[Column]) -> Rows:
    """Parse and check one batch."""
    arrays = []
    reasons: dict[int, list[str]] = {}
    for column in columns:
        cells = batch.columns.column(column.name_in_file)
        array, bad = _parse_column(cells, column)
        arrays.append(array)
        for place in np.flatnonzero(bad).tolist():
            reasons.setdefault(place, []).append(reason(column, cells[place].as_py()))
    typed = pa.RecordBatch.from_arrays(arrays, [column.name for column in columns])
    return Rows(typed, batch.block, batch.records, list(batch.malformed)).reject(reasons)


def _parse_column(cells: pa.StringArray, column: Column) -> tuple[pa.Array, Mask]:
    """Return the column's values, and which rows are malformed; the values of those are undefined."""
    bad = np.zeros(len(cells), dtype=bool)
    values: pa.Array = cells
    if column.time_format not in (None, "seconds", "milliseconds"):
        values, bad = parse_times(cells, column.time_format)
    elif column.type != "BYTES":
        values, bad = _numbers(cells, column.type)
    if column.time_format == "milliseconds":
        whole = values.to_numpy(zero_copy_only=False) if not values.null_count else values.fill_null(0).to_numpy()
        values = pa.array(whole // 1000, pa.int64(), mask=_mask(values.is_null()))
    if column.type != "BYTES":
        for bound, outside in ((column.minimum, pc.less), (column.maximum, pc.greater)):
            if bound is not None:
                bad |= _mask(outside(values, pa.scalar(bound)))
    if column.required and values.null_count:
        bad |= _mask(values.is_null())
    return values, bad


def _numbers(cells: pa.StringArray, kind: ColumnType) -> tuple[pa.Array, Mask]:
    """Parse decimal numbers; spaces around them are allowed, NaN and infinity are not."""
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


def reason(column: Column, cell: str | None) -> str:
    """Return the message on a malformed cell."""
    got = "nothing" if cell is None else shown(cell)
    if column.time_format not in (None, "seconds", "milliseconds"):
        return f"{column.name}: expected {times.expected(column.time_format)}{_years(column)}, got {got}"
    expected = _EXPECTED[column.type]
    if column.time_format == "milliseconds":
        expected = "integer milliseconds since 1970"
        if column.minimum is not None or column.maximum is not None:
            expected += ", and in seconds a number"
    # A schema keeps the bounds of a FLOAT as float32, which has 7 digits.
    low, high = (f"{bound:.7g}" if isinstance(bound, float) else bound for bound in (column.minimum, column.maximum))
    if low is not None and high is not None:
        expected += f" from {low} to {high}"
    elif low is not None:
        expected += f" of at least {low}"
    elif high is not None:
        expected += f" of at most {high}"
    return f"{column.name}: expected {expected}, got {got}"


def _years(column: Column) -> str:
    """Return the schema's bounds on a time as dates."""
    words = []
    for sign, bound in (("from", column.minimum), ("to", column.maximum)):
        if bound is not None and abs(bound) < _FAR:
            words.append(f"{sign} {datetime.datetime.fromtimestamp(bound, datetime.UTC):%Y-%m-%d %H:%M:%S}")
    return f", {' '.join(words)}" if words else ""
