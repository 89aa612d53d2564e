"""Metrics on the validation split after each epoch: the Evaluator's top-100 accuracy and RMSE, computed faster."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from components.trainer.data.batches import batches
from components.trainer.data.training_data import TrainingData
from components.trainer.model.recommender import TwoTaskRecommender

TOP_K = 100

MAX_SCORES = 1 << 24
"""Maximum number of scores of one batch with all items: 64 MiB."""


class ValidationMetrics(tf.Module):
    """Top-100 accuracy and RMSE of a model on the validation split.

    The graph is traced once, and the items are encoded once per computation.

    Example:
        >>> fit, validation = data.hold_out(0.1, "random", seed=0)
        >>> sorted(ValidationMetrics(model, validation, bounds=(1.0, 5.0)).compute())
        ['rmse', 'top_100_accuracy', 'top_100_accuracy_unseen']
    """

    def __init__(
        self, model: TwoTaskRecommender, data: TrainingData, bounds: tuple[float, float] | None = None
    ) -> None:
        """
        Args:
            model: The model, whose current weights each computation uses.
            data: The validation split from `TrainingData.hold_out`, with the histories of the rows to train on.
            bounds: Smallest and largest rating, to which predictions are clipped.
        """
        super().__init__(name="validation")
        self._model = model
        self._bounds = bounds
        self._item_count = data.item_count
        self._has_negatives = data.has_negatives
        chunk = max(1, min(8192, MAX_SCORES // (data.item_count + 1)))
        # The order has no effect. Cached, because gathering histories takes longer than reading them from memory.
        self._rows = batches(data, chunk, seed=0).map(lambda batch: batch | {"user": batch[data.user_feature]}).cache()
        self._seen = tf.RaggedTensor.from_row_splits(
            tf.constant(data.histories.items), tf.constant(data.histories.starts), validate=False
        )
        self._measure = tf.function(self._sums)

    def compute(self) -> dict[str, float]:
        """Compute the metrics with the model's current weights.

        Returns:
            `top_100_accuracy`: fraction of the interactions, without sampled negatives, whose item is among the top 100
            of all items, with equal scores ordered by index; `top_100_accuracy_unseen`: the same, without the items
            that the user interacted with in the rows to train on; `rmse`: over all rows, sampled negatives included.
            New items and rows with a score that is not finite are misses.
        """
        hits, unseen_hits, interactions, squared, rows = (float(value) for value in self._measure())
        return {
            "top_100_accuracy": hits / interactions,
            "top_100_accuracy_unseen": unseen_hits / interactions,
            "rmse": float(np.sqrt(squared / rows)),
        }

    def _sums(self) -> tuple[tf.Tensor, ...]:
        """Return hits, hits among unseen items, interactions, squared errors and rows, float64 []."""
        items = self._model.encode_items(tf.range(self._item_count + 1, dtype=tf.int64))
        candidates = tf.cast(items.retrieval, tf.float32)
        zero = tf.zeros([], tf.float64)
        hits, unseen_hits, interactions, squared, rows = zero, zero, zero, zero, zero
        for batch in self._rows:
            item, label = batch["item"], batch["label"]
            query = self._model.encode_query(batch)
            rating = tf.cast(
                self._model.predict_ratings(query, type(items)(*(tf.gather(part, item) for part in items))), tf.float32
            )
            if self._bounds:
                rating = tf.clip_by_value(rating, *self._bounds)
            scores = tf.matmul(tf.cast(query.retrieval, tf.float32), candidates, transpose_b=True)
            rank, unseen_rank = _ranks(scores, item, tf.gather(self._seen, batch["user"]))
            counts = tf.logical_and(item > 0, tf.reduce_all(tf.math.is_finite(scores), axis=1))
            positive = batch["positive"] if self._has_negatives else tf.ones_like(counts)
            counts = tf.logical_and(counts, positive)
            hits += _count(tf.logical_and(counts, rank < TOP_K))
            unseen_hits += _count(tf.logical_and(counts, unseen_rank < TOP_K))
            interactions += _count(positive)
            squared += tf.reduce_sum(tf.square(tf.cast(rating - label, tf.float64)))
            rows += tf.cast(tf.size(label), tf.float64)
        return hits, unseen_hits, interactions, squared, rows


def _ranks(scores: tf.Tensor, item: tf.Tensor, seen: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the ranks of items by their scores, counted from 0, among all items and among unseen items.

    Args:
        scores: float32 [B, N + 1]
        item: int64 [B]
        seen: int64 [B, None]: the items that each row's user interacted with.

    Returns:
        int32 [B] each.
    """
    true = tf.gather(scores, item, batch_dims=1)
    index = tf.range(tf.shape(scores, tf.int64)[1])
    earlier = index[None, :] < item[:, None]
    ahead = tf.logical_or(scores > true[:, None], tf.logical_and(tf.equal(scores, true[:, None]), earlier))
    # Item 0, the OOV index, is not a candidate.
    rank = tf.reduce_sum(tf.cast(ahead[:, 1:], tf.int32), axis=1)
    rows = seen.value_rowids()
    seen_ahead = tf.gather_nd(ahead, tf.stack([rows, seen.flat_values], axis=1))
    return rank, rank - tf.math.unsorted_segment_sum(tf.cast(seen_ahead, tf.int32), rows, tf.shape(scores)[0])


def _count(rows: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(rows, tf.float64))
