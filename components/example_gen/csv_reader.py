"""Reads CSVs for ExampleGen, `tandem init` and batch inference, in blocks of whole records and constant memory.

A large uncompressed file can be divided into byte ranges that are read in parallel; see `find_byte_ranges`.

    with open("ratings.csv", "rb") as stream:
        for batch in read_batches(stream, "ratings.csv", ["user_id", "item_id"]):
            print(batch.columns.num_rows, batch.malformed)

pyarrow parses each block into strings. This module also finds the records of the block, because pyarrow neither counts
lines nor keeps the text of a row, and a rejected row is reported with its line and its text.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from components.example_gen.data_errors import BadRow, DataError, shown

BLOCK_BYTES = 1 << 20
"""Bytes of CSV (after decompression) that are parsed at a time: about 40,000 short rows."""
MAX_RECORD_BYTES = 16 << 20
"""A longer record is an error: most likely a quote is not closed."""

Indices = npt.NDArray[np.int64]

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_QUOTE, _NEWLINE, _RETURN, _COMMA = b'"'[0], b"\n"[0], b"\r"[0], b","[0]
# A quoted field (a quote opens only at the start of a field; a doubled quote is part of it) or a line break.
_QUOTED_OR_BREAK = re.compile(rb'(?:(?<=[,\r\n])|\A)"[^"]*(?:""[^"]*)*(?:"|\Z)|\r\n|\r|\n')


@dataclasses.dataclass(frozen=True)
class Header:
    """The first record of a CSV.

    Attributes:
        file: The file.
        names: Column names in file order.
        where: Location of the header for messages, if it is not line 1.
    """

    file: str
    names: tuple[str, ...]
    where: str = ""

    @property
    def place(self) -> str:
        return self.where or f"{self.file}:1"


@dataclasses.dataclass(frozen=True)
class ByteRange:
    """A part of an uncompressed CSV that consists of whole records.

    Attributes:
        start: Offset of its first byte in the file.
        end: Offset after its last byte; None is the end of the file.
        first_line: The line of the file on which it starts, from 1.
    """

    start: int = 0
    end: int | None = None
    first_line: int = 1


WHOLE_FILE = ByteRange()


class Origin(Protocol):
    """The source of a batch's rows: finds the location and the text of each."""

    def places(self, records: Indices) -> pa.Array:
        """Return the location of each of `records`: a line as int64, or a key as string."""

    def bad_row(self, record: int, reason: str) -> BadRow:
        """Return a record as a rejected row."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive whole records of one file.

    Attributes:
        file: The file.
        data: The records' bytes with their line breaks.
        first_line: The line of the file on which `data` starts, from 1.
        ends: Index after each record's line break; the last record may have none.
        breaks: Index of each line break's last byte, including those inside quotes.
    """

    file: str
    data: bytes
    first_line: int
    ends: Indices
    breaks: Indices

    def lines(self, records: Indices) -> Indices:
        """Return the line of the file on which each of `records` starts."""
        starts = np.concatenate([[0], self.ends[:-1]])[records]
        return np.asarray(self.first_line + np.searchsorted(self.breaks, starts), dtype=np.int64)

    def places(self, records: Indices) -> pa.Array:
        """Return `lines` as an Arrow array."""
        return pa.array(self.lines(records), pa.int64())

    def bad_row(self, record: int, reason: str) -> BadRow:
        return BadRow(self.file, self.line(record), reason, self.text(record))

    def line(self, record: int) -> int:
        return int(self.lines(np.array([record]))[0])

    def text(self, record: int) -> str:
        """Return the record's text without its line break; bytes that are not UTF-8 as `\\xNN`."""
        return self._bytes(record).decode("utf-8", errors="backslashreplace")

    def is_blank(self, record: int) -> bool:
        return not self._bytes(record)

    def is_utf8(self, record: int) -> bool:
        return _is_utf8(self._bytes(record))

    def raw(self, record: int) -> bytes:
        """Return the record's bytes with its line break."""
        return self.data[int(self.ends[record - 1]) if record else 0 : int(self.ends[record])]

    def _bytes(self, record: int) -> bytes:
        data = self.raw(record)
        for line_break in (b"\r\n", b"\n", b"\r"):
            if data.endswith(line_break):
                return data.removesuffix(line_break)
        return data


@dataclasses.dataclass(frozen=True)
class Batch:
    """The rows of one block.

    Attributes:
        block: The source of the rows.
        columns: One string array per requested column; an empty cell is null.
        records: For each row of `columns`, its record in `block`.
        malformed: Records with the wrong number of columns or bytes that are not UTF-8.
    """

    block: Origin
    columns: pa.RecordBatch
    records: Indices
    malformed: list[BadRow]


