"""Requests and answers of the model's contract, without a connection: inputs checked, messages built and read here."""

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
# The optional input for items that the user touched, string [B, L]; only models with a history feature have it.
HISTORY = "history"
EXCLUDE = "exclude"
ONLY = "only"
# Items that a call asks for unless told otherwise. Never too many: a shorter list is then all that the model has.
DEFAULT_K = 10
_INT32_MAX = 2**31 - 1

_EXPORTED = "serve a model that was exported by Tandem's Trainer"
_EXPORTED_ANEW = "run the pipeline of this version of Tandem again, and serve what it exports"
# Why a model that Tandem exported may lack a signature, and what to do then.
_REMEDIES = {
    RECOMMEND_FILTERED: f"exclude, only and a longer list need it; {_EXPORTED_ANEW}, or ask without them",
    FIND_ITEMS: (
        "only models with a display column have it; give a feature under features.candidate of its recipe.yaml "
        "`display: true`, and run the pipeline again"
    ),
    SIMILAR_ITEMS: _EXPORTED_ANEW,
    EMBED_QUERY: _EXPORTED_ANEW,
    EMBED_ITEM: _EXPORTED_ANEW,
}

Scalar = str | bytes | int | float | bool
Column = Scalar | Sequence[Scalar]
Context = Mapping[str, Column]
Filter = Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True)
class Asked:
    """Whom is asked for what: the part of every error message that says where it happened."""

    target: str
    model: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.version is not None and self.label is not None:
            raise ValueError(f"version is {self.version} and label is {self.label!r}; pass one of them")

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


# -- arguments, checked before anything is known of the model ----------------------------------------------------------


def check_id(asked: Asked, name: str, value: str, many: str) -> str:
    """Raises:
    InvalidRequest: not a str; `many` names the method for several.
    """
    if not isinstance(value, str):
        remedy = f"use {many} for several" if isinstance(value, list | tuple) else "ids are strings on the wire"
        raise asked.invalid(f"{name} is {type(value).__name__} {value!r}, wanted a str; {remedy}")
    return value


def check_ids(asked: Asked, name: str, ids: Sequence[str], hint: str) -> list[str]:
    """Raises:
    InvalidRequest: not a sequence of str.
    """
    if isinstance(ids, str | bytes):
        raise asked.invalid(f"{name} is one {type(ids).__name__}, wanted a sequence of str; {hint}")
    if isinstance(ids, Mapping | Set) or not isinstance(ids, Iterable):
        raise asked.invalid(f"{name} is {type(ids).__name__} {ids!r}, wanted a sequence of str; pass a list")
    found = list(ids)
    for position, each in enumerate(found):
        if not isinstance(each, str):
            raise asked.invalid(
                f"{name} wants str; found {type(each).__name__} {each!r} at position {position}; ids are strings on "
                f"the wire, pass {str(each)!r}"
            )
    return found


def check_items(asked: Asked, name: str, ids: Sequence[str]) -> list[str]:
    """Raises:
    InvalidRequest: not a sequence of item ids.
    """
    return check_ids(asked, name, ids, f"pass [{ids!r}] if it is one item's id")


def check_histories(asked: Asked, histories: Sequence[Sequence[str]], rows: int) -> list[list[str]]:
    """Raises:
    InvalidRequest: not a sequence of str for each of the rows.
    """
    if isinstance(histories, str | bytes | Mapping | Set) or not isinstance(histories, Iterable):
        raise asked.invalid(
            f"histories is {type(histories).__name__} {histories!r}, wanted a sequence of str for each user; pass a "
            "list of lists"
        )
    checked = [check_items(asked, f"histories[{row}]", each) for row, each in enumerate(histories)]
    if len(checked) != rows:
        raise asked.invalid(
            f"{len(checked)} histories for {rows} user_ids; pass one a user, [] for a user without, or None for all"
        )
    return checked


def check_filter(asked: Asked, name: str, ids: Filter | None, rows: int) -> list[list[str]]:
    """Ids for all rows, or a sequence of them for each, as one or as many lists; none where there is no id at all.

    Raises:
        InvalidRequest: neither of the two.
    """
    if ids is None:
        return []
    if isinstance(ids, str | bytes | Mapping | Set) or not isinstance(ids, Iterable):
        check_items(asked, name, ids)  # says what is wrong
    found: list[Any] = list(ids)
    nested = [position for position, each in enumerate(found) if not isinstance(each, str | bytes | int | float | None)]
    if not nested:
        checked = [check_items(asked, name, found)]
    elif len(nested) != len(found):
        raise asked.invalid(
            f"{name} holds a {type(found[nested[0]]).__name__} at position {nested[0]} beside ids; pass ids alone, for "
            "all users, or one sequence of ids for each user"
        )
    else:
        checked = [check_items(asked, f"{name}[{row}]", each) for row, each in enumerate(found)]
        if len(checked) != rows:
            raise asked.invalid(
                f"{name} holds {len(checked)} sequences for {rows} user_ids; pass one a user, or ids alone for all"
            )
    return checked if any(map(any, checked)) else []


