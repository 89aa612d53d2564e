"""From an encoded query to a ranked list: retrieval, exclusion of items, re-ranking and predicted ratings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2

from components.trainer.data.ragged_ops import boolean_mask, value_rowids
from components.trainer.data.training_data import TrainingData
from components.trainer.export.query_encoder import QueryEncoder
from components.trainer.index.build import SAMPLE_SIZE, SampleQueries, build_index
from components.trainer.model.recommender import Encoded, TwoTaskRecommender
from recipe.serving import RankBy
from recipe.trainer import TrainerRecipe


class Ranked(NamedTuple):
    """The ranked lists of B requests, in the order in which they are served."""

    items: tf.Tensor
    """int64 [B, K]: vocabulary indices, padded with 0."""
    scores: tf.Tensor
    """float32 [B, K]: scores of the retrieval task; 0 for padding."""
    ratings: tf.Tensor
    """float32 [B, K]: predicted ratings; 0 for padding."""


class Ranks(NamedTuple):
    """Ranks of one item for each of B requests, int64 [B], counted from 0; -1 if there is none."""

    by_score: tf.Tensor
    """In the order of the scores."""
    served: tf.Tensor
    """In the order in which items are served: re-ranking changes the order of the first `Ranker.k` items only."""


class Ranker(tf.Module):
    """Retrieves items by score and re-ranks them by the recipe's `serving.rank_by`.

    Example:
        >>> queries = served.query_encoder.encode_stored(tf.constant([1, 2], tf.int64))
        >>> served.ranker.top_k(queries.query, k=5, excluded=queries.seen).items.shape
        TensorShape([2, 5])
    """

    def __init__(
        self,
        model: TwoTaskRecommender,
        data: TrainingData,
        recipe: TrainerRecipe,
        schema: schema_pb2.Schema,
        query_encoder: QueryEncoder,
    ) -> None:
        """Encode the catalogue and build the index; see `ServedRecommender` for the arguments.

        `query_encoder` provides the queries that an approximate index is calibrated with.
        """
        super().__init__(name="ranker")
        self.k = min(recipe.serving.k, data.item_count)
        """K, the number of items that `recommend` returns and re-ranks."""
        self._exclude_seen = recipe.serving.exclude_seen
        self._order = _order(recipe.serving.rank_by)
        self._bounds = label_bounds(schema, recipe.columns.label)
        self._predict_ratings = model.predict_ratings
        # A SavedModel saves the variables of tracked attributes; the layers of a bound method are not tracked.
        self._weights = model.rating_head.variables
        items = model.encode_items(tf.range(data.item_count + 1, dtype=tf.int64))
        sample_queries = functools.partial(self._sample_queries, query_encoder, data)
        self.index = build_index(recipe.serving.index, items.retrieval[1:], self.k, sample_queries, "index")
        self._item_rating = tf.Variable(items.rating, trainable=False, name="item_rating")
        self._item_bias = tf.Variable(items.bias, trainable=False, name="item_bias")

    def exclusions(self, seen: tf.RaggedTensor) -> tf.RaggedTensor | None:
        """Return the items to exclude, of those that users interacted with; None if `serving.exclude_seen` is false."""
        return seen if self._exclude_seen else None

    def top_k(
        self,
        query: Encoded,
        k: int | tf.Tensor,
        excluded: tf.RaggedTensor | None,
        only: tf.RaggedTensor | None = None,
    ) -> Ranked:
        """Return the top k items in the order in which they are served; a larger k appends items.

        Args:
            query: B encoded queries.
            k: Number of items, 1 to N; a Python int or an int32 scalar.
            excluded: As in `RetrievalIndex.search`.
            only: As in `RetrievalIndex.search`.
        """
        if self._order is None:
            return self._with_ratings(query, *self.index.search(query.retrieval, k, excluded, only))
        count = max(k, self.k) if isinstance(k, int) else tf.maximum(k, self.k)
        found = self._with_ratings(query, *self.index.search(query.retrieval, count, excluded, only))
        keys = self._order(Ranked(*(part[:, : self.k] for part in found)))
        order = tf.math.top_k(keys, k=self.k).indices
        return Ranked(
            *(
                tf.concat([tf.gather(part[:, : self.k], order, batch_dims=1), part[:, self.k :]], axis=1)[:, :k]
                for part in found
            )
        )

    def ranks(self, query: Encoded, item: tf.Tensor, seen: tf.RaggedTensor) -> tuple[Ranks, Ranks]:
        """Return the ranks of items, int64 [B]: among all items, and without other items in `seen`."""
        every, unseen = self.index.rank(query.retrieval, item, seen)
        if self._order is None:
            return Ranks(every, every), Ranks(unseen, unseen)
        own = tf.gather(item, value_rowids(seen))
        others = boolean_mask(seen, tf.not_equal(seen.flat_values, own))
        return (
            Ranks(every, self._served_rank(query, item, every, None)),
            Ranks(unseen, self._served_rank(query, item, unseen, others)),
        )

    def predict_ratings(self, query: Encoded, item: tf.Tensor) -> tf.Tensor:
        """Predict ratings, float32 [...], of items, int64 [...]; leading dimensions are equal or broadcast."""
        encoded = Encoded(
            retrieval=None,
            rating=tf.gather(self._item_rating.read_value(), item),
            bias=tf.gather(self._item_bias.read_value(), item),
        )
        return self.clip(self._predict_ratings(query, encoded))

    def clip(self, rating: tf.Tensor) -> tf.Tensor:
        """Clip ratings to the domain of the label in the schema, if it is bounded."""
        return tf.clip_by_value(rating, *self._bounds) if self._bounds else rating

    def _with_ratings(self, query: Encoded, items: tf.Tensor, scores: tf.Tensor) -> Ranked:
        ratings = self.predict_ratings(Encoded(*(tf.expand_dims(part, axis=1) for part in query)), items)
        return Ranked(items, scores, tf.where(items > 0, ratings, tf.zeros_like(ratings)))

    def _sample_queries(self, query_encoder: QueryEncoder, data: TrainingData) -> SampleQueries:
        """Return the queries of a sample of the train split's users, from their stored features and histories."""
        users = np.flatnonzero(np.diff(data.histories.starts)[1:]) + 1
        chosen = np.random.default_rng(0).permutation(users)[:SAMPLE_SIZE]
        sample = query_encoder.encode_stored(tf.constant(chosen, tf.int64))
        exclusions = self.exclusions(sample.seen)
        none = np.zeros(0, np.int64)
        return SampleQueries(
            sample.query.retrieval.numpy(), [none] * len(chosen) if exclusions is None else list(exclusions.numpy())
        )

    def _served_rank(
        self, query: Encoded, item: tf.Tensor, by_score: tf.Tensor, excluded: tf.RaggedTensor | None
    ) -> tf.Tensor:
        there = tf.equal(self.top_k(query, self.k, excluded).items, item[:, None])
        found = tf.logical_and(tf.reduce_any(there, axis=1), by_score >= 0)
        return tf.where(found, tf.argmax(there, axis=1), by_score)


