"""Joins lookup tables (items, users, and whatever they are joined with) onto batches of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.example_gen.errors import DataError, placed, shown
from components.example_gen.sources import Table


@dataclasses.dataclass(frozen=True)
class LookupPart:
    """The good rows of one file of a lookup table.

    Attributes:
        file: The file.
        rows: Key and other columns.
        places: Where each row stands: a line as int64, or a key as string.
    """

    file: str
    rows: pa.Table
    places: pa.ChunkedArray


@dataclasses.dataclass(frozen=True)
class Lookup:
    """A whole lookup table in memory, one row a key.

    Attributes:
        table: What the table is.
        rows: Key and other columns, each in one chunk.
        gives: The columns that a join adds.
        merged: Rows left out because their key stands in another row, where the recipe allows that.
    """

    table: Table
    rows: pa.Table
    gives: tuple[str, ...]
    merged: int = 0

    @property
    def keys(self) -> pa.Array:
        return self.rows.column(self.table.key).chunk(0)

    def join(self, keys: pa.Array) -> dict[str, pa.Array]:
        """The table's columns for each of `keys`; null where no row of it has the key."""
        found = pc.index_in(keys, value_set=self.keys)
        return {name: self.rows.column(name).chunk(0).take(found) for name in self.gives}

    def joined_with(self, lookups: Sequence[Lookup]) -> Lookup:
        """This table with the columns of others, each joined by a column that is there by then."""
        columns = {name: self.rows.column(name).chunk(0) for name in self.rows.column_names}
        for lookup in lookups:
            columns.update(lookup.join(columns[str(lookup.table.key)]))
        gives = tuple(name for name in columns if name != self.table.key)
        return Lookup(self.table, pa.table(columns), gives, self.merged)


def join_all(rows: pa.RecordBatch, lookups: Sequence[Lookup]) -> pa.RecordBatch:
    """`rows` with the columns of `lookups`, joined in order."""
    for lookup in lookups:
        columns = {name: rows.column(name) for name in rows.schema.names}
        columns.update(lookup.join(columns[str(lookup.table.key)]))
        rows = pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
    return rows


def assemble(table: Table, parts: Sequence[LookupPart]) -> Lookup:
    """Puts the parts of a lookup table together, in file order.

    Raises:
        DataError: A key stands in two rows, and the recipe does not say which one counts.
    """
    ordered = sorted(parts, key=lambda part: part.file)
    rows = pa.concat_tables([part.rows for part in ordered]).combine_chunks()
    rows = pa.table({name: one_chunk(rows.column(name)) for name in rows.column_names})
    keys = rows.column(table.key).chunk(0)
    merged = len(keys) - pc.count_distinct(keys).as_py()
    if merged and table.duplicates == "error":
        _refuse_duplicate(table, keys, ordered)
    if merged:
        codes = keys.dictionary_encode().indices.to_numpy()
        if table.duplicates == "first":
            kept = np.unique(codes, return_index=True)[1]
        else:
            kept = len(codes) - 1 - np.unique(codes[::-1], return_index=True)[1]
        rows = rows.take(pa.array(np.sort(kept))).combine_chunks()
    return Lookup(table, rows, table.gives, merged)


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([*column.chunks, pa.array([], column.type)])


def _refuse_duplicate(table: Table, keys: pa.Array, parts: Sequence[LookupPart]) -> None:
    """Names the first key that stands in two rows."""
    files = np.repeat([part.file for part in parts], [part.rows.num_rows for part in parts])
    places = [place for part in parts for place in part.places.to_pylist()]
    seen: dict[object, int] = {}
    for row, key in enumerate(keys.to_pylist()):
        if key in seen:
            first = seen[key]
            raise DataError(
                f"{placed(files[row], places[row])}: {table.key}: found {shown(str(key))} again; it stands at "
                f"{placed(files[first], places[first])} already, and each key of {table.name} may stand once. "
                f"Remove one of the rows, or say which one counts: data.sources.{table.name}.duplicates: first or last."
            )
        seen[key] = row
