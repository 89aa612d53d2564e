"""The history feature as a Keras layer: embeddings of a user's items pooled into one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from recipe.features import History


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
