"""Requests and responses of the model's signatures, without a connection: checks inputs, builds and reads messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from tandem_client import serving_pb2 as pb
from tandem_client import tensors
from tandem_client.errors import InvalidRequest, SignatureMissing, TandemClientError
from tandem_client.results import FoundItem, FoundItems, Recommendation, Recommendations, SimilarItem, SimilarItems
from tandem_client.signatures import ModelMetadata, Signature, dtype_text

RECOMMEND = "recommend"
RECOMMEND_FILTERED = "recommend_filtered"
RATE = "rate"
SIMILAR_ITEMS = "similar_items"
FIND_ITEMS = "find_items"
EMBED_QUERY = "embed_query"
EMBED_ITEM = "embed_item"
# The optional input for the user's history, string [B, L]; only models with a history feature have it.
HISTORY = "history"
EXCLUDE = "exclude"
ONLY = "only"
# Default number of items. Never rejected as too large: a shorter list is then all that the model has.
DEFAULT_K = 10
_INT32_MAX = 2**31 - 1

_EXPORTED = "serve a model that was exported by Tandem's Trainer"
_EXPORT_AGAIN = "rerun the pipeline with this version of Tandem, and serve the model that it exports"
# Why an exported model may lack a signature, and the remedy.
_REMEDIES = {
    RECOMMEND_FILTERED: f"exclude, only and a k above serving.k need it; {_EXPORT_AGAIN}, or query without them",
    FIND_ITEMS: (
        "only models with a display column have it; set `display: true` on a feature under features.candidate of its "
        "recipe.yaml, and rerun the pipeline"
    ),
    SIMILAR_ITEMS: _EXPORT_AGAIN,
    EMBED_QUERY: _EXPORT_AGAIN,
    EMBED_ITEM: _EXPORT_AGAIN,
}

Scalar = str | bytes | int | float | bool
Column = Scalar | Sequence[Scalar]
Context = Mapping[str, Column]
Filter = Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True)
class ModelRef:
    """The model that is queried: server, name, and version or label. The prefix of every error message."""

    target: str
    model: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.version is not None and self.label is not None:
            raise ValueError(f"expected a version or a label, got version {self.version} and label {self.label!r}")

    def __str__(self) -> str:
        version = "" if self.version is None else f" version {self.version}"
        label = "" if self.label is None else f" label {self.label!r}"
        return f"{self.target}, model {self.model!r}{version}{label}"

    def invalid(self, message: str, code: str | None = None) -> InvalidRequest:
        return InvalidRequest(f"{self}: {message}", target=self.target, model=self.model, code=code)

    def error(self, message: str, code: str | None = None) -> TandemClientError:
        return TandemClientError(f"{self}: {message}", target=self.target, model=self.model, code=code)

    def model_spec(self, signature: str = "") -> pb.ModelSpec:
        spec = pb.ModelSpec(name=self.model, signature_name=signature)
        if self.version is not None:
            spec.version.value = self.version
        if self.label is not None:
            spec.version_label = self.label
        return spec


# -- arguments, checked before the model's signatures are known --------------------------------------------------------


def check_id(ref: ModelRef, name: str, value: str, many: str) -> str:
    """Check one id; `many` is the method for several ids.

    Raises:
        InvalidRequest: not a str.
    """
    if not isinstance(value, str):
        remedy = f"use {many} for several" if isinstance(value, list | tuple) else "ids are strings on the wire"
        raise ref.invalid(f"{name}: expected a str, got {type(value).__name__} {value!r}; {remedy}")
    return value


def check_ids(ref: ModelRef, name: str, ids: Sequence[str], hint: str) -> list[str]:
    """Check a sequence of ids; `hint` is the remedy for a single id.

    Raises:
        InvalidRequest: not a sequence of str.
    """
    if isinstance(ids, str | bytes):
        raise ref.invalid(f"{name}: expected a sequence of str, got one {type(ids).__name__}; {hint}")
    if isinstance(ids, Mapping | Set) or not isinstance(ids, Iterable):
        raise ref.invalid(f"{name}: expected a sequence of str, got {type(ids).__name__} {ids!r}; pass a list")
    found = list(ids)
    for position, each in enumerate(found):
        if not isinstance(each, str):
            raise ref.invalid(
                f"{name}: expected str, got {type(each).__name__} {each!r} at position {position}; ids are strings on "
                f"the wire, pass {str(each)!r}"
            )
    return found


def check_items(ref: ModelRef, name: str, ids: Sequence[str]) -> list[str]:
    """Check a sequence of item ids.

    Raises:
        InvalidRequest: not a sequence of item ids.
    """
    return check_ids(ref, name, ids, f"pass [{ids!r}] if it is one item's id")


def check_histories(ref: ModelRef, histories: Sequence[Sequence[str]], rows: int) -> list[list[str]]:
    """Check one sequence of item ids per row.

    Raises:
        InvalidRequest: not a sequence of str for each row.
    """
    if isinstance(histories, str | bytes | Mapping | Set) or not isinstance(histories, Iterable):
        raise ref.invalid(
            f"histories: expected a sequence of str for each user, got {type(histories).__name__} {histories!r}; pass "
            "a list of lists"
        )
    checked = [check_items(ref, f"histories[{row}]", each) for row, each in enumerate(histories)]
    if len(checked) != rows:
        raise ref.invalid(
            f"histories: expected {rows}, one per user, got {len(checked)}; pass [] for a user without, or None for all"
        )
    return checked


def check_filter(ref: ModelRef, name: str, ids: Filter | None, rows: int) -> list[list[str]]:
    """Check ids for all rows, or one sequence of ids per row; return one list or one per row, [] without any id.

    Raises:
        InvalidRequest: neither of both.
    """
    if ids is None:
        return []
    if isinstance(ids, str | bytes | Mapping | Set) or not isinstance(ids, Iterable):
        check_items(ref, name, ids)  # raises with the reason
    found: list[Any] = list(ids)
    nested = [position for position, each in enumerate(found) if not isinstance(each, str | bytes | int | float | None)]
    if not nested:
        checked = [check_items(ref, name, found)]
    elif len(nested) != len(found):
        raise ref.invalid(
            f"{name}: expected ids for all users, or one sequence of ids per user, got ids and a "
            f"{type(found[nested[0]]).__name__} at position {nested[0]}"
        )
    else:
        checked = [check_items(ref, f"{name}[{row}]", each) for row, each in enumerate(found)]
        if len(checked) != rows:
            raise ref.invalid(
                f"{name}: expected {rows} sequences, one per user, got {len(checked)}; or pass ids for all users"
            )
    return checked if any(map(any, checked)) else []


def check_k(ref: ModelRef, k: int) -> None:
    """Check a number of items.

    Raises:
        InvalidRequest: not an int above 0.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= _INT32_MAX:
        raise ref.invalid(f"k: expected an int from 1 to {_INT32_MAX}, got {k!r}")


