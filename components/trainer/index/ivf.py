"""`index: ivf` of the recipe: an inverted file, which compares a query with the items of the nearest cells only.

k-means divides the items' vectors into cells; a query looks into the cells whose centroids have the largest product
with it (Jégou et al. 2011, doi:10.1109/TPAMI.2010.57, without the quantiser: vectors stay float32, so that scores are
the model's own). How many cells that is, `build` measures on queries of the model: as few as find the wanted share of
the true best items. Plain TensorFlow ops only, as everything in the exported model.

A query is a loop iteration of its own: what it gathers then fits the processor's caches (a batch of 32 against a
million items is twice as fast so), memory does not grow with the batch, and nobody's answer depends on who else is in
the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from components.trainer.index.retrieval_index import Nearest, RetrievalIndex

# Items that are stored, and gathered, together: copies of 4 KiB at 64 dimensions. A cell's last block is padded.
_BLOCK = 16
WORTH_GATHERING = 0.25
"""The part of the catalogue from which on one product with all of it is faster than gathering that part."""

# k-means: as many vectors a cell, and passes over them.
_SAMPLE_PER_CELL = 40
_ITERATIONS = 8
# Cells with more than this many times the mean of items are divided further.
_TOO_LARGE = 6
# Rows whose products with all centroids or items are in memory at a time.
_ROWS = 4096

_CALIBRATION_QUERIES = 1000
# As many as are compared with the whole catalogue at a time.
_QUERIES = 32
# Standard errors by which the sample's recall is above the wanted one.
_MARGIN = 2.0

_NO_PLACE = -(2**30)
_LOW_BITS = 0xFFFFFFFF


class Calibration(NamedTuple):
    """How many cells a query looks into, and what that was measured to find."""

    probes: int
    recall: float
    """The mean, over the sample's queries, of the share of the true best k items that are in the probed cells."""
    share: float
    """The mean share of the catalogue's items that are in them."""


class _Candidates(NamedTuple):
    """What one query is compared with."""

    scores: tf.Tensor
    """float32 [M]"""
    items: tf.Tensor
    """int32 [M], each item once; 0 where there is none, or where it may not be an answer."""


