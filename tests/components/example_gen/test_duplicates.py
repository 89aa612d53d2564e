"""Merging duplicates: the latest row of each pair, and sums equal to pandas'."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingestion import make_data

from components.example_gen.data_errors import DataError
from components.example_gen.duplicates import codes, merge
from recipe.data import Data

TYPES = {"purchases": pa.int64(), "spent": pa.float32(), "pieces": pa.int64()}
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "", "ab"]),
        st.sampled_from(["x", "y", "b"]),
        st.integers(0, 5),
        st.none() | st.floats(-1e6, 1e6, width=32),
        st.none() | st.integers(-1000, 1000),
    ),
    min_size=1,
    max_size=40,
)


def data(duplicates: str = "aggregate", timestamp: str | None = "timestamp", **more: Any) -> Data:
    columns = {"user_id": "user_id", "item_id": "item_id", "label": "purchases", "timestamp": timestamp}
    if duplicates == "aggregate":
        more = {"aggregate": {"count": "purchases", "sum": {"price": "spent", "amount": "pieces"}}, **more}
    return make_data(columns=columns, duplicates=duplicates, **more)


def table(rows: list[Any]) -> pa.Table:
    """Return the rows in two chunks, with the number of each."""
    names = ["user_id", "item_id", "timestamp", "price", "amount", "row"]
    types = [pa.string(), pa.string(), pa.int64(), pa.float32(), pa.int64(), pa.int64()]
    columns = zip(*((*row, number) for number, row in enumerate(rows)), strict=True)
    whole = pa.table({name: pa.array(column, kind) for name, kind, column in zip(names, types, columns, strict=True)})
    return pa.concat_tables([whole.slice(0, len(rows) // 2), whole.slice(len(rows) // 2)])


@settings(deadline=None)
@given(ROWS, st.booleans())
def test_aggregates_equal_those_of_pandas(rows: list[Any], timed: bool) -> None:
    merged = merge(table(rows), data(timestamp="timestamp" if timed else None), TYPES).to_pylist()
    frame = table(rows).to_pandas()
    if timed:
        frame = frame.sort_values("timestamp", kind="stable")
    grouped = frame.groupby(["user_id", "item_id"])
    latest = {pair: group.iloc[-1]["row"] for pair, group in grouped}
    sums = grouped[["price", "amount"]].sum(min_count=1)
    assert len(merged) == len(latest)
    assert [row["row"] for row in merged] == sorted(latest.values())  # in file order
    for row in merged:
        pair = row["user_id"], row["item_id"]
        assert row["row"] == latest[pair]
        assert row["timestamp"] == rows[row["row"]][2]
        assert row["price"] == rows[row["row"]][3]  # of the latest row, even if missing
        assert row["purchases"] == grouped.size()[pair]
        for column, total in (("price", "spent"), ("amount", "pieces")):
            expected = sums.loc[pair, column]
            assert (row[total] is None) == pd.isna(expected)
            if row[total] is not None:
                assert math.isclose(row[total], expected, rel_tol=1e-6, abs_tol=1e-2)


@settings(deadline=None)
@given(ROWS)
def test_the_latest_row_is_kept(rows: list[Any]) -> None:
    merged = merge(table(rows), data("last"), TYPES)
    expected = {}
    for number, (user, item, time, *_) in enumerate(rows):
        if (user, item) not in expected or time >= expected[user, item][0]:
            expected[user, item] = time, number
    assert merged.column("row").to_pylist() == sorted(number for _, number in expected.values())
    assert merged.column_names == table(rows).column_names


def test_sums_that_overflow_are_errors() -> None:
    rows = [("a", "x", 1, 1.0, 2**62), ("a", "x", 2, 1.0, 2**62)]
    with pytest.raises(DataError, match=r"data\.aggregate\.sum: pieces does not fit into 64 bits"):
        merge(table(rows), data(), TYPES)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([None, "", "a", "b"]), st.sampled_from([None, -1, 0, 1])), max_size=20))
def test_rows_have_the_same_number_if_they_are_equal(rows: list[tuple[Any, Any]]) -> None:
    arrays = [pa.array([row[0] for row in rows], pa.string()), pa.array([row[1] for row in rows], pa.int64())]
    found = codes(arrays).tolist()
    assert all((found[i] == found[j]) == (rows[i] == rows[j]) for i in range(len(rows)) for j in range(len(rows)))
