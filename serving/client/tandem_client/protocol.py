"""Requests and answers of the model's contract, without a connection: checked, built and read here.

The synchronous client is a thin transport around this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from tandem_client import serving_pb2 as pb
from tandem_client import tensors
from tandem_client.errors import InvalidRequest, TandemClientError
from tandem_client.results import Recommendation, Recommendations
from tandem_client.signatures import ModelMetadata, Signature, dtype_text

RECOMMEND = "recommend"
RATE = "rate"
# The optional input of both for items that the user touched, string [B, L]; only models with a history feature have it.
HISTORY = "history"
# How many items `recommend` returns, fixed in the graph; a smaller catalogue returns all of it.
LIST_LENGTH = 100

Scalar = str | bytes | int | float | bool
Column = Scalar | Sequence[Scalar]
Context = Mapping[str, Column]


class Asked:
    """Whom is asked for what: the part of every error message that says where it happened."""

    def __init__(self, target: str, model: str, version: int | None) -> None:
        self.target = target
        self.model = model
        self.version = version

    def __str__(self) -> str:
        version = "" if self.version is None else f" version {self.version}"
        return f"{self.target}, model {self.model!r}{version}"

    def invalid(self, message: str, code: str | None = None) -> InvalidRequest:
        return InvalidRequest(f"{self}: {message}", target=self.target, model=self.model, code=code)

    def error(self, message: str, code: str | None = None) -> TandemClientError:
        return TandemClientError(f"{self}: {message}", target=self.target, model=self.model, code=code)

    def model_spec(self, signature: str = "") -> pb.ModelSpec:
        spec = pb.ModelSpec(name=self.model, signature_name=signature)
        if self.version is not None:
            spec.version.value = self.version
        return spec


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


def check_history(asked: Asked, history: Sequence[str], name: str = HISTORY) -> list[str]:
    """Raises:
    InvalidRequest: not a sequence of str.
    """
    return check_ids(asked, name, history, f"pass [{history!r}] if it is one item's id")


def check_histories(asked: Asked, histories: Sequence[Sequence[str]], rows: int) -> list[list[str]]:
    """Raises:
    InvalidRequest: not a sequence of str for each of the rows.
    """
    if isinstance(histories, str | bytes | Mapping | Set) or not isinstance(histories, Iterable):
        raise asked.invalid(
            f"histories is {type(histories).__name__} {histories!r}, wanted a sequence of str for each user; pass a "
            "list of lists"
        )
    checked = [check_history(asked, each, f"histories[{row}]") for row, each in enumerate(histories)]
    if len(checked) != rows:
        raise asked.invalid(
            f"{len(checked)} histories for {rows} user_ids; pass one a user, [] for a user without, or None for all"
        )
    return checked


def check_k(asked: Asked, k: int) -> None:
    """Raises:
    InvalidRequest: not an int above 0.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise asked.invalid(f"k is {k!r}; pass an int from 1 to {LIST_LENGTH}")


def predict_request(
    asked: Asked,
    metadata: ModelMetadata,
    name: str,
    ids: Mapping[str, Sequence[str]],
    histories: Sequence[Sequence[str]] | None,
    context: Context | None,
) -> pb.PredictRequest:
    """A request checked against the signature.

    Args:
        asked: the model.
        metadata: its signatures.
        name: the signature.
        ids: the id columns, all of the batch's length B.
        histories: B rows of item ids, of any lengths; None leaves the input out.
        context: further columns: a scalar stands for all rows, a sequence has one value a row.

    Raises:
        InvalidRequest: names the input, what was found, what is wanted.
    """
    signature = _signature(asked, metadata, name)
    rows = len(next(iter(ids.values())))
    columns: dict[str, Sequence[Any]] = dict(ids)
    takes_histories = _takes_histories(signature)
    for key, value in (context or {}).items():
        if key in ids or (key == HISTORY and takes_histories):
            raise asked.invalid(f"signature {name!r}: {key!r} is in the context; it has an argument of its own")
        columns[key] = _rows(asked, name, key, value, rows)
    if histories is not None and not takes_histories:
        raise asked.invalid(
            f"signature {name!r} of version {metadata.version} takes no {HISTORY} (string [B, L]), because the model's "
            f"recipe has no history feature; add {{column: ITEM_ID, kind: history}} under features.query of its "
            f"recipe.yaml, ITEM_ID being data.columns.item_id, and run the pipeline again; or ask without {HISTORY}"
        )
    _check_names(asked, signature, columns)
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
    if histories is not None:
        try:
            request.inputs[HISTORY].CopyFrom(tensors.padded_strings(histories))
        except ValueError as error:
            raise asked.invalid(f"signature {name!r}: input {HISTORY!r}: {error}") from error
    return request


def check_list_length(asked: Asked, metadata: ModelMetadata, k: int) -> None:
    """Raises:
    InvalidRequest: k is more than the signature returns, and not because the catalogue is that small.
    """
    output = _signature(asked, metadata, RECOMMEND).outputs.get("item_ids")
    if output is not None and output.shape is not None and len(output.shape) == 2:
        _check_list_length(asked, k, output.shape[1])


