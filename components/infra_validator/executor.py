"""Executor of the InfraValidator: a server process, real requests, a blessing or the reason why not."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import grpc
import pydantic
import tensorflow as tf
from absl import logging
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

import tandem_client
from components.infra_validator.server_process import ServerFailed, serving

MODEL_KEY = "model"
EXAMPLES_KEY = "examples"
BLESSING_KEY = "blessing"
SETTINGS_KEY = "settings"

# What TFX's Pusher looks for, and the files that TFX's own InfraValidator leaves.
BLESSED_PROPERTY = "blessed"
BLESSED = "INFRA_BLESSED"
NOT_BLESSED = "INFRA_NOT_BLESSED"
REASON_PROPERTY = "reason"

MODEL_NAME = "candidate"
UNKNOWN_USER = "tandem: a user that nobody has seen"


class Settings(pydantic.BaseModel):
    """How the candidate is asked, and the version of the code that asks it, so that no cached blessing outlives it."""

    code_version: str

    user_id: str
    """Column of the user ids in the raw examples."""
    item_id: str
    """Column of the item ids."""
    requests: int = 32
    """Raw eval examples that are sent."""
    start_timeout_s: float = 120.0
    """Seconds that loading may take."""
    request_timeout_s: float = 10.0
    """Seconds that one answer may take."""


class NotServable(Exception):
    """The candidate does not answer as it should; the text is the reason."""


class Executor(base_executor.BaseExecutor):
    """Blesses a model that a real server loads and that answers real requests."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:  # noqa: N802  (TFX's name)
        self._log_startup(input_dict, output_dict, exec_properties)
        settings = Settings.model_validate_json(exec_properties[SETTINGS_KEY])
        model = artifact_utils.get_single_instance(input_dict[MODEL_KEY])
        blessing = artifact_utils.get_single_instance(output_dict[BLESSING_KEY])
        examples = read_examples(artifact_utils.get_split_uri(input_dict[EXAMPLES_KEY], "eval"), settings.requests)
        try:
            if not examples:
                raise NotServable("the eval split has no example to ask with")
            with tempfile.TemporaryDirectory(prefix="tandem-infra-") as folder:
                io_utils.copy_dir(path_utils.serving_model_path(model.uri), os.path.join(folder, "1"))
                with serving(Path(folder), MODEL_NAME, settings.start_timeout_s) as target:
                    ask(target, examples, settings)
        except (NotServable, ServerFailed) as error:
            logging.error("Not servable: %s", error)
            blessing.set_int_custom_property(BLESSED_PROPERTY, 0)
            blessing.set_string_custom_property(REASON_PROPERTY, str(error))
            io_utils.write_string_file(os.path.join(blessing.uri, NOT_BLESSED), str(error))
        else:
            blessing.set_int_custom_property(BLESSED_PROPERTY, 1)
            io_utils.write_string_file(os.path.join(blessing.uri, BLESSED), "")


def read_examples(uri: str, count: int) -> list[bytes]:
    """The first `count` serialized examples of a split."""
    files = sorted(tf.io.gfile.glob(os.path.join(uri, "*")))
    records = tf.data.TFRecordDataset(files, compression_type="GZIP").take(count)
    return [record.numpy() for record in records]


def ask(target: str, examples: list[bytes], settings: Settings) -> None:
    """Sends the examples to every signature that serves and looks at the answers.

    Raises:
        NotServable: An answer is an error, empty or not a finite number.
    """
    users, items = zip(*(_ids(example, settings) for example in examples), strict=True)
    try:
        with tandem_client.Recommender(target, model=MODEL_NAME, timeout=settings.request_timeout_s) as client:
            for answer in client.recommend_batch([*users, UNKNOWN_USER], k=1):
                # Who has seen the whole catalogue has nothing left; a new user always has.
                if not answer.items and answer.user_id == UNKNOWN_USER:
                    raise NotServable("recommend has no item for a new user")
                for item in answer.items:
                    _check_finite(f"recommend for {answer.user_id!r}", [item.score, item.rating])
            _check_finite("rate", list(client.rate_batch(list(users), list(items))))
        # A proxy cannot reach this machine's loopback.
        with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = MODEL_NAME
            request.inputs["examples"].CopyFrom(tf.make_tensor_proto(examples, tf.string, [len(examples)]))
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            answer = stub.Predict(request, timeout=settings.request_timeout_s)
            numbers = {name: values for name, values in answer.outputs.items() if values.dtype != types_pb2.DT_STRING}
            for name, values in numbers.items():
                _check_finite(f"serving_default, {name}", tf.make_ndarray(values).ravel().tolist())
    except tandem_client.TandemClientError as error:
        raise NotServable(str(error)) from error
    except grpc.RpcError as error:
        raise NotServable(f"serving_default: {error.code().name}: {error.details()}") from error


def _ids(example: bytes, settings: Settings) -> tuple[str, str]:
    features = tf.train.Example.FromString(example).features.feature
    user, item = (features[column].bytes_list.value[0].decode() for column in (settings.user_id, settings.item_id))
    return user, item


def _check_finite(what: str, values: list[float]) -> None:
    for value in values:
        if not math.isfinite(value):
            raise NotServable(f"{what} answered {value}, a finite number was wanted")
