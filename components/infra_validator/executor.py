"""Executor of the InfraValidator: starts a server with the candidate, sends requests, writes the blessing."""

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
from components.infra_validator.eval_rows import EvalRows, read_eval_rows
from components.infra_validator.latency import P50_PROPERTY, P99_PROPERTY, Latency, measure
from components.infra_validator.local_model import LocalModel, warmup_requests
from components.infra_validator.response_checks import NotServable, check_finite, check_lists, check_ratings, check_same
from components.infra_validator.server_process import ServerFailed, serving

MODEL_KEY = "model"
EXAMPLES_KEY = "examples"
BLESSING_KEY = "blessing"
SETTINGS_KEY = "settings"

# The properties that TFX's Pusher reads, and the files that TFX's InfraValidator writes.
BLESSED_PROPERTY = "blessed"
BLESSED = "INFRA_BLESSED"
NOT_BLESSED = "INFRA_NOT_BLESSED"
REASON_PROPERTY = "reason"

MODEL_NAME = "candidate"
UNKNOWN_USER = "tandem: a new user"
LIST_LENGTH = 10

# The signatures that every candidate must have.
SIGNATURES = ("evaluate", "rate", "recommend", "serving_default")
IDS = ("user_id", "item_id")


class InfraValidatorSettings(pydantic.BaseModel):
    """Settings of the InfraValidator, which the component passes to its executor."""

    code_version: str
    """Hash of the component's code; part of the cache key."""
    user_id: str
    """Column of the user ids in the raw examples."""
    item_id: str
    """Column of the item ids."""
    exclude_seen: bool = True
    """Whether `recommend` excludes the items that a user interacted with in the train split."""
    max_p99_ms: float | None = None
    """Threshold of the p99 latency of `recommend` in milliseconds; None without a threshold."""
    requests: int = 64
    """Number of raw eval examples in requests."""
    start_timeout_s: float = 300.0
    """Timeout of the server's start, warm-up included."""
    request_timeout_s: float = 10.0
    """Timeout of one request."""


