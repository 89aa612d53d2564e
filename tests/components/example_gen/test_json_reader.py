"""The JSON reader returns every record once, with its key, and rejects invalid JSON with its line."""

from __future__ import annotations

import gzip
import io
import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.example_gen import json_reader
from components.example_gen.data_errors import BadRow, DataError
from components.example_gen.json_reader import read_json_batches, read_json_header
from components.example_gen.rows import read_rows
from components.example_gen.table_layout import Column, Table

KEYS = st.text(alphabet='ab/"\\é\n-', max_size=4)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet='a1 "\\\né😀\ud800', max_size=6)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
RECORDS = st.dictionaries(st.sampled_from(["x", "y", "z"]), VALUES, max_size=3)


def read(
    content: bytes, path: str | None = None, block_bytes: int = 1 << 20, file: str = "f.json"
) -> tuple[list[tuple[str, list[str | None]]], list[BadRow]]:
    """Return the valid records by key, and the malformed ones."""
    good, bad = [], []
    for batch in read_json_batches(io.BytesIO(content), file, path, ["x", "y"], block_bytes):
        cells = zip(*(column.to_pylist() for column in batch.columns.columns), strict=True)
        good += list(zip(batch.block.places(batch.records).to_pylist(), map(list, cells), strict=True))
        bad += batch.malformed
    return good, bad


@settings(deadline=None)
@given(
    st.dictionaries(KEYS, RECORDS | SCALARS, max_size=6) | st.lists(RECORDS | SCALARS, max_size=6),
    st.lists(st.tuples(st.sampled_from(["a", "c"]), VALUES), max_size=2),
    st.integers(1, 30),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_no_record_is_lost(records: Any, others: Any, block_bytes: int, ascii_only: bool, indent: int | None) -> None:
    document = {**dict(others[:1]), "b": records, **dict(others[1:])}
    text = json.dumps({"top": document}, ensure_ascii=ascii_only, indent=indent)
    good, bad = read(text.encode("utf-8", "surrogatepass"), "top/b", block_bytes)
    found = dict(good)
    rejected = {row.key: row for row in bad}
    expected = records.items() if isinstance(records, dict) else enumerate(records)
    names = []
    for key, record in expected:
        name = "top/b/" + str(key).encode("utf-8", "backslashreplace").decode()
        if record is None and isinstance(records, list):
            continue  # Firebase fills gaps between numbered keys with null
        names.append(name)
        cells = [record.get(column) for column in ("x", "y")] if isinstance(record, dict) else [[]]
        if any(isinstance(cell, dict | list) or "\ud800" in str(cell) for cell in cells):
            assert rejected[name].line is None
            assert str(rejected[name]).startswith(f"f.json: {name}: ")
        else:
            for cell, text in zip(cells, found[name], strict=True):
                if cell is None or cell == "":
                    assert text is None
                elif isinstance(cell, str):
                    assert text == cell
                else:
                    assert text == json.dumps(cell)
    assert len(good) + len(bad) == len(names)


@settings(deadline=None)
@given(st.text(alphabet='{}[]",:\\ \n0a.-eu', max_size=40), st.integers(1, 12))
@example('{"a": {"x": 1}', 3)
@example('[{"x": 1}] 2', 3)
@example("[1e5, -0.5]", 1)
def test_any_text_is_read_or_rejected_with_a_location(text: str, block_bytes: int) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        expected = ...
    try:
        good, bad = read(text.encode(), None, block_bytes)
    except DataError as error:
        assert re.match(r"f\.json(:\d+)?: ", str(error))
        assert not isinstance(expected, dict | list)
        return
    assert isinstance(expected, dict | list)
    if isinstance(expected, list):
        assert len(good) + len(bad) == sum(record is not None for record in expected)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(1, 12))
def test_any_bytes_are_read_or_rejected_with_a_location(content: bytes, block_bytes: int) -> None:
    try:
        good, bad = read(b'[{"x": "' + content + b'"}, {"x": 2}]', None, block_bytes)
    except DataError as error:
        assert str(error).startswith("f.json")
        return
    assert len(good) + len(bad) >= 2


