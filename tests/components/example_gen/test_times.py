"""Dates and times: valid ones become seconds since 1970, others are rejected."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.example_gen.rows import reason
from components.example_gen.table_layout import Column
from components.example_gen.times import parse_times

UTC = datetime.UTC
MOMENTS = st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1))
ZONES = st.none() | st.integers(-14 * 60, 14 * 60).map(
    lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes))
)


def seconds(moment: datetime.datetime) -> int:
    utc = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (utc - datetime.datetime(1970, 1, 1, tzinfo=UTC)) // datetime.timedelta(seconds=1)


def parse(cells: list[str | None], time_format: str) -> tuple[list[int | None], list[bool]]:
    values, bad = parse_times(pa.array(cells, pa.string()), time_format)
    return values.to_pylist(), bad.tolist()


@settings(deadline=None)
@given(st.lists(st.tuples(MOMENTS, ZONES, st.sampled_from("T ")), min_size=1, max_size=10))
def test_iso_times_are_those_of_python(moments: list[tuple[datetime.datetime, datetime.timezone | None, str]]) -> None:
    zoned = [(moment.replace(tzinfo=zone), sep) for moment, zone, sep in moments]
    values, bad = parse([moment.isoformat(sep) for moment, sep in zoned], "iso")
    assert values == [seconds(moment) for moment, _ in zoned]
    assert not any(bad)


@settings(deadline=None)
@given(st.lists(st.text(alphabet="0123456789-: TZ.+", max_size=22), max_size=8))
@example(["2023-02-29", "2024-02-30", "2024-13-01", "2024-05-31T24:00:00", "2024-05-31 10:60", "0000-01-01"])
def test_any_text_is_a_valid_time_or_rejected(cells: list[str]) -> None:
    values, bad = parse(list(cells), "iso")
    for cell, value, wrong in zip(cells, values, bad, strict=True):
        if not cell.strip():
            assert (value, wrong) == (None, False)
        else:
            assert (value is None) == wrong
        if value is not None:
            assert value == seconds(datetime.datetime.fromisoformat(cell.strip().replace(" ", "T", 1).replace(" ", "")))


@pytest.mark.parametrize(
    ("time_format", "cell", "value"),
    [
        ("iso", "2018-09-20", 1537401600),
        ("iso", " 2018-09-20T00:00:00Z ", 1537401600),
        ("iso", "2018-09-20 02:00:00+02:00", 1537401600),
        ("iso", "2018-09-20T00:00:00.999", 1537401600),
        ("iso", "1969-12-31T23:59:59.5Z", -1),
        ("iso", "20180920", None),
        ("iso", "2018-09", None),
        ("iso", "1537401600", None),
        ("iso", "2018-02-29", None),
        ("%Y-%m-%d %H:%M:%S", "2018-09-20 00:00:00", 1537401600),
        ("%Y-%m-%d %H:%M:%S", "2018-09-20", None),
        ("%d/%m/%Y", "20/09/2018", 1537401600),
        ("%d/%m/%Y", "31/02/2018", None),
        ("%m/%d/%y %I:%M %p", "09/20/18 12:00 AM", 1537401600),
        ("%Y-%m-%dT%H:%M:%S%z", "2018-09-20T02:00:00+0200", 1537401600),
        ("%c", "Thu Sep 20 00:00:00 2018", 1537401600),
        ("%c", "Thu Sep 31 00:00:00 2018", None),
    ],
)
def test_formats(time_format: str, cell: str, value: int | None) -> None:
    assert parse([cell, None, "", cell], time_format) == (
        [value, None, None, value],
        [value is None, False, False, value is None],
    )


def test_only_missing_values() -> None:
    assert parse([None, None], "iso") == ([None, None], [False, False])
    assert parse([], "%Y-%m-%d") == ([], [])


def test_reasons() -> None:
    column = Column("at", "INT", True, 788918400, 4102444800, time_format="iso")
    assert reason(column, "2024-02-30") == (
        "at: expected a valid date or time such as 2024-05-31 or 2024-05-31T10:00:00Z, "
        "from 1995-01-01 00:00:00 to 2100-01-01 00:00:00, got '2024-02-30'"
    )
    assert reason(Column("at", "INT", time_format="%d.%m.%Y"), "x") == (
        "at: expected a valid date or time in the format %d.%m.%Y, such as 31.05.2024, got 'x'"
    )
    assert reason(Column("at", "INT", time_format="milliseconds"), "x") == (
        "at: expected integer milliseconds since 1970, got 'x'"
    )