def read_header(stream: IO[bytes], file: str, bad_rows_allowed: bool = False) -> Header:
    """Read the header of a CSV and check that a row follows it.

    Args:
        stream: The file's bytes, gzipped if `file` ends in `.gz`.
        file: Its name, for messages.
        bad_rows_allowed: Accept bytes that are not UTF-8 in the first block; `read_batches` rejects those rows.

    Raises:
        DataError: The file is empty, has no row, is not UTF-8 in its first block, or is not a gzip file.
    """
    blocks = _records(stream, file, BLOCK_BYTES)
    block = next(blocks, None)
    if block is None:
        raise DataError(f"{file}: the file is empty; expected a header line and at least one row. "
                        "Export the file again, or remove it if the rows are in other files.")  # fmt: skip
    header = _parse_header(block)
    if all(block.is_blank(record) for record in range(1, len(block.ends))) and next(blocks, None) is None:
        raise DataError(f"{file}:1: no row after the header; expected at least one. "
                        "Export the file again, or remove it if the rows are in other files.")  # fmt: skip
    if not bad_rows_allowed and not _is_utf8(block.data):
        bad = next(record for record in range(len(block.ends)) if not block.is_utf8(record))
        raise DataError(f"{file}:{block.line(bad)}: expected UTF-8, got {shown(block.text(bad))}. "
                        "Convert the file, for example with `iconv -f LATIN1 -t UTF-8`.")  # fmt: skip
    return header


def read_batches(
    stream: IO[bytes],
    file: str,
    columns: Sequence[str],
    block_bytes: int = BLOCK_BYTES,
    byte_range: ByteRange = WHOLE_FILE,
) -> Iterator[Batch]:
    """Read the rows of a CSV.

    Args:
        stream: The file's bytes, gzipped if `file` ends in `.gz`. Read once, from start to end.
        file: Its name, for messages.
        columns: The columns to read; others are skipped.
        block_bytes: Approximate number of bytes to parse at a time.
        byte_range: The part of the file to read, as returned by `find_byte_ranges`.

    Yields:
        Batches in file order. Blank lines are skipped; every other record is in `columns` or in `malformed`.

    Raises:
        DataError: A quote is not closed, a column is missing, the file is truncated or is not CSV.
    """
    names: tuple[str, ...] | None = None
    if byte_range.start:
        names = _parse_header(next(_records(stream, file, BLOCK_BYTES))).names
    for block in _records(stream, file, block_bytes, byte_range):
        if names is None:
            names = _parse_header(block).names
            missing = [column for column in columns if names.count(column) != 1]
            if missing:
                raise DataError(
                    f"{file}:1: expected the column {missing[0]!r} once, got {names.count(missing[0])}. "
                    f"Columns: {', '.join(names)}. Correct the header."
                )
            below = _without_first(block)
            if below is not None:
                yield _parse(below, names, columns)
        else:
            yield _parse(block, names, columns)


def _parse(block: Block, names: tuple[str, ...], columns: Sequence[str]) -> Batch:
    """Parse one block into string columns."""
    records = np.arange(len(block.ends), dtype=np.int64)
    malformed: dict[int, str] = {}
    data = block.data
    if not _is_utf8(data):
        # pyarrow fails on a row of the wrong width that is not UTF-8, so such rows are taken out first.
        utf8 = np.array([block.is_utf8(record) for record in records.tolist()])
        malformed = dict.fromkeys(records[~utf8].tolist(), "expected UTF-8, got other bytes")
        records = records[utf8]
        data = b"".join(block.raw(record) for record in records.tolist())
    parsed = np.ones(len(records), dtype=bool)

    def wrong_width(row: pa_csv.InvalidRow) -> str:
        parsed[row.number - 1] = False
        malformed[int(records[row.number - 1])] = f"expected {row.expected_columns} columns, got {row.actual_columns}"
        return "skip"

    table = pa.schema([(column, pa.string()) for column in columns]).empty_table()
    try:
        if data:
            table = pa_csv.read_csv(
                pa.BufferReader(data),
                # Rows are numbered only without threads; the block must be one parse unit.
                read_options=pa_csv.ReadOptions(
                    use_threads=False, column_names=_distinct(names), block_size=len(data) + 1
                ),
                parse_options=pa_csv.ParseOptions(
                    newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=wrong_width
                ),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=list(columns),
                    column_types=dict.fromkeys(columns, pa.string()),
                    strings_can_be_null=True,
                    null_values=[""],
                    check_utf8=False,
                ),
            )
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{block.file}:{block.first_line}: the rows from here on are not CSV: {error}. Export the file again."
        ) from error
    records = records[parsed]
    if len(records) != table.num_rows:
        raise DataError(
            f"{block.file}:{block.first_line}: the rows from here to line {block.line(len(block.ends) - 1)} are not "
            f"CSV: expected {len(records)} rows, got {table.num_rows}. Look for stray quotes in these lines."
        )
    batch = pa.RecordBatch.from_arrays(
        [pa.concat_arrays([*column.chunks, pa.array([], pa.string())]) for column in table.columns], table.column_names
    )
    # pyarrow turns a blank line into a row of nulls.
    empty = functools.reduce(
        np.logical_and, (column.is_null().to_numpy(zero_copy_only=False) for column in batch.columns)
    )
    blank = [record for record in records[empty].tolist() if block.is_blank(record)]
    if blank:
        keep = ~np.isin(records, blank)
        batch, records = batch.filter(pa.array(keep)), records[keep]
    rows = [block.bad_row(record, reason) for record, reason in sorted(malformed.items())]
    return Batch(block, batch, records, rows)


