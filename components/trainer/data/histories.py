"""Histories of interactions: the other items of each interaction's user in train, and those that a batch needs."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from components.trainer.data.damping import damped_biases
from components.trainer.data.ragged_rows import row_of_each
from recipe.features import History


@dataclasses.dataclass(frozen=True)
class Histories:
    """Every user's items, one user's after another's, each in order of time; an item stands at its latest interaction.

    `U` users, 1 to U, and `H` items in all. User 0, unknown, has none.
    """

    items: np.ndarray
    """int64 [H]: vocabulary indices."""
    deviations: np.ndarray
    """float32 [H]: how far the label lies above the item's damped mean. Without the user's own mean on purpose: the
    deviations from that add up to nothing, so the others would give away the label of the one that is left out."""
    times: np.ndarray
    """int64 [H]: seconds."""
    starts: np.ndarray
    """int64 [U + 2]: user `u` has the items from `starts[u]` up to `starts[u + 1]`."""

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
        """From interactions [R] in any order; sampled negatives must not be among them.

        Equal times keep the order of the interactions.
        """
        mean = labels.mean(dtype=np.float64) if len(labels) else 0.0
        item_means = mean + damped_biases(items, labels - mean, item_count)
        known = np.flatnonzero((users > 0) & (items > 0))
        order = known[np.lexsort((times[known], users[known]))]
        # The first of a reversed list is the last: an item touched twice counts once, at the later time.
        pairs = (users * (item_count + 1) + items)[order]
        _, from_behind = np.unique(pairs[::-1], return_index=True)
        kept = order[np.sort(len(order) - 1 - from_behind)]
        return cls(
            items=items[kept],
            deviations=(labels[kept] - item_means[items[kept]]).astype(np.float32),
            times=times[kept],
            starts=np.searchsorted(users[kept], np.arange(user_count + 2)),
        )

    def windows(self, users: np.ndarray, items: np.ndarray, times: np.ndarray, history: History) -> np.ndarray:
        """Which part of `items` the history of each interaction [R] is.

        Returns:
            int64 [R, 3]: where it begins, where it ends, and the place within it that is left out because it is the
            interaction's own item; -1 where there is none.
        """
        begin, end = self.starts[users], self.starts[users + 1]
        if history.order == "earlier":
            owners = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
            first = min(self.times.min(initial=0), times.min(initial=0))
            span = max(self.times.max(initial=0), times.max(initial=0)) - first + 1
            end = np.searchsorted(owners * span + (self.times - first), users * span + (times - first))
        begin = np.maximum(begin, end - history.max_length)
        own = self._places(users, items)
        own[(own < begin) | (own >= end)] = -1
        return np.stack([begin, end, own], axis=1)

    def _places(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """int64 [R]: where each user's item stands; -1 where the user has no such item."""
        if not len(self.items):
            return np.full(len(users), -1)
        owners = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        width = max(self.items.max(), items.max(initial=0)) + 1
        keys = owners * width + self.items
        order = np.argsort(keys)
        wanted = users * width + items
        nearest = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
        return np.where(keys[nearest] == wanted, nearest, -1)


class HistoryBatches:
    """Cuts the histories that a batch needs out of all of them, inside a `tf.data` graph."""

    def __init__(self, histories: Histories, history: History) -> None:
        self._items = tf.constant(histories.items)
        self._deviations = tf.constant(histories.deviations)
        self._starts = tf.constant(histories.starts)
        # Rows that see only what is earlier need their users' items from further back.
        self._length = history.max_length if history.order != "earlier" else None

    def __call__(self, users: tf.Tensor, windows: tf.Tensor) -> dict[str, tf.Tensor]:
        """Users int64 [B] and windows int64 [B, 3] to the input of `HistoryEmbedding`.

        Every user's items are there once, however many interactions of theirs the batch has.
        """
        unique, group = tf.unique(users, out_idx=tf.int64)
        starts, limits = tf.gather(self._starts, unique), tf.gather(self._starts, unique + 1)
        if self._length is not None:
            starts = tf.maximum(starts, limits - self._length)
        places = tf.ragged.range(starts, limits)
        shift = tf.gather(places.row_starts() - starts, group)
        begin, end, own = tf.unstack(windows, axis=1)
        return {
            "items": tf.gather(self._items, places.flat_values),
            "deviations": tf.gather(self._deviations, places.flat_values),
            "users": row_of_each(places),
            "user": group,
            "begin": begin + shift,
            "end": end + shift,
            "own": tf.where(own >= 0, own + shift, own),
        }


def whole_histories(items: tf.RaggedTensor, deviations: tf.RaggedTensor) -> dict[str, tf.Tensor]:
    """Rows of items int64 [B, None] and their deviations float32 [B, None] as the input of `HistoryEmbedding`."""
    rows = items.nrows()
    return {
        "items": items.flat_values,
        "deviations": deviations.flat_values,
        "users": row_of_each(items),
        "user": tf.range(rows),
        "begin": items.row_starts(),
        "end": items.row_limits(),
        "own": tf.fill([rows], tf.constant(-1, tf.int64)),
    }
