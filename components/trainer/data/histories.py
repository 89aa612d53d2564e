"""User histories: the items that each user interacted with in the train split, and those that a batch needs."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from components.trainer.data.damping import damped_biases
from components.trainer.data.ragged_ops import value_rowids
from recipe.features import History


@dataclasses.dataclass(frozen=True)
class Histories:
    """The items of all users, concatenated by user and ordered by time within a user.

    There are U users, 1 to U, and H entries. An item that a user interacted with more than once has one entry, at its
    latest interaction. User 0, the OOV index, has an empty history.

    Example:
        >>> histories = Histories.collect(
        ...     np.array([1, 2, 1]), np.array([5, 5, 4]), np.array([0, 0, 9]), np.ones(3), user_count=2, item_count=5
        ... )
        >>> histories.items, histories.starts
        (array([5, 4, 5]), array([0, 0, 2, 3]))
    """

    items: np.ndarray
    """int64 [H]: vocabulary indices of items."""
    deviations: np.ndarray
    """float32 [H]: the label minus the item's damped mean. The user's mean is not subtracted: the deviations of a user
    would then sum to 0, and the others would reveal the label of the one that leave-one-out excludes."""
    times: np.ndarray
    """int64 [H]: seconds."""
    starts: np.ndarray
    """int64 [U + 2]: the entries of user `u` are `starts[u]` to `starts[u + 1]`, exclusive."""

    @classmethod
    def collect(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        times: np.ndarray,
        labels: np.ndarray,
        *,
        user_count: int,
        item_count: int,
    ) -> Histories:
        """Build histories from interactions without sampled negatives.

        Args:
            users: int64 [R]: vocabulary indices of users.
            items: int64 [R]: vocabulary indices of items.
            times: int64 [R]: seconds. Interactions with equal times keep their order.
            labels: float32 [R]
            user_count: U
            item_count: N, the highest item index.
        """
        mean = labels.mean(dtype=np.float64) if len(labels) else 0.0
        item_means = mean + damped_biases(items, labels - mean, item_count)
        known = np.flatnonzero((users > 0) & (items > 0))
        order = known[np.lexsort((times[known], users[known]))]
        # `np.unique` returns the first occurrence: in the reversed order that is the latest interaction.
        pairs = (users * (item_count + 1) + items)[order]
        _, last_index = np.unique(pairs[::-1], return_index=True)
        kept = order[np.sort(len(order) - 1 - last_index)]
        return cls(
            items=items[kept],
            deviations=(labels[kept] - item_means[items[kept]]).astype(np.float32),
            times=times[kept],
            starts=np.searchsorted(users[kept], np.arange(user_count + 2)),
        )

    def windows(self, users: np.ndarray, items: np.ndarray, times: np.ndarray, history: History) -> np.ndarray:
        """Return the range of entries that is the history of each interaction.

        Args:
            users: int64 [R]: vocabulary indices of users.
            items: int64 [R]: vocabulary indices of items.
            times: int64 [R]: seconds.
            history: The recipe's history feature: its maximum length and its order.

        Returns:
            int64 [R, 3]: first entry, last entry (exclusive), and the entry of the interaction's own item, which
            leave-one-out excludes; -1 where the range has no such entry.
        """
        begin, end = self.starts[users], self.starts[users + 1]
        if history.order == "earlier":
            owners = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
            first = min(self.times.min(initial=0), times.min(initial=0))
            span = max(self.times.max(initial=0), times.max(initial=0)) - first + 1
            end = np.searchsorted(owners * span + (self.times - first), users * span + (times - first))
        begin = np.maximum(begin, end - history.max_length)
        own = self._positions(users, items)
        own[(own < begin) | (own >= end)] = -1
        return np.stack([begin, end, own], axis=1)

    def _positions(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return the entry of each user's item, int64 [R]; -1 where the user's history does not have the item."""
        if not len(self.items):
            return np.full(len(users), -1)
        owners = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        width = max(self.items.max(), items.max(initial=0)) + 1
        keys = owners * width + self.items
        order = np.argsort(keys)
        pairs = users * width + items
        nearest = order[np.minimum(np.searchsorted(keys, pairs, sorter=order), len(keys) - 1)]
        return np.where(keys[nearest] == pairs, nearest, -1)


class HistoryBatches:
    """Gathers the histories of a batch's users, inside a `tf.data` graph.

    Example:
        >>> gather = HistoryBatches(data.histories, History(column="item", kind="history"))
        >>> gather(tf.constant([1, 1], tf.int64), tf.constant([[0, 2, 0], [0, 2, 1]], tf.int64))["user"].numpy()
        array([0, 0])
    """

    def __init__(self, histories: Histories, history: History) -> None:
        """
        Args:
            histories: The histories of all users.
            history: The recipe's history feature.
        """
        self._items = tf.constant(histories.items)
        self._deviations = tf.constant(histories.deviations)
        self._starts = tf.constant(histories.starts)
        # With `order: earlier` an early interaction needs entries that are older than the latest `max_length`.
        self._length = history.max_length if history.order != "earlier" else None

    def __call__(self, users: tf.Tensor, windows: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the input of `HistoryEmbedding` for a batch.

        Each user's items are gathered once, regardless of the user's number of interactions in the batch.

        Args:
            users: int64 [B]: vocabulary indices of users.
            windows: int64 [B, 3], from `Histories.windows`.
        """
        unique, group = tf.unique(users, out_idx=tf.int64)
        starts, limits = tf.gather(self._starts, unique), tf.gather(self._starts, unique + 1)
        if self._length is not None:
            starts = tf.maximum(starts, limits - self._length)
        entries = tf.ragged.range(starts, limits)
        shift = tf.gather(entries.row_starts() - starts, group)
        begin, end, own = tf.unstack(windows, axis=1)
        return {
            "items": tf.gather(self._items, entries.flat_values),
            "deviations": tf.gather(self._deviations, entries.flat_values),
            "users": value_rowids(entries),
            "user": group,
            "begin": begin + shift,
            "end": end + shift,
            "own": tf.where(own >= 0, own + shift, own),
        }


def whole_histories(items: tf.RaggedTensor, deviations: tf.RaggedTensor) -> dict[str, tf.Tensor]:
    """Return the input of `HistoryEmbedding` for complete histories, without leave-one-out.

    Args:
        items: int64 [B, None]: vocabulary indices of items, ordered by time.
        deviations: float32 [B, None]: the label minus the item's damped mean.

    Example:
        >>> items = tf.ragged.constant([[3, 5], [4]], tf.int64, row_splits_dtype=tf.int64)
        >>> history = whole_histories(items, tf.zeros_like(items, tf.float32))
        >>> history["end"].numpy(), history["own"].numpy()
        (array([2, 3]), array([-1, -1]))
    """
    rows = items.nrows()
    return {
        "items": items.flat_values,
        "deviations": deviations.flat_values,
        "users": value_rowids(items),
        "user": tf.range(rows),
        "begin": items.row_starts(),
        "end": items.row_limits(),
        "own": tf.fill([rows], tf.constant(-1, tf.int64)),
    }
