"""Items that are like an item: the nearest ones by the angle between their retrieval vectors."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from components.trainer.data.ragged_rows import kept_of_dense
from components.trainer.index.choice import SAMPLE_SIZE, Searches, build_index
from components.trainer.index.retrieval_index import Nearest
from recipe.trainer import TrainerRecipe


class Neighbours(tf.Module):
    """An index of the items' vectors at length 1, so that products are cosines.

    Without the factor that is the item's bias: it says how popular an item is, not what it is like.
    """

    def __init__(self, vectors: tf.Tensor, recipe: TrainerRecipe, k: int) -> None:
        """
        Args:
            vectors: The items' retrieval factors float32 [N, D], of item 1 to item N.
            recipe: The recipe.
            k: How many items most searches ask for.
        """
        super().__init__(name="neighbours")
        if recipe.model.retrieval.item_bias:
            vectors = vectors[:, :-1]
        vectors = tf.math.l2_normalize(vectors, axis=1)

        def searches() -> Searches:
            items = np.random.default_rng(0).permutation(len(vectors))[:SAMPLE_SIZE]
            return Searches(tf.gather(vectors, items).numpy(), list(items[:, None] + 1))

        self._index = build_index(recipe.serving.index, vectors, k, searches, "neighbours_index")

    def nearest(self, items: tf.Tensor, k: int) -> Nearest:
        """The k items that are most like each of the items int64 [B], itself left out; none for the unknown item 0."""
        # The unknown item may have nothing but 0, which is no item.
        rows = items[:, None]
        excluded, only = kept_of_dense(rows, rows > 0), kept_of_dense(rows, tf.equal(rows, 0))
        return self._index.search(self._index.vectors(items), k, excluded, only)
