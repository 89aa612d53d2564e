"""Checks whether the last blessed model (TFX's baseline model) can be evaluated on the current examples.

Its export may lack an output that the gates read, or expect columns of another type. Without these checks, a pipeline
would fail on it and could never replace it.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
from tensorflow.python.saved_model import loader_impl
from tfx.types import Artifact, artifact_utils
from tfx.utils import io_utils

from components.evaluator.measurement import SIGNATURE, SPLIT
from components.evaluator.metrics import OUTPUTS

_BATCH = 512


def missing_outputs(path: str) -> str | None:
    """Return what a SavedModel's signature lacks for the evaluation, without loading it; None if it is complete.

    Args:
        path: Folder of the SavedModel.
    """
    try:
        model = loader_impl.parse_saved_model(path)
    except (OSError, tf.errors.OpError) as error:
        return f"cannot read its files ({_first_line(error)})"
    signatures = model.meta_graphs[0].signature_def
    if SIGNATURE not in signatures:
        return f"it has no signature {SIGNATURE!r}"
    missing = [name for name in OUTPUTS if name not in signatures[SIGNATURE].outputs]
    return f"its signature {SIGNATURE!r} has no output {', '.join(missing)}" if missing else None


def evaluation_error(path: str, examples: Sequence[Artifact]) -> str | None:
    """Return the error of a SavedModel's `evaluate` signature on the eval examples; None if it succeeds.

    Args:
        path: Folder of the SavedModel.
        examples: Artifacts of raw examples, gzipped TFRecords as InteractionExampleGen writes them.
    """
    try:
        signature = tf.saved_model.load(path).signatures[SIGNATURE]
        (name,) = signature.structured_input_signature[1]
        for uri in artifact_utils.get_split_uris(list(examples), SPLIT):
            files = tf.io.gfile.glob(io_utils.all_files_pattern(uri))
            for batch in tf.data.TFRecordDataset(sorted(files), compression_type="GZIP").batch(_BATCH):
                signature(**{name: batch})
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        return f"it fails on the current examples ({_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
