"""Requests to encoded queries, with the stored features and history of the user as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_metadata.proto.v0 import schema_pb2

from components.trainer.data.histories import whole_histories
from components.trainer.data.ragged_ops import boolean_mask, dense_boolean_mask, last_mask, value_rowids
from components.trainer.data.training_data import Arrays, TrainingData
from components.trainer.export.catalogue import Catalogue
from components.trainer.export.signature_inputs import (
    UNSET,
    Input,
    column,
    id_list,
    sparse,
    value_or_default,
)
from components.trainer.model.recommender import Encoded, TwoTaskRecommender
from components.trainer.model.towers import scope_name
from recipe.columns import column_types
from recipe.serving import HISTORY_INPUT
from recipe.trainer import TrainerRecipe

# An upper bound of the number of items in a vocabulary.
_KEYS_PER_ROW = 1 << 40


class EncodedQueries(NamedTuple):
    """The encoded queries of B requests."""

    user: tf.Tensor
    """int64 [B]: vocabulary indices, 0 for a new user."""
    query: Encoded
    """The output of the query tower and of the rating head's query side."""
    seen: tf.RaggedTensor
    """int64 [B, items]: the items that each user interacted with, in the train split and in the request's history."""


class QueryEncoder(tf.Module):
    """Encodes queries, and stores the latest query features and the history of U users by vocabulary index, 1 to U.

    Index 0, the OOV index, is a new user. The stored time is the latest in the train split.

    Example:
        >>> queries = served.query_encoder.encode_stored(tf.constant([1, 2], tf.int64))
        >>> queries.query.retrieval.shape[0]
        2
    """

    def __init__(
        self,
        model: TwoTaskRecommender,
        data: TrainingData,
        transform: tft.TransformFeaturesLayer,
        recipe: TrainerRecipe,
        schema: schema_pb2.Schema,
        catalogue: Catalogue,
    ) -> None:
        """See `ServedRecommender` for the arguments; `catalogue` looks up the item ids of a request's history."""
        super().__init__(name="query_encoder")
        self._catalogue = catalogue
        self._id_column = recipe.columns.user_id
        self._user_feature = data.user_feature
        self._features = recipe.features.for_transform().query
        self._history = recipe.features.history
        types = column_types(schema)
        names = sorted({feature.column for feature in self._features} - {self._id_column})
        self._types = {name: types[name] for name in names}
        self._transform = transform
        self._encode_query = model.encode_query
        # A SavedModel saves the variables of tracked attributes; the layers of a bound method are not tracked.
        layers = (model.query_tower, model.rating_head)
        self._weights = [variable for layer in layers for variable in layer.variables]
        self._stored_features = {
            name: tf.Variable(values, trainable=False, name=f"stored_{scope_name(name)}")
            for name, values in _latest_query_features(data, recipe).items()
        }
        self._seen_items = tf.Variable(data.histories.items, trainable=False, name="seen_items")
        self._seen_starts = tf.Variable(data.histories.starts, trainable=False, name="seen_starts")
        if self._history is not None:
            deviations = data.histories.deviations
            self._seen_deviations = tf.Variable(deviations, trainable=False, name="seen_deviations")

    @property
    def inputs(self) -> list[Input]:
        """Signature inputs for the query columns other than the user id and, with a history feature, for item ids."""
        columns = [column(name, kind) for name, kind in self._types.items()]
        return columns if self._history is None else [*columns, id_list(HISTORY_INPUT)]

    @property
    def column_types(self) -> dict[str, str]:
        """Types of the raw query columns by name, the user id included."""
        return {**self._types, self._id_column: "BYTES"}

    def encode(self, user_id: tf.Tensor, context: Mapping[str, tf.Tensor]) -> EncodedQueries:
        """Encode requests from the inputs of a signature.

        Args:
            user_id: string [B]
            context: `inputs` by name: columns [B], or [1] for all rows; and the history, string [B, L] or [1, L]: item
                ids ordered by time, appended to the stored history.
        """
        raw = {self._id_column: sparse(user_id, UNSET["BYTES"])}
        for name, kind in self._types.items():
            raw[name] = sparse(tf.broadcast_to(context[name], tf.shape(user_id)), UNSET[kind])
        return self.encode_raw(raw, context.get(HISTORY_INPUT))

    def encode_raw(self, raw: Mapping[str, tf.SparseTensor], history: tf.Tensor | None = None) -> EncodedQueries:
        """Encode requests from raw columns [B, 1] by name, and a history as in `encode`."""
        transformed = self._transform(dict(raw))
        user = transformed[self._user_feature]
        stored = self._features_of(user)
        features = {
            feature.name: value_or_default(raw[feature.column], transformed[feature.name], stored[feature.name])
            if feature.name in self._stored_features
            else transformed[feature.name]
            for feature in self._features
        }
        return self._encode(user, features, history)

    def encode_stored(self, user: tf.Tensor) -> EncodedQueries:
        """Encode requests of users int64 [B], by vocabulary index, from their stored features and histories."""
        return self._encode(user, {self._user_feature: user, **self._features_of(user)}, None)

    def _features_of(self, user: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.gather(values.read_value(), user) for name, values in self._stored_features.items()}

    def _encode(self, user: tf.Tensor, features: Mapping[str, tf.Tensor], history: tf.Tensor | None) -> EncodedQueries:
        seen = self._of_users(self._seen_items, user)
        if self._history is None:
            return EncodedQueries(user, self._encode_query(features), seen)
        items, deviations = seen, self._of_users(self._seen_deviations, user)
        if history is not None:
            recent = self._history_items(history, tf.size(user))
            # An item has one entry, at the later time, as in training.
            others = tf.logical_not(_contained(items, recent))
            items = tf.concat([boolean_mask(items, others), recent], axis=1)
            # A request's history has no labels.
            neutral = tf.zeros_like(recent, tf.float32)
            deviations = tf.concat([boolean_mask(deviations, others), neutral], axis=1)
            seen = items
        latest = last_mask(items, self._history.max_length)
        whole = whole_histories(boolean_mask(items, latest), boolean_mask(deviations, latest))
        return EncodedQueries(user, self._encode_query({**features, self._history.name: whole}), seen)

    def _of_users(self, values: tf.Variable, user: tf.Tensor) -> tf.RaggedTensor:
        """Return the values of each user's stored history, [B, items], ordered by time."""
        every = tf.RaggedTensor.from_row_splits(values.read_value(), self._seen_starts.read_value(), validate=False)
        return tf.gather(every, user)

    def _history_items(self, history: tf.Tensor, rows: tf.Tensor) -> tf.RaggedTensor:
        """Look up items, int64 [B, None], of ids, string [B, L], without new items and earlier duplicates."""
        indices = tf.broadcast_to(self._catalogue.indices(history), [rows, tf.shape(history)[1]])
        known = dense_boolean_mask(indices, indices > 0)
        keys, _ = tf.unique(tf.reverse(_keys(known), [0]))
        keys = tf.reverse(keys, [0])
        nrows = tf.cast(rows, tf.int64)
        return tf.RaggedTensor.from_value_rowids(keys % _KEYS_PER_ROW, keys // _KEYS_PER_ROW, nrows, validate=False)


def _keys(rows: tf.RaggedTensor) -> tf.Tensor:
    """Return a key for each value, int64 [V], unique over rows and values."""
    return value_rowids(rows) * _KEYS_PER_ROW + rows.flat_values


def _contained(values: tf.RaggedTensor, rows: tf.RaggedTensor) -> tf.Tensor:
    """Return a mask bool [V] of the V `values`, int64 [B, None], that the same row of `rows`, int64 [B, None], has."""
    # A sentinel at the end, because `tf.searchsorted` may return the length.
    sorted_keys = tf.concat([tf.sort(_keys(rows)), [tf.int64.max]], axis=0)
    keys = _keys(values)
    return tf.equal(tf.gather(sorted_keys, tf.searchsorted(sorted_keys, keys)), keys)


def _latest_query_features(data: TrainingData, recipe: TrainerRecipe) -> Arrays:
    """Return the query features of each user's latest interaction, [U + 1] or [U + 1, values], without the user id.

    Features of the timestamp have the latest value of the train split for all users, because a request without a time
    means "now". Sampled negatives are not interactions.
    """
    interactions = np.flatnonzero(data.positive)
    order = interactions[np.argsort(data.times[interactions], kind="stable")]
    latest: Arrays = {}
    for feature in recipe.features.for_transform().query:
        if feature.name == data.user_feature:
            continue
        values = data.query[feature.name]
        if feature.column == recipe.columns.timestamp:
            latest[feature.name] = np.full(data.user_count + 1, values[interactions].max(), values.dtype)
        else:
            latest[feature.name] = np.zeros((data.user_count + 1, *values.shape[1:]), values.dtype)
            latest[feature.name][data.users[order]] = values[order]
            latest[feature.name][0] = 0
    return latest
