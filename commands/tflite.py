"""TensorFlow Lite export: two files for devices, converted from a SavedModel; `tandem export tflite` calls it.

TensorFlow Lite has no kernels for most operations on raw columns (sparse strings, ragged histories). But a device sends
ids only, and the features of every user and item are known at export. So the graph of `rate` is split where user and
item tensors are combined: the part before the split is computed at export for each user and item and stored as tables;
the part after it runs on the device. `recommend` has a user id as its only input, so its outputs are stored as tables.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from recipe import BadInput

TOP_K_FILE = "top_k.tflite"
RATING_FILE = "rating.tflite"

USER_ID = "user_id"
ITEM_ID = "item_id"
RECOMMEND = "recommend"
RATE = "rate"

_BATCH = 256
_CHECKED = 50
_TIMED = 200
_TOLERANCE = 1e-4

Array = npt.NDArray[Any]


class NotExportable(BadInput):
    """The model cannot be exported to TensorFlow Lite."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported TensorFlow Lite file."""

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: int
    p50_us: float
    """Median latency of a call on this machine with one thread, in microseconds."""


@dataclasses.dataclass(frozen=True)
class _SplitRating:
    """The graph of `rate`, split where user and item tensors are combined."""

    users: Array
    """bytes [U]: user ids of the vocabulary."""
    items: Array
    """bytes [I]: item ids of the vocabulary."""
    of_users: Sequence[Array]
    """User tensors that `rest` reads, [U + 1, …] each; row 0 is for new users."""
    of_items: Sequence[Array]
    """Item tensors that `rest` reads, [I + 1, …] each; row 0 is for new items."""
    rest: Callable[..., Any]
    """Function of one row of each of these tensors, [1, …], in this order; returns the rating [1]."""


def export_tflite(model: Path, out: Path, k: int = 10) -> list[Exported]:
    """Write `top_k.tflite` and `rating.tflite`, and check that their outputs equal the SavedModel's.

    The batch size is 1. New users and items get the outputs of the OOV index. Signatures:
    `recommend`: user_id string [1] -> item_ids string [1, k], scores float32 [1, k], as the SavedModel's first k.
    `rate`: user_id string [1], item_id string [1] -> rating float32 [1].

    Args:
        model: Folder of the SavedModel, for example a pushed version.
        out: Folder for the files; created if missing.
        k: Number of items per user.

    Raises:
        NotExportable: The model was not exported by Tandem, or the outputs on the device would differ.
    """
    if not (model / "saved_model.pb").is_file():
        raise NotExportable(
            f"{model}: no saved_model.pb. Set --model to the folder of one version, for example "
            "work/NAME/serving/NAME/17"
        )
    loaded = tf.saved_model.load(str(model))
    for name in (RECOMMEND, RATE):
        if name not in loaded.signatures:
            raise NotExportable(f"{model}: no signature {name!r}. Signatures: {', '.join(sorted(loaded.signatures))}")
    defaults = _defaults(model)
    met = _cut(loaded.signatures[RATE], defaults[RATE])
    lists = _lists(loaded.signatures[RECOMMEND], defaults[RECOMMEND], met.users, k)
    # Written after both are checked: a folder never contains files of different models.
    contents = {
        TOP_K_FILE: _converted(_TopK(met.users, *lists), RECOMMEND),
        RATING_FILE: _converted(_Rating(met), RATE),
    }
    random = np.random.default_rng(0)
    users = [*random.choice(met.users, _CHECKED - 1), b"id of a new user"]
    items = [b"id of a new item", *random.choice(met.items, _CHECKED - 1)]
    _check_top_k(contents[TOP_K_FILE], loaded.signatures[RECOMMEND], defaults[RECOMMEND], users, k)
    _check_rating(contents[RATING_FILE], loaded.signatures[RATE], defaults[RATE], users, items)
    out.mkdir(parents=True, exist_ok=True)
    samples: dict[str, tuple[str, Mapping[str, Array]]] = {
        TOP_K_FILE: (RECOMMEND, {USER_ID: np.array(users[:1])}),
        RATING_FILE: (RATE, {USER_ID: np.array(users[:1]), ITEM_ID: np.array(items[1:2])}),
    }
    return [_written(out / name, contents[name], *samples[name]) for name in contents]


