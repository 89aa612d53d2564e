"""`index: ivf` of the recipe: an inverted file index, as faiss's `IndexIVFFlat`.

k-means partitions the items' vectors into cells; a query probes the cells whose centroids have the largest inner
product with it (Jégou et al. 2011, doi:10.1109/TPAMI.2010.57). Vectors are not quantized, so that scores equal the
model's. `IvfIndex.build` calibrates the number of probes (faiss's `nprobe`) on queries of the model: the smallest
number with the requested recall.

Each query is one iteration of a loop: the vectors that it gathers then fit the processor's caches (a batch of 32 over a
million items takes half the time), memory does not grow with the batch, and results do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from components.trainer.index.retrieval_index import RetrievalIndex, SearchResult

# Items that are stored and gathered together: copies of 4 KiB with 64 dimensions. A cell's last block is padded.
_BLOCK = 16
GATHER_LIMIT = 0.25
"""Fraction of the catalogue above which one product with all vectors is faster than gathering that fraction."""

# k-means: sampled vectors per cell, and iterations.
_VECTORS_PER_CELL = 40
_ITERATIONS = 8
# Cells with more than this multiple of the mean number of items are partitioned further.
_MAX_CELL_RATIO = 6
# Vectors whose products with all centroids are in memory simultaneously.
_VECTORS_PER_PRODUCT = 4096

_CALIBRATION_QUERIES = 1000
# Queries whose products with all items are in memory simultaneously.
_QUERIES_PER_PRODUCT = 32
# Standard errors by which the measured recall exceeds the requested one.
_MARGIN = 2.0

_NO_SLOT = -(2**30)
_LOW_BITS = 0xFFFFFFFF


class Calibration(NamedTuple):
    """Number of probes and its measured recall."""

    probes: int
    """Number of cells that a query probes (faiss's `nprobe`)."""
    recall: float
    """Recall@k: mean fraction of the exact index's top k items that are in the probed cells."""
    scanned: float
    """Mean fraction of the catalogue's items that are in the probed cells."""


class _Candidates(NamedTuple):
    """The items that one query is scored against."""

    scores: tf.Tensor
    """float32 [M]"""
    items: tf.Tensor
    """int32 [M], without duplicates; 0 for padding and for excluded items."""


class IvfIndex(RetrievalIndex):
    """Inverted file index: scores the items of the probed cells only.

    Example:
        >>> vectors = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
        >>> index = IvfIndex.build(vectors, queries=vectors[:200], k=10, recall=0.9)
        >>> index.search(tf.constant(vectors[:2]), k=10).items.shape
        TensorShape([2, 10])
    """

    def __init__(
        self, vectors: np.ndarray, cells: np.ndarray, *, k: int, calibration: Calibration, name: str = "index"
    ) -> None:
        """
        Args:
            vectors: float32 [N, D]: the vectors of items 1 to N; N is at least 1.
            cells: int [N], 0 to C - 1: the cell of each item, from `assign_cells`. No cell is empty.
            k: Number of items of the evaluated search; `rank` scans the cells that this search scans.
            calibration: Number of probes, from `calibrate`.
            name: Name of the module.
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
        slots = np.repeat((limits - blocks) * _BLOCK, sizes) + within
        slot_count = int(limits[-1]) * _BLOCK
        stored = np.zeros((slot_count, self._width), np.float32)
        stored[slots] = vectors[order]
        items = np.zeros(slot_count, np.int32)
        items[slots] = order + 1
        # Item 0 is in a cell that is never probed.
        slot_of, cell_of = np.zeros(self.item_count + 1, np.int32), np.full(self.item_count + 1, self.cell_count)
        slot_of[order + 1] = slots
        cell_of[1:] = cells

        def constant(values: np.ndarray, name: str, dtype: tf.DType = tf.int32) -> tf.Variable:
            return tf.Variable(values, trainable=False, dtype=dtype, name=name)

        self._vectors = constant(stored.reshape(-1, _BLOCK * self._width), "vectors", tf.float32)
        self._items = constant(items.reshape(-1, _BLOCK), "items")
        self._centroids = constant(cell_means(vectors, cells).T, "centroids", tf.float32)
        self._sizes = constant(sizes, "sizes")
        self._starts = constant(limits - blocks, "starts")
        self._limits = constant(limits, "limits")
        self._slot_of = constant(slot_of, "slot_of")
        self._cell_of = constant(cell_of, "cell_of")

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
        """Partition the catalogue into cells and calibrate the number of probes. Deterministic.

        Args:
            vectors: float32 [N, D]: the vectors of items 1 to N; N is at least 1.
            queries: float32 [Q, D]: query vectors of users of the train split. Without queries, all cells are probed.
            k: The k of recall@k.
            recall: The requested recall@k, above 0 and at most 1.
            cells: Number of cells (faiss's `nlist`), at most N; large cells are partitioned further. None is 4 √N, with
                which scoring the centroids takes about as long as scoring the items of the probed cells.
            excluded: For each query the items to exclude, 1 to N: those that the user interacted with.
            seed: Random seed of k-means.
            name: Name of the module.
        """
        vectors = np.asarray(vectors, np.float32)
        cell_count = min(cells or round(4 * len(vectors) ** 0.5), len(vectors))
        assigned = assign_cells(vectors, cell_count, np.random.default_rng(seed))
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
    ) -> SearchResult:
        count = min(k, self.item_count) if isinstance(k, int) else tf.minimum(k, self.item_count)
        excluded_row = _rows_of(excluded)
        only_row = None if only is None else _rows_of(only)

        def best(row: tf.Tensor, query: tf.Tensor, centroid_scores: tf.Tensor) -> SearchResult:
            others = excluded_row(row)

            def probed() -> _Candidates:
                return self._probed(query, centroid_scores, count, others)[0]

            if only_row is None:
                candidates = probed()
            else:
                allowed = only_row(row)
                candidates = tf.cond(tf.size(allowed) > 0, lambda: self._allowed(query, allowed, others), probed)
            return _top_k(candidates, k)

        width = k if isinstance(k, int) else None
        spec = SearchResult(tf.TensorSpec([width], tf.int64), tf.TensorSpec([width], tf.float32))
        return SearchResult(*self._map_queries(best, query, spec))

    def rank(self, query: tf.Tensor, item: tf.Tensor, excluded: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
        excluded_row = _rows_of(excluded)
        # An empty batch has one row of padding; see `_map_queries`.
        item = tf.pad(tf.cast(item, tf.int32), [[0, 1]])

        def ranks(row: tf.Tensor, query: tf.Tensor, centroid_scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            own, others = item[row], excluded_row(row)
            others = tf.boolean_mask(others, others != own)
            left, every = self._probed(query, centroid_scores, self._k, others)
            there = tf.logical_and(tf.equal(every.items, own), own > 0)
            # Comparisons with NaN are false, so that a NaN score would get rank 0.
            counts = tf.logical_and(tf.reduce_any(there), tf.reduce_all(tf.math.is_finite(every.scores)))
            # The minimum float, which no score equals, if the item is not found.
            score = tf.reduce_max(tf.where(there, every.scores, every.scores.dtype.min))
            first = tf.logical_and(tf.equal(every.scores, score), every.items < own)
            ahead = tf.logical_or(every.scores > score, first)

            def rank(items: tf.Tensor) -> tf.Tensor:
                before = tf.math.count_nonzero(tf.logical_and(ahead, items > 0))
                return tf.where(counts, before, tf.constant(-1, tf.int64))

            return rank(every.items), rank(left.items)

        spec = (tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int64))
        every, others = self._map_queries(ranks, query, spec)
        return every, others

    def vectors(self, items: tf.Tensor) -> tf.Tensor:
        found = tf.gather(self._rows(), tf.gather(self._slot_of.read_value(), items))
        return tf.where(items[:, None] > 0, found, tf.zeros_like(found))

    def _rows(self) -> tf.Tensor:
        """Return the stored vectors, padding included, float32 [slots, D]."""
        return tf.reshape(self._vectors.read_value(), [-1, self._width])

    def _map_queries(
        self, function: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Any], query: tf.Tensor, spec: Any
    ) -> Any:
        """Apply a function to each row's number, query [D] and centroid scores [C], and stack the results."""
        rows = tf.shape(query)[0]
        # `tf.map_fn` cannot stack zero results of unknown shape, so an empty batch gets one row of padding.
        query = tf.pad(query, [[0, tf.cast(tf.equal(rows, 0), tf.int32)], [0, 0]])
        centroid_scores = tf.matmul(query, self._centroids.read_value())
        results = tf.map_fn(
            lambda row: function(*row), (tf.range(tf.shape(query)[0]), query, centroid_scores), fn_output_signature=spec
        )
        return tf.nest.map_structure(lambda values: values[:rows], results)

    def _probed(
        self, query: tf.Tensor, centroid_scores: tf.Tensor, count: int | tf.Tensor, excluded: tf.Tensor
    ) -> tuple[_Candidates, _Candidates]:
        """Return the items of the probed cells, without the excluded ones [E] and with them."""
        # Enough items even if the probed cells have all of the excluded ones.
        enough = tf.minimum(count + tf.size(excluded), self.item_count)
        sizes = self._sizes.read_value()
        nearest = tf.math.top_k(centroid_scores, self._probes).indices

        def more() -> tf.Tensor:
            order = tf.math.top_k(centroid_scores, self.cell_count).indices
            before = tf.cumsum(tf.gather(sizes, order), exclusive=True)
            return tf.boolean_mask(order, before < enough)

        nearest = tf.cond(tf.reduce_sum(tf.gather(sizes, nearest)) >= enough, lambda: nearest, more)

        def gathered() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            starts = tf.gather(self._starts.read_value(), nearest)
            limits = tf.gather(self._limits.read_value(), nearest)
            blocks = tf.ragged.range(starts, limits)
            stored = tf.reshape(tf.gather(self._vectors.read_value(), blocks.flat_values), [-1, self._width])
            items = tf.reshape(tf.gather(self._items.read_value(), blocks.flat_values), [-1])
            # The offset from a cell's stored slots to its gathered slots.
            shift = (tf.cast(blocks.row_starts(), tf.int32) - starts) * _BLOCK
            shifts = tf.tensor_scatter_nd_update(tf.fill([self.cell_count + 1], _NO_SLOT), nearest[:, None], shift)
            return tf.linalg.matvec(stored, query), items, tf.gather(shifts, tf.gather(cell_of, excluded))

        def catalogue() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            items = tf.reshape(self._items.read_value(), [-1])
            shift = tf.where(tf.gather(cell_of, excluded) < self.cell_count, 0, _NO_SLOT)
            return tf.linalg.matvec(self._rows(), query), items, shift

        cell_of = self._cell_of.read_value()
        few = tf.cast(tf.reduce_sum(tf.gather(sizes, nearest)), tf.float32) < GATHER_LIMIT * self.item_count
        scores, items, shift = tf.cond(few, gathered, catalogue)
        slots = tf.gather(self._slot_of.read_value(), excluded) + shift
        slots = tf.boolean_mask(slots, slots >= 0)
        left = tf.tensor_scatter_nd_update(items, slots[:, None], tf.zeros_like(slots))
        return _Candidates(scores, left), _Candidates(scores, items)

    def _allowed(self, query: tf.Tensor, allowed: tf.Tensor, excluded: tf.Tensor) -> _Candidates:
        """Return the items [A], of any cell, without the excluded ones [E]."""
        items, _ = tf.unique(allowed)
        stored = tf.gather(self._rows(), tf.gather(self._slot_of.read_value(), items))
        # A sentinel at the end, because `tf.searchsorted` may return the length.
        sorted_excluded = tf.concat([tf.sort(excluded), [tf.int32.max]], axis=0)
        is_excluded = tf.equal(tf.gather(sorted_excluded, tf.searchsorted(sorted_excluded, items)), items)
        return _Candidates(tf.linalg.matvec(stored, query), tf.where(is_excluded, 0, items))


def assign_cells(vectors: np.ndarray, cells: int, random: np.random.Generator) -> np.ndarray:
    """Partition the catalogue into cells by k-means on a sample.

    Cells that are far larger than the mean are partitioned again by k-means and, if that fails because their vectors
    are equal, by index.

    Args:
        vectors: float32 [N, D]
        cells: Approximate number of cells, at most N.
        random: Generator of the sample and the initial centroids.

    Returns:
        int32 [N]: the cell of each item, from 0. No cell is empty.

    Example:
        >>> vectors = np.array([[0.0, 1.0], [0.0, 2.0], [9.0, 9.0]], np.float32)
        >>> assign_cells(vectors, cells=2, random=np.random.default_rng(0))
        array([0, 0, 1], dtype=int32)
    """
    limit = max(_MAX_CELL_RATIO * len(vectors) // cells, _BLOCK)
    assigned = _kmeans(vectors, cells, random)
    sizes = np.bincount(assigned)
    for cell in np.flatnonzero(sizes > limit):
        members = np.flatnonzero(assigned == cell)
        parts = _kmeans(vectors[members], -(-len(members) * cells // len(vectors)), random)
        within = np.zeros(len(members), np.int64)
        order = np.argsort(parts, kind="stable")
        part_sizes = np.bincount(parts)
        within[order] = np.arange(len(members)) - np.repeat(np.cumsum(part_sizes) - part_sizes, part_sizes)
        # One cell for each `limit` items of each part.
        assigned[members] = assigned.max() + 1 + parts * len(members) + within // limit
    return np.unique(assigned, return_inverse=True)[1].astype(np.int32)


def _kmeans(vectors: np.ndarray, cells: int, random: np.random.Generator) -> np.ndarray:
    """Return the nearest centroid of each vector, int64 [N], by Lloyd's k-means on a sample. Cells may be empty."""
    sample = vectors
    if len(vectors) > _VECTORS_PER_CELL * cells:
        sample = vectors[np.sort(random.choice(len(vectors), _VECTORS_PER_CELL * cells, replace=False))]
    centroids = sample[random.choice(len(sample), cells, replace=False)]
    for _ in range(_ITERATIONS):
        assigned = _nearest_centroids(sample, centroids)
        used = np.unique(assigned)
        centroids[used] = cell_means(sample, np.searchsorted(used, assigned))
        # An empty cell restarts at a random vector.
        unused = np.setdiff1d(np.arange(cells), used)
        centroids[unused] = sample[random.choice(len(sample), len(unused), replace=False)]
    return _nearest_centroids(vectors, centroids)


def _nearest_centroids(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the index of the centroid [C, D] with the smallest distance to each vector [N, D], int64 [N]."""
    halves = np.einsum("cd,cd->c", centroids, centroids) / 2
    step = _VECTORS_PER_PRODUCT
    blocks = (vectors[start : start + step] for start in range(0, len(vectors), step))
    return np.concatenate([np.argmax(block @ centroids.T - halves, axis=1) for block in blocks])


def cell_means(vectors: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return the mean vector of each cell: its centroid.

    Args:
        vectors: float32 [N, D]
        cells: int [N], 0 to C - 1: the cell of each vector. No cell is empty.

    Returns:
        float32 [C, D]

    Example:
        >>> cell_means(np.array([[0.0, 1.0], [0.0, 3.0], [9.0, 9.0]], np.float32), np.array([0, 0, 1]))
        array([[0., 2.],
               [9., 9.]], dtype=float32)
    """
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
    """Return the smallest number of probes with the requested recall.

    The measured mean recall exceeds the requested one by two standard errors of the mean.

    Args:
        vectors: float32 [N, D]: the vectors of items 1 to N.
        cells: int [N], 0 to C - 1: the cell of each item. No cell is empty.
        queries: float32 [Q, D]. Without queries, all cells are probed.
        k: The k of recall@k.
        recall: The requested recall@k, above 0 and at most 1.
        excluded: For each query the items to exclude, 1 to N.

    Example:
        >>> vectors = np.eye(8, dtype=np.float32)
        >>> calibrate(vectors, np.arange(8) // 2, vectors, k=1, recall=0.9)
        Calibration(probes=1, recall=1.0, scanned=0.25)
    """
    centroids, sizes = cell_means(vectors, cells), np.bincount(cells)
    if not len(queries):
        return Calibration(len(sizes), 1.0, 1.0)
    found, scanned = np.ones((len(queries), len(sizes))), np.zeros(len(sizes))
    for start in range(0, len(queries), _QUERIES_PER_PRODUCT):
        some = queries[start : start + _QUERIES_PER_PRODUCT]
        scores = some @ vectors.T
        for row, items in enumerate(excluded[start : start + _QUERIES_PER_PRODUCT] if excluded is not None else ()):
            scores[row, items - 1] = -np.inf
        best, positions = (part.numpy() for part in tf.math.top_k(scores, min(k, len(vectors))))
        order = np.argsort(-(some @ centroids.T), axis=1, kind="stable")
        scanned += np.cumsum(sizes[order], axis=1).sum(axis=0)
        for row, there in enumerate(best > -np.inf):
            # A query whose items are all excluded has recall 1.
            if there.any():
                hits = np.bincount(cells[positions[row, there]], minlength=len(sizes))[order[row]]
                found[start + row] = np.cumsum(hits) / np.count_nonzero(there)
    means = found.mean(axis=0)
    # With all cells the recall is 1, so that the condition holds for at least one number.
    sufficient = means - _MARGIN * found.std(axis=0) / len(queries) ** 0.5 >= recall - 1e-9
    probes = int(np.argmax(sufficient))
    return Calibration(probes + 1, float(means[probes]), float(scanned[probes] / len(queries) / len(vectors)))


def _top_k(candidates: _Candidates, k: int | tf.Tensor) -> SearchResult:
    """Return the k candidates with the highest scores, padded to k; equal scores are ordered by index."""
    bits = tf.bitcast(candidates.scores, tf.int32)
    # Integers that compare as the scores do; 0.0 and -0.0 are equal.
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
    return SearchResult(tf.pad(items, padding), tf.pad(tf.where(found, scores, tf.zeros_like(scores)), padding))


def _rows_of(rows: tf.RaggedTensor | None) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function from a row's number to its items, int32 [items]; the row after the last is empty."""
    if rows is None:
        return lambda row: tf.zeros([0], tf.int32)
    items = tf.cast(rows.flat_values, tf.int32)
    splits = tf.concat([rows.row_splits, rows.row_splits[-1:]], axis=0)
    return lambda row: items[splits[row] : splits[row + 1]]
