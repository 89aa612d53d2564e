"""Decides, from the CSVs' headers, which table gives which column; the executor and the check before a run share it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from tensorflow_metadata.proto.v0 import schema_pb2

from components.example_gen.errors import DataError
from components.example_gen.reader import Header, read_header
from pipeline.recipe import ColumnType, Data, Lookup, column_types, did_you_mean

INTERACTIONS = "interactions"
ITEMS = "items"


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table and what its cells must be.

    Attributes:
        name: Its name in the header.
        type: BYTES is text, INT an int64, FLOAT a float32.
        required: An empty cell is an error; elsewhere it is a missing value.
        minimum: Smallest number allowed, if there is one.
        maximum: Largest number allowed, if there is one.
    """

    name: str
    type: ColumnType
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """One source: its files and what is read from them.

    Attributes:
        name: `interactions`, `items` or `users`.
        files: Its files, sorted.
        columns: The columns to read.
        features: Those of them that become features of the examples, by this table; in the schema's order.
        key: For a lookup, the column it is joined by.
    """

    name: str
    files: tuple[str, ...]
    columns: tuple[Column, ...]
    features: tuple[str, ...]
    key: str | None = None

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


@dataclasses.dataclass(frozen=True)
class Sources:
    """All tables of a run.

    Attributes:
        interactions: The table of interactions.
        lookups: The tables joined onto it, by name.
        features: Every feature of a train or eval example, in the schema's order.
    """

    interactions: Table
    lookups: Mapping[str, Table]
    features: tuple[str, ...]

    @property
    def item_features(self) -> tuple[str, ...]:
        """The columns that the items table adds to an item's id."""
        return self.lookups[ITEMS].features if ITEMS in self.lookups else ()


def inspect_sources(
    files: Mapping[str, Sequence[str]],
    data: Data,
    schema: schema_pb2.Schema,
    open_file: Callable[[str], IO[bytes]],
) -> Sources:
    """Reads the headers of all files and decides which table gives which feature of the schema.

    Args:
        files: The files of each table in `data.sources`.
        data: The recipe's data section.
        schema: Every feature in it is read from some table.
        open_file: Opens a file for reading bytes.

    Raises:
        DataError: A file is missing, empty or unreadable, a column is missing or stands in two tables.
    """
    headers: dict[str, list[Header]] = {}
    for name in data.sources.tables():
        if not files.get(name):
            raise no_file(name, data.sources.tables()[name].files)
        headers[name] = []
        for file in sorted(files[name]):
            with open_file(file) as stream:
                headers[name].append(read_header(stream, file, data.max_bad_rows > 0))
    return lay_out(headers, data, schema)


def no_file(table: str, pattern: str, folder: str = "", there: Sequence[str] = ()) -> DataError:
    """The error for a pattern that matches nothing."""
    place = f" in {folder}" if folder else ""
    listing = f" Files there: {', '.join(there[:10])}{', …' if len(there) > 10 else ''}." if there else ""
    close = did_you_mean(pattern, there) or "."
    return DataError(f"data.sources.{table}.files: no file matches {pattern!r}{place}{close}{listing} "
                     "Put the file there, or correct the pattern in the recipe.")  # fmt: skip


def lay_out(headers: Mapping[str, Sequence[Header]], data: Data, schema: schema_pb2.Schema) -> Sources:
    """As `inspect_sources`, for headers already read."""
    tables = data.sources.tables()
    types = column_types(schema)
    keys = {name: source.key for name, source in tables.items() if isinstance(source, Lookup)}
    givers = _givers(headers, types, keys)
    for name in _required(data):
        if INTERACTIONS not in givers.get(name, ()):
            raise _missing(name, headers[INTERACTIONS], "every interaction needs it")
    for name in types:
        if name not in givers:
            raise _missing(
                name, [header for table in headers.values() for header in table], "the schema has this feature"
            )
        if len(givers[name]) > 1:
            where = " and ".join(headers[table][0].file for table in givers[name])
            raise DataError(
                f"the column {name!r} stands in {where}; one table may give it. Rename or drop one of them."
            )
    for table, key in keys.items():
        for place in (INTERACTIONS, table):
            if not any(key in header.names for header in headers[place]):
                raise _missing(key, headers[place], f"{table} is joined by it")
    laid_out = {name: _table(name, headers[name], givers, types, keys, data, schema) for name in tables}
    for laid in laid_out.values():
        for header in headers[laid.name]:
            for column in laid.columns:
                if header.names.count(column.name) > 1:
                    raise DataError(
                        f"{header.file}:1: the column {column.name!r} stands twice in the header; rename one."
                    )
                if column.name not in header.names:
                    raise _missing(column.name, [header], "the other files of the table have it")
    return Sources(laid_out.pop(INTERACTIONS), laid_out, tuple(types))


def _givers(
    headers: Mapping[str, Sequence[Header]], types: Mapping[str, ColumnType], keys: Mapping[str, str]
) -> dict[str, list[str]]:
    """For each feature of the schema, the tables that have it as a column; the interactions give the keys."""
    givers: dict[str, list[str]] = {}
    for table, files in headers.items():
        for column in {name: None for header in files for name in header.names}:
            if column in types and column != keys.get(table):
                givers.setdefault(column, []).append(table)
    return givers


def _required(data: Data) -> list[str]:
    """The columns every interaction must have a value in."""
    parts = data.columns
    return [name for name in (parts.user_id, parts.item_id, parts.label, parts.timestamp) if name is not None]


def _missing(column: str, headers: Sequence[Header], why: str) -> DataError:
    known = {name: None for header in headers for name in header.names}
    files = list(dict.fromkeys(header.file for header in headers))
    close = did_you_mean(column, known) or "."
    place = f"{files[0]}:1" if len(files) == 1 else ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
    return DataError(f"{place}: there is no column {column!r}; {why}{close} Columns there: {', '.join(known)}.")


def _table(
    name: str,
    headers: Sequence[Header],
    givers: Mapping[str, Sequence[str]],
    types: Mapping[str, ColumnType],
    keys: Mapping[str, str],
    data: Data,
    schema: schema_pb2.Schema,
) -> Table:
    features = tuple(column for column in types if givers[column] == [name])
    required = [keys[name]] if name in keys else _required(data)
    ranges = _ranges(data, schema) if name == INTERACTIONS else {}
    wanted = dict.fromkeys((*required, *features, *(keys.values() if name == INTERACTIONS else ())))
    columns = tuple(
        Column(column, types.get(column, "BYTES"), column in required, *ranges.get(column, (None, None)))
        for column in wanted
    )
    return Table(name, tuple(header.file for header in headers), columns, features, keys.get(name))


def _ranges(data: Data, schema: schema_pb2.Schema) -> dict[str, tuple[float | None, float | None]]:
    """The schema's bounds on the label and the timestamp. Other domains are the ExampleValidator's business."""
    found: dict[str, tuple[float | None, float | None]] = {}
    for feature in schema.feature:
        kind = feature.WhichOneof("domain_info")
        if feature.name in (data.columns.label, data.columns.timestamp) and kind in ("int_domain", "float_domain"):
            domain = getattr(feature, kind)
            found[feature.name] = (
                domain.min if domain.HasField("min") else None,
                domain.max if domain.HasField("max") else None,
            )
    return found
