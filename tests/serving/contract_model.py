"""A small SavedModel for the tests of the server, with signatures as the Trainer exports them.

    python tests/serving/contract_model.py DIR

writes version 1 under DIR, so that `pytest tests/serving --target HOST:PORT` can run against a real TensorFlow Serving
that serves DIR as the model `recommender`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

USERS = ("1", "2", "3")
ITEMS = tuple(f"i{number}" for number in range(150))
TOP_K = 100
# User 3 has seen nearly all items: fewer than k are left.
FEW_LEFT_USER = "3"
FEW_LEFT = 4
# Defaults of optional inputs; a default of rank 2 makes an input of rank 2.
CONTEXT = {"occupation": tf.constant([""]), "timestamp": tf.constant([0], tf.int64), "age": tf.constant([0.0])}
HISTORY = {"history": tf.constant([[""]])}


class ContractModel(tf.Module):  # type: ignore[misc]
    """Fixed scores plus `marker`, which identifies the version that answered."""

    def __init__(self, items: tuple[str, ...] = ITEMS, marker: float = 0.0) -> None:
        super().__init__()
        generator = np.random.default_rng(7)
        self.users = _table(USERS)
        self.items = _table(items)
        self.item_ids = tf.constant(items)
        self.titles = tf.constant([f"Title of {item}: é" for item in items])
        self.user_vectors = tf.Variable(generator.normal(size=(len(USERS) + 1, 8)).astype(np.float32))
        self.item_vectors = tf.Variable(generator.normal(size=(8, len(items) + 1)).astype(np.float32))
        self.marker = tf.Variable(np.float32(marker))
        self.k = min(TOP_K, len(items))

    def _user_vectors(self, user_id: tf.Tensor, touched: tf.Tensor) -> tf.Tensor:
        position = self.users.lookup(user_id)
        known = position >= 0
        users = tf.gather(self.user_vectors.read_value(), tf.where(known, position, tf.constant(len(USERS), tf.int64)))
        # As in the exported model: added to the stored history, in any order, divided by the square root of the number.
        count = tf.maximum(tf.reduce_sum(touched, axis=1, keepdims=True), 1.0)
        return users + tf.matmul(touched, self.item_vectors.read_value()[:, :-1], transpose_b=True) / tf.sqrt(count)

    def _touched(self, user_id: tf.Tensor, history: tf.Tensor | None) -> tf.Tensor:
        """Return float32 [B, items], the number of each item in the user's history; '' and unknown ids are ignored."""
        batch, count = tf.shape(user_id)[0], tf.shape(self.item_vectors)[1] - 1
        if history is None:
            return tf.zeros([batch, count])
        position = self.items.lookup(tf.broadcast_to(history, [batch, tf.shape(history)[1]]))
        return tf.reduce_sum(tf.one_hot(position, count), axis=1)

    def recommend(
        self,
        user_id: tf.Tensor,
        occupation: tf.Tensor,
        timestamp: tf.Tensor,
        age: tf.Tensor,
        history: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        batch = tf.shape(user_id)[:1]
        occupation, timestamp, age = (tf.broadcast_to(each, batch) for each in (occupation, timestamp, age))
        touched = self._touched(user_id, history)
        scores = tf.matmul(self._user_vectors(user_id, touched), self.item_vectors.read_value()[:, :-1])
        context = age + tf.cast(timestamp, tf.float32) + 1000.0 * tf.cast(tf.strings.length(occupation), tf.float32)
        scores += context[:, None] + self.marker.read_value()
        scores, best = tf.math.top_k(tf.where(touched > 0, scores.dtype.min, scores), self.k)
        few = tf.cast(user_id == FEW_LEFT_USER, tf.int32)[:, None] * (self.k - FEW_LEFT)
        left = (tf.range(self.k)[None, :] < self.k - few) & (scores > scores.dtype.min)
        ids = tf.where(left, tf.gather(self.item_ids, best), "")
        titles = tf.where(left, tf.gather(self.titles, best), "")
        return {"item_ids": ids, "scores": scores, "ratings": 3.0 + scores / 1e4, "title": titles}

    def rate(
        self,
        user_id: tf.Tensor,
        item_id: tf.Tensor,
        occupation: tf.Tensor,
        timestamp: tf.Tensor,
        age: tf.Tensor,
        history: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        batch = tf.shape(user_id)[:1]
        occupation, timestamp, age = (tf.broadcast_to(each, batch) for each in (occupation, timestamp, age))
        position = self.items.lookup(item_id)
        position = tf.where(position >= 0, position, tf.cast(tf.shape(self.item_vectors)[1] - 1, tf.int64))
        vectors = tf.gather(tf.transpose(self.item_vectors.read_value()), position)
        users = self._user_vectors(user_id, self._touched(user_id, history))
        return {"rating": 3.0 + tf.reduce_sum(users * vectors, axis=1) / 100 + age / 1000}

    def evaluate(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        features = tf.io.parse_example(
            examples,
            {
                "user_id": tf.io.FixedLenFeature([], tf.string, ""),
                "item_id": tf.io.FixedLenFeature([], tf.string, ""),
            },
        )
        zeros = tf.zeros_like(features["user_id"], tf.float32)
        rating = self.rate(
            features["user_id"], features["item_id"], features["user_id"], tf.cast(zeros, tf.int64), zeros
        )
        return {"rating": rating["rating"], "top_100_hit": zeros + 1.0}


def _table(keys: tuple[str, ...]) -> tf.lookup.StaticHashTable:
    values = tf.range(len(keys), dtype=tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant(keys), values), -1)


def export(
    folder: Path, *, items: tuple[str, ...] = ITEMS, marker: float = 0.0, history: bool = True, warmup: bool = True
) -> Path:
    """Write a version into `folder` (`…/1`); without `history`, as for a recipe without that feature."""
    model = ContractModel(items, marker)
    optional = {**CONTEXT, **HISTORY} if history else CONTEXT
    recommend = with_optional(model.recommend, ["user_id"], optional)
    rate = with_optional(model.rate, ["user_id", "item_id"], optional)
    evaluate = tf.function(model.evaluate, input_signature=[tf.TensorSpec([None], tf.string, "examples")])
    signatures = {"serving_default": evaluate, "evaluate": evaluate, "recommend": recommend, "rate": rate}
    tf.saved_model.save(model, str(folder), signatures=signatures)
    if warmup:
        requests = [
            predict_request("recommend", user_id=["1"]),
            predict_request("rate", user_id=["1"], item_id=["i1"]),
        ]
        write_warmup(folder, requests)
    return folder


def with_optional(
    function: Callable[..., dict[str, tf.Tensor]], required: Sequence[str], optional: Mapping[str, tf.Tensor]
) -> tf.types.experimental.PolymorphicFunction:
    """Wrap `function` with string inputs [B], and optional inputs of any size in each dimension.

    Default arguments of a tf.function with a TensorSpec signature become SignatureDef.defaults.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in required]
    parameters += [inspect.Parameter(name, kind, default=default) for name, default in optional.items()]
    specs = [tf.TensorSpec([None], tf.string, name) for name in required]
    specs += [tf.TensorSpec([None] * default.shape.rank, default.dtype, name) for name, default in optional.items()]

    def signature(*args: tf.Tensor, **kwargs: tf.Tensor) -> dict[str, tf.Tensor]:
        return function(**dict(zip((each.name for each in parameters), args, strict=False)), **kwargs)

    signature.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return tf.function(signature, input_signature=specs)


def write_warmup(folder: Path, requests: list[predict_pb2.PredictRequest]) -> None:
    path = folder / "assets.extra"
    path.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path / "tf_serving_warmup_requests")) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())


def predict_request(
    signature: str, model: str = "recommender", version: int | None = None, **inputs: object
) -> predict_pb2.PredictRequest:
    """Build a request with `tf.make_tensor_proto`."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    for name, value in inputs.items():
        tensor = value if isinstance(value, tensor_pb2.TensorProto) else tf.make_tensor_proto(value)
        request.inputs[name].CopyFrom(tensor)
    return request


if __name__ == "__main__":
    sys.stdout.write(f"wrote {export(Path(sys.argv[1], '1'))}\n")
