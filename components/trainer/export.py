"""The exported SavedModel: one graph that embeds, retrieves, leaves out seen items and predicts ratings.

Plain TensorFlow ops only, so that a stock TensorFlow Serving loads it. The signatures are the contract between the
pipeline and serving:

    serving_default, evaluate   examples string [B] (serialized tf.Example)
                                -> rating float [B], top_{1,5,10,50,100}_hit and top_{1,5,10,50,100}_unseen_hit
                                   float [B], and what else the Evaluator needs; see `_evaluate`
    recommend                   user_id string [B], other query columns optional
                                -> item_ids string [B, k], scores float [B, k], ratings float [B, k],
                                   and each display column string [B, k]
    rate                        user_id string [B], item_id string [B], other query columns optional
                                -> rating float [B]

Where the recipe has a history feature, `recommend` and `rate` also take `history` string [B, L], optional and padded
with '': item ids in order of time that count on top of the history the model remembers of a known user, and are all
there is of a stranger's. They are not recommended either; ids that are unknown do not count.

Optional inputs have a default in the signature (TensorFlow Serving fills it in) that means "not given": '' for strings,
the smallest int64, NaN. What is not given is what the model remembers of the user's latest training interaction; the
time is the latest in train. Unknown users and items are index 0, the average that id dropout taught the model.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from components.trainer.baselines import Baselines
from components.trainer.history import whole_histories
from components.trainer.model import Encoded, TwoTaskRecommender
from components.trainer.towers import scope_name
from components.trainer.training_data import Arrays, TrainingData, id_feature
from pipeline.recipe import HISTORY_INPUT, TrainerRecipe, column_types

SERVING_DEFAULT = "serving_default"
EVALUATE = "evaluate"
RECOMMEND = "recommend"
RATE = "rate"

TOP_K = (1, 5, 10, 50, 100)
LIST_LENGTH = 10

USER_ID = "user_id"
ITEM_ID = "item_id"

_NOT_GIVEN: dict[str, Any] = {"BYTES": "", "INT": np.iinfo(np.int64).min, "FLOAT": float("nan")}
_DTYPES = {"BYTES": tf.string, "INT": tf.int64, "FLOAT": tf.float32}

WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
WARMUP_BATCHES = (1, 8)

Signature = Callable[..., dict[str, tf.Tensor]]

# More than a vocabulary has items.
_KEYS_A_ROW = 1 << 40


class _Asked(NamedTuple):
    """B requests."""

    user: tf.Tensor
    """int64 [B]: vocabulary indices."""
    query: Encoded
    seen: tf.RaggedTensor
    """int64 [B, items]: what each user has interacted with, in train and in the history of the request."""


class ServedRecommender(tf.Module):
    """A trained `TwoTaskRecommender` with the catalogue, the users' history and the Transform graph in one module."""

    def __init__(
        self,
        model: TwoTaskRecommender,
        data: TrainingData,
        transform_output: tft.TFTransformOutput,
        recipe: TrainerRecipe,
        schema: schema_pb2.Schema,
    ) -> None:
        """Computes the catalogue's vectors once.

        Args:
            model: The trained model.
            data: What it was trained on.
            transform_output: Output of Transform.
            recipe: The recipe.
            schema: The raw columns' types and domains.
        """
        super().__init__(name="tandem")
        columns = recipe.columns
        self._columns = columns
        self._query_features = recipe.features.for_transform().query
        self._history = recipe.features.history
        self._user_feature = data.user_feature
        self._item_feature = id_feature(recipe.features.candidate, columns.item_id).name
        self._types = column_types(schema)
        self._query_columns = sorted({feature.column for feature in self._query_features} - {columns.user_id})
        self._bounds = label_bounds(schema, columns.label)
        self._k = min(recipe.serving.k, data.item_count)
        self._exclude_seen = recipe.serving.exclude_seen

        self._transform = transform_output.transform_features_layer()
        self._encode_query = model.encode_query
        self._predict_ratings = model.predict_ratings
        # A SavedModel holds the variables of what it tracks; bound methods are not tracked.
        self._weights = [*model.query_tower.variables, *model.rating_head.variables]

        items = model.encode_items(tf.range(data.item_count + 1, dtype=tf.int64))
        # [D, N]: this way round the product with the queries needs no transposition. Unknown is left out.
        self._candidates = tf.Variable(tf.transpose(items.retrieval[1:]), trainable=False, name="factors")
        self._item_rating = tf.Variable(items.rating, trainable=False, name="item_rating")
        self._item_bias = tf.Variable(items.bias, trainable=False, name="item_bias")
        vocabulary = transform_output.vocabulary_by_name(self._item_feature)
        self._item_ids = tf.constant([b"", *vocabulary])
        self._display = {name: tf.constant(values) for name, values in data.display.items()}
        self._remembered = {
            name: tf.Variable(values, trainable=False, name=f"remembered_{scope_name(name)}")
            for name, values in _latest_query_features(data, recipe).items()
        }
        self._seen_items = tf.Variable(data.histories.items, trainable=False, name="seen_items")
        self._seen_starts = tf.Variable(data.histories.starts, trainable=False, name="seen_starts")
        if self._history is not None:
            deviations = data.histories.deviations
            self._seen_deviations = tf.Variable(deviations, trainable=False, name="seen_deviations")
        self._baselines = Baselines(data)

    def signatures(self) -> dict[str, Any]:
        """The concrete functions to save, by signature name."""
        user = tf.TensorSpec([None], tf.string, name=USER_ID)
        item = tf.TensorSpec([None], tf.string, name=ITEM_ID)
        examples = tf.TensorSpec([None], tf.string, name="examples")
        evaluate = tf.function(self._evaluate, input_signature=[examples])
        return {
            SERVING_DEFAULT: evaluate,
            EVALUATE: evaluate,
            RECOMMEND: self._with_context(self._recommend, [user]),
            RATE: self._with_context(self._rate, [user, item]),
        }

    def _with_context(self, function: Signature, required: Sequence[tf.TensorSpec]) -> Any:
        """`function` with the required inputs and one optional input for each further query column."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(spec.name, kind) for spec in required]
        specs = list(required)
        for column in self._query_columns:
            dtype = _DTYPES[self._types[column]]
            default = tf.constant([_NOT_GIVEN[self._types[column]]], dtype)
            parameters.append(inspect.Parameter(column, kind, default=default))
            specs.append(tf.TensorSpec([None], dtype, name=column))
        if self._history is not None:
            parameters.append(inspect.Parameter(HISTORY_INPUT, kind, default=tf.constant([[""]])))
            specs.append(tf.TensorSpec([None, None], tf.string, name=HISTORY_INPUT))

        def signature(*args: tf.Tensor, **kwargs: tf.Tensor) -> dict[str, tf.Tensor]:
            given = dict(zip((parameter.name for parameter in parameters), args, strict=False)) | kwargs
            return function(**{spec.name: given.pop(spec.name) for spec in required}, context=given)

        signature.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return tf.function(signature, input_signature=specs)

    def _recommend(self, user_id: tf.Tensor, context: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        asked = self._encode(self._raw(user_id, context), context.get(HISTORY_INPUT))
        items, best = self._best(self._scores(asked.query), asked.seen, self._k)
        ratings = self._rating(Encoded(*(tf.expand_dims(part, axis=1) for part in asked.query)), items)
        return {
            "item_ids": tf.gather(self._item_ids, items),
            "scores": best,
            "ratings": tf.where(items > 0, ratings, tf.zeros_like(best)),
            **{name: tf.gather(values, items) for name, values in self._display.items()},
        }

    def _rate(self, user_id: tf.Tensor, item_id: tf.Tensor, context: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        asked = self._encode(self._raw(user_id, context), context.get(HISTORY_INPUT))
        return {"rating": self._rating(asked.query, self._item_indices(_sparse(item_id, "")))}

    def _evaluate(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """What the Evaluator needs to know of each example, for the model and for the baselines beside it.

        Ranks are places among the whole catalogue, the first one 0; -1 where there is none, because the item is unknown
        or has another id in `recommend`, or the scores are no numbers. Those that end in `_unseen` are places among the
        items that the user has no interaction with in train; the example's own item is always a candidate.

        Args:
            examples: string [B], serialized raw tf.Examples.

        Returns:
            rating                           float32 [B]
            rank, rank_unseen                int64 [B]
            top_{k}_hit, top_{k}_unseen_hit  float32 [B]: 1 where the rank is below k
            top_10_items                     int64 [B, 10]: the first ten items that `recommend` answers, as vocabulary
                                             indices, padded with 0
            top_10_popularity                float32 [B]: their mean of log(1 + interactions in train)
            mean_rating                      float32 [B]: the rating of the damped user and item means
            popularity_rank, popularity_rank_unseen, popularity_top_10_items, popularity_top_10_popularity
                                             the same of the most popular items
            user_key                         int64 [B]: the same for the same user id, known or not
            user_interactions, user_activity, item_interactions, item_popularity
                                             see `Baselines.familiarity`
            catalogue_size                   int64 [B]: the number of items
        """
        names = [*self._query_columns, self._columns.user_id, self._columns.item_id]
        spec = {name: tf.io.VarLenFeature(_DTYPES[self._types[name]]) for name in names}
        raw = tf.io.parse_example(examples, spec)
        item_ids = raw.pop(self._columns.item_id)
        item = self._item_indices(item_ids)
        asked = self._encode(raw)
        scores = self._scores(asked.query)
        # A hit is one only if `recommend` calls the item by its name, and if its scores are numbers: not-a-number
        # compares false with everything and would win every comparison.
        named = tf.equal(tf.gather(self._item_ids, item), _dense(item_ids))
        counts = tf.reduce_all([item > 0, named, tf.reduce_all(tf.math.is_finite(scores), axis=1)], axis=0)
        true = tf.gather(scores, tf.maximum(item - 1, 0), batch_dims=1)
        answer = {"rating": self._rating(asked.query, item)}
        for suffix, candidates in (("", scores), ("_unseen", self._without_seen(scores, asked.seen))):
            rank = tf.where(counts, _rank(candidates, true, item), -1)
            answer[f"rank{suffix}"] = rank
            for k in TOP_K:
                answer[f"top_{k}{suffix}_hit"] = tf.cast(tf.logical_and(rank >= 0, rank < k), tf.float32)
        popular = tf.repeat(self._baselines.scores()[None, :], tf.size(item), axis=0)
        for prefix, candidates in (("", scores), ("popularity_", popular)):
            items, _ = self._best(candidates, asked.seen, LIST_LENGTH)
            answer[f"{prefix}top_{LIST_LENGTH}_items"] = items
            answer[f"{prefix}top_{LIST_LENGTH}_popularity"] = self._baselines.log_popularity(items)
        popularity_rank, popularity_rank_unseen = self._baselines.rank(item, asked.seen)
        users = _dense(raw[self._columns.user_id])
        return {
            **answer,
            "mean_rating": self._within_bounds(self._baselines.rating(asked.user, item)),
            "popularity_rank": popularity_rank,
            "popularity_rank_unseen": popularity_rank_unseen,
            "user_key": tf.strings.to_hash_bucket_fast(users, np.iinfo(np.int64).max),
            **self._baselines.familiarity(asked.user, item),
            "catalogue_size": tf.fill(tf.shape(item), tf.shape(scores, tf.int64)[1]),
        }

    def _raw(self, user_id: tf.Tensor, context: Mapping[str, tf.Tensor]) -> dict[str, tf.SparseTensor]:
        """Dense inputs [B] (or [1] for all rows) as sparse columns [B, 1]; what is not given is absent."""
        raw = {self._columns.user_id: _sparse(user_id, "")}
        for column in self._query_columns:
            values = tf.broadcast_to(context[column], tf.shape(user_id))
            raw[column] = _sparse(values, _NOT_GIVEN[self._types[column]])
        return raw

    def _encode(self, raw: Mapping[str, tf.SparseTensor], history: tf.Tensor | None = None) -> _Asked:
        """Raw query columns, and item ids string [B, L] or [1, L] on top of what the model remembers, encoded."""
        transformed = self._transform(dict(raw))
        user = transformed[self._user_feature]
        features = {}
        for feature in self._query_features:
            values = transformed[feature.name]
            if isinstance(values, tf.SparseTensor):
                values = tf.sparse.to_dense(values)
            if feature.name in self._remembered:
                given = _is_given(raw[feature.column])
                values = _choose(given, values, tf.gather(self._remembered[feature.name].read_value(), user))
            features[feature.name] = values
        seen = self._of_users(self._seen_items, user)
        if self._history is None:
            return _Asked(user, self._encode_query(features), seen)
        items, deviations = seen, self._of_users(self._seen_deviations, user)
        if history is not None:
            touched = self._touched(tf.broadcast_to(history, [tf.size(user), tf.shape(history)[1]]))
            # An item counts once, at the later time, as in training.
            others = tf.logical_not(_contains(touched, items))
            items = tf.concat([tf.ragged.boolean_mask(items, others), touched], axis=1)
            # Nobody said how much the user liked them.
            neutral = tf.zeros_like(touched, tf.float32)
            deviations = tf.concat([tf.ragged.boolean_mask(deviations, others), neutral], axis=1)
            seen = items
        latest = slice(-self._history.max_length, None)
        features[self._history.name] = whole_histories(items[:, latest], deviations[:, latest])
        return _Asked(user, self._encode_query(features), seen)

    def _touched(self, history: tf.Tensor) -> tf.RaggedTensor:
        """Item ids string [B, L] to the indices int64 [B, None] of the known ones, each once, where it is last."""
        rows = tf.shape(history, tf.int64)[0]
        indices = tf.reshape(self._item_indices(_sparse(tf.reshape(history, [-1]), "")), tf.shape(history))
        known = tf.ragged.boolean_mask(indices, indices > 0)
        keys, _ = tf.unique(tf.reverse(_keys(known), [0]))
        keys = tf.reverse(keys, [0])
        return tf.RaggedTensor.from_value_rowids(keys % _KEYS_A_ROW, keys // _KEYS_A_ROW, nrows=rows)

    def _item_indices(self, raw: tf.SparseTensor) -> tf.Tensor:
        return self._transform({self._columns.item_id: raw})[self._item_feature]

    def _scores(self, query: Encoded) -> tf.Tensor:
        """Retrieval scores of the whole catalogue, [B, N], in vocabulary order."""
        return tf.matmul(query.retrieval, self._candidates.read_value())

    def _best(self, scores: tf.Tensor, seen: tf.RaggedTensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The items with the highest scores, seen ones left out where the recipe says so.

        Returns:
            Item indices int64 [B, k], best first, padded with 0; and their scores float32 [B, k].
        """
        if self._exclude_seen:
            scores = self._without_seen(scores, seen)
        count = min(k, int(self._item_ids.shape[0]) - 1)
        best, positions = tf.math.top_k(scores, k=count)
        found = best > scores.dtype.min
        items = tf.where(found, tf.cast(positions, tf.int64) + 1, 0)
        padding = [[0, 0], [0, k - count]]
        return tf.pad(items, padding), tf.pad(tf.where(found, best, tf.zeros_like(best)), padding)

    def _of_users(self, values: tf.Variable, user: tf.Tensor) -> tf.RaggedTensor:
        """What `values` have for each user's training interactions, [B, items], in order of time."""
        every = tf.RaggedTensor.from_row_splits(values.read_value(), self._seen_starts.read_value(), validate=False)
        return tf.gather(every, user)

    def _without_seen(self, scores: tf.Tensor, seen: tf.RaggedTensor) -> tf.Tensor:
        places = tf.stack([seen.value_rowids(), seen.flat_values - 1], axis=1)
        lowest = tf.fill([tf.shape(places)[0]], scores.dtype.min)
        return tf.tensor_scatter_nd_min(scores, places, lowest)

    def _rating(self, query: Encoded, item: tf.Tensor) -> tf.Tensor:
        encoded = Encoded(
            retrieval=None,
            rating=tf.gather(self._item_rating.read_value(), item),
            bias=tf.gather(self._item_bias.read_value(), item),
        )
        return self._within_bounds(self._predict_ratings(query, encoded))

    def _within_bounds(self, rating: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(rating, *self._bounds) if self._bounds else rating


def save(served: ServedRecommender, path: str, user_ids: Sequence[str], item_ids: Sequence[str]) -> None:
    """Writes the SavedModel and its warm-up requests.

    Args:
        served: The module to export.
        path: Folder to write; TensorFlow Serving calls it a version once a Pusher has numbered it.
        user_ids: Users that the warm-up requests ask for; at least one.
        item_ids: Items that they rate; at least one.
    """
    tf.saved_model.save(served, path, signatures=served.signatures())
    target = os.path.join(path, WARMUP_FILE)
    tf.io.gfile.makedirs(os.path.dirname(target))
    with tf.io.TFRecordWriter(target) as writer:
        for size in WARMUP_BATCHES:
            users = [user_ids[index % len(user_ids)] for index in range(size)]
            items = [item_ids[index % len(item_ids)] for index in range(size)]
            for name, inputs in ((RECOMMEND, {USER_ID: users}), (RATE, {USER_ID: users, ITEM_ID: items})):
                request = predict_pb2.PredictRequest()
                request.model_spec.signature_name = name
                for key, values in inputs.items():
                    request.inputs[key].CopyFrom(tf.make_tensor_proto(values, tf.string, [size]))
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
                writer.write(log.SerializeToString())


def label_bounds(schema: schema_pb2.Schema, label: str) -> tuple[float, float] | None:
    """Smallest and largest label that the schema allows; None where it leaves an end open."""
    feature = next(feature for feature in schema.feature if feature.name == label)
    kind = feature.WhichOneof("domain_info")
    if kind not in ("float_domain", "int_domain"):
        return None
    domain = getattr(feature, kind)
    given = {field.name for field, _ in domain.ListFields()}
    return (float(domain.min), float(domain.max)) if {"min", "max"} <= given and domain.max > domain.min else None


def _rank(scores: tf.Tensor, true: tf.Tensor, item: tf.Tensor) -> tf.Tensor:
    """Places int64 [B] of the items [B], whose scores are `true` [B], among the candidates' scores [B, N]."""
    # `tf.math.top_k` puts equal scores in the order of the catalogue.
    earlier = tf.range(tf.shape(scores, tf.int64)[1])[None, :] < item[:, None] - 1
    ahead = tf.logical_or(scores > true[:, None], tf.logical_and(tf.equal(scores, true[:, None]), earlier))
    return tf.reduce_sum(tf.cast(ahead, tf.int64), axis=1)


def _keys(rows: tf.RaggedTensor) -> tf.Tensor:
    """One number for each value, int64, which tells its row too."""
    return tf.cast(rows.value_rowids(), tf.int64) * _KEYS_A_ROW + rows.flat_values


def _contains(rows: tf.RaggedTensor, values: tf.RaggedTensor) -> tf.RaggedTensor:
    """bool, shaped as `values` [B, None]: whether each of them is among the same row of `rows`, int64 [B, None]."""
    # A last key that no value has, so that there is one at every place that the search can answer.
    there = tf.concat([tf.sort(_keys(rows)), [tf.int64.max]], axis=0)
    keys = _keys(values)
    found = tf.equal(tf.gather(there, tf.searchsorted(there, keys)), keys)
    return values.with_flat_values(found)


def _sparse(values: tf.Tensor, not_given: Any) -> tf.SparseTensor:
    """[B] to a sparse [B, 1] without the rows that say "not given"."""
    given = values == values if values.dtype.is_floating else tf.not_equal(values, tf.constant(not_given, values.dtype))
    rows = tf.where(given)
    indices = tf.concat([rows, tf.zeros_like(rows)], axis=1)
    return tf.SparseTensor(indices, tf.boolean_mask(values, given), tf.stack([tf.size(values, tf.int64), 1]))


def _dense(column: tf.SparseTensor) -> tf.Tensor:
    """The one string of each row, [B]; empty where there is none."""
    return tf.squeeze(tf.RaggedTensor.from_sparse(column).to_tensor("", shape=[None, 1]), axis=1)


def _is_given(column: tf.SparseTensor) -> tf.Tensor:
    """bool [B]: whether the row has a value."""
    rows = tf.cast(column.dense_shape[0], tf.int32)
    return tf.math.unsorted_segment_max(tf.ones_like(column.indices[:, 0]), column.indices[:, 0], rows) > 0


def _choose(given: tf.Tensor, values: tf.Tensor, remembered: tf.Tensor) -> tf.Tensor:
    """`values` where given, else `remembered`; padded to the same width where rows hold several values."""
    if values.shape.rank == 1:
        return tf.where(given, values, remembered)
    width = tf.maximum(tf.shape(values)[1], tf.shape(remembered)[1])
    padded = [tf.pad(rows, [[0, 0], [0, width - tf.shape(rows)[1]]]) for rows in (values, remembered)]
    return tf.where(given[:, None], *padded)


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