# --- reading the SavedModel -------------------------------------------------------------------------------------------


def _defaults(model: Path) -> dict[str, dict[str, tf.Tensor]]:
    """Return the default values of the optional inputs, by signature and name."""
    saved = saved_model_pb2.SavedModel.FromString((model / "saved_model.pb").read_bytes())
    (graph,) = (graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags)
    return {
        name: {key: tf.constant(tf.make_ndarray(value)) for key, value in signature.defaults.items()}
        for name, signature in graph.signature_def.items()
    }


def _cut(signature: Any, defaults: Mapping[str, tf.Tensor]) -> _SplitRating:
    """Split the graph of `rate`; `defaults` are its optional inputs."""
    graph, given, output = _flat(signature)
    # Vocabulary tables are not constants: they stay inputs.
    tables = {inner.op.name: handle for handle, inner in signature.graph.captures if inner.op.name in given}
    # An input's name in the graph may differ from its name in the signature: Plan is plan there.
    names = {key: spec.name for key, spec in signature.structured_input_signature[1].items()}
    fixed = {**{names[key]: value for key, value in defaults.items()}, **tables}
    if missing := sorted(given.keys() - fixed.keys() - {USER_ID, ITEM_ID}):
        raise NotExportable(
            f"rate has required inputs besides user_id and item_id, which a device does not send: {', '.join(missing)}"
        )
    needs = _needs(output.op, {name for name in given if name not in tables})

    def vocabulary(name: str) -> Array:
        handles = {
            _origin(op.inputs[0]).op.name
            for op, inputs in needs.items()
            if op.type.startswith("LookupTableFind") and inputs == {name}
        }
        if len(handles) != 1:
            raise NotExportable(f"expected one vocabulary of {name} in rate, got {len(handles)}")
        keys, _ = tf.raw_ops.LookupTableExportV2(table_handle=tables[handles.pop()], Tkeys=tf.string, Tvalues=tf.int64)
        found: Array = keys.numpy()
        return found

    def computed(tensors: Sequence[Any], name: str, ids: Array) -> list[Array]:
        """Compute the tensors for the empty id and each of `ids`, [ids + 1, …]; a tensor without rows is repeated."""
        function = graph.prune([given[name], *(given[key] for key in fixed)], list(tensors))
        batches = [np.array([b""], object), *_batches(ids)]
        rows = [[part.numpy() for part in function(tf.constant(batch), *fixed.values())] for batch in batches]
        found = []
        for place, tensor in enumerate(tensors):
            parts = [row[place] for row in rows]
            by_row = tensor.shape.rank and tensor.shape[0] is None
            if by_row and any(len(part) != len(batch) for part, batch in zip(parts, batches, strict=True)):
                raise NotExportable(
                    f"{tensor.name} in rate does not have one row per {name}. Pass a model that Tandem has exported"
                )
            found.append(np.concatenate(parts) if by_row else np.repeat(parts[0][None], len(ids) + 1, axis=0)[:, None])
        return found

    users, items = vocabulary(USER_ID), vocabulary(ITEM_ID)
    user_side = _boundary(needs, lambda inputs: ITEM_ID not in inputs)
    item_side = _boundary(needs, lambda inputs: inputs == {ITEM_ID})
    return _SplitRating(
        users=users,
        items=items,
        of_users=computed(user_side, USER_ID, users),
        of_items=computed(item_side, ITEM_ID, items),
        rest=graph.prune([*user_side, *item_side], output),
    )


