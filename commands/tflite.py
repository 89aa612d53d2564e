"""A pushed model for phones: two TensorFlow Lite files made from the SavedModel alone; `tandem export tflite` calls it.

TensorFlow Lite has no kernels for most of what a served model does with raw columns (sparse strings, ragged
histories). But a device asks for a user id, and everything that the model knows of a user or an item alone is known
when the file is written. So the graph of `rate` is cut where user and item meet: what comes before the cut is computed
here, once for every user and every item, and becomes a table; what comes after runs on the device. `recommend` needs
nothing but a user, so its answers are a table as a whole.
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
    """The model cannot be made into files for a device; says what is in the way."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file for a device."""

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: int
    p50_us: float
    """Microseconds that half of the calls on this machine stayed below, on one thread."""


@dataclasses.dataclass(frozen=True)
class _SplitRating:
    """`rate`, cut where user and item meet."""

    users: Array
    """bytes [U]: known user ids."""
    items: Array
    """bytes [I]: known item ids."""
    of_users: Sequence[Array]
    """What the rest needs of a user, [U + 1, …] each; row 0 is for unknown users."""
    of_items: Sequence[Array]
    """What it needs of an item, [I + 1, …] each; row 0 is for unknown items."""
    rest: Callable[..., Any]
    """Takes one row of each, [1, …], in this order, and answers the rating [1]."""


def export_tflite(model: Path, out: Path, k: int = 10) -> list[Exported]:
    """Writes `top_k.tflite` and `rating.tflite`, after holding their answers against the SavedModel's.

    Both take and answer one row; an id that the model does not know is the average user or item. Signatures:
    `recommend`: user_id string [1] -> item_ids string [1, k], scores float32 [1, k], as the SavedModel's first k.
    `rate`: user_id string [1], item_id string [1] -> rating float32 [1].

    Args:
        model: Folder of the SavedModel, such as a pushed version.
        out: Folder to write; made if needed.
        k: Items a list has.

    Raises:
        NotExportable: It is no such model, or an answer on the device would be another one.
    """
    if not (model / "saved_model.pb").is_file():
        raise NotExportable(f"{model}: there is no saved_model.pb. Give one version, such as work/NAME/serving/NAME/17")
    loaded = tf.saved_model.load(str(model))
    for name in (RECOMMEND, RATE):
        if name not in loaded.signatures:
            raise NotExportable(f"{model}: it has no signature {name!r}, only {', '.join(sorted(loaded.signatures))}")
    defaults = _defaults(model)
    met = _cut(loaded.signatures[RATE], defaults[RATE])
    lists = _lists(loaded.signatures[RECOMMEND], defaults[RECOMMEND], met.users, k)
    # Written only when both are right: a folder never holds two files of different models.
    contents = {
        TOP_K_FILE: _converted(_TopK(met.users, *lists), RECOMMEND),
        RATING_FILE: _converted(_Rating(met), RATE),
    }
    random = np.random.default_rng(0)
    users = [*random.choice(met.users, _CHECKED - 1), b"nobody has this id"]
    items = [b"nothing has this id", *random.choice(met.items, _CHECKED - 1)]
    _check_top_k(contents[TOP_K_FILE], loaded.signatures[RECOMMEND], defaults[RECOMMEND], users, k)
    _check_rating(contents[RATING_FILE], loaded.signatures[RATE], defaults[RATE], users, items)
    out.mkdir(parents=True, exist_ok=True)
    asked: dict[str, tuple[str, Mapping[str, Array]]] = {
        TOP_K_FILE: (RECOMMEND, {USER_ID: np.array(users[:1])}),
        RATING_FILE: (RATE, {USER_ID: np.array(users[:1]), ITEM_ID: np.array(items[1:2])}),
    }
    return [_written(out / name, contents[name], *asked[name]) for name in contents]


# --- reading the SavedModel -------------------------------------------------------------------------------------------


def _defaults(model: Path) -> dict[str, dict[str, tf.Tensor]]:
    """Values of the optional inputs, by signature and name."""
    saved = saved_model_pb2.SavedModel.FromString((model / "saved_model.pb").read_bytes())
    (graph,) = (graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags)
    return {
        name: {key: tf.constant(tf.make_ndarray(value)) for key, value in signature.defaults.items()}
        for name, signature in graph.signature_def.items()
    }


