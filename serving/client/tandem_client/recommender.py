"""The synchronous client: one gRPC channel to TensorFlow Serving or Tandem's embedded server."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

import grpc

from tandem_client import queries, transport
from tandem_client.protocol import DEFAULT_K, Context, Filter, ModelRef
from tandem_client.results import Embedding, FoundItems, Recommendations, SimilarItems, VersionStatus
from tandem_client.session import ROWS_PER_CALL, Session, Steps, T
from tandem_client.signatures import Signature
from tandem_client.tls import Tls


class Recommender:
    """Client of one model on one server. Thread-safe; keeps one connection, so make one client and share it.

        with Recommender("127.0.0.1:8500") as recommender:
            for item in recommender.recommend("42", k=10).items:
                print(item.item_id, item.score, item.display.get("title"))

    Requests are checked against the signature before they are sent. Only UNAVAILABLE is retried, with exponential
    backoff and within the timeout. Batches of any size are sent in parts, and one version of the model answers all of
    them, even if the server loads another version meanwhile.

    Every method may raise InvalidRequest, ModelNotFound, ServerUnavailable, DeadlineExceeded and TandemClientError (see
    `tandem_client.errors`), and SignatureMissing, an InvalidRequest, if the model lacks the signature.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:8500",
        *,
        model: str = "recommender",
        version: int | None = None,
        label: str | None = None,
        timeout: float = 5.0,
        retries: int = transport.MAX_RETRIES,
        tls: bool | Tls = False,
        rows_per_call: int = ROWS_PER_CALL,
    ) -> None:
        """Make a client; it connects with the first request.

        Args:
            target: the server's gRPC port as `host:port`.
            model: the model's name on the server.
            version: the version to query; None for the server's latest one at each request.
            label: query the version with this label, such as `canary`, at each request; not with `version`.
            timeout: seconds per call, retries and all parts of a batch included.
            retries: retries after UNAVAILABLE, 0 to 4.
            tls: True for TLS with the public certificate authorities, a `Tls` for others or for mutual TLS.
            rows_per_call: rows of a batch per request, which bounds the server's memory.

        Raises:
            ValueError: an argument outside its range.
        """
        connection = transport.Connection.checked(target, retries, tls)
        ref = ModelRef(target, model, version, label)
        self._session = Session(ref, timeout, rows_per_call, encrypted=connection.tls is not None)
        self._channel = connection.channel(grpc)
        self._methods = transport.methods(self._channel)

    @property
    def target(self) -> str:
        """The server's gRPC address, `host:port`."""
        return self._session.ref.target

    @property
    def model(self) -> str:
        """The model's name on the server."""
        return self._session.ref.model

    def recommend(
        self,
        user_id: str,
        *,
        k: int = DEFAULT_K,
        exclude: Sequence[str] | None = None,
        only: Sequence[str] | None = None,
        history: Sequence[str] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> Recommendations:
        """Return the top k items for one user.

        Args:
            user_id: the user; new users get recommendations, too.
            k: number of items, as in `recommend_batch`.
            exclude: ids of items to exclude; unknown ids are ignored.
            only: allow-list of item ids, as in `recommend_batch`.
            history: ids of items that the user interacted with, oldest first, as in `recommend_batch`.
            context: as in `recommend_batch`, a scalar for each column.
            timeout: seconds for this call; None for the client's timeout.

        Returns:
            The items, best first.
        """
        query = queries.recommend(self._session.ref, user_id, k, exclude, only, history, context)
        return self._run(self._session.predict(query), timeout)[0]

    def recommend_batch(
        self,
        user_ids: Sequence[str],
        *,
        k: int = DEFAULT_K,
        exclude: Filter | None = None,
        only: Filter | None = None,
        histories: Sequence[Sequence[str]] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> list[Recommendations]:
        """Return the top k items for each user.

        `exclude`, `only` and a k above the model's serving.k (default 100) use the signature `recommend_filtered`,
        which a server cannot batch with other requests; all other requests use `recommend`.

        Args:
            user_ids: B users; new users get recommendations, too.
            k: number of items per user, at most the size of the catalogue.
            exclude: ids of items to exclude, for all users; or B sequences, one per user. Unknown ids are ignored.
            only: allow-list of item ids, such as those in stock, for all users; or B sequences, one per user. An empty
                sequence, as None, allows all items; one with unknown ids only allows none.
            histories: for each of the B users, the ids of items that the user interacted with, oldest first; of any
                length, [] for none. They are added to the history that the model stores and, unless the recipe sets
                `exclude_seen: false`, are not recommended again. Ids outside the vocabulary and '' are ignored. Sent as
                string [B, L], padded with ''. Only models whose recipe has a history feature accept them.
            context: further query columns by name (see `signatures()`): a scalar for all users, or a sequence of B.
                Columns that are not set get the model's default.
            timeout: seconds for this call; None for the client's timeout.

        Returns:
            One result per user, in order, items best first.
        """
        query = queries.recommend_batch(self._session.ref, user_ids, k, exclude, only, histories, context)
        return self._run(self._session.predict(query), timeout)

    def rate(
        self,
        user_id: str,
        item_id: str,
        *,
        history: Sequence[str] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> float:
        """Return the predicted rating of one user and item, on the scale of the training data.

        Args:
            user_id: the user.
            item_id: the item.
            history: ids of items that the user interacted with, oldest first, as in `recommend_batch`.
            context: as in `recommend_batch`, a scalar for each column.
            timeout: seconds for this call; None for the client's timeout.
        """
        query = queries.rate(self._session.ref, user_id, item_id, history, context)
        return self._run(self._session.predict(query), timeout)[0]

    def rate_batch(
        self,
        user_ids: Sequence[str],
        item_ids: Sequence[str],
        *,
        histories: Sequence[Sequence[str]] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> list[float]:
        """Return the predicted ratings of user-item pairs.

        Args:
            user_ids: B users.
            item_ids: B items; pair i is user i and item i.
            histories: B sequences, as in `recommend_batch`.
            context: as in `recommend_batch`.
            timeout: seconds for this call; None for the client's timeout.

        Returns:
            B ratings, on the scale of the training data.
        """
        query = queries.rate_batch(self._session.ref, user_ids, item_ids, histories, context)
        return self._run(self._session.predict(query), timeout)

    def similar(
        self,
        item_id: str,
        *,
        k: int = DEFAULT_K,
        timeout: float | None = None,
    ) -> SimilarItems:
        """Return the most similar items of one item.

        Args:
            item_id: the item; an item outside the vocabulary has no similar items.
            k: maximum number of items. More than the signature returns (serving.k of the recipe) is an
                InvalidRequest, unless it is 10 or less.
            timeout: seconds for this call; None for the client's timeout.

        Returns:
            The items, most similar first, without the item itself.
        """
        query = queries.similar(self._session.ref, item_id, k)
        return self._run(self._session.predict(query), timeout)[0]

    def similar_batch(
        self,
        item_ids: Sequence[str],
        *,
        k: int = DEFAULT_K,
        timeout: float | None = None,
    ) -> list[SimilarItems]:
        """Return the most similar items of each item.

        Args:
            item_ids: B items.
            k: maximum number of items for each, as in `similar`.
            timeout: seconds for this call; None for the client's timeout.

        Returns:
            One result per item, in order.
        """
        query = queries.similar_batch(self._session.ref, item_ids, k)
        return self._run(self._session.predict(query), timeout)

    def find(
        self,
        text: str,
        *,
        k: int = DEFAULT_K,
        timeout: float | None = None,
    ) -> FoundItems:
        """Search titles: return the items with a display column in which a word starts with the text.

        Args:
            text: the beginning of a word, or several words in a row; case is ignored, and no character is special.
            k: maximum number of items, as in `similar`.
            timeout: seconds for this call; None for the client's timeout.

        Returns:
            Items whose column starts with the text, then the others; by popularity.
        """
        query = queries.find(self._session.ref, text, k)
        return self._run(self._session.predict(query), timeout)[0]

    def embed_query(
        self,
        user_id: str,
        *,
        history: Sequence[str] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> Embedding:
        """Return a user's vector, for a vector store of item vectors; see `Embedding`.

        Args:
            user_id: the user; a new user gets the vector of the OOV index.
            history: as in `recommend`.
            context: as in `recommend_batch`, a scalar for each column.
            timeout: seconds for this call; None for the client's timeout.
        """
        query = queries.embed_query(self._session.ref, user_id, history, context)
        return self._run(self._session.predict(query), timeout)[0]

    def embed_query_batch(
        self,
        user_ids: Sequence[str],
        *,
        histories: Sequence[Sequence[str]] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> list[Embedding]:
        """Return the vectors of users.

        Args:
            user_ids: B users.
            histories: as in `recommend_batch`.
            context: as in `recommend_batch`.
            timeout: seconds for this call; None for the client's timeout.

        Returns:
            One result per user, in order.
        """
        query = queries.embed_query_batch(self._session.ref, user_ids, histories, context)
        return self._run(self._session.predict(query), timeout)

    def embed_item(
        self,
        item_id: str = "",
        *,
        columns: Context | None = None,
        timeout: float | None = None,
    ) -> Embedding:
        """Return an item's vector: as retrieval uses it, or computed from columns, such as of a new item.

        Args:
            item_id: the item; '' for a new item that is described by its columns alone.
            columns: the item's columns by name, as in the training data (see `signatures()`).
            timeout: seconds for this call; None for the client's timeout.
        """
        query = queries.embed_item(self._session.ref, item_id, columns)
        return self._run(self._session.predict(query), timeout)[0]

    def embed_item_batch(
        self,
        item_ids: Sequence[str] | None = None,
        *,
        columns: Context | None = None,
        timeout: float | None = None,
    ) -> list[Embedding]:
        """Return the vectors of items.

        Args:
            item_ids: B items, '' for items that their columns alone describe; None if that holds for all.
            columns: as in `embed_item`, a scalar for all items or a sequence of B.
            timeout: seconds for this call; None for the client's timeout.

        Returns:
            One result per item, in order.
        """
        query = queries.embed_item_batch(self._session.ref, item_ids, columns)
        return self._run(self._session.predict(query), timeout)

    def status(self, *, timeout: float | None = None) -> list[VersionStatus]:
        """Return the status of all versions of the model on the server, newest first."""
        return self._run(self._session.status(), timeout)

    def signatures(self, *, timeout: float | None = None) -> Mapping[str, Signature]:
        """Request the model's signatures from the server, by name."""
        return self._run(self._session.metadata(), timeout).signatures

    def close(self) -> None:
        """Close the connection; the client cannot be used afterwards."""
        self._channel.close()

    def __enter__(self) -> Recommender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Steps[T], timeout: float | None) -> T:
        deadline = self._session.deadline(timeout)
        try:
            call = next(steps)
            while True:
                try:
                    response = self._methods[call.method](call.request, timeout=max(0.0, deadline - time.monotonic()))
                except grpc.RpcError as error:
                    call = steps.throw(self._session.translated(error))
                except ValueError as error:  # grpc's error for a closed channel
                    raise self._session.closed() from error
                else:
                    call = steps.send(response)
        except StopIteration as done:
            result: T = done.value
            return result