def _flat(signature: Any) -> tuple[Any, dict[str, Any], Any]:
    """Return the signature as one graph without variables and function calls, its inputs by name, and its output."""
    frozen = convert_variables_to_constants_v2(signature, lower_control_flow=False, aggressive_inlining=True)
    definition = frozen.graph.as_graph_def()
    for node in definition.node:
        # Control dependencies would connect users with items. The graph has no side effects, so they are not needed.
        kept = [name for name in node.input if not name.startswith("^")]
        del node.input[:]
        node.input.extend(kept)
    flat = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(definition, name=""), [])
    (output,) = (flat.graph.get_tensor_by_name(tensor.name) for tensor in frozen.outputs)
    return flat, {tensor.op.name: flat.graph.get_tensor_by_name(tensor.name) for tensor in frozen.inputs}, output


def _needs(last: Any, inputs: set[str]) -> dict[Any, set[str]]:
    """Return the inputs that each operation before `last` depends on."""
    found: dict[Any, set[str]] = {}
    waiting = [last]
    while waiting:
        op = waiting[-1]
        before = [tensor.op for tensor in op.inputs]
        if op in found or all(each in found for each in before):
            waiting.pop()
            found[op] = {op.name} if op.name in inputs else set().union(*(found[each] for each in before))
        else:
            waiting += [each for each in before if each not in found]
    return found


def _boundary(needs: Mapping[Any, set[str]], on_this_side: Callable[[set[str]], bool]) -> list[Any]:
    """Return the tensors of one side that are inputs of operations which depend on both sides, sorted by name."""
    met = [op for op, inputs in needs.items() if ITEM_ID in inputs and inputs != {ITEM_ID}]
    tensors = {
        tensor.name: tensor
        for op in met
        for tensor in op.inputs
        if needs[tensor.op] and tensor.op not in met and on_this_side(needs[tensor.op])
    }
    return [tensors[name] for name in sorted(tensors)]


def _origin(tensor: Any) -> Any:
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def _lists(signature: Any, defaults: Mapping[str, tf.Tensor], users: Array, k: int) -> tuple[Array, Array, Array]:
    """Compute the outputs of `recommend` for a new user and each user of the vocabulary.

    Returns:
        Item ids bytes [n], the first one empty; positions in it int32 [U + 1, k]; scores float32 [U + 1, k].
    """
    ids, scores = [], []
    for batch in [np.array([b""], object), *_batches(users)]:
        outputs = signature(**{USER_ID: tf.constant(batch), **defaults})
        ids.append(outputs["item_ids"].numpy()[:, :k])
        scores.append(outputs["scores"].numpy()[:, :k])
    if ids[0].shape[1] < k:
        raise NotExportable(f"expected --k of at most {ids[0].shape[1]} (serving.k of the model), got {k}")
    known, places = np.unique(np.concatenate(ids).astype(bytes), return_inverse=True)
    padded = np.array([b"", *known[known != b""]], object)
    shift = 0 if b"" in known else 1
    return padded, (places.reshape(-1, k) + shift).astype(np.int32), np.concatenate(scores)


def _batches(ids: Array) -> Iterator[Array]:
    for start in range(0, len(ids), _BATCH):
        yield ids[start : start + _BATCH]


# --- modules for the device -------------------------------------------------------------------------------------------


class _TopK(tf.Module):
    """The top k items of each user, as tables."""

    def __init__(self, users: Array, ids: Array, places: Array, scores: Array) -> None:
        super().__init__(name="top_k")
        self._users = _table(users)
        self._ids = tf.constant(ids)
        self._places = tf.constant(places)
        self._scores = tf.constant(scores)

    def signature(self) -> Any:
        def recommend(user_id: tf.Tensor) -> dict[str, tf.Tensor]:
            user = self._users.lookup(user_id)
            items = tf.gather(self._ids, tf.gather(self._places, user))
            return {"item_ids": items, "scores": tf.gather(self._scores, user)}

        return tf.function(recommend, input_signature=[_one(USER_ID)], autograph=False)


