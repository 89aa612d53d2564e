"""The client for asyncio: the queries and calls of the synchronous client, awaited."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from tandem_client import queries, transport
from tandem_client.protocol import DEFAULT_K, Context, Filter, ModelRef
from tandem_client.results import Embedding, FoundItems, Recommendations, SimilarItems, VersionStatus
from tandem_client.session import ROWS_PER_CALL, Session, Steps, T
from tandem_client.signatures import Signature
from tandem_client.tls import Tls


class AsyncRecommender:
    """`Recommender` for asyncio: the same arguments, results and errors.

        async with AsyncRecommender("127.0.0.1:8500") as recommender:
            for item in (await recommender.recommend("42", k=10)).items:
                print(item.item_id, item.score, item.display.get("title"))

    All tasks of one event loop can share it. Cancelling a task cancels its request on the server, too.
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
        """As `Recommender`; needs no running event loop, and belongs to the loop of its first request."""
        self._connection = transport.Connection.checked(target, retries, tls)
        ref = ModelRef(target, model, version, label)
        self._session = Session(ref, timeout, rows_per_call, encrypted=self._connection.tls is not None)
        self._channel: Any = None
        self._methods: Mapping[str, Callable[..., Any]] = {}
        self._closed = False

    @property
    def target(self) -> str:
        """The server's gRPC address, `host:port`."""
        return self._session.ref.target

    @property
    def model(self) -> str:
        """The model's name on the server."""
        return self._session.ref.model

    async def recommend(
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
        """As `Recommender.recommend`."""
        query = queries.recommend(self._session.ref, user_id, k, exclude, only, history, context)
        return (await self._run(self._session.predict(query), timeout))[0]

    async def recommend_batch(
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
        """As `Recommender.recommend_batch`."""
        query = queries.recommend_batch(self._session.ref, user_ids, k, exclude, only, histories, context)
        return await self._run(self._session.predict(query), timeout)

    async def rate(
        self,
        user_id: str,
        item_id: str,
        *,
        history: Sequence[str] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> float:
        """As `Recommender.rate`."""
        query = queries.rate(self._session.ref, user_id, item_id, history, context)
        return (await self._run(self._session.predict(query), timeout))[0]

    async def rate_batch(
        self,
        user_ids: Sequence[str],
        item_ids: Sequence[str],
        *,
        histories: Sequence[Sequence[str]] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> list[float]:
        """As `Recommender.rate_batch`."""
        query = queries.rate_batch(self._session.ref, user_ids, item_ids, histories, context)
        return await self._run(self._session.predict(query), timeout)

    async def similar(
        self,
        item_id: str,
        *,
        k: int = DEFAULT_K,
        timeout: float | None = None,
    ) -> SimilarItems:
        """As `Recommender.similar`."""
        query = queries.similar(self._session.ref, item_id, k)
        return (await self._run(self._session.predict(query), timeout))[0]

    async def similar_batch(
        self,
        item_ids: Sequence[str],
        *,
        k: int = DEFAULT_K,
        timeout: float | None = None,
    ) -> list[SimilarItems]:
        """As `Recommender.similar_batch`."""
        query = queries.similar_batch(self._session.ref, item_ids, k)
        return await self._run(self._session.predict(query), timeout)

    async def find(
        self,
        text: str,
        *,
        k: int = DEFAULT_K,
        timeout: float | None = None,
    ) -> FoundItems:
        """As `Recommender.find`."""
        query = queries.find(self._session.ref, text, k)
        return (await self._run(self._session.predict(query), timeout))[0]

    async def embed_query(
        self,
        user_id: str,
        *,
        history: Sequence[str] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> Embedding:
        """As `Recommender.embed_query`."""
        query = queries.embed_query(self._session.ref, user_id, history, context)
        return (await self._run(self._session.predict(query), timeout))[0]

    async def embed_query_batch(
        self,
        user_ids: Sequence[str],
        *,
        histories: Sequence[Sequence[str]] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> list[Embedding]:
        """As `Recommender.embed_query_batch`."""
        query = queries.embed_query_batch(self._session.ref, user_ids, histories, context)
        return await self._run(self._session.predict(query), timeout)

    async def embed_item(
        self,
        item_id: str = "",
        *,
        columns: Context | None = None,
        timeout: float | None = None,
    ) -> Embedding:
        """As `Recommender.embed_item`."""
        query = queries.embed_item(self._session.ref, item_id, columns)
        return (await self._run(self._session.predict(query), timeout))[0]

    async def embed_item_batch(
        self,
        item_ids: Sequence[str] | None = None,
        *,
        columns: Context | None = None,
        timeout: float | None = None,
    ) -> list[Embedding]:
        """As `Recommender.embed_item_batch`."""
        query = queries.embed_item_batch(self._session.ref, item_ids, columns)
        return await self._run(self._session.predict(query), timeout)

    async def status(self, *, timeout: float | None = None) -> list[VersionStatus]:
        """As `Recommender.status`."""
        return await self._run(self._session.status(), timeout)

    async def signatures(self, *, timeout: float | None = None) -> Mapping[str, Signature]:
        """As `Recommender.signatures`."""
        return (await self._run(self._session.metadata(), timeout)).signatures

    async def close(self) -> None:
        """Close the connection; the client cannot be used afterwards."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> AsyncRecommender:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, steps: Steps[T], timeout: float | None) -> T:
        deadline = self._session.deadline(timeout)
        try:
            call = next(steps)
            while True:
                if self._closed:
                    raise self._session.closed()
                if self._channel is None:  # created here, because it binds to the running event loop
                    self._channel = self._connection.channel(grpc.aio)
                    self._methods = transport.methods(self._channel)
                try:
                    method = self._methods[call.method]
                    response = await method(call.request, timeout=max(0.0, deadline - time.monotonic()))
                except grpc.RpcError as error:
                    call = steps.throw(self._session.translated(error))
                else:
                    call = steps.send(response)
        except StopIteration as done:
            result: T = done.value
            return result
