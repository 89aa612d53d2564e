"""One loaded version of a SavedModel: a TensorFlow 1 session, as in TensorFlow Serving, that runs Predict requests.

`versions.py` loads and unloads servables; `api/core.py` sends them requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import tensorflow as tf
from tensorflow.core.framework import tensor_shape_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow_serving.apis import predict_pb2

from serving.api import tensor_proto
from serving.api.prometheus import ServingMetrics
from serving.api.served_models import DEFAULT_SIGNATURE, TimeRemaining
from serving.api.status import ServingError, code_from_number, invalid_argument
from serving.server.batching import Batcher, BatchQueue, Executor

_SERVE_TAG = "serve"
_INIT_OP = "__saved_model_init_op"  # names an operation, not tensors
# A client selects any subset of the outputs, and each subset has its own executor. Beyond this number, the executor
# with all outputs is used, so that a client cannot fill the server's memory with executors.
_MAX_EXECUTORS_PER_SIGNATURE = 16
_RUNTIME = "TF1"  # TensorFlow Serving's label for sessions in runtime_latency

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Input:
    alias: str
    tensor_name: str
    dtype: int
    shape: tuple[int, ...] | None  # -1: any size; None: any rank
    default: tensor_proto.Array | None

    def describe(self) -> str:
        shape = "[any rank]" if self.shape is None else tensor_proto.shape_text(self.shape)
        return f"{tensor_proto.dtype_name(self.dtype)} {shape}"


class _Signature:
    """A SignatureDef with its compiled executors."""

    def __init__(
        self,
        name: str,
        definition: meta_graph_pb2.SignatureDef,
        compiler: Callable[[Sequence[str], Sequence[str]], Executor],
        batcher: Batcher | None,
    ) -> None:
        self.name = name
        self._definition = definition
        self._compiler = compiler
        self._batcher = batcher
        self._inputs = [
            _Input(
                alias=alias,
                tensor_name=info.name,
                dtype=info.dtype,
                shape=_static_shape(info.tensor_shape),
                default=(
                    tensor_proto.to_ndarray(alias, definition.defaults[alias]) if alias in definition.defaults else None
                ),
            )
            for alias, info in sorted(definition.inputs.items())
        ]
        self._outputs = tuple(sorted(definition.outputs))
        self._lock = threading.Lock()
        self._executors: dict[tuple[str, ...], Executor] = {}
        self._queues: dict[tuple[str, ...], BatchQueue] = {}
        self._executors[self._outputs] = self._compile(self._outputs)

    def run(
        self,
        request: predict_pb2.PredictRequest,
        response: predict_pb2.PredictResponse,
        time_remaining: TimeRemaining | None,
    ) -> float:
        """Fill in the outputs; return the seconds in the graph, and in the batch queue."""
        feeds = self._feeds(request)
        requested = self._requested_outputs(request)
        fetched_aliases, executor = self._executor(requested)
        started = time.perf_counter()
        try:
            queue = self._queues.get(fetched_aliases)  # None without batching
            values = executor(*feeds) if queue is None else queue.run(feeds, _deadline(time_remaining))
        except tf.errors.OpError as error:
            raise self._failure(error, request) from error
        elapsed = time.perf_counter() - started
        for alias, value in zip(fetched_aliases, values, strict=True):
            if alias in requested:
                tensor_proto.fill(response.outputs[alias], value, self._definition.outputs[alias].dtype)
        return elapsed

    def _feeds(self, request: predict_pb2.PredictRequest) -> list[tensor_proto.Array]:
        """Return the inputs in the executor's order with defaults, their dtypes and shapes checked."""
        sent = request.inputs
        definition = self._definition
        if len(sent) > len(self._inputs) or (len(sent) < len(self._inputs) and not definition.defaults):
            extra = sorted(set(sent) - set(definition.inputs))
            missing = sorted(set(definition.inputs) - set(sent))
            raise invalid_argument(
                f"input size does not match signature: {len(sent)}!={len(self._inputs)} len({_braced(sent)}) != "
                f"len({_braced(definition.inputs)}). Sent extra: {_braced(extra)}. "
                f"Missing but required: {_braced(missing)}. Signature: {self.name}."
            )
        feeds = []
        used = 0
        for position, expected in enumerate(self._inputs):
            if expected.alias in sent:
                used += 1
                feeds.append(self._checked(position, expected, sent[expected.alias]))
            elif expected.default is not None:
                feeds.append(expected.default)
            else:
                raise invalid_argument(
                    f"Signature input alias: {expected.alias}(feed name: {expected.tensor_name}) not found in request "
                    f"and no default value provided. Inputs expected to be in the request {_braced(sent)}, or default "
                    f"input alias set: {_braced(definition.defaults)}. Signature {self.name} expects {expected.alias} "
                    f"as {expected.describe()}."
                )
        if used != len(sent):
            raise invalid_argument(
                f"Inputs contains invalid name. Used request inputs: {_joined(set(sent) & set(definition.inputs))}, "
                f"request input: {_joined(sent)}. Signature {self.name} has {_joined(definition.inputs)}."
            )
        return feeds

    def _checked(self, position: int, expected: _Input, tensor: Any) -> tensor_proto.Array:
        if tensor.dtype != expected.dtype:
            found = f"{tensor_proto.dtype_name(tensor.dtype)} {_sent_shape(tensor.tensor_shape)}"
            raise invalid_argument(
                f"Expects arg[{position}] to be {_short(expected.dtype)} but {_short(tensor.dtype)} is provided: input "
                f"{expected.alias} of signature {self.name}: expected {expected.describe()}, got {found}"
            )
        value = tensor_proto.to_ndarray(expected.alias, tensor)
        if expected.shape is not None and (
            len(value.shape) != len(expected.shape)
            or any(want not in (-1, size) for want, size in zip(expected.shape, value.shape, strict=True))
        ):
            raise invalid_argument(
                f"Incompatible shape for input {expected.alias} of signature {self.name}: expected "
                f"{tensor_proto.shape_text(expected.shape)} (-1 is any size), got "
                f"{tensor_proto.shape_text(value.shape)}"
            )
        return value

    def _failure(self, error: tf.errors.OpError, request: predict_pb2.PredictRequest) -> ServingError:
        """Return the op's error, with the inputs' shapes if their numbers of rows differ (only the graph checks it)."""
        code = code_from_number(error.error_code)
        shapes = {alias: request.inputs[alias].tensor_shape for alias in sorted(request.inputs)}
        rows = {shape.dim[0].size for shape in shapes.values() if shape.dim}
        if code is not grpc.StatusCode.INVALID_ARGUMENT or len(rows) < 2:
            return ServingError(code, error.message)
        sent = ", ".join(f"{alias} {_sent_shape(shape)}" for alias, shape in shapes.items())
        return invalid_argument(
            f"{error.message}\nSignature {self.name} expects inputs with one number of rows, got: {sent}"
        )

    def _requested_outputs(self, request: predict_pb2.PredictRequest) -> tuple[str, ...]:
        if not request.output_filter:
            return self._outputs
        seen: set[str] = set()
        for alias in request.output_filter:
            if alias not in self._definition.outputs:
                raise invalid_argument(
                    f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                    f"{_braced(self._outputs)}. Signature: {self.name}."
                )
            if alias in seen:
                raise invalid_argument(f"duplicate output tensor alias: {alias}")
            seen.add(alias)
        return tuple(sorted(seen))

    def _executor(self, requested: tuple[str, ...]) -> tuple[tuple[str, ...], Executor]:
        executor = self._executors.get(requested)
        if executor is not None:
            return requested, executor
        with self._lock:
            executor = self._executors.get(requested)
            if executor is None:
                if len(self._executors) >= _MAX_EXECUTORS_PER_SIGNATURE:
                    return self._outputs, self._executors[self._outputs]
                executor = self._executors[requested] = self._compile(requested)
        return requested, executor

    def _compile(self, outputs: tuple[str, ...]) -> Executor:
        executor = self._compiler(
            [each.tensor_name for each in self._inputs], [self._definition.outputs[alias].name for alias in outputs]
        )
        if self._batcher is not None:
            self._queues[outputs] = self._batcher.queue(executor)
        return executor

    def release(self) -> None:
        """Release the executors; the session can close only afterwards."""
        self._queues.clear()
        self._executors.clear()


