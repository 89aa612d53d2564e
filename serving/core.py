"""The requests of TensorFlow Serving's API, answered from the models this server holds; gRPC and REST both end here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2, predict_pb2

from serving.servable import DEFAULT_SIGNATURE, Servable
from serving.status import invalid_argument, not_found, unavailable
from serving.versions import ServableVersions

_SIGNATURE_DEF = "signature_def"


class ServerCore:
    """Finds the servable a ModelSpec asks for and runs the request on it."""

    def __init__(self, models: Mapping[str, ServableVersions]) -> None:
        """Args:
        models: the versions of each model, by the model's name.
        """
        self._models = dict(models)
        self._draining = False

    def drain(self) -> None:
        """From now on new requests get UNAVAILABLE, which clients retry elsewhere; those under way go on."""
        self._draining = True

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """PredictionService.Predict.

        Raises:
            ServingError: NOT_FOUND for the model or version, else see `Servable.predict`.
        """
        _require_model_spec(request)
        with self._servable(request.model_spec) as servable:
            return servable.predict(request)

    def get_model_metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """PredictionService.GetModelMetadata; `signature_def` is the one metadata field there is.

        Raises:
            ServingError: INVALID_ARGUMENT for another field or none, NOT_FOUND for the model or version.
        """
        _require_model_spec(request)
        if not request.metadata_field:
            raise invalid_argument(
                f"GetModelMetadataRequest must specify at least one metadata_field; ask for {_SIGNATURE_DEF}"
            )
        for field in request.metadata_field:
            if field != _SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {field} is not supported; ask for {_SIGNATURE_DEF}")
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
        """ModelService.GetModelStatus: every version seen, newest first, or the one asked for.

        Raises:
            ServingError: NOT_FOUND for a model or version that was never seen.
        """
        _require_model_spec(request)
        spec = request.model_spec
        versions = self._models.get(spec.name)
        number = _version(spec)
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
        """The SignatureDef by which a JSON body is read; an empty name means `serving_default`.

        Raises:
            ServingError: INVALID_ARGUMENT for an unknown signature (REST's code for it), NOT_FOUND for the model.
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
        number = _version(spec)
        versions = self._models.get(spec.name)
        if versions is None:
            request = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
            raise not_found(f"Servable not found for request: {request}. {self._served()}")
        with versions.servable(number) as servable:
            yield servable

    def _served(self) -> str:
        return f"Models served here: {', '.join(sorted(self._models))}."


def _require_model_spec(
    request: predict_pb2.PredictRequest
    | get_model_metadata_pb2.GetModelMetadataRequest
    | get_model_status_pb2.GetModelStatusRequest,
) -> None:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")


def _version(spec: model_pb2.ModelSpec) -> int | None:
    """The version a request names, None for the latest."""
    choice = spec.WhichOneof("version_choice")
    if choice == "version_label":
        raise invalid_argument(
            f"Unrecognized servable version label: {spec.version_label}; no labels are assigned, name a version instead"
        )
    return int(spec.version.value) if choice == "version" else None