class _Rating(tf.Module):
    """The user and item tensors as tables, and the function that computes a rating from them."""

    def __init__(self, met: _SplitRating) -> None:
        super().__init__(name="rating")
        self._users, self._items = _table(met.users), _table(met.items)
        self._of_users = [tf.constant(values) for values in met.of_users]
        self._of_items = [tf.constant(values) for values in met.of_items]
        self._rest = met.rest

    def signature(self) -> Any:
        def rate(user_id: tf.Tensor, item_id: tf.Tensor) -> dict[str, tf.Tensor]:
            user, item = self._users.lookup(user_id), self._items.lookup(item_id)
            parts = [tf.gather(values, user) for values in self._of_users]
            parts += [tf.gather(values, item) for values in self._of_items]
            return {"rating": tf.reshape(self._rest(*parts), [1])}

        return tf.function(rate, input_signature=[_one(USER_ID), _one(ITEM_ID)], autograph=False)


def _one(name: str) -> tf.TensorSpec:
    return tf.TensorSpec([1], tf.string, name=name)


def _table(ids: Array) -> tf.lookup.StaticHashTable:
    """Return a table of 1 + the position of an id, 0 if not found. TensorFlow Lite supports string to int64 only."""
    places = tf.range(1, len(ids) + 1, dtype=tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant(ids), places), 0)


def _converted(module: Any, name: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="tandem-tflite-") as folder:
        tf.saved_model.save(module, folder, signatures={name: module.signature()})
        # Built-in operations only, which every TensorFlow Lite runtime has: no Select-TF operations.
        try:
            found: bytes = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[name]).convert()
        except Exception as error:
            raise NotExportable(f"converting {name} to TensorFlow Lite failed: {error}") from error
    return found


# --- checks -----------------------------------------------------------------------------------------------------------


def _runner(content: bytes, name: str) -> Callable[..., Mapping[str, Array]]:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # The interpreter's deprecation warning: it moves to another package.
        interpreter = tf.lite.Interpreter(model_content=content)
    found: Callable[..., Mapping[str, Array]] = interpreter.get_signature_runner(name)
    return found


def _check_top_k(
    content: bytes, signature: Any, defaults: Mapping[str, tf.Tensor], users: Sequence[bytes], k: int
) -> None:
    run = _runner(content, RECOMMEND)
    expected = signature(**{USER_ID: tf.constant(users), **defaults})
    for row, user in enumerate(users):
        found = run(user_id=np.array([user]))
        ids, scores = expected["item_ids"][row, :k].numpy(), expected["scores"][row, :k].numpy()
        if list(found["item_ids"][0]) != list(ids) or not np.allclose(found["scores"][0], scores, rtol=_TOLERANCE):
            raise NotExportable(
                f"top k of user {user!r}: expected {list(ids)} as in the SavedModel, "
                f"got {list(found['item_ids'][0])} on the device"
            )


def _check_rating(
    content: bytes, signature: Any, defaults: Mapping[str, tf.Tensor], users: Sequence[bytes], items: Sequence[bytes]
) -> None:
    run = _runner(content, RATE)
    expected = signature(**{USER_ID: tf.constant(users), ITEM_ID: tf.constant(items), **defaults})["rating"].numpy()
    for user, item, rating in zip(users, items, expected, strict=True):
        found = float(run(user_id=np.array([user]), item_id=np.array([item]))["rating"][0])
        if not np.isclose(found, rating, rtol=_TOLERANCE):
            raise NotExportable(
                f"rating of user {user!r} and item {item!r}: expected {rating:.4f} as in the SavedModel, "
                f"got {found:.4f} on the device"
            )


def _written(path: Path, content: bytes, name: str, inputs: Mapping[str, Array]) -> Exported:
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    run = _runner(content, name)
    seconds = []
    for _ in range(_TIMED):
        start = time.perf_counter()
        outputs = run(**inputs)
        seconds.append(time.perf_counter() - start)
    return Exported(
        path=path,
        inputs=tuple(inputs),
        outputs=tuple(sorted(outputs)),
        bytes=len(content),
        p50_us=float(np.median(seconds) * 1e6),
    )
