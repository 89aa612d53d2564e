"""User history: which items each interaction's user has besides it, and their embeddings pooled into one vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from pipeline.recipe import History

# Labels of an item count for this many more at the global mean (Koren 2010, doi:10.1145/1644873.1644874).
DAMPING = 10.0


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
        above = np.bincount(items, weights=labels - mean, minlength=item_count + 1)
        item_means = mean + above / (np.bincount(items, minlength=item_count + 1) + DAMPING)
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
        # One more than the longest, so that the item that is left out costs none of the others.
        begin = np.maximum(begin, end - history.max_length - (history.order != "earlier"))
        own = self._places(users, items)
        own[(own < begin) | (own >= end)] = -1
        begin += (own < 0) & (end - begin > history.max_length)
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

    def __init__(self, histories: Histories) -> None:
        self._items = tf.constant(histories.items)
        self._deviations = tf.constant(histories.deviations)
        self._starts = tf.constant(histories.starts)

    def __call__(self, users: tf.Tensor, windows: tf.Tensor) -> dict[str, tf.Tensor]:
        """Users int64 [B] and windows int64 [B, 3] to the input of `HistoryEmbedding`.

        Every user's items are there once, however many interactions of theirs the batch has.
        """
        unique, group = tf.unique(users)
        starts = tf.gather(self._starts, unique)
        places = tf.ragged.range(starts, tf.gather(self._starts, unique + 1))
        shift = tf.gather(places.row_starts() - starts, group)
        begin, end, own = tf.unstack(windows, axis=1)
        return {
            "items": tf.gather(self._items, places.flat_values),
            "deviations": tf.gather(self._deviations, places.flat_values),
            "begin": begin + shift,
            "end": end + shift,
            "own": tf.where(own >= 0, own + shift, own),
        }


def whole_histories(items: tf.RaggedTensor, deviations: tf.RaggedTensor) -> dict[str, tf.Tensor]:
    """Rows of items int64 [B, None] and their deviations float32 [B, None] as the input of `HistoryEmbedding`."""
    return {
        "items": items.flat_values,
        "deviations": deviations.flat_values,
        "begin": items.row_starts(),
        "end": items.row_limits(),
        "own": tf.fill(tf.shape(items.row_starts()), tf.constant(-1, tf.int64)),
    }


class HistoryEmbedding(tf.keras.layers.Layer):
    """Histories to float32 [batch, dimension], pooled as the recipe says; an empty one is all zeros.

    The input is a mapping: `items` int64 [P] and `deviations` float32 [P], the histories one after another; `begin`,
    `end` int64 [batch], which of them are a row's; `own` int64 [batch], the place that a row leaves out or -1; and, if
    it is there, `hidden` bool [batch], the rows whose history counts as empty. Item 0, unknown, does not count.
    """

    def __init__(
        self, feature: History, item_count: int, dimension: int, stddev: float, name: str | None = None
    ) -> None:
        """
        Args:
            feature: The recipe's section.
            item_count: N, which items are numbered up to.
            dimension: Width of the vectors.
            stddev: Of the numbers that embeddings start with.
            name: Of the layer.
        """
        # Not cast to 16 bits: sums over long histories, and the deviations that they are multiplied with, stay exact.
        super().__init__(name=name, autocast=False)
        self.feature = feature
        self._dimension = dimension

        def table() -> tf.keras.layers.Embedding:
            initial = tf.keras.initializers.RandomNormal(stddev=stddev)
            return tf.keras.layers.Embedding(item_count + 1, dimension, embeddings_initializer=initial)

        self._table = table()
        self._deviation_table = table() if feature.labels else None
        if feature.pooling == "attention":
            self._attention = tf.keras.layers.Dense(1, use_bias=False)
        elif feature.pooling == "gru":
            self._gru = tf.keras.layers.GRU(dimension)

    def call(self, history: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        items = history["items"]
        weights = tf.cast(items > 0, tf.float32)
        if training and self.feature.dropout:
            weights *= tf.cast(tf.random.uniform(tf.shape(items)) >= self.feature.dropout, tf.float32)
        vectors = tf.cast(self._table(items), tf.float32)
        if self._deviation_table is not None:
            deviations = tf.expand_dims(history["deviations"], axis=1)
            vectors += tf.cast(self._deviation_table(items), tf.float32) * deviations
        begin, end, own = history["begin"], history["end"], history["own"]
        if "hidden" in history:
            end = tf.where(history["hidden"], begin, end)
            own = tf.where(history["hidden"], tf.constant(-1, own.dtype), own)
        if self.feature.pooling in ("attention", "gru"):
            pooled = self._over_windows(vectors, weights, begin, end, own)
        else:
            weights = tf.expand_dims(weights, axis=1)
            count = tf.maximum(_between(weights, begin, end, own), 1.0)
            total = _between(vectors * weights, begin, end, own)
            pooled = total / (tf.sqrt(count) if self.feature.pooling == "sum_sqrt" else count)
        return tf.cast(pooled, self.compute_dtype)

    def _over_windows(
        self, vectors: tf.Tensor, weights: tf.Tensor, begin: tf.Tensor, end: tf.Tensor, own: tf.Tensor
    ) -> tf.Tensor:
        # At least one place, so that neither the softmax nor the recurrence meets an empty axis.
        length = tf.maximum(tf.reduce_max(end - begin), 1)
        places = tf.expand_dims(begin, axis=1) + tf.expand_dims(tf.range(length), axis=0)
        inside = (places < tf.expand_dims(end, axis=1)) & (places != tf.expand_dims(own, axis=1))
        # Place 0 is a stand-in for what lies outside.
        places = tf.where(inside, places + 1, 0)
        mask = tf.gather(tf.pad(weights, [[1, 0]]), places) > 0
        rows = tf.gather(tf.pad(vectors, [[1, 0], [0, 0]]), places)
        rows = tf.ensure_shape(rows, [None, None, self._dimension])
        if self.feature.pooling == "gru":
            return tf.cast(self._gru(rows, mask=mask), tf.float32)
        logits = tf.cast(tf.squeeze(self._attention(rows), axis=-1), tf.float32)
        shares = tf.nn.softmax(tf.where(mask, logits, logits.dtype.min), axis=1) * tf.cast(mask, tf.float32)
        return tf.reduce_sum(rows * tf.expand_dims(shares, axis=-1), axis=1)


def _between(values: tf.Tensor, begin: tf.Tensor, end: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
    """Sums of values [P, width] from `begin` up to `end` without `own`, [batch, width]."""
    # Running totals: rows of one user overlap nearly whole, so adding up each for itself would cost far more.
    totals = tf.pad(tf.cumsum(values, axis=0), [[1, 0], [0, 0]])
    padded = tf.pad(values, [[1, 0], [0, 0]])
    return tf.gather(totals, end) - tf.gather(totals, begin) - tf.gather(padded, own + 1)
