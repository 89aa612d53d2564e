"""Parses dates and times in `data.timestamp_format` into seconds since 1970; `rows` calls it."""

from __future__ import annotations

import datetime

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

_ISO = (
    r"^(?P<local>\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?)?)"
    r"(?: ?(?:Z|(?P<sign>[+-])(?P<hours>[01]\d|2[0-3])(?::?(?P<minutes>[0-5]\d))?))?$"
)


def expected(time_format: str) -> str:
    """Return a description of a valid cell, for messages."""
    if time_format == "iso":
        return "a valid date or time such as 2024-05-31 or 2024-05-31T10:00:00Z"
    example = datetime.datetime(2024, 5, 31, 10, tzinfo=datetime.UTC).strftime(time_format)
    return f"a valid date or time in the format {time_format}, such as {example}"


def parse_times(cells: pa.StringArray, time_format: str) -> tuple[pa.Int64Array, npt.NDArray[np.bool_]]:
    """Return seconds since 1970 (rounded down), and which cells are malformed.

    Args:
        cells: Strings; null and blank ones are missing values. Times without a zone are in UTC.
        time_format: `iso` or a pattern of strptime.
    """
    # Dates repeat, so parse each one once.
    coded = pc.ascii_trim_whitespace(cells).dictionary_encode()
    texts = coded.dictionary
    seconds = np.zeros(len(texts), dtype=np.int64)
    good = np.zeros(len(texts), dtype=bool)
    blank = _flags(pc.equal(texts, ""))
    if time_format == "iso":
        fits = _flags(pc.match_substring_regex(texts, _ISO))
        # pandas 2.3 gives a time without zone the zone of the time before it, so zones are removed first.
        parts = pc.extract_regex(texts.filter(pa.array(fits)), _ISO)
        parsed = pd.to_datetime(_series(pc.struct_field(parts, "local")), format="ISO8601", errors="coerce")
        good[fits] = parsed.notna().to_numpy()
        seconds[good] = _seconds(parsed) - _offsets(parts)[parsed.notna().to_numpy()]
    else:
        try:
            parsed = pd.to_datetime(_series(texts), format=time_format, utc=True, errors="coerce")
            good = parsed.notna().to_numpy() & ~blank
            seconds[good] = _seconds(parsed[good])
        except ValueError:
            # A directive that Python supports and pandas does not.
            for index, text in enumerate(texts.to_pylist()):
                seconds[index], good[index] = _strptime(text, time_format)
    indices = coded.indices
    if not len(texts):
        return pa.nulls(len(cells), pa.int64()), np.zeros(len(cells), dtype=bool)
    values = pa.array(seconds, mask=~good).take(indices)
    return values, _flags(pa.array(~(good | blank)).take(indices))


def _series(texts: pa.StringArray) -> pd.Series:
    return pd.Series(texts.to_numpy(zero_copy_only=False), dtype=object)


def _seconds(parsed: pd.Series) -> npt.NDArray[np.int64]:
    nanoseconds = parsed.dropna().dt.as_unit("ns").astype("int64").to_numpy()
    return np.asarray(nanoseconds // 10**9, dtype=np.int64)


def _offsets(parts: pa.StructArray) -> npt.NDArray[np.int64]:
    """Return the offset of each time's zone from UTC in seconds."""

    def number(name: str) -> npt.NDArray[np.int64]:
        field = pc.struct_field(parts, name)
        digits = pc.if_else(pc.equal(field, ""), "0", field)
        return pc.fill_null(digits, "0").cast(pa.int64()).to_numpy(zero_copy_only=False)

    west = _flags(pc.equal(pc.struct_field(parts, "sign"), "-"))
    seconds = number("hours") * 3600 + number("minutes") * 60
    return np.where(west, -seconds, seconds)


def _strptime(text: str, pattern: str) -> tuple[int, bool]:
    try:
        moment = datetime.datetime.strptime(text, pattern)
    except ValueError:
        return 0, False
    utc = moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
    return int((utc - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(seconds=1)), True


def _flags(condition: pa.BooleanArray) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(condition, False).to_numpy(zero_copy_only=False), dtype=bool)
