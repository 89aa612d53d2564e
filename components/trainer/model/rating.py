"""The rating head: global mean, user and item biases, and the inner product or MLP of both sides' vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from components.trainer.data.damping import damped_biases
from components.trainer.data.training_data import TrainingData
from components.trainer.model.towers import FeatureTower, LayerStack, TowerOutput, weight_penalty
from recipe.features import AnyFeature, Identifier
from recipe.model import DAMPING, RatingHead, Tower

PROJECTION_SCALE = 0.09
"""Variance scale of the projections' initial weights if the head has biases: initial predictions are then close to the
damped means, although the retrieval task makes the towers' vectors large."""

MakeTower = Callable[[Sequence[AnyFeature], str, Tower, int, float | None], FeatureTower]
"""Creates a tower from features, name, section of the recipe, width, and standard deviation of the initial embeddings;
None for the recipe's standard deviation."""


class BiasTable(tf.keras.layers.Layer):
    """A bias per index: a fixed initial value plus a trained change.

    They are separate so that weight decay and L2 shrink towards the initial value and not towards 0.

    Example:
        >>> biases, changes = BiasTable("user_bias", np.array([0.0, 0.5, -0.5]))(tf.constant([1, 2], tf.int64))
        >>> biases.numpy(), changes.numpy()
        (array([ 0.5, -0.5], dtype=float32), array([0., 0.], dtype=float32))
    """

    def __init__(self, name: str, start: np.ndarray) -> None:
        """
        Args:
            name: Name of the layer.
            start: float [N + 1]: the initial values.
        """
        super().__init__(name=name, dtype="float32")
        initial = tf.constant_initializer(start)
        self._start = self.add_weight(name="start", shape=start.shape, initializer=initial, trainable=False)
        self._change = self.add_weight(name="change", shape=start.shape, initializer="zeros")

    def call(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the biases of indices int64 [...] and the trained change of each, float32 [...]."""
        change = tf.gather(self._change, indices)
        return tf.gather(self._start, indices) + change, change


class RatingSide(NamedTuple):
    """The rating head's encoding of queries or of items."""

    factors: tf.Tensor
    """float32 [batch, r]"""
    bias: tf.Tensor
    """float32 [batch]: the user bias, or the global mean plus the item bias; 0 if the head has no biases."""
    penalty: tf.Tensor
    """float32 [batch]: the row's regularization loss."""


class RatingPredictor(tf.keras.layers.Layer):
    """Predicts ratings: global mean + user bias + item bias + inner product or MLP of both sides' factors.

    The biases are initialized with the damped means of the train split (Koren 2010, doi:10.1145/1644873.1644874), and
    the other term is close to 0, so that training starts at this baseline. All computations are float32, except in
    towers and dense layers under a mixed-precision policy.

    Example:
        >>> query = model.encode_query({name: tf.constant(values[:2]) for name, values in data.query.items()})
        >>> item = model.encode_items(tf.constant([1, 2], tf.int64))
        >>> model.rating_head(query.rating, item.rating, query.bias + item.bias).shape
        TensorShape([2])
    """

    def __init__(
        self,
        head: RatingHead,
        data: TrainingData,
        query_features: Sequence[AnyFeature],
        candidate_features: Sequence[AnyFeature],
        make_tower: MakeTower,
    ) -> None:
        """
        Args:
            head: The section `model.rating_head` of the recipe.
            data: The train split, for the initial biases.
            query_features: The query features.
            candidate_features: The candidate features.
            make_tower: Creates the head's own towers.
        """
        super().__init__(name="rating_head", autocast=False)
        self._head = head
        self._user_bias = self._item_bias = None
        if head.biases:
            mean, user_bias, item_bias = damped_means(data, head.user_damping, head.item_damping, head.bias_rounds)
            self._user_bias = BiasTable("user_bias", user_bias)
            self._item_bias = BiasTable("item_bias", mean + item_bias)
        self._query_tower = self._candidate_tower = self._query_terms = self._candidate_terms = None
        if head.inputs != "shared":
            sides = (query_features, "rating_query", head.query_tower), (
                candidate_features, "rating_candidate", head.candidate_tower
            )  # fmt: skip
            self._query_tower, self._candidate_tower = (
                make_tower(features, f"{name}_tower", tower, head.dimension, None) for features, name, tower in sides
            )
            if head.linear:
                self._query_terms, self._candidate_terms = (
                    self._first_order_terms(features, f"{name}_terms", tower, make_tower)
                    for features, name, tower in sides
                )
        self._dropout = tf.keras.layers.Dropout(head.dropout, dtype="float32")
        self._project_query = self._project_item = None
        if head.kind == "dot" and head.inputs != "own":
            self._project_query, self._project_item = (
                tf.keras.layers.Dense(
                    head.dimension,
                    kernel_initializer=(
                        tf.keras.initializers.VarianceScaling(PROJECTION_SCALE, "fan_in", "untruncated_normal")
                        if head.biases
                        else "glorot_uniform"
                    ),
                    kernel_regularizer=weight_penalty(head.l2),
                    name=name,
                )
                for name in ("query_projection", "item_projection")
            )
        if head.kind == "mlp":
            output = tf.keras.layers.Dense(
                1,
                kernel_initializer="zeros" if head.biases else "glorot_uniform",
                kernel_regularizer=weight_penalty(head.l2),
                dtype="float32",
                name="output",
            )
            self._layers = LayerStack(head, head.layers, output, name="mlp")

    def query(
        self, user: tf.Tensor, vectors: tf.Tensor, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> RatingSide:
        """Encode queries.

        Args:
            user: int64 [batch]: vocabulary indices of users.
            vectors: float32 [batch, width]: output of the query tower.
            features: Query features by name, as the input of `FeatureTower`.
            training: Whether to apply dropout.
        """
        own = self._query_tower(features, training=training) if self._query_tower is not None else None
        terms = self._query_terms(features, training=training) if self._query_terms is not None else None
        return self._side(user, self._user_bias, vectors, self._project_query, own, terms)

    def item(
        self, item: tf.Tensor, vectors: tf.Tensor, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> RatingSide:
        """Encode items.

        Args:
            item: int64 [batch]: vocabulary indices of items.
            vectors: float32 [batch, width]: output of the candidate tower.
            features: Candidate features by name, as the input of `FeatureTower`.
            training: Whether to apply dropout.
        """
        own = self._candidate_tower(features, training=training) if self._candidate_tower is not None else None
        terms = self._candidate_terms(features, training=training) if self._candidate_terms is not None else None
        return self._side(item, self._item_bias, vectors, self._project_item, own, terms)

    def _side(
        self,
        indices: tf.Tensor,
        biases: BiasTable | None,
        shared: tf.Tensor,
        projection: tf.keras.layers.Dense | None,
        own: TowerOutput | None,
        terms: TowerOutput | None,
    ) -> RatingSide:
        bias = penalty = tf.zeros(tf.shape(indices))
        if biases is not None:
            bias, change = biases(indices)
            if self._head.bias_l2:
                penalty += self._head.bias_l2 * tf.square(change)
        parts = []
        if self._head.inputs != "own":
            parts.append(tf.cast(projection(shared), tf.float32) if projection is not None else shared)
        if own is not None:
            parts.append(own.vectors)
            penalty += own.penalty
        if terms is not None:
            bias += tf.squeeze(terms.vectors, axis=-1)
            penalty += terms.penalty
        if self._head.kind == "mlp":
            return RatingSide(tf.concat(parts, axis=-1), bias, penalty)
        factors = tf.add_n(parts)
        if self._head.factor_l2:
            penalty += self._head.factor_l2 * tf.reduce_sum(tf.square(factors), axis=-1)
        return RatingSide(factors, bias, penalty)

    def _first_order_terms(
        self, features: Sequence[AnyFeature], name: str, tower: Tower, make_tower: MakeTower
    ) -> FeatureTower | None:
        """Return a tower of width 1 over the features of `tower`, initialized to 0; None if all of them are ids."""
        chosen = [f for f in features if tower.features is None or f.name in tower.features]
        named = tuple(f.name for f in chosen if not (self._head.biases and isinstance(f, Identifier)))
        if not named:
            return None
        sums = Tower(features=named, combine="sum", projection=False, embedding_l2=tower.embedding_l2)
        return make_tower(features, name, sums, 1, 0.0)

    def call(self, query: tf.Tensor, item: tf.Tensor, bias: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Predict ratings, float32 [...].

        Args:
            query: float32 [..., r]: factors of queries.
            item: float32 [..., r]: factors of items. Leading dimensions are equal or broadcast.
            bias: float32 [...]: sum of both sides' biases.
            training: Whether to apply dropout.
        """
        if self._head.kind == "dot":
            # Dropout on the products, which is equal to dropout of the same factors on both sides.
            return bias + tf.reduce_sum(self._dropout(query * item, training=training), axis=-1)
        sides = [tf.broadcast_to(side, tf.concat([tf.shape(bias), side.shape[-1:]], axis=0)) for side in (query, item)]
        return bias + tf.squeeze(self._layers(tf.concat(sides, axis=-1), training=training), axis=-1)


def damped_means(
    data: TrainingData, user_damping: float = DAMPING, item_damping: float = DAMPING, rounds: int = 1
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the damped means of Koren 2010, or biases closer to the joint ridge regression.

    The first round computes item biases, and user biases from the residuals. Each further round fits either side to
    the residuals of the other (alternating least squares; Koren, Bell and Volinsky 2009, doi:10.1109/MC.2009.263),
    which minimizes the squared errors plus `user_damping` and `item_damping` times the squared biases.

    Args:
        data: The train split.
        user_damping: Number of pseudo-ratings at the prior mean added to each user's mean.
        item_damping: The same for items.
        rounds: Number of rounds.

    Returns:
        Global mean, user biases [U + 1] and item biases [N + 1]. After more than one round the user biases are centered
        over all ratings, so that 0, the bias of a new user, is their mean.

    Example:
        >>> mean, user_bias, item_bias = damped_means(data)
        >>> user_bias.shape, item_bias.shape
        ((41,), (131,))
    """
    mean = float(data.labels.mean())
    user_bias = np.zeros(data.user_count + 1)
    for _ in range(rounds):
        item_bias = damped_biases(data.items, data.labels - mean - user_bias[data.users], data.item_count, item_damping)
        user_bias = damped_biases(data.users, data.labels - mean - item_bias[data.items], data.user_count, user_damping)
    if rounds > 1:
        level = float(user_bias[data.users].mean())
        mean += level
        user_bias[np.unique(data.users)] -= level
    return mean, user_bias, item_bias
