"""Warm-up requests, which TensorFlow Serving runs before it makes a version available."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

WARM_UP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
MAX_REQUESTS = 1000
"""TensorFlow Serving does not load a model with more warm-up requests."""

Request = tuple[str, Mapping[str, Any]]
"""A signature's name and its inputs: lists of strings [B] or [B, n], and integers."""


def write_warm_up(folder: str, requests: Iterable[Request]) -> None:
    """Write warm-up requests into a SavedModel.

    Args:
        folder: The folder of the SavedModel.
        requests: At most `MAX_REQUESTS` requests, in the order in which they are run.

    Raises:
        ValueError: There are more than `MAX_REQUESTS` requests.

    Example:
        >>> write_warm_up("model", [("recommend", {"user_id": ["42"]})])
        >>> os.path.exists(os.path.join("model", WARM_UP_FILE))
        True
    """
    records = [_record(name, inputs) for name, inputs in requests]
    if len(records) > MAX_REQUESTS:
        raise ValueError(
            f"{folder}: expected at most {MAX_REQUESTS} warm-up requests, the limit of TensorFlow Serving, got "
            f"{len(records)}. Remove requests."
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