def check_context(ref: ModelRef, context: Context | None, rows: int) -> dict[str, Any]:
    """Check columns: each is a scalar for all rows, or a list of one value per row.

    Raises:
        InvalidRequest: a column of another length.
    """
    checked: dict[str, Any] = {}
    for key, value in (context or {}).items():
        values: Any = value
        if _is_scalar(values):
            checked[key] = values
            continue
        checked[key] = list(values)
        if len(checked[key]) != rows:
            raise ref.invalid(
                f"input {key!r}: expected {rows} values, one per row, got {len(checked[key])}; or pass a scalar "
                "for all rows"
            )
    return checked


def length_of(context: Context | None) -> int | None:
    """Return the length of the first column that is not a scalar; None if all are scalars."""
    lengths: list[Any] = [value for value in (context or {}).values() if not _is_scalar(value)]
    return len(lengths[0]) if lengths else None


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bytes) or not hasattr(value, "__len__")


# -- requests ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """Inputs of a request, checked by the functions above."""

    ids: Mapping[str, Sequence[str]]
    """Columns of B ids each, by name."""
    histories: Sequence[Sequence[str]] | None = None
    """B lists of item ids, of any lengths; None omits the input."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """Further columns by name: a scalar, or B values."""
    filters: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """One list of ids for all rows, or B of them, by name."""
    k: int | None = None
    """The scalar input; None omits it."""
    further: str = "context"
    """The name of the caller's argument for further columns."""

    def part(self, rows: slice) -> Inputs:
        """Return the inputs of some rows."""
        return Inputs(
            ids={name: ids[rows] for name, ids in self.ids.items()},
            histories=None if self.histories is None else self.histories[rows],
            context={
                name: values[rows] if isinstance(values, list) else values for name, values in self.context.items()
            },
            filters={name: ids if len(ids) == 1 else ids[rows] for name, ids in self.filters.items()},
            k=self.k,
            further=self.further,
        )


