"""Which items a request is answered, in which order, with which ratings: retrieval, items left out, re-ranking."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2

from components.trainer.data.ragged_rows import kept, row_of_each
from components.trainer.data.training_data import TrainingData
from components.trainer.export.remembered_users import RememberedUsers
from components.trainer.index.choice import SAMPLE_SIZE, Searches, build_index
from components.trainer.model.recommender import Encoded, TwoTaskRecommender
from recipe.serving import RankBy
from recipe.trainer import TrainerRecipe


class Ranked(NamedTuple):
    """The items that B requests are answered, in the order they are served."""

    items: tf.Tensor
    """int64 [B, K]: vocabulary indices, padded with 0."""
    scores: tf.Tensor
    """float32 [B, K]: of retrieval; 0 for padding."""
    ratings: tf.Tensor
    """float32 [B, K]: predicted; 0 for padding."""


class Places(NamedTuple):
    """Places of one item for each of B requests, int64 [B]: the first is 0, and -1 says that there is none."""

    by_score: tf.Tensor
    served: tf.Tensor
    """In the order they are served: only the first `Ranker.k` are put into another one than that of their scores."""


class Ranker(tf.Module):
    """Retrieves by score and orders what it found as the recipe says."""

    def __init__(
        self,
        model: TwoTaskRecommender,
        data: TrainingData,
        recipe: TrainerRecipe,
        schema: schema_pb2.Schema,
        users: RememberedUsers,
    ) -> None:
        """Computes the catalogue's vectors once; see `ServedRecommender`. An index is measured with the `users`."""
        super().__init__(name="ranker")
        self.k = min(recipe.serving.k, data.item_count)
        """K: how many items `recommend` answers, and how many of them are ordered anew."""
        self._exclude_seen = recipe.serving.exclude_seen
        self._order = _order(recipe.serving.rank_by)
        self._bounds = label_bounds(schema, recipe.columns.label)
        self._predict_ratings = model.predict_ratings
        # A SavedModel holds the variables of what it tracks; bound methods are not tracked.
        self._weights = model.rating_head.variables
        items = model.encode_items(tf.range(data.item_count + 1, dtype=tf.int64))
        searches = functools.partial(self._searches_of, users, data)
        self.index = build_index(recipe.serving.index, items.retrieval[1:], self.k, searches, "index")
        self._item_rating = tf.Variable(items.rating, trainable=False, name="item_rating")
        self._item_bias = tf.Variable(items.bias, trainable=False, name="item_bias")

    def left_out(self, seen: tf.RaggedTensor) -> tf.RaggedTensor | None:
        """Of the items that users have seen, those that they are not answered."""
        return seen if self._exclude_seen else None

    def top(
        self,
        query: Encoded,
        k: int | tf.Tensor,
        excluded: tf.RaggedTensor | None,
        only: tf.RaggedTensor | None = None,
    ) -> Ranked:
        """The first k items in the order they are served; a larger k only adds to them.

        Args:
            query: B requests.
            k: How many, from 1 to N; a Python int or an int32 scalar.
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

    def places(self, query: Encoded, item: tf.Tensor, seen: tf.RaggedTensor) -> tuple[Places, Places]:
        """Places of the items int64 [B], each always a candidate: among all items, and without those in `seen`."""
        every, unseen = self.index.rank(query.retrieval, item, seen)
        if self._order is None:
            return Places(every, every), Places(unseen, unseen)
        own = tf.gather(item, row_of_each(seen))
        others = kept(seen, tf.not_equal(seen.flat_values, own))
        return (
            Places(every, self._served_place(query, item, every, None)),
            Places(unseen, self._served_place(query, item, unseen, others)),
        )

    def rating(self, query: Encoded, item: tf.Tensor) -> tf.Tensor:
        """Ratings float32 [...] of items int64 [...] by queries whose leading dimensions are equal or broadcast."""
        encoded = Encoded(
            retrieval=None,
            rating=tf.gather(self._item_rating.read_value(), item),
            bias=tf.gather(self._item_bias.read_value(), item),
        )
        return self.within_bounds(self._predict_ratings(query, encoded))

    def within_bounds(self, rating: tf.Tensor) -> tf.Tensor:
        """Ratings cut off at the smallest and largest label that the schema allows."""
        return tf.clip_by_value(rating, *self._bounds) if self._bounds else rating

    def _with_ratings(self, query: Encoded, items: tf.Tensor, scores: tf.Tensor) -> Ranked:
        ratings = self.rating(Encoded(*(tf.expand_dims(part, axis=1) for part in query)), items)
        return Ranked(items, scores, tf.where(items > 0, ratings, tf.zeros_like(ratings)))

    def _searches_of(self, users: RememberedUsers, data: TrainingData) -> Searches:
        """What users of train who say nothing but who they are would be searched for."""
        known = np.flatnonzero(np.diff(data.histories.starts)[1:]) + 1
        chosen = np.random.default_rng(0).permutation(known)[:SAMPLE_SIZE]
        asked = users.ask_remembered(tf.constant(chosen, tf.int64))
        left_out = self.left_out(asked.seen)
        none = np.zeros(0, np.int64)
        return Searches(
            asked.query.retrieval.numpy(), [none] * len(chosen) if left_out is None else list(left_out.numpy())
        )

    def _served_place(
        self, query: Encoded, item: tf.Tensor, by_score: tf.Tensor, excluded: tf.RaggedTensor | None
    ) -> tf.Tensor:
        there = tf.equal(self.top(query, self.k, excluded).items, item[:, None])
        found = tf.logical_and(tf.reduce_any(there, axis=1), by_score >= 0)
        return tf.where(found, tf.argmax(there, axis=1), by_score)


def label_bounds(schema: schema_pb2.Schema, label: str) -> tuple[float, float] | None:
    """Smallest and largest label that the schema allows; None where it leaves an end open."""
    feature = next(feature for feature in schema.feature if feature.name == label)
    kind = feature.WhichOneof("domain_info")
    if kind not in ("float_domain", "int_domain"):
        return None
    domain = getattr(feature, kind)
    given = {field.name for field, _ in domain.ListFields()}
    return (float(domain.min), float(domain.max)) if {"min", "max"} <= given and domain.max > domain.min else None


def _order(rank_by: RankBy) -> Callable[[Ranked], tf.Tensor] | None:
    """What items are ordered by, largest first, float32 [B, K]; None where that is the order of retrieval."""
    if not rank_by.rating:
        return None
    if not rank_by.score:
        return lambda found: _padding_last(found, found.ratings)
    return lambda found: _padding_last(
        found,
        rank_by.score * _standardised(found, found.scores) + rank_by.rating * _standardised(found, found.ratings),
    )


def _padding_last(found: Ranked, keys: tf.Tensor) -> tf.Tensor:
    return tf.where(found.items > 0, keys, keys.dtype.min)


def _standardised(found: Ranked, values: tf.Tensor) -> tf.Tensor:
    """`values` less their mean, over their standard deviation, of each row's items; 0 where all are equal."""
    there = tf.cast(found.items > 0, values.dtype)
    count = tf.reduce_sum(there, axis=1, keepdims=True)
    deviations = there * (values - tf.math.divide_no_nan(tf.reduce_sum(there * values, axis=1, keepdims=True), count))
    variance = tf.math.divide_no_nan(tf.reduce_sum(tf.square(deviations), axis=1, keepdims=True), count)
    return tf.math.divide_no_nan(deviations, tf.sqrt(variance))
