"""The section `data`: the tables, columns, split and negatives that define the examples."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from recipe.columns import IS_POSITIVE, Columns, Negatives
from recipe.errors import did_you_mean
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
            raise ValueError(
                f"sources.items.key: expected columns.item_id, {self.columns.item_id!r}, got {items.key!r}; "
                "set both to the same column"
            )
        users = self.sources.users
        if self.negatives is not None and users is not None and users.key != self.columns.user_id:
            raise ValueError(
                f"sources.users.key: expected columns.user_id, {self.columns.user_id!r}, got {users.key!r}; with "
                "negatives both must be the same column, because a negative has no other column to join users by"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _has_the_timestamp_it_needs(self) -> Data:
        if self.columns.timestamp is None:
            if self.split.is_chronological:
                raise ValueError(
                    f"split.kind {self.split.kind} requires columns.timestamp, which is not set; set it, or use "
                    "kind: random"
                )
            if self.timestamp_format != "seconds":
                raise ValueError(
                    f"timestamp_format is {self.timestamp_format!r}, but columns.timestamp is not set; "
                    "set it, or remove timestamp_format"
                )
        known = ("seconds", "milliseconds", "iso")
        if self.timestamp_format not in known:
            if "%" not in self.timestamp_format:
                raise ValueError(
                    "timestamp_format: expected seconds, milliseconds, iso or a strptime pattern such as %Y-%m-%d, "
                    f"got {self.timestamp_format!r}{did_you_mean(self.timestamp_format, known)}"
                )
            _check_pattern(self.timestamp_format)
        return self

    @pydantic.model_validator(mode="after")
    def _duplicates_and_aggregate_agree(self) -> Data:
        if self.aggregate is not None and self.duplicates != "aggregate":
            raise ValueError(
                f"aggregate is set, but duplicates is {self.duplicates}; set duplicates: aggregate, or remove aggregate"
            )
        if self.duplicates == "aggregate" and self.aggregate is None:
            raise ValueError(
                "duplicates is aggregate, but data.aggregate is not set; "
                "set aggregate: {count: NAME}, or duplicates: last"
            )
        parts = self.columns
        named = {parts.user_id: "user_id", parts.item_id: "item_id", parts.timestamp: "timestamp"}
        for name in self.aggregate.columns if self.aggregate is not None else ():
            if name in named:
                raise ValueError(
                    f"aggregate adds the column {name!r}, which is columns.{named[name]}; choose a different name"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _has_one_label(self) -> Data:
        if self.label is not None and self.aggregate is not None and self.columns.label in self.aggregate.columns:
            raise ValueError(
                f"columns.label is {self.columns.label!r}, which is both a column of aggregate and the constant label; "
                "remove label, or choose a different name for one of them"
            )
        parts = self.columns
        named = {parts.user_id: "user_id", parts.item_id: "item_id", parts.timestamp: "timestamp"}
        if self.label is not None and parts.label in named:
            raise ValueError(
                f"label adds the column {parts.label!r}, which is columns.{named[parts.label]}; choose a different name"
            )
        if self.label is not None and self.negatives is not None and self.negatives.label == self.label.constant:
            raise ValueError(
                f"label.constant and negatives.label are both {self.negatives.label:g}, so all examples would have "
                "the same label; choose different values"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _negatives_do_not_leak_the_label(self) -> Data:
        if self.negatives is not None:
            parts = self.columns
            added = self.aggregate.columns if self.aggregate is not None else ()
            if IS_POSITIVE in (parts.user_id, parts.item_id, parts.label, parts.timestamp, *added):
                raise ValueError(
                    f"the column name {IS_POSITIVE!r} is reserved for the feature that distinguishes interactions from "
                    "sampled negatives; rename the column"
                )
            for name in self.negatives.context:
                if name in (parts.item_id, parts.label, *added):
                    raise ValueError(
                        f"negatives.context contains {name!r}, which describes the outcome of the interaction; remove "
                        "it, because a copy of it in negatives would leak the label"
                    )
        return self


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
        raise ValueError(f"timestamp_format: expected a strptime pattern, got {pattern!r}: {error}") from None
    if [moment.date() for moment in found] != [moment.date() for moment in moments]:
        raise ValueError(
            f"timestamp_format: expected a pattern with year, month and day, such as %Y-%m-%d, got {pattern!r}"
        )
