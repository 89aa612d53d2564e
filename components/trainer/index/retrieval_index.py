"""Retrieval indexes: which items' vectors have the largest product with a query's. The exported model holds them.

Plain TensorFlow ops only. `ExactIndex` compares a query with every item, which is what a catalogue of up to some
hundred thousand items affords; others may look at fewer items, and then answer for what they find.
"""

from __future__ import annotations

import abc
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from components.trainer.data.ragged_rows import row_of_each


class Nearest(NamedTuple):
    """The items found for B queries, best first."""

    items: tf.Tensor
    """int64 [B, k]: vocabulary indices, 1 to N, padded with 0."""
    scores: tf.Tensor
    """float32 [B, k]: products of the query's vector and each item's; 0 for padding."""


class RetrievalIndex(tf.Module, abc.ABC):
    """N items' vectors [N, D] and a search among them. Items are vocabulary indices, 1 to N; 0 is no item.

    Every method takes an empty batch. Of two items with equal scores the one with the smaller index comes first.
    """

    item_count: int
    """N"""

    @abc.abstractmethod
    def search(
        self,
        query: tf.Tensor,
        k: int | tf.Tensor,
        excluded: tf.RaggedTensor | None = None,
        only: tf.RaggedTensor | None = None,
    ) -> Nearest:
        """The k items with the highest scores that a row may have.

        Args:
            query: float32 [B, D].
            k: How many, at least 1; a Python int or an int32 scalar. The answer is k wide also where there are fewer.
            excluded: int64 [B, None], 1 to N: the items that each row must not have. An item may stand there twice.
                None for none.
            only: int64 [B, None], 0 to N: the items that a row may have; a row without any may have all. 0 is no item,
                so that a row with nothing but 0 finds nothing. None is the same as rows without any.
        """

    @abc.abstractmethod
    def rank(self, query: tf.Tensor, item: tf.Tensor, excluded: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Where `search` puts one item of each row, if it searches far enough; the first place is 0.

        Args:
            query: float32 [B, D].
            item: int64 [B], 0 to N.
            excluded: int64 [B, None], 1 to N.

        Returns:
            int64 [B], the place among all items; and int64 [B], the place without the excluded ones, of which the row's
            own item is never one. -1 where there is no such place: the item is 0, the search does not come upon it, or
            the row's scores are not all numbers.
        """

    @abc.abstractmethod
    def vectors(self, items: tf.Tensor) -> tf.Tensor:
        """Items int64 [B], 0 to N, to their vectors float32 [B, D]; that of item 0 is all zeros."""


class ExactIndex(RetrievalIndex):
    """Compares every query with every item."""

    def __init__(self, vectors: np.ndarray | tf.Tensor, name: str = "index") -> None:
        """
        Args:
            vectors: float32 [N, D], those of item 1 to item N; N is at least 1.
            name: Of the module.
        """
        super().__init__(name=name)
        self.item_count = int(vectors.shape[0])
        # [D, N]: this way round the product with the queries needs no transposition.
        self._factors = tf.Variable(tf.transpose(vectors), trainable=False, name="factors")

    def search(
        self,
        query: tf.Tensor,
        k: int | tf.Tensor,
        excluded: tf.RaggedTensor | None = None,
        only: tf.RaggedTensor | None = None,
    ) -> Nearest:
        scores = self._scores(query)
        if excluded is not None:
            scores = _without(scores, excluded)
        if only is not None:
            # Most requests allow everything, and a mask of the whole catalogue is not free.
            scores = tf.cond(tf.size(only.flat_values) > 0, lambda: _only(scores, only), lambda: scores)
        count = min(k, self.item_count) if isinstance(k, int) else tf.minimum(k, self.item_count)
        best, places = tf.math.top_k(scores, k=count)
        found = best > scores.dtype.min
        items = tf.where(found, tf.cast(places, tf.int64) + 1, 0)
        best = tf.where(found, best, tf.zeros_like(best))
        if isinstance(k, int) and k <= self.item_count:
            return Nearest(items, best)
        padding = [[0, 0], [0, k - count]]
        return Nearest(tf.pad(items, padding), tf.pad(best, padding))

    def rank(self, query: tf.Tensor, item: tf.Tensor, excluded: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
        scores = self._scores(query)
        true = tf.gather(scores, tf.maximum(item - 1, 0), batch_dims=1)
        # Not-a-number compares false with everything and would win every comparison.
        counts = tf.logical_and(item > 0, tf.reduce_all(tf.math.is_finite(scores), axis=1))
        ahead = _ahead(scores, true, item)
        places = tf.stack([row_of_each(excluded), excluded.flat_values - 1], axis=1)
        none = tf.zeros([tf.shape(places)[0]], tf.bool)
        # Marks are four times smaller than scores: that, and 32 bits to count in, is half of the time.
        others = tf.tensor_scatter_nd_update(ahead, places, none)
        every, unseen = (
            tf.where(counts, tf.cast(tf.reduce_sum(tf.cast(marks, tf.int32), axis=1), tf.int64), -1)
            for marks in (ahead, others)
        )
        return every, unseen

    def vectors(self, items: tf.Tensor) -> tf.Tensor:
        # A gather from the variable itself would make every later product copy the whole of it.
        found = tf.transpose(tf.gather(self._factors.read_value(), tf.maximum(items - 1, 0), axis=1))
        return tf.where(items[:, None] > 0, found, tf.zeros_like(found))

    def _scores(self, query: tf.Tensor) -> tf.Tensor:
        """float32 [B, N]"""
        return tf.matmul(query, self._factors.read_value())


def _without(scores: tf.Tensor, items: tf.RaggedTensor) -> tf.Tensor:
    """Scores [B, N] with the lowest number in the place of each row's `items`, 1 to N."""
    places = tf.stack([row_of_each(items), items.flat_values - 1], axis=1)
    lowest = tf.fill([tf.shape(places)[0]], scores.dtype.min)
    return tf.tensor_scatter_nd_min(scores, places, lowest)


def _only(scores: tf.Tensor, items: tf.RaggedTensor) -> tf.Tensor:
    """Scores [B, N] with the lowest number in all other places than those of `items`, in rows that have some."""
    rows = row_of_each(items)
    # One column more, for item 0.
    shape = tf.add(tf.shape(scores, tf.int64), [0, 1])
    allowed = tf.scatter_nd(tf.stack([rows, items.flat_values], axis=1), tf.ones_like(rows, tf.int32), shape)[:, 1:] > 0
    everything = tf.equal(items.row_lengths(), 0)[:, None]
    return tf.where(tf.logical_or(allowed, everything), scores, scores.dtype.min)


def _ahead(scores: tf.Tensor, true: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
    """bool [B, N]: which of the scores [B, N] come before those of the items [B], which are `true` [B]."""
    # `tf.math.top_k` puts equal scores in the order of the catalogue.
    earlier = tf.range(tf.shape(scores)[1])[None, :] < tf.cast(item, tf.int32)[:, None] - 1
    return tf.logical_or(scores > true[:, None], tf.logical_and(tf.equal(scores, true[:, None]), earlier))
