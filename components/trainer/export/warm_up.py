"""Warm-up requests: what TensorFlow Serving sends a version of the model before the version takes traffic."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

WARM_UP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
MOST_REQUESTS = 1000
"""TensorFlow Serving does not load a model with more of them."""

Request = tuple[str, Mapping[str, Any]]
"""A signature's name and its inputs: lists of strings [B] or [B, n], and whole numbers."""


def write_warm_up(folder: str, requests: Iterable[Request]) -> None:
    """Writes requests into an exported model, in the order they are to be sent.

    Args:
        folder: That of the SavedModel.
        requests: At most `MOST_REQUESTS`.

    Raises:
        ValueError: There are more.
    """
    records = [_record(name, inputs) for name, inputs in requests]
    if len(records) > MOST_REQUESTS:
        raise ValueError(
            f"{len(records)} warm-up requests for {folder}; TensorFlow Serving loads a model with {MOST_REQUESTS} at "
            "most. Leave some out"
        )
    target = os.path.join(folder, WARM_UP_FILE)
    tf.io.gfile.makedirs(os.path.dirname(target))
    with tf.io.TFRecordWriter(target) as writer:
        for record in records:
            writer.write(record)


def _record(signature: str, inputs: Mapping[str, Any]) -> bytes:
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = signature
    for name, values in inputs.items():
        dtype = tf.int32 if isinstance(values, int) else tf.string
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values, dtype))
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    return bytes(log.SerializeToString())
