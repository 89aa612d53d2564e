"""What a recommender must beat: the most popular items, and user and item means, from the same training data.

The exported model carries them, so that the Evaluator measures them on the very examples it measures the model on.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from components.trainer.data.ragged_rows import row_of_each
from components.trainer.data.training_data import TrainingData
from components.trainer.model.rating import damped_means


class Baselines(tf.Module):
    """Counts and means of train, by vocabulary index; index 0 is "unknown" and was never touched."""

    def __init__(self, data: TrainingData) -> None:
        """Counts once; sampled negatives count for the means only, like in the model.

        Args:
            data: What the model was trained on, held-out rows included: what is served knows them too.
        """
        super().__init__(name="baselines")
        items = data.item_frequencies()
        items[0] = 0
        users = np.bincount(data.users[data.positive], minlength=data.user_count + 1)
        users[0] = 0
        # Equally popular items stand in the order of the catalogue, as `tf.math.top_k` puts equal scores.
        order = np.argsort(-items[1:], kind="stable")
        places = np.full(len(items), -1)
        places[1:][order] = np.arange(len(order))
        mean, user_bias, item_bias = damped_means(data)
        self._item_interactions = _constant("item_interactions", items, tf.int64)
        self._user_interactions = _constant("user_interactions", users, tf.int64)
        self._item_popularity = _constant("item_popularity", _share_below(items), tf.float32)
        self._user_activity = _constant("user_activity", _share_below(users), tf.float32)
        self._places = _constant("places", places, tf.int64)
        self._order = _constant("order", order + 1, tf.int64)
        self._log_interactions = _constant("log_interactions", np.log1p(items), tf.float32)
        self._mean = _constant("mean", mean, tf.float32)
        self._user_bias = _constant("user_bias", user_bias, tf.float32)
        self._item_bias = _constant("item_bias", item_bias, tf.float32)

    def first(self, k: int, rows: tf.Tensor, left_out: tf.RaggedTensor | None) -> tf.Tensor:
        """The most popular items.

        Args:
            k: How many, at most all.
            rows: B, an integer scalar.
            left_out: int64 [B, items]: what each row must not have; None for nothing.

        Returns:
            int64 [B, k], the most popular one first, padded with 0.
        """
        order = self._order.read_value()
        if left_out is None:
            return tf.tile(order[None, :k], [rows, 1])
        # No row can lose more of the first ones than it has items: the rest of the catalogue need not be looked at.
        width = tf.minimum(tf.size(order, tf.int64), k + tf.reduce_max(tf.pad(left_out.row_lengths(), [[0, 1]])))
        places = tf.gather(self._places.read_value(), left_out.flat_values)
        near = places < width
        gone = tf.stack([row_of_each(left_out)[near], places[near]], axis=1)
        every = tf.tile(tf.range(width, dtype=tf.int64)[None, :], [rows, 1])
        free = tf.tensor_scatter_nd_update(every, gone, tf.fill([tf.shape(gone)[0]], width))
        best = -tf.math.top_k(-free, k=k).values
        return tf.where(best < width, tf.gather(order, tf.minimum(best, width - 1)), 0)

    def rank(self, item: tf.Tensor, seen: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Places of items among all by popularity, the first one 0.

        Args:
            item: int64 [B], vocabulary indices.
            seen: int64 [B, items]: for each row the items that its user has seen.

        Returns:
            int64 [B], -1 for an unknown item; and the same without the seen items ahead of it.
        """
        places = self._places.read_value()
        rank = tf.gather(places, item)
        rows = row_of_each(seen)
        ahead = tf.gather(places, seen.flat_values) < tf.gather(rank, rows)
        seen_ahead = tf.math.unsorted_segment_sum(tf.cast(ahead, tf.int64), rows, tf.size(item))
        return rank, rank - seen_ahead

    def rating(self, user: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
        """User and item int64 [B] to the damped mean rating float32 [B] (Koren 2010, doi:10.1145/1644873.1644874)."""
        biases = tf.gather(self._user_bias.read_value(), user) + tf.gather(self._item_bias.read_value(), item)
        return self._mean + biases

    def familiarity(self, user: tf.Tensor, item: tf.Tensor) -> dict[str, tf.Tensor]:
        """How well train knows users and items, int64 [B]: what slices are made of.

        Returns:
            `user_interactions` and `item_interactions`, int64 [B]; `user_activity` and `item_popularity`, float32 [B]:
            the share of the users (or items) of train with fewer interactions.
        """
        return {
            "user_interactions": tf.gather(self._user_interactions.read_value(), user),
            "user_activity": tf.gather(self._user_activity.read_value(), user),
            "item_interactions": tf.gather(self._item_interactions.read_value(), item),
            "item_popularity": tf.gather(self._item_popularity.read_value(), item),
        }

    def log_popularity(self, items: tf.Tensor) -> tf.Tensor:
        """Mean of log(1 + interactions in train) of each row's items.

        Args:
            items: int64 [B, k], padded with 0, which does not count.

        Returns:
            float32 [B], 0 for a row without items.
        """
        logs = tf.gather(self._log_interactions.read_value(), items)
        return tf.math.divide_no_nan(tf.reduce_sum(logs, axis=1), tf.reduce_sum(tf.cast(items > 0, tf.float32), axis=1))


def _share_below(counts: np.ndarray) -> np.ndarray:
    """For each count the share of the counts above 0 that are smaller."""
    touched = np.sort(counts[counts > 0])
    return np.searchsorted(touched, counts) / max(len(touched), 1)


def _constant(name: str, values: np.ndarray | float, dtype: tf.DType) -> tf.Variable:
    # Variables and not constants: large arrays belong into the checkpoint, not into the graph.
    return tf.Variable(tf.constant(values, dtype), trainable=False, name=name)
