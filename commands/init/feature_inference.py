"""What kind of feature a column of an items or users table looks like; `tandem init` asks.

The rules are few and their words are written into the recipe, because they guess: the user has the last word.
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
"""Up to so many different numbers are taken for codes."""
MOST_CATEGORIES = 1000
REPEATS = 3
"""A value must come up so often on average to say something about more than its own row."""
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
    """What a column looks like.

    Attributes:
        column: Its name in the file.
        kind: The kind of feature; None where it is better left out.
        type: Its type in the schema.
        why: The reason, in a few words without a line break.
        separator: For `multi_value`.
    """

    column: str
    kind: Kind | None
    type: ColumnType
    why: str
    separator: str = ""

    @property
    def is_title(self) -> bool:
        """Whether people would know an item by this column."""
        return self.kind in ("text", "categorical") and _TITLE_NAME.search(self.column) is not None


def infer_feature(column: str, cells: pa.StringArray) -> InferredFeature:
    """Looks at a whole column.

    Args:
        column: Its name.
        cells: Its cells as strings; an empty one is null.
    """
    values = pc.ascii_trim_whitespace(cells.drop_null())
    values = values.filter(pc.not_equal(values, ""))
    distinct = len(values.unique())
    if distinct < 2:
        return InferredFeature(column, None, "BYTES", "always the same" if distinct else "always empty")
    if _all(values, _NUMBER) and not _any(values, _LEADING_ZERO):
        return _number(column, values, distinct)
    return _string(column, values, distinct)


def _number(column: str, values: pa.StringArray, distinct: int) -> InferredFeature:
    whole = _all(values, _WHOLE)
    if whole and _is_code(column):
        return _code(column, values, distinct)
    if distinct <= FEW:
        return InferredFeature(column, "categorical", "BYTES", f"{distinct} different numbers, so taken as codes")
    numbers = values.cast(pa.float64()).to_numpy()
    if whole and distinct == len(values) and numbers.min() in (0, 1) and np.ptp(numbers) == len(values) - 1:
        return InferredFeature(column, None, "INT", "counts the rows")
    kind: ColumnType = "INT" if whole and np.abs(numbers).max() < 2**62 else "FLOAT"
    span = f"from {numbers.min():g} to {numbers.max():g}"
    if not whole and np.abs(numbers - numbers.mean()).max() <= 4 * numbers.std():
        return InferredFeature(column, "normalized", "FLOAT", f"numbers {span}, none of them far out")
    if whole:
        return InferredFeature(column, "buckets", kind, f"whole numbers {span}")
    return InferredFeature(column, "buckets", "FLOAT", f"numbers {span}, some of them far out")


def _string(column: str, values: pa.StringArray, distinct: int) -> InferredFeature:
    if _share(values, _DATE) > 0.9:
        return InferredFeature(column, None, "BYTES", "dates; no feature kind reads them")
    if _share(values, r"^(https?|ftp)://") > 0.5:
        return InferredFeature(column, None, "BYTES", "links")
    if _is_code(column):
        return _code(column, values, distinct)
    for separator in SEPARATORS:
        found = _multi_value(column, values, separator)
        if found is not None:
            return found
    if distinct <= MOST_CATEGORIES and len(values) >= REPEATS * distinct:
        return InferredFeature(column, "categorical", "BYTES", f"{distinct} different values in {len(values)} rows")
    words = pc.mean(pc.list_value_length(pc.utf8_split_whitespace(values))).as_py()
    if words >= 1.5:
        return InferredFeature(column, "text", "BYTES", f"text of {words:.1f} words on average")
    return _unlike(column)


def _code(column: str, values: pa.StringArray, distinct: int) -> InferredFeature:
    if distinct <= MOST_CATEGORIES and len(values) >= REPEATS * distinct:
        return InferredFeature(column, "categorical", "BYTES", f"{distinct} different codes in {len(values)} rows")
    return _unlike(column)


def _unlike(column: str) -> InferredFeature:
    return InferredFeature(
        column, None, "BYTES", "nearly every row has a value of its own, which says nothing about others"
    )


def _multi_value(column: str, values: pa.StringArray, separator: str) -> InferredFeature | None:
    """Several short values in one cell that come up in other cells too."""
    if pc.mean(pc.match_substring(values, separator).cast(pa.float64())).as_py() < 0.1:
        return None
    parts = pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(values, separator)))
    parts = parts.filter(pc.not_equal(parts, ""))
    distinct = len(parts.unique())
    words = pc.mean(pc.list_value_length(pc.utf8_split_whitespace(parts))).as_py()
    # Where splitting leaves as many values as before, the separator is part of them.
    if words > 3 or distinct > min(MOST_CATEGORIES, len(values.unique()) - 1) or len(parts) < REPEATS * distinct:
        return None
    why = f"{distinct} different values, up to {_most(values, separator)} in a cell"
    return InferredFeature(column, "multi_value", "BYTES", why, separator)


def _most(values: pa.StringArray, separator: str) -> int:
    return int(pc.max(pc.count_substring(values, separator)).as_py()) + 1


def _is_code(column: str) -> bool:
    return bool(_CODE_NAME.search(column) or _CODE_CAMEL.search(column))


def _share(values: pa.StringArray, pattern: str) -> float:
    return float(pc.mean(pc.match_substring_regex(values, pattern).cast(pa.float64())).as_py())


def _all(values: pa.StringArray, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def _any(values: pa.StringArray, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())