def check_k(asked: Asked, k: int) -> None:
    """Raises:
    InvalidRequest: not an int above 0.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= _INT32_MAX:
        raise asked.invalid(f"k is {k!r}; pass an int from 1 to {_INT32_MAX}")


def check_context(asked: Asked, context: Context | None, rows: int) -> dict[str, Any]:
    """Each column as a scalar for all rows, or a list of one value a row.

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
            raise asked.invalid(
                f"input {key!r} has {len(checked[key])} values for {rows} rows; pass one value a row, or a scalar for "
                "all rows"
            )
    return checked


def length_of(context: Context | None) -> int | None:
    """Rows that the columns speak of: the length of the first that is not a scalar; None where all are."""
    lengths: list[Any] = [value for value in (context or {}).values() if not _is_scalar(value)]
    return len(lengths[0]) if lengths else None


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bytes) or not hasattr(value, "__len__")


# -- requests ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """What a call sends, checked by the functions above.

    Attributes:
        ids: columns of B ids each.
        histories: B lists of item ids, of any lengths; None leaves the input out.
        context: further columns: a scalar, or B values.
        filters: by name, one list of ids for all rows or B of them.
        k: the scalar input; None leaves it out.
        further: what the caller's argument for further columns is called.
    """

    ids: Mapping[str, Sequence[str]]
    histories: Sequence[Sequence[str]] | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    filters: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    k: int | None = None
    further: str = "context"

    def part(self, rows: slice) -> Inputs:
        """The inputs of some of the rows."""
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


def signature_of(asked: Asked, metadata: ModelMetadata, name: str) -> Signature:
    """Raises:
    SignatureMissing: the model has no such signature.
    """
    if name not in metadata.signatures:
        available = sorted(metadata.signatures)
        raise SignatureMissing(
            f"{asked}: version {metadata.version} has no signature {name!r}; it has: {', '.join(available) or 'none'}; "
            f"{_REMEDIES.get(name, _EXPORTED)}",
            target=asked.target,
            model=asked.model,
            signature=name,
            available=available,
        )
    return metadata.signatures[name]


def predict_request(asked: Asked, metadata: ModelMetadata, name: str, inputs: Inputs) -> pb.PredictRequest:
    """A request checked against the signature.

    Raises:
        InvalidRequest: names the input, what was found, what is wanted.
    """
    signature = signature_of(asked, metadata, name)
    rows = len(next(iter(inputs.ids.values())))
    takes_histories = _takes_histories(signature)
    for key in inputs.context:
        if key in inputs.ids or key in inputs.filters or (key == HISTORY and takes_histories):
            raise asked.invalid(
                f"signature {name!r}: {key!r} is in the {inputs.further}; it has an argument of its own"
            )
    if inputs.histories is not None and not takes_histories:
        raise asked.invalid(
            f"signature {name!r} of version {metadata.version} takes no {HISTORY} (string [B, L]), because the model's "
            f"recipe has no history feature; add {{column: ITEM_ID, kind: history}} under features.query of its "
            f"recipe.yaml, ITEM_ID being data.columns.item_id, and run the pipeline again; or ask without {HISTORY}"
        )
    columns: dict[str, Sequence[Any]] = dict(inputs.ids)
    for key, values in inputs.context.items():
        # Repeated rather than sent once: servers that batch requests want every input to have the batch's length.
        columns[key] = values if isinstance(values, list) else [values] * rows
    lists = dict(inputs.filters)
    if inputs.histories is not None:
        lists[HISTORY] = inputs.histories
    scalars = {} if inputs.k is None else {"k": inputs.k}
    _check_names(asked, signature, [*columns, *lists, *scalars], inputs.further)
    request = pb.PredictRequest(model_spec=asked.model_spec(name))
    for key, values in columns.items():
        spec = signature.inputs[key]
        if spec.shape is not None and len(spec.shape) != 1:
            raise asked.invalid(
                f"signature {name!r}: input {key!r} is {spec.describe()}; this client sends one value a row ([B])"
            )
        try:
            request.inputs[key].CopyFrom(tensors.column(spec.dtype, values))
        except ValueError as error:
            raise asked.invalid(f"signature {name!r}: input {key!r} {error}") from error
    for key, ids in lists.items():
        try:
            request.inputs[key].CopyFrom(tensors.padded_strings(ids))
        except ValueError as error:
            raise asked.invalid(f"signature {name!r}: input {key!r}: {error}") from error
    for key, value in scalars.items():
        request.inputs[key].CopyFrom(tensors.scalar(signature.inputs[key].dtype, value))
    return request


def bytes_of_rows(request: pb.PredictRequest, rows: int) -> int:
    """Bytes of the inputs that have as many rows, and so of what half of the rows needs half of."""
    return sum(tensor.ByteSize() for tensor in request.inputs.values() if tensors.shape(tensor)[:1] == (rows,))


def list_length(asked: Asked, metadata: ModelMetadata, name: str) -> int | None:
    """How many items the signature answers, which is fixed in the graph; None where the graph leaves it open.

    Raises:
        SignatureMissing: the model has no such signature.
    """
    output = signature_of(asked, metadata, name).outputs.get("item_ids")
    if output is None or output.shape is None or len(output.shape) != 2 or output.shape[1] < 0:
        return None
    return output.shape[1]


def check_list_length(asked: Asked, name: str, k: int, longest: int | None) -> None:
    """Raises:
    InvalidRequest: k is more than the signature answers, and more than what a call asks for unless told otherwise.
    """
    if longest is not None and k > max(longest, DEFAULT_K):
        raise asked.invalid(
            f"signature {name!r} returns at most {longest} items; k is {k}; pass k={longest} or less, or raise "
            "serving.k in the model's recipe.yaml and run the pipeline again"
        )


def recommend_signature(asked: Asked, metadata: ModelMetadata, k: int, filters: bool) -> str:
    """`recommend`, which a server can batch, where it can answer; else `recommend_filtered`.

    Raises:
        InvalidRequest: neither can.
    """
    if filters:
        return RECOMMEND_FILTERED
    longest = list_length(asked, metadata, RECOMMEND)
    if longest is None or k <= longest:
        return RECOMMEND
    if RECOMMEND_FILTERED in metadata.signatures:
        return RECOMMEND_FILTERED
    check_list_length(asked, RECOMMEND, k, longest)
    return RECOMMEND


def _takes_histories(signature: Signature) -> bool:
    """A column of the data may be called history, too: it has one value a row."""
    spec = signature.inputs.get(HISTORY)
    return spec is not None and spec.dtype == "string" and (spec.shape is None or len(spec.shape) == 2)


def _check_names(asked: Asked, signature: Signature, names: Sequence[str], further: str) -> None:
    unknown = sorted(set(names) - set(signature.inputs))
    if unknown:
        takes = ", ".join(f"{spec.name} ({spec.describe()})" for spec in signature.inputs.values())
        raise asked.invalid(f"signature {signature.name!r} has no input {', '.join(unknown)}; it takes: {takes}")
    missing = [spec for spec in signature.inputs.values() if not spec.optional and spec.name not in names]
    if missing:
        wanted = ", ".join(f"{spec.name} ({spec.describe()})" for spec in missing)
        raise asked.invalid(f"signature {signature.name!r} needs {wanted}, which is missing; pass it in {further}")


# -- answers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lists:
    """Outputs of shape [B, K], row-major: the items of each row, and what is told of each of them."""

    width: int
    item_ids: list[bytes]
    numbers: Mapping[str, list[float]]
    display: Mapping[str, list[bytes]]

    def places(self, row: int, k: int) -> list[int]:
        """Where the row's first k items are. An empty item id pads the list of a row with fewer items."""
        start = row * self.width
        return [place for place in range(start, start + self.width) if self.item_ids[place]][:k]

    def item_id(self, place: int) -> str:
        return _text(self.item_ids[place])

    def shown(self, place: int) -> dict[str, str]:
        return {name: _text(column[place]) for name, column in self.display.items()}


