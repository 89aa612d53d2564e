"""The section `data.sources`: the files that a run reads, and how they are joined."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from recipe.section import Section


class Source(Section):
    """One table: its files, and how they are read."""

    files: Annotated[str, Field(min_length=1)]
    """File name or glob below the data folder, e.g. `interactions.csv` or `part-*.csv.gz`."""
    format: Literal["csv", "json"] | None = None
    """How the files are written. Left out, it is `json` for names that end in `.json` or `.json.gz`, else `csv`.
    `json` is an object of records by key, as the Firebase Realtime Database exports it, or an array of records."""
    records: Annotated[str, Field(min_length=1)] | None = None
    """Where the records stand in a JSON file: a key, or a path of keys such as `app/User_Book`. Left out, the whole
    file is the object or array of records."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Columns that have another name in the files than everywhere else: name in the file to name everywhere else."""

    @property
    def file_format(self) -> Literal["csv", "json"]:
        """`format`, by the file's name where it is not given."""
        return self.format or ("json" if self.files.removesuffix(".gz").endswith(".json") else "csv")

    @pydantic.model_validator(mode="after")
    def _reads_one_way(self) -> Source:
        if self.records is not None and self.file_format != "json":
            raise ValueError(
                f"records: {self.records} is for JSON files, and {self.files!r} is read as CSV; "
                "drop records, or add format: json"
            )
        names = list(self.rename.values())
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"rename gives two columns the name {name!r}; choose another for one of them")
        return self


class Lookup(Source):
    """A table with one row a key, joined onto another one; a row that finds no key gets missing values."""

    key: str
    """The column that identifies a row; it has the same name (after `rename`) in the table it is joined onto."""
    duplicates: Literal["error", "first", "last"] = "error"
    """What happens to a key that stands in several rows: the run stops, or the first or last row is taken."""


class Interactions(Source):
    """The table of who did what with which item: one row an interaction."""

    lookups: tuple[Lookup, ...] = ()
    """Tables joined onto this one in order, each by a column that is there by then."""


class Entities(Lookup):
    """A table with one row an item, or one row a user."""

    lookups: tuple[Lookup, ...] = ()
    """Tables joined onto this one in order, each by a column that is there by then."""


class Sources(Section):
    """The files a run reads, and how they are joined."""

    interactions: Interactions
    items: Entities | None = None
    """One row an item. Every row joins the catalogue, whether or not anyone touched the item."""
    users: Entities | None = None
    """One row a user."""

    def tables(self) -> dict[str, Source]:
        """The sources in use by name: `interactions`, `interactions.lookups.0`, …, then `items` and `users` so too."""
        named: dict[str, Source] = {}
        for name, source in (("interactions", self.interactions), ("items", self.items), ("users", self.users)):
            if source is not None:
                named[name] = source
                named.update({f"{name}.lookups.{index}": lookup for index, lookup in enumerate(source.lookups)})
        return named
