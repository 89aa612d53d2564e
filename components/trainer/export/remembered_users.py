"""Requests encoded: who asks, and whatever is not given as the model remembers it of the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_metadata.proto.v0 import schema_pb2

from components.trainer.data.histories import whole_histories
from components.trainer.data.ragged_rows import kept, kept_of_dense, last, row_of_each
from components.trainer.data.training_data import Arrays, TrainingData
from components.trainer.export.catalogue import Catalogue
from components.trainer.export.signature_inputs import (
    NOT_GIVEN,
    Input,
    column,
    given_or,
    id_list,
    sparse,
)
from components.trainer.model.recommender import Encoded, TwoTaskRecommender
from components.trainer.model.towers import scope_name
from recipe.columns import column_types
from recipe.serving import HISTORY_INPUT
from recipe.trainer import TrainerRecipe

# More than a vocabulary has items.
_KEYS_A_ROW = 1 << 40


class Asked(NamedTuple):
    """B requests."""

    user: tf.Tensor
    """int64 [B]: vocabulary indices, 0 for a stranger."""
    query: Encoded
    seen: tf.RaggedTensor
    """int64 [B, items]: what each user has interacted with, in train and in the history of the request."""


class RememberedUsers(tf.Module):
    """U users by vocabulary index, 1 to U: their latest query features, and the items of train.

    The time is the latest in train. A stranger is index 0, the average user that id dropout taught the model.
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
        """See `ServedRecommender`; `transform` is the Transform graph, and `catalogue` knows the items of histories."""
        super().__init__(name="remembered_users")
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
        # A SavedModel holds the variables of what it tracks; bound methods are not tracked.
        layers = (model.query_tower, model.rating_head)
        self._weights = [variable for layer in layers for variable in layer.variables]
        self._remembered = {
            name: tf.Variable(values, trainable=False, name=f"remembered_{scope_name(name)}")
            for name, values in _latest_query_features(data, recipe).items()
        }
        self._seen_items = tf.Variable(data.histories.items, trainable=False, name="seen_items")
        self._seen_starts = tf.Variable(data.histories.starts, trainable=False, name="seen_starts")
        if self._history is not None:
            deviations = data.histories.deviations
            self._seen_deviations = tf.Variable(deviations, trainable=False, name="seen_deviations")

    @property
    def inputs(self) -> list[Input]:
        """What a request may say besides who asks: query columns and, with a history feature, item ids."""
        columns = [column(name, kind) for name, kind in self._types.items()]
        return columns if self._history is None else [*columns, id_list(HISTORY_INPUT)]

    @property
    def column_types(self) -> dict[str, str]:
        """Types of the raw columns of a request, the user's id included."""
        return {**self._types, self._id_column: "BYTES"}

    def ask(self, user_id: tf.Tensor, context: Mapping[str, tf.Tensor]) -> Asked:
        """Requests as a signature gets them.

        Args:
            user_id: string [B].
            context: `inputs` by name: columns [B] or [1] for all rows, and a history string [B, L] or [1, L], item ids
                in order of time that count on top of what is remembered.
        """
        raw = {self._id_column: sparse(user_id, NOT_GIVEN["BYTES"])}
        for name, kind in self._types.items():
            raw[name] = sparse(tf.broadcast_to(context[name], tf.shape(user_id)), NOT_GIVEN[kind])
        return self.ask_raw(raw, context.get(HISTORY_INPUT))

    def ask_raw(self, raw: Mapping[str, tf.SparseTensor], history: tf.Tensor | None = None) -> Asked:
        """Requests as raw columns [B, 1] by name, and a history as in `ask`."""
        transformed = self._transform(dict(raw))
        user = transformed[self._user_feature]
        remembered = self._features_of(user)
        features = {
            feature.name: given_or(raw[feature.column], transformed[feature.name], remembered[feature.name])
            if feature.name in self._remembered
            else transformed[feature.name]
            for feature in self._features
        }
        return self._asked(user, features, history)

    def ask_remembered(self, user: tf.Tensor) -> Asked:
        """Requests of users int64 [B], by vocabulary index, that say nothing but who asks; no raw column is parsed."""
        return self._asked(user, {self._user_feature: user, **self._features_of(user)}, None)

    def _features_of(self, user: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.gather(values.read_value(), user) for name, values in self._remembered.items()}

    def _asked(self, user: tf.Tensor, features: Mapping[str, tf.Tensor], history: tf.Tensor | None) -> Asked:
        seen = self._of_users(self._seen_items, user)
        if self._history is None:
            return Asked(user, self._encode_query(features), seen)
        items, deviations = seen, self._of_users(self._seen_deviations, user)
        if history is not None:
            touched = self._touched(history, tf.size(user))
            # An item counts once, at the later time, as in training.
            others = tf.logical_not(_contained(items, touched))
            items = tf.concat([kept(items, others), touched], axis=1)
            # Nobody said how much the user liked them.
            neutral = tf.zeros_like(touched, tf.float32)
            deviations = tf.concat([kept(deviations, others), neutral], axis=1)
            seen = items
        latest = last(items, self._history.max_length)
        whole = whole_histories(kept(items, latest), kept(deviations, latest))
        return Asked(user, self._encode_query({**features, self._history.name: whole}), seen)

    def _of_users(self, values: tf.Variable, user: tf.Tensor) -> tf.RaggedTensor:
        """What `values` have for each user's training interactions, [B, items], in order of time."""
        every = tf.RaggedTensor.from_row_splits(values.read_value(), self._seen_starts.read_value(), validate=False)
        return tf.gather(every, user)

    def _touched(self, history: tf.Tensor, rows: tf.Tensor) -> tf.RaggedTensor:
        """Item ids string [B, L] to the indices int64 [B, None] of the known ones, each once, where it is last."""
        indices = tf.broadcast_to(self._catalogue.indices(history), [rows, tf.shape(history)[1]])
        known = kept_of_dense(indices, indices > 0)
        keys, _ = tf.unique(tf.reverse(_keys(known), [0]))
        keys = tf.reverse(keys, [0])
        nrows = tf.cast(rows, tf.int64)
        return tf.RaggedTensor.from_value_rowids(keys % _KEYS_A_ROW, keys // _KEYS_A_ROW, nrows, validate=False)


def _keys(rows: tf.RaggedTensor) -> tf.Tensor:
    """One number for each value, int64, which tells its row too."""
    return row_of_each(rows) * _KEYS_A_ROW + rows.flat_values


def _contained(values: tf.RaggedTensor, rows: tf.RaggedTensor) -> tf.Tensor:
    """bool [V]: whether each of the V `values`, int64 [B, None], is among the same row of `rows`, int64 [B, None]."""
    # A last key that no value has, so that there is one at every place that the search can answer.
    there = tf.concat([tf.sort(_keys(rows)), [tf.int64.max]], axis=0)
    keys = _keys(values)
    return tf.equal(tf.gather(there, tf.searchsorted(there, keys)), keys)


def _latest_query_features(data: TrainingData, recipe: TrainerRecipe) -> Arrays:
    """Query features of each user's latest training interaction, [U + 1] or [U + 1, values]; the user id excepted.

    Features of the time itself are the latest in train for everyone: a request without a time means "now". Sampled
    negatives never happened, so they are nobody's latest.
    """
    happened = np.flatnonzero(data.positive)
    order = happened[np.argsort(data.times[happened], kind="stable")]
    latest: Arrays = {}
    for feature in recipe.features.for_transform().query:
        if feature.name == data.user_feature:
            continue
        values = data.query[feature.name]
        if feature.column == recipe.columns.timestamp:
            latest[feature.name] = np.full(data.user_count + 1, values[happened].max(), values.dtype)
        else:
            latest[feature.name] = np.zeros((data.user_count + 1, *values.shape[1:]), values.dtype)
            latest[feature.name][data.users[order]] = values[order]
            latest[feature.name][0] = 0
    return latest