class Servable:
    """A loaded SavedModel version. Thread-safe; call `close` only when no request is running."""

    def __init__(
        self,
        name: str,
        version: int,
        session: tf.compat.v1.Session,
        meta_graph: meta_graph_pb2.MetaGraphDef,
        metrics: ServingMetrics,
        batcher: Batcher | None,
    ) -> None:
        self.name = name
        self.version = version
        self.signature_defs: dict[str, meta_graph_pb2.SignatureDef] = dict(meta_graph.signature_def)
        self.metrics = metrics
        self._session = session
        self._signatures = {
            key: _Signature(key, definition, self._compile, batcher)
            for key, definition in self.signature_defs.items()
            if key != _INIT_OP and _is_dense(definition)
        }

    @classmethod
    def load(
        cls, name: str, version: int, path: Path, *, metrics: ServingMetrics, batcher: Batcher | None = None
    ) -> Servable:
        """Load the MetaGraph tagged `serve` from a SavedModel folder.

        Args:
            name: the model's name.
            version: the version's number.
            path: the SavedModel folder.
            metrics: records latencies.
            batcher: merges concurrent Predict requests; None for no batching.

        Raises:
            ServingError: with TensorFlow's code (NOT_FOUND for missing variables, DATA_LOSS for damaged ones).
        """
        graph = tf.Graph()
        session = tf.compat.v1.Session(graph=graph)
        try:
            with graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(session, [_SERVE_TAG], str(path))
            return cls(name, version, session, meta_graph, metrics, batcher)
        except Exception as error:
            session.close()
            raise _load_error(path, error) from error

    def predict(
        self, request: predict_pb2.PredictRequest, time_remaining: TimeRemaining | None = None
    ) -> predict_pb2.PredictResponse:
        """Run one signature.

        Args:
            request: an empty `model_spec.signature_name` means `serving_default`; inputs with a default may be omitted;
                `output_filter` selects outputs, and an empty one all of them.
            time_remaining: returns the seconds until the client's deadline; a request that waits longer in a batch
                queue is not run.

        Raises:
            ServingError: FAILED_PRECONDITION for an unknown signature (TensorFlow Serving's code for it),
                INVALID_ARGUMENT for inputs or outputs that do not match it, else the model's error.
        """
        key = request.model_spec.signature_name or DEFAULT_SIGNATURE
        signature = self._signatures.get(key)
        if signature is None:
            raise self._no_signature(key)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self.name
        response.model_spec.signature_name = key
        response.model_spec.version.value = self.version
        elapsed = signature.run(request, response, time_remaining)
        self.metrics.runtime_latency.record(elapsed * 1e6, self.name, "Predict", _RUNTIME)
        return response

    def _compile(self, inputs: Sequence[str], outputs: Sequence[str]) -> Executor:
        options = config_pb2.CallableOptions()
        options.feed.extend(inputs)
        options.fetch.extend(outputs)
        # The public Session.run takes twice as long: it looks up and checks feeds and fetches in every call.
        executor: Executor = self._session._make_callable_from_options(options)
        return executor

    def _no_signature(self, key: str) -> ServingError:
        definition = self.signature_defs.get(key)
        if definition is None:
            return ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{key}" not found. Version {self.version} of model {self.name} has: '
                f"{_joined(self._signatures)}.",
            )
        return ServingError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"Signature {key} has sparse or composite inputs or outputs; Predict supports dense tensors only",
        )

    def close(self) -> None:
        """Close the session and free its variables."""
        for signature in self._signatures.values():
            signature.release()
        self._signatures.clear()
        self._session.close()