def test_a_firebase_export() -> None:
    export = {
        "Books": {"-M1": {"isbn": "0", "title": "Skipped"}},
        "User_Book": {"-N1": {"x": 9780000000002, "y": 4.50, "ignored": {}}, "-N2": {"x": "007"}, "-N3": {"x": [1]}},
        "users": [None, {"x": "no"}],
    }
    content = b"\xef\xbb\xbf" + json.dumps(export, indent=2).replace("4.5", "4.50").encode()
    assert read_json_header(io.BytesIO(content), "f.json", "User_Book").names == ("x", "y", "ignored")
    good, bad = read(content, "User_Book")
    assert good == [("User_Book/-N1", ["9780000000002", "4.50"]), ("User_Book/-N2", ["007", None])]
    assert [str(row) for row in bad] == ["f.json: User_Book/-N3: x: expected a single value, got an array"]
    assert json.loads(bad[0].row) == {"x": [1]}
    assert read(content, "users")[0] == [("users/1", ["no", None])]
    assert read(gzip.compress(content), "users", file="f.json.gz")[0] == [("users/1", ["no", None])]


def test_memory_stays_bounded() -> None:
    """Neither the records nor the values before and after them are in memory at the same time."""
    section = {f"k{number}": {"x": number, "y": "text"} for number in range(20_000)}
    content = json.dumps({"before": section, "b": section, "after": list(section.values())}).encode()
    most = 0

    class Cursor(json_reader._Cursor):
        def _fill(self, at_least: int = 0) -> None:
            nonlocal most
            super()._fill(at_least)
            most = max(most, len(self._text))

    original, json_reader._Cursor = json_reader._Cursor, Cursor  # type: ignore[misc]
    try:
        batches = list(read_json_batches(io.BytesIO(content), "f.json", "b", ["x"], 1 << 14))
    finally:
        json_reader._Cursor = original  # type: ignore[misc]
    assert sum(batch.columns.num_rows for batch in batches) == 20_000
    assert most < 1 << 16 < len(content) // 20


@pytest.mark.parametrize(
    ("content", "path", "message"),
    [
        (b"", None, "f.json: the file is empty"),
        (b" \n", None, "f.json: the file is empty"),
        (b"{}", None, "f.json: no record; expected at least one"),
        (b'{"a": {}}', "a", "f.json: no record at 'a'; expected at least one"),
        (b'{"Books": {}, "User_Books": {}}', "User_Book",
         "f.json: no key 'User_Book'; did you mean 'User_Books'? Keys: Books, User_Books."),
        (b'{"a": 3}', "a", "f.json: a: expected an object or array of records, got '3'"),
        (b'{"a": {"k": {}}, "a": {}}', "a", "f.json:1: not valid JSON: the key 'a' is in the file twice"),
        (b'{"a":\n {"k": {"x": 1},\n', "a", "f.json:3: not valid JSON: expected a key in quotes"),
        (b'{"a":\n {"k": {"x": 1', "a", "f.json:2: not valid JSON: the file ends in the middle of a value"),
        (b'{"a":\n {"k": {"x" 1}}}', "a", "f.json:2: not valid JSON: Expecting ':' delimiter"),
        (b'[{"x": 1}]\n[', None, "f.json:2: not valid JSON: expected the end of the file"),
        (b'{"x": 1}\n{"x": 2}\n', None, "f.json:2: not valid JSON: expected the end of the file"),
        ('{"x": 1}'.encode("utf-16"), None, "f.json:1: expected UTF-8, got UTF-16"),
        (b"[" + b"[" * 100_000, None, "f.json:1: not valid JSON: the values here are nested too deeply"),
    ],
)  # fmt: skip
def test_unusable_files_raise_errors_with_a_location(content: bytes, path: str | None, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        read_json_header(io.BytesIO(content), "f.json", path)
        read(content, path)


def test_a_value_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "MAX_RECORD_BYTES", 1000)
    with pytest.raises(DataError, match=r"^f\.json:2: not valid JSON: Unterminated string"):
        read(b'{"k":\n "' + b"x" * 10_000 + b'"}', None, 64)


def test_values_have_the_types_of_the_schema() -> None:
    content = b'{"a": {"n": 7, "f": 4, "s": 7}, "b": {"n": "8", "f": "4.5"}, "c": {"n": 1.5}, "d": {"f": true}, "e": 5}'
    columns = (Column("n", "INT"), Column("f", "FLOAT"), Column("id", "BYTES", cell="s"))
    (rows,) = read_rows(io.BytesIO(content), "f.json", Table("t", ("f.json",), columns, (), format="json"))
    assert rows.columns.to_pylist() == [{"n": 7, "f": 4.0, "id": "7"}, {"n": 8, "f": 4.5, "id": None}]
    assert rows.places().to_pylist() == ["a", "b"]
    assert sorted(str(row) for row in rows.bad) == [
        "f.json: c: n: expected an integer, got '1.5'",
        "f.json: d: f: expected a number, got 'true'",
        "f.json: e: expected an object of fields, got '5'",
    ]
