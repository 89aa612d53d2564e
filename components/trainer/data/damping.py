"""Means of few labels, pulled towards what holds for all (Koren 2010, doi:10.1145/1644873.1644874)."""

from __future__ import annotations

import numpy as np

from recipe.model import DAMPING


def damped_biases(indices: np.ndarray, deviations: np.ndarray, count: int, damping: float = DAMPING) -> np.ndarray:
    """How far the labels of each user or item deviate, damped.

    Args:
        indices: int [R], 0 to `count`: whose label each one is.
        deviations: float [R]: how far the labels lie above what was to be expected.
        count: The highest index.
        damping: The labels count together with this many that deviate by nothing.

    Returns:
        float64 [count + 1], 0 for those without labels.
    """
    summed = np.bincount(indices, weights=deviations, minlength=count + 1)
    counts = np.bincount(indices, minlength=count + 1)
    return np.divide(summed, counts + damping, out=np.zeros(count + 1), where=counts > 0)