def read_recommendations(
    asked: Asked, signature: str, response: pb.PredictResponse, user_ids: Sequence[str], k: int
) -> list[Recommendations]:
    """Raises:
    InvalidRequest: the version that answered returns shorter lists than the one the request was made for.
    TandemClientError: the answer is not what the contract says.
    """
    lists = _lists(asked, response, len(user_ids), ("scores", "ratings"))
    if signature == RECOMMEND:
        check_list_length(asked, signature, k, lists.width)
    return [
        Recommendations(
            user_id=user_id,
            items=tuple(
                Recommendation(
                    item_id=lists.item_id(place),
                    score=lists.numbers["scores"][place],
                    rating=lists.numbers["ratings"][place],
                    display=lists.shown(place),
                )
                for place in lists.places(row, k)
            ),
        )
        for row, user_id in enumerate(user_ids)
    ]


def read_similar(asked: Asked, response: pb.PredictResponse, item_ids: Sequence[str], k: int) -> list[SimilarItems]:
    """Raises:
    InvalidRequest, TandemClientError: as `read_recommendations`.
    """
    lists = _lists(asked, response, len(item_ids), ("scores",))
    check_list_length(asked, SIMILAR_ITEMS, k, lists.width)
    return [
        SimilarItems(
            item_id=item_id,
            items=tuple(
                SimilarItem(lists.item_id(place), lists.numbers["scores"][place], lists.shown(place))
                for place in lists.places(row, k)
            ),
        )
        for row, item_id in enumerate(item_ids)
    ]


