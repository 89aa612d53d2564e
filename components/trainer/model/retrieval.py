"""The retrieval task: how towers' vectors become scores, and the softmax that training puts over them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from components.trainer.data.training_data import TrainingData
from recipe.model import RetrievalLoss

# Log of the copies of an item that the batch does not have; finite, because a gradient passes through it.
_NO_COPY = -1e9


class RetrievalFactors(tf.keras.layers.Layer):
    """Towers' vectors as factors whose product is the score: their product over the temperature, plus the item's bias.

    The bias is added after the temperature, and is one more factor: queries have a 1 for it. The temperature divides
    the query's vector, so that with `normalize` an item's has length 1. The bias starts at the log of the item's share
    of train, less the mean of that, which changes no softmax.
    """

    def __init__(self, config: RetrievalLoss, shares: np.ndarray) -> None:
        """
        Args:
            config: The recipe's section.
            shares: Each item's share of train, [N + 1], above 0.
        """
        super().__init__(name="retrieval_factors", dtype="float32")
        self._config = config
        self._item_bias = None
        if config.item_bias:
            start = np.log(shares) - np.log(shares).mean()
            self._item_bias = tf.keras.layers.Embedding(
                len(start),
                1,
                embeddings_initializer=tf.constant_initializer(start[:, None]),
                name="item_popularity",
                dtype="float32",
            )

    def query(self, vectors: tf.Tensor) -> tf.Tensor:
        """[batch, width] to [batch, D]"""
        vectors = self._normalized(vectors) / self._config.temperature
        return vectors if self._item_bias is None else tf.concat([vectors, tf.ones_like(vectors[:, :1])], axis=1)

    def item(self, items: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """Indices int64 [batch] and vectors [batch, width] to [batch, D]"""
        vectors = self._normalized(vectors)
        return vectors if self._item_bias is None else tf.concat([vectors, self._item_bias(items)], axis=1)

    def _normalized(self, vectors: tf.Tensor) -> tf.Tensor:
        return tf.math.l2_normalize(vectors, axis=-1) if self._config.normalize else vectors


class BatchSoftmax:
    """Softmax over the batch's items and uniformly drawn ones: `tfrs.tasks.Retrieval`, as a weighted mean of the rows.

    An item of a batch of B is any of train with probability p; one of M drawn uniformly of N is it with 1 / N. The
    correction is that of the mixture, (B p + M / N) / (B + M) (Yang et al. 2020, doi:10.1145/3366424.3386195).
    """

    def __init__(self, config: RetrievalLoss, shares: np.ndarray) -> None:
        """
        Args:
            config: The recipe's section.
            shares: Each item's share of train, [N + 1].
        """
        self._config = config
        self._shares = tf.constant(shares, tf.float32)
        self._item_count = len(shares) - 1
        with _full_precision():
            self._task = tfrs.tasks.Retrieval(
                batch_metrics=None,
                num_hard_negatives=config.hard_negatives,
                remove_accidental_hits=config.remove_accidental_hits,
            )

    def draw(self, training: bool) -> tf.Tensor:
        """Items drawn uniformly, int64 [M]; the same ones every time where `training` is False."""
        count = self._config.uniform_negatives
        if training:
            return tf.random.uniform([count], 1, self._item_count + 1, tf.int64)
        # NumPy's, because the same seed gives other numbers under XLA.
        return tf.constant(np.random.default_rng(0).integers(1, self._item_count + 1, count), tf.int64)

    def __call__(self, query: tf.Tensor, candidates: tf.Tensor, items: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """The loss, a float32 scalar; 0 where the weights add up to 0.

        Args:
            query: Factors of the queries, float32 [B, D], at least one.
            candidates: Factors of each query's item and then of the drawn ones, float32 [B + M, D].
            items: Their indices, int64 [B + M].
            weights: Of the queries, float32 [B].
        """
        probabilities = None
        if self._config.log_q_correction:
            probabilities = self._probabilities(items, tf.cast(tf.shape(query)[0], tf.float32))
        with _full_precision():
            summed = self._task(
                query,
                candidates,
                sample_weight=weights,
                candidate_sampling_probability=probabilities,
                candidate_ids=items,
                compute_metrics=False,
            )
        # TFRS sums the loss over the batch; the mean keeps learning rates independent of the batch size.
        return tf.math.divide_no_nan(summed, tf.reduce_sum(weights))

    def distinct_loss(
        self,
        query: tf.Tensor,
        candidates: tf.Tensor,
        items: tf.Tensor,
        places: tf.Tensor,
        weights: tf.Tensor,
        chosen: tf.Tensor,
    ) -> tf.Tensor:
        """The same loss from each item's factors once: equal columns of the softmax are one that counts for all.

        A batch has many copies of few items, so the table of scores has a fraction of the columns. Not with
        `hard_negatives`, which count copies.

        Args:
            query: Factors of the queries, float32 [B, D].
            candidates: Factors of U different items, float32 [U, D].
            items: Their indices, int64 [U].
            places: Where each query's item and then the drawn ones stand among them, int32 [B + M].
            weights: Of the queries, float32 [B].
            chosen: float32 [B], 1 for interactions and 0 for sampled negatives, whose items are no candidates.
        """
        own = places[: tf.shape(query)[0]]
        scores = tf.matmul(query, candidates, transpose_b=True)
        present = tf.concat([chosen, tf.ones([self._config.uniform_negatives])], axis=0)
        copies = tf.math.log(tf.math.unsorted_segment_sum(present, places, tf.size(items)))
        copies = tf.maximum(copies, _NO_COPY)
        offset = copies
        if self._config.log_q_correction:
            offset -= tf.math.log(tf.clip_by_value(self._probabilities(items, tf.reduce_sum(chosen)), 1e-6, 1.0))
        scores += offset
        own_copies = tf.gather(copies, own)
        if self._config.remove_accidental_hits:
            rows = tf.range(tf.size(own))
            scores = tf.tensor_scatter_nd_sub(scores, tf.stack([rows, own], axis=1), own_copies)
            own_copies = tf.zeros_like(own_copies)
        # What all copies of the true item have of the softmax, less what one of them has.
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=own, logits=scores) + own_copies
        weights *= chosen
        return tf.math.divide_no_nan(tf.reduce_sum(weights * losses), tf.reduce_sum(weights))

    def _probabilities(self, items: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """How likely items are drawn in a batch of `rows` interactions, relative to the likeliest of them."""
        mixture = rows * tf.gather(self._shares, items) + self._config.uniform_negatives / self._item_count
        # TFRS cuts probabilities off at 1e-6, and the softmax only sees their ratios: the largest becomes 1.
        return tf.math.divide_no_nan(mixture, tf.reduce_max(mixture))


def catalogue_softmax(
    query: tf.Tensor, catalogue: tf.Tensor, places: tf.Tensor, weights: tf.Tensor, hard_negatives: int | None = None
) -> tf.Tensor:
    """Weighted mean of the softmax losses over all N items, a float32 scalar; 0 where the weights add up to 0.

    Args:
        query: Factors of the queries, float32 [B, D].
        catalogue: Factors of all items, float32 [N, D].
        places: Where each query's item stands among them, int64 [B].
        weights: Of the queries, float32 [B].
        hard_negatives: How many other items count for each query, those with the highest scores; None for all.
    """
    scores = tf.matmul(query, catalogue, transpose_b=True)
    others = catalogue.shape[0] - 1
    if hard_negatives is not None and hard_negatives < others:
        own = tf.one_hot(places, others + 1, on_value=True, off_value=False)
        hardest, _ = tf.math.top_k(tf.where(own, scores.dtype.min, scores), k=hard_negatives)
        scores = tf.concat([tf.gather(scores, places[:, None], batch_dims=1), hardest], axis=1)
        places = tf.zeros_like(places)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=places, logits=scores)
    return tf.math.divide_no_nan(tf.reduce_sum(weights * losses), tf.reduce_sum(weights))


def item_probabilities(data: TrainingData) -> np.ndarray:
    """Each item's share of the interactions of train, [N + 1]; counted once more, so that none is 0."""
    frequencies = data.item_frequencies() + 1.0
    return frequencies / frequencies.sum()


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Keras layers made inside compute in 32 bits, whatever the global policy.

    TFRS makes the layers of its loss at each call and gives them no policy of their own; in float16 their smallest
    number, which stands for "not a negative", is minus infinity.
    """
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("float32")
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
