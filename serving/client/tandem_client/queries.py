"""The queries of a model, one function each: checked arguments, and how their rows are sent and read.

Both clients use them, with and without asyncio. recommender.py documents the arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tandem_client import protocol
from tandem_client import serving_pb2 as pb
from tandem_client.protocol import Context, Filter, Inputs, ModelRef
from tandem_client.results import Embedding, FoundItems, Recommendations, SimilarItems
from tandem_client.signatures import ModelMetadata

Row = TypeVar("Row")


@dataclass(frozen=True)
class Query(Generic[Row]):
    """A query with checked arguments. Its rows can be sent in parts: none depends on another."""

    ref: ModelRef
    """The model."""
    rows: int
    """Number of rows, B."""
    prepare: Callable[[ModelMetadata], tuple[str, Inputs]]
    """Returns the signature and all inputs for a model's signatures; raises InvalidRequest."""
    read: Callable[[str, pb.PredictResponse, slice], list[Row]]
    """Converts a signature's response for some of the rows to one result per row."""

    def requests(
        self, metadata: ModelMetadata, rows: slice, message_bytes: int
    ) -> list[tuple[pb.PredictRequest, slice]]:
        """Split the rows into requests of at most `message_bytes`, if possible.

        It is not if one row is larger, or what every request repeats for its rows, such as a long allow-list.

        Raises:
            InvalidRequest: the inputs do not match the model's signature.
        """
        name, inputs = self.prepare(metadata)
        request = protocol.predict_request(self.ref, metadata, name, inputs.part(rows))
        count = rows.stop - rows.start
        own = protocol.bytes_of_rows(request, count)
        left = message_bytes - (request.ByteSize() - own)
        # If next to nothing is left for the rows, fewer rows per request hardly make it smaller.
        if count <= 1 or own <= (left if left > message_bytes // 16 else message_bytes):
            return [(request, rows)]
        middle = (rows.start + rows.stop) // 2
        halves = (slice(rows.start, middle), slice(middle, rows.stop))
        return [each for half in halves for each in self.requests(metadata, half, message_bytes)]


def recommend(
    ref: ModelRef,
    user_id: str,
    k: int,
    exclude: Sequence[str] | None,
    only: Sequence[str] | None,
    history: Sequence[str] | None,
    context: Context | None,
) -> Query[Recommendations]:
    user = protocol.check_id(ref, "user_id", user_id, "recommend_batch")
    # recommend_batch also accepts a sequence per user; here, only ids are valid.
    excluded, allowed = (
        None if ids is None else protocol.check_items(ref, name, ids)
        for name, ids in ((protocol.EXCLUDE, exclude), (protocol.ONLY, only))
    )
    return recommend_batch(ref, [user], k, excluded, allowed, _one_history(ref, history), context)


def recommend_batch(
    ref: ModelRef,
    user_ids: Sequence[str],
    k: int,
    exclude: Filter | None,
    only: Filter | None,
    histories: Sequence[Sequence[str]] | None,
    context: Context | None,
) -> Query[Recommendations]:
    protocol.check_k(ref, k)
    users = protocol.check_ids(ref, "user_ids", user_ids, "use recommend for one user")
    touched = None if histories is None else protocol.check_histories(ref, histories, len(users))
    columns = protocol.check_context(ref, context, len(users))
    given = ((protocol.EXCLUDE, exclude), (protocol.ONLY, only))
    filters = {name: protocol.check_filter(ref, name, ids, len(users)) for name, ids in given}
    filters = {name: ids for name, ids in filters.items() if ids}
    plain = Inputs({"user_id": users}, touched, columns)
    filtered = Inputs({"user_id": users}, touched, columns, filters, k)

    def prepare(metadata: ModelMetadata) -> tuple[str, Inputs]:
        name = protocol.recommend_signature(ref, metadata, k, bool(filters))
        return name, filtered if name == protocol.RECOMMEND_FILTERED else plain

    return Query(
        ref,
        len(users),
        prepare,
        lambda name, response, rows: protocol.read_recommendations(ref, name, response, users[rows], k),
    )


def rate(
    ref: ModelRef, user_id: str, item_id: str, history: Sequence[str] | None, context: Context | None
) -> Query[float]:
    user = protocol.check_id(ref, "user_id", user_id, "rate_batch")
    item = protocol.check_id(ref, "item_id", item_id, "rate_batch")
    return rate_batch(ref, [user], [item], _one_history(ref, history), context)


def rate_batch(
    ref: ModelRef,
    user_ids: Sequence[str],
    item_ids: Sequence[str],
    histories: Sequence[Sequence[str]] | None,
    context: Context | None,
) -> Query[float]:
    users = protocol.check_ids(ref, "user_ids", user_ids, "use rate for one pair")
    items = protocol.check_ids(ref, "item_ids", item_ids, "use rate for one pair")
    if len(users) != len(items):
        raise ref.invalid(f"expected as many item_ids as user_ids, got {len(users)} user_ids and {len(items)} item_ids")
    touched = None if histories is None else protocol.check_histories(ref, histories, len(users))
    columns = protocol.check_context(ref, context, len(users))
    inputs = Inputs({"user_id": users, "item_id": items}, touched, columns)
    return Query(
        ref,
        len(users),
        lambda _: (protocol.RATE, inputs),
        lambda _, response, rows: protocol.read_ratings(ref, response, len(users[rows])),
    )


def similar(ref: ModelRef, item_id: str, k: int) -> Query[SimilarItems]:
    return similar_batch(ref, [protocol.check_id(ref, "item_id", item_id, "similar_batch")], k)


def similar_batch(ref: ModelRef, item_ids: Sequence[str], k: int) -> Query[SimilarItems]:
    items = protocol.check_ids(ref, "item_ids", item_ids, "use similar for one item")
    return Query(
        ref,
        len(items),
        _at_most(ref, protocol.SIMILAR_ITEMS, Inputs({"item_id": items}), k),
        lambda _, response, rows: protocol.read_similar(ref, response, items[rows], k),
    )


def find(ref: ModelRef, text: str, k: int) -> Query[FoundItems]:
    if not isinstance(text, str):
        raise ref.invalid(f"text: expected a str, got {type(text).__name__} {text!r}; pass the beginning of a word")
    return Query(
        ref,
        1,
        _at_most(ref, protocol.FIND_ITEMS, Inputs({"text": [text]}), k),
        lambda _, response, rows: protocol.read_found(ref, response, [text][rows], k),
    )


def embed_query(
    ref: ModelRef, user_id: str, history: Sequence[str] | None, context: Context | None
) -> Query[Embedding]:
    user = protocol.check_id(ref, "user_id", user_id, "embed_query_batch")
    return embed_query_batch(ref, [user], _one_history(ref, history), context)


def embed_query_batch(
    ref: ModelRef, user_ids: Sequence[str], histories: Sequence[Sequence[str]] | None, context: Context | None
) -> Query[Embedding]:
    users = protocol.check_ids(ref, "user_ids", user_ids, "use embed_query for one user")
    touched = None if histories is None else protocol.check_histories(ref, histories, len(users))
    columns = protocol.check_context(ref, context, len(users))
    return _embed(ref, protocol.EMBED_QUERY, users, Inputs({"user_id": users}, touched, columns))


def embed_item(ref: ModelRef, item_id: str, columns: Context | None) -> Query[Embedding]:
    item = protocol.check_id(ref, "item_id", item_id, "embed_item_batch")
    if not item and not columns:
        raise ref.invalid("expected an item_id, columns or both, got neither")
    return embed_item_batch(ref, [item], columns)


def embed_item_batch(ref: ModelRef, item_ids: Sequence[str] | None, columns: Context | None) -> Query[Embedding]:
    if item_ids is None:
        rows = protocol.length_of(columns)
        if rows is None:
            raise ref.invalid(
                "expected item_ids or a column with one value per item, got neither, so the number of items is "
                "unknown; pass item_ids, or use embed_item for one item"
            )
        item_ids = [""] * rows
    items = protocol.check_ids(ref, "item_ids", item_ids, "use embed_item for one item")
    described = protocol.check_context(ref, columns, len(items))
    inputs = Inputs({"item_id": items}, context=described, further="columns")
    return _embed(ref, protocol.EMBED_ITEM, items, inputs)


def _embed(ref: ModelRef, signature: str, ids: Sequence[str], inputs: Inputs) -> Query[Embedding]:
    def read(_: str, response: pb.PredictResponse, rows: slice) -> list[Embedding]:
        named = ids[rows]
        return list(map(Embedding, named, protocol.read_vectors(ref, response, len(named))))

    return Query(ref, len(ids), lambda _: (signature, inputs), read)


def _at_most(ref: ModelRef, name: str, inputs: Inputs, k: int) -> Callable[[ModelMetadata], tuple[str, Inputs]]:
    protocol.check_k(ref, k)

    def prepare(metadata: ModelMetadata) -> tuple[str, Inputs]:
        protocol.check_list_length(ref, name, k, protocol.list_length(ref, metadata, name))
        return name, inputs

    return prepare


def _one_history(ref: ModelRef, history: Sequence[str] | None) -> list[list[str]] | None:
    return None if history is None else [protocol.check_items(ref, protocol.HISTORY, history)]
