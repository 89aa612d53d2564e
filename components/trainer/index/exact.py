"""`index: exact` of the recipe: brute-force search, which scores every item."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from components.trainer.data.ragged_ops import value_rowids
from components.trainer.index.retrieval_index import RetrievalIndex, SearchResult


class ExactIndex(RetrievalIndex):
    """Brute-force index, as `tfrs.layers.factorized_top_k.BruteForce`: one matrix product scores all items.

    Example:
        >>> index = ExactIndex(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], np.float32))
        >>> index.search(tf.constant([[2.0, 1.0]]), k=2).items.numpy()
        array([[3, 1]])
    """

    def __init__(self, vectors: np.ndarray | tf.Tensor, name: str = "index") -> None:
        """
        Args:
            vectors: float32 [N, D]: the vectors of items 1 to N; N is at least 1.
            name: Name of the module.
        """
        super().__init__(name=name)
        self.item_count = int(vectors.shape[0])
        # [D, N], because the product with the queries then needs no transposition.
        self._factors = tf.Variable(tf.transpose(vectors), trainable=False, name="factors")

    def search(
        self,
        query: tf.Tensor,
        k: int | tf.Tensor,
        excluded: tf.RaggedTensor | None = None,
        only: tf.RaggedTensor | None = None,
    ) -> SearchResult:
        scores = self._scores(query)
        if excluded is not None:
            scores = _without(scores, excluded)
        if only is not None:
            # Most requests are not restricted, and a mask over the catalogue costs time.
            scores = tf.cond(tf.size(only.flat_values) > 0, lambda: _only(scores, only), lambda: scores)
        count = min(k, self.item_count) if isinstance(k, int) else tf.minimum(k, self.item_count)
        best, positions = tf.math.top_k(scores, k=count)
        found = best > scores.dtype.min
        items = tf.where(found, tf.cast(positions, tf.int64) + 1, 0)
        best = tf.where(found, best, tf.zeros_like(best))
        if isinstance(k, int) and k <= self.item_count:
            return SearchResult(items, best)
        padding = [[0, 0], [0, k - count]]
        return SearchResult(tf.pad(items, padding), tf.pad(best, padding))

    def rank(self, query: tf.Tensor, item: tf.Tensor, excluded: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
        scores = self._scores(query)
        true = tf.gather(scores, tf.maximum(item - 1, 0), batch_dims=1)
        # Comparisons with NaN are false, so that a NaN score would get rank 0.
        counts = tf.logical_and(item > 0, tf.reduce_all(tf.math.is_finite(scores), axis=1))
        ahead = _ahead(scores, true, item)
        positions = tf.stack([value_rowids(excluded), excluded.flat_values - 1], axis=1)
        none = tf.zeros([tf.shape(positions)[0]], tf.bool)
        # Booleans take a quarter of the memory of scores; with them and a 32-bit count the time halves.
        others = tf.tensor_scatter_nd_update(ahead, positions, none)
        every, unseen = (
            tf.where(counts, tf.cast(tf.reduce_sum(tf.cast(mask, tf.int32), axis=1), tf.int64), -1)
            for mask in (ahead, others)
        )
        return every, unseen

    def vectors(self, items: tf.Tensor) -> tf.Tensor:
        # After a gather from the variable itself, every later dense read would copy the variable.
        found = tf.transpose(tf.gather(self._factors.read_value(), tf.maximum(items - 1, 0), axis=1))
        return tf.where(items[:, None] > 0, found, tf.zeros_like(found))

    def _scores(self, query: tf.Tensor) -> tf.Tensor:
        """Return the scores of all items, float32 [B, N]."""
        return tf.matmul(query, self._factors.read_value())


def _without(scores: tf.Tensor, items: tf.RaggedTensor) -> tf.Tensor:
    """Return the scores [B, N] with the minimum float at each row's `items`, 1 to N."""
    positions = tf.stack([value_rowids(items), items.flat_values - 1], axis=1)
    lowest = tf.fill([tf.shape(positions)[0]], scores.dtype.min)
    return tf.tensor_scatter_nd_min(scores, positions, lowest)


def _only(scores: tf.Tensor, items: tf.RaggedTensor) -> tf.Tensor:
    """Return the scores [B, N] with the minimum float everywhere but at `items`, in rows that are not empty."""
    rows = value_rowids(items)
    # An additional column for item 0.
    shape = tf.add(tf.shape(scores, tf.int64), [0, 1])
    allowed = tf.scatter_nd(tf.stack([rows, items.flat_values], axis=1), tf.ones_like(rows, tf.int32), shape)[:, 1:] > 0
    everything = tf.equal(items.row_lengths(), 0)[:, None]
    return tf.where(tf.logical_or(allowed, everything), scores, scores.dtype.min)


def _ahead(scores: tf.Tensor, true: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
    """Return a mask bool [B, N] of the scores [B, N] that rank before the items [B] with the scores `true` [B]."""
    # `tf.math.top_k` orders equal scores by index.
    earlier = tf.range(tf.shape(scores)[1])[None, :] < tf.cast(item, tf.int32)[:, None] - 1
    return tf.logical_or(scores > true[:, None], tf.logical_and(tf.equal(scores, true[:, None]), earlier))
