"""The section `data.sources`: the files that a run reads, and the joins between them."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from recipe.section import Section


class Source(Section):
    """A table: its files, their format and the names of its columns."""

    files: Annotated[str, Field(min_length=1)]
    """File name or glob pattern relative to the data folder, such as `interactions.csv` or `part-*.csv.gz`."""
    format: Literal["csv", "json"] | None = None
    """File format. If not set, `json` for names that end in `.json` or `.json.gz`, otherwise `csv`. `json` is an object
    of records by key, as exported by the Firebase Realtime Database, or an array of records."""
    records: Annotated[str, Field(min_length=1)] | None = None
    """Path of the records in a JSON file: a key, or keys separated by slashes such as `app/User_Book`. If not set, the
    root of the file is the object or array of records."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Columns to rename: name in the files to name in the recipe and the schema."""

    @property
    def file_format(self) -> Literal["csv", "json"]:
        """`format`, or the format by file extension if it is not set."""
        return self.format or ("json" if self.files.removesuffix(".gz").endswith(".json") else "csv")

    @pydantic.model_validator(mode="after")
    def _options_fit_the_format(self) -> Source:
        if self.records is not None and self.file_format != "json":
            raise ValueError(
                f"expected JSON files with records: {self.records}, got {self.files!r}, which is read as CSV; "
                "remove records, or add format: json"
            )
        names = list(self.rename.values())
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"rename maps two columns to {name!r}; choose a different name for one of them")
        return self


class Lookup(Source):
    """A table with one row per key, which is left-joined to another table. Rows without a match get missing values."""

    key: str
    """Key column. It has the same name (after `rename`) in both tables."""
    duplicates: Literal["error", "first", "last"] = "error"
    """Handling of keys that occur in several rows: stop the run, or use the first or the last row."""


class InteractionSource(Source):
    """The table of interactions: one row per interaction of a user with an item."""

    lookups: tuple[Lookup, ...] = ()
    """Tables to join to this one, in order. A key column may come from an earlier lookup."""


class EntitySource(Lookup):
    """A table with one row per item, or one row per user."""

    lookups: tuple[Lookup, ...] = ()
    """Tables to join to this one, in order. A key column may come from an earlier lookup."""


class Sources(Section):
    """The tables that a run reads and joins."""

    interactions: InteractionSource
    items: EntitySource | None = None
    """One row per item. All rows are part of the catalogue, with or without interactions."""
    users: EntitySource | None = None
    """One row per user."""

    def tables(self) -> dict[str, Source]:
        """Return the tables by name: `interactions`, `interactions.lookups.0`, …, and likewise `items` and `users`."""
        named: dict[str, Source] = {}
        for name, source in (("interactions", self.interactions), ("items", self.items), ("users", self.users)):
            if source is not None:
                named[name] = source
                named.update({f"{name}.lookups.{index}": lookup for index, lookup in enumerate(source.lookups)})
        return named
