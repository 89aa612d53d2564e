"""The interface of a retrieval index: maximum inner product search over the items' vectors, in the exported model.

Indexes use TensorFlow's built-in ops only, so that a stock TensorFlow Serving loads them. `ExactIndex` scores every
item and suits catalogues of up to some hundred thousand items; `IvfIndex` scores fewer items.
"""

from __future__ import annotations

import abc
from typing import NamedTuple

import tensorflow as tf


class SearchResult(NamedTuple):
    """The top k items of B queries, by descending score."""

    items: tf.Tensor
    """int64 [B, k]: vocabulary indices, 1 to N, padded with 0."""
    scores: tf.Tensor
    """float32 [B, k]: inner products of the query's and the items' vectors; 0 for padding."""


class RetrievalIndex(tf.Module, abc.ABC):
    """An index over the vectors [N, D] of N items.

    Items are vocabulary indices, 1 to N; 0, the OOV index, is not an item. All methods accept an empty batch. Items
    with equal scores are ordered by index.
    """

    item_count: int
    """N, the number of items."""

    @abc.abstractmethod
    def search(
        self,
        query: tf.Tensor,
        k: int | tf.Tensor,
        excluded: tf.RaggedTensor | None = None,
        only: tf.RaggedTensor | None = None,
    ) -> SearchResult:
        """Return the k items with the highest scores.

        Args:
            query: float32 [B, D]
            k: Number of items, at least 1; a Python int or an int32 scalar. The result has k columns also if fewer
                items are found.
            excluded: int64 [B, None], 1 to N: the items to exclude from each row; duplicates are allowed. None excludes
                no items.
            only: int64 [B, None], 0 to N: the items that each row is restricted to. An empty row is not restricted; a
                row of zeros finds no items. None restricts no rows.
        """

    @abc.abstractmethod
    def rank(self, query: tf.Tensor, item: tf.Tensor, excluded: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the rank of one item per row in the results of `search` with a sufficient k, counted from 0.

        Args:
            query: float32 [B, D]
            item: int64 [B], 0 to N.
            excluded: int64 [B, None], 1 to N. A row's own item is never excluded.

        Returns:
            int64 [B], the rank among all items; and int64 [B], the rank among the items that are not excluded. -1 if
            there is no rank: the item is 0, the search does not find it, or a score of the row is not finite.
        """

    @abc.abstractmethod
    def vectors(self, items: tf.Tensor) -> tf.Tensor:
        """Return the vectors of items.

        Args:
            items: int64 [B], 0 to N.

        Returns:
            float32 [B, D]; zeros for item 0.
        """
