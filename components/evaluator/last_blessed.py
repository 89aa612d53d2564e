"""Whether the last blessed model can still be measured on today's examples, beside today's candidate.

Its export may be older than an output that the gate reads by now, or want columns of another type. A pipeline that
crashed over it could never replace it.
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


def lacks(path: str) -> str | None:
    """What a SavedModel's signature lacks to be measured, without loading it; None where it lacks nothing.

    Args:
        path: Folder of the SavedModel.
    """
    try:
        model = loader_impl.parse_saved_model(path)
    except (OSError, tf.errors.OpError) as error:
        return f"its files cannot be read ({_first_line(error)})"
    signatures = model.meta_graphs[0].signature_def
    if SIGNATURE not in signatures:
        return f"it has no signature {SIGNATURE!r}"
    missing = [name for name in OUTPUTS if name not in signatures[SIGNATURE].outputs]
    return f"its signature {SIGNATURE!r} does not answer {', '.join(missing)}" if missing else None


def fails(path: str, examples: Sequence[Artifact]) -> str | None:
    """What happens when a SavedModel is asked about every eval example by itself; None where it answers.

    Args:
        path: Folder of the SavedModel.
        examples: Artifacts of raw examples, gzipped records as InteractionExampleGen writes them.
    """
    try:
        signature = tf.saved_model.load(path).signatures[SIGNATURE]
        (name,) = signature.structured_input_signature[1]
        for uri in artifact_utils.get_split_uris(list(examples), SPLIT):
            files = tf.io.gfile.glob(io_utils.all_files_pattern(uri))
            for batch in tf.data.TFRecordDataset(sorted(files), compression_type="GZIP").batch(_BATCH):
                signature(**{name: batch})
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        return f"it fails on today's examples ({_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
