"""A SavedModel loaded in this process: the reference for the server's responses, and the model of `tandem batch`."""

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


class LocalModel:
    """A SavedModel in the kind of session that TensorFlow Serving makes, without a server.

    Example:
        with LocalModel("serving/movielens/17") as model:
            outputs = model("recommend", {"user_id": ["42"]})
    """

    def __init__(self, path: str) -> None:
        """Load the MetaGraph with the tag `serve` of the SavedModel at `path`.

        Raises:
            OSError, tf.errors.OpError: The SavedModel cannot be loaded.
        """
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        with graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], path)
        self.signatures = meta_graph.signature_def

    def __call__(self, signature: str, inputs: Mapping[str, Any]) -> Arrays:
        """Run a signature; missing inputs take the signature's defaults, as in TensorFlow Serving.

        Args:
            signature: Name of the signature.
            inputs: Arrays or array-likes by input name.

        Returns:
            All outputs by name.

        Raises:
            KeyError: The signature does not exist, or an input without a default is missing.
            tf.errors.OpError: The model rejects the inputs.
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
                raise KeyError(f"signature {signature}: input {name} is missing and has no default")
        fetches = {name: info.name for name, info in definition.outputs.items()}
        found: Arrays = self._session.run(fetches, feeds)
        return found

    def close(self) -> None:
        """Close the session and free its variables."""
        self._session.close()

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def warmup_requests(path: str) -> list[predict_pb2.PredictRequest]:
    """Return the warm-up requests of the SavedModel at `path`; empty if it has none."""
    file = os.path.join(path, WARMUP_FILE)
    if not tf.io.gfile.exists(file):
        return []
    logs = (prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in tf.data.TFRecordDataset(file))
    return [log.predict_log.request for log in logs]
