"""The section `data`: the tables, columns, split and negatives that define the examples."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from recipe.columns import IS_POSITIVE, Columns, Negatives
from recipe.errors import Contradiction, did_you_mean
from recipe.section import Fraction, Section
from recipe.sources import Sources
from recipe.splits import RandomSplit, Split


class ConstantLabel(Section):
    """A constant label, for implicit feedback."""

    constant: float
    """Value of `columns.label` for all interactions."""


class Aggregate(Section):
    """New columns that aggregate all rows of one user and item."""

    count: Annotated[str, Field(min_length=1)] | None = None
    """Name of a new column with the number of rows."""
    sum: dict[str, str] = Field(default_factory=dict)
    """Columns to sum: name of the column to name of the new column. Missing values are ignored."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the new columns."""
        return (*((self.count,) if self.count else ()), *self.sum.values())

    @pydantic.model_validator(mode="after")
    def _adds_columns(self) -> Aggregate:
        if not self.columns:
            raise ValueError("aggregate adds no column; set count or sum")
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise ValueError(f"aggregate adds the column {name!r} twice; choose a different name for one of them")
        for name in self.sum:
            if name in self.columns:
                raise ValueError(f"aggregate.sum reads and adds the column {name!r}; choose a new name for the sum")
        return self


class Data(Section):
    """The examples: source tables, columns, label, negatives and split. InteractionExampleGen reads this section."""

    sources: Sources
    columns: Columns
    timestamp_format: str = "seconds"
    """Format of `columns.timestamp`: `seconds` or `milliseconds` since 1970, `iso` (2024-05-31, 2024-05-31T10:00:00Z,
    2024-05-31 10:00:00+02:00), or a strptime pattern of Python such as `%d/%m/%Y %H:%M`. Times without a time zone are
    UTC. The feature is always in integer seconds since 1970."""
    label: ConstantLabel | None = None
    """Constant label, if no column of the files is the label. `columns.label` is then the name of a new column."""
    duplicates: Literal["keep", "last", "aggregate"] = "keep"
    """Handling of several rows of one user and item: keep all as examples, keep the latest, or aggregate them into one
    example with the columns of `aggregate`. The latest row has the latest timestamp, or is the last in the files."""
    aggregate: Aggregate | None = None
    """Columns that `duplicates: aggregate` adds. Other columns have the values of the latest row."""
    negatives: Negatives | None = None
    """Sampled negatives, for implicit feedback."""
    split: Split = RandomSplit()
    """Assignment of examples to the `train` and `eval` splits."""
    max_bad_rows: Fraction = 0.0
    """Maximum fraction of malformed rows per table. They are rejected; a larger fraction stops the run."""

    @pydantic.model_validator(mode="after")
    def _keys_are_id_columns(self) -> Data:
        items = self.sources.items
        if items is not None and items.key != self.columns.item_id:
            raise _error(
                "sources.items.key",
                f"expected data.columns.item_id, {self.columns.item_id!r}, got {items.key!r}; set both to the same "
                "column",
            )
        users = self.sources.users
        if self.negatives is not None and users is not None and users.key != self.columns.user_id:
            raise _error(
                "sources.users.key",
                f"expected data.columns.user_id, {self.columns.user_id!r}, got {users.key!r}; with negatives both must "
                "be the same column, because a negative has no other column to join users by",
            )
        return self

    @pydantic.model_validator(mode="after")
    def _has_the_timestamp_it_needs(self) -> Data:
        if self.columns.timestamp is None:
            if self.split.is_chronological:
                raise _error(
                    "split",
                    f"kind {self.split.kind} requires data.columns.timestamp, which is not set; set it, or use "
                    "kind: random",
                )
            if self.timestamp_format != "seconds":
                raise _error(
                    "timestamp_format",
                    f"{self.timestamp_format!r} requires data.columns.timestamp, which is not set; set it, or remove "
                    "timestamp_format",
                )
        return self

    @pydantic.field_validator("timestamp_format")
    @classmethod
    def _is_a_timestamp_format(cls, found: str) -> str:
        known = ("seconds", "milliseconds", "iso")
        if found in known:
            return found
        if "%" not in found:
            raise ValueError(
                "expected seconds, milliseconds, iso or a strptime pattern such as %Y-%m-%d, "
                f"got {found!r}{did_you_mean(found, known)}"
            )
        _check_pattern(found)
        return found

    @pydantic.model_validator(mode="after")
    def _duplicates_and_aggregate_agree(self) -> Data:
        if self.aggregate is not None and self.duplicates != "aggregate":
            raise _error(
                "aggregate",
                f"requires duplicates: aggregate, got {self.duplicates}; set data.duplicates, or remove aggregate",
            )
        if self.duplicates == "aggregate" and self.aggregate is None:
            raise _error(
                "duplicates",
                "aggregate requires data.aggregate, which is not set; set aggregate: {count: NAME}, or "
                "duplicates: last",
            )
        for part in ("user_id", "item_id", "timestamp"):
            name = getattr(self.columns, part)
            if self.aggregate is not None and name in self.aggregate.columns:
                raise _error(
                    "aggregate", f"adds the column {name!r}, which is data.columns.{part}; choose a different name"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _has_one_label(self) -> Data:
        if self.label is None:
            return self
        name = self.columns.label
        if self.aggregate is not None and name in self.aggregate.columns:
            raise _error(
                "label",
                f"data.columns.label is {name!r}, which is both a column of aggregate and the constant label; remove "
                "label, or choose a different name for one of them",
            )
        for part in ("user_id", "item_id", "timestamp"):
            if name == getattr(self.columns, part):
                raise _error(
                    "label", f"adds the column {name!r}, which is data.columns.{part}; choose a different name"
                )
        if self.negatives is not None and self.negatives.label == self.label.constant:
            raise _error(
                "negatives.label",
                f"data.label.constant is {self.negatives.label:g} as well, so all examples would have the same label; "
                "choose different values",
            )
        return self

    @pydantic.model_validator(mode="after")
    def _negatives_do_not_leak_the_label(self) -> Data:
        if self.negatives is not None:
            parts = self.columns
            added = self.aggregate.columns if self.aggregate is not None else ()
            if IS_POSITIVE in (parts.user_id, parts.item_id, parts.label, parts.timestamp, *added):
                raise _error(
                    "columns",
                    f"the column name {IS_POSITIVE!r} is reserved for the feature that distinguishes interactions from "
                    "sampled negatives; rename the column",
                )
            for index, name in enumerate(self.negatives.context):
                if name in (parts.item_id, parts.label, *added):
                    raise _error(
                        f"negatives.context.{index}",
                        f"{name!r} describes the outcome of the interaction; remove it, because a copy of it in "
                        "negatives would leak the label",
                    )
        return self


def _error(key: str, message: str) -> Contradiction:
    """An error at a key of this section."""
    return Contradiction(f"data.{key}", f"data.{key}: {message}")


def _check_pattern(pattern: str) -> None:
    """Raise ValueError if strptime does not accept `pattern`, or if the pattern does not determine the date."""
    utc = datetime.UTC
    moments = [
        datetime.datetime(2001, 2, 3, 16, 5, 6, tzinfo=utc),
        datetime.datetime(2002, 11, 24, 7, 8, 9, tzinfo=utc),
    ]
    try:
        found = [datetime.datetime.strptime(moment.strftime(pattern), pattern) for moment in moments]
    except ValueError as error:
        raise ValueError(f"expected a strptime pattern, got {pattern!r}: {error}") from None
    if [moment.date() for moment in found] != [moment.date() for moment in moments]:
        raise ValueError(f"expected a pattern with year, month and day, such as %Y-%m-%d, got {pattern!r}")