def signature_of(ref: ModelRef, metadata: ModelMetadata, name: str) -> Signature:
    """Return a signature of the model.

    Raises:
        SignatureMissing: the model has no such signature.
    """
    if name not in metadata.signatures:
        available = sorted(metadata.signatures)
        raise SignatureMissing(
            f"{ref}: version {metadata.version} has no signature {name!r}; it has: {', '.join(available) or 'none'}; "
            f"{_REMEDIES.get(name, _EXPORTED)}",
            target=ref.target,
            model=ref.model,
            signature=name,
            available=available,
        )
    return metadata.signatures[name]


def predict_request(ref: ModelRef, metadata: ModelMetadata, name: str, inputs: Inputs) -> pb.PredictRequest:
    """Build a request and check it against the signature.

    Raises:
        InvalidRequest: an input does not match; names it with the expected and the actual value.
    """
    signature = signature_of(ref, metadata, name)
    rows = len(next(iter(inputs.ids.values())))
    takes_histories = _takes_histories(signature)
    for key in inputs.context:
        if key in inputs.ids or key in inputs.filters or (key == HISTORY and takes_histories):
            raise ref.invalid(f"signature {name!r}: {key!r} is in the {inputs.further}; pass it as its own argument")
    if inputs.histories is not None and not takes_histories:
        raise ref.invalid(
            f"signature {name!r} of version {metadata.version} has no input {HISTORY} (string [B, L]), because the "
            "model's recipe has no history feature; add {column: ITEM_ID, kind: history} under features.query of its "
            "recipe.yaml, where ITEM_ID is data.columns.item_id, and rerun the pipeline; or query without "
            f"{HISTORY}"
        )
    columns: dict[str, Sequence[Any]] = dict(inputs.ids)
    for key, values in inputs.context.items():
        # Repeated instead of sent once: servers that batch requests expect every input to have the batch's length.
        columns[key] = values if isinstance(values, list) else [values] * rows
    lists = dict(inputs.filters)
    if inputs.histories is not None:
        lists[HISTORY] = inputs.histories
    scalars = {} if inputs.k is None else {"k": inputs.k}
    _check_names(ref, signature, [*columns, *lists, *scalars], inputs.further)
    request = pb.PredictRequest(model_spec=ref.model_spec(name))
    for key, values in columns.items():
        spec = signature.inputs[key]
        if spec.shape is not None and len(spec.shape) != 1:
            raise ref.invalid(
                f"signature {name!r}: input {key!r} is {spec.describe()}; this client sends one value per row ([B])"
            )
        try:
            request.inputs[key].CopyFrom(tensors.column(spec.dtype, values))
        except ValueError as error:
            raise ref.invalid(f"signature {name!r}: input {key!r}: {error}") from error
    for key, ids in lists.items():
        try:
            request.inputs[key].CopyFrom(tensors.padded_strings(ids))
        except ValueError as error:
            raise ref.invalid(f"signature {name!r}: input {key!r}: {error}") from error
    for key, value in scalars.items():
        request.inputs[key].CopyFrom(tensors.scalar(signature.inputs[key].dtype, value))
    return request


def bytes_of_rows(request: pb.PredictRequest, rows: int) -> int:
    """Return the bytes of the inputs with this number of rows, which halve with the rows."""
    return sum(tensor.ByteSize() for tensor in request.inputs.values() if tensors.shape(tensor)[:1] == (rows,))


