"""The CSV reader returns every row once, complete and with its line, for any bytes."""

from __future__ import annotations

import csv
import gzip
import io
import re

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.example_gen import csv_reader
from components.example_gen.csv_reader import ByteRange, find_byte_ranges, find_records, read_batches, read_header
from components.example_gen.data_errors import DataError
from components.example_gen.rows import parse, read_rows
from components.example_gen.table_layout import Column, Table

Row = tuple[int, list[str | None]]

# Weighted towards quotes, commas and line breaks.
CSV_TEXT = st.text(alphabet='a1é ,,""\n\n\r\x00', max_size=60)


def read(content: bytes, block_bytes: int = csv_reader.BLOCK_BYTES, file: str = "f.csv") -> tuple[list[Row], list[Row]]:
    """Return the valid rows with their lines, and the rows with the wrong number of columns."""
    names = read_header(io.BytesIO(content), file, bad_rows_allowed=True).names
    good: list[Row] = []
    bad: list[Row] = []
    for batch in read_batches(io.BytesIO(content), file, names, block_bytes):
        lines = batch.block.places(batch.records).to_pylist()
        cells = zip(*(column.to_pylist() for column in batch.columns.columns), strict=True)
        good += [(line, list(row)) for line, row in zip(lines, cells, strict=True)]
        bad += [(row.line, [row.row]) for row in batch.malformed]
    return good, bad


def read_with_csv_module(text: str, width: int) -> tuple[list[Row], list[int]]:
    """Return the valid rows that Python's csv module reads, and the lines of the others."""
    good: list[Row] = []
    bad: list[int] = []
    rows = csv.reader(io.StringIO(text, newline=""))
    line = 1
    for index, row in enumerate(rows):
        if index and row:
            if len(row) == width:
                good.append((line, [cell or None for cell in row]))
            else:
                bad.append(line)
        line = rows.line_num + 1
    return good, bad


@settings(deadline=None)
@given(CSV_TEXT, st.integers(1, 40))
@example('1,5" disk\n2,"a\nb"\n3,4\n', 3)
@example('"a"b"\n",x\n1,2', 1)
@example("1,2\r\n\r\n3,4\r5,6\n", 4)
def test_no_row_is_lost_or_misplaced(body: str, block_bytes: int) -> None:
    check_against_csv_module(["x", "y"], body, block_bytes)


@settings(deadline=None)
@given(CSV_TEXT, st.integers(1, 40))
@example('1\n\n""\n2\n', 2)
def test_no_row_is_lost_or_misplaced_in_a_table_of_one_column(body: str, block_bytes: int) -> None:
    check_against_csv_module(["x"], body, block_bytes)


def check_against_csv_module(names: list[str], body: str, block_bytes: int) -> None:
    content = ",".join(names) + "\n" + body
    try:
        good, bad = read(content.encode(), block_bytes)
    except DataError as error:
        assert re.match(r"f\.csv:\d+: ", str(error))
        assert "not closed" in str(error) or not body.strip("\r\n")
        return
    expected_good, expected_bad = read_with_csv_module(content, len(names))
    assert good == expected_good
    assert [line for line, _ in bad] == expected_bad


@settings(deadline=None)
@given(CSV_TEXT)
def test_records_do_not_depend_on_how_quotes_are_found(body: str) -> None:
    """The exact search for stray quotes agrees with the fast one where the fast one is used."""
    data = body.encode()
    ends, breaks, quote_open = find_records(data, last=False)
    slow_ends, slow_open = csv_reader._find_records_with_stray_quotes(data)
    assert ends.tolist() == [end for end in slow_ends.tolist() if end - 1 in set(breaks.tolist())]
    assert quote_open == slow_open


@settings(deadline=None)
@given(st.binary(max_size=80), st.integers(1, 20))
def test_any_bytes_are_read_or_rejected_with_a_location(body: bytes, block_bytes: int) -> None:
    try:
        good, bad = read(b"x,y\n" + body, block_bytes)
    except DataError as error:
        assert str(error).startswith("f.csv:")
        return
    blank = len(re.findall(rb"[^\r\n]+", body))
    assert len(good) + len(bad) <= blank
    assert (len(good) + len(bad) == 0) == (blank == 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=30), st.booleans())
def test_written_rows_are_read_back(rows: list[tuple[str, str]], crlf: bool) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n" if crlf else "\n")
    writer.writerows([("x", "y"), *rows])
    good, bad = read(b"\xef\xbb\xbf" + text.getvalue().encode(), block_bytes=16)
    assert [row for _, row in good] == [[x or None, y or None] for x, y in rows]
    assert not bad