def _distinct(names: Sequence[str]) -> list[str]:
    """Make column names distinct, because a column that is not read may be twice in a header."""
    return [name if names.index(name) == index else f"{name}\0{index}" for index, name in enumerate(names)]


def _parse_header(block: Block) -> Header:
    if not block.is_utf8(0):
        raise DataError(f"{block.file}:1: expected a header in UTF-8, got {shown(block.text(0))}. "
                        "Convert the file, for example with `iconv -f LATIN1 -t UTF-8`.")  # fmt: skip
    names = next(csv.reader([block.text(0)]), [])
    if not any(names):
        raise DataError(f"{block.file}:1: expected column names, got a blank line. Add a header line.")
    if len(names) == 1:
        for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if separator in names[0]:
                raise DataError(f"{block.file}:1: expected columns separated by commas, got {name}. Convert the file.")
    return Header(block.file, tuple(names))


def _without_first(block: Block) -> Block | None:
    """Return the block without its first record (the header), or None if there is no other."""
    if len(block.ends) == 1:
        return None
    start = int(block.ends[0])
    lines = int(np.searchsorted(block.breaks, start))
    return Block(
        block.file, block.data[start:], block.first_line + lines, block.ends[1:] - start, block.breaks[lines:] - start
    )


def _records(stream: IO[bytes], file: str, block_bytes: int, byte_range: ByteRange = WHOLE_FILE) -> Iterator[Block]:
    """Divide a file, or a byte range of it, into blocks of whole records, without a BOM."""
    line = byte_range.first_line
    rest = b""
    for chunk, last in read_chunks(stream, file, block_bytes, byte_range):
        data = rest + chunk
        if not data:
            continue
        ends, breaks, quote_open = find_records(data, last)
        if last and quote_open:
            at = line + int(np.searchsorted(breaks, int(ends[-2]) if len(ends) > 1 else 0))
            raise DataError(f"{file}:{at}: a quote that opens in this row is not closed, so the last rows "
                            'cannot be separated. Close it, or write a quote inside quotes as "".')  # fmt: skip
        whole = int(ends[-1]) if len(ends) else 0
        breaks = breaks[: np.searchsorted(breaks, whole)]
        rest = data[whole:]
        if len(rest) > MAX_RECORD_BYTES:
            raise DataError(f"{file}:{line + len(breaks)}: this row is longer than {MAX_RECORD_BYTES >> 20} MiB. "
                            "Most likely a quote that opens in it is not closed; close it.")  # fmt: skip
        if whole:
            yield Block(file, data[:whole], line, ends, breaks)
            line += len(breaks)


def read_chunks(
    stream: IO[bytes], file: str, block_bytes: int, byte_range: ByteRange = WHOLE_FILE
) -> Iterator[tuple[bytes, bool]]:
    """Read and decompress a file, or a byte range of it, without a BOM.

    Yields:
        Each chunk, and whether it is the last one, which is empty.

    Raises:
        DataError: The file is UTF-16, or an incomplete gzip file.
    """
    source: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=stream) if file.endswith(".gz") else stream
    if byte_range.start:
        source.seek(byte_range.start)
    left = None if byte_range.end is None else byte_range.end - byte_range.start
    first = not byte_range.start
    begun = False
    while True:
        size = max(block_bytes, 4) if first else block_bytes
        try:
            data = source.read(size if left is None else min(size, left))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{file}: expected a complete gzip file: {error}. Copy or compress it again.") from error
        if first and data.startswith(_UTF16):
            raise DataError(f"{file}:1: expected UTF-8, got UTF-16. "
                            "Convert the file, for example with `iconv -f UTF-16 -t UTF-8`.")  # fmt: skip
        left = None if left is None else left - len(data)
        if first:
            data = data.removeprefix(_BOM)
        last = not data and begun
        first, begun = False, True
        yield data, last
        if last:
            return