def label_bounds(schema: schema_pb2.Schema, label: str) -> tuple[float, float] | None:
    """Return the smallest and the largest label of the schema's domain; None if an end is open.

    Example:
        >>> label_bounds(schema, "stars")
        (1.0, 5.0)
    """
    feature = next(feature for feature in schema.feature if feature.name == label)
    kind = feature.WhichOneof("domain_info")
    if kind not in ("float_domain", "int_domain"):
        return None
    domain = getattr(feature, kind)
    given = {field.name for field, _ in domain.ListFields()}
    return (float(domain.min), float(domain.max)) if {"min", "max"} <= given and domain.max > domain.min else None


def _order(rank_by: RankBy) -> Callable[[Ranked], tf.Tensor] | None:
    """Return a function to the sort keys of re-ranking, float32 [B, K]; None if retrieval's order is kept."""
    if not rank_by.rating:
        return None
    if not rank_by.score:
        return lambda found: _padding_last(found, found.ratings)
    return lambda found: _padding_last(
        found,
        rank_by.score * _standardized(found, found.scores) + rank_by.rating * _standardized(found, found.ratings),
    )


def _padding_last(found: Ranked, keys: tf.Tensor) -> tf.Tensor:
    return tf.where(found.items > 0, keys, keys.dtype.min)


def _standardized(found: Ranked, values: tf.Tensor) -> tf.Tensor:
    """Standardize the values of each row's items: zero mean, unit variance; 0 if all are equal."""
    there = tf.cast(found.items > 0, values.dtype)
    count = tf.reduce_sum(there, axis=1, keepdims=True)
    deviations = there * (values - tf.math.divide_no_nan(tf.reduce_sum(there * values, axis=1, keepdims=True), count))
    variance = tf.math.divide_no_nan(tf.reduce_sum(tf.square(deviations), axis=1, keepdims=True), count)
    return tf.math.divide_no_nan(deviations, tf.sqrt(variance))