def test_gzip() -> None:
    assert read(gzip.compress(b"x,y\n1,2\n"), file="f.csv.gz") == ([(2, ["1", "2"])], [])
    whole = gzip.compress(b"x,y\n" + b"1,2\n" * 10_000)
    with pytest.raises(DataError, match=r"f\.csv\.gz: expected a complete gzip file"):
        read(whole[:-20], file="f.csv.gz")
    with pytest.raises(DataError, match=r"f\.csv\.gz: expected a complete gzip file"):
        read(b"x,y\n1,2\n", file="f.csv.gz")


def test_memory_stays_bounded() -> None:
    """A file is read in blocks and is never in memory as a whole."""
    content = b"x,y\n" + b"12345,67890\n" * 200_000
    blocks = [len(batch.block.data) for batch in read_batches(io.BytesIO(content), "f.csv", ["x"])]
    assert len(blocks) > 2
    assert max(blocks) < 2 * csv_reader.BLOCK_BYTES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "f.csv: the file is empty"),
        (b"\xef\xbb\xbf", "f.csv: the file is empty"),
        (b"x,y\n", "f.csv:1: no row after the header"),
        (b"x,y\n\n\r\n", "f.csv:1: no row after the header"),
        (b"\nx,y\n1,2\n", "f.csv:1: expected column names, got a blank line"),
        (b"x;y\n1;2\n", "f.csv:1: expected columns separated by commas, got semicolons"),
        ("x,y\n1,2\n".encode("utf-16"), "f.csv:1: expected UTF-8, got UTF-16"),
        (b"x,\xe9\n1,2\n", "f.csv:1: expected a header in UTF-8, got"),
        (b"x,y\n1,2\n1,\xe9\n", "f.csv:3: expected UTF-8, got"),
    ],
)
def test_unusable_files_raise_errors_with_a_location(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        read_header(io.BytesIO(content), "f.csv")


def test_a_row_that_is_not_utf8_is_rejected() -> None:
    good, bad = read(b'x,y\n"a\nb",\xe9\n3,4\n')
    assert good == [(4, ["3", "4"])]
    assert bad == [(2, ['"a\nb",\\xe9'])]


def test_a_quote_left_open_far_from_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "MAX_RECORD_BYTES", 1000)
    with pytest.raises(DataError, match=r"^f\.csv:3: this row is longer than"):
        read(b'x,y\n1,2\n3,"4\n' + b"5,6\n" * 1000, block_bytes=64)


def test_columns_that_are_not_requested_are_skipped() -> None:
    content = b"junk,y,x,junk\n7,2,1,8\n"
    (batch,) = read_batches(io.BytesIO(content), "f.csv", ["x", "y"])
    assert batch.columns.to_pydict() == {"x": ["1"], "y": ["2"]}


# --- values -----------------------------------------------------------------------------------------------------------

INTEGER = re.compile(r"-?[0-9]+")
NUMBERISH = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.text(alphabet="0123456789.eE+- naif_x١", max_size=8),
)


@settings(deadline=None)
@given(st.lists(NUMBERISH, min_size=1, max_size=20))
@example(["9223372036854775807", "-9223372036854775808", "9223372036854775808", " 7 ", "007", "+1", "1_0", "0x1"])
def test_integers_parse_or_are_rejected(cells: list[str]) -> None:
    values, reasons = parse_column(cells, Column("n", "INT"))
    expected = [
        int(cell) if INTEGER.fullmatch(cell.strip()) and abs(2 * int(cell) + 1) < 2**64 else None for cell in cells
    ]
    for cell, value, reason, number in zip(cells, values, reasons, expected, strict=True):
        if not cell.strip():
            assert (value, reason) == (None, None)  # a missing value
        elif number is None:
            assert reason is not None
            assert reason.startswith("n: expected an integer, got ")
        else:
            assert (value, reason) == (number, None)


@settings(deadline=None)
@given(st.lists(NUMBERISH, min_size=1, max_size=20))
@example(["nan", "inf", "-inf", "1e39", "1e-50", ".5", "5.", " 4.5 ", "1e5", "+1", "0x1p3", "-0", "Infinity", "1d"])
def test_numbers_parse_or_are_rejected(cells: list[str]) -> None:
    values, reasons = parse_column(cells, Column("n", "FLOAT"))
    for cell, value, reason in zip(cells, values, reasons, strict=True):
        if not cell.strip():
            assert (value, reason) == (None, None)
        elif reason is None:
            assert value == pytest.approx(float(cell), rel=1e-6, abs=1e-37)
        else:
            try:
                number = float(cell)
            except ValueError:
                continue
            assert not abs(number) < 3.4e38 or set(cell) & set("+_١")