def read_found(asked: Asked, response: pb.PredictResponse, texts: Sequence[str], k: int) -> list[FoundItems]:
    """Raises:
    InvalidRequest, TandemClientError: as `read_recommendations`.
    """
    lists = _lists(asked, response, len(texts), ())
    check_list_length(asked, FIND_ITEMS, k, lists.width)
    return [
        FoundItems(
            text=text,
            items=tuple(FoundItem(lists.item_id(place), lists.shown(place)) for place in lists.places(row, k)),
        )
        for row, text in enumerate(texts)
    ]


def read_ratings(asked: Asked, response: pb.PredictResponse, rows: int) -> list[float]:
    """Raises:
    TandemClientError: the answer is not what the contract says.
    """
    found = _output(asked, response, "rating", "float")
    if tensors.shape(found) != (rows,):
        raise _off_contract(asked, "rating", found, f"float [{rows}]")
    return _values(asked, "rating", found)


def read_vectors(asked: Asked, response: pb.PredictResponse, rows: int) -> list[tuple[float, ...]]:
    """Raises:
    TandemClientError: the answer is not what the contract says.
    """
    values, width = _matrix(asked, response, "embedding", "float", rows, "D")
    return [tuple(values[row * width : (row + 1) * width]) for row in range(rows)]


def _lists(asked: Asked, response: pb.PredictResponse, rows: int, numbers: Sequence[str]) -> _Lists:
    items, width = _matrix(asked, response, "item_ids", "string", rows, "K")
    return _Lists(
        width=width,
        item_ids=items,
        numbers={name: _matrix(asked, response, name, "float", rows, width)[0] for name in numbers},
        display={
            name: _matrix(asked, response, name, "string", rows, width)[0]
            for name, tensor in sorted(response.outputs.items())
            if name != "item_ids" and tensor.dtype == pb.DT_STRING and tensors.shape(tensor) == (rows, width)
        },
    )


def _matrix(
    asked: Asked, response: pb.PredictResponse, name: str, dtype: str, rows: int, width: int | str
) -> tuple[list[Any], int]:
    """Values and width of an output [rows, width]; a width with a letter for it is open."""
    found = _output(asked, response, name, dtype)
    shape = tensors.shape(found)
    if len(shape) != 2 or shape[0] != rows or (isinstance(width, int) and shape[1] != width):
        raise _off_contract(asked, name, found, f"{dtype} [{rows}, {width}]")
    return _values(asked, name, found), shape[1]


def _output(asked: Asked, response: pb.PredictResponse, name: str, dtype: str) -> pb.TensorProto:
    if name not in response.outputs:
        raise asked.error(
            f"the answer has no output {name!r} (it has: {', '.join(sorted(response.outputs)) or 'none'}); {_EXPORTED}"
        )
    found = response.outputs[name]
    if found.dtype != pb.DataType.Value(f"DT_{dtype.upper()}"):
        raise _off_contract(asked, name, found, dtype)
    return found


def _values(asked: Asked, name: str, found: pb.TensorProto) -> list[Any]:
    try:
        return tensors.values(found)
    except ValueError as error:
        raise asked.error(f"output {name!r} cannot be read: {error}") from error


def _off_contract(asked: Asked, name: str, found: pb.TensorProto, wanted: str) -> TandemClientError:
    return asked.error(
        f"output {name!r} is {dtype_text(found.dtype)} {list(tensors.shape(found))}, wanted {wanted}; {_EXPORTED}"
    )


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
