"""Similar items: nearest neighbours by the cosine of the retrieval task's item vectors."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from components.trainer.data.ragged_ops import dense_boolean_mask
from components.trainer.index.build import SAMPLE_SIZE, SampleQueries, build_index
from components.trainer.index.retrieval_index import SearchResult
from recipe.trainer import TrainerRecipe


class SimilarItems(tf.Module):
    """An index over the normalized item vectors, so that inner products are cosines.

    The item bias is not part of the vectors: it is an item's popularity, which does not depend on the other item.

    Example:
        >>> similar_items = SimilarItems(tf.random.normal([100, 8]), recipe, k=10)
        >>> similar_items.search(tf.constant([3], tf.int64), k=10).items.shape
        TensorShape([1, 10])
    """

    def __init__(self, vectors: tf.Tensor, recipe: TrainerRecipe, k: int) -> None:
        """
        Args:
            vectors: float32 [N, D]: retrieval factors of items 1 to N.
            recipe: The recipe.
            k: Number of items that most searches request.
        """
        super().__init__(name="similar_items")
        if recipe.model.retrieval.item_bias:
            vectors = vectors[:, :-1]
        vectors = tf.math.l2_normalize(vectors, axis=1)

        def sample_queries() -> SampleQueries:
            items = np.random.default_rng(0).permutation(len(vectors))[:SAMPLE_SIZE]
            return SampleQueries(tf.gather(vectors, items).numpy(), list(items[:, None] + 1))

        self._index = build_index(recipe.serving.index, vectors, k, sample_queries, "similar_items_index")

    def search(self, items: tf.Tensor, k: int) -> SearchResult:
        """Return the k items that are most similar to each item.

        Args:
            items: int64 [B], 0 to N. An item is not in its own result; item 0 has no similar items.
            k: Number of items.
        """
        # Item 0 is restricted to item 0, which is not an item, so that its result is empty.
        rows = items[:, None]
        excluded, only = dense_boolean_mask(rows, rows > 0), dense_boolean_mask(rows, tf.equal(rows, 0))
        return self._index.search(self._index.vectors(items), k, excluded, only)