def parse_column(cells: list[str], column: Column) -> tuple[list[float | None], list[str | None]]:
    """Return each cell's value and the reason why it is malformed, through the CSV reader."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("n", "row"), *((cell, row) for row, cell in enumerate(cells))])
    values: list[float | None] = [None] * len(cells)
    reasons: list[str | None] = [None] * len(cells)
    columns = (column, Column("row", "INT"))
    for rows in read_rows(io.BytesIO(text.getvalue().encode()), "f.csv", Table("t", ("f.csv",), columns, ())):
        good = rows.columns
        for row, value in zip(good.column("row").to_pylist(), good.column(column.name).to_pylist(), strict=True):
            values[row] = value
        for problem in rows.bad:
            reasons[int(problem.row.rpartition(",")[2])] = problem.reason
    return values, reasons


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        (Column("rating", "FLOAT", True, 1.0, 5.0), "5.1", "rating: expected a number from 1 to 5, got '5.1'"),
        (Column("rating", "FLOAT", True, 1.0), "0", "rating: expected a number of at least 1, got '0'"),
        (Column("rating", "INT", True, None, 5), "6", "rating: expected an integer of at most 5, got '6'"),
        (Column("rating", "INT", True, 0.5, None), "0", "rating: expected an integer of at least 0.5, got '0'"),
        (Column("rating", "FLOAT", True), "", "rating: expected a number, got nothing"),
        (Column("id", "BYTES", True), "", "id: expected a string, got nothing"),
    ],
)
def test_reasons(column: Column, cell: str, reason: str) -> None:
    content = f"{column.name},row\n{cell},0\n".encode()
    (batch,) = read_batches(io.BytesIO(content), "f.csv", [column.name])
    rows = parse(batch, [column])
    assert rows.columns.num_rows == 0
    assert [str(row) for row in rows.bad] == [f"f.csv:2: {reason}"]


def test_types_and_missing_values() -> None:
    content = b"id,age,title,score\n007,,,\n8,30,A,0.5\n"
    columns = (Column("id", "BYTES", True), Column("age", "INT"), Column("title", "BYTES"), Column("score", "FLOAT"))
    (read_,) = read_rows(io.BytesIO(content), "f.csv", Table("t", ("f.csv",), columns, ()))
    rows = read_.columns
    assert rows.to_pydict() == {"id": ["007", "8"], "age": [None, 30], "title": [None, "A"], "score": [None, 0.5]}
    assert rows.schema.types == [pa.string(), pa.int64(), pa.string(), pa.float32()]
    assert read_.places().to_pylist() == [2, 3]
    assert not read_.bad


# --- byte ranges ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(CSV_TEXT, st.integers(1, 30), st.integers(4, 12), st.booleans())
@example('1,"a\nb"\n3,4\n5,6\n', 1, 5, False)
@example("1,2\r\n3,4\r5,6\n7,8\n", 4, 5, True)
@example('1,5" disk\n2,"a\nb"\n3,4\n', 3, 8, False)
def test_byte_ranges_have_the_rows_of_the_whole_file(body: str, range_bytes: int, chunk_bytes: int, bom: bool) -> None:
    content = (b"\xef\xbb\xbf" if bom else b"") + b"x,y\n" + body.encode()
    ranges = find_byte_ranges(io.BytesIO(content), range_bytes, chunk_bytes)
    assert ranges[0].start == 0
    assert [byte_range.end for byte_range in ranges[:-1]] == [byte_range.start for byte_range in ranges[1:]]
    assert ranges[-1].end is None

    def rows(parts: list[ByteRange]) -> list[tuple[int, object]]:
        found: list[tuple[int, object]] = []
        for byte_range in parts:
            for batch in read_batches(io.BytesIO(content), "f.csv", ["x", "y"], byte_range=byte_range):
                cells = zip(*(column.to_pylist() for column in batch.columns.columns), strict=True)
                found += zip(batch.block.places(batch.records).to_pylist(), cells, strict=True)
                found += [(row.line or 0, row.row) for row in batch.malformed]
        return sorted(found, key=lambda row: row[0])

    try:
        expected = rows([ByteRange()])
    except DataError as error:
        with pytest.raises(DataError, match=f"^{re.escape(str(error).partition(' ')[0])}"):
            rows(ranges)
        return
    assert rows(ranges) == expected


def test_a_file_is_divided_up_to_its_first_stray_quote() -> None:
    content = b"x,y\n" + b'1,"a\n""b"""\n' * 1000
    assert len(find_byte_ranges(io.BytesIO(content), 1000)) == 12
    stray = content + b'1,5" disk\n' + b"1,2\n" * 10_000
    ranges = find_byte_ranges(io.BytesIO(stray), 1000, 4096)
    assert 1 < len(ranges) <= 12
    assert ranges[-1].start <= len(content)
