"""Parses dates and times into seconds since 1970, as `data.timestamp_format` says; `rows` calls it."""

from __future__ import annotations

import datetime

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

_ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?( ?(Z|[+-]\d{2}(:?\d{2})?))?)?$"


def wanted(time_format: str) -> str:
    """What a cell should have been, in words."""
    if time_format == "iso":
        return "a date or time that exists, such as 2024-05-31 or 2024-05-31T10:00:00Z"
    example = datetime.datetime(2024, 5, 31, 10, tzinfo=datetime.UTC).strftime(time_format)
    return f"a date or time that exists, written {time_format} (such as {example})"


def parse_times(cells: pa.StringArray, time_format: str) -> tuple[pa.Int64Array, npt.NDArray[np.bool_]]:
    """Seconds since 1970 (parts of a second are cut off, downwards), and which cells are no time.

    Args:
        cells: Strings; null and blank ones are missing, not wrong. Times without a zone are in UTC.
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
        parsed = pd.to_datetime(_series(texts.filter(pa.array(fits))), format="ISO8601", utc=True, errors="coerce")
        good[fits] = parsed.notna().to_numpy()
        seconds[good] = _seconds(parsed)
    else:
        try:
            parsed = pd.to_datetime(_series(texts), format=time_format, utc=True, errors="coerce")
            good = parsed.notna().to_numpy() & ~blank
            seconds[good] = _seconds(parsed[good])
        except ValueError:
            # A directive that pandas does not know and Python does.
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


def _strptime(text: str, pattern: str) -> tuple[int, bool]:
    try:
        moment = datetime.datetime.strptime(text, pattern)
    except ValueError:
        return 0, False
    utc = moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)
    return int((utc - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(seconds=1)), True


def _flags(condition: pa.BooleanArray) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.fill_null(condition, False).to_numpy(zero_copy_only=False), dtype=bool)
