"""Merges several interactions of one user with one item into one (`data.duplicates`). The executor calls it.

merged = merge(rows, data, {"purchases": pa.int64()})  # data.aggregate.count: purchases
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.example_gen.data_errors import DataError
from components.example_gen.join import one_chunk
from recipe.data import Data

Codes = npt.NDArray[np.int64]

_INT64_MAX = 2.0**63


def codes(columns: Sequence[pa.Array]) -> Codes:
    """Return a number for each row, the same for rows that are equal in all `columns` (null equals null)."""
    found = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        own = column.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
        if len(own):
            found = np.unique(found * (own.max() + 1) + own, return_inverse=True)[1].astype(np.int64)
    return found


def merge(rows: pa.Table, data: Data, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Return one row for each user and item: the latest one, with the columns of `data.aggregate`.

    Args:
        rows: Interactions in file order, with all rows of each user and item.
        data: `duplicates` is `last` or `aggregate`.
        types: The types of the new columns.

    Returns:
        The latest rows in file order. A sum is null if all its values are.

    Raises:
        DataError: A sum of whole numbers does not fit into 64 bits.
    """
    rows = rows.combine_chunks()
    parts = data.columns
    pairs = codes([one_chunk(rows.column(name)) for name in (parts.user_id, parts.item_id)])
    times = rows.column(parts.timestamp).to_numpy() if parts.timestamp is not None else np.zeros(len(pairs), np.int64)
    # Stable, so that among rows of the same second the last one in the files is the latest.
    order = np.lexsort((times, pairs))
    starts = np.flatnonzero(np.diff(pairs[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    latest = order[ends - 1]
    in_file_order = np.argsort(latest)
    merged = rows.take(pa.array(latest[in_file_order]))
    if data.aggregate is None or not len(order):
        return _empty_aggregates(merged, data, types)
    if data.aggregate.count is not None:
        counts = pa.array((ends - starts)[in_file_order]).cast(types[data.aggregate.count])
        merged = merged.append_column(data.aggregate.count, counts)
    for column, total in data.aggregate.sum.items():
        values = one_chunk(rows.column(column)).take(pa.array(order))
        sums = _sums(values, starts, total).take(pa.array(in_file_order))
        merged = merged.append_column(total, sums.cast(types[total], safe=False))
    return merged


def _sums(values: pa.Array, starts: Codes, name: str) -> pa.Array:
    """Sum the values from each start to the next one; floats are summed in 64 bits."""
    known = np.asarray(values.is_valid().to_numpy(zero_copy_only=False))
    whole = pa.types.is_integer(values.type)
    numbers = pc.fill_null(values, pa.scalar(0, values.type)).to_numpy().astype(np.int64 if whole else np.float64)
    sums = np.add.reduceat(numbers, starts)
    # int64 overflows silently; float64 does not.
    if whole and (np.abs(np.add.reduceat(numbers.astype(np.float64), starts)) >= _INT64_MAX).any():
        raise DataError(f"data.aggregate.sum: {name} does not fit into 64 bits for some user and item. "
                        "Change its type in the schema to FLOAT.")  # fmt: skip
    return pa.array(sums, mask=~np.logical_or.reduceat(known, starts))


def _empty_aggregates(rows: pa.Table, data: Data, types: Mapping[str, pa.DataType]) -> pa.Table:
    for name in data.aggregate.columns if data.aggregate is not None else ():
        rows = rows.append_column(name, pa.array([], types[name]))
    return rows
