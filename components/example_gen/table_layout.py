"""The layout of a run's tables: the files of each, their sizes, and the columns to read from each.

`read_headers` makes it from the headers of the files: `resolve.resolve_sources` calls it before a run, the executor
while it runs. Both pass the result on, so that no other code lists files or reads headers.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Literal

from tensorflow_metadata.proto.v0 import schema_pb2

from components.example_gen.csv_reader import Header, read_header
from components.example_gen.data_errors import DataError
from components.example_gen.json_reader import read_json_header
from recipe.columns import IS_POSITIVE, ColumnType, column_types
from recipe.data import Data
from recipe.errors import did_you_mean
from recipe.sources import Lookup, Source

INTERACTIONS = "interactions"
ITEMS = "items"


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table, with the type and the bounds of its cells.

    Attributes:
        name: Its name in the schema and in the recipe.
        type: BYTES is a string, INT an int64, FLOAT a float32.
        required: Whether an empty cell is an error; if not, it is a missing value.
        minimum: Lower bound of a number, if any.
        maximum: Upper bound of a number, if any.
        cell: Its name in the file, if it is renamed.
        time_format: `data.timestamp_format` of a time; the values are seconds since 1970.
    """

    name: str
    type: ColumnType
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    cell: str = ""
    time_format: str | None = None

    @property
    def name_in_file(self) -> str:
        return self.cell or self.name


@dataclasses.dataclass(frozen=True)
class Table:
    """One table: its files and the columns to read from them.

    Attributes:
        name: Name as in `data.sources.tables()`: `interactions`, `items`, `items.lookups.0`, …
        files: Its files, sorted.
        columns: The columns to read.
        features: Those of them that become features of the examples, in the schema's order.
        key: The column by which a lookup is joined.
        duplicates: Which row of a lookup is used if several have the same key.
        format: Format of the files.
        records: Path of the records in a JSON file.
        sizes: Bytes of each file as stored, compressed or not.
    """

    name: str
    files: tuple[str, ...]
    columns: tuple[Column, ...]
    features: tuple[str, ...]
    key: str | None = None
    duplicates: Literal["error", "first", "last"] = "error"
    format: Literal["csv", "json"] = "csv"
    records: str | None = None
    sizes: tuple[int, ...] = ()

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def bytes(self) -> int:
        """The total size of the files."""
        return sum(self.sizes)

    @property
    def root(self) -> str:
        """The table that this one is joined onto, or itself: `interactions`, `items` or `users`."""
        return self.name.partition(".")[0]

    @property
    def gives(self) -> tuple[str, ...]:
        """The columns that a join with this table adds."""
        return tuple(column.name for column in self.columns if column.name != self.key)


@dataclasses.dataclass(frozen=True)
class ResolvedSources:
    """All tables of a run.

    Attributes:
        interactions: The table of interactions.
        lookups: The other tables by name, in the order in which they are joined.
        features: Every feature of a train or eval example, in the schema's order.
        types: The type of each feature.
        carried: Columns of the interactions, joined with their lookups, that examples are made from.
        required: Those of them in which every interaction must have a value.
    """

    interactions: Table
    lookups: Mapping[str, Table]
    features: tuple[str, ...]
    types: Mapping[str, ColumnType]
    carried: tuple[Column, ...]
    required: tuple[Column, ...]

    @property
    def item_features(self) -> tuple[str, ...]:
        """The columns that the items table and its lookups add to an item's id."""
        given = {name for table in self.lookups.values() if table.root == ITEMS for name in table.features}
        return tuple(name for name in self.features if name in given)

    def lookups_of(self, root: str) -> list[str]:
        """Return the names of the tables that are joined onto `root`."""
        return [name for name, table in self.lookups.items() if table.root == root and name != root]


def read_headers(
    files: Mapping[str, Sequence[str]],
    data: Data,
    schema: schema_pb2.Schema,
    open_file: Callable[[str], IO[bytes]],
) -> ResolvedSources:
    """Read the headers of all files and find the table of every feature of the schema.

    Args:
        files: The files of each table in `data.sources`, at least one each.
        data: The recipe's data section.
        schema: The schema; every feature in it must be a column of some table, or made by the recipe.
        open_file: Opens a file for reading bytes.

    Raises:
        DataError: A file is empty or unreadable, a column is missing or is in two tables.
    """
    tables = data.sources.tables()
    headers: dict[str, list[Header]] = {name: [] for name in tables}
    sizes: dict[str, int] = {}
    for name, source in tables.items():
        for file in sorted(files[name]):
            with open_file(file) as stream:
                stream.seek(0, os.SEEK_END)
                sizes[file] = stream.tell()
                stream.seek(0)
                if source.file_format == "json":
                    header = read_json_header(stream, file, source.records)
                else:
                    header = read_header(stream, file, data.max_bad_rows > 0)
            headers[name].append(_renamed(header, name, source))
    return _lay_out(headers, sizes, tables, data, schema)


