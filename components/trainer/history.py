"""User history: which items each interaction's user has besides it, and their embeddings pooled into one vector."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from components.trainer.damping import damped_biases
from components.trainer.ragged_rows import row_of_each
from pipeline.recipe import History


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


class HistoryEmbedding(tf.keras.layers.Layer):
    """Histories to float32 [batch, dimension], pooled as the recipe says; an empty one is all zeros.

    The input is a mapping: `items` int64 [P] and `deviations` float32 [P], the items of one user after another's;
    `users` int64 [P], whose they are, counted from 0; `user` int64 [batch], whose history each row has; `begin`, `end`
    int64 [batch], which places of the P those are; `own` int64 [batch], the place that a row leaves out or -1; and, if
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

        def table(name: str) -> tf.Variable:
            # One initializer for both would give them the same numbers.
            initial = tf.keras.initializers.RandomNormal(stddev=stddev)
            return self.add_weight(name=name, shape=(item_count + 1, dimension), initializer=initial)

        self._table = table("items")
        self._deviation_table = table("deviations") if feature.labels else None
        if feature.pooling == "attention":
            self._attention = tf.keras.layers.Dense(1, use_bias=False)
        elif feature.pooling == "gru":
            self._gru = tf.keras.layers.GRU(dimension)

    def call(self, history: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        items = history["items"]
        weights = tf.cast(items > 0, tf.float32)
        if training and self.feature.dropout:
            weights *= tf.cast(tf.random.uniform(tf.shape(items)) >= self.feature.dropout, tf.float32)
        begin, end, own = history["begin"], history["end"], history["own"]
        if "hidden" in history:
            end = tf.where(history["hidden"], begin, end)
            own = tf.where(history["hidden"], tf.constant(-1, own.dtype), own)
        tables = [(self._table, weights)]
        if self._deviation_table is not None:
            tables.append((self._deviation_table, weights * history["deviations"]))
        if self.feature.pooling in ("attention", "gru"):
            pooled = self._over_windows(_rows(tables, items), weights, begin, end, own)
        elif self.feature.order == "earlier":
            pooled = self._normalized(
                _between(_rows(tables, items), begin, end, own),
                _between(tf.expand_dims(weights, axis=1), begin, end, own),
            )
        else:
            pooled = self._normalized(
                *_of_users(tables, items, weights, history["users"], history["user"], own, end > begin)
            )
        return tf.cast(pooled, self.compute_dtype)

    def _normalized(self, total: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """Sums [batch, dimension] of as many items as `count`, [batch, 1]."""
        count = tf.maximum(count, 1.0)
        return total / (tf.sqrt(count) if self.feature.pooling == "sum_sqrt" else count)

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


def _rows(tables: Sequence[tuple[tf.Variable, tf.Tensor]], items: tf.Tensor) -> tf.Tensor:
    """The sum over tables of each item's row times its weight, [P, dimension]."""
    return tf.add_n(
        [tf.cast(tf.gather(table, items), tf.float32) * tf.expand_dims(weights, axis=1) for table, weights in tables]
    )


def _of_users(
    tables: Sequence[tuple[tf.Variable, tf.Tensor]],
    items: tf.Tensor,
    weights: tf.Tensor,
    users: tf.Tensor,
    user: tf.Tensor,
    own: tf.Tensor,
    some: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """What `_between` gives where rows of one user differ in their own item only; rows without `some` get nothing.

    Each user's items are added up once, as a product of a sparse matrix with the table.
    """
    places = own + 1
    # A stand-in at the front, without weight, for rows that leave nothing out.
    own_items = tf.gather(tf.pad(items, [[1, 0]]), places)
    # No more users than rows.
    count = tf.size(user, tf.int64)
    totals = []
    for table, values in tables:
        rows = tf.cast(table, tf.float32)
        shape = tf.stack([count, tf.shape(rows, tf.int64)[0]])
        summed = tf.sparse.sparse_dense_matmul(tf.SparseTensor(tf.stack([users, items], axis=1), values, shape), rows)
        own_values = tf.expand_dims(tf.gather(tf.pad(values, [[1, 0]]), places), axis=1)
        totals.append(tf.gather(summed, user) - tf.gather(rows, own_items) * own_values)
    counts = tf.gather(tf.math.unsorted_segment_sum(weights, users, count), user)
    counts -= tf.gather(tf.pad(weights, [[1, 0]]), places)
    there = tf.cast(tf.expand_dims(some, axis=1), tf.float32)
    return there * tf.add_n(totals), there * tf.expand_dims(counts, axis=1)


def _between(values: tf.Tensor, begin: tf.Tensor, end: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
    """Sums of values [P, width] from `begin` up to `end` without `own`, [batch, width]."""
    # Running totals: rows of one user overlap, so adding up each for itself would cost far more.
    totals = tf.pad(tf.cumsum(values, axis=0), [[1, 0], [0, 0]])
    padded = tf.pad(values, [[1, 0], [0, 0]])
    return tf.gather(totals, end) - tf.gather(totals, begin) - tf.gather(padded, own + 1)
