"""Assigns interactions to `train` and `eval`: one splitter for each kind of `data.split`. The executor calls it.

To add a kind, write its section in `recipe.splits` and its splitter here, and register the splitter in `SPLITTERS`.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.example_gen.duplicates import codes
from components.example_gen.hashing import hash_bytes, hash_values, mix
from components.example_gen.join import one_chunk
from components.example_gen.rows import Mask
from recipe.columns import Columns
from recipe.data import Data
from recipe.splits import ByUserSplit, LeaveLastNSplit, RandomSplit, TimeSplit

SUMMARY_SIZE = 1 << 16
"""Number of distinct timestamps that `Timestamps` counts exactly; with more, neighbours share a bucket."""


def random_split(columns: Sequence[pa.Array], eval_fraction: float, seed: int) -> Mask:
    """Return True for each row of the eval split, by a hash of the values in `columns`.

    A row's split depends on its own values and `seed` alone: not on the other rows, their order, the process or the
    version of Python or any library. Equal rows are in the same split.

    Args:
        columns: Arrays of equal length, string, int64 or float32, without nulls.
        eval_fraction: Fraction of the rows, 0 to 1.
        seed: Random seed.
    """
    hashes = np.full(len(columns[0]), hash_bytes(str(seed).encode()), dtype=np.uint64)
    for column in columns:
        hashes = mix(hashes ^ hash_values(column))
    return hashes < np.uint64(int(eval_fraction * 2**64))


@dataclasses.dataclass(frozen=True)
class Timestamps:
    """A histogram of timestamps in bounded memory.

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
        """Add up histograms. Exact with at most `SUMMARY_SIZE` distinct timestamps."""
        total = Timestamps.of(np.array([], dtype=np.int64))
        for summary in summaries:
            starts, where = np.unique(np.concatenate([total.starts, summary.starts]), return_inverse=True)
            counts = np.zeros(len(starts), dtype=np.int64)
            np.add.at(counts, where, np.concatenate([total.counts, summary.counts]))
            total = Timestamps(starts, counts)._compressed()
        return total

    def _compressed(self) -> Timestamps:
        """Return the histogram with at most `SUMMARY_SIZE` buckets of about equal count."""
        if len(self.starts) <= SUMMARY_SIZE:
            return self
        before = np.cumsum(self.counts) - self.counts
        # Half of the maximum, so that merging does not compress on every call.
        bucket = before * (SUMMARY_SIZE // 2) // int(self.counts.sum())
        first = np.flatnonzero(np.diff(bucket, prepend=-1))
        return Timestamps(self.starts[first], np.add.reduceat(self.counts, first))

    def cut(self, eval_fraction: float) -> int:
        """Return the first timestamp of the eval split, so that its fraction of rows is closest to `eval_fraction`.

        Rows with the same timestamp are always in the same split. With more than `SUMMARY_SIZE` distinct timestamps the
        fraction is met within about 0.001; no train row is ever later than an eval row. With fewer than two distinct
        timestamps every row is in the eval split.
        """
        if len(self.starts) < 2:
            return int(np.iinfo(np.int64).min)
        evals = np.cumsum(self.counts[::-1])[::-1]
        best = 1 + int(np.argmin(np.abs(evals[1:] - eval_fraction * evals[0])))
        return int(self.starts[best])


def leave_last_n(
    users: npt.NDArray[np.int64], timestamps: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], n: int
) -> Mask:
    """Return True for each row of the eval split: the latest `n` of each user with more than `n`.

    Args:
        users: A number for each row's user, with all rows of each user.
        timestamps: Time of each row; among rows of the same second the last one is the latest.
        rows: A number for each row's content. Equal rows count as one, at the position of the last of them, and are in
            the same split.
        n: Number of distinct eval rows of a user.
    """
    # The last position of each distinct row.
    last = len(rows) - 1 - np.unique(rows[::-1], return_index=True)[1]
    order = last[np.lexsort((last, timestamps[last], users[last]))]
    owners = users[order]
    starts = np.flatnonzero(np.diff(owners, prepend=owners[:1] - 1))
    sizes = np.diff(np.append(starts, len(owners)))
    from_end = np.repeat(starts + sizes, sizes) - 1 - np.arange(len(owners))
    late = (from_end < n) & np.repeat(sizes > n, sizes)
    return np.asarray(np.isin(rows, rows[order[late]]), dtype=bool)


# --- splitters --------------------------------------------------------------------------------------------------------

Section = TypeVar("Section")


