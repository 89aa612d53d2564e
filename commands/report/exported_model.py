"""Queries the exported model for the report: calibration of its ratings, and recommendations of sample users."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2

from commands.report.data_statistics import Calibration, SampleUser, ShownItem, SplitInteractions
from recipe.columns import IS_POSITIVE, column_types

# Maximum number of examples; more do not change the charts visibly.
MAX_EXAMPLES = 1_000_000
MAX_RATED = 20_000

LIKED_SHOWN = 5
RECOMMENDED_SHOWN = 8
NEW_USER = "new-user"

_BATCH = 4096
_RATED_BATCH = 512
_DTYPES = {"BYTES": tf.string, "INT": tf.int64, "FLOAT": tf.float32}


class ModelUnavailable(Exception):
    """The exported model cannot be loaded or a signature fails."""


# --- examples ---------------------------------------------------------------------------------------------------------


def read_interactions(uri: str, split: str, columns: Mapping[str, Any], schema: schema_pb2.Schema) -> SplitInteractions:
    """Read the interactions of a split of raw examples.

    Args:
        uri: The Examples artifact.
        split: Name of the split.
        columns: The recipe's `data.columns`.
        schema: The curated schema.
    """
    types = column_types(schema)
    names = [
        name for name in (*(columns[part] for part in ("user_id", "item_id", "label")), columns["timestamp"]) if name
    ]
    spec = {name: tf.io.FixedLenFeature([], _DTYPES[types[name]], _default(types[name])) for name in names}
    if IS_POSITIVE in types:
        spec[IS_POSITIVE] = tf.io.FixedLenFeature([], tf.float32, 1.0)
    batches = []
    count = 0
    for serialized in _records(uri, split).batch(_BATCH):
        batches.append({name: values.numpy() for name, values in tf.io.parse_example(serialized, spec).items()})
        count += len(batches[-1][names[0]])
        if count >= MAX_EXAMPLES:
            break
    table = {name: np.concatenate([batch[name] for batch in batches]) for name in spec} if batches else {
        name: np.zeros(0) for name in spec
    }  # fmt: skip
    happened = table[IS_POSITIVE] > 0 if IS_POSITIVE in spec else np.ones(len(table[names[0]]), bool)
    return SplitInteractions(
        users=table[columns["user_id"]][happened],
        items=table[columns["item_id"]][happened],
        labels=table[columns["label"]][happened].astype(float),
        times=table[columns["timestamp"]][happened] if columns["timestamp"] else None,
        is_whole=count < MAX_EXAMPLES,
    )


def read_display(
    uri: str, columns: Mapping[str, Any], display: Sequence[str], schema: schema_pb2.Schema
) -> dict[bytes, tuple[str, ...]]:
    """Read the display columns of the catalogue, by item id."""
    types = column_types(schema)
    names = [columns["item_id"], *display]
    spec = {name: tf.io.FixedLenFeature([], _DTYPES[types[name]], _default(types[name])) for name in names}
    found = {}
    for serialized in _records(uri, "catalogue").batch(_BATCH):
        rows = {name: values.numpy() for name, values in tf.io.parse_example(serialized, spec).items()}
        for place, item in enumerate(rows[columns["item_id"]]):
            found[item] = _shown(rows[name][place] for name in display)
    return found


def _records(uri: str, split: str) -> tf.data.Dataset:
    files = sorted(tf.io.gfile.glob(os.path.join(uri, f"Split-{split}", "*")))
    compression = "GZIP" if files and files[0].endswith(".gz") else ""
    return tf.data.TFRecordDataset(files, compression)


def _default(column_type: str) -> str | int | float:
    """Return the placeholder of a missing value."""
    return "" if column_type == "BYTES" else np.iinfo(np.int64).min if column_type == "INT" else float("nan")


def _shown(cells: Iterable[Any]) -> tuple[str, ...]:
    """Return the values that are not missing."""
    missing = (b"", np.iinfo(np.int64).min)
    return tuple(_text(cell) for cell in cells if cell == cell and cell not in missing)


def _text(cell: Any) -> str:
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else f"{cell:g}"


# --- the model --------------------------------------------------------------------------------------------------------


def servable(uri: str) -> str | None:
    """Return the folder of the SavedModel in a Model artifact; None if it does not exist."""
    path = os.path.join(uri, "Format-Serving")
    return path if tf.saved_model.contains_saved_model(path) else None


class ExportedModel:
    """The SavedModel in a session; only the requested outputs are computed, as in TensorFlow Serving."""

    def __init__(self, path: str) -> None:
        """Load the model.

        Raises:
            ModelUnavailable: There is no SavedModel at `path`, or this version of TensorFlow cannot load it.
        """
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        try:
            with graph.as_default():
                loaded = tf.compat.v1.saved_model.load(self._session, ["serve"], path)
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise ModelUnavailable(_first_line(error)) from error
        self._signatures = loaded.signature_def

    def __enter__(self) -> ExportedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def ratings(self, examples: Sequence[bytes]) -> np.ndarray:
        """Return predicted ratings of serialized examples, float64 [examples].

        Raises:
            ModelUnavailable: The signature fails.
        """
        starts = range(0, len(examples), _RATED_BATCH)
        batches = [examples[start : start + _RATED_BATCH] for start in starts]
        parts = [self._call("evaluate", {"examples": batch}, ["rating"])["rating"].ravel() for batch in batches]
        return np.concatenate(parts).astype(float) if parts else np.zeros(0)

    def recommend(self, users: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the outputs of `recommend` by name, [users, k]; optional inputs have their defaults.

        Raises:
            ModelUnavailable: The signature fails.
        """
        return self._call("recommend", {"user_id": users})

    def _call(
        self, name: str, inputs: Mapping[str, Sequence[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Run a signature for some outputs; for all of them if `outputs` is empty."""
        if name not in self._signatures:
            raise ModelUnavailable(f"no signature {name!r}; signatures: {', '.join(sorted(self._signatures))}")
        signature = self._signatures[name]
        given = {key: tf.make_ndarray(value) for key, value in signature.defaults.items()}
        given |= {key: np.array(list(values), object) for key, values in inputs.items()}
        try:
            found = self._session.run(
                {key: signature.outputs[key].name for key in outputs or signature.outputs},
                {signature.inputs[key].name: value for key, value in given.items()},
            )
        except (KeyError, tf.errors.OpError) as error:
            raise ModelUnavailable(_first_line(error)) from error
        return dict(found)


def calibration(
    model: ExportedModel, uri: str, columns: Mapping[str, Any], schema: schema_pb2.Schema, bins: int = 10
) -> Calibration | None:
    """Compare predicted ratings with labels on the eval split, sampled negatives included; None without examples.

    The interval is the normal approximation: 1.96 standard errors of the mean.
    """
    examples = list(_records(uri, "eval").take(MAX_RATED).as_numpy_iterator())
    if not examples:
        return None
    label = columns["label"]
    spec = {label: tf.io.FixedLenFeature([], _DTYPES[column_types(schema)[label]])}
    actual = tf.io.parse_example(examples, spec)[label].numpy().astype(float)
    predicted = model.ratings(examples)
    known = np.isfinite(predicted) & np.isfinite(actual)
    predicted, actual = predicted[known], actual[known]
    if not len(predicted):
        return None
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, max(len(edges) - 2, 0))
    parts = [(predicted[place == one], actual[place == one]) for one in range(max(len(edges) - 1, 1))]
    parts = [part for part in parts if len(part[0])]
    return Calibration(
        predicted=np.array([part.mean() for part, _ in parts]),
        actual=np.array([part.mean() for _, part in parts]),
        error=np.array([1.96 * part.std() / np.sqrt(len(part)) for _, part in parts]),
        counts=np.array([len(part) for part, _ in parts]),
        residuals=actual - predicted,
    )


def sample_users(
    model: ExportedModel,
    train: SplitInteractions,
    evaluation: SplitInteractions,
    display: Mapping[bytes, tuple[str, ...]],
    display_columns: Sequence[str],
) -> list[SampleUser]:
    """Return a heavy, a typical, a light and a new user, with the items they liked and their recommendations."""
    ids, counts = np.unique(train.users.astype(bytes), return_counts=True)
    order = np.lexsort((ids, counts))
    chosen = {
        "A heavy user": ids[order[int(0.95 * (len(ids) - 1))]],
        "A typical user": ids[order[(len(ids) - 1) // 2]],
        "A light user": ids[order[int(0.05 * (len(ids) - 1))]],
        "A new user": NEW_USER.encode(),
    }
    outputs = model.recommend([user.decode("utf-8", "replace") for user in chosen.values()])
    return [
        SampleUser(
            user_id=user.decode("utf-8", "replace"),
            kind=kind,
            interactions=int(np.sum(train.users == user)),
            liked=tuple(_liked(train, user, display)),
            recommended=tuple(
                _recommended(outputs, place, set(evaluation.items[evaluation.users == user]), display_columns)
            ),
        )
        for place, (kind, user) in enumerate(chosen.items())
    ]


def _liked(train: SplitInteractions, user: bytes, display: Mapping[bytes, tuple[str, ...]]) -> Iterator[ShownItem]:
    """Yield the user's highest-rated items; the latest first among equal ratings."""
    mine = np.flatnonzero(train.users == user)
    times = train.times[mine] if train.times is not None else mine
    seen: set[bytes] = set()
    for row in mine[np.lexsort((-times, -train.labels[mine]))]:
        item = train.items[row]
        if item not in seen and len(seen) < LIKED_SHOWN:
            seen.add(item)
            yield ShownItem(item.decode("utf-8", "replace"), display.get(item, ()), float(train.labels[row]))


def _recommended(
    outputs: Mapping[str, np.ndarray], row: int, chosen: set[bytes], display_columns: Sequence[str]
) -> Iterator[ShownItem]:
    # Shorter lists are padded with empty ids.
    items = [item for item in outputs["item_ids"][row] if item]
    for rank, item in enumerate(items[:RECOMMENDED_SHOWN]):
        yield ShownItem(
            item_id=item.decode("utf-8", "replace"),
            display=_shown(outputs[name][row][rank] for name in display_columns),
            rating=float(outputs["ratings"][row][rank]),
            chosen=item in chosen,
        )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
