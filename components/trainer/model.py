"""The two-task model: a query tower and a candidate tower that meet in a dot product, and a rating head over both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tensorflow_transform as tft

from components.trainer.training_data import TrainingData, index_count
from pipeline.recipe import AnyFeature, Identifier, Model, MultiValue, Normalized, RatingHead, Text, Tower

# Ratings of a user or item count for this many more at the global mean (Koren 2010, doi:10.1145/1644873.1644874).
BIAS_DAMPING = 10.0


class Encoded(NamedTuple):
    """One side of the model, a user's request or an item, as both tasks take it."""

    retrieval: tf.Tensor
    """float32 [..., D]: the product of a query's and an item's is the retrieval score."""
    rating: tf.Tensor
    """float32 [..., r]: the rating head's side of it."""
    bias: tf.Tensor
    """float32 [...]: the user's rating bias, or the mean rating with the item's."""


class FeatureEmbedding(tf.keras.layers.Layer):
    """One transformed feature as a vector.

    Index features [batch] give [batch, dimension]; several indices a row [batch, values] give the mean over the known
    ones; normalised numbers [batch] give [batch, 1].
    """

    def __init__(self, feature: AnyFeature, count: int, dimension: int, id_dropout: float) -> None:
        super().__init__(name=scope_name(feature.name))
        self.feature = feature
        self._id_dropout = id_dropout if isinstance(feature, Identifier) else 0.0
        self._table = None
        if not isinstance(feature, Normalized):
            self._table = tf.keras.layers.Embedding(
                count, dimension, embeddings_initializer=tf.keras.initializers.RandomNormal(stddev=0.05)
            )

    def call(self, values: tf.Tensor, training: bool = False) -> tf.Tensor:
        if self._table is None:
            return tf.expand_dims(values, axis=1)
        if training and self._id_dropout:
            hidden = tf.random.uniform(tf.shape(values)) < self._id_dropout
            values = tf.where(hidden, tf.zeros_like(values), values)
        vectors = self._table(values)
        if isinstance(self.feature, Text | MultiValue):
            known = tf.expand_dims(tf.cast(values > 0, vectors.dtype), axis=-1)
            vectors = tf.reduce_sum(vectors * known, axis=1) / tf.maximum(tf.reduce_sum(known, axis=1), 1.0)
        return vectors