def _check_list_length(asked: Asked, k: int, longest: int) -> None:
    if k > longest >= LIST_LENGTH:
        raise asked.invalid(
            f"signature {RECOMMEND!r} returns at most {longest} items; k is {k}; pass k={longest} or less, or export "
            "the model with a longer list"
        )


def read_recommendations(
    asked: Asked, response: pb.PredictResponse, user_ids: Sequence[str], k: int
) -> list[Recommendations]:
    """Raises:
    TandemClientError: the answer is not what the contract says.
    """
    items, width = _matrix(asked, response, "item_ids", "string", len(user_ids))
    _check_list_length(asked, k, width)
    scores, _ = _matrix(asked, response, "scores", "float", len(user_ids), width)
    ratings, _ = _matrix(asked, response, "ratings", "float", len(user_ids), width)
    display = {
        name: _matrix(asked, response, name, "string", len(user_ids), width)[0]
        for name, tensor in sorted(response.outputs.items())
        if name != "item_ids" and tensor.dtype == pb.DT_STRING and tensors.shape(tensor) == (len(user_ids), width)
    }
    answers = []
    for row, user_id in enumerate(user_ids):
        start = row * width
        # An empty item id pads the list of a user for whom there are fewer items.
        places = [place for place in range(start, start + width) if items[place]][:k]
        answers.append(
            Recommendations(
                user_id=user_id,
                items=tuple(
                    Recommendation(
                        item_id=_text(items[place]),
                        score=scores[place],
                        rating=ratings[place],
                        display={name: _text(column[place]) for name, column in display.items()},
                    )
                    for place in places
                ),
            )
        )
    return answers


def read_ratings(asked: Asked, response: pb.PredictResponse, rows: int) -> list[float]:
    """Raises:
    TandemClientError: the answer is not what the contract says.
    """
    found = _output(asked, response, "rating", "float")
    if tensors.shape(found) != (rows,):
        raise _off_contract(asked, "rating", found, f"float [{rows}]")
    return _values(asked, "rating", found)


def _signature(asked: Asked, metadata: ModelMetadata, name: str) -> Signature:
    if name not in metadata.signatures:
        raise asked.invalid(
            f"version {metadata.version} has no signature {name!r}; it has: "
            f"{', '.join(sorted(metadata.signatures)) or 'none'}; serve a model that was exported by Tandem's Trainer"
        )
    return metadata.signatures[name]


def _takes_histories(signature: Signature) -> bool:
    """A column of the data may be called history, too: it has one value a row."""
    spec = signature.inputs.get(HISTORY)
    return spec is not None and spec.dtype == "string" and (spec.shape is None or len(spec.shape) == 2)


def _rows(asked: Asked, name: str, key: str, value: Column, rows: int) -> Sequence[Any]:
    values: Any = value
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        # Repeated rather than sent once: servers that batch requests want every input to have the batch's length.
        return [value] * rows
    if len(values) != rows:
        raise asked.invalid(
            f"signature {name!r}: input {key!r} has {len(values)} values for {rows} rows; pass one value a row, or a "
            "scalar for all rows"
        )
    found: Sequence[Any] = values
    return found


def _check_names(asked: Asked, signature: Signature, columns: Mapping[str, Sequence[Any]]) -> None:
    unknown = sorted(set(columns) - set(signature.inputs))
    if unknown:
        takes = ", ".join(f"{spec.name} ({spec.describe()})" for spec in signature.inputs.values())
        raise asked.invalid(f"signature {signature.name!r} has no input {', '.join(unknown)}; it takes: {takes}")
    missing = [spec for spec in signature.inputs.values() if not spec.optional and spec.name not in columns]
    if missing:
        wanted = ", ".join(f"{spec.name} ({spec.describe()})" for spec in missing)
        raise asked.invalid(f"signature {signature.name!r} needs {wanted}, which is missing; pass it in the context")


def _matrix(
    asked: Asked, response: pb.PredictResponse, name: str, dtype: str, rows: int, width: int | None = None
) -> tuple[list[Any], int]:
    found = _output(asked, response, name, dtype)
    shape = tensors.shape(found)
    if len(shape) != 2 or shape[0] != rows or width not in (None, shape[1]):
        raise _off_contract(asked, name, found, f"{dtype} [{rows}, {'k' if width is None else width}]")
    return _values(asked, name, found), shape[1]


def _output(asked: Asked, response: pb.PredictResponse, name: str, dtype: str) -> pb.TensorProto:
    if name not in response.outputs:
        raise asked.error(
            f"the answer has no output {name!r} (it has: {', '.join(sorted(response.outputs)) or 'none'}); serve a "
            "model that was exported by Tandem's Trainer"
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
        f"output {name!r} is {dtype_text(found.dtype)} {list(tensors.shape(found))}, wanted {wanted}; serve a "
        "model that was exported by Tandem's Trainer"
    )


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