def no_file(table: str, pattern: str, folder: str = "", there: Sequence[str] = ()) -> DataError:
    """Return the error for a pattern that matches no file."""
    place = f" in {folder}" if folder else ""
    listing = f" Files: {', '.join(there[:10])}{', …' if len(there) > 10 else ''}." if there else ""
    close = did_you_mean(pattern, there) or "."
    return DataError(f"data.sources.{table}.files: no file matches {pattern!r}{place}{close}{listing} "
                     "Add the file, or correct the pattern in the recipe.")  # fmt: skip


def _lay_out(
    headers: Mapping[str, Sequence[Header]],
    sizes: Mapping[str, int],
    tables: Mapping[str, Source],
    data: Data,
    schema: schema_pb2.Schema,
) -> ResolvedSources:
    types = column_types(schema)
    made = _made(data)
    keys = {name: source.key for name, source in tables.items() if isinstance(source, Lookup)}
    owners = _owners(headers, keys)
    for name, maker in made.items():
        if name in owners:
            raise DataError(f"{maker} makes the column {name!r}, which {headers[owners[name][0]][0].file} already has. "
                            "Choose another name in the recipe.")  # fmt: skip
    joined = [name for name in tables if _root(name) == INTERACTIONS]
    for name in _required(data):
        if not set(joined) & set(owners.get(name, ())):
            raise _missing(name, _headers(headers, joined), "every interaction needs it")
    for name in types:
        if name not in owners and name not in made:
            raise _missing(name, _headers(headers, headers), "the schema has this feature")
        if len(owners.get(name, ())) > 1:
            where = " and ".join(headers[table][0].file for table in owners[name])
            raise DataError(f"expected the column {name!r} in one table, got it in {where}. "
                            "Drop one of them, or rename it with `rename` in the recipe.")  # fmt: skip
    _check_keys(headers, keys)
    to_read = _columns_to_read(headers, owners, types, keys, data)
    sums = data.aggregate.sum if data.aggregate is not None else {}
    types_of = {**{column: types.get(total, "FLOAT") for column, total in sums.items()}, **types}
    for column in sums:
        if types_of[column] == "BYTES":
            raise DataError(f"data.aggregate.sum: expected an INT or FLOAT column, got {column!r}, which is BYTES. "
                            "Change its type in the schema, or drop the sum.")  # fmt: skip
    layout = {}
    for name, source in tables.items():
        columns = _columns(name, source, list(to_read[name]), types_of, data, schema)
        _check_files(columns, source, headers[name])
        files = tuple(header.file for header in headers[name])
        layout[name] = Table(
            name,
            files,
            columns,
            tuple(column for column in types if column in to_read[name] and column != keys.get(name)),
            keys.get(name),
            source.duplicates if isinstance(source, Lookup) else "error",
            source.file_format,
            source.records,
            tuple(sizes[file] for file in files),
        )
    by_joining = [column for name in joined for column in layout[name].columns if column.name != keys.get(name)]
    needed = {*types, *_required(data), *sums, *(keys[name] for name in keys if "." not in name)}
    return ResolvedSources(
        interactions=layout.pop(INTERACTIONS),
        lookups=layout,
        features=tuple(types),
        types=types,
        carried=tuple(column for column in by_joining if column.name in needed),
        required=tuple(column for column in by_joining if column.name in _required(data)),
    )


def _columns_to_read(
    headers: Mapping[str, Sequence[Header]],
    owners: Mapping[str, Sequence[str]],
    types: Mapping[str, ColumnType],
    keys: Mapping[str, str],
    data: Data,
) -> dict[str, dict[str, None]]:
    """Return the columns to read from each table, in order: features, and those that the recipe and joins need."""
    joined = [name for name in headers if _root(name) == INTERACTIONS]
    to_read: dict[str, dict[str, None]] = {
        name: {column: None for column in types if owners.get(column) == [name]} for name in headers
    }
    carried = [*_required(data), *(data.aggregate.sum if data.aggregate is not None else ())]
    for name in (*carried, *(data.negatives.context if data.negatives is not None else ())):
        owner = next((table for table in joined if table in owners.get(name, ())), None)
        if owner is not None:
            to_read[owner].setdefault(name)
        elif not (name in types and name in owners):
            raise _missing(name, _headers(headers, joined), "data.aggregate or data.negatives names it")
    for table, key in keys.items():
        before = _joined_before(table, headers)
        owner = next(other for other in before if any(key in header.names for header in headers[other]))
        to_read[owner].setdefault(key)
        to_read[table] = {key: None, **to_read[table]}
    return to_read


