"""Executor of the InfraValidator: a server process, real requests, a blessing or the reason why not."""

from __future__ import annotations

import contextlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pydantic
import tensorflow as tf
from absl import logging
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

import tandem_client
from components.infra_validator.agreement import NotServable, check_finite, check_lists, check_ratings, check_same
from components.infra_validator.eval_rows import EvalRows, read_eval_rows
from components.infra_validator.latency import P50_PROPERTY, P99_PROPERTY, Latency, measure
from components.infra_validator.offline import OfflineModel, warmup_requests
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
LIST_LENGTH = 10

# What the candidate is asked besides its own warm-up requests.
SIGNATURES = ("evaluate", "rate", "recommend", "serving_default")
IDS = ("user_id", "item_id")


class Settings(pydantic.BaseModel):
    """How the candidate is asked, and the version of the code that asks it, so that no cached blessing outlives it."""

    code_version: str

    user_id: str
    """Column of the user ids in the raw examples."""
    item_id: str
    """Column of the item ids."""
    exclude_seen: bool = True
    """Whether `recommend` leaves out what a user has interacted with in train."""
    max_p99_ms: float | None = None
    """The longest p99 of `recommend`, in milliseconds, that is blessed; None blesses any."""
    requests: int = 64
    """Raw eval examples that are sent."""
    start_timeout_s: float = 300.0
    """Seconds that loading may take."""
    request_timeout_s: float = 10.0
    """Seconds that one answer may take."""


