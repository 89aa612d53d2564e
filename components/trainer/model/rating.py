"""The rating head: damped means, and what the two sides have to say to each other beyond them."""

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
"""Of the variance of the towers' projections where there are biases: training starts near the damped means then, and
the towers' vectors, which retrieval makes large, count for ratings only as far as that helps."""

MakeTower = Callable[[Sequence[AnyFeature], str, Tower, int, float | None], FeatureTower]


class BiasTable(tf.keras.layers.Layer):
    """A number for each index: where it starts, plus what training adds to that.

    The two are apart so that weight decay and L2 pull towards the start and not towards 0.
    """

    def __init__(self, name: str, start: np.ndarray) -> None:
        super().__init__(name=name, dtype="float32")
        initial = tf.constant_initializer(start)
        self._start = self.add_weight(name="start", shape=start.shape, initializer=initial, trainable=False)
        self._change = self.add_weight(name="change", shape=start.shape, initializer="zeros")

    def call(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Indices int64 [...] to the numbers, float32 [...], and the part of them that training added."""
        change = tf.gather(self._change, indices)
        return tf.gather(self._start, indices) + change, change


class RatingSide(NamedTuple):
    """What the head knows of a query or of an item before they meet."""

    factors: tf.Tensor
    """float32 [batch, r]"""
    bias: tf.Tensor
    """float32 [batch]: the user's, or the mean rating with the item's; 0 where the recipe has no biases."""
    penalty: tf.Tensor
    """float32 [batch]: what the row adds to the loss for the sake of regularisation."""


class RatingPredictor(tf.keras.layers.Layer):
    """Global mean + user bias + item bias + what `kind` makes of both sides.

    The biases start at the damped means of train (Koren 2010), and what is added to them at nothing or nearly so:
    training only has to improve on that baseline. All of it is float32 but towers and dense layers.
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
            head: The recipe's section.
            data: What the biases start from.
            query_features: What is known of a request.
            candidate_features: What is known of an item.
            make_tower: Makes a tower over features, of a name, a section, a width, and a standard deviation of the
                numbers that its embeddings start with; None for that of the recipe.
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
        """Users int64 [batch], the retrieval tower's vectors [batch, width] and the query features."""
        own = self._query_tower(features, training=training) if self._query_tower is not None else None
        terms = self._query_terms(features, training=training) if self._query_terms is not None else None
        return self._side(user, self._user_bias, vectors, self._project_query, own, terms)

    def item(
        self, item: tf.Tensor, vectors: tf.Tensor, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> RatingSide:
        """Items int64 [batch], the retrieval tower's vectors [batch, width] and the candidate features."""
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
        """A tower of width 1 over the features of `tower`, all 0 at first; None where there are none but ids."""
        chosen = [f for f in features if tower.features is None or f.name in tower.features]
        named = tuple(f.name for f in chosen if not (self._head.biases and isinstance(f, Identifier)))
        if not named:
            return None
        sums = Tower(features=named, combine="sum", projection=False, embedding_l2=tower.embedding_l2)
        return make_tower(features, name, sums, 1, 0.0)

    def call(self, query: tf.Tensor, item: tf.Tensor, bias: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Factors of both sides float32 [..., r] and the sum of their biases [...] to ratings float32 [...].

        The leading dimensions must be equal or broadcast.
        """
        if self._head.kind == "dot":
            # A factor is left out as a whole, which is the same as leaving out its product.
            return bias + tf.reduce_sum(self._dropout(query * item, training=training), axis=-1)
        sides = [tf.broadcast_to(side, tf.concat([tf.shape(bias), side.shape[-1:]], axis=0)) for side in (query, item)]
        return bias + tf.squeeze(self._layers(tf.concat(sides, axis=-1), training=training), axis=-1)


def damped_means(
    data: TrainingData, user_damping: float = DAMPING, item_damping: float = DAMPING, rounds: int = 1
) -> tuple[float, np.ndarray, np.ndarray]:
    """The user and item means baseline of Koren 2010, or the ridge regression that it is the first step to.

    One round takes item biases first and user biases from what they leave. In every further one each side is fitted to
    what the other leaves, which minimises the squared errors plus `user_damping` and `item_damping` times the squared
    biases (alternating least squares; Koren, Bell and Volinsky 2009, doi:10.1109/MC.2009.263): a film is no longer
    taken for good because lenient people saw it.

    Args:
        data: Whose labels.
        user_damping: Ratings at the level of all that each user's count together with.
        item_damping: The same for items.
        rounds: How often the two sides take turns.

    Returns:
        Global mean, user biases [U + 1] and item biases [N + 1]. After further rounds the mean is that of what the
        items leave, so that the user biases of all ratings add up to 0, as a stranger's bias is.
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