def _root(table: str) -> str:
    return table.partition(".")[0]


def _headers(headers: Mapping[str, Sequence[Header]], tables: Iterable[str]) -> list[Header]:
    return [header for table in tables for header in headers[table]]


def _joined_before(table: str, tables: Iterable[str]) -> list[str]:
    """Return the tables that may have the key of a lookup: the one it is joined onto, and those joined before."""
    root = _root(table) if "." in table else INTERACTIONS
    before = [name for name in tables if _root(name) == root]
    return before[: before.index(table)] if table in before else before


def _check_keys(headers: Mapping[str, Sequence[Header]], keys: Mapping[str, str]) -> None:
    for table, key in keys.items():
        before = _headers(headers, _joined_before(table, headers))
        for place in (before, headers[table]):
            if not any(key in header.names for header in place):
                raise _missing(key, place, f"it is the key of {table}")


def _check_files(columns: Sequence[Column], source: Source, headers: Sequence[Header]) -> None:
    """Check that every file has every column of its table once."""
    for header in headers:
        for column in columns:
            if header.names.count(column.name) > 1:
                raise DataError(f"{header.place}: the column {column.name!r} is in the header twice; rename one.")
            if column.name not in header.names and source.file_format == "csv":
                raise _missing(column.name, [header], "the other files of the table have it")


def _renamed(header: Header, table: str, source: Source) -> Header:
    """Return the header with the columns renamed as in the recipe."""
    for old in source.rename:
        if old not in header.names:
            raise _missing(old, [header], f"data.sources.{table}.rename names it")
    for old, new in source.rename.items():
        if new in header.names and new not in source.rename:
            raise DataError(
                f"{header.place}: the column {old!r} is renamed to {new!r}, but the file already has a column of that "
                f"name. Rename that one too, for example {{{new}: other_{new}}}, or choose another name."
            )
    return dataclasses.replace(header, names=tuple(source.rename.get(name, name) for name in header.names))


def _owners(headers: Mapping[str, Sequence[Header]], keys: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the tables that have each column; a lookup's key belongs to the table that it is joined onto."""
    owners: dict[str, list[str]] = {}
    for table, files in headers.items():
        for column in {name: None for header in files for name in header.names}:
            if column != keys.get(table):
                owners.setdefault(column, []).append(table)
    return owners


def _made(data: Data) -> dict[str, str]:
    """Return the columns that the recipe makes, each with the key that makes it."""
    made = dict.fromkeys(data.aggregate.columns, "data.aggregate") if data.aggregate is not None else {}
    if data.label is not None:
        made[data.columns.label] = "data.label"
    if data.negatives is not None:
        made[IS_POSITIVE] = "data.negatives"
    return made


def _required(data: Data) -> list[str]:
    """Return the columns of the files in which every interaction must have a value."""
    parts, made = data.columns, _made(data)
    names = [name for name in (parts.user_id, parts.item_id, parts.label, parts.timestamp) if name is not None]
    sums = data.aggregate.sum if data.aggregate is not None else {}
    names += [column for column, total in sums.items() if total == parts.label]
    return [name for name in names if name not in made]


def _missing(column: str, headers: Sequence[Header], why: str) -> DataError:
    known = {name: None for header in headers for name in header.names}
    places = list(dict.fromkeys(header.place for header in headers))
    files = list(dict.fromkeys(header.file for header in headers))
    close = did_you_mean(column, known) or "."
    place = places[0] if len(places) == 1 else ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
    return DataError(f"{place}: no column {column!r}; {why}{close} Columns: {', '.join(known)}.")


def _columns(
    table: str,
    source: Source,
    names: Sequence[str],
    types: Mapping[str, ColumnType],
    data: Data,
    schema: schema_pb2.Schema,
) -> tuple[Column, ...]:
    """Return the columns to read from a table, with their types and bounds."""
    key = source.key if isinstance(source, Lookup) else None
    required = [key] if key is not None else _required(data)
    bounds = _bounds(data, schema) if _root(table) == INTERACTIONS else {}
    cells = {new: old for old, new in source.rename.items()}
    return tuple(
        Column(
            column,
            types.get(column, "BYTES"),
            column in required,
            *bounds.get(column, (None, None)),
            cell=cells.get(column, ""),
            time_format=data.timestamp_format if column == data.columns.timestamp and column != key else None,
        )
        for column in names
    )


def _bounds(data: Data, schema: schema_pb2.Schema) -> dict[str, tuple[float | None, float | None]]:
    """Return the schema's bounds on the label and the timestamp; ExampleValidator checks the other domains."""
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