class Splitter(abc.ABC, Generic[Section]):
    """One kind of split.

    A splitter that does not need all rows assigns each block of rows as it is read. One that needs all rows gets the
    rows by partition, all rows of a user in the same one: first every partition is summarized, then `fit` combines the
    summaries, then `assign` is called for every partition.

        splitter = splitter_of(data)
        is_eval = splitter.assign(rows)
    """

    needs_all_rows: ClassVar[bool]
    """Whether the split of a row depends on other rows."""

    def __init__(self, section: Section, columns: Columns) -> None:
        """Create the splitter.

        Args:
            section: The recipe's `data.split`.
            columns: The recipe's `data.columns`.
        """
        self.section = section
        self.columns = columns

    def summarize(self, rows: pa.RecordBatch | pa.Table) -> Any:
        """Return the summary of one partition for `fit`; the summaries of all partitions are in memory together."""
        return None

    def fit(self, summaries: Iterable[Any]) -> Self:
        """Return a splitter that is ready for `assign`, given the summaries of all partitions."""
        return self

    @abc.abstractmethod
    def assign(self, rows: pa.RecordBatch | pa.Table) -> Mask:
        """Return True for each row of the eval split.

        Args:
            rows: Interactions with all columns of `data.columns`; if `needs_all_rows`, all rows of their users.
        """

    def empty_message(self, split: str, rows: str) -> str:
        """Return the error message for a split without rows.

        Args:
            split: `train` or `eval`.
            rows: Description of the rows to split, with their number.
        """
        return (f"none of the {rows} is in {split}; expected at least one. "
                "Add rows, or choose another eval_fraction or seed.")  # fmt: skip

    def _column(self, rows: pa.RecordBatch | pa.Table, name: str | None) -> pa.Array:
        column = rows.column(str(name))
        return one_chunk(column) if isinstance(column, pa.ChunkedArray) else column


class RandomSplitter(Splitter[RandomSplit]):
    """Assigns a row by a hash of its content."""

    needs_all_rows = False

    def assign(self, rows: pa.RecordBatch | pa.Table) -> Mask:
        parts = self.columns
        names = [name for name in (parts.user_id, parts.item_id, parts.timestamp, parts.label) if name is not None]
        columns = [self._column(rows, name) for name in names]
        return random_split(columns, self.section.eval_fraction, self.section.seed)


class ByUserSplitter(Splitter[ByUserSplit]):
    """Assigns a user with all rows by a hash of the user's id."""

    needs_all_rows = False

    def assign(self, rows: pa.RecordBatch | pa.Table) -> Mask:
        users = self._column(rows, self.columns.user_id)
        return random_split([users], self.section.eval_fraction, self.section.seed)


class TimeSplitter(Splitter[TimeSplit]):
    """Assigns the latest rows to `eval`: those at the cut or later, which `fit` finds."""

    needs_all_rows = True
    cut: int | None = None
    """The first timestamp of the eval split."""

    def summarize(self, rows: pa.RecordBatch | pa.Table) -> Timestamps:
        return Timestamps.of(self._column(rows, self.columns.timestamp).to_numpy())

    def fit(self, summaries: Iterable[Timestamps]) -> Self:
        fitted = copy.copy(self)
        fitted.cut = Timestamps.merge(summaries).cut(self.section.eval_fraction)
        return fitted

    def assign(self, rows: pa.RecordBatch | pa.Table) -> Mask:
        assert self.cut is not None, "assign was called before fit"
        late = pc.greater_equal(self._column(rows, self.columns.timestamp), self.cut)
        return np.asarray(late.to_numpy(zero_copy_only=False), dtype=bool)

    def empty_message(self, split: str, rows: str) -> str:
        return (f"all {rows} have the same timestamp, so a split by time leaves {split} empty. "
                "Set data.split.kind: random, or add rows.")  # fmt: skip


class LeaveLastNSplitter(Splitter[LeaveLastNSplit]):
    """Assigns the latest `n` rows of each user to `eval`."""

    needs_all_rows = True

    def assign(self, rows: pa.RecordBatch | pa.Table) -> Mask:
        parts = self.columns
        names = (parts.user_id, parts.item_id, parts.timestamp, parts.label)
        users, items, times, labels = (self._column(rows, name) for name in names)
        return leave_last_n(codes([users]), times.to_numpy(), codes([users, items, times, labels]), self.section.n)

    def empty_message(self, split: str, rows: str) -> str:
        return (f"none of the {rows} is in {split}: no user has more than n = {self.section.n} distinct rows. "
                "Choose a smaller n or another split.")  # fmt: skip


SPLITTERS: Mapping[str, type[Splitter[Any]]] = {
    "random": RandomSplitter,
    "by_user": ByUserSplitter,
    "time": TimeSplitter,
    "leave_last_n": LeaveLastNSplitter,
}
"""The splitter of each `data.split.kind`."""


def splitter_of(data: Data) -> Splitter[Any]:
    """Return the splitter of `data.split`."""
    return SPLITTERS[data.split.kind](data.split, data.columns)
