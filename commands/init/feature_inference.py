"""Infers the feature kind of a column of an items or users table for `tandem init`.

The rules are heuristics. The reason for each inferred kind is written into the recipe as a comment for review.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recipe.columns import ColumnType

Kind = Literal["categorical", "text", "multi_value", "buckets", "normalized"]

FEW = 10
"""A numeric column with at most this many distinct values is categorical."""
MOST_CATEGORIES = 1000
"""A column with more distinct values is not categorical."""
REPEATS = 3
"""Minimum average frequency of the values of a categorical column."""
SEPARATORS = ("|", ";", ",")
BUCKETS = 8

_WHOLE = r"^-?[0-9]+$"
_NUMBER = r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_LEADING_ZERO = r"^-?0[0-9]"
_DATE = r"^\d{4}-\d{2}-\d{2}([T ]|$)"
_CODE_NAME = re.compile(r"(^|_|\s)(id|code|no|nr|number|zip|zip_?code|postal_?code|isbn|ean|sku|phone)$", re.IGNORECASE)
_CODE_CAMEL = re.compile(r"[a-z](Id|ID|Code|No|Nr)$")
_TITLE_NAME = re.compile(r"(^|_)(title|name)s?$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class InferredFeature:
    """The inferred feature of a column.

    Attributes:
        column: Name of the column in the CSV.
        kind: Kind of the feature; None if the column should not be a feature.
        type: Type in the schema.
        why: Reason, on one line.
        separator: Separator of the values of a `multi_value` feature.
    """

    column: str
    kind: Kind | None
    type: ColumnType
    why: str
    separator: str = ""

    @property
    def is_title(self) -> bool:
        """Whether the column is a title or name."""
        return self.kind in ("text", "categorical") and _TITLE_NAME.search(self.column) is not None


def infer_feature(column: str, cells: pa.StringArray) -> InferredFeature:
    """Infer the feature kind of a column from all of its cells.

    Args:
        column: Name of the column.
        cells: Cells as strings; empty cells are null.
    """
    values = pc.ascii_trim_whitespace(cells.drop_null())
    values = values.filter(pc.not_equal(values, ""))
    distinct = len(values.unique())
    if distinct < 2:
        return InferredFeature(column, None, "BYTES", "constant" if distinct else "empty")
    if _all(values, _NUMBER) and not _any(values, _LEADING_ZERO):
        return _number(column, values, distinct)
    return _string(column, values, distinct)


def _number(column: str, values: pa.StringArray, distinct: int) -> InferredFeature:
    whole = _all(values, _WHOLE)
    if whole and _is_code(column):
        return _code(column, values, distinct)
    if distinct <= FEW:
        return InferredFeature(column, "categorical", "BYTES", f"{distinct} distinct numbers, treated as categories")
    numbers = values.cast(pa.float64()).to_numpy()
    if whole and distinct == len(values) and numbers.min() in (0, 1) and np.ptp(numbers) == len(values) - 1:
        return InferredFeature(column, None, "INT", "row number")
    kind: ColumnType = "INT" if whole and np.abs(numbers).max() < 2**62 else "FLOAT"
    bounds = f"from {numbers.min():g} to {numbers.max():g}"
    if not whole and np.abs(numbers - numbers.mean()).max() <= 4 * numbers.std():
        return InferredFeature(column, "normalized", "FLOAT", f"numbers {bounds} without outliers")
    if whole:
        return InferredFeature(column, "buckets", kind, f"integers {bounds}")
    return InferredFeature(column, "buckets", "FLOAT", f"numbers {bounds} with outliers")


def _string(column: str, values: pa.StringArray, distinct: int) -> InferredFeature:
    if _fraction(values, _DATE) > 0.9:
        return InferredFeature(column, None, "BYTES", "dates, for which there is no feature kind")
    if _fraction(values, r"^(https?|ftp)://") > 0.5:
        return InferredFeature(column, None, "BYTES", "URLs")
    if _is_code(column):
        return _code(column, values, distinct)
    for separator in SEPARATORS:
        found = _multi_value(column, values, separator)
        if found is not None:
            return found
    if distinct <= MOST_CATEGORIES and len(values) >= REPEATS * distinct:
        return InferredFeature(column, "categorical", "BYTES", f"{distinct} distinct values in {len(values)} rows")
    words = pc.mean(pc.list_value_length(pc.utf8_split_whitespace(values))).as_py()
    if words >= 1.5:
        return InferredFeature(column, "text", "BYTES", f"text of {words:.1f} words on average")
    return _unique(column)


def _code(column: str, values: pa.StringArray, distinct: int) -> InferredFeature:
    if distinct <= MOST_CATEGORIES and len(values) >= REPEATS * distinct:
        return InferredFeature(column, "categorical", "BYTES", f"{distinct} distinct codes in {len(values)} rows")
    return _unique(column)


def _unique(column: str) -> InferredFeature:
    return InferredFeature(column, None, "BYTES", "almost all values are unique")


def _multi_value(column: str, values: pa.StringArray, separator: str) -> InferredFeature | None:
    """Infer several short values per cell that repeat in other cells."""
    if pc.mean(pc.match_substring(values, separator).cast(pa.float64())).as_py() < 0.1:
        return None
    parts = pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(values, separator)))
    parts = parts.filter(pc.not_equal(parts, ""))
    distinct = len(parts.unique())
    words = pc.mean(pc.list_value_length(pc.utf8_split_whitespace(parts))).as_py()
    # If splitting does not reduce the number of distinct values, the separator is part of the values.
    if words > 3 or distinct > min(MOST_CATEGORIES, len(values.unique()) - 1) or len(parts) < REPEATS * distinct:
        return None
    why = f"{distinct} distinct values, up to {_most_per_cell(values, separator)} per cell"
    return InferredFeature(column, "multi_value", "BYTES", why, separator)


def _most_per_cell(values: pa.StringArray, separator: str) -> int:
    return int(pc.max(pc.count_substring(values, separator)).as_py()) + 1


def _is_code(column: str) -> bool:
    return bool(_CODE_NAME.search(column) or _CODE_CAMEL.search(column))


def _fraction(values: pa.StringArray, pattern: str) -> float:
    return float(pc.mean(pc.match_substring_regex(values, pattern).cast(pa.float64())).as_py())


def _all(values: pa.StringArray, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def _any(values: pa.StringArray, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())
