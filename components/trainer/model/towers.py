"""Towers: features to vectors. The two that meet in retrieval and the rating head's own are made of these layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from components.trainer.model.history import HistoryEmbedding
from recipe.features import AnyFeature, History, Identifier, MultiValue, Normalized, Text
from recipe.model import Layers, Tower


class LayerStack(tf.keras.layers.Layer):
    """Cross layers, then dense ones, then `output` if there is one: float [..., width] to float [..., units].

    Cross layers are DCN v2's (Wang et al. 2021, doi:10.1145/3442381.3450078): x0 * (W x + b) + x, where x0 is what
    comes in and W, with a rank, is a product of two narrow matrices. Dropout applies to what enters each layer, or to
    what comes in where there is no layer at all.
    """

    def __init__(self, layers: Layers, hidden: Sequence[int], output: tf.keras.layers.Dense | None, name: str) -> None:
        """
        Args:
            layers: Activation, cross layers, dropout and L2.
            hidden: Units of the dense layers.
            output: The last layer.
            name: Of the stack.
        """
        super().__init__(name=name)
        self._dropout = tf.keras.layers.Dropout(layers.dropout)
        self._cross = [
            tfrs.layers.dcn.Cross(
                projection_dim=layers.cross_rank,
                kernel_regularizer=weight_penalty(layers.l2),
                name=f"cross_{place}",
            )
            for place in range(layers.cross_layers)
        ]
        self._dense = [
            tf.keras.layers.Dense(
                units,
                activation=layers.activation,
                kernel_regularizer=weight_penalty(layers.l2),
                name=f"hidden_{place}",
            )
            for place, units in enumerate(hidden)
        ]
        if output is not None:
            self._dense.append(output)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        first = vectors = self._dropout(inputs, training=training)
        for place, layer in enumerate([*self._cross, *self._dense]):
            entering = self._dropout(vectors, training=training) if place else first
            vectors = layer(first, entering) if place < len(self._cross) else layer(entering)
        return vectors


class FeatureEmbedding(tf.keras.layers.Layer):
    """One transformed feature as a vector.

    Index features [batch] give [batch, dimension]; several indices a row [batch, values] give the mean over the known
    ones. Numbers [batch] give [batch, 1], or their product with a learned vector, [batch, dimension], where they are to
    be added to other features.
    """

    def __init__(
        self, feature: AnyFeature, count: int, dimension: int, id_dropout: float, summed: bool, stddev: float
    ) -> None:
        """
        Args:
            feature: Any feature but a history.
            count: How many indices it has, 0 included; of no meaning for numbers.
            dimension: Width of its vectors.
            id_dropout: How often training hides an id.
            summed: Whether its vectors will be added to other features'.
            stddev: Of the numbers that they start with.
        """
        super().__init__(name=scope_name(feature.name))
        self.feature = feature
        self._averaged = isinstance(feature, Text | MultiValue)
        self._id_dropout = id_dropout if isinstance(feature, Identifier) else 0.0
        initial = tf.keras.initializers.RandomNormal(stddev=stddev)
        self._table = self._direction = None
        if not isinstance(feature, Normalized):
            self._table = tf.keras.layers.Embedding(count, dimension, embeddings_initializer=initial)
        elif summed:
            self._direction = tf.keras.layers.Dense(
                dimension, use_bias=False, kernel_initializer=initial, name="direction"
            )

    def average_oov_embedding(self, indices: np.ndarray, weights: np.ndarray) -> None:
        """Makes the vector of index 0 the mean of what was learned, unless it was learned itself.

        Args:
            indices: int64 [R]: what training showed; of no meaning where rows have several values, which leave 0 out.
            weights: float [R]: how often it did.
        """
        if self._table is None or self._averaged or self._id_dropout:
            return
        learned = self._table.embeddings.numpy()
        shown = np.bincount(indices, weights, minlength=len(learned))
        if not shown[0] and shown.any():
            learned[0] = shown @ learned / shown.sum()
            self._table.embeddings.assign(learned)

    def call(self, values: tf.Tensor, training: bool = False) -> tf.Tensor:
        if self._table is None:
            numbers = tf.expand_dims(values, axis=1)
            return numbers if self._direction is None else self._direction(numbers)
        if training and self._id_dropout:
            hidden = tf.random.uniform(tf.shape(values)) < self._id_dropout
            values = tf.where(hidden, tf.zeros_like(values), values)
        vectors = self._table(values)
        if self._averaged:
            known = tf.expand_dims(tf.cast(values > 0, vectors.dtype), axis=-1)
            vectors = tf.reduce_sum(vectors * known, axis=1) / tf.maximum(tf.reduce_sum(known, axis=1), 1.0)
        return vectors


class TowerOutput(NamedTuple):
    """What a tower makes of its features."""

    vectors: tf.Tensor
    """float32 [batch, width]"""
    penalty: tf.Tensor
    """float32 [batch]: the squared embeddings of each row, times `embedding_l2`."""


class FeatureTower(tf.keras.layers.Layer):
    """Features to vectors: embeddings side by side or added up, through a `LayerStack`."""

    def __init__(
        self,
        name: str,
        features: Sequence[AnyFeature],
        tower: Tower,
        *,
        counts: Mapping[str, int],
        item_count: int,
        embedding_dim: int,
        output_dim: int,
        id_dropout: float,
        stddev: float,
    ) -> None:
        """
        Args:
            name: Of the layer.
            features: The features of its side; `tower` may take only some of them.
            tower: How it is built.
            counts: How many indices each feature has, 0 included, by its name.
            item_count: N, which a history's items are numbered up to.
            embedding_dim: Width of each embedding.
            output_dim: Width of the vectors that come out.
            id_dropout: How often training hides an id.
            stddev: Of the numbers that embeddings start with.
        """
        # Not cast to 16 bits here: each feature's own layer does that where it is safe.
        super().__init__(name=name, autocast=False)
        self._features = [f for f in features if tower.features is None or f.name in tower.features]
        self._summed = tower.combine == "sum"
        self._embedding_l2 = tower.embedding_l2
        self._embeddings = [
            HistoryEmbedding(feature, item_count, embedding_dim, stddev, name=scope_name(feature.name))
            if isinstance(feature, History)
            else FeatureEmbedding(feature, counts.get(feature.name, 0), embedding_dim, id_dropout, self._summed, stddev)
            for feature in self._features
        ]
        output = None
        if tower.projection:
            output = tf.keras.layers.Dense(output_dim, kernel_regularizer=weight_penalty(tower.l2), name="projection")
        self._stack = LayerStack(tower, tower.layers, output, name="layers")

    def call(self, features: Mapping[str, tf.Tensor], training: bool = False) -> TowerOutput:
        """Features by name, [batch, …] each, a history as `HistoryEmbedding` takes it."""
        vectors = [
            layer(features[feature.name], training=training)
            for feature, layer in zip(self._features, self._embeddings, strict=True)
        ]
        penalty = tf.zeros(tf.shape(vectors[0])[:1])
        if self._embedding_l2:
            learned = [
                tf.cast(embedded, tf.float32)
                for feature, embedded in zip(self._features, vectors, strict=True)
                if self._summed or not isinstance(feature, Normalized)
            ]
            penalty += self._embedding_l2 * sum(tf.reduce_sum(tf.square(each), axis=1) for each in learned)
        combined = tf.add_n(vectors) if self._summed else tf.concat(vectors, axis=1)
        return TowerOutput(tf.cast(self._stack(combined, training=training), tf.float32), penalty)


def weight_penalty(l2: float) -> tf.keras.regularizers.Regularizer | None:
    """The Keras regularizer that adds `l2` times the squared weights to a model's losses."""
    return tf.keras.regularizers.L2(l2) if l2 else None


def scope_name(name: str) -> str:
    """`name` as TensorFlow takes it for a layer or a variable: column names may hold spaces and signs."""
    return re.sub(r"^_", "column_", re.sub(r"[^A-Za-z0-9_.]", "_", name))