def list_length(ref: ModelRef, metadata: ModelMetadata, name: str) -> int | None:
    """Return the number of items in the signature's lists; None if the graph does not fix it.

    Raises:
        SignatureMissing: the model has no such signature.
    """
    output = signature_of(ref, metadata, name).outputs.get("item_ids")
    if output is None or output.shape is None or len(output.shape) != 2 or output.shape[1] < 0:
        return None
    return output.shape[1]


def check_list_length(ref: ModelRef, name: str, k: int, longest: int | None) -> None:
    """Check k against the length of the signature's lists.

    Raises:
        InvalidRequest: k is larger, and larger than the default.
    """
    if longest is not None and k > max(longest, DEFAULT_K):
        raise ref.invalid(
            f"signature {name!r} returns at most {longest} items, got k={k}; pass k={longest} or less, or raise "
            "serving.k in the model's recipe.yaml and rerun the pipeline"
        )


def recommend_signature(ref: ModelRef, metadata: ModelMetadata, k: int, filters: bool) -> str:
    """Return `recommend`, which a server can batch, if it is sufficient; else `recommend_filtered`.

    Raises:
        InvalidRequest: neither is sufficient.
    """
    if filters:
        return RECOMMEND_FILTERED
    longest = list_length(ref, metadata, RECOMMEND)
    if longest is None or k <= longest:
        return RECOMMEND
    if RECOMMEND_FILTERED in metadata.signatures:
        return RECOMMEND_FILTERED
    check_list_length(ref, RECOMMEND, k, longest)
    return RECOMMEND


def _takes_histories(signature: Signature) -> bool:
    """Whether `history` is the history input, and not a data column of that name with one value per row."""
    spec = signature.inputs.get(HISTORY)
    return spec is not None and spec.dtype == "string" and (spec.shape is None or len(spec.shape) == 2)


def _check_names(ref: ModelRef, signature: Signature, names: Sequence[str], further: str) -> None:
    unknown = sorted(set(names) - set(signature.inputs))
    if unknown:
        takes = ", ".join(f"{spec.name} ({spec.describe()})" for spec in signature.inputs.values())
        raise ref.invalid(f"signature {signature.name!r} has no input {', '.join(unknown)}; its inputs are: {takes}")
    missing = [spec for spec in signature.inputs.values() if not spec.optional and spec.name not in names]
    if missing:
        expected = ", ".join(f"{spec.name} ({spec.describe()})" for spec in missing)
        raise ref.invalid(f"signature {signature.name!r}: expected {expected}, got none; pass it in {further}")


# -- responses ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lists:
    """Outputs of shape [B, K], row-major: the items of each row with their numbers and display columns."""

    width: int
    item_ids: list[bytes]
    numbers: Mapping[str, list[float]]
    display: Mapping[str, list[bytes]]

    def positions(self, row: int, k: int) -> list[int]:
        """Return the positions of the row's first k items. An empty item id pads a row with fewer items."""
        start = row * self.width
        return [position for position in range(start, start + self.width) if self.item_ids[position]][:k]

    def item_id(self, position: int) -> str:
        return _text(self.item_ids[position])

    def shown(self, position: int) -> dict[str, str]:
        return {name: _text(column[position]) for name, column in self.display.items()}


def read_recommendations(
    ref: ModelRef, signature: str, response: pb.PredictResponse, user_ids: Sequence[str], k: int
) -> list[Recommendations]:
    """Read `recommend`'s or `recommend_filtered`'s response.

    Raises:
        InvalidRequest: the version that answered returns shorter lists than the one that the request was built for.
        TandemClientError: the response does not have the outputs of the signature.
    """
    lists = _lists(ref, response, len(user_ids), ("scores", "ratings"))
    if signature == RECOMMEND:
        check_list_length(ref, signature, k, lists.width)
    return [
        Recommendations(
            user_id=user_id,
            items=tuple(
                Recommendation(
                    item_id=lists.item_id(position),
                    score=lists.numbers["scores"][position],
                    rating=lists.numbers["ratings"][position],
                    display=lists.shown(position),
                )
                for position in lists.positions(row, k)
            ),
        )
        for row, user_id in enumerate(user_ids)
    ]


