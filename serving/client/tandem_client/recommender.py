"""The synchronous client: one gRPC channel to TensorFlow Serving or Tandem's embedded server."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

import grpc

from tandem_client import questions, transport
from tandem_client.conversation import ROWS_PER_CALL, Conversation, Steps, T
from tandem_client.protocol import DEFAULT_K, Asked, Context, Filter
from tandem_client.results import Embedding, FoundItems, Recommendations, SimilarItems, VersionStatus
from tandem_client.signatures import Signature
from tandem_client.tls import Tls


class Recommender:
    """Asks one model on one server. Thread-safe; reuses its connection, so keep one and share it.

        with Recommender("127.0.0.1:8500") as recommender:
            for item in recommender.recommend("42", k=10).items:
                print(item.item_id, item.score, item.display.get("title"))

    Requests are checked against the signature before they are sent. Calls are repeated only where nobody answered
    (UNAVAILABLE), with growing pauses, within the timeout. Batches of any size are sent in parts, all of which one
    version of the model answers, also where the server loads another in between.

    Every method may raise InvalidRequest, ModelNotFound, ServerUnavailable, DeadlineExceeded and TandemClientError, as
    `tandem_client.errors` tells; SignatureMissing, an InvalidRequest, where the model cannot be asked that at all.
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
        """Connects lazily: a server that is not there shows with the first call.

        Args:
            target: the server's gRPC port as `host:port`.
            model: the model's name on the server.
            version: a version to stay with; None for the server's latest at each call.
            label: the version that the server has under this label at each call, such as `canary`; not with `version`.
            timeout: seconds that a call may take, retries and all parts of a batch included.
            retries: further attempts after UNAVAILABLE, 0 to 4.
            tls: True for TLS with the public certificate authorities, a `Tls` for others and for mutual TLS.
            rows_per_call: rows of a batch that are sent at once, which bounds what the server needs of memory.

        Raises:
            ValueError: an argument outside what is said here.
        """
        connection = transport.Connection.checked(target, retries, tls)
        asked = Asked(target, model, version, label)
        self._conversation = Conversation(asked, timeout, rows_per_call, encrypted=connection.tls is not None)
        self._channel = connection.channel(grpc)
        self._methods = transport.methods(self._channel)

    @property
    def target(self) -> str:
        """The server asked."""
        return self._conversation.asked.target

    @property
    def model(self) -> str:
        """The model's name on the server."""
        return self._conversation.asked.model

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
        """The k best items for one user.

        Args:
            user_id: the user; one the model does not know gets sensible items, too.
            k: items, as in `recommend_batch`.
            exclude: ids of items to leave out; unknown ones count nothing.
            only: ids of the items to choose from, as in `recommend_batch`.
            history: ids of items that the user touched, in order of time, as one of `recommend_batch`'s histories.
            context: as in `recommend_batch`, a scalar for each column.
            timeout: seconds for this call, instead of the client's.

        Returns:
            The items, best first.
        """
        question = questions.recommend(self._conversation.asked, user_id, k, exclude, only, history, context)
        return self._run(self._conversation.ask(question), timeout)[0]

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
        """The k best items for each user.

        `exclude`, `only`, and a k above what the model's `recommend` signature answers (serving.k of the recipe, 100
        unless set otherwise) are answered by `recommend_filtered`, which a server cannot batch with other requests.

        Args:
            user_ids: B users; one the model does not know gets sensible items, too.
            k: items a user; all there are, where the catalogue is smaller.
            exclude: ids of items to leave out, for all users; or B sequences of them, one a user. Unknown ones count
                nothing.
            only: ids of the items to choose from, such as those in stock, for all users; or B sequences of them. An
                empty sequence, as None, allows everything; one with unknown ids alone allows nothing.
            histories: for each of the B users the ids of items touched, in order of time; of any lengths, [] for a user
                without. They come on top of what the model remembers of a user and, unless its recipe says
                `exclude_seen: false`, are not recommended again; ids that the model does not know, and '', are ignored.
                Sent as string [B, L], padded with ''. Only models whose recipe has a history feature take them.
            context: further columns the model's query takes (`signatures()` tells which), by name: a scalar for all
                users or a sequence of B. What is left out gets the model's default.
            timeout: seconds for this call, instead of the client's.

        Returns:
            One for each user, in order, items best first.
        """
        question = questions.recommend_batch(self._conversation.asked, user_ids, k, exclude, only, histories, context)
        return self._run(self._conversation.ask(question), timeout)

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
        """
        question = questions.rate(self._conversation.asked, user_id, item_id, history, context)
        return self._run(self._conversation.ask(question), timeout)[0]

    def rate_batch(
        self,
        user_ids: Sequence[str],
        item_ids: Sequence[str],
        *,
        histories: Sequence[Sequence[str]] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> list[float]:
        """Predicted ratings of pairs.

        Args:
            user_ids: B users.
            item_ids: B items; pair i is user i with item i.
            histories: B of them, pair i's for user i, as in `recommend_batch`.
            context: as in `recommend_batch`.
            timeout: seconds for this call, instead of the client's.

        Returns:
            B ratings, on the scale of the training data.
        """
        question = questions.rate_batch(self._conversation.asked, user_ids, item_ids, histories, context)
        return self._run(self._conversation.ask(question), timeout)

    def similar(
        self,
        item_id: str,
        *,
        k: int = DEFAULT_K,
        timeout: float | None = None,
    ) -> SimilarItems:
        """The items most like one item.

        Args:
            item_id: the item; one the model does not know gets none.
            k: items at most. More than the signature answers (serving.k of the recipe) is an InvalidRequest, unless it
                is 10 or less.
            timeout: seconds for this call, instead of the client's.

        Returns:
            The items, nearest first, without the item itself.
        """
        question = questions.similar(self._conversation.asked, item_id, k)
        return self._run(self._conversation.ask(question), timeout)[0]

    def similar_batch(
        self,
        item_ids: Sequence[str],
        *,
        k: int = DEFAULT_K,
        timeout: float | None = None,
    ) -> list[SimilarItems]:
        """The items most like each of these.

        Args:
            item_ids: B items.
            k: items for each, as in `similar`.
            timeout: seconds for this call, instead of the client's.

        Returns:
            One for each item, in order.
        """
        question = questions.similar_batch(self._conversation.asked, item_ids, k)
        return self._run(self._conversation.ask(question), timeout)

    def find(
        self,
        text: str,
        *,
        k: int = DEFAULT_K,
        timeout: float | None = None,
    ) -> FoundItems:
        """The items that a text leads to: those with a display column in which a word starts with it.

        Args:
            text: the beginning of a word, or several words as they stand; upper and lower case are the same, and no
                sign means anything special.
            k: items at most, as in `similar`.
            timeout: seconds for this call, instead of the client's.

        Returns:
            Items whose column begins with the text first, then others; the more popular first.
        """
        question = questions.find(self._conversation.asked, text, k)
        return self._run(self._conversation.ask(question), timeout)[0]

    def embed_query(
        self,
        user_id: str,
        *,
        history: Sequence[str] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> Embedding:
        """A user's vector, for a vector store of the items' ones; see `Embedding`.

        Args:
            user_id: the user; one the model does not know gets the average user's.
            history: as in `recommend`.
            context: as in `recommend_batch`, a scalar for each column.
            timeout: seconds for this call, instead of the client's.
        """
        question = questions.embed_query(self._conversation.asked, user_id, history, context)
        return self._run(self._conversation.ask(question), timeout)[0]

    def embed_query_batch(
        self,
        user_ids: Sequence[str],
        *,
        histories: Sequence[Sequence[str]] | None = None,
        context: Context | None = None,
        timeout: float | None = None,
    ) -> list[Embedding]:
        """The vectors of users.

        Args:
            user_ids: B users.
            histories: as in `recommend_batch`.
            context: as in `recommend_batch`.
            timeout: seconds for this call, instead of the client's.

        Returns:
            One for each user, in order.
        """
        question = questions.embed_query_batch(self._conversation.asked, user_ids, histories, context)
        return self._run(self._conversation.ask(question), timeout)

    def embed_item(
        self,
        item_id: str = "",
        *,
        columns: Context | None = None,
        timeout: float | None = None,
    ) -> Embedding:
        """An item's vector: a known one's as retrieval uses it, or one made from columns, so of a new item too.

        Args:
            item_id: the item; '' for one that is described by its columns alone.
            columns: the item's columns as the model was trained on them, by name (`signatures()` tells which).
            timeout: seconds for this call, instead of the client's.
        """
        question = questions.embed_item(self._conversation.asked, item_id, columns)
        return self._run(self._conversation.ask(question), timeout)[0]

    def embed_item_batch(
        self,
        item_ids: Sequence[str] | None = None,
        *,
        columns: Context | None = None,
        timeout: float | None = None,
    ) -> list[Embedding]:
        """The vectors of items.

        Args:
            item_ids: B items, '' for what columns alone describe; None where that is so for all.
            columns: as in `embed_item`, a scalar for all items or a sequence of B.
            timeout: seconds for this call, instead of the client's.

        Returns:
            One for each item, in order.
        """
        question = questions.embed_item_batch(self._conversation.asked, item_ids, columns)
        return self._run(self._conversation.ask(question), timeout)

    def status(self, *, timeout: float | None = None) -> list[VersionStatus]:
        """The versions of the model that the server knows, newest first, failed ones with the reason."""
        return self._run(self._conversation.status(), timeout)

    def signatures(self, *, timeout: float | None = None) -> Mapping[str, Signature]:
        """What the model can be asked, by signature name; asks the server each time."""
        return self._run(self._conversation.metadata(), timeout).signatures

    def close(self) -> None:
        """Closes the connection; the client cannot be used afterwards."""
        self._channel.close()

    def __enter__(self) -> Recommender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Steps[T], timeout: float | None) -> T:
        deadline = self._conversation.deadline(timeout)
        try:
            call = next(steps)
            while True:
                try:
                    answer = self._methods[call.method](call.request, timeout=max(0.0, deadline - time.monotonic()))
                except grpc.RpcError as error:
                    call = steps.throw(self._conversation.translated(error))
                except ValueError as error:  # how grpc says that the channel is closed
                    raise self._conversation.closed() from error
                else:
                    call = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