class FeatureTower(tf.keras.layers.Layer):
    """Features in, one vector of `dimension` out: embeddings, concatenated, through dense layers."""

    def __init__(
        self, name: str, features: Sequence[AnyFeature], counts: Mapping[str, int], model: Model, tower: Tower
    ) -> None:
        super().__init__(name=name)
        self._embeddings = [
            FeatureEmbedding(feature, counts.get(feature.name, 0), model.embedding_dim, model.id_dropout)
            for feature in features
        ]
        self._dropout = tf.keras.layers.Dropout(tower.dropout)
        self._layers = [tf.keras.layers.Dense(units, activation="relu") for units in tower.layers]
        self._output = tf.keras.layers.Dense(model.embedding_dim)

    def call(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        vectors = [embedding(features[embedding.feature.name], training=training) for embedding in self._embeddings]
        hidden = self._dropout(tf.concat(vectors, axis=1), training=training)
        for layer in self._layers:
            hidden = self._dropout(layer(hidden), training=training)
        return self._output(hidden)


class RatingPredictor(tf.keras.layers.Layer):
    """global mean + user bias + item bias + interaction of the two towers' outputs.

    The biases start at the damped means of train (Koren 2010), so that training only has to improve on them.
    """

    def __init__(self, head: RatingHead, data: TrainingData) -> None:
        super().__init__(name="rating_head")
        self._head = head
        mean, user_bias, item_bias = damped_means(data)
        self._mean = self.add_weight(name="mean", shape=(), initializer=tf.constant_initializer(mean), trainable=False)
        self._user_bias = _bias_table("user_bias", user_bias)
        self._item_bias = _bias_table("item_bias", item_bias)
        self._dropout = tf.keras.layers.Dropout(head.dropout)
        if head.kind == "dot":
            self._query = tf.keras.layers.Dense(head.dimension)
            self._candidate = tf.keras.layers.Dense(head.dimension)
        else:
            self._layers = [tf.keras.layers.Dense(units, activation="relu") for units in head.layers]
            self._output = tf.keras.layers.Dense(1, kernel_initializer="zeros")

    def user_bias(self, user: tf.Tensor) -> tf.Tensor:
        """User indices int64 [...] to float32 [...]."""
        return tf.squeeze(self._user_bias(user), axis=-1)

    def item_bias(self, item: tf.Tensor) -> tf.Tensor:
        """Item indices int64 [...] to float32 [...], the mean rating included."""
        return self._mean + tf.squeeze(self._item_bias(item), axis=-1)

    def query_side(self, vectors: tf.Tensor) -> tf.Tensor:
        """The query tower's vectors as the head takes them."""
        return self._query(vectors) if self._head.kind == "dot" else vectors

    def item_side(self, vectors: tf.Tensor) -> tf.Tensor:
        """The candidate tower's vectors as the head takes them."""
        return self._candidate(vectors) if self._head.kind == "dot" else vectors

    def call(self, query: Encoded, item: Encoded, training: bool = False) -> tf.Tensor:
        """Both sides, with leading dimensions that broadcast, to ratings float32 [...]."""
        biases = query.bias + item.bias
        if training and self._head.l2:
            self.add_loss(self._head.l2 * tf.reduce_mean(tf.square(biases - self._mean)))
        left, right = query.rating, item.rating
        if self._head.kind == "dot":
            left, right = (self._dropout(side, training=training) for side in (left, right))
            return biases + tf.reduce_sum(left * right, axis=-1)
        shape = tf.shape(biases)
        hidden = tf.concat(
            [tf.broadcast_to(side, tf.concat([shape, [side.shape[-1]]], axis=0)) for side in (left, right)], axis=-1
        )
        for layer in self._layers:
            hidden = self._dropout(layer(hidden), training=training)
        return biases + tf.squeeze(self._output(hidden), axis=-1)


class TwoTaskRecommender(tfrs.Model):
    """Retrieval and rating trained jointly: `tfrs.tasks.Retrieval` and `tfrs.tasks.Ranking`, weighted by the recipe.

    Top-k accuracy is never computed while training: it would score the whole catalogue for every batch.
    """

    def __init__(
        self,
        model: Model,
        query_features: Sequence[AnyFeature],
        candidate_features: Sequence[AnyFeature],
        data: TrainingData,
        transform_output: tft.TFTransformOutput,
    ) -> None:
        super().__init__()
        self._config = model
        self._user_feature = data.user_feature
        counts = {
            feature.name: index_count(feature, transform_output)
            for feature in (*query_features, *candidate_features)
            if not isinstance(feature, Normalized)
        }
        self._catalogue = {name: tf.constant(values) for name, values in data.catalogue.items()}
        self.query_tower = FeatureTower("query_tower", query_features, counts, model, model.query_tower)
        self._candidate_tower = FeatureTower(
            "candidate_tower", candidate_features, counts, model, model.candidate_tower
        )
        frequencies = data.item_frequencies() + 1.0
        probabilities = frequencies / frequencies.sum()
        self._log_popularity = _bias_table("item_popularity", np.log(probabilities) - np.log(probabilities).mean())
        self._sampling_probability = tf.constant(probabilities, tf.float32)
        self.rating_head = RatingPredictor(model.rating_head, data)
        self._retrieval = tfrs.tasks.Retrieval(
            batch_metrics=None, remove_accidental_hits=model.retrieval.remove_accidental_hits
        )
        self._ranking = tfrs.tasks.Ranking(
            loss=tf.keras.losses.MeanSquaredError(), metrics=[tf.keras.metrics.RootMeanSquaredError(name="train_rmse")]
        )

    def encode_query(self, features: Mapping[str, tf.Tensor], training: bool = False) -> Encoded:
        """Query features by `Feature.name`, [batch, …], as both tasks take them."""
        vectors = self.query_tower(features, training=training)
        return Encoded(
            retrieval=tf.concat([vectors, tf.ones_like(vectors[:, :1])], axis=1),
            rating=self.rating_head.query_side(vectors),
            bias=self.rating_head.user_bias(features[self._user_feature]),
        )

    def encode_items(self, items: tf.Tensor, training: bool = False) -> Encoded:
        """Item indices int64 [batch], 0 for unknown, as both tasks take them."""
        features = {name: tf.gather(values, items) for name, values in self._catalogue.items()}
        vectors = self._candidate_tower(features, training=training)
        return Encoded(
            # The learned popularity of each item is one more factor, which queries have a 1 for.
            retrieval=tf.concat([vectors, self._log_popularity(items)], axis=1),
            rating=self.rating_head.item_side(vectors),
            bias=self.rating_head.item_bias(items),
        )

    def predict_ratings(self, query: Encoded, item: Encoded, training: bool = False) -> tf.Tensor:
        """Ratings float32 [...] of both sides, whose leading dimensions broadcast."""
        return self.rating_head(query, item, training=training)

    def _retrieval_loss(self, query: tf.Tensor, candidate: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """Mean in-batch softmax loss of the true items, one a row."""
        correction = tf.gather(self._sampling_probability, items)
        summed = self._retrieval(
            query,
            candidate,
            candidate_sampling_probability=correction if self._config.retrieval.log_q_correction else None,
            candidate_ids=items,
            compute_metrics=False,
        )
        # TFRS sums the loss over the batch; the mean keeps learning rates independent of the batch size.
        return summed / tf.cast(tf.shape(items)[0], tf.float32)

    def compute_loss(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The weighted sum of both tasks' mean losses and the regularisation.

        Args:
            inputs: A batch from `batches`: query features, `item` int64 [batch], `label` float32 [batch] and, where
                the data has sampled negatives, `positive` bool [batch].
            training: Whether dropout is on.
        """
        items, labels = inputs["item"], inputs["label"]
        query = self.encode_query(inputs, training=training)
        candidate = self.encode_items(items, training=training)
        loss = tf.constant(0.0)
        if self._config.retrieval_weight:
            rows = (query.retrieval, candidate.retrieval, items)
            if "positive" not in inputs:
                retrieval = self._retrieval_loss(*rows)
            else:
                # A sample weight of 0 would not do: the negatives' items would still stand in the softmax, drawn from
                # another distribution than the one that the logQ correction undoes.
                positives = [tf.boolean_mask(values, inputs["positive"]) for values in rows]
                retrieval = tf.cond(
                    tf.size(positives[2]) > 0, lambda: self._retrieval_loss(*positives), lambda: tf.constant(0.0)
                )
            loss += self._config.retrieval_weight * retrieval
        if self._config.rating_weight:
            predictions = self.predict_ratings(query, candidate, training=training)
            loss += self._config.rating_weight * self._ranking(labels=labels, predictions=predictions)
        if self._config.l2:
            loss += self._config.l2 * sum(
                tf.reduce_mean(tf.square(side.retrieval[:, :-1])) for side in (query, candidate)
            )
        return loss


def damped_means(data: TrainingData) -> tuple[float, np.ndarray, np.ndarray]:
    """The user and item means baseline of Koren 2010: global mean, user biases [U + 1] and item biases [N + 1]."""
    mean = float(data.labels.mean())
    residual = data.labels - mean
    item_sum = np.bincount(data.items, weights=residual, minlength=data.item_count + 1)
    item_bias = item_sum / (np.bincount(data.items, minlength=data.item_count + 1) + BIAS_DAMPING)
    residual = residual - item_bias[data.items]
    user_sum = np.bincount(data.users, weights=residual, minlength=data.user_count + 1)
    user_bias = user_sum / (np.bincount(data.users, minlength=data.user_count + 1) + BIAS_DAMPING)
    return mean, user_bias, item_bias


def scope_name(name: str) -> str:
    """`name` as TensorFlow takes it for a layer or a variable: column names may hold spaces and signs."""
    return re.sub(r"^_", "column_", re.sub(r"[^A-Za-z0-9_.]", "_", name))


def _bias_table(name: str, values: np.ndarray) -> tf.keras.layers.Embedding:
    table = tf.keras.layers.Embedding(len(values), 1, name=name)
    table.build(())
    table.set_weights([values.astype(np.float32)[:, None]])
    return table
