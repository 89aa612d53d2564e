"""Joins lookup tables (items, users) onto batches of interactions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.example_gen.errors import DataError, shown
from components.example_gen.reader import Indices
from components.example_gen.sources import Table


@dataclasses.dataclass(frozen=True)
class LookupPart:
    """The good rows of one file of a lookup table.

    Attributes:
        file: The file.
        rows: Key and feature columns.
        lines: The line each row stands on.
    """

    file: str
    rows: pa.Table
    lines: Indices


@dataclasses.dataclass(frozen=True)
class Lookup:
    """A whole lookup table in memory, one row a key.

    Attributes:
        table: What the table is.
        rows: Key and feature columns.
    """

    table: Table
    rows: pa.Table

    @property
    def keys(self) -> pa.Array:
        return self.rows.column(self.table.key).chunk(0)

    def join(self, interactions: pa.RecordBatch) -> dict[str, pa.Array]:
        """The table's features for each interaction; null where no row has its key."""
        found = pc.index_in(interactions.column(self.table.key), value_set=self.keys)
        return {name: self.rows.column(name).chunk(0).take(found) for name in self.table.features}


def assemble(table: Table, parts: Sequence[LookupPart]) -> Lookup:
    """Puts the parts of a lookup table together, in file order.

    Raises:
        DataError: A key stands in two rows.
    """
    ordered = sorted(parts, key=lambda part: part.file)
    rows = pa.concat_tables([part.rows for part in ordered]).combine_chunks()
    rows = pa.table({name: _one_chunk(rows.column(name)) for name in rows.column_names})
    lookup = Lookup(table, rows)
    if pc.count_distinct(lookup.keys).as_py() < len(lookup.keys):
        _refuse_duplicate(table, lookup.keys, ordered)
    return lookup


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([*column.chunks, pa.array([], column.type)])


def _refuse_duplicate(table: Table, keys: pa.Array, parts: Sequence[LookupPart]) -> None:
    """Names the first key that stands in two rows."""
    files = np.repeat([part.file for part in parts], [part.rows.num_rows for part in parts])
    lines = np.concatenate([part.lines for part in parts])
    seen: dict[object, int] = {}
    for row, key in enumerate(keys.to_pylist()):
        if key in seen:
            first = seen[key]
            raise DataError(
                f"{files[row]}:{lines[row]}: {table.key}: found {shown(str(key))} again; it stands at "
                f"{files[first]}:{lines[first]} already, and each key of {table.name} may stand once. "
                "Remove one of the rows."
            )
        seen[key] = row
