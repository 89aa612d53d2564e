"""Joins lookup tables (items, users and their own lookups) onto batches of rows. The executor calls it.

items = assemble(sources.lookups["items"], parts)
joined = join_all(rows, [items])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.example_gen.data_errors import DataError, placed, shown
from components.example_gen.table_layout import Table


@dataclasses.dataclass(frozen=True)
class LookupTablePart:
    """The valid rows of one file of a lookup table.

    Attributes:
        file: The file.
        rows: Key and other columns.
        places: Location of each row: a line as int64, or a key as string.
    """

    file: str
    rows: pa.Table
    places: pa.ChunkedArray


@dataclasses.dataclass(frozen=True)
class LookupTable:
    """A lookup table in memory, with one row per key.

    Attributes:
        table: Its layout.
        rows: Key and other columns, each in one chunk.
        gives: The columns that a join adds.
        merged: Number of rows dropped because another row has the same key.
    """

    table: Table
    rows: pa.Table
    gives: tuple[str, ...]
    merged: int = 0

    @property
    def keys(self) -> pa.Array:
        return self.rows.column(self.table.key).chunk(0)

    def join(self, keys: pa.Array) -> dict[str, pa.Array]:
        """Return the table's columns for each of `keys`; null if no row has the key."""
        found = pc.index_in(keys, value_set=self.keys)
        return {name: self.rows.column(name).chunk(0).take(found) for name in self.gives}

    def joined_with(self, lookups: Sequence[LookupTable]) -> LookupTable:
        """Return this table joined with others in order, each by a column of this table or an earlier one."""
        columns = {name: self.rows.column(name).chunk(0) for name in self.rows.column_names}
        for lookup in lookups:
            columns.update(lookup.join(columns[str(lookup.table.key)]))
        gives = tuple(name for name in columns if name != self.table.key)
        return LookupTable(self.table, pa.table(columns), gives, self.merged)


def join_all(rows: pa.RecordBatch, lookups: Sequence[LookupTable]) -> pa.RecordBatch:
    """Join `lookups` onto `rows`, in order."""
    for lookup in lookups:
        columns = {name: rows.column(name) for name in rows.schema.names}
        columns.update(lookup.join(columns[str(lookup.table.key)]))
        rows = pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
    return rows


def assemble(table: Table, parts: Sequence[LookupTablePart]) -> LookupTable:
    """Combine the parts of a lookup table, in file order.

    Raises:
        DataError: Two rows have the same key, and `duplicates` is `error`.
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
    return LookupTable(table, rows, table.gives, merged)


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """Return the column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([*column.chunks, pa.array([], column.type)])


def _refuse_duplicate(table: Table, keys: pa.Array, parts: Sequence[LookupTablePart]) -> None:
    """Raise an error on the first key that two rows have."""
    files = np.repeat([part.file for part in parts], [part.rows.num_rows for part in parts])
    places = [place for part in parts for place in part.places.to_pylist()]
    seen: dict[object, int] = {}
    for row, key in enumerate(keys.to_pylist()):
        if key in seen:
            first = seen[key]
            raise DataError(
                f"{placed(files[row], places[row])}: {table.key}: expected each key of {table.name} once, got "
                f"{shown(str(key))} again; the first is at {placed(files[first], places[first])}. Remove one of the "
                f"rows, or set data.sources.{table.name}.duplicates: first or last."
            )
        seen[key] = row
