"""Slices of the eval examples for TFMA: by user activity, by item popularity, and by raw columns.

TFMA's own slicing unpacks every batch and computes the slices of each example in Python, which takes most of an
evaluation's time. Here numpy splits a batch into one batch per slice, and `metrics.py` aggregates whole batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.extractors import extractor, slice_key_extractor
from tensorflow_model_analysis.slicer import slicer_lib
from tfx import components as _  # noqa: F401  (TFMA 0.52 loses names when it is imported before TFX)

from recipe.evaluation import ITEM_POPULARITY, READY_SLICES, USER_ACTIVITY, Slices

Extracts = dict[str, Any]
Parts = np.ndarray
"""object [B]: the slice value of each example; None if an example is in no slice."""

_METRIC_INPUTS = (tfma.LABELS_KEY, tfma.PREDICTIONS_KEY, tfma.EXAMPLE_WEIGHTS_KEY)


def slice_extractor(slices: Slices, columns: Sequence[str], candidate: str | None) -> extractor.Extractor:
    """Return the last of TFMA's extractors, which splits a batch into the whole and one batch per slice.

    Args:
        slices: The recipe's slices.
        columns: Raw features whose values are slices.
        candidate: Name of the model whose outputs define the slices if several are evaluated.
    """
    return extractor.Extractor(
        # TFMA's evaluators expect this name.
        stage_name=slice_key_extractor.SLICE_KEY_EXTRACTOR_STAGE_NAME,
        ptransform=beam.FlatMap(_cut, slices=slices, columns=tuple(columns), candidate=candidate),
    )


def user_activity(outputs: dict[str, np.ndarray], heavy: float) -> Parts:
    """Return `new`, `light` or `heavy` for the user of each example, from the outputs of `evaluate`."""
    new, light, most = READY_SLICES[USER_ACTIVITY]
    known = np.where(outputs["user_activity"].ravel() > heavy, most, light)
    return np.where(outputs["user_interactions"].ravel() == 0, new, known).astype(object)


def item_popularity(outputs: dict[str, np.ndarray], torso: float, head: float) -> Parts:
    """Return `cold`, `tail`, `torso` or `head` for the item of each example, from the outputs of `evaluate`."""
    cold, tail, middle, most = READY_SLICES[ITEM_POPULARITY]
    share = outputs["item_popularity"].ravel()
    known = np.where(share > head, most, np.where(share > torso, middle, tail))
    return np.where(outputs["item_interactions"].ravel() == 0, cold, known).astype(object)


def column_values(feature: Any, rows: int) -> Parts:
    """Return the first value of a raw feature in each example, as a string.

    Args:
        feature: As TFMA extracts it: an array [B, values] if all examples have the same number of values, else a
            sparse value; None if no example has a value.
        rows: B.
    """
    found = np.full(rows, None, object)
    if isinstance(feature, np.ndarray):
        found[:] = [_text(row[0]) if len(row) else None for row in feature]
    elif feature is not None:
        # Reversed, so that the first value of an example is assigned last.
        for row, value in zip(feature.indices[::-1, 0].tolist(), feature.values[::-1], strict=True):
            found[row] = _text(value)
    return found


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _cut(extracts: Extracts, slices: Slices, columns: Sequence[str], candidate: str | None) -> Iterator[Extracts]:
    outputs = extracts[tfma.PREDICTIONS_KEY]
    outputs = outputs[candidate] if candidate is not None else outputs
    inputs = {key: extracts[key] for key in _METRIC_INPUTS if extracts.get(key) is not None}
    yield inputs | {tfma.SLICE_KEY_TYPES_KEY: slicer_lib.slice_keys_to_numpy_array([()])}
    named: dict[str, Parts] = {}
    if slices.user_activity is not None:
        named[USER_ACTIVITY] = user_activity(outputs, slices.user_activity.heavy)
    if slices.item_popularity is not None:
        named[ITEM_POPULARITY] = item_popularity(outputs, slices.item_popularity.torso, slices.item_popularity.head)
    for column in columns:
        named[column] = column_values(extracts[tfma.FEATURES_KEY].get(column), len(outputs["rating"]))
    for name, parts in named.items():
        for value in sorted({part for part in parts if part is not None}):
            rows = np.flatnonzero(parts == value)
            key = slicer_lib.slice_keys_to_numpy_array([((name, value),)])
            yield {kind: _rows(values, rows) for kind, values in inputs.items()} | {tfma.SLICE_KEY_TYPES_KEY: key}


def _rows(values: Any, rows: np.ndarray) -> Any:
    """Select rows of arrays, which may be nested in mappings by model and output."""
    if isinstance(values, dict):
        return {name: _rows(inner, rows) for name, inner in values.items()}
    return values[rows]