def read_similar(ref: ModelRef, response: pb.PredictResponse, item_ids: Sequence[str], k: int) -> list[SimilarItems]:
    """Read `similar_items`'s response.

    Raises:
        InvalidRequest, TandemClientError: as `read_recommendations`.
    """
    lists = _lists(ref, response, len(item_ids), ("scores",))
    check_list_length(ref, SIMILAR_ITEMS, k, lists.width)
    return [
        SimilarItems(
            item_id=item_id,
            items=tuple(
                SimilarItem(lists.item_id(position), lists.numbers["scores"][position], lists.shown(position))
                for position in lists.positions(row, k)
            ),
        )
        for row, item_id in enumerate(item_ids)
    ]


def read_found(ref: ModelRef, response: pb.PredictResponse, texts: Sequence[str], k: int) -> list[FoundItems]:
    """Read `find_items`'s response.

    Raises:
        InvalidRequest, TandemClientError: as `read_recommendations`.
    """
    lists = _lists(ref, response, len(texts), ())
    check_list_length(ref, FIND_ITEMS, k, lists.width)
    return [
        FoundItems(
            text=text,
            items=tuple(
                FoundItem(lists.item_id(position), lists.shown(position)) for position in lists.positions(row, k)
            ),
        )
        for row, text in enumerate(texts)
    ]


def read_ratings(ref: ModelRef, response: pb.PredictResponse, rows: int) -> list[float]:
    """Read `rate`'s response.

    Raises:
        TandemClientError: the response does not have the outputs of the signature.
    """
    found = _output(ref, response, "rating", "float")
    if tensors.shape(found) != (rows,):
        raise _off_contract(ref, "rating", found, f"float [{rows}]")
    return _values(ref, "rating", found)


def read_vectors(ref: ModelRef, response: pb.PredictResponse, rows: int) -> list[tuple[float, ...]]:
    """Read `embed_query`'s or `embed_item`'s response.

    Raises:
        TandemClientError: the response does not have the outputs of the signature.
    """
    values, width = _matrix(ref, response, "embedding", "float", rows, "D")
    return [tuple(values[row * width : (row + 1) * width]) for row in range(rows)]


def _lists(ref: ModelRef, response: pb.PredictResponse, rows: int, numbers: Sequence[str]) -> _Lists:
    items, width = _matrix(ref, response, "item_ids", "string", rows, "K")
    return _Lists(
        width=width,
        item_ids=items,
        numbers={name: _matrix(ref, response, name, "float", rows, width)[0] for name in numbers},
        display={
            name: _matrix(ref, response, name, "string", rows, width)[0]
            for name, tensor in sorted(response.outputs.items())
            if name != "item_ids" and tensor.dtype == pb.DT_STRING and tensors.shape(tensor) == (rows, width)
        },
    )


def _matrix(
    ref: ModelRef, response: pb.PredictResponse, name: str, dtype: str, rows: int, width: int | str
) -> tuple[list[Any], int]:
    """Return values and width of an output [rows, width]; a letter as width allows any."""
    found = _output(ref, response, name, dtype)
    shape = tensors.shape(found)
    if len(shape) != 2 or shape[0] != rows or (isinstance(width, int) and shape[1] != width):
        raise _off_contract(ref, name, found, f"{dtype} [{rows}, {width}]")
    return _values(ref, name, found), shape[1]


def _output(ref: ModelRef, response: pb.PredictResponse, name: str, dtype: str) -> pb.TensorProto:
    if name not in response.outputs:
        found = ", ".join(sorted(response.outputs)) or "none"
        raise ref.error(f"expected an output {name!r} in the response, got {found}; {_EXPORTED}")
    output = response.outputs[name]
    if output.dtype != pb.DataType.Value(f"DT_{dtype.upper()}"):
        raise _off_contract(ref, name, output, dtype)
    return output


def _values(ref: ModelRef, name: str, found: pb.TensorProto) -> list[Any]:
    try:
        return tensors.values(found)
    except ValueError as error:
        raise ref.error(f"output {name!r} cannot be read: {error}") from error


def _off_contract(ref: ModelRef, name: str, found: pb.TensorProto, expected: str) -> TandemClientError:
    return ref.error(
        f"output {name!r}: expected {expected}, got {dtype_text(found.dtype)} {list(tensors.shape(found))}; {_EXPORTED}"
    )


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