def find_byte_ranges(stream: IO[bytes], range_bytes: int, chunk_bytes: int = 4 * BLOCK_BYTES) -> list[ByteRange]:
    """Divide an uncompressed CSV into ranges of at least `range_bytes` that begin and end between records.

    A line break may be inside quotes, which its surroundings do not show. So the file is scanned once from the start,
    for quotes and line breaks only (many times faster than parsing), and a range ends after a line break with an even
    number of quotes before it. That is between records as long as every other quote opens a field or doubles the one
    before it, which the scan checks as well: after the first stray quote (`5" disk`) the rest of the file is one range.
    """
    stream.seek(0)
    ranges: list[ByteRange] = []
    start, start_line = 0, 1
    read = quotes = 0
    lines = 1  # the line of the next byte
    before = _NEWLINE
    while True:
        data = stream.read(chunk_bytes)
        if not data:
            break
        if not read and data.startswith(_BOM):
            read, data = len(_BOM), data.removeprefix(_BOM)
        places = np.array([], dtype=np.int64)
        view = np.frombuffer(data, dtype=np.uint8)
        if b'"' in data:
            places = np.flatnonzero(view == _QUOTE)
            opening = places[quotes % 2 :: 2]
            sides = np.where(opening > 0, view[opening - 1], before)
            if not np.isin(sides, (_COMMA, _NEWLINE, _RETURN, _QUOTE)).all():
                break
        # Line breaks are \n, \r\n and \r, as in find_records.
        breaks = np.flatnonzero(view == _NEWLINE)
        returns = np.flatnonzero(view == _RETURN) if b"\r" in data else places[:0]
        lone = returns[np.append(view[1:], 0)[returns] != _NEWLINE] if len(returns) else returns
        if before == _RETURN and len(view) and view[0] == _NEWLINE:
            lines -= 1  # one line break in two chunks; its first half is counted already
        if read + len(data) - start >= range_bytes:
            safe = breaks[(quotes + np.searchsorted(places, breaks)) % 2 == 0] + 1
            while (place := int(np.searchsorted(safe, start + range_bytes - read))) < len(safe):
                cut = int(safe[place])
                ranges.append(ByteRange(start, read + cut, start_line))
                start_line = lines + int(np.searchsorted(breaks, cut)) + int(np.searchsorted(lone, cut))
                start = read + cut
        lines += len(breaks) + len(lone)
        quotes += len(places)
        read += len(data)
        before = int(view[-1]) if len(view) else before
    return [*ranges, ByteRange(start, None, start_line)]


def find_records(data: bytes, last: bool) -> tuple[Indices, Indices, bool]:
    """Find the ends of the records of a CSV. Quotes open only at the start of a field, as in pyarrow's parser.

    Args:
        data: Bytes that begin at the start of a record.
        last: Whether the file ends with `data`; then so does its last record, with or without a line break.

    Returns:
        The index after each record, the index of the last byte of each line break (including those inside quotes), and
        whether `data` ends inside quotes. Line breaks are `\\n`, `\\r\\n` and `\\r`.
    """
    view = np.frombuffer(data, dtype=np.uint8)
    breaks = np.flatnonzero(view == _NEWLINE)
    if b"\r" in data:
        returns = np.flatnonzero(view == _RETURN)
        # A return at the very end may be the first half of a line break, unless the file ends there.
        following = np.append(view[1:], _RETURN if last else _NEWLINE)[returns]
        breaks = np.sort(np.concatenate([breaks, returns[following != _NEWLINE]]))
    quotes = np.flatnonzero(view == _QUOTE) if b'"' in data else np.array([], dtype=np.int64)
    opening = quotes[::2]
    before = view[opening[opening > 0] - 1]
    if np.isin(before, (_COMMA, _NEWLINE, _RETURN, _QUOTE)).all():
        # Every other quote opens a field or doubles the one before it, so a break after an even number is outside.
        outside = np.searchsorted(quotes, breaks) % 2 == 0
        ends, quote_open = breaks[outside] + 1, len(quotes) % 2 == 1
    else:
        ends, quote_open = _find_records_with_stray_quotes(data)
        ends = ends[np.isin(ends - 1, breaks)]
    if last and (not len(ends) or ends[-1] < len(data)):
        ends = np.append(ends, len(data))
    return ends, breaks, quote_open


def _find_records_with_stray_quotes(data: bytes) -> tuple[Indices, bool]:
    """Find ends as `find_records` does, for data with quotes inside unquoted fields. Exact, but slower."""
    ends = []
    quote_open = False
    for match in _QUOTED_OR_BREAK.finditer(data):
        if match[0].startswith(b'"'):
            quote_open = match[0].count(b'"') % 2 == 1
        else:
            ends.append(match.end())
    return np.array(ends, dtype=np.int64), quote_open


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
