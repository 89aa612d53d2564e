"""Training data as shuffled batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from components.trainer.data.histories import HistoryBatches
from components.trainer.data.training_data import TrainingData

SECONDS_A_DAY = 86_400


def batches(
    data: TrainingData,
    batch_size: int,
    seed: int,
    *,
    recency_half_life_days: float | None = None,
    rating_recency_half_life_days: float | None = None,
) -> tf.data.Dataset:
    """Shuffled batches in a new order every epoch.

    Args:
        data: The interactions.
        batch_size: Interactions a batch.
        seed: Of the order.
        recency_half_life_days: Where given, how much older than the latest interaction one must be to weigh half for
            retrieval.
        rating_recency_half_life_days: The same for ratings.

    Returns:
        Query features by name (the history as `HistoryEmbedding` takes it), `item` int64 [batch], `label` float32
        [batch] and, where the data has sampled negatives, `positive` bool [batch], and with half-lives `weight` and
        `rating_weight` float32 [batch], 1 for the latest interaction.
    """
    columns = {name: tf.constant(values) for name, values in data.query.items()}
    columns["item"] = tf.constant(data.items)
    columns["label"] = tf.constant(data.labels)
    if data.has_negatives:
        columns["positive"] = tf.constant(data.positive)
    half_lives = {"weight": recency_half_life_days, "rating_weight": rating_recency_half_life_days}
    age = (data.times.max() - data.times) / SECONDS_A_DAY
    for name, half_life in half_lives.items():
        if half_life is not None:
            columns[name] = tf.constant(np.exp2(-age / half_life).astype(np.float32))
    history = data.history.name if data.history is not None else ""
    histories = HistoryBatches(data.histories, data.history) if data.history is not None else None

    def gather(chosen: tf.Tensor) -> dict[str, Any]:
        batch = {name: tf.gather(values, chosen) for name, values in columns.items()}
        if histories is not None:
            batch[history] = histories(batch[data.user_feature], batch[history])
        return batch

    rows = len(data.labels)

    def epoch(order: tf.Tensor) -> tf.data.Dataset:
        # Row numbers are shuffled, all at once, and rows gathered a batch at a time: much cheaper than shuffling rows
        # one by one, or than a buffer to shuffle in, which has 160 bytes a row.
        places = tf.random.experimental.stateless_shuffle(tf.range(rows, dtype=tf.int64), seed=tf.stack([order, seed]))
        return (
            tf.data.Dataset.from_tensor_slices(places)
            .batch(batch_size)
            .map(gather, num_parallel_calls=tf.data.AUTOTUNE)
        )

    orders = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).take(1)
    return orders.flat_map(epoch).prefetch(tf.data.AUTOTUNE)
