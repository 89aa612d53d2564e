"""Decides which interactions are `eval`: by a seeded hash of the row or the user, by time, or each user's last."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Hashes = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

SUMMARY_SIZE = 1 << 16
"""Distinct timestamps that a `Timestamps` counts exactly; above that, neighbours are counted together."""


def random_split(columns: Sequence[pa.Array], eval_fraction: float, seed: int) -> Mask:
    """Which rows are `eval`, by a hash of the values in `columns`.

    A row's split depends on its own values and `seed` alone: not on the other rows, their order, the process or the
    version of Python or any library. Equal rows are in the same split.

    Args:
        columns: Arrays of equal length, string, int64 or float32, without nulls.
        eval_fraction: Between 0 and 1.
        seed: Another seed gives an independent split.
    """
    hashes = np.full(len(columns[0]), _hash_bytes(str(seed).encode()), dtype=np.uint64)
    for column in columns:
        hashes = mix(hashes ^ hash_values(column))
    return hashes < np.uint64(int(eval_fraction * 2**64))


def hash_values(column: pa.Array) -> Hashes:
    if pa.types.is_string(column.type):
        # Ids repeat, so hash each one once.
        coded = column.dictionary_encode()
        distinct = np.array([_hash_bytes(value.encode()) for value in coded.dictionary.to_pylist()], dtype=np.uint64)
        return np.asarray(distinct[coded.indices.to_numpy()], dtype=np.uint64)
    # + 0.0 makes -0.0 and 0.0 the same row.
    values = column.to_numpy() if pa.types.is_integer(column.type) else column.to_numpy().astype(np.float64) + 0.0
    return mix(values.view(np.uint64))


def _hash_bytes(value: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little")


def mix(values: Hashes) -> Hashes:
    """SplitMix64's output function after one step (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclasses.dataclass(frozen=True)
class Timestamps:
    """How many interactions happened when, in bounded memory.

    Attributes:
        starts: int64, ascending. Bucket i counts the timestamps from `starts[i]` up to `starts[i + 1]`.
        counts: int64, rows per bucket.
    """

    starts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @staticmethod
    def of(timestamps: npt.NDArray[np.int64]) -> Timestamps:
        starts, counts = np.unique(timestamps, return_counts=True)
        return Timestamps(starts, counts)._compressed()

    @staticmethod
    def merge(summaries: Iterable[Timestamps]) -> Timestamps:
        """Adds summaries up. Exact while there are at most `SUMMARY_SIZE` distinct timestamps."""
        total = Timestamps.of(np.array([], dtype=np.int64))
        for summary in summaries:
            starts, where = np.unique(np.concatenate([total.starts, summary.starts]), return_inverse=True)
            counts = np.zeros(len(starts), dtype=np.int64)
            np.add.at(counts, where, np.concatenate([total.counts, summary.counts]))
            total = Timestamps(starts, counts)._compressed()
        return total

    def _compressed(self) -> Timestamps:
        """At most `SUMMARY_SIZE` buckets, of about equal count."""
        if len(self.starts) <= SUMMARY_SIZE:
            return self
        before = np.cumsum(self.counts) - self.counts
        # Half as many as allowed, so that merging does not compress on every call.
        bucket = before * (SUMMARY_SIZE // 2) // int(self.counts.sum())
        first = np.flatnonzero(np.diff(bucket, prepend=-1))
        return Timestamps(self.starts[first], np.add.reduceat(self.counts, first))

    def cut(self, eval_fraction: float) -> int:
        """The timestamp from which on rows are `eval`: the one that puts closest to `eval_fraction` of them there.

        Rows with the same timestamp always land together. With more than `SUMMARY_SIZE` distinct timestamps the
        fraction is met within about a thousandth; the order of train before eval always holds exactly. With fewer than
        two distinct timestamps there is nothing to cut, and every row is `eval`.
        """
        if len(self.starts) < 2:
            return int(np.iinfo(np.int64).min)
        evals = np.cumsum(self.counts[::-1])[::-1]
        best = 1 + int(np.argmin(np.abs(evals[1:] - eval_fraction * evals[0])))
        return int(self.starts[best])


def time_split(timestamps: pa.Int64Array, cut: int) -> Mask:
    """Which rows are `eval`: those at `cut` or later."""
    return np.asarray(pc.greater_equal(timestamps, cut).to_numpy(zero_copy_only=False), dtype=bool)


def leave_last_n(
    users: npt.NDArray[np.int64], timestamps: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], n: int
) -> Mask:
    """Which rows are `eval`: the latest `n` of each user with more than that.

    Args:
        users: A number for each row's user; all rows of a user are here.
        timestamps: When the row happened; of rows of the same second the later one here is the later one.
        rows: A number for each row's content. Equal rows count as one, are in the same split, and stand where the
            last of them stands.
        n: Distinct rows of a user that are `eval`.
    """
    # The last place of each distinct row.
    last = len(rows) - 1 - np.unique(rows[::-1], return_index=True)[1]
    order = last[np.lexsort((last, timestamps[last], users[last]))]
    owners = users[order]
    starts = np.flatnonzero(np.diff(owners, prepend=owners[:1] - 1))
    sizes = np.diff(np.append(starts, len(owners)))
    from_end = np.repeat(starts + sizes, sizes) - 1 - np.arange(len(owners))
    late = (from_end < n) & np.repeat(sizes > n, sizes)
    return np.asarray(np.isin(rows, rows[order[late]]), dtype=bool)
