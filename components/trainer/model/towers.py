"""Towers: features to vectors. The query tower, the candidate tower and the rating head's own towers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from components.trainer.model.history_embedding import HistoryEmbedding
from recipe.features import AnyFeature, History, Identifier, MultiValue, Normalized, Text
from recipe.model import Layers, Tower


class LayerStack(tf.keras.layers.Layer):
    """DCN cross layers, then dense layers, then an optional output layer: float [..., width] to float [..., units].

    A cross layer is x0 * (W x + b) + x, where x0 is the input of the stack, and W has low rank if `cross_rank` is set
    (DCN v2, Wang et al. 2021, doi:10.1145/3442381.3450078). Dropout applies to the input of each layer, and to the
    input of a stack without layers.

    Example:
        >>> stack = LayerStack(Layers(cross_layers=2, dropout=0.1), hidden=[16, 8], output=None, name="layers")
        >>> stack(tf.ones([4, 32])).shape
        TensorShape([4, 8])
    """

    def __init__(self, layers: Layers, hidden: Sequence[int], output: tf.keras.layers.Dense | None, name: str) -> None:
        """
        Args:
            layers: Activation, cross layers, dropout and L2 of the recipe.
            hidden: Units of the dense layers.
            output: The output layer; None for none.
            name: Name of the layer.
        """
        super().__init__(name=name)
        self._dropout = tf.keras.layers.Dropout(layers.dropout)
        self._cross = [
            tfrs.layers.dcn.Cross(
                projection_dim=layers.cross_rank,
                kernel_regularizer=weight_penalty(layers.l2),
                name=f"cross_{index}",
            )
            for index in range(layers.cross_layers)
        ]
        self._dense = [
            tf.keras.layers.Dense(
                units,
                activation=layers.activation,
                kernel_regularizer=weight_penalty(layers.l2),
                name=f"hidden_{index}",
            )
            for index, units in enumerate(hidden)
        ]
        if output is not None:
            self._dense.append(output)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return the output of the last layer, float [..., units]."""
        first = vectors = self._dropout(inputs, training=training)
        for index, layer in enumerate([*self._cross, *self._dense]):
            dropped = self._dropout(vectors, training=training) if index else first
            vectors = layer(first, dropped) if index < len(self._cross) else layer(dropped)
        return vectors


class FeatureEmbedding(tf.keras.layers.Layer):
    """Embeds one transformed feature.

    Indices [batch] give their embeddings, [batch, dimension]. Several indices per row, [batch, values], give the mean
    of the embeddings without index 0. Numbers [batch] stay numbers, [batch, 1]; if the embeddings of a tower are
    summed, they are multiplied with a learned vector, [batch, dimension].

    Example:
        >>> feature = Identifier(column="user", kind="id")
        >>> layer = FeatureEmbedding(feature, count=10, dimension=4, id_dropout=0.1, summed=False, stddev=0.05)
        >>> layer(tf.constant([1, 0], tf.int64)).shape
        TensorShape([2, 4])
    """

    def __init__(
        self, feature: AnyFeature, count: int, dimension: int, id_dropout: float, summed: bool, stddev: float
    ) -> None:
        """
        Args:
            feature: The recipe's feature; any kind but a history.
            count: Number of indices, index 0 included; ignored for numbers.
            dimension: Dimension of the embeddings.
            id_dropout: Probability of replacing an id with the OOV index during training.
            summed: Whether the embeddings of the tower are summed.
            stddev: Standard deviation of the initial embeddings.
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
        """Set the OOV embedding, of index 0, to the weighted mean of the trained embeddings, unless it was trained.

        Args:
            indices: int64 [R]: the indices in training; ignored for features with several values per row, whose mean
                has no index 0.
            weights: float [R]: the frequency of each.
        """
        if self._table is None or self._averaged or self._id_dropout:
            return
        learned = self._table.embeddings.numpy()
        shown = np.bincount(indices, weights, minlength=len(learned))
        if not shown[0] and shown.any():
            learned[0] = shown @ learned / shown.sum()
            self._table.embeddings.assign(learned)

    def call(self, values: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return the embeddings, float [batch, dimension], or numbers, float [batch, 1]."""
        if self._table is None:
            numbers = tf.expand_dims(values, axis=1)
            return numbers if self._direction is None else self._direction(numbers)
        if training and self._id_dropout:
            dropped = tf.random.uniform(tf.shape(values)) < self._id_dropout
            values = tf.where(dropped, tf.zeros_like(values), values)
        vectors = self._table(values)
        if self._averaged:
            known = tf.expand_dims(tf.cast(values > 0, vectors.dtype), axis=-1)
            vectors = tf.reduce_sum(vectors * known, axis=1) / tf.maximum(tf.reduce_sum(known, axis=1), 1.0)
        return vectors


class TowerOutput(NamedTuple):
    """The output of a tower."""

    vectors: tf.Tensor
    """float32 [batch, width]"""
    penalty: tf.Tensor
    """float32 [batch]: L2 penalty of each row's embeddings, `embedding_l2` times their squared values."""


class FeatureTower(tf.keras.layers.Layer):
    """Embeds features, concatenates or sums the embeddings, and applies a `LayerStack`.

    Example:
        >>> features = {name: tf.constant(values[:4]) for name, values in data.query.items()}
        >>> model.query_tower(features).vectors.shape[0]
        4
    """

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
            name: Name of the layer.
            features: The query or candidate features; `tower.features` may select some of them.
            tower: The tower's section of the recipe.
            counts: Number of indices of each feature by name, index 0 included.
            item_count: N, the highest item index in a history.
            embedding_dim: Dimension of the embeddings.
            output_dim: Dimension of the output vectors, if the tower has a projection.
            id_dropout: Probability of replacing an id with the OOV index during training.
            stddev: Standard deviation of the initial embeddings.
        """
        # No autocast to 16 bits, because the features' layers cast where it is safe.
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
        """Return the vectors and the penalty of each row.

        Args:
            features: Features by name, [batch] or [batch, values] each; a history as the input of `HistoryEmbedding`.
            training: Whether to apply dropout.
        """
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
    """Return the L2 regularizer of a Keras layer; None if `l2` is 0.

    Example:
        >>> weight_penalty(0.0) is None
        True
    """
    return tf.keras.regularizers.L2(l2) if l2 else None


def scope_name(name: str) -> str:
    """Return a valid TensorFlow name: column names may contain spaces and punctuation.

    Example:
        >>> scope_name("release date_id")
        'release_date_id'
    """
    return re.sub(r"^_", "column_", re.sub(r"[^A-Za-z0-9_.]", "_", name))