class Executor(base_executor.BaseExecutor):
    """Blesses a model that a real server answers with as it was evaluated, in time."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:  # noqa: N802  (TFX's name)
        self._log_startup(input_dict, output_dict, exec_properties)
        settings = Settings.model_validate_json(exec_properties[SETTINGS_KEY])
        model = artifact_utils.get_single_instance(input_dict[MODEL_KEY])
        blessing = artifact_utils.get_single_instance(output_dict[BLESSING_KEY])
        uri = artifact_utils.get_split_uri(input_dict[EXAMPLES_KEY], "eval")
        rows = read_eval_rows(uri, settings.requests, settings.user_id, settings.item_id)
        try:
            latency = validate(path_utils.serving_model_path(model.uri), rows, settings)
            blessing.set_float_custom_property(P50_PROPERTY, latency.p50_ms)
            blessing.set_float_custom_property(P99_PROPERTY, latency.p99_ms)
            check_latency(latency, settings.max_p99_ms)
        except (NotServable, ServerFailed) as error:
            logging.error("Not servable: %s", error)
            blessing.set_int_custom_property(BLESSED_PROPERTY, 0)
            blessing.set_string_custom_property(REASON_PROPERTY, str(error))
            io_utils.write_string_file(os.path.join(blessing.uri, NOT_BLESSED), str(error))
        else:
            blessing.set_int_custom_property(BLESSED_PROPERTY, 1)
            io_utils.write_string_file(os.path.join(blessing.uri, BLESSED), "")


def validate(model_path: str, rows: EvalRows, settings: Settings) -> Latency:
    """Serves the SavedModel, holds its answers against the same model offline, and times them.

    Args:
        model_path: Folder of the SavedModel.
        rows: Eval rows to ask for.
        settings: How to ask.

    Returns:
        What one caller of `recommend` waits.

    Raises:
        NotServable: An answer is an error, not a finite number, or another one than was evaluated.
        ServerFailed: The server does not load the model.
    """
    if not len(rows):
        raise NotServable("the eval split has no example to ask with")
    with tempfile.TemporaryDirectory(prefix="tandem-infra-") as folder, ThreadPoolExecutor(max_workers=1) as meanwhile:
        copy = os.path.join(folder, "1")
        io_utils.copy_dir(model_path, copy)
        # Takes as long as the server's start, which is another process's work. The server's complaints come first.
        loading = meanwhile.submit(_loaded_and_called, copy, rows)
        with serving(Path(folder), MODEL_NAME, settings.start_timeout_s) as target, loading.result() as offline:
            missing = [name for name in SIGNATURES if name not in offline.signatures]
            if missing:
                raise NotServable(
                    f"the model has no signature {', '.join(missing)}; it has {', '.join(sorted(offline.signatures))}"
                )
            _compare_same_requests(target, offline, warmup_requests(copy), rows, settings)
            return _ask_as_clients_do(target, offline, rows, settings)


def _loaded_and_called(path: str, rows: EvalRows) -> OfflineModel:
    """The model in this process, called once with everything that it will be asked: first calls are the slow ones."""
    offline = OfflineModel(path)
    # What it cannot answer is found out and told when the server has been asked.
    with contextlib.suppress(Exception):
        offline("evaluate", {"examples": rows.examples})
        for request in [*warmup_requests(path), _serialized(rows)]:
            offline(*_asked(request))
    return offline


def check_latency(latency: Latency, limit_ms: float | None) -> None:
    """Raises:
    NotServable: The p99 is over the limit.
    """
    logging.info(
        "recommend: p50 %.2f ms, p99 %.2f ms of %d requests in sequence",
        *(latency.p50_ms, latency.p99_ms, latency.requests),
    )
    if limit_ms is not None and latency.p99_ms > limit_ms:
        raise NotServable(
            f"recommend is too slow: 99 of 100 calls took up to {latency.p99_ms:.2f} ms (half of them "
            f"{latency.p50_ms:.2f} ms), the recipe's serving.max_p99_ms allows {limit_ms:g}. Make the model smaller, "
            "or raise the limit if callers can wait"
        )


def _compare_same_requests(
    target: str,
    offline: OfflineModel,
    warmup: list[predict_pb2.PredictRequest],
    rows: EvalRows,
    settings: Settings,
) -> None:
    """Sends the model's own warm-up requests and the serialized rows, whatever they ask, there and here."""
    named = [(f"warm-up request {number}", request) for number, request in enumerate(warmup, start=1)]
    # A proxy cannot reach this machine's loopback, and answers may be long.
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(target, options=options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for name, request in [*named, ("the request with serialized eval rows", _serialized(rows))]:
            request.model_spec.name = MODEL_NAME
            signature, inputs = _asked(request)
            what = f"{name} ({signature})"
            try:
                answer = stub.Predict(request, timeout=settings.request_timeout_s)
            except grpc.RpcError as error:
                raise NotServable(f"{what} failed: {error.code().name}: {error.details()}") from error
            served = {key: tf.make_ndarray(value) for key, value in answer.outputs.items()}
            check_same(what, served, offline(signature, inputs))


def _serialized(rows: EvalRows) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.inputs["examples"].CopyFrom(tf.make_tensor_proto(rows.examples, tf.string, [len(rows)]))
    return request


def _asked(request: predict_pb2.PredictRequest) -> tuple[str, dict[str, Any]]:
    """The signature that a request is for, and its inputs by name."""
    inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
    return request.model_spec.signature_name or "serving_default", inputs


def _ask_as_clients_do(target: str, offline: OfflineModel, rows: EvalRows, settings: Settings) -> Latency:
    """Asks `rate` and `recommend` for the rows through the client, and holds the answers against `evaluate`."""
    evaluated = offline("evaluate", {"examples": rows.examples})
    try:
        with tandem_client.Recommender(target, model=MODEL_NAME, timeout=settings.request_timeout_s) as client:
            ratings = client.rate_batch(rows.users, rows.items, context=_context(offline, "rate", rows))
            check_finite("rate", ratings)
            check_ratings(ratings, evaluated["rating"], rows.users, rows.items)

            context = _context(offline, "recommend", rows)
            length = _list_length(offline)
            answers = client.recommend_batch(rows.users, k=length, context=context)
            for answer in answers:
                check_finite(f"recommend for {answer.user_id!r}", [(item.score, item.rating) for item in answer.items])
            check_lists(
                [[item.item_id for item in answer.items] for answer in answers],
                [[(item.score, item.rating) for item in answer.items] for answer in answers],
                evaluated,
                rows.items,
                length=length,
                exclude_seen=settings.exclude_seen,
            )
            # Who has seen the whole catalogue has nothing left; a new user always has.
            if not client.recommend(UNKNOWN_USER, k=1).items:
                raise NotServable("recommend has no item for a new user")

            def one(number: int) -> None:
                row = number % len(rows)
                client.recommend(rows.users[row], k=length, context={name: of[row] for name, of in context.items()})

            return measure(one, settings.max_p99_ms)
    except tandem_client.TandemClientError as error:
        raise NotServable(str(error)) from error


def _context(offline: OfflineModel, signature: str, rows: EvalRows) -> dict[str, list[Any]]:
    """The rows' own values of the columns that the signature takes: it would fill them in from memory otherwise."""
    columns = {name for row in rows.columns for name in row}
    defaults = offline.signatures[signature].defaults
    taken = [name for name in offline.signatures[signature].inputs if name in columns and name not in IDS]
    found = {name: tf.make_ndarray(defaults[name]).ravel()[0] for name in taken}
    return rows.context({name: _plain(value) for name, value in found.items()})


def _list_length(offline: OfflineModel) -> int:
    """Items that `recommend` answers, or as many as are compared where the signature leaves it open."""
    size: int = offline.signatures["recommend"].outputs["item_ids"].tensor_shape.dim[1].size
    return size if size > 0 else LIST_LENGTH


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value.item()
