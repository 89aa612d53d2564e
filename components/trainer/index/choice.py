"""Which retrieval index a model is exported with: the recipe's, unless it would be slower than the exact one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from components.trainer.index.ivf import WORTH_GATHERING, IvfIndex
from components.trainer.index.retrieval_index import ExactIndex, RetrievalIndex
from recipe.serving import Index

SAMPLE_SIZE = 1000
"""Searches that an index is measured with, at most."""


class Searches(NamedTuple):
    """Q real searches of a catalogue, with which an index that looks at a part of it finds out how large a part."""

    queries: np.ndarray
    """float32 [Q, D]"""
    excluded: Sequence[np.ndarray]
    """For each of them the items that it must not find, int [any], 1 to N."""


def build_index(
    settings: Index, vectors: tf.Tensor, k: int, searches: Callable[[], Searches], name: str
) -> RetrievalIndex:
    """The index that the recipe asks for over the vectors float32 [N, D]; the exact one where `ivf` would be slower.

    Args:
        settings: The recipe's section.
        vectors: Those of item 1 to item N.
        k: How many items most searches ask for.
        searches: What `ivf` is measured with.
        name: Of the index.
    """
    if settings.kind == "exact":
        return ExactIndex(vectors, name)
    queries, excluded = searches()
    index = IvfIndex.build(
        vectors.numpy(),
        queries,
        k=k,
        recall=settings.recall,
        cells=None if settings.cells == "auto" else settings.cells,
        excluded=excluded,
        name=name,
    )
    calibration = index.calibration
    logging.info(
        "%s: of %d cells a request looks into %d, which have %.3g of the %d items and %.4f of the best %d.",
        *(name, index.cell_count, calibration.probes, calibration.share, index.item_count, calibration.recall, k),
    )
    if calibration.share < WORTH_GATHERING:
        return index
    logging.warning(
        "%s: exported as exact, because ivf would be slower: to find %g of the best items it looks at %.3g of all. "
        "Lower serving.index.recall, or set serving.index: exact.",
        *(name, settings.recall, calibration.share),
    )
    return ExactIndex(vectors, name)
