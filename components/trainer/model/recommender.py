"""The two-task model: a query tower and a candidate tower that meet in a dot product, and a rating head over both."""

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
    """One side of the model, a user's request or an item, as both tasks take it."""

    retrieval: tf.Tensor
    """float32 [..., D]: the product of a query's and an item's is the retrieval score."""
    rating: tf.Tensor
    """float32 [..., r]: the rating head's side of it."""
    bias: tf.Tensor
    """float32 [...]: the user's rating bias, or the mean rating with the item's."""


class _Side(NamedTuple):
    """One side while training."""

    encoded: Encoded
    penalty: tf.Tensor
    """float32 [batch]: what the row adds to the loss for the sake of regularisation."""


class TaskWeights(tf.keras.layers.Layer):
    """Learned weights of both losses (Kendall et al. 2018, arXiv:1705.07115).

    With s the log of a task's noise variance, the softmax loss L counts as exp(-s) L + s / 2 and the squared error as
    exp(-s) L / 2 + s / 2. Each s starts where its loss has the weight that the recipe gives it.
    """

    def __init__(self, retrieval_weight: float, rating_weight: float) -> None:
        """A task with the weight 0 has no variance and must not be asked for."""
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
        """A loss, float32 scalar, as it counts; `task` is `retrieval` or `rating`."""
        log_variance = self._log_variances[task]
        return self._factors[task] * tf.exp(-log_variance) * loss + log_variance / 2


