"""The baselines: the most popular items for ranking metrics, damped means for rating metrics.

They are part of the exported model, so that the Evaluator measures them on the same examples as the model.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from components.trainer.data.ragged_ops import value_rowids
from components.trainer.data.training_data import TrainingData
from components.trainer.model.rating import damped_means


class Baselines(tf.Module):
    """Interaction counts and damped means of the train split by vocabulary index; index 0 is the OOV index.

    Example:
        >>> baselines = Baselines(data)
        >>> baselines.most_popular(k=10, rows=2, excluded=None).shape
        TensorShape([2, 10])
    """

    def __init__(self, data: TrainingData) -> None:
        """
        Args:
            data: The train split, the validation split included. Sampled negatives count for the means only, as in the
                model.
        """
        super().__init__(name="baselines")
        items = data.item_frequencies()
        items[0] = 0
        users = np.bincount(data.users[data.positive], minlength=data.user_count + 1)
        users[0] = 0
        # Items with equal counts are ordered by index, as `tf.math.top_k` orders equal scores.
        order = np.argsort(-items[1:], kind="stable")
        ranks = np.full(len(items), -1)
        ranks[1:][order] = np.arange(len(order))
        mean, user_bias, item_bias = damped_means(data)
        self._item_interactions = _constant("item_interactions", items, tf.int64)
        self._user_interactions = _constant("user_interactions", users, tf.int64)
        self._item_popularity = _constant("item_popularity", _fraction_below(items), tf.float32)
        self._user_activity = _constant("user_activity", _fraction_below(users), tf.float32)
        self._ranks = _constant("ranks", ranks, tf.int64)
        self._order = _constant("order", order + 1, tf.int64)
        self._log_interactions = _constant("log_interactions", np.log1p(items), tf.float32)
        self._mean = _constant("mean", mean, tf.float32)
        self._user_bias = _constant("user_bias", user_bias, tf.float32)
        self._item_bias = _constant("item_bias", item_bias, tf.float32)

    def most_popular(self, k: int, rows: tf.Tensor, excluded: tf.RaggedTensor | None) -> tf.Tensor:
        """Return the most popular items.

        Args:
            k: Number of items, at most N.
            rows: B, an integer scalar.
            excluded: int64 [B, items]: the items to exclude from each row; None for no items.

        Returns:
            int64 [B, k]: vocabulary indices by descending popularity, padded with 0.
        """
        order = self._order.read_value()
        if excluded is None:
            return tf.tile(order[None, :k], [rows, 1])
        # A row loses at most as many of the top items as it excludes, so the rest of the catalogue is not needed.
        width = tf.minimum(tf.size(order, tf.int64), k + tf.reduce_max(tf.pad(excluded.row_lengths(), [[0, 1]])))
        ranks = tf.gather(self._ranks.read_value(), excluded.flat_values)
        near = ranks < width
        removed = tf.stack([value_rowids(excluded)[near], ranks[near]], axis=1)
        every = tf.tile(tf.range(width, dtype=tf.int64)[None, :], [rows, 1])
        free = tf.tensor_scatter_nd_update(every, removed, tf.fill([tf.shape(removed)[0]], width))
        best = -tf.math.top_k(-free, k=k).values
        return tf.where(best < width, tf.gather(order, tf.minimum(best, width - 1)), 0)

    def rank(self, item: tf.Tensor, seen: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the ranks of items by popularity, counted from 0.

        Args:
            item: int64 [B]: vocabulary indices.
            seen: int64 [B, items]: the items that each row's user interacted with.

        Returns:
            int64 [B], the rank among all items; and int64 [B], the rank without the seen items. -1 for item 0.
        """
        ranks = self._ranks.read_value()
        rank = tf.gather(ranks, item)
        rows = value_rowids(seen)
        ahead = tf.gather(ranks, seen.flat_values) < tf.gather(rank, rows)
        seen_ahead = tf.math.unsorted_segment_sum(tf.cast(ahead, tf.int64), rows, tf.size(item))
        return rank, rank - seen_ahead

    def mean_rating(self, user: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
        """Return the damped mean rating (Koren 2010, doi:10.1145/1644873.1644874).

        Args:
            user: int64 [B]: vocabulary indices.
            item: int64 [B]: vocabulary indices.

        Returns:
            float32 [B]
        """
        biases = tf.gather(self._user_bias.read_value(), user) + tf.gather(self._item_bias.read_value(), item)
        return self._mean + biases

    def interaction_statistics(self, user: tf.Tensor, item: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the interaction counts of users and items, which define slices.

        Args:
            user: int64 [B]: vocabulary indices.
            item: int64 [B]: vocabulary indices.

        Returns:
            `user_interactions` and `item_interactions`, int64 [B]: interactions in the train split; `user_activity` and
            `item_popularity`, float32 [B]: fraction of the train split's users (or items) with fewer interactions.
        """
        return {
            "user_interactions": tf.gather(self._user_interactions.read_value(), user),
            "user_activity": tf.gather(self._user_activity.read_value(), user),
            "item_interactions": tf.gather(self._item_interactions.read_value(), item),
            "item_popularity": tf.gather(self._item_popularity.read_value(), item),
        }

    def log_popularity(self, items: tf.Tensor) -> tf.Tensor:
        """Return the mean of log(1 + interactions in the train split) over each row's items.

        Args:
            items: int64 [B, k]: vocabulary indices, padded with 0.

        Returns:
            float32 [B]; 0 for a row without items.
        """
        logs = tf.gather(self._log_interactions.read_value(), items)
        return tf.math.divide_no_nan(tf.reduce_sum(logs, axis=1), tf.reduce_sum(tf.cast(items > 0, tf.float32), axis=1))


def _fraction_below(counts: np.ndarray) -> np.ndarray:
    """Return the fraction of the positive counts that are smaller than each count."""
    positive = np.sort(counts[counts > 0])
    return np.searchsorted(positive, counts) / max(len(positive), 1)


def _constant(name: str, values: np.ndarray | float, dtype: tf.DType) -> tf.Variable:
    # Variables, because large constants would be part of the graph and not of the checkpoint.
    return tf.Variable(tf.constant(values, dtype), trainable=False, name=name)