def _deadline(time_remaining: TimeRemaining | None) -> float | None:
    left = None if time_remaining is None else time_remaining()
    return None if left is None else time.monotonic() + left


def _static_shape(shape: tensor_shape_pb2.TensorShapeProto) -> tuple[int, ...] | None:
    return None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)


def _sent_shape(shape: tensor_shape_pb2.TensorShapeProto) -> str:
    return tensor_proto.shape_text(dim.size for dim in shape.dim)


def _is_dense(definition: meta_graph_pb2.SignatureDef) -> bool:
    return all(info.name for info in (*definition.inputs.values(), *definition.outputs.values()))


def _load_error(path: Path, error: Exception) -> ServingError:
    if isinstance(error, ServingError):
        return error
    if isinstance(error, tf.errors.OpError):
        return ServingError(code_from_number(error.error_code), f"Loading SavedModel {path} failed: {error.message}")
    if isinstance(error, OSError):  # the loader's error for a saved_model.pb that does not parse
        return ServingError(grpc.StatusCode.DATA_LOSS, f"Loading SavedModel {path} failed: {error}")
    _logger.debug("loading %s", path, exc_info=error)
    return ServingError(grpc.StatusCode.INTERNAL, f"Loading SavedModel {path} failed: {type(error).__name__}: {error}")


def _short(dtype: int) -> str:
    return tensor_proto.dtype_name(dtype).removeprefix("DT_").lower()


def _joined(names: Any) -> str:
    return ",".join(sorted(names))


def _braced(names: Any) -> str:
    return "{" + _joined(names) + "}"
