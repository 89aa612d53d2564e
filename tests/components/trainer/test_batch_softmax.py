"""The in-batch softmax over distinct items, compared with `tfrs.tasks.Retrieval` over all duplicates."""

from __future__ import annotations

from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from components.trainer.model.retrieval import BatchSoftmax
from recipe.model import RetrievalLoss

ITEMS, WIDTH = 6, 4

rows = st.lists(st.tuples(st.integers(1, ITEMS), st.booleans(), st.sampled_from([0.25, 1.0])), min_size=1, max_size=12)
options = st.fixed_dictionaries(
    {
        "log_q_correction": st.booleans(),
        "remove_accidental_hits": st.booleans(),
        "uniform_negatives": st.sampled_from([0, 3]),
    }
)


def softmax(keys: dict[str, Any]) -> BatchSoftmax:
    shares = np.array([1, 5, 4, 3, 2, 1, 1]) / 17
    return BatchSoftmax(RetrievalLoss.model_validate(keys), shares)


@settings(max_examples=40, deadline=None)
@given(rows=rows, keys=options, seed=st.integers(0, 5))
def test_loss_and_gradients_equal_those_with_duplicates(rows: list[Any], keys: dict[str, Any], seed: int) -> None:
    own = np.array([item for item, _, _ in rows])
    chosen = np.array([positive for _, positive, _ in rows])
    weights = tf.constant([weight for _, _, weight in rows])
    random = np.random.default_rng(seed)
    query = tf.Variable(random.normal(size=(len(rows), WIDTH)), dtype=tf.float32)
    table = tf.Variable(random.normal(size=(ITEMS + 1, WIDTH)), dtype=tf.float32)
    drawn = random.integers(1, ITEMS + 1, keys["uniform_negatives"])
    every = softmax(keys)

    with tf.GradientTape() as tape:
        distinct, places = tf.unique(tf.concat([own, drawn], axis=0))
        found = every.distinct_loss(
            query, tf.gather(table, distinct), distinct, places, weights, tf.constant(chosen, tf.float32)
        )
    gradients = tape.gradient(found, [query, table])
    if not chosen.any():
        assert float(found) == 0
        assert all(np.isfinite(tf.convert_to_tensor(gradient)).all() for gradient in gradients)
        return
    with tf.GradientTape() as tape:
        candidates = np.concatenate([own[chosen], drawn]).astype(int)
        expected = every(
            tf.boolean_mask(query, chosen),
            tf.gather(table, candidates),
            tf.constant(candidates),
            tf.boolean_mask(weights, chosen),
        )
    assert float(found) == pytest.approx(float(expected), rel=1e-4, abs=1e-5)
    for one, other in zip(gradients, tape.gradient(expected, [query, table]), strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(one), tf.convert_to_tensor(other), rtol=1e-3, atol=1e-5)
