"""Build the index that a model is exported with: the recipe's, or the exact one if that is faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from components.trainer.index.exact import ExactIndex
from components.trainer.index.ivf import GATHER_LIMIT, IvfIndex
from components.trainer.index.retrieval_index import RetrievalIndex
from recipe.serving import Index

SAMPLE_SIZE = 1000
"""Maximum number of queries that an index is calibrated with."""


class SampleQueries(NamedTuple):
    """Q queries of the model, with which an approximate index measures its recall."""

    queries: np.ndarray
    """float32 [Q, D]"""
    excluded: Sequence[np.ndarray]
    """Q arrays of integers [any], 1 to N: the items to exclude from each query's result."""


def build_index(
    config: Index, vectors: tf.Tensor, k: int, sample_queries: Callable[[], SampleQueries], name: str
) -> RetrievalIndex:
    """Return the recipe's index; the exact one if `ivf` would be slower.

    Args:
        config: The section `serving.index` of the recipe.
        vectors: float32 [N, D]: the vectors of items 1 to N.
        k: Number of items that most searches request.
        sample_queries: Returns the queries to calibrate `ivf` with; not called for `exact`.
        name: Name of the module.

    Example:
        >>> vectors = tf.random.normal([100, 8])
        >>> index = build_index(recipe.serving.index, vectors, 10, lambda: SampleQueries([], []), "index")
        >>> index.search(vectors[:2], k=10).items.shape
        TensorShape([2, 10])
    """
    if config.kind == "exact":
        return ExactIndex(vectors, name)
    queries, excluded = sample_queries()
    index = IvfIndex.build(
        vectors.numpy(),
        queries,
        k=k,
        recall=config.recall,
        cells=None if config.cells == "auto" else config.cells,
        excluded=excluded,
        name=name,
    )
    calibration = index.calibration
    logging.info(
        "%s: IVF index with %d cells, %d probed per query: scans %.3g of the %d items, recall@%d %.4f.",
        *(name, index.cell_count, calibration.probes, calibration.scanned, index.item_count, k, calibration.recall),
    )
    if calibration.scanned < GATHER_LIMIT:
        return index
    logging.warning(
        "%s: exported as exact, because ivf would be slower: for recall %g it scans %.3g of the items. "
        "Lower serving.index.recall, or set serving.index: exact.",
        *(name, config.recall, calibration.scanned),
    )
    return ExactIndex(vectors, name)
