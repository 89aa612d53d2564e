"""The two-task model: query tower, candidate tower, retrieval task and rating head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tensorflow_transform as tft

from components.trainer.data.histories import whole_histories
from components.trainer.data.training_data import TrainingData, index_count
from components.trainer.model.rating import RatingPredictor
from components.trainer.model.retrieval import BatchSoftmax, RetrievalFactors, catalogue_softmax, item_probabilities
from components.trainer.model.towers import FeatureEmbedding, FeatureTower
from recipe.features import AnyFeature, History, Normalized
from recipe.model import Model, Tower


class Encoded(NamedTuple):
    """Encoded queries or items: the inputs of both tasks from one side of the model."""

    retrieval: tf.Tensor
    """float32 [..., D]: factors; the inner product of a query's and an item's is the retrieval score."""
    rating: tf.Tensor
    """float32 [..., r]: factors of the rating head."""
    bias: tf.Tensor
    """float32 [...]: the user's rating bias, or the global mean plus the item's rating bias."""


class _Side(NamedTuple):
    """Encoded queries or items with their regularization loss."""

    encoded: Encoded
    penalty: tf.Tensor
    """float32 [batch]: the row's regularization loss."""


class TaskWeights(tf.keras.layers.Layer):
    """Learned loss weights (uncertainty weighting; Kendall et al. 2018, arXiv:1705.07115).

    With s, the log noise variance of a task, the weighted softmax loss is exp(-s) L + s / 2, and the weighted squared
    error is exp(-s) L / 2 + s / 2. Each s is initialized so that its loss has the recipe's weight.

    Example:
        >>> task_weights = TaskWeights(retrieval_weight=1.0, rating_weight=1.0)
        >>> float(task_weights(tf.constant(3.0), "retrieval"))
        3.0
    """

    def __init__(self, retrieval_weight: float, rating_weight: float) -> None:
        """
        Args:
            retrieval_weight: Initial weight of the retrieval loss.
            rating_weight: Initial weight of the rating loss. A task with weight 0 has no variance, and `call` must not
                be called for it.
        """
        super().__init__(name="task_weights", dtype="float32")
        self._factors = {"retrieval": 1.0, "rating": 0.5}
        self._log_variances = {
            task: self.add_weight(
                name=f"{task}_log_variance",
                shape=(),
                initializer=tf.constant_initializer(-math.log(weight / self._factors[task])),
            )
            for task, weight in (("retrieval", retrieval_weight), ("rating", rating_weight))
            if weight
        }

    def call(self, loss: tf.Tensor, task: str) -> tf.Tensor:
        """Return the weighted loss, float32 [], of a task, `retrieval` or `rating`."""
        log_variance = self._log_variances[task]
        return self._factors[task] * tf.exp(-log_variance) * loss + log_variance / 2


