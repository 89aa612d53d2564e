"""The input pipeline of training: shuffled batches as a `tf.data.Dataset`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from components.trainer.data.histories import HistoryBatches
from components.trainer.data.training_data import TrainingData

SECONDS_PER_DAY = 86_400


def batches(
    data: TrainingData,
    batch_size: int,
    seed: int,
    *,
    recency_half_life_days: float | None = None,
    rating_recency_half_life_days: float | None = None,
) -> tf.data.Dataset:
    """Return a dataset of shuffled batches, reshuffled each epoch.

    Args:
        data: The interactions.
        batch_size: Interactions per batch.
        seed: Random seed of the order.
        recency_half_life_days: Age, relative to the latest interaction, at which an interaction has half the weight
            in the retrieval loss. None for equal weights.
        rating_recency_half_life_days: The same for the rating loss.

    Returns:
        Dictionaries with the query features by name (the history as the input of `HistoryEmbedding`), `item` int64
        [batch] and `label` float32 [batch]; with sampled negatives also `positive` bool [batch]; with half-lives also
        `weight` and `rating_weight` float32 [batch], 1 for the latest interaction.

    Example:
        >>> batch = next(iter(batches(data, batch_size=64, seed=0)))
        >>> batch["item"].shape, batch["label"].dtype
        (TensorShape([64]), tf.float32)
    """
    columns = {name: tf.constant(values) for name, values in data.query.items()}
    columns["item"] = tf.constant(data.items)
    columns["label"] = tf.constant(data.labels)
    if data.has_negatives:
        columns["positive"] = tf.constant(data.positive)
    half_lives = {"weight": recency_half_life_days, "rating_weight": rating_recency_half_life_days}
    age = (data.times.max() - data.times) / SECONDS_PER_DAY
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
        # All row numbers are shuffled in one op and rows are gathered by batch: this is cheaper than shuffling rows,
        # and than a shuffle buffer, which takes 160 bytes per row.
        shuffled = tf.random.experimental.stateless_shuffle(
            tf.range(rows, dtype=tf.int64), seed=tf.stack([order, seed])
        )
        return (
            tf.data.Dataset.from_tensor_slices(shuffled)
            .batch(batch_size)
            .map(gather, num_parallel_calls=tf.data.AUTOTUNE)
        )

    orders = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).take(1)
    return orders.flat_map(epoch).prefetch(tf.data.AUTOTUNE)
