"""The retrieval task: scores from the towers' vectors, and the softmax losses over them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from components.trainer.data.training_data import TrainingData
from recipe.model import RetrievalLoss

# Log count of an item that is not a candidate; finite, because the gradient is computed through it.
_LOG_ZERO = -1e9


class RetrievalFactors(tf.keras.layers.Layer):
    """Converts the towers' vectors to factors whose inner product is the score.

    score = inner product of the vectors / temperature + item bias. The item bias is an additional factor, for which
    queries have a 1, so that it is not divided by the temperature. The temperature divides the query's vector, so that
    an item's vector has length 1 with `normalize`. The item bias is initialized with the centered log probability of
    the item in the train split.

    Example:
        >>> factors = RetrievalFactors(RetrievalLoss(), item_probabilities=np.full(6, 1 / 6))
        >>> factors.query(tf.ones([2, 4])).shape, factors.item(tf.constant([3], tf.int64), tf.ones([1, 4])).shape
        (TensorShape([2, 5]), TensorShape([1, 5]))
    """

    def __init__(self, config: RetrievalLoss, item_probabilities: np.ndarray) -> None:
        """
        Args:
            config: The section `model.retrieval` of the recipe.
            item_probabilities: float [N + 1], above 0: each item's fraction of the train split.
        """
        super().__init__(name="retrieval_factors", dtype="float32")
        self._config = config
        self._item_bias = None
        if config.item_bias:
            start = np.log(item_probabilities) - np.log(item_probabilities).mean()
            self._item_bias = tf.keras.layers.Embedding(
                len(start),
                1,
                embeddings_initializer=tf.constant_initializer(start[:, None]),
                name="item_popularity",
                dtype="float32",
            )

    def query(self, vectors: tf.Tensor) -> tf.Tensor:
        """Return the factors of queries, [batch, D], of the query tower's vectors, [batch, width]."""
        vectors = self._normalized(vectors) / self._config.temperature
        return vectors if self._item_bias is None else tf.concat([vectors, tf.ones_like(vectors[:, :1])], axis=1)

    def item(self, items: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """Return the factors of items, int64 [batch], of the candidate tower's vectors, [batch, width]: [batch, D]."""
        vectors = self._normalized(vectors)
        return vectors if self._item_bias is None else tf.concat([vectors, self._item_bias(items)], axis=1)

    def _normalized(self, vectors: tf.Tensor) -> tf.Tensor:
        return tf.math.l2_normalize(vectors, axis=-1) if self._config.normalize else vectors


class BatchSoftmax:
    """In-batch softmax with uniformly sampled negatives: `tfrs.tasks.Retrieval`, as a weighted mean over the rows.

    With B rows, of which an item has the probability p, and M negatives sampled uniformly from N items, the logQ
    correction is that of mixed negative sampling, (B p + M / N) / (B + M) (Yang et al. 2020,
    doi:10.1145/3366424.3386195).

    Example:
        >>> loss = BatchSoftmax(RetrievalLoss(), item_probabilities=np.full(6, 1 / 6))
        >>> factors, items = tf.eye(3, 4), tf.constant([1, 2, 3], tf.int64)
        >>> loss(factors, factors, items, weights=tf.ones([3])).shape
        TensorShape([])
    """

    def __init__(self, config: RetrievalLoss, item_probabilities: np.ndarray) -> None:
        """
        Args:
            config: The section `model.retrieval` of the recipe.
            item_probabilities: float [N + 1]: each item's fraction of the train split.
        """
        self._config = config
        self._item_probabilities = tf.constant(item_probabilities, tf.float32)
        self._item_count = len(item_probabilities) - 1
        with _full_precision():
            self._task = tfrs.tasks.Retrieval(
                batch_metrics=None,
                num_hard_negatives=config.hard_negatives,
                remove_accidental_hits=config.remove_accidental_hits,
            )

    def sample_negatives(self, training: bool) -> tf.Tensor:
        """Sample items uniformly, int64 [M]; always the same ones if `training` is false."""
        count = self._config.uniform_negatives
        if training:
            return tf.random.uniform([count], 1, self._item_count + 1, tf.int64)
        # NumPy's generator, because TensorFlow's gives other numbers for the same seed under XLA.
        return tf.constant(np.random.default_rng(0).integers(1, self._item_count + 1, count), tf.int64)

    def __call__(self, query: tf.Tensor, candidates: tf.Tensor, items: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Return the loss, float32 []; 0 if the weights sum to 0.

        Args:
            query: float32 [B, D]: factors of the queries; B is at least 1.
            candidates: float32 [B + M, D]: factors of each query's item, then of the sampled negatives.
            items: int64 [B + M]: vocabulary indices of the candidates.
            weights: float32 [B]: weights of the queries.
        """
        probabilities = None
        if self._config.log_q_correction:
            probabilities = self._sampling_probabilities(items, tf.cast(tf.shape(query)[0], tf.float32))
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
        positions: tf.Tensor,
        weights: tf.Tensor,
        positive: tf.Tensor,
    ) -> tf.Tensor:
        """Return the same loss, computed with one softmax column per distinct item.

        A batch has many duplicates of few items, so that the matrix of scores has fewer columns. `hard_negatives` is
        not supported, because it counts duplicates.

        Args:
            query: float32 [B, D]: factors of the queries.
            candidates: float32 [U, D]: factors of U distinct items.
            items: int64 [U]: vocabulary indices of the candidates.
            positions: int32 [B + M]: position among the candidates of each query's item, then of the sampled negatives.
            weights: float32 [B]: weights of the queries.
            positive: float32 [B]: 1 for interactions; 0 for sampled negatives of the rating task, which are neither
                queries nor candidates here.
        """
        own = positions[: tf.shape(query)[0]]
        scores = tf.matmul(query, candidates, transpose_b=True)
        present = tf.concat([positive, tf.ones([self._config.uniform_negatives])], axis=0)
        log_counts = tf.math.log(tf.math.unsorted_segment_sum(present, positions, tf.size(items)))
        log_counts = tf.maximum(log_counts, _LOG_ZERO)
        offset = log_counts
        if self._config.log_q_correction:
            offset -= tf.math.log(
                tf.clip_by_value(self._sampling_probabilities(items, tf.reduce_sum(positive)), 1e-6, 1.0)
            )
        scores += offset
        own_log_counts = tf.gather(log_counts, own)
        if self._config.remove_accidental_hits:
            rows = tf.range(tf.size(own))
            scores = tf.tensor_scatter_nd_sub(scores, tf.stack([rows, own], axis=1), own_log_counts)
            own_log_counts = tf.zeros_like(own_log_counts)
        # The cross-entropy is that of all duplicates of the item together; the loss is that of one of them.
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=own, logits=scores) + own_log_counts
        weights *= positive
        return tf.math.divide_no_nan(tf.reduce_sum(weights * losses), tf.reduce_sum(weights))

    def _sampling_probabilities(self, items: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Return the sampling probabilities of items in a batch of `rows` interactions, relative to the largest one."""
        mixture = rows * tf.gather(self._item_probabilities, items) + self._config.uniform_negatives / self._item_count
        # Scaled so that the largest is 1: the softmax depends on ratios only, and TFRS clips probabilities at 1e-6.
        return tf.math.divide_no_nan(mixture, tf.reduce_max(mixture))


def catalogue_softmax(
    query: tf.Tensor, catalogue: tf.Tensor, positions: tf.Tensor, weights: tf.Tensor, hard_negatives: int | None = None
) -> tf.Tensor:
    """Return the full softmax loss over the catalogue: a weighted mean over the rows, float32 [].

    It is 0 if the weights sum to 0.

    Args:
        query: float32 [B, D]: factors of the queries.
        catalogue: float32 [N, D]: factors of all items.
        positions: int64 [B]: position of each query's item in the catalogue, from 0.
        weights: float32 [B]: weights of the queries.
        hard_negatives: Number of negatives per query, those with the highest scores; None for all other items.

    Example:
        >>> factors = tf.eye(3)
        >>> round(float(catalogue_softmax(factors, factors, tf.range(3, dtype=tf.int64), tf.ones([3]))), 3)
        0.551
    """
    scores = tf.matmul(query, catalogue, transpose_b=True)
    others = catalogue.shape[0] - 1
    if hard_negatives is not None and hard_negatives < others:
        own = tf.one_hot(positions, others + 1, on_value=True, off_value=False)
        hardest, _ = tf.math.top_k(tf.where(own, scores.dtype.min, scores), k=hard_negatives)
        scores = tf.concat([tf.gather(scores, positions[:, None], batch_dims=1), hardest], axis=1)
        positions = tf.zeros_like(positions)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=positions, logits=scores)
    return tf.math.divide_no_nan(tf.reduce_sum(weights * losses), tf.reduce_sum(weights))


def item_probabilities(data: TrainingData) -> np.ndarray:
    """Return each item's fraction of the train split, float64 [N + 1], with add-one smoothing.

    Example:
        >>> probabilities = item_probabilities(data)
        >>> probabilities.shape, round(float(probabilities.sum()), 6)
        ((131,), 1.0)
    """
    frequencies = data.item_frequencies() + 1.0
    return frequencies / frequencies.sum()


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Set the global policy to float32 for the layers that are created within the context.

    TFRS creates the layers of its loss in each call with the global policy. In float16 the minimum float, with which
    they mask accidental hits, would become minus infinity.
    """
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("float32")
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
