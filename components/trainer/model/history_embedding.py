"""The history feature as a Keras layer: embeddings of a user's items, pooled into one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from recipe.features import History


class HistoryEmbedding(tf.keras.layers.Layer):
    """Embeds and pools histories to vectors, float32 [batch, dimension]; an empty history is all zeros.

    The input is a mapping of tensors. The histories of the batch's users are concatenated to P entries:

        items, deviations   int64 [P], float32 [P]: item and deviation of each entry; item 0, the OOV index, is ignored
        users               int64 [P]: user of each entry, as a position among the batch's users
        user                int64 [batch]: user of each row, as a position among the batch's users
        begin, end          int64 [batch]: range of entries of each row, the end exclusive
        own                 int64 [batch]: entry that leave-one-out excludes from each row; -1 for none
        masked              bool [batch], optional: rows whose history is treated as empty

    Example:
        >>> layer = HistoryEmbedding(History(column="item", kind="history"), item_count=5, dimension=8, stddev=0.05)
        >>> items = tf.ragged.constant([[3, 5], [4]], tf.int64, row_splits_dtype=tf.int64)
        >>> layer(whole_histories(items, tf.zeros_like(items, tf.float32))).shape
        TensorShape([2, 8])
    """

    def __init__(
        self, feature: History, item_count: int, dimension: int, stddev: float, name: str | None = None
    ) -> None:
        """
        Args:
            feature: The recipe's history feature.
            item_count: N, the highest item index.
            dimension: Dimension of the embeddings.
            stddev: Standard deviation of the initial embeddings.
            name: Name of the layer.
        """
        # No autocast to 16 bits, so that sums over long histories and the deviations keep their precision.
        super().__init__(name=name, autocast=False)
        self.feature = feature
        self._dimension = dimension

        def table(name: str) -> tf.Variable:
            # A shared initializer would give both tables the same values.
            initial = tf.keras.initializers.RandomNormal(stddev=stddev)
            return self.add_weight(name=name, shape=(item_count + 1, dimension), initializer=initial)

        self._table = table("items")
        self._deviation_table = table("deviations") if feature.labels else None
        if feature.pooling == "attention":
            self._attention = tf.keras.layers.Dense(1, use_bias=False)
        elif feature.pooling == "gru":
            self._gru = tf.keras.layers.GRU(dimension)

    def call(self, history: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Return the pooled vectors, float32 [batch, dimension]."""
        items = history["items"]
        weights = tf.cast(items > 0, tf.float32)
        if training and self.feature.dropout:
            weights *= tf.cast(tf.random.uniform(tf.shape(items)) >= self.feature.dropout, tf.float32)
        begin, end, own = history["begin"], history["end"], history["own"]
        if "masked" in history:
            end = tf.where(history["masked"], begin, end)
            own = tf.where(history["masked"], tf.constant(-1, own.dtype), own)
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
        """Divide sums [batch, dimension] by the number of items [batch, 1], or by its square root."""
        count = tf.maximum(count, 1.0)
        return total / (tf.sqrt(count) if self.feature.pooling == "sum_sqrt" else count)

    def _over_windows(
        self, vectors: tf.Tensor, weights: tf.Tensor, begin: tf.Tensor, end: tf.Tensor, own: tf.Tensor
    ) -> tf.Tensor:
        """Pool by attention or GRU over dense windows, padded to the longest history of the batch."""
        # At least 1, because neither the softmax nor the GRU accepts an empty axis.
        length = tf.maximum(tf.reduce_max(end - begin), 1)
        entries = tf.expand_dims(begin, axis=1) + tf.expand_dims(tf.range(length), axis=0)
        inside = (entries < tf.expand_dims(end, axis=1)) & (entries != tf.expand_dims(own, axis=1))
        # Entry 0 is padding.
        entries = tf.where(inside, entries + 1, 0)
        mask = tf.gather(tf.pad(weights, [[1, 0]]), entries) > 0
        rows = tf.gather(tf.pad(vectors, [[1, 0], [0, 0]]), entries)
        rows = tf.ensure_shape(rows, [None, None, self._dimension])
        if self.feature.pooling == "gru":
            return tf.cast(self._gru(rows, mask=mask), tf.float32)
        logits = tf.cast(tf.squeeze(self._attention(rows), axis=-1), tf.float32)
        attention = tf.nn.softmax(tf.where(mask, logits, logits.dtype.min), axis=1) * tf.cast(mask, tf.float32)
        return tf.reduce_sum(rows * tf.expand_dims(attention, axis=-1), axis=1)


def _rows(tables: Sequence[tuple[tf.Variable, tf.Tensor]], items: tf.Tensor) -> tf.Tensor:
    """Return the weighted sum of each item's rows in the tables, [P, dimension]."""
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
    """Return the sums and counts of `_between`, if the rows of a user differ in the excluded entry only.

    Each user's items are summed once, by a sparse matrix product with the table. Rows that are false in `some`, bool
    [batch], are all zeros.
    """
    entries = own + 1
    # Entry 0 is padding with weight 0, for rows that exclude no entry.
    own_items = tf.gather(tf.pad(items, [[1, 0]]), entries)
    # The batch has at most as many users as rows.
    count = tf.size(user, tf.int64)
    totals = []
    for table, values in tables:
        rows = tf.cast(table, tf.float32)
        shape = tf.stack([count, tf.shape(rows, tf.int64)[0]])
        summed = tf.sparse.sparse_dense_matmul(tf.SparseTensor(tf.stack([users, items], axis=1), values, shape), rows)
        own_values = tf.expand_dims(tf.gather(tf.pad(values, [[1, 0]]), entries), axis=1)
        totals.append(tf.gather(summed, user) - tf.gather(rows, own_items) * own_values)
    counts = tf.gather(tf.math.unsorted_segment_sum(weights, users, count), user)
    counts -= tf.gather(tf.pad(weights, [[1, 0]]), entries)
    mask = tf.cast(tf.expand_dims(some, axis=1), tf.float32)
    return mask * tf.add_n(totals), mask * tf.expand_dims(counts, axis=1)


def _between(values: tf.Tensor, begin: tf.Tensor, end: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
    """Return the sums of values [P, width] from `begin` to `end` without `own`, [batch, width]."""
    # From cumulative sums, because the ranges of a user's rows overlap.
    totals = tf.pad(tf.cumsum(values, axis=0), [[1, 0], [0, 0]])
    padded = tf.pad(values, [[1, 0], [0, 0]])
    return tf.gather(totals, end) - tf.gather(totals, begin) - tf.gather(padded, own + 1)