def _cut(signature: Any, defaults: Mapping[str, tf.Tensor]) -> _SplitRating:
    """Takes `rate` apart; `defaults` has its optional inputs."""
    graph, given, output = _flat(signature)
    # Vocabulary tables are no constants: they stay inputs.
    tables = {inner.op.name: handle for handle, inner in signature.graph.captures if inner.op.name in given}
    # The graph may call an input by another name than the signature: Plan is plan there.
    names = {key: spec.name for key, spec in signature.structured_input_signature[1].items()}
    fixed = {**{names[key]: value for key, value in defaults.items()}, **tables}
    if missing := sorted(given.keys() - fixed.keys() - {USER_ID, ITEM_ID}):
        raise NotExportable(f"rate has to be told {', '.join(missing)} besides user and item; on a device it cannot be")
    needs = _needs(output.op, {name for name in given if name not in tables})

    def vocabulary(name: str) -> Array:
        handles = {
            _origin(op.inputs[0]).op.name
            for op, inputs in needs.items()
            if op.type.startswith("LookupTableFind") and inputs == {name}
        }
        if len(handles) != 1:
            raise NotExportable(f"rate looks {name} up in {len(handles)} vocabularies, one was wanted")
        keys, _ = tf.raw_ops.LookupTableExportV2(table_handle=tables[handles.pop()], Tkeys=tf.string, Tvalues=tf.int64)
        found: Array = keys.numpy()
        return found

    def computed(tensors: Sequence[Any], name: str, ids: Array) -> list[Array]:
        """The tensors for the empty id and for each of `ids`, [ids + 1, …]; what has no rows, as it is for one id."""
        function = graph.prune([given[name], *(given[key] for key in fixed)], list(tensors))
        batches = [np.array([b""], object), *_batches(ids)]
        rows = [[part.numpy() for part in function(tf.constant(batch), *fixed.values())] for batch in batches]
        found = []
        for place, tensor in enumerate(tensors):
            parts = [row[place] for row in rows]
            by_row = tensor.shape.rank and tensor.shape[0] is None
            if by_row and any(len(part) != len(batch) for part, batch in zip(parts, batches, strict=True)):
                raise NotExportable(
                    f"{tensor.name} in rate has no row for each {name}; this model is not of our Trainer"
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
    """The signature as one graph without variables and calls; its inputs by name, and its output."""
    frozen = convert_variables_to_constants_v2(signature, lower_control_flow=False, aggressive_inlining=True)
    definition = frozen.graph.as_graph_def()
    for node in definition.node:
        # Calls wait for each other, which would tie users to items. Nothing here changes anything, so nobody must wait.
        kept = [name for name in node.input if not name.startswith("^")]
        del node.input[:]
        node.input.extend(kept)
    flat = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(definition, name=""), [])
    (output,) = (flat.graph.get_tensor_by_name(tensor.name) for tensor in frozen.outputs)
    return flat, {tensor.op.name: flat.graph.get_tensor_by_name(tensor.name) for tensor in frozen.inputs}, output


def _needs(last: Any, inputs: set[str]) -> dict[Any, set[str]]:
    """Which of the inputs each operation before `last` depends on."""
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
    """The tensors of one side that operations which depend on both sides take, in the graph's order."""
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
    """What `recommend` answers to nobody and to each user.

    Returns:
        Item ids bytes [n], the first one empty; places in it int32 [U + 1, k]; scores float32 [U + 1, k].
    """
    ids, scores = [], []
    for batch in [np.array([b""], object), *_batches(users)]:
        answer = signature(**{USER_ID: tf.constant(batch), **defaults})
        ids.append(answer["item_ids"].numpy()[:, :k])
        scores.append(answer["scores"].numpy()[:, :k])
    if ids[0].shape[1] < k:
        raise NotExportable(f"recommend answers {ids[0].shape[1]} items, {k} are wanted; see the recipe's serving.k")
    known, places = np.unique(np.concatenate(ids).astype(bytes), return_inverse=True)
    padded = np.array([b"", *known[known != b""]], object)
    shift = 0 if b"" in known else 1
    return padded, (places.reshape(-1, k) + shift).astype(np.int32), np.concatenate(scores)


def _batches(ids: Array) -> Iterator[Array]:
    for start in range(0, len(ids), _BATCH):
        yield ids[start : start + _BATCH]


# --- what runs on the device ------------------------------------------------------------------------------------------


class _TopK(tf.Module):
    """Everybody's list."""

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
    """Every user's and every item's part, and what makes a rating of the two."""

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
    """1 + the place of an id, 0 for an unknown one. TensorFlow Lite has tables of strings to int64 and no others."""
    places = tf.range(1, len(ids) + 1, dtype=tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant(ids), places), 0)


def _converted(module: Any, name: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="tandem-tflite-") as folder:
        tf.saved_model.save(module, folder, signatures={name: module.signature()})
        # Only what every TensorFlow Lite runtime has built in: no Select-TF operations.
        try:
            found: bytes = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[name]).convert()
        except Exception as error:
            raise NotExportable(f"TensorFlow Lite cannot run {name}: {error}") from error
    return found


# --- the same answers? ------------------------------------------------------------------------------------------------


def _runner(content: bytes, name: str) -> Callable[..., Mapping[str, Array]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # The interpreter is to move to a package of its own.
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
                f"the list of user {user!r} would be {found['item_ids'][0]} on the device, the model answers {ids}"
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
                f"user {user!r} and item {item!r} would get {found:.4f} on the device, the model answers {rating:.4f}"
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
