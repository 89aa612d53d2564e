"""Sampled negatives at the gate: they count for the ratings, and not for what the model would recommend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline.recipe import IS_POSITIVE, METRICS, Gate

LABEL = "stars"


@pytest.fixture(scope="module")
def is_positive(rows: Any) -> np.ndarray:
    """bool: every third row is an interaction, the others are sampled negatives."""
    return np.arange(len(rows.label)) % 3 == 0


@pytest.fixture(scope="module")
def split(rows: Any, is_positive: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Callable[[np.ndarray], Path]:
    """Writes an eval split whose rows are marked as interactions or negatives."""

    def write(marks: np.ndarray) -> Path:
        folder = tmp_path_factory.mktemp("examples")
        (folder / "Split-eval").mkdir()
        options = tf.io.TFRecordOptions(compression_type="GZIP")
        with tf.io.TFRecordWriter(str(folder / "Split-eval" / "data-00000-of-00001.gz"), options) as writer:
            for label, predicted, rank, mark in zip(rows.label, rows.predicted, rows.rank, marks, strict=True):
                example = tf.train.Example()
                features = example.features.feature
                features[LABEL].float_list.value.append(label)
                features["predicted"].float_list.value.append(predicted)
                features["rank"].int64_list.value.append(rank)
                features[IS_POSITIVE].float_list.value.append(float(mark))
                writer.write(example.SerializeToString())
        return folder

    return write


def test_negatives_weigh_in_the_ratings_and_not_in_the_top_k(
    evaluate: Any, model: Callable[..., Path], split: Callable[..., Path], rows: Any, is_positive: np.ndarray
) -> None:
    expected = rows.metrics()
    for name in METRICS:
        if name.startswith("top_"):
            expected[name] = float(np.mean(rows.rank[is_positive] < int(name.split("_")[1])))
    assert expected["top_100_accuracy"] != pytest.approx(rows.metrics()["top_100_accuracy"], abs=1e-3)
    evaluated = evaluate(
        model(),
        [
            Gate(metric="top_100_accuracy", at_least=expected["top_100_accuracy"] - 1e-6, may_drop=0.0),
            Gate(metric="rmse", at_most=expected["rmse"] + 1e-6),
        ],
        model(ranks_lost=5),
        split(is_positive),
        negatives=True,
    )
    assert evaluated.verdict.metrics == pytest.approx(expected, abs=1e-6)
    assert evaluated.verdict.examples == len(rows.label)
    assert evaluated.blessed and len(evaluated.verdict.bounds) == 3


def test_without_a_single_interaction_there_is_no_top_k_and_the_gate_fails(
    evaluate: Any, model: Callable[..., Path], split: Callable[..., Path], rows: Any
) -> None:
    evaluated = evaluate(
        model(),
        [Gate(metric="top_100_accuracy", at_least=0.0)],
        split=split(np.zeros(len(rows.label), bool)),
        negatives=True,
    )
    assert not evaluated.blessed
    (bound,) = evaluated.verdict.bounds
    assert (bound.metric, bound.measured, bound.passed) == ("top_100_accuracy", None, False)
    assert evaluated.verdict.metrics["rmse"] == pytest.approx(rows.metrics()["rmse"], abs=1e-6)
