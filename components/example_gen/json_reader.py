"""Reads JSON exports: an object of records by key (as the Firebase Realtime Database writes it) or an array of records.

A file is read record by record, so memory does not grow with it. Messages locate a record by its path of keys, such as
`User_Book/-Nq3x`, and a syntax error by its line.

    with open("export.json", "rb") as stream:
        for batch in read_json_batches(stream, "export.json", "User_Book", ["userId", "isbn"]):
            print(batch.columns.num_rows, batch.malformed)
"""

from __future__ import annotations

import codecs
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa

from components.example_gen.csv_reader import BLOCK_BYTES, MAX_RECORD_BYTES, Batch, Header, Indices, read_chunks
from components.example_gen.data_errors import BadRow, DataError, shown
from recipe.errors import did_you_mean

_SPACE = " \t\r\n"
_IN_NUMBERS = ("", *"0123456789+-.eE")
# Numbers stay text, because an id may be a number with leading or trailing zeros or with more digits than fit.
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


@dataclasses.dataclass(frozen=True)
class JsonRecord:
    """One record: the path of its key, its text, and its value, in which numbers are text."""

    key: str
    text: str
    value: Any


@dataclasses.dataclass(frozen=True)
class JsonRecords:
    """Records of one file; the `Origin` of a `Batch`."""

    file: str
    records: Sequence[JsonRecord]

    def places(self, records: Indices) -> pa.Array:
        """Return the key of each of `records`."""
        return pa.array([self.records[record].key for record in records.tolist()], pa.string())

    def bad_row(self, record: int, reason: str) -> BadRow:
        entry = self.records[record]
        text = entry.text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return BadRow(self.file, None, reason, text, entry.key)


def read_json_header(stream: IO[bytes], file: str, path: str | None) -> Header:
    """Return the fields of the first records, about 1 MiB of them; a field that none of them has counts as missing.

    Args:
        stream: The file's bytes, gzipped if `file` ends in `.gz`.
        file: Its name, for messages.
        path: Path of the records: keys, joined by `/`; None if the whole file is the records.

    Raises:
        DataError: The file is empty or its first part is not JSON, or `path` does not exist or has no record.
    """
    names: dict[str, None] = {}
    size = count = 0
    for record in _records(stream, file, path):
        count += 1
        size += len(record.text)
        if isinstance(record.value, dict):
            names.update(dict.fromkeys(map(_well_formed, record.value)))
        if size > BLOCK_BYTES:
            break
    if not count:
        raise DataError(f"{file}: no record{f' at {path!r}' if path else ''}; expected at least one. "
                        "Export the file again, or correct `records` in the recipe.")  # fmt: skip
    return Header(file, tuple(names), f"{file}{f': {path}' if path else ''}")


def read_json_batches(
    stream: IO[bytes], file: str, path: str | None, columns: Sequence[str], block_bytes: int = BLOCK_BYTES
) -> Iterator[Batch]:
    """Read the records of a JSON file; a field that a record lacks, null and '' are missing values.

    Args:
        stream: The file's bytes, gzipped if `file` ends in `.gz`. Read once, from start to end.
        file: Its name, for messages.
        path: Path of the records: keys, joined by `/`; None if the whole file is the records.
        columns: The fields to read; others are skipped.
        block_bytes: Approximate size of the text of a batch.

    Yields:
        Batches in file order. Every record is in `columns` or in `malformed`; null in an array is not a record, because
        Firebase fills gaps between numbered keys with it.

    Raises:
        DataError: The file is not JSON or truncated, or `path` has no records.
    """
    block: list[JsonRecord] = []
    size = 0
    for record in _records(stream, file, path, block_bytes):
        block.append(record)
        size += len(record.text)
        if size >= block_bytes:
            yield _batch(JsonRecords(file, block), columns)
            block, size = [], 0
    if block:
        yield _batch(JsonRecords(file, block), columns)


def _batch(block: JsonRecords, columns: Sequence[str]) -> Batch:
    cells: list[list[str | None]] = []
    good: list[int] = []
    malformed = []
    for index, record in enumerate(block.records):
        row, reason = _cells(record.value, columns)
        if reason:
            malformed.append(block.bad_row(index, reason))
        else:
            cells.append(row)
            good.append(index)
    arrays = [pa.array([row[place] for row in cells], pa.string()) for place in range(len(columns))]
    batch = pa.RecordBatch.from_arrays(arrays, list(columns))
    return Batch(block, batch, np.array(good, dtype=np.int64), malformed)


def _cells(value: Any, columns: Sequence[str]) -> tuple[list[str | None], str]:
    """Return the record's fields as text, or why it is malformed."""
    if not isinstance(value, dict):
        return [], f"expected an object of fields, got {_found(value)}"
    row: list[str | None] = []
    reasons = []
    for column in columns:
        cell = value.get(column)
        if isinstance(cell, bool):
            cell = "true" if cell else "false"
        if isinstance(cell, dict | list):
            reasons.append(f"{column}: expected a single value, got {_KINDS[type(cell)]}")
        elif cell is not None and _well_formed(cell) != cell:
            reasons.append(f"{column}: expected UTF-8, got {shown(_well_formed(cell))}, which is not Unicode")
        else:
            row.append(cell or None)
    return row, "; ".join(reasons)


def _found(value: Any) -> str:
    return shown(value) if isinstance(value, str) else _KINDS[type(value)]


