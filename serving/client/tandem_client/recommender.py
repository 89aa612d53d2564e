"""The synchronous client: one gRPC channel to TensorFlow Serving or Tandem's embedded server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc

from tandem_client import protocol
from tandem_client import serving_pb2 as pb
from tandem_client.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, ServerUnavailable, TandemClientError
from tandem_client.protocol import Context
from tandem_client.results import Recommendations, VersionStatus
from tandem_client.signatures import ModelMetadata, Signature, read_metadata

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_GET_MODEL_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
_GET_MODEL_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_MAX_RETRIES = 4  # gRPC makes five attempts at most, whatever its configuration says
_LOOPBACK = ("127.", "localhost:", "[::1]:")

_Answer = TypeVar("_Answer")


class Recommender:
    """Asks one model on one server. Thread-safe; reuses its connection, so keep one and share it.

        with Recommender("127.0.0.1:8500") as recommender:
            for item in recommender.recommend("42", k=10).items:
                print(item.item_id, item.score, item.display.get("title"))

    Requests are checked against the signature before they are sent. Calls are repeated only where nobody answered
    (UNAVAILABLE), with growing pauses, within the timeout.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:8500",
        *,
        model: str = "recommender",
        version: int | None = None,
        timeout: float = 5.0,
        retries: int = _MAX_RETRIES,
    ) -> None:
        """Connects lazily: a server that is not there shows with the first call.

        Args:
            target: the server's gRPC port as `host:port`.
            model: the model's name on the server.
            version: a version to stay with; None for the server's latest at each call.
            timeout: seconds that a call may take, retries included.
            retries: further attempts after UNAVAILABLE, 0 to 4.

        Raises:
            ValueError: an argument outside what is said here.
        """
        if "://" in target and target.split("://")[0] in ("http", "https"):
            raise ValueError(f"target is {target!r}, a URL; pass the gRPC port as host:port, such as 127.0.0.1:8500")
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout!r}; pass seconds above 0")
        if not 0 <= retries <= _MAX_RETRIES:
            raise ValueError(f"retries is {retries!r}; pass 0 to {_MAX_RETRIES} (gRPC makes five attempts at most)")
        self.target = target
        self.model = model
        self._timeout = timeout
        self._asked = protocol.Asked(target, model, version)
        self._channel = grpc.insecure_channel(target, options=_channel_options(target, retries))
        self._predict_method = self._method(_PREDICT, pb.PredictResponse)
        self._metadata_method = self._method(_GET_MODEL_METADATA, pb.GetModelMetadataResponse)
        self._status_method = self._method(_GET_MODEL_STATUS, pb.GetModelStatusResponse)
        self._metadata: ModelMetadata | None = None
        self._metadata_lock = threading.Lock()

    def recommend(
        self,
        user_id: str,
        *,
        k: int = 10,
        history: Sequence[str] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> Recommendations:
        """The k best items for one user.

        Args:
            user_id: the user; one the model does not know gets sensible items, too.
            k: items, as in `recommend_batch`.
            history: ids of items that the user touched, in order of time, as one of `recommend_batch`'s histories.
            context: as in `recommend_batch`, a scalar for each column.
            timeout: seconds for this call, instead of the client's.

        Returns:
            The items, best first.

        Raises:
            InvalidRequest, ModelNotFound, ServerUnavailable, DeadlineExceeded, TandemClientError: as in
                `recommend_batch`.
        """
        if not isinstance(user_id, str):
            many = "use recommend_batch for several users" if isinstance(user_id, list | tuple) else "ids are strings"
            raise self._asked.invalid(f"user_id is {type(user_id).__name__} {user_id!r}, wanted a str; {many}")
        histories = None if history is None else [protocol.check_history(self._asked, history)]
        return self.recommend_batch([user_id], k=k, histories=histories, context=context, timeout=timeout)[0]

    def recommend_batch(
        self,
        user_ids: Sequence[str],
        *,
        k: int = 10,
        histories: Sequence[Sequence[str]] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> list[Recommendations]:
        """The k best items for each user, in one call.

        Args:
            user_ids: B users; one the model does not know gets sensible items, too.
            k: items a user, at most what the signature returns (100). All there are, where the catalogue is smaller.
            histories: for each of the B users the ids of items touched, in order of time; of any lengths, [] for a user
                without. They come on top of what the model remembers of a user and, unless its recipe says
                `exclude_seen: false`, are not recommended again; ids that the model does not know, and '', are ignored.
                Sent as string [B, L], padded with ''. Only models whose recipe has a history feature take them.
            context: further columns the model's query takes (`signatures()` tells which), by name: a scalar for all
                users or a sequence of B. What is left out gets the model's default.
            timeout: seconds for this call, instead of the client's.

        Returns:
            One for each user, in order, items best first.

        Raises:
            InvalidRequest: something above does not fit; the message names it.
            ModelNotFound, ServerUnavailable, DeadlineExceeded, TandemClientError: see `tandem_client.errors`.
        """
        protocol.check_k(self._asked, k)
        users = protocol.check_ids(self._asked, "user_ids", user_ids, "use recommend for one user")
        touched = None if histories is None else protocol.check_histories(self._asked, histories, len(users))

        def build(metadata: ModelMetadata) -> pb.PredictRequest:
            protocol.check_list_length(self._asked, metadata, k)
            ids = {"user_id": users}
            return protocol.predict_request(self._asked, metadata, protocol.RECOMMEND, ids, touched, context)

        response = self._predict(build, len(users), timeout)
        return protocol.read_recommendations(self._asked, response, users, k) if response is not None else []

    def rate(
        self,
        user_id: str,
        item_id: str,
        *,
        history: Sequence[str] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> float:
        """The rating the model predicts for one user and item, on the scale of the training data.

        Args:
            user_id: the user.
            item_id: the item.
            history: ids of items that the user touched, in order of time, as one of `recommend_batch`'s histories.
            context: as in `recommend_batch`, a scalar for each column.
            timeout: seconds for this call, instead of the client's.

        Raises:
            InvalidRequest, ModelNotFound, ServerUnavailable, DeadlineExceeded, TandemClientError: as in
                `recommend_batch`.
        """
        for name, value in (("user_id", user_id), ("item_id", item_id)):
            if not isinstance(value, str):
                raise self._asked.invalid(f"{name} is {type(value).__name__} {value!r}, wanted a str; ids are strings")
        histories = None if history is None else [protocol.check_history(self._asked, history)]
        return self.rate_batch([user_id], [item_id], histories=histories, context=context, timeout=timeout)[0]

    def rate_batch(
        self,
        user_ids: Sequence[str],
        item_ids: Sequence[str],
        *,
        histories: Sequence[Sequence[str]] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> list[float]:
        """Predicted ratings of pairs, in one call.

        Args:
            user_ids: B users.
            item_ids: B items; pair i is user i with item i.
            histories: B of them, pair i's for user i, as in `recommend_batch`.
            context: as in `recommend_batch`.
            timeout: seconds for this call, instead of the client's.

        Returns:
            B ratings, on the scale of the training data.

        Raises:
            InvalidRequest, ModelNotFound, ServerUnavailable, DeadlineExceeded, TandemClientError: as in
                `recommend_batch`.
        """
        users = protocol.check_ids(self._asked, "user_ids", user_ids, "use rate for one pair")
        items = protocol.check_ids(self._asked, "item_ids", item_ids, "use rate for one pair")
        if len(users) != len(items):
            raise self._asked.invalid(f"{len(users)} user_ids and {len(items)} item_ids; pass as many of both")
        touched = None if histories is None else protocol.check_histories(self._asked, histories, len(users))

        def build(metadata: ModelMetadata) -> pb.PredictRequest:
            ids = {"user_id": users, "item_id": items}
            return protocol.predict_request(self._asked, metadata, protocol.RATE, ids, touched, context)

        response = self._predict(build, len(users), timeout)
        return protocol.read_ratings(self._asked, response, len(users)) if response is not None else []

    def status(self, *, timeout: float | None = None) -> list[VersionStatus]:
        """The versions of the model that the server knows, newest first, failed ones with the reason.

        Raises:
            ModelNotFound, ServerUnavailable, DeadlineExceeded, TandemClientError: see `tandem_client.errors`.
        """
        request = pb.GetModelStatusRequest(model_spec=self._asked.model_spec())
        response = self._call(self._status_method, request, self._deadline(timeout))
        statuses = [
            VersionStatus(
                version=each.version,
                state=pb.ModelVersionStatus.State.Name(each.state),
                error_code=each.status.error_code,
                error_message=each.status.error_message,
            )
            for each in response.model_version_status
        ]
        return sorted(statuses, key=lambda each: each.version, reverse=True)

    def signatures(self, *, timeout: float | None = None) -> Mapping[str, Signature]:
        """What the model can be asked, by signature name; asks the server each time.

        Raises:
            ModelNotFound, ServerUnavailable, DeadlineExceeded, TandemClientError: see `tandem_client.errors`.
        """
        return self._fetch_metadata(self._deadline(timeout)).signatures

    def close(self) -> None:
        """Closes the connection; the client cannot be used afterwards."""
        self._channel.close()

    def __enter__(self) -> Recommender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- transport --------------------------------------------------------------------------------------------------

    def _method(self, path: str, response: type[_Answer]) -> Callable[..., _Answer]:
        method: Callable[..., _Answer] = self._channel.unary_unary(
            path,
            request_serializer=_serialize,
            response_deserializer=response.FromString,  # type: ignore[attr-defined]
        )
        return method

    def _predict(
        self, build: Callable[[ModelMetadata], pb.PredictRequest], rows: int, timeout: float | None
    ) -> pb.PredictResponse | None:
        """Builds, checks and sends a request; None for an empty batch, which is checked but not sent.

        The server may have loaded another version since its signatures were read. So what does not fit the remembered
        ones, or is refused by the server, is checked against fresh ones before it is called an error.
        """
        deadline = self._deadline(timeout)
        metadata = self._metadata
        if metadata is not None:
            try:
                return self._send(build(metadata), rows, metadata, deadline)
            except (InvalidRequest, ModelNotFound):
                fresh = self._fetch_metadata(deadline)
                if fresh.signatures == metadata.signatures:
                    raise
                metadata = fresh
        else:
            metadata = self._fetch_metadata(deadline)
        return self._send(build(metadata), rows, metadata, deadline)

    def _send(
        self, request: pb.PredictRequest, rows: int, metadata: ModelMetadata, deadline: float
    ) -> pb.PredictResponse | None:
        if not rows:
            return None
        response = self._call(self._predict_method, request, deadline)
        if response.model_spec.version.value != metadata.version:
            with self._metadata_lock:
                self._metadata = None
        return response

    def _fetch_metadata(self, deadline: float) -> ModelMetadata:
        request = pb.GetModelMetadataRequest(model_spec=self._asked.model_spec(), metadata_field=["signature_def"])
        response = self._call(self._metadata_method, request, deadline)
        try:
            metadata = read_metadata(response)
        except KeyError as error:
            raise self._asked.error("the server's metadata holds no signatures; is it TensorFlow Serving?") from error
        with self._metadata_lock:
            self._metadata = metadata
        return metadata

    def _deadline(self, timeout: float | None) -> float:
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout is {timeout!r}; pass seconds above 0")
        return time.monotonic() + (self._timeout if timeout is None else timeout)

    def _call(self, method: Callable[..., _Answer], request: Any, deadline: float) -> _Answer:
        try:
            return method(request, timeout=max(0.0, deadline - time.monotonic()))
        except grpc.RpcError as error:
            raise self._translated(error) from error
        except ValueError as error:  # how grpc says that the channel is closed
            raise self._asked.error(f"{error}; the client was closed, make a new one") from error

    def _translated(self, error: grpc.RpcError) -> TandemClientError:
        code: grpc.StatusCode = error.code()
        details = error.details() or "no details"
        name: str = code.name
        where: dict[str, Any] = {"target": self.target, "model": self.model, "code": name}
        if code is grpc.StatusCode.UNAVAILABLE:
            return ServerUnavailable(
                f"{self._asked}: nobody answers ({details}); start a server there (`tandem serve`), or correct the "
                "target: host and port of gRPC (8500 unless set otherwise), not of REST",
                **where,
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"{self._asked}: no answer in time ({details}); pass a longer timeout (the client's is "
                f"{self._timeout} s) or ask for fewer users at once",
                **where,
            )
        if code is grpc.StatusCode.NOT_FOUND:
            return ModelNotFound(
                f"{self._asked}: not served there ({details}); check the model's name, and its versions with status()",
                **where,
            )
        if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
            return self._asked.invalid(
                f"the server refused the request ({details}); signatures() tells what the model takes", name
            )
        return self._asked.error(f"the server failed with {name} ({details}); its log says more", name)


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _channel_options(target: str, retries: int) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # A connection of its own: without this, clients to one target share their reconnection pauses.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if target.startswith(_LOOPBACK):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot reach this machine's loopback
    if retries:
        policy = {
            "maxAttempts": retries + 1,
            "initialBackoff": "0.2s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        options.append(("grpc.enable_retries", 1))
        options.append(("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})))
    else:
        options.append(("grpc.enable_retries", 0))
    return options