class TwoTaskRecommender(tfrs.Model):
    """A multi-task model: retrieval with `tfrs.tasks.Retrieval`, and rating with `tfrs.tasks.Ranking`.

    Training computes no top-k accuracy, because that would score the whole catalogue for each batch. The constructor
    creates all variables. Losses, scores, biases and ratings are float32 also under a mixed-precision policy.

    Example:
        >>> features = recipe.features
        >>> model = TwoTaskRecommender(recipe.model, features.query, features.candidate, data, transform_output)
        >>> model.compute_loss(next(iter(batches(data, batch_size=64, seed=0)))).shape
        TensorShape([])
    """

    def __init__(
        self,
        model: Model,
        query_features: Sequence[AnyFeature],
        candidate_features: Sequence[AnyFeature],
        data: TrainingData,
        transform_output: tft.TFTransformOutput,
        static_shapes: bool = False,
    ) -> None:
        """
        Args:
            model: The section `model` of the recipe.
            query_features: The query features.
            candidate_features: The candidate features.
            data: The catalogue, and the interactions for the initial biases.
            transform_output: Output of Transform, which defines the number of indices of each feature.
            static_shapes: Whether to avoid shapes that depend on the number of distinct items in a batch, because XLA
                compiles the graph for each shape.
        """
        super().__init__()
        self._config = model
        self._user_feature = data.user_feature
        self._item_count = data.item_count
        self._history = next((feature.name for feature in query_features if isinstance(feature, History)), None)
        counts = {
            feature.name: index_count(feature, transform_output)
            for feature in (*query_features, *candidate_features)
            if not isinstance(feature, Normalized | History)
        }

        def tower(
            features: Sequence[AnyFeature],
            name: str,
            config: Tower,
            embedding_dim: int,
            output_dim: int,
            stddev: float | None = None,
        ) -> FeatureTower:
            return FeatureTower(
                name,
                features,
                config,
                counts=counts,
                item_count=data.item_count,
                embedding_dim=embedding_dim,
                output_dim=output_dim,
                id_dropout=model.id_dropout,
                stddev=model.embedding_stddev if stddev is None else stddev,
            )

        widths = (model.embedding_dim, model.vector_dim)
        self.query_tower = tower(query_features, "query_tower", model.query_tower, *widths)
        self.candidate_tower = tower(candidate_features, "candidate_tower", model.candidate_tower, *widths)
        self.rating_head = RatingPredictor(
            model.rating_head,
            data,
            query_features,
            candidate_features,
            lambda features, name, config, width, stddev: tower(features, name, config, width, width, stddev),
        )
        probabilities = item_probabilities(data)
        self.retrieval_factors = RetrievalFactors(model.retrieval, probabilities)
        self._batch_softmax = BatchSoftmax(model.retrieval, probabilities)
        # The number of hard negatives includes duplicates.
        self._distinct_items = not static_shapes and model.retrieval.hard_negatives is None
        self._task_losses = {
            task: tf.keras.metrics.Mean(name=f"{task}_loss")
            for task, weight in (("retrieval", model.retrieval_weight), ("rating", model.rating_weight))
            if weight
        }
        self._task_weights = None
        if model.weighting == "uncertainty":
            self._task_weights = TaskWeights(model.retrieval_weight, model.rating_weight)
        # Sums, of row weights that sum to 1, because Keras rejects a mean over the batch under a distribution strategy.
        self._ranking = tfrs.tasks.Ranking(
            loss=tf.keras.losses.MeanSquaredError(reduction=tf.keras.losses.Reduction.SUM),
            metrics=[tf.keras.metrics.RootMeanSquaredError(name="train_rmse")],
        )
        self._catalogue = {name: tf.constant(values) for name, values in data.catalogue.items()}
        self._create_variables(data)

    def _create_variables(self, data: TrainingData) -> None:
        """Create the variables of all layers by a call on one row."""
        first: dict[str, Any] = {name: tf.constant(values[:1]) for name, values in data.query.items()}
        if self._history is not None:
            none = tf.zeros([0], tf.int64)
            first[self._history] = whole_histories(
                tf.RaggedTensor.from_row_lengths(none, [0]),
                tf.RaggedTensor.from_row_lengths(tf.cast(none, tf.float32), [0]),
            )
        self.predict_ratings(self.encode_query(first), self.encode_items(tf.zeros([1], tf.int64)))

    def average_oov_embedding(self, data: TrainingData) -> None:
        """Set untrained OOV embeddings to the mean of the trained ones.

        They would otherwise have their random initial values. Id dropout and cold-start dropout train the OOV embedding
        of ids, and missing values in the train split those of other features.

        Args:
            data: The rows that the model was trained on.
        """
        frequencies = data.item_frequencies()[1:]
        trained = {name: (values[1:], frequencies) for name, values in data.catalogue.items()}
        trained |= {name: (values, np.ones(len(values))) for name, values in data.query.items()}
        if self._config.cold_start_dropout:
            del trained[self._user_feature]
        for layer in self.submodules:
            if isinstance(layer, FeatureEmbedding) and layer.feature.name in trained:
                layer.average_oov_embedding(*trained[layer.feature.name])

    def encode_query(self, features: Mapping[str, Any], training: bool = False) -> Encoded:
        """Encode queries.

        Args:
            features: Query features by `Feature.name`, [batch] or [batch, values]; a history as the input of
                `HistoryEmbedding`. Other entries are ignored.
            training: Whether to apply dropout.
        """
        return self._query(features, training).encoded

    def encode_items(self, items: tf.Tensor, training: bool = False) -> Encoded:
        """Encode items of the catalogue, int64 [batch]: vocabulary indices, 0 for new items."""
        return self._items(items, training).encoded

    def encode_item_features(self, items: tf.Tensor, features: Mapping[str, tf.Tensor]) -> Encoded:
        """Encode items with features that may differ from the catalogue's.

        Args:
            items: int64 [batch]: vocabulary indices, 0 for new items.
            features: Candidate features by `Feature.name`, [batch] or [batch, values].
        """
        return self._item_side(items, features, training=False).encoded

    def predict_ratings(self, query: Encoded, item: Encoded, training: bool = False) -> tf.Tensor:
        """Predict ratings, float32 [...]; the leading dimensions of both sides are equal or broadcast."""
        return self.rating_head(query.rating, item.rating, query.bias + item.bias, training=training)

    def _query(self, features: Mapping[str, Any], training: bool) -> _Side:
        vectors, penalty = self.query_tower(features, training=training)
        rating = self.rating_head.query(features[self._user_feature], vectors, features, training=training)
        encoded = Encoded(self.retrieval_factors.query(vectors), rating.factors, rating.bias)
        return _Side(encoded, penalty + rating.penalty + self._output_penalty(vectors))

    def _items(self, items: tf.Tensor, training: bool) -> _Side:
        features = {name: tf.gather(values, items) for name, values in self._catalogue.items()}
        return self._item_side(items, features, training)

    def _item_side(self, items: tf.Tensor, features: Mapping[str, tf.Tensor], training: bool) -> _Side:
        vectors, penalty = self.candidate_tower(features, training=training)
        rating = self.rating_head.item(items, vectors, features, training=training)
        encoded = Encoded(self.retrieval_factors.item(items, vectors), rating.factors, rating.bias)
        return _Side(encoded, penalty + rating.penalty + self._output_penalty(vectors))

    def _output_penalty(self, vectors: tf.Tensor) -> tf.Tensor:
        if not self._config.l2:
            # A penalty times 0 would create gradients, all of them 0, for towers that no task trains.
            return tf.zeros(tf.shape(vectors)[:1])
        return self._config.l2 * tf.reduce_sum(tf.square(vectors), axis=1)

    def compute_loss(self, inputs: Mapping[str, Any], training: bool = False) -> tf.Tensor:
        """Return the weighted sum of both tasks' mean losses, plus the mean penalty of the rows, float32 [].

        The penalties of layer weights (`l2` of towers and head) are in `losses`, as in Keras.

        Args:
            inputs: A batch from `batches`: query features, `item` int64 [batch] and `label` float32 [batch]; with
                sampled negatives `positive` bool [batch]; with half-lives `weight` and `rating_weight` float32 [batch].
            training: Whether to apply dropout.
        """
        if training and self._config.cold_start_dropout:
            inputs = self._apply_cold_start_dropout(inputs)
        items = inputs["item"]
        query = self._query(inputs, training)
        if self._config.retrieval_weight and self._config.retrieval.candidates == "catalogue":
            # The batch's items are gathered from the encoded catalogue, for the rating head as well.
            every = self._items(tf.range(self._item_count + 1, dtype=tf.int64), training)
            item = tf.nest.map_structure(lambda values: tf.gather(values, items), every)
            retrieval = self._catalogue_loss(query, every, inputs)
        elif self._config.retrieval_weight and self._distinct_items:
            negatives = self._batch_softmax.sample_negatives(training)
            distinct, positions = tf.unique(tf.concat([items, negatives], axis=0))
            every = self._items(distinct, training)
            item = tf.nest.map_structure(lambda values: tf.gather(values, positions[: tf.shape(items)[0]]), every)
            ones = tf.ones_like(inputs["label"])
            retrieval = self._batch_softmax.distinct_loss(
                query.encoded.retrieval,
                every.encoded.retrieval,
                distinct,
                positions,
                inputs.get("weight", ones),
                tf.cast(inputs["positive"], tf.float32) if "positive" in inputs else ones,
            )
        elif self._config.retrieval_weight:
            candidates = tf.concat([items, self._batch_softmax.sample_negatives(training)], axis=0)
            together = self._items(candidates, training)
            item = tf.nest.map_structure(lambda values: values[: tf.shape(items)[0]], together)
            retrieval = self._batch_loss(query, together, candidates, inputs)
        else:
            item = self._items(items, training)
        loss = tf.reduce_mean(query.penalty) + tf.reduce_mean(item.penalty)
        if self._config.retrieval_weight:
            loss += self._weighted("retrieval", retrieval, self._config.retrieval_weight)
        if self._config.rating_weight:
            predictions = self.predict_ratings(query.encoded, item.encoded, training=training)
            # `call` and not `__call__`, which casts labels to 16 bits under a mixed-precision policy.
            weights = inputs.get("rating_weight", tf.ones_like(inputs["label"]))
            # [batch, 1], because Keras weights the losses of rows.
            rating = self._ranking.call(
                labels=tf.expand_dims(inputs["label"], axis=1),
                predictions=tf.expand_dims(predictions, axis=1),
                sample_weight=tf.math.divide_no_nan(weights, tf.reduce_sum(weights)),
            )
            loss += self._weighted("rating", rating, self._config.rating_weight)
        return loss

    def _weighted(self, task: str, loss: tf.Tensor, weight: float) -> tf.Tensor:
        self._task_losses[task].update_state(loss)
        return weight * loss if self._task_weights is None else self._task_weights(loss, task)

    def _apply_cold_start_dropout(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the user id, and with it the user bias, by the OOV index in some rows, and mask their history."""
        users = inputs[self._user_feature]
        masked = tf.random.uniform(tf.shape(users)) < self._config.cold_start_dropout
        changed = {self._user_feature: tf.where(masked, tf.zeros_like(users), users)}
        if self._history is not None:
            changed[self._history] = {**inputs[self._history], "masked": masked}
        return {**inputs, **changed}

    def _catalogue_loss(self, query: _Side, every: _Side, inputs: Mapping[str, Any]) -> tf.Tensor:
        weights = inputs.get("weight", tf.ones_like(inputs["label"]))
        if "positive" in inputs:
            # A weight of 0 excludes sampled negatives, because the candidates do not depend on the batch.
            weights *= tf.cast(inputs["positive"], tf.float32)
        return catalogue_softmax(
            query.encoded.retrieval,
            every.encoded.retrieval[1:],
            inputs["item"] - 1,
            weights,
            self._config.retrieval.hard_negatives,
        )

    def _batch_loss(self, query: _Side, together: _Side, candidates: tf.Tensor, inputs: Mapping[str, Any]) -> tf.Tensor:
        weights = inputs.get("weight", tf.ones_like(inputs["label"]))
        factors, others = query.encoded.retrieval, together.encoded.retrieval
        if "positive" not in inputs:
            return self._batch_softmax(factors, others, candidates, weights)
        # A weight of 0 is not sufficient: the items of sampled negatives would remain candidates, with a distribution
        # that the logQ correction does not account for. Positions are gathered, instead of concatenating masked rows
        # and sampled items, because XLA computes wrong gradients for a concatenation of unknown length.
        rows = tf.where(inputs["positive"])[:, 0]
        positions = tf.concat([rows, tf.range(tf.size(weights, tf.int64), tf.size(candidates, tf.int64))], axis=0)
        return tf.cond(
            tf.size(rows) > 0,
            lambda: self._batch_softmax(
                tf.gather(factors, rows),
                tf.gather(others, positions),
                tf.gather(candidates, positions),
                tf.gather(weights, rows),
            ),
            lambda: tf.constant(0.0),
        )
