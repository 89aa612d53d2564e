"""The requests of TensorFlow Serving's API on the models of this server, for gRPC and REST."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import grpc
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.api import example_requests
from serving.api.prometheus import ServingMetrics
from serving.api.served_models import DEFAULT_SIGNATURE, Servable, ServableVersions, State, TimeRemaining
from serving.api.status import ServingError, failed_precondition, invalid_argument, not_found, unavailable
from serving.config.errors import ConfigError
from serving.config.model_config import ModelSettings, model_settings

_SIGNATURE_DEF = "signature_def"
_UNLOAD_S = 60.0  # seconds that running requests get to finish on a model removed from the configuration
_logger = logging.getLogger(__name__)


class ServerCore:
    """The models of a server: finds the servable of a ModelSpec and runs the request on it."""

    def __init__(
        self,
        make_versions: Callable[[ModelSettings], ServableVersions],
        metrics: ServingMetrics,
        *,
        allow_labels_for_unavailable: bool = False,
        on_models: Callable[[Mapping[str, ServableVersions]], None] | None = None,
    ) -> None:
        """Make a core without models; `apply` adds them.

        Args:
            make_versions: makes the versions of one model, not started.
            metrics: source of ReloadConfigResponse's metrics.
            allow_labels_for_unavailable: allow a new label on a version that is not available yet.
            on_models: called with all models whenever the configuration has changed them.
        """
        self._make_versions = make_versions
        self.metrics = metrics
        self._allow_labels_for_unavailable = allow_labels_for_unavailable
        self._on_models = on_models
        self._models: dict[str, ServableVersions] = {}
        # Models removed from the configuration: they answer GetModelStatus only.
        self._removed: dict[str, ServableVersions] = {}
        self._labels: Mapping[str, Mapping[str, int]] = {}
        self._reloading = threading.Lock()
        self._draining = False

    @property
    def models(self) -> Mapping[str, ServableVersions]:
        """The versions of each model by the model's name."""
        return self._models

    # -- configuration ----------------------------------------------------------------------------------------------

    def apply(self, settings: Sequence[ModelSettings]) -> list[ServableVersions]:
        """Apply a configuration: labels first, then added, changed and removed models.

        The order is TensorFlow Serving's: a label can therefore only point to a version that was available before this
        call, unless labels on unavailable versions are allowed.

        Returns:
            The new models, which have started to load.

        Raises:
            ServingError: FAILED_PRECONDITION for a label on a version that is not available; nothing is changed then.
        """
        with self._reloading:
            self._labels = self._checked_labels(settings)
            return self._replace_models(settings)

    def configure(self, settings: Sequence[ModelSettings]) -> None:
        """Apply a configuration and wait for the first poll of each new model.

        Raises:
            ServingError: as `apply`, or UNKNOWN for new models without a version that loads; they stay configured and
                load as soon as a version does.
        """
        new = self.apply(settings)
        for versions in new:
            versions.wait_until_polled()
        failed = [versions for versions in new if not versions.available()]
        if failed:
            reasons = "".join(f"{{{_why_not_available(versions)}}}, " for versions in failed)
            raise ServingError(
                grpc.StatusCode.UNKNOWN, f"{len(failed)} model(s) did not become available: {{{reasons}}}"
            )

    def reload(self, request: model_management_pb2.ReloadConfigRequest) -> model_management_pb2.ReloadConfigResponse:
        """Answer ModelService.HandleReloadConfigRequest.

        Raises:
            ServingError: INVALID_ARGUMENT for a configuration that TensorFlow Serving rejects, else see `configure`.
        """
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
                "supported"
            )
        before = {name: self.metrics.first_value(name) for name in request.metric_names}
        try:
            settings = model_settings(request.config)
        except ConfigError as error:
            raise invalid_argument(str(error)) from error
        self.configure(settings)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        for name, value in before.items():
            response.metric.add(name=name, int64_value_increase=self.metrics.first_value(name) - value)
        return response

    def _checked_labels(self, settings: Sequence[ModelSettings]) -> dict[str, Mapping[str, int]]:
        for model in settings:
            versions = self._models.get(model.name)
            available = versions.available() if versions is not None else []
            for label, version in model.labels.items():
                current = self._labels.get(model.name, {}).get(label)
                allowed = self._allow_labels_for_unavailable and current in (None, version)
                if version not in available and not allowed:
                    found = ", ".join(map(str, available)) or "none"
                    raise failed_precondition(
                        f"Request to assign label to version {version} of model {model.name}, which is not currently "
                        f"available for inference. Label {label}; available versions: {found}. Load the version "
                        "first, then assign the label (--allow-version-labels-for-unavailable-models allows a new "
                        "label on it)"
                    )
        return {model.name: dict(model.labels) for model in settings}

    def _replace_models(self, settings: Sequence[ModelSettings]) -> list[ServableVersions]:
        """Add, change and remove models; return the new ones, started."""
        models: dict[str, ServableVersions] = {}
        new = []
        for model in settings:
            versions = self._models.get(model.name)
            if versions is None:
                versions = self._make_versions(model)
                new.append(versions)
                self._removed.pop(model.name, None)
            else:
                versions.reconfigure(model)
            models[model.name] = versions
        removed = [versions for name, versions in self._models.items() if name not in models]
        self._models = models
        for versions in removed:
            _logger.info("model %s: removed from the configuration, unloading", versions.name)
            self._removed[versions.name] = versions
            threading.Thread(
                target=versions.stop, args=(_UNLOAD_S,), name=f"remove-{versions.name}", daemon=True
            ).start()
        if self._on_models is not None:
            self._on_models(models)
        for versions in new:
            versions.start()
        return new

    # -- end --------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Reject new requests with UNAVAILABLE, which clients retry on another server; running ones continue."""
        self._draining = True

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until no request is running on any model; False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        return all(versions.wait_until_idle(deadline - time.monotonic()) for versions in self._models.values())

    def stop(self, timeout: float) -> None:
        """Unload all models; running requests get up to `timeout` seconds to finish."""
        deadline = time.monotonic() + timeout
        for versions in self._models.values():
            versions.stop(max(0.0, deadline - time.monotonic()))

    # -- requests ---------------------------------------------------------------------------------------------------

    def predict(
        self, request: predict_pb2.PredictRequest, time_remaining: TimeRemaining | None = None
    ) -> predict_pb2.PredictResponse:
        """Answer PredictionService.Predict.

        Args:
            request: see `Servable.predict`.
            time_remaining: returns the seconds until the client's deadline; None for no deadline.

        Raises:
            ServingError: NOT_FOUND for the model or version, else see `Servable.predict`.
        """
        _require_model_spec(request)
        with self._servable(request.model_spec) as servable:
            return servable.predict(request, time_remaining)

    def classify(self, request: classification_pb2.ClassificationRequest) -> NoReturn:
        """Reject PredictionService.Classify; see `example_requests.reject_classify`."""
        _require_model_spec(request)
        with self._servable(request.model_spec) as servable:
            example_requests.reject_classify(servable, request.model_spec)

    def regress(self, request: regression_pb2.RegressionRequest) -> NoReturn:
        """Reject PredictionService.Regress; see `example_requests.reject_regress`."""
        _require_model_spec(request)
        with self._servable(request.model_spec) as servable:
            example_requests.reject_regress(servable, request.model_spec)

    def multi_inference(self, request: inference_pb2.MultiInferenceRequest) -> NoReturn:
        """Reject PredictionService.MultiInference; the first task's ModelSpec selects the version."""
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        with self._servable(spec) as servable:
            example_requests.reject_multi_inference(servable, request)

    def get_model_metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Answer PredictionService.GetModelMetadata; `signature_def` is the only metadata field.

        Raises:
            ServingError: INVALID_ARGUMENT for another field or none, NOT_FOUND for the model or version.
        """
        _require_model_spec(request)
        if not request.metadata_field:
            raise invalid_argument(
                f"GetModelMetadataRequest must specify at least one metadata_field; expected {_SIGNATURE_DEF}"
            )
        for field in request.metadata_field:
            if field != _SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {field} is not supported; expected {_SIGNATURE_DEF}")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self._servable(request.model_spec) as servable:
            signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
            response.model_spec.name = servable.name
            response.model_spec.version.value = servable.version
        response.metadata[_SIGNATURE_DEF].Pack(signatures)
        return response

    def get_model_status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Answer ModelService.GetModelStatus: every version seen so far, newest first, or the one with this number.

        A label has no effect, as in TensorFlow Serving: all versions are reported.

        Raises:
            ServingError: NOT_FOUND for a model or version that was not seen.
        """
        _require_model_spec(request)
        spec = request.model_spec
        number = int(spec.version.value) if spec.HasField("version") else None
        versions = self._models.get(spec.name) or self._removed.get(spec.name)
        if versions is None:
            which = "any versions" if number is None else f"version {number}"
            raise not_found(f"Could not find {which} of model {spec.name}. {self._served()}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for status in versions.statuses(number):
            entry = response.model_version_status.add(version=status.version, state=int(status.state))
            entry.status.error_code = status.error.number if status.error else 0
            entry.status.error_message = status.error.wire_message if status.error else ""
        return response

    def signature_def(self, spec: model_pb2.ModelSpec, signature_name: str) -> meta_graph_pb2.SignatureDef:
        """Return the SignatureDef for a JSON body; an empty name means `serving_default`.

        Raises:
            ServingError: INVALID_ARGUMENT for an unknown signature (REST's code), NOT_FOUND for the model or version.
        """
        key = signature_name or DEFAULT_SIGNATURE
        with self._servable(spec) as servable:
            definition = servable.signature_defs.get(key)
            if definition is None:
                raise invalid_argument(
                    f'Serving signature name: "{key}" not found in signature def. Version {servable.version} of model '
                    f"{servable.name} has: {','.join(sorted(servable.signature_defs))}."
                )
            return definition

    @contextmanager
    def _servable(self, spec: model_pb2.ModelSpec) -> Iterator[Servable]:
        if self._draining:
            raise unavailable("The server is shutting down.")
        if not spec.name:
            raise invalid_argument(f"ModelSpec has no name specified. {self._served()}")
        number = self._version(spec)
        versions = self._models.get(spec.name)
        if versions is None:
            request = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
            raise not_found(f"Servable not found for request: {request}. {self._served()}")
        with versions.servable(number) as servable:
            yield servable

    def _version(self, spec: model_pb2.ModelSpec) -> int | None:
        """Return the version that a request selects by number or label; None for the latest."""
        choice = spec.WhichOneof("version_choice")
        if choice == "version_label":
            labels = self._labels.get(spec.name, {})
            version = labels.get(spec.version_label)
            if version is None:
                assigned = ", ".join(f"{label} ({number})" for label, number in sorted(labels.items())) or "none"
                raise invalid_argument(
                    f"Unrecognized servable version label: {spec.version_label}. Labels of model {spec.name}: "
                    f"{assigned}"
                )
            return version
        return int(spec.version.value) if choice == "version" else None

    def _served(self) -> str:
        return f"Models served here: {', '.join(sorted(self._models))}."


def _why_not_available(versions: ServableVersions) -> str:
    try:
        status = next(each for each in versions.statuses() if each.state is not State.AVAILABLE)
    except (ServingError, StopIteration):
        return f"name: {versions.name} version: none found on disk"
    reason = f" due to error: {status.error.code.name}: {status.error.message}" if status.error else ""
    return f"name: {versions.name} version: {status.version}{reason}"


def _require_model_spec(
    request: predict_pb2.PredictRequest
    | classification_pb2.ClassificationRequest
    | regression_pb2.RegressionRequest
    | get_model_metadata_pb2.GetModelMetadataRequest
    | get_model_status_pb2.GetModelStatusRequest,
) -> None:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
