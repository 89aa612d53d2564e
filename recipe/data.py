"""The section `data`: everything that decides which examples there are."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from recipe.columns import IS_POSITIVE, Columns, Negatives
from recipe.errors import did_you_mean
from recipe.section import Section
from recipe.sources import Sources
from recipe.splits import RandomSplit, Split


class ConstantLabel(Section):
    """A label for data that only says what happened: every interaction has the same one."""

    constant: float
    """The value of `columns.label` for every interaction."""


class Aggregate(Section):
    """New columns that sum up all rows of one user and item."""

    count: Annotated[str, Field(min_length=1)] | None = None
    """Name of the column that says how many rows there were."""
    sum: dict[str, str] = Field(default_factory=dict)
    """Columns to add up: name of the column to name of the sum. Missing values are left out of the sum."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The new columns."""
        return (*((self.count,) if self.count else ()), *self.sum.values())

    @pydantic.model_validator(mode="after")
    def _makes_columns(self) -> Aggregate:
        if not self.columns:
            raise ValueError("aggregate makes no column; give count or sum")
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise ValueError(f"aggregate makes the column {name!r} twice; choose another name for one of them")
        for name in self.sum:
            if name in self.columns:
                raise ValueError(f"aggregate.sum reads and makes the column {name!r}; give the sum a name of its own")
        return self


class Data(Section):
    """Everything that decides which examples there are; what InteractionExampleGen gets."""

    sources: Sources
    columns: Columns
    timestamp_format: str = "seconds"
    """How `columns.timestamp` is written: `seconds` or `milliseconds` since 1970, `iso` (2024-05-31,
    2024-05-31T10:00:00Z, 2024-05-31 10:00:00+02:00), or a pattern of Python's strptime such as `%d/%m/%Y %H:%M`.
    Where no zone is given it is UTC. The feature is always whole seconds since 1970."""
    label: ConstantLabel | None = None
    """Given where no column of the files is the label; `columns.label` then names a new column."""
    duplicates: Literal["keep", "last", "aggregate"] = "keep"
    """What happens to several rows of one user and item: all are examples, the latest is, or they become one example
    with the columns of `aggregate`. The latest is the one with the latest timestamp, or the last in the files."""
    aggregate: Aggregate | None = None
    """What `duplicates: aggregate` adds up; every other column is the latest row's."""
    negatives: Negatives | None = None
    """Sampled examples of what did not happen, for data without bad labels."""
    split: Split = RandomSplit()
    """Which examples are `train` and which are `eval`."""
    max_bad_rows: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of a table's rows that may be rejected; more than that stops the run."""

    @pydantic.model_validator(mode="after")
    def _keys_are_those_of_the_columns(self) -> Data:
        items = self.sources.items
        if items is not None and items.key != self.columns.item_id:
            raise ValueError(
                f"sources.items.key is {items.key!r}, columns.item_id is {self.columns.item_id!r}; "
                "they must be the same"
            )
        users = self.sources.users
        if self.negatives is not None and users is not None and users.key != self.columns.user_id:
            raise ValueError(
                f"sources.users.key is {users.key!r}, columns.user_id is {self.columns.user_id!r}; with negatives they "
                "must be the same, because a sampled interaction has a user and no other column of the real one"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _has_the_time_it_needs(self) -> Data:
        if self.columns.timestamp is None:
            if self.split.is_chronological:
                raise ValueError(
                    f"split.kind: {self.split.kind} needs timestamps, but columns.timestamp is not set; "
                    "name the column, or set split.kind: random"
                )
            if self.timestamp_format != "seconds":
                raise ValueError(
                    f"timestamp_format is {self.timestamp_format!r}, but columns.timestamp is not given; "
                    "name the column or drop the format"
                )
        known = ("seconds", "milliseconds", "iso")
        if self.timestamp_format not in known:
            close = did_you_mean(self.timestamp_format, known)
            if "%" not in self.timestamp_format:
                raise ValueError(
                    f"timestamp_format is {self.timestamp_format!r}; seconds, milliseconds, iso or a strptime pattern "
                    f"such as %Y-%m-%d was wanted{close}"
                )
            _check_pattern(self.timestamp_format)
        return self

    @pydantic.model_validator(mode="after")
    def _duplicates_and_aggregate_agree(self) -> Data:
        if self.aggregate is not None and self.duplicates != "aggregate":
            raise ValueError(
                f"aggregate is given, but duplicates is {self.duplicates}; "
                "write duplicates: aggregate, or drop aggregate"
            )
        if self.duplicates == "aggregate" and self.aggregate is None:
            raise ValueError(
                "duplicates is aggregate, but data.aggregate does not say what to add up; "
                "give aggregate: {count: NAME}, or write duplicates: last"
            )
        parts = self.columns
        named = {parts.user_id: "user_id", parts.item_id: "item_id", parts.timestamp: "timestamp"}
        for name in self.aggregate.columns if self.aggregate is not None else ():
            if name in named:
                raise ValueError(
                    f"aggregate makes the column {name!r}, which is columns.{named[name]}; choose another name"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _has_one_label(self) -> Data:
        if self.label is not None and self.aggregate is not None and self.columns.label in self.aggregate.columns:
            raise ValueError(
                f"columns.label is {self.columns.label!r}, which aggregate makes, and label gives it a constant; "
                "drop label, or choose another name for one of them"
            )
        parts = self.columns
        if self.label is not None and parts.label in (parts.user_id, parts.item_id, parts.timestamp):
            raise ValueError(f"label makes the column {parts.label!r}, which plays another part; choose another name")
        if self.label is not None and self.negatives is not None and self.negatives.label == self.label.constant:
            raise ValueError(
                f"label.constant and negatives.label are both {self.negatives.label:g}, so every example would have "
                "the same label; choose another value for one of them"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _negatives_keep_the_answer_out(self) -> Data:
        if self.negatives is not None:
            parts = self.columns
            made = self.aggregate.columns if self.aggregate is not None else ()
            if IS_POSITIVE in (parts.user_id, parts.item_id, parts.label, parts.timestamp, *made):
                raise ValueError(
                    f"{IS_POSITIVE!r} is the name of the feature that tells interactions from negatives; "
                    "give the column another name"
                )
            for name in self.negatives.context:
                if name in (parts.item_id, parts.label, *made):
                    raise ValueError(
                        f"negatives.context lists {name!r}, which is the interaction's answer; drop it, because "
                        "copying it would give a negative what only the interaction has"
                    )
        return self


def _check_pattern(pattern: str) -> None:
    """Raises if strptime does not understand `pattern`, or if it leaves the day open."""
    utc = datetime.UTC
    moments = [
        datetime.datetime(2001, 2, 3, 16, 5, 6, tzinfo=utc),
        datetime.datetime(2002, 11, 24, 7, 8, 9, tzinfo=utc),
    ]
    try:
        found = [datetime.datetime.strptime(moment.strftime(pattern), pattern) for moment in moments]
    except ValueError as error:
        raise ValueError(f"timestamp_format is {pattern!r}, no pattern of strptime: {error}") from None
    if [moment.date() for moment in found] != [moment.date() for moment in moments]:
        raise ValueError(
            f"timestamp_format is {pattern!r}, which does not say which day it is; year, month and day were wanted, "
            "for example %Y-%m-%d"
        )
