"""Warm-up: runs the requests in a SavedModel before its version becomes available, as TensorFlow Serving does."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serving.api.status import ServingError, code_from_number, invalid_argument
from serving.server.servable import Servable

WARMUP_REQUESTS = Path("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000


def run_warmup(servable: Servable, path: Path) -> int:
    """Run every request of the version's warm-up file.

    Args:
        servable: the loaded version.
        path: the version's folder.

    Returns:
        The number of requests; 0 without a warm-up file.

    Raises:
        ServingError: a record that is not a PredictionLog of Predict, a request that fails, or more than 1,000 records.
            TensorFlow Serving fails the load, too.
    """
    warmup_path = path / WARMUP_REQUESTS
    if not warmup_path.exists():
        return 0
    records = 0
    try:
        for record in tf.compat.v1.io.tf_record_iterator(str(warmup_path)):
            records += 1
            if records > MAX_RECORDS:
                raise invalid_argument(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {warmup_path}")
            _replay(servable, record, records, warmup_path)
    except tf.errors.OpError as error:
        raise ServingError(
            code_from_number(error.error_code),
            f"{error.message}. Please verify your warmup data is in TFRecord format: {warmup_path}",
        ) from error
    return records


def _replay(servable: Servable, record: bytes, number: int, warmup_path: Path) -> None:
    try:
        log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError as error:
        raise invalid_argument(f"Failed to parse warmup record: number {number} from {warmup_path}: {error}") from error
    kind = log.WhichOneof("log_type")
    if kind != "predict_log":
        raise invalid_argument(
            f"Unsupported log_type for warmup: {kind} in record {number} of {warmup_path}; expected predict_log"
        )
    try:
        servable.predict(log.predict_log.request)
    except ServingError as error:
        raise ServingError(error.code, f"Warmup request {number} of {warmup_path} failed: {error.message}") from error
