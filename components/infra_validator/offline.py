"""The exported model in this process: what its answers over the wire are held against."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

Arrays = Mapping[str, npt.NDArray[Any]]

WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")


class OfflineModel:
    """A SavedModel in the session that TensorFlow Serving's loader makes, without a server around it."""

    def __init__(self, path: str) -> None:
        """Loads the MetaGraph tagged `serve` of the SavedModel at `path`.

        Raises:
            OSError, tf.errors.OpError: It is not a SavedModel that loads.
        """
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        with graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], path)
        self.signatures = meta_graph.signature_def

    def __call__(self, signature: str, inputs: Mapping[str, Any]) -> Arrays:
        """Runs a signature; inputs that are not given take the signature's defaults, as TensorFlow Serving does it.

        Args:
            signature: Its name.
            inputs: Arrays, or what makes one, by the signature's names.

        Returns:
            Every output by its name.

        Raises:
            KeyError: There is no such signature, or an input without default is not given.
            tf.errors.OpError: The model does not take these inputs.
        """
        definition = self.signatures[signature]
        feeds = {}
        for name, info in definition.inputs.items():
            if name in inputs:
                dtype = tf.dtypes.as_dtype(info.dtype).as_numpy_dtype
                feeds[info.name] = np.array(inputs[name], object if dtype is object else dtype)
            elif name in definition.defaults:
                feeds[info.name] = tf.make_ndarray(definition.defaults[name])
            else:
                raise KeyError(f"signature {signature} has no default for its input {name}")
        fetches = {name: info.name for name, info in definition.outputs.items()}
        found: Arrays = self._session.run(fetches, feeds)
        return found

    def close(self) -> None:
        """Frees the session and its variables."""
        self._session.close()

    def __enter__(self) -> OfflineModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def warmup_requests(path: str) -> list[predict_pb2.PredictRequest]:
    """The requests that the SavedModel at `path` brings for TensorFlow Serving's warm-up; none where it has no file."""
    file = os.path.join(path, WARMUP_FILE)
    if not tf.io.gfile.exists(file):
        return []
    logs = (prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in tf.data.TFRecordDataset(file))
    return [log.predict_log.request for log in logs]
