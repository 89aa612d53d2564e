"""Damped biases of users and items (Koren 2010, doi:10.1145/1644873.1644874)."""

from __future__ import annotations

import numpy as np

from recipe.model import DAMPING


def damped_biases(indices: np.ndarray, deviations: np.ndarray, count: int, damping: float = DAMPING) -> np.ndarray:
    """Return the damped mean deviation of each user's or item's labels.

    Args:
        indices: int [R], 0 to `count`: index of the user or item of each label.
        deviations: float [R]: each label minus its expected value.
        count: The highest index.
        damping: Number of pseudo-ratings with a deviation of 0 that are added to each mean.

    Returns:
        float64 [count + 1], 0 for an index without labels.

    Example:
        >>> damped_biases(np.array([1, 1, 3]), np.array([1.0, 2.0, -1.0]), count=3, damping=1.0)
        array([ 0. ,  1. ,  0. , -0.5])
    """
    summed = np.bincount(indices, weights=deviations, minlength=count + 1)
    counts = np.bincount(indices, minlength=count + 1)
    return np.divide(summed, counts + damping, out=np.zeros(count + 1), where=counts > 0)
