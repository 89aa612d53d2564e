"""What a model can be asked, one function a question: arguments checked, then how any of the rows are sent and read.

Both clients, with and without asyncio, ask these. What the arguments mean is told in recommender.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tandem_client import protocol
from tandem_client import serving_pb2 as pb
from tandem_client.protocol import Asked, Context, Filter, Inputs
from tandem_client.results import Embedding, FoundItems, Recommendations, SimilarItems
from tandem_client.signatures import ModelMetadata

Row = TypeVar("Row")


@dataclass(frozen=True)
class Question(Generic[Row]):
    """A call whose arguments are checked. Its rows can be asked in parts: none depends on another.

    Attributes:
        asked: the model.
        rows: B.
        prepare: the signature to ask and all of the inputs, by what the model has; raises InvalidRequest.
        read: the signature asked, the answer, and which of the rows it is for, to a result for each of these.
    """

    asked: Asked
    rows: int
    prepare: Callable[[ModelMetadata], tuple[str, Inputs]]
    read: Callable[[str, pb.PredictResponse, slice], list[Row]]

    def requests(
        self, metadata: ModelMetadata, rows: slice, message_bytes: int
    ) -> list[tuple[pb.PredictRequest, slice]]:
        """The rows in as many requests as it takes for each to have at most `message_bytes`, where that can be reached.

        It cannot where one row is more, or what every request repeats for its rows, such as a long allow-list.

        Raises:
            InvalidRequest: the inputs do not fit the model's signature.
        """
        name, inputs = self.prepare(metadata)
        request = protocol.predict_request(self.asked, metadata, name, inputs.part(rows))
        count = rows.stop - rows.start
        own = protocol.bytes_of_rows(request, count)
        left = message_bytes - (request.ByteSize() - own)
        # Where next to nothing is left for the rows, fewer of them in each request make little difference to its size.
        if count <= 1 or own <= (left if left > message_bytes // 16 else message_bytes):
            return [(request, rows)]
        middle = (rows.start + rows.stop) // 2
        halves = (slice(rows.start, middle), slice(middle, rows.stop))
        return [each for half in halves for each in self.requests(metadata, half, message_bytes)]


def recommend(
    asked: Asked,
    user_id: str,
    k: int,
    exclude: Sequence[str] | None,
    only: Sequence[str] | None,
    history: Sequence[str] | None,
    context: Context | None,
) -> Question[Recommendations]:
    user = protocol.check_id(asked, "user_id", user_id, "recommend_batch")
    # What is one sequence of ids here would do for all users of a batch, or as one for each: only ids are meant.
    excluded, allowed = (
        None if ids is None else protocol.check_items(asked, name, ids)
        for name, ids in ((protocol.EXCLUDE, exclude), (protocol.ONLY, only))
    )
    return recommend_batch(asked, [user], k, excluded, allowed, _one_history(asked, history), context)


def recommend_batch(
    asked: Asked,
    user_ids: Sequence[str],
    k: int,
    exclude: Filter | None,
    only: Filter | None,
    histories: Sequence[Sequence[str]] | None,
    context: Context | None,
) -> Question[Recommendations]:
    protocol.check_k(asked, k)
    users = protocol.check_ids(asked, "user_ids", user_ids, "use recommend for one user")
    touched = None if histories is None else protocol.check_histories(asked, histories, len(users))
    columns = protocol.check_context(asked, context, len(users))
    given = ((protocol.EXCLUDE, exclude), (protocol.ONLY, only))
    filters = {name: protocol.check_filter(asked, name, ids, len(users)) for name, ids in given}
    filters = {name: ids for name, ids in filters.items() if ids}
    plain = Inputs({"user_id": users}, touched, columns)
    filtered = Inputs({"user_id": users}, touched, columns, filters, k)

    def prepare(metadata: ModelMetadata) -> tuple[str, Inputs]:
        name = protocol.recommend_signature(asked, metadata, k, bool(filters))
        return name, filtered if name == protocol.RECOMMEND_FILTERED else plain

    return Question(
        asked,
        len(users),
        prepare,
        lambda name, response, rows: protocol.read_recommendations(asked, name, response, users[rows], k),
    )


def rate(
    asked: Asked, user_id: str, item_id: str, history: Sequence[str] | None, context: Context | None
) -> Question[float]:
    user = protocol.check_id(asked, "user_id", user_id, "rate_batch")
    item = protocol.check_id(asked, "item_id", item_id, "rate_batch")
    return rate_batch(asked, [user], [item], _one_history(asked, history), context)


def rate_batch(
    asked: Asked,
    user_ids: Sequence[str],
    item_ids: Sequence[str],
    histories: Sequence[Sequence[str]] | None,
    context: Context | None,
) -> Question[float]:
    users = protocol.check_ids(asked, "user_ids", user_ids, "use rate for one pair")
    items = protocol.check_ids(asked, "item_ids", item_ids, "use rate for one pair")
    if len(users) != len(items):
        raise asked.invalid(f"{len(users)} user_ids and {len(items)} item_ids; pass as many of both")
    touched = None if histories is None else protocol.check_histories(asked, histories, len(users))
    columns = protocol.check_context(asked, context, len(users))
    inputs = Inputs({"user_id": users, "item_id": items}, touched, columns)
    return Question(
        asked,
        len(users),
        lambda _: (protocol.RATE, inputs),
        lambda _, response, rows: protocol.read_ratings(asked, response, len(users[rows])),
    )


def similar(asked: Asked, item_id: str, k: int) -> Question[SimilarItems]:
    return similar_batch(asked, [protocol.check_id(asked, "item_id", item_id, "similar_batch")], k)


def similar_batch(asked: Asked, item_ids: Sequence[str], k: int) -> Question[SimilarItems]:
    items = protocol.check_ids(asked, "item_ids", item_ids, "use similar for one item")
    return Question(
        asked,
        len(items),
        _at_most(asked, protocol.SIMILAR_ITEMS, Inputs({"item_id": items}), k),
        lambda _, response, rows: protocol.read_similar(asked, response, items[rows], k),
    )


def find(asked: Asked, text: str, k: int) -> Question[FoundItems]:
    if not isinstance(text, str):
        raise asked.invalid(f"text is {type(text).__name__} {text!r}, wanted a str; pass the beginning of a word")
    return Question(
        asked,
        1,
        _at_most(asked, protocol.FIND_ITEMS, Inputs({"text": [text]}), k),
        lambda _, response, rows: protocol.read_found(asked, response, [text][rows], k),
    )


def embed_query(
    asked: Asked, user_id: str, history: Sequence[str] | None, context: Context | None
) -> Question[Embedding]:
    user = protocol.check_id(asked, "user_id", user_id, "embed_query_batch")
    return embed_query_batch(asked, [user], _one_history(asked, history), context)


def embed_query_batch(
    asked: Asked, user_ids: Sequence[str], histories: Sequence[Sequence[str]] | None, context: Context | None
) -> Question[Embedding]:
    users = protocol.check_ids(asked, "user_ids", user_ids, "use embed_query for one user")
    touched = None if histories is None else protocol.check_histories(asked, histories, len(users))
    columns = protocol.check_context(asked, context, len(users))
    return _embed(asked, protocol.EMBED_QUERY, users, Inputs({"user_id": users}, touched, columns))


def embed_item(asked: Asked, item_id: str, columns: Context | None) -> Question[Embedding]:
    item = protocol.check_id(asked, "item_id", item_id, "embed_item_batch")
    if not item and not columns:
        raise asked.invalid("neither an item_id nor columns are given; pass one of them, or both")
    return embed_item_batch(asked, [item], columns)


def embed_item_batch(asked: Asked, item_ids: Sequence[str] | None, columns: Context | None) -> Question[Embedding]:
    if item_ids is None:
        rows = protocol.length_of(columns)
        if rows is None:
            raise asked.invalid(
                "neither item_ids nor a column with one value for each item are given, so there is no telling how many "
                "items are meant; pass item_ids, or use embed_item for one item"
            )
        item_ids = [""] * rows
    items = protocol.check_ids(asked, "item_ids", item_ids, "use embed_item for one item")
    described = protocol.check_context(asked, columns, len(items))
    inputs = Inputs({"item_id": items}, context=described, further="columns")
    return _embed(asked, protocol.EMBED_ITEM, items, inputs)


def _embed(asked: Asked, signature: str, ids: Sequence[str], inputs: Inputs) -> Question[Embedding]:
    def read(_: str, response: pb.PredictResponse, rows: slice) -> list[Embedding]:
        named = ids[rows]
        return list(map(Embedding, named, protocol.read_vectors(asked, response, len(named))))

    return Question(asked, len(ids), lambda _: (signature, inputs), read)


def _at_most(asked: Asked, name: str, inputs: Inputs, k: int) -> Callable[[ModelMetadata], tuple[str, Inputs]]:
    protocol.check_k(asked, k)

    def prepare(metadata: ModelMetadata) -> tuple[str, Inputs]:
        protocol.check_list_length(asked, name, k, protocol.list_length(asked, metadata, name))
        return name, inputs

    return prepare


def _one_history(asked: Asked, history: Sequence[str] | None) -> list[list[str]] | None:
    return None if history is None else [protocol.check_items(asked, protocol.HISTORY, history)]