def _well_formed(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _records(stream: IO[bytes], file: str, path: str | None, block_bytes: int = BLOCK_BYTES) -> Iterator[JsonRecord]:
    """Yield the records of a file in order, and check that the rest of the file is JSON too."""
    cursor = _Cursor(stream, file, block_bytes)
    if not cursor.peek():
        raise DataError(f"{file}: the file is empty; expected a JSON object or array. Export the file again.")
    keys = path.strip("/").split("/") if path else []
    yield from _find(cursor, keys, ())
    if cursor.peek():
        raise cursor.error("expected the end of the file after the JSON value, got more text")


def _find(cursor: _Cursor, keys: Sequence[str], above: tuple[str, ...]) -> Iterator[JsonRecord]:
    """Descend to the records, skipping the values before and after them."""
    if len(above) == len(keys):
        for key in cursor.members("/".join(above)):
            text, value = cursor.value()
            if value is not None or not cursor.in_array:
                yield JsonRecord("/".join((*above, key)), text, value)
        return
    name = keys[len(above)]
    found = False
    others: dict[str, None] = {}
    for key in cursor.members("/".join(above)):
        if key == name:
            if found:
                raise cursor.error(f"the key {'/'.join((*above, key))!r} is in the file twice")
            found = True
            yield from _find(cursor, keys, (*above, key))
        else:
            if len(others) < 1000:
                others[key] = None
            cursor.skip(len(keys) - len(above) - 1)
    if not found:
        listing = ", ".join(list(others)[:10]) + (", …" if len(others) > 10 else "")
        raise DataError(f"{cursor.file}: no key {'/'.join((*above, name))!r}"
                        f"{did_you_mean(name, others) or '.'} Keys: {listing or 'none'}. "
                        "Correct `records` in the recipe.")  # fmt: skip


class _Cursor:
    """A position in the text of a JSON file, of which only the part around it is in memory."""

    def __init__(self, stream: IO[bytes], file: str, block_bytes: int) -> None:
        self.file = file
        self.in_array = False
        self._chunks = read_chunks(stream, file, block_bytes)
        # Bytes that are not UTF-8 make their record malformed, not the file.
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text = ""
        self._at = 0
        self._line = 1
        self._ended = False

    def error(self, what: str, at: int | None = None) -> DataError:
        line = self._line + self._text.count("\n", 0, self._at if at is None else at)
        return DataError(f"{self.file}:{line}: not valid JSON: {what}. Export or copy the file again.")

    def peek(self) -> str:
        """Move to the next character that is not space and return it, or nothing at the end of the file."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._fill()

    def members(self, path: str) -> Iterator[str]:
        """Yield each key (or index) of an object or array; the consumer must then read or skip the value."""
        opening = self.peek()
        if opening not in ("{", "["):
            _, value = self.value()
            raise DataError(f"{self.file}: {path or 'the file'}: expected an object or array of records, got "
                            f"{_found(value)}. Correct `records` in the recipe.")  # fmt: skip
        array, closing = opening == "[", "]" if opening == "[" else "}"
        self._at += 1
        index = 0
        if self.peek() == closing:
            self._at += 1
            return
        while True:
            key = str(index)
            if not array:
                if self.peek() != '"':
                    raise self.error("expected a key in quotes")
                key = _well_formed(self.value()[1])
                self._take(":")
            if not self.peek():
                raise self.error("the file ends in the middle of a value")
            self.in_array = array
            yield key
            index += 1
            if self.peek() == closing:
                self._at += 1
                return
            self._take(",")

    def skip(self, depth: int) -> None:
        """Skip a value, its members one by one down to `depth`, so that a large one is never in memory."""
        if depth < 0 or self.peek() not in ("{", "["):
            self.value()
            return
        for _ in self.members(""):
            self.skip(depth - 1)

    def value(self) -> tuple[str, Any]:
        """Read the value here, and return its text and the decoded value."""
        self.peek()
        while True:
            problem = None
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                # A number may continue in the next chunk, and the first part of `1.5` or `1e5` may look like 1.
                if self._ended or self._text[end : end + 1] not in _IN_NUMBERS:
                    text = self._text[self._at : end]
                    self._at = end
                    return text, value
            except json.JSONDecodeError as error:
                problem = error
            except RecursionError:
                raise self.error("the values here are nested too deeply") from None
            if self._ended:
                assert problem is not None
                cut = problem.pos >= len(self._text.rstrip()) or "Unterminated" in problem.msg
                raise self.error("the file ends in the middle of a value" if cut else problem.msg, problem.pos)
            if len(self._text) - self._at > MAX_RECORD_BYTES:
                what = problem.msg if problem is not None else "the value does not end"
                raise self.error(f"{what} (in a value longer than {MAX_RECORD_BYTES >> 20} MiB)")
            # Twice as much each time, because decoding starts again from the beginning.
            self._fill(len(self._text) - self._at)

    def _take(self, sign: str) -> None:
        found = self.peek()
        if found != sign:
            raise self.error(f"expected {sign!r}, got {repr(found) if found else 'the end of the file'}")
        self._at += 1

    def _fill(self, at_least: int = 0) -> None:
        """Read the next chunks, and drop the text before the position."""
        self._line += self._text.count("\n", 0, self._at)
        parts, size = [self._text[self._at :]], 0
        self._at = 0
        while not self._ended and size <= at_least:
            chunk, last = next(self._chunks)
            parts.append(self._decode(chunk, last))
            size += len(parts[-1])
            self._ended = last
        self._text = "".join(parts)