class TwoTaskRecommender(tfrs.Model):
    """Retrieval and rating trained jointly: `tfrs.tasks.Retrieval` and a squared error, weighted by the recipe.

    Top-k accuracy is never computed while training: it would score the whole catalogue for every batch. All variables
    exist once the model is made. Losses, scores, biases and ratings are float32 under a mixed-precision policy too.
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
            model: The recipe's section.
            query_features: What is known of a request.
            candidate_features: What is known of an item.
            data: The catalogue, and what biases and popularities start from.
            transform_output: Output of Transform; says how many indices each feature has.
            static_shapes: Whether the graph is for XLA, which compiles anew for every shape: no tensor may then be as
                long as a batch has different items.
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
        shares = item_probabilities(data)
        self.retrieval_factors = RetrievalFactors(model.retrieval, shares)
        self._batch_softmax = BatchSoftmax(model.retrieval, shares)
        # Hard negatives are counted with their copies.
        self._distinct_items = not static_shapes and model.retrieval.hard_negatives is None
        self._task_losses = {
            task: tf.keras.metrics.Mean(name=f"{task}_loss")
            for task, weight in (("retrieval", model.retrieval_weight), ("rating", model.rating_weight))
            if weight
        }
        self._task_weights = None
        if model.weighting == "uncertainty":
            self._task_weights = TaskWeights(model.retrieval_weight, model.rating_weight)
        # The rows' weights add up to 1; a reduction that divides by the batch is refused under a distribution strategy.
        self._ranking = tfrs.tasks.Ranking(
            loss=tf.keras.losses.MeanSquaredError(reduction=tf.keras.losses.Reduction.SUM),
            metrics=[tf.keras.metrics.RootMeanSquaredError(name="train_rmse")],
        )
        self._catalogue = {name: tf.constant(values) for name, values in data.catalogue.items()}
        self._make_variables(data)

    def _make_variables(self, data: TrainingData) -> None:
        first: dict[str, Any] = {name: tf.constant(values[:1]) for name, values in data.query.items()}
        if self._history is not None:
            none = tf.zeros([0], tf.int64)
            first[self._history] = whole_histories(
                tf.RaggedTensor.from_row_lengths(none, [0]),
                tf.RaggedTensor.from_row_lengths(tf.cast(none, tf.float32), [0]),
            )
        self.predict_ratings(self.encode_query(first), self.encode_items(tf.zeros([1], tf.int64)))

    def average_oov_embedding(self, data: TrainingData) -> None:
        """Makes an unknown value of a feature the average one, where training never met an unknown value.

        What nothing was learned of would otherwise add the numbers that its vector started with. Id dropout and
        stranger dropout teach the model unknown ids, and missing values in train other unknown values.

        Args:
            data: What was trained on.
        """
        frequencies = data.item_frequencies()[1:]
        known = {name: (values[1:], frequencies) for name, values in data.catalogue.items()}
        known |= {name: (values, np.ones(len(values))) for name, values in data.query.items()}
        if self._config.cold_start_dropout:
            del known[self._user_feature]
        for layer in self.submodules:
            if isinstance(layer, FeatureEmbedding) and layer.feature.name in known:
                layer.average_oov_embedding(*known[layer.feature.name])

    def encode_query(self, features: Mapping[str, Any], training: bool = False) -> Encoded:
        """Query features as both tasks take them.

        Args:
            features: By `Feature.name`, [batch] or [batch, values]; a history as `HistoryEmbedding` takes it. Others
                are ignored.
            training: Whether dropout is on.
        """
        return self._query(features, training).encoded

    def encode_items(self, items: tf.Tensor, training: bool = False) -> Encoded:
        """Items by vocabulary index, int64 [batch], 0 for unknown ones, as both tasks take them."""
        return self._items(items, training).encoded

    def encode_item_features(self, items: tf.Tensor, features: Mapping[str, tf.Tensor]) -> Encoded:
        """Items whose features need not be those of the catalogue, as both tasks take them.

        Args:
            items: Vocabulary indices int64 [batch], 0 for unknown items.
            features: Candidate features by `Feature.name`, [batch] or [batch, values].
        """
        return self._item_side(items, features, training=False).encoded

    def predict_ratings(self, query: Encoded, item: Encoded, training: bool = False) -> tf.Tensor:
        """Ratings float32 [...] of both sides, whose leading dimensions are equal or broadcast."""
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
            # A penalty times 0 would still make gradients, all of them 0, for towers that no task learns from.
            return tf.zeros(tf.shape(vectors)[:1])
        return self._config.l2 * tf.reduce_sum(tf.square(vectors), axis=1)

    def compute_loss(self, inputs: Mapping[str, Any], training: bool = False) -> tf.Tensor:
        """The weighted sum of both tasks' mean losses and the penalties of the batch's rows, a float32 scalar.

        The penalties of layer weights (`l2` of towers and head) are in `losses`, as Keras has it.

        Args:
            inputs: A batch from `batches`: query features, `item` int64 [batch], `label` float32 [batch], where the
                data has sampled negatives `positive` bool [batch], and where interactions fade `weight` and
                `rating_weight` float32 [batch].
            training: Whether dropout is on.
        """
        if training and self._config.cold_start_dropout:
            inputs = self._apply_cold_start_dropout(inputs)
        items = inputs["item"]
        query = self._query(inputs, training)
        if self._config.retrieval_weight and self._config.retrieval.candidates == "catalogue":
            # Every item once, and the batch's from among them, for the rating head as well.
            every = self._items(tf.range(self._item_count + 1, dtype=tf.int64), training)
            item = tf.nest.map_structure(lambda values: tf.gather(values, items), every)
            retrieval = self._catalogue_loss(query, every, inputs)
        elif self._config.retrieval_weight and self._distinct_items:
            drawn = self._batch_softmax.draw(training)
            distinct, places = tf.unique(tf.concat([items, drawn], axis=0))
            every = self._items(distinct, training)
            item = tf.nest.map_structure(lambda values: tf.gather(values, places[: tf.shape(items)[0]]), every)
            ones = tf.ones_like(inputs["label"])
            retrieval = self._batch_softmax.distinct_loss(
                query.encoded.retrieval,
                every.encoded.retrieval,
                distinct,
                places,
                inputs.get("weight", ones),
                tf.cast(inputs["positive"], tf.float32) if "positive" in inputs else ones,
            )
        elif self._config.retrieval_weight:
            candidates = tf.concat([items, self._batch_softmax.draw(training)], axis=0)
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
            # `call`, because Keras would cast labels to 16 bits under a mixed-precision policy.
            weights = inputs.get("rating_weight", tf.ones_like(inputs["label"]))
            # Columns, so that every row has a loss and a weight of its own.
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
        """Some rows without what tells their user from a stranger: id (which the bias goes by) and history."""
        users = inputs[self._user_feature]
        hidden = tf.random.uniform(tf.shape(users)) < self._config.cold_start_dropout
        changed = {self._user_feature: tf.where(hidden, tf.zeros_like(users), users)}
        if self._history is not None:
            changed[self._history] = {**inputs[self._history], "hidden": hidden}
        return {**inputs, **changed}

    def _catalogue_loss(self, query: _Side, every: _Side, inputs: Mapping[str, Any]) -> tf.Tensor:
        weights = inputs.get("weight", tf.ones_like(inputs["label"]))
        if "positive" in inputs:
            # The candidates are the catalogue's whatever the batch is, so a weight of 0 leaves a negative out.
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
        # A weight of 0 would not do here: the negatives' items would still stand in the softmax, drawn from another
        # distribution than the one that the logQ correction undoes. Places are gathered instead of masked rows joined
        # with what is drawn, because XLA gives such a concatenation of unknown length wrong gradients.
        rows = tf.where(inputs["positive"])[:, 0]
        places = tf.concat([rows, tf.range(tf.size(weights, tf.int64), tf.size(candidates, tf.int64))], axis=0)
        return tf.cond(
            tf.size(rows) > 0,
            lambda: self._batch_softmax(
                tf.gather(factors, rows),
                tf.gather(others, places),
                tf.gather(candidates, places),
                tf.gather(weights, rows),
            ),
            lambda: tf.constant(0.0),
        )