class IvfIndex(RetrievalIndex):
    """Compares a query with the items of as many cells as were found to be enough."""

    def __init__(
        self, vectors: np.ndarray, cells: np.ndarray, *, k: int, calibration: Calibration, name: str = "index"
    ) -> None:
        """
        Args:
            vectors: float32 [N, D], those of item 1 to item N; N is at least 1.
            cells: int [N], 0 to C - 1: the cell of each item. None is empty.
            k: How many items the evaluated search asks for; `rank` looks as far as that search does.
            calibration: How many cells are probed; see `calibrate`.
            name: Of the module.
        """
        super().__init__(name=name)
        vectors = np.asarray(vectors, np.float32)
        self.item_count, self._width = vectors.shape
        sizes = np.bincount(cells)
        self.cell_count = len(sizes)
        self.calibration = calibration
        self._k = min(k, self.item_count)
        self._probes = min(calibration.probes, self.cell_count)

        blocks = -(-sizes // _BLOCK)
        limits = np.cumsum(blocks)
        order = np.argsort(cells, kind="stable")
        within = np.arange(self.item_count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        places = np.repeat((limits - blocks) * _BLOCK, sizes) + within
        slots = int(limits[-1]) * _BLOCK
        stored = np.zeros((slots, self._width), np.float32)
        stored[places] = vectors[order]
        items = np.zeros(slots, np.int32)
        items[places] = order + 1
        # Item 0 is in a cell that nobody probes.
        place_of, cell_of = np.zeros(self.item_count + 1, np.int32), np.full(self.item_count + 1, self.cell_count)
        place_of[order + 1] = places
        cell_of[1:] = cells

        def kept(values: np.ndarray, name: str, dtype: tf.DType = tf.int32) -> tf.Variable:
            return tf.Variable(values, trainable=False, dtype=dtype, name=name)

        self._vectors = kept(stored.reshape(-1, _BLOCK * self._width), "vectors", tf.float32)
        self._items = kept(items.reshape(-1, _BLOCK), "items")
        self._centroids = kept(centroids(vectors, cells).T, "centroids", tf.float32)
        self._sizes = kept(sizes, "sizes")
        self._starts = kept(limits - blocks, "starts")
        self._limits = kept(limits, "limits")
        self._place_of = kept(place_of, "place_of")
        self._cell_of = kept(cell_of, "cell_of")

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        queries: np.ndarray,
        *,
        k: int,
        recall: float,
        cells: int | None = None,
        excluded: Sequence[np.ndarray] | None = None,
        seed: int = 0,
        name: str = "index",
    ) -> IvfIndex:
        """Divides the catalogue into cells, and probes as many as the queries need.

        The same arguments give the same index.

        Args:
            vectors: float32 [N, D], those of item 1 to item N; N is at least 1.
            queries: float32 [Q, D]: vectors that the model makes of real users. Without any, all cells are probed.
            k: How many items the recall is of.
            recall: Above 0, at most 1: the wanted share of the true best k.
            cells: How many; None is 4 times the square root of N, by which comparing a query with the centroids costs
                about as much as comparing it with the items of the cells. Never more than N, and large ones are
                divided further.
            excluded: For each query the items that are no answers, 1 to N: those the user has seen.
            seed: Of the sample that k-means learns from.
            name: Of the module.
        """
        vectors = np.asarray(vectors, np.float32)
        wanted = min(cells or round(4 * len(vectors) ** 0.5), len(vectors))
        assigned = divide(vectors, wanted, np.random.default_rng(seed))
        if len(queries) > _CALIBRATION_QUERIES:
            chosen = np.random.default_rng(seed).choice(len(queries), _CALIBRATION_QUERIES, replace=False)
            queries = queries[chosen]
            excluded = None if excluded is None else [excluded[query] for query in chosen]
        calibration = calibrate(vectors, assigned, queries, k=k, recall=recall, excluded=excluded)
        return cls(vectors, assigned, k=k, calibration=calibration, name=name)

    def search(
        self,
        query: tf.Tensor,
        k: int | tf.Tensor,
        excluded: tf.RaggedTensor | None = None,
        only: tf.RaggedTensor | None = None,
    ) -> Nearest:
        count = min(k, self.item_count) if isinstance(k, int) else tf.minimum(k, self.item_count)
        excluded_row = _rows_of(excluded)
        only_row = None if only is None else _rows_of(only)

        def best(row: tf.Tensor, query: tf.Tensor, closeness: tf.Tensor) -> Nearest:
            others = excluded_row(row)

            def of_cells() -> _Candidates:
                return self._probed(query, closeness, count, others)[0]

            if only_row is None:
                candidates = of_cells()
            else:
                allowed = only_row(row)
                candidates = tf.cond(tf.size(allowed) > 0, lambda: self._allowed(query, allowed, others), of_cells)
            return _best(candidates, k)

        width = k if isinstance(k, int) else None
        spec = Nearest(tf.TensorSpec([width], tf.int64), tf.TensorSpec([width], tf.float32))
        return Nearest(*self._each(best, query, spec))

    def rank(self, query: tf.Tensor, item: tf.Tensor, excluded: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
        excluded_row = _rows_of(excluded)
        # As long as the batch of queries is where that is empty; see `_each`.
        item = tf.pad(tf.cast(item, tf.int32), [[0, 1]])

        def places(row: tf.Tensor, query: tf.Tensor, closeness: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            own, others = item[row], excluded_row(row)
            others = tf.boolean_mask(others, others != own)
            left, every = self._probed(query, closeness, self._k, others)
            there = tf.logical_and(tf.equal(every.items, own), own > 0)
            # Not-a-number compares false with everything and would win every comparison.
            counts = tf.logical_and(tf.reduce_any(there), tf.reduce_all(tf.math.is_finite(every.scores)))
            # Equal to nothing where the item is not there.
            score = tf.reduce_max(tf.where(there, every.scores, every.scores.dtype.min))
            first = tf.logical_and(tf.equal(every.scores, score), every.items < own)
            ahead = tf.logical_or(every.scores > score, first)

            def place(items: tf.Tensor) -> tf.Tensor:
                before = tf.math.count_nonzero(tf.logical_and(ahead, items > 0))
                return tf.where(counts, before, tf.constant(-1, tf.int64))

            return place(every.items), place(left.items)

        spec = (tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int64))
        every, others = self._each(places, query, spec)
        return every, others

    def vectors(self, items: tf.Tensor) -> tf.Tensor:
        found = tf.gather(self._rows(), tf.gather(self._place_of.read_value(), items))
        return tf.where(items[:, None] > 0, found, tf.zeros_like(found))

    def _rows(self) -> tf.Tensor:
        """float32 [slots, D]"""
        return tf.reshape(self._vectors.read_value(), [-1, self._width])

    def _each(self, answer: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Any], query: tf.Tensor, spec: Any) -> Any:
        """`answer` of each row's number, its query [D], and that one's products with the centroids [C], stacked."""
        rows = tf.shape(query)[0]
        # A list of no tensors has no shape to be stacked to: one row that is cut off again.
        query = tf.pad(query, [[0, tf.cast(tf.equal(rows, 0), tf.int32)], [0, 0]])
        closeness = tf.matmul(query, self._centroids.read_value())
        answers = tf.map_fn(
            lambda row: answer(*row), (tf.range(tf.shape(query)[0]), query, closeness), fn_output_signature=spec
        )
        return tf.nest.map_structure(lambda values: values[:rows], answers)

    def _probed(
        self, query: tf.Tensor, closeness: tf.Tensor, count: int | tf.Tensor, excluded: tf.Tensor
    ) -> tuple[_Candidates, _Candidates]:
        """The items of the nearest cells, without the excluded ones [E] and with them."""
        # So many that there are enough left even if all the excluded ones are in the same cells.
        enough = tf.minimum(count + tf.size(excluded), self.item_count)
        sizes = self._sizes.read_value()
        nearest = tf.math.top_k(closeness, self._probes).indices

        def more() -> tf.Tensor:
            order = tf.math.top_k(closeness, self.cell_count).indices
            so_far = tf.cumsum(tf.gather(sizes, order), exclusive=True)
            return tf.boolean_mask(order, so_far < enough)

        nearest = tf.cond(tf.reduce_sum(tf.gather(sizes, nearest)) >= enough, lambda: nearest, more)

        def of_cells() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            starts = tf.gather(self._starts.read_value(), nearest)
            limits = tf.gather(self._limits.read_value(), nearest)
            blocks = tf.ragged.range(starts, limits)
            stored = tf.reshape(tf.gather(self._vectors.read_value(), blocks.flat_values), [-1, self._width])
            items = tf.reshape(tf.gather(self._items.read_value(), blocks.flat_values), [-1])
            # From where a cell is stored to where it is among the gathered ones.
            shift = (tf.cast(blocks.row_starts(), tf.int32) - starts) * _BLOCK
            shifts = tf.tensor_scatter_nd_update(tf.fill([self.cell_count + 1], _NO_PLACE), nearest[:, None], shift)
            return tf.linalg.matvec(stored, query), items, tf.gather(shifts, tf.gather(cell_of, excluded))

        def of_all() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            items = tf.reshape(self._items.read_value(), [-1])
            shift = tf.where(tf.gather(cell_of, excluded) < self.cell_count, 0, _NO_PLACE)
            return tf.linalg.matvec(self._rows(), query), items, shift

        cell_of = self._cell_of.read_value()
        few = tf.cast(tf.reduce_sum(tf.gather(sizes, nearest)), tf.float32) < WORTH_GATHERING * self.item_count
        scores, items, shift = tf.cond(few, of_cells, of_all)
        places = tf.gather(self._place_of.read_value(), excluded) + shift
        places = tf.boolean_mask(places, places >= 0)
        left = tf.tensor_scatter_nd_update(items, places[:, None], tf.zeros_like(places))
        return _Candidates(scores, left), _Candidates(scores, items)

    def _allowed(self, query: tf.Tensor, allowed: tf.Tensor, excluded: tf.Tensor) -> _Candidates:
        """The items [A] themselves, whatever their cells, without the excluded ones [E]."""
        items, _ = tf.unique(allowed)
        stored = tf.gather(self._rows(), tf.gather(self._place_of.read_value(), items))
        # A last one that no item is, so that there is one at every place that the search can answer.
        barred = tf.concat([tf.sort(excluded), [tf.int32.max]], axis=0)
        barred_too = tf.equal(tf.gather(barred, tf.searchsorted(barred, items)), items)
        return _Candidates(tf.linalg.matvec(stored, query), tf.where(barred_too, 0, items))


def divide(vectors: np.ndarray, cells: int, random: np.random.Generator) -> np.ndarray:
    """k-means over the catalogue: the cell of each item, int32 [N], from 0 up and none empty.

    The centroids are learnt from a sample. Cells that come out far larger than the others are divided by k-means of
    their own, and if that does not help, because their vectors are equal, by the order of the items.

    Args:
        vectors: float32 [N, D].
        cells: How many, at most N; as many or a few more or fewer come out.
        random: What the sample and the first centroids are drawn with.
    """
    limit = max(_TOO_LARGE * len(vectors) // cells, _BLOCK)
    assigned = _divided(vectors, cells, random)
    sizes = np.bincount(assigned)
    for cell in np.flatnonzero(sizes > limit):
        members = np.flatnonzero(assigned == cell)
        parts = _divided(vectors[members], -(-len(members) * cells // len(vectors)), random)
        within = np.zeros(len(members), np.int64)
        order = np.argsort(parts, kind="stable")
        part_sizes = np.bincount(parts)
        within[order] = np.arange(len(members)) - np.repeat(np.cumsum(part_sizes) - part_sizes, part_sizes)
        # A number for each part, and for each piece of `limit` items of it.
        assigned[members] = assigned.max() + 1 + parts * len(members) + within // limit
    return np.unique(assigned, return_inverse=True)[1].astype(np.int32)


def _divided(vectors: np.ndarray, cells: int, random: np.random.Generator) -> np.ndarray:
    """Lloyd's k-means on a sample, and the nearest of its centroids for every vector, int64 [N]; some may have none."""
    sample = vectors
    if len(vectors) > _SAMPLE_PER_CELL * cells:
        sample = vectors[np.sort(random.choice(len(vectors), _SAMPLE_PER_CELL * cells, replace=False))]
    centres = sample[random.choice(len(sample), cells, replace=False)]
    for _ in range(_ITERATIONS):
        assigned = _nearest(sample, centres)
        used = np.unique(assigned)
        centres[used] = centroids(sample, np.searchsorted(used, assigned))
        # A centre without vectors starts anew at one of them.
        unused = np.setdiff1d(np.arange(cells), used)
        centres[unused] = sample[random.choice(len(sample), len(unused), replace=False)]
    return _nearest(vectors, centres)


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """int64 [N]: which of the centres [C, D] each vector [N, D] has the smallest distance to."""
    halves = np.einsum("cd,cd->c", centres, centres) / 2
    blocks = (vectors[start : start + _ROWS] for start in range(0, len(vectors), _ROWS))
    return np.concatenate([np.argmax(block @ centres.T - halves, axis=1) for block in blocks])


def centroids(vectors: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """The means float32 [C, D] of the vectors [N, D] of each cell, int [N]; none is empty."""
    sizes = np.bincount(cells)
    order = np.argsort(cells, kind="stable")
    summed = np.add.reduceat(vectors[order], np.cumsum(sizes) - sizes, axis=0, dtype=np.float64)
    return (summed / sizes[:, None]).astype(np.float32)


def calibrate(
    vectors: np.ndarray,
    cells: np.ndarray,
    queries: np.ndarray,
    *,
    k: int,
    recall: float,
    excluded: Sequence[np.ndarray] | None = None,
) -> Calibration:
    """The fewest cells that a query must look into, so that the sample's recall is the wanted one with a margin.

    The margin is two standard errors of the mean over the queries. See `IvfIndex.build` for the arguments.
    """
    centres, sizes = centroids(vectors, cells), np.bincount(cells)
    if not len(queries):
        return Calibration(len(sizes), 1.0, 1.0)
    found, scanned = np.ones((len(queries), len(sizes))), np.zeros(len(sizes))
    for start in range(0, len(queries), _QUERIES):
        some = queries[start : start + _QUERIES]
        scores = some @ vectors.T
        for row, items in enumerate(excluded[start : start + _QUERIES] if excluded is not None else ()):
            scores[row, items - 1] = -np.inf
        best, places = (part.numpy() for part in tf.math.top_k(scores, min(k, len(vectors))))
        order = np.argsort(-(some @ centres.T), axis=1, kind="stable")
        scanned += np.cumsum(sizes[order], axis=1).sum(axis=0)
        for row, there in enumerate(best > -np.inf):
            # Who may have nothing misses nothing.
            if there.any():
                hits = np.bincount(cells[places[row, there]], minlength=len(sizes))[order[row]]
                found[start + row] = np.cumsum(hits) / np.count_nonzero(there)
    means = found.mean(axis=0)
    # All cells find everything, so there always is such a number.
    safe = means - _MARGIN * found.std(axis=0) / len(queries) ** 0.5 >= recall - 1e-9
    probes = int(np.argmax(safe))
    return Calibration(probes + 1, float(means[probes]), float(scanned[probes] / len(queries) / len(vectors)))


def _best(candidates: _Candidates, k: int | tf.Tensor) -> Nearest:
    """The k candidates with the highest scores, padded to k; of equal scores the item with the smaller index first."""
    bits = tf.bitcast(candidates.scores, tf.int32)
    # Integers in the order of the scores; 0.0 and -0.0 are equal.
    ordered = tf.where(bits >= 0, bits, tf.int32.min - bits)
    keys = tf.bitwise.left_shift(tf.cast(ordered, tf.int64), tf.constant(32, tf.int64))
    keys += _LOW_BITS - tf.cast(candidates.items, tf.int64)
    counts = tf.logical_and(candidates.items > 0, tf.equal(candidates.scores, candidates.scores))
    keys = tf.where(counts, keys, tf.int64.min)
    count = tf.minimum(k, tf.size(keys))
    best = tf.math.top_k(keys, count).values
    found = best > tf.int64.min
    items = tf.where(found, _LOW_BITS - tf.bitwise.bitwise_and(best, _LOW_BITS), 0)
    ordered = tf.cast(tf.bitwise.right_shift(best, tf.constant(32, tf.int64)), tf.int32)
    scores = tf.bitcast(tf.where(ordered >= 0, ordered, tf.int32.min - ordered), tf.float32)
    padding = [[0, k - count]]
    return Nearest(tf.pad(items, padding), tf.pad(tf.where(found, scores, tf.zeros_like(scores)), padding))


def _rows_of(rows: tf.RaggedTensor | None) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function from a row's number to its items, int32 [items]; the row after the last one is empty."""
    if rows is None:
        return lambda row: tf.zeros([0], tf.int32)
    items = tf.cast(rows.flat_values, tf.int32)
    splits = tf.concat([rows.row_splits, rows.row_splits[-1:]], axis=0)
    return lambda row: items[splits[row] : splits[row + 1]]