class Executor(base_executor.BaseExecutor):
    """Blesses a model whose responses equal those of the evaluation, within the latency threshold."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:  # noqa: N802  (TFX's name)
        self._log_startup(input_dict, output_dict, exec_properties)
        settings = InfraValidatorSettings.model_validate_json(exec_properties[SETTINGS_KEY])
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
            logging.error("Not blessed: %s", error)
            blessing.set_int_custom_property(BLESSED_PROPERTY, 0)
            blessing.set_string_custom_property(REASON_PROPERTY, str(error))
            io_utils.write_string_file(os.path.join(blessing.uri, NOT_BLESSED), str(error))
        else:
            blessing.set_int_custom_property(BLESSED_PROPERTY, 1)
            io_utils.write_string_file(os.path.join(blessing.uri, BLESSED), "")


def validate(model_path: str, rows: EvalRows, settings: InfraValidatorSettings) -> Latency:
    """Serve the SavedModel, compare its responses with the model in this process, and measure the latency.

    Args:
        model_path: Folder of the SavedModel.
        rows: Eval rows for the requests.
        settings: Settings of the component.

    Returns:
        Latency of `recommend`: 1 client, gRPC.

    Raises:
        NotServable: A response is an error, is not finite, or differs from the evaluation.
        ServerFailed: The server cannot load the model.
    """
    if not len(rows):
        raise NotServable("the eval split has no examples")
    with tempfile.TemporaryDirectory(prefix="tandem-infra-") as folder, ThreadPoolExecutor(max_workers=1) as pool:
        copy = os.path.join(folder, "1")
        io_utils.copy_dir(model_path, copy)
        # In parallel with the server's start. If both fail, the server's error is reported.
        loading = pool.submit(_loaded_model, copy, rows)
        with serving(Path(folder), MODEL_NAME, settings.start_timeout_s) as target, loading.result() as local:
            missing = [name for name in SIGNATURES if name not in local.signatures]
            if missing:
                raise NotServable(
                    f"missing signatures: {', '.join(missing)}; the model has {', '.join(sorted(local.signatures))}"
                )
            _compare_same_requests(target, local, warmup_requests(copy), rows, settings)
            return _compare_with_evaluation(target, local, rows, settings)


def _loaded_model(path: str, rows: EvalRows) -> LocalModel:
    """Load the model in this process and run all later requests once, because first calls are slow."""
    local = LocalModel(path)
    # Errors are reported when the responses are compared.
    with contextlib.suppress(Exception):
        local("evaluate", {"examples": rows.examples})
        for request in [*warmup_requests(path), _serialized(rows)]:
            local(*_request(request))
    return local


def check_latency(latency: Latency, limit_ms: float | None) -> None:
    """Log the latency and check it against the threshold.

    Raises:
        NotServable: The p99 exceeds the threshold.
    """
    logging.info(
        "recommend latency: p50 %.2f ms, p99 %.2f ms (1 client, gRPC, %d requests)",
        *(latency.p50_ms, latency.p99_ms, latency.requests),
    )
    if limit_ms is not None and latency.p99_ms > limit_ms:
        raise NotServable(
            f"recommend latency: expected p99 ≤ {limit_ms:g} ms (serving.max_p99_ms), got p99 {latency.p99_ms:.2f} ms, "
            f"p50 {latency.p50_ms:.2f} ms (1 client, gRPC). Make the model smaller, or raise serving.max_p99_ms"
        )


def _compare_same_requests(
    target: str,
    local: LocalModel,
    warmup: list[predict_pb2.PredictRequest],
    rows: EvalRows,
    settings: InfraValidatorSettings,
) -> None:
    """Check that the server and the model in this process return the same for warm-up requests and serialized rows."""
    named = [(f"warm-up request {number}", request) for number, request in enumerate(warmup, start=1)]
    # A proxy cannot reach the loopback interface; responses may be large.
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(target, options=options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for name, request in [*named, ("the request with serialized eval rows", _serialized(rows))]:
            request.model_spec.name = MODEL_NAME
            signature, inputs = _request(request)
            what = f"{name} ({signature})"
            try:
                response = stub.Predict(request, timeout=settings.request_timeout_s)
            except grpc.RpcError as error:
                raise NotServable(f"{what}: {error.code().name}: {error.details()}") from error
            served = {key: tf.make_ndarray(value) for key, value in response.outputs.items()}
            check_same(what, served, local(signature, inputs))


def _serialized(rows: EvalRows) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.inputs["examples"].CopyFrom(tf.make_tensor_proto(rows.examples, tf.string, [len(rows)]))
    return request


def _request(request: predict_pb2.PredictRequest) -> tuple[str, dict[str, Any]]:
    """Return the signature of a request and its inputs by name."""
    inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
    return request.model_spec.signature_name or "serving_default", inputs


def _compare_with_evaluation(
    target: str, local: LocalModel, rows: EvalRows, settings: InfraValidatorSettings
) -> Latency:
    """Check that `rate` and `recommend` return what `evaluate` does for the same rows; measure `recommend`."""
    evaluated = local("evaluate", {"examples": rows.examples})
    try:
        with tandem_client.Recommender(target, model=MODEL_NAME, timeout=settings.request_timeout_s) as client:
            ratings = client.rate_batch(rows.users, rows.items, context=_context(local, "rate", rows))
            check_finite("rate", ratings)
            check_ratings(ratings, evaluated["rating"], rows.users, rows.items)

            context = _context(local, "recommend", rows)
            length = _list_length(local)
            lists = client.recommend_batch(rows.users, k=length, context=context)
            for one in lists:
                check_finite(f"recommend for {one.user_id!r}", [(item.score, item.rating) for item in one.items])
            check_lists(
                [[item.item_id for item in one.items] for one in lists],
                [[(item.score, item.rating) for item in one.items] for one in lists],
                evaluated,
                rows.items,
                length=length,
                exclude_seen=settings.exclude_seen,
            )
            # Unlike a user who interacted with the whole catalogue, a new user always gets items.
            if not client.recommend(UNKNOWN_USER, k=1).items:
                raise NotServable("recommend: expected at least 1 item for a new user, got 0")

            def request(number: int) -> None:
                row = number % len(rows)
                client.recommend(rows.users[row], k=length, context={name: of[row] for name, of in context.items()})

            return measure(request, settings.max_p99_ms)
    except tandem_client.TandemClientError as error:
        raise NotServable(str(error)) from error


def _context(local: LocalModel, signature: str, rows: EvalRows) -> dict[str, list[Any]]:
    """Return the rows' values of the signature's columns, which would default to the stored user features."""
    columns = {name for row in rows.columns for name in row}
    defaults = local.signatures[signature].defaults
    taken = [name for name in local.signatures[signature].inputs if name in columns and name not in IDS]
    found = {name: tf.make_ndarray(defaults[name]).ravel()[0] for name in taken}
    return rows.context({name: _plain(value) for name, value in found.items()})


def _list_length(local: LocalModel) -> int:
    """Return the number of items that `recommend` returns; `LIST_LENGTH` if the signature does not fix it."""
    size: int = local.signatures["recommend"].outputs["item_ids"].tensor_shape.dim[1].size
    return size if size > 0 else LIST_LENGTH


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value.item()
