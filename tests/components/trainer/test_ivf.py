"""The IVF index: results, recall, and the saved module in a TensorFlow Serving session."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from components.trainer.index.exact import ExactIndex
from components.trainer.index.ivf import Calibration, IvfIndex, assign_cells, calibrate
from components.trainer.index.retrieval_index import RetrievalIndex

Rows = Sequence[Sequence[int]]
WIDTH = 4


def ragged(rows: Rows) -> tf.RaggedTensor:
    return tf.RaggedTensor.from_row_lengths(
        tf.constant([item for row in rows for item in row], tf.int64), tf.constant([len(row) for row in rows], tf.int64)
    )


def whole(value: Any) -> np.ndarray:
    """Small integers, so that sums are exact in any order and equal scores are equal."""
    return np.asarray(value, np.float32)


@functools.cache
def clustered(count: int = 20_000, users: int = 400) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Item vectors in clusters of unequal sizes, query vectors, and the items that each user has seen."""
    random = np.random.default_rng(3)
    topics = random.normal(size=(150, 16)).astype(np.float32)
    shares = 1 / np.arange(1, 151) ** 0.7
    topic = random.choice(150, count, p=shares / shares.sum())
    vectors = topics[topic] + 0.5 * random.normal(size=(count, 16)).astype(np.float32)
    seen = [random.choice(count, random.integers(1, 40), replace=False) for _ in range(users)]
    queries = np.stack([vectors[items[:5]].mean(axis=0) for items in seen])
    return vectors, queries, [items + 1 for items in seen]


def index_of(vectors: np.ndarray, cells: np.ndarray, probes: int, k: int = 5) -> IvfIndex:
    return IvfIndex(vectors, cells, k=k, calibration=Calibration(probes, 1.0, 1.0))


def recall_of(index: RetrievalIndex, vectors: np.ndarray, queries: np.ndarray, seen: Rows, k: int) -> float:
    items = index.search(tf.constant(queries), k, ragged(seen)).items.numpy()
    exact = ExactIndex(vectors).search(tf.constant(queries), k, ragged(seen)).items.numpy()
    return float(np.mean([len(np.intersect1d(*rows)) / k for rows in zip(items, exact, strict=True)]))


# --- against brute force ----------------------------------------------------------------------------------------------


@st.composite
def searches(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(1, 60))
    numbers = st.integers(-3, 3)
    vectors = draw(st.lists(st.lists(numbers, min_size=WIDTH, max_size=WIDTH), min_size=count, max_size=count))
    rows = draw(st.integers(0, 4))
    items = st.lists(st.integers(1, count), max_size=count + 5)
    return {
        "vectors": whole(vectors),
        "queries": whole(
            draw(st.lists(st.lists(numbers, min_size=WIDTH, max_size=WIDTH), min_size=rows, max_size=rows))
        ).reshape(rows, WIDTH),
        "excluded": draw(st.lists(items, min_size=rows, max_size=rows)),
        "only": draw(st.none() | st.lists(st.lists(st.integers(0, count), max_size=20), min_size=rows, max_size=rows)),
        "item": draw(st.lists(st.integers(0, count), min_size=rows, max_size=rows)),
        "k": draw(st.integers(1, count + 3)),
        "cells": draw(st.integers(1, count)),
        "seed": draw(st.integers(0, 3)),
    }


@settings(max_examples=60, deadline=None)
@given(searches())
def test_probing_all_cells_equals_brute_force(case: dict[str, Any]) -> None:
    vectors, k = case["vectors"], case["k"]
    cells = assign_cells(vectors, case["cells"], np.random.default_rng(case["seed"]))
    index, exact = index_of(vectors, cells, len(vectors), k), ExactIndex(vectors)
    queries, excluded = tf.constant(case["queries"]), ragged(case["excluded"])
    only = None if case["only"] is None else ragged(case["only"])
    for one, other in zip(
        index.search(queries, k, excluded, only), exact.search(queries, k, excluded, only), strict=True
    ):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    item = tf.constant(case["item"], tf.int64)
    for one, other in zip(index.rank(queries, item, excluded), exact.rank(queries, item, excluded), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(index.vectors(item), exact.vectors(item))


@settings(max_examples=60, deadline=None)
@given(searches(), st.integers(1, 5))
def test_few_probes_return_all_items_up_to_k(case: dict[str, Any], probes: int) -> None:
    vectors, k = case["vectors"], case["k"]
    index = index_of(vectors, assign_cells(vectors, case["cells"], np.random.default_rng(case["seed"])), probes, k)
    queries, excluded = case["queries"], case["excluded"]
    found = index.search(tf.constant(queries), k, ragged(excluded))
    for query, others, items, scores in zip(queries, excluded, found.items.numpy(), found.scores.numpy(), strict=True):
        left = len(vectors) - len(set(others))
        there = items[items > 0]
        assert len(there) == len(set(there)) == min(k, left)
        assert not set(there) & set(others)
        np.testing.assert_array_equal(items[len(there) :], 0)
        np.testing.assert_array_equal(scores[: len(there)], vectors[there - 1] @ query)
        np.testing.assert_array_equal(scores[len(there) :], 0)
        order = sorted(range(len(there)), key=lambda place: (-scores[place], there[place]))
        assert order == list(range(len(there)))


@settings(max_examples=60, deadline=None)
@given(searches(), st.integers(1, 5))
def test_rank_equals_the_position_in_the_search(case: dict[str, Any], probes: int) -> None:
    vectors, k = case["vectors"], case["k"]
    index = index_of(vectors, assign_cells(vectors, case["cells"], np.random.default_rng(case["seed"])), probes, k)
    queries, item = tf.constant(case["queries"]), case["item"]
    others = [[seen for seen in row if seen != own] for row, own in zip(case["excluded"], item, strict=True)]
    _, rank = index.rank(queries, tf.constant(item, tf.int64), ragged(case["excluded"]))
    found = index.search(queries, k, ragged(others)).items.numpy()
    for own, place, items in zip(item, rank.numpy(), found, strict=True):
        expected = np.flatnonzero(items == own) if own else []
        if len(expected):
            assert place == expected[0]
        else:
            assert place == -1 or place >= k


# --- guarantees -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recall", [pytest.param(0.8, marks=pytest.mark.slow), 0.95, pytest.param(0.99, marks=pytest.mark.slow)]
)
def test_the_requested_recall_is_reached(recall: float) -> None:
    vectors, queries, seen = clustered()
    index = IvfIndex.build(vectors, queries[:200], k=50, recall=recall, excluded=seen[:200])
    measured = recall_of(index, vectors, queries[200:], seen[200:], 50)
    assert recall - 0.01 <= measured, (index.calibration, measured)
    assert index.calibration.scanned < 0.25, "as much work as brute force"


@pytest.mark.slow
def test_calibration_measures_what_search_finds() -> None:
    vectors, queries, seen = clustered()
    index = IvfIndex.build(vectors, queries, k=50, recall=0.9, excluded=seen)
    measured = recall_of(index, vectors, queries, seen, 50)
    # The search may look into more cells, where many items are excluded.
    assert index.calibration.recall == pytest.approx(measured, abs=0.005)


def test_a_higher_recall_takes_more_probes() -> None:
    vectors, queries, _ = clustered()
    cells = assign_cells(vectors, 300, np.random.default_rng(0))
    found = [calibrate(vectors, cells, queries, k=20, recall=recall) for recall in (0.5, 0.9, 0.99, 1.0)]
    assert [each.probes for each in found] == sorted({each.probes for each in found})
    assert [each.scanned for each in found] == sorted(each.scanned for each in found)
    assert found[-1].recall == 1.0


def test_without_queries_all_cells_are_probed() -> None:
    vectors, queries, _ = clustered()
    index = IvfIndex.build(vectors[:500], queries[:0], k=5, recall=0.5)
    assert index.calibration == Calibration(index.cell_count, 1.0, 1.0)


def test_the_same_arguments_give_the_same_index() -> None:
    vectors, queries, seen = clustered()
    one, other = (IvfIndex.build(vectors, queries, k=10, recall=0.9, excluded=seen, seed=4) for _ in range(2))
    assert one.calibration == other.calibration
    for left, right in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("cell_count", [1, 7, 300])
def test_cells_are_bounded(cell_count: int) -> None:
    vectors, _, _ = clustered()
    sizes = np.bincount(assign_cells(vectors, cell_count, np.random.default_rng(1)))
    assert sizes.min() > 0
    assert sizes.max() <= 6 * len(vectors) / cell_count
    assert cell_count <= len(sizes) <= 1.5 * cell_count


def test_equal_vectors_are_partitioned() -> None:
    vectors = np.repeat(clustered()[0][:3], 4000, axis=0)
    sizes = np.bincount(assign_cells(vectors, 100, np.random.default_rng(1)))
    assert sizes.max() <= 720


def test_results_do_not_depend_on_the_batch() -> None:
    vectors, queries, seen = clustered()
    index = IvfIndex.build(vectors, queries, k=10, recall=0.8)
    # A query that excludes nearly all items scans nearly all items.
    everything = np.arange(1, len(vectors) - 20)
    together = index.search(tf.constant(queries[:3]), 10, ragged([seen[0], everything, seen[2]])).items.numpy()
    for row, others in ((0, seen[0]), (1, everything), (2, seen[2])):
        alone = index.search(tf.constant(queries[row : row + 1]), 10, ragged([others])).items.numpy()
        np.testing.assert_array_equal(together[row], alone[0])
    exact = ExactIndex(vectors).search(tf.constant(queries[1:2]), 10, ragged([everything]))
    np.testing.assert_array_equal(together[1], exact.items[0])


def test_items_of_only_are_found_in_any_cell() -> None:
    vectors, queries, _ = clustered()
    index = IvfIndex.build(vectors, queries, k=10, recall=0.8)
    farthest = np.argsort(vectors @ queries[0])[:3] + 1
    found = index.search(tf.constant(queries[:2]), 10, ragged([[], []]), ragged([farthest, []])).items.numpy()
    np.testing.assert_array_equal(found[0], [*farthest[::-1], *[0] * 7])
    np.testing.assert_array_equal(found[1], index.search(tf.constant(queries[1:2]), 10).items[0])


def test_a_score_that_is_not_finite_is_no_result() -> None:
    vectors, queries, _ = clustered()
    index = IvfIndex.build(vectors[:2000], queries[:50], k=10, recall=0.8)
    changed = queries[:2].copy()
    changed[0, 0] = np.nan
    found = index.search(tf.constant(changed), 10)
    np.testing.assert_array_equal(found.items[0], 0)
    np.testing.assert_array_equal(found.scores[0], 0)
    assert (found.items[1].numpy() > 0).all()
    best = found.items[1, 0]
    every, others = index.rank(tf.constant(changed), tf.stack([best, best]), ragged([[], []]))
    assert every.numpy().tolist() == others.numpy().tolist() == [-1, 0]


# --- in a server ------------------------------------------------------------------------------------------------------


class Served(tf.Module):
    def __init__(self, index: RetrievalIndex) -> None:
        super().__init__()
        self.index = index

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 16], tf.float32, name="query"),
            tf.TensorSpec([], tf.int32, name="k"),
            tf.TensorSpec([None, None], tf.int64, name="excluded"),
            tf.TensorSpec([None, None], tf.int64, name="only"),
        ]
    )
    def filtered(self, query: Any, k: Any, excluded: Any, only: Any) -> dict[str, tf.Tensor]:
        rows = (tf.RaggedTensor.from_tensor(values, padding=-1) for values in (excluded, only))
        return self.index.search(query, k, *rows)._asdict()

    @tf.function(input_signature=[tf.TensorSpec([None, 16], tf.float32, name="query")])
    def plain(self, query: Any) -> dict[str, tf.Tensor]:
        return self.index.search(query, 10)._asdict()


def test_the_index_runs_in_a_session_with_built_in_operations(tmp_path: Path) -> None:
    vectors, queries, _ = clustered()
    index = IvfIndex.build(vectors, queries, k=10, recall=0.9)
    served = Served(index)
    expected = index.search(tf.constant(queries[:7]), 10).items.numpy()
    tf.saved_model.save(served, str(tmp_path), signatures={"filtered": served.filtered, "plain": served.plain})
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path))

        def call(name: str, **inputs: Any) -> dict[str, np.ndarray]:
            signature = meta.signature_def[name]
            feeds = {signature.inputs[key].name: value for key, value in inputs.items()}
            return session.run({key: info.name for key, info in signature.outputs.items()}, feeds)

        for rows in (0, 1, 7):
            plain = call("plain", query=queries[:rows])
            np.testing.assert_array_equal(plain["items"], expected[:rows])
            for k in (3, 40_000):
                found = call(
                    "filtered", query=queries[:rows], k=k, excluded=[[1, 2]] * rows if rows else np.zeros((0, 2)),
                    only=np.zeros((rows, 0), np.int64),
                )  # fmt: skip
                assert found["items"].shape == found["scores"].shape == (rows, k)
    nodes = [
        *meta.graph_def.node,
        *(node for function in meta.graph_def.library.function for node in function.node_def),
    ]
    functions = {function.signature.name for function in meta.graph_def.library.function}
    # raw_ops has the operations of TensorFlow itself; libraries that were loaded besides it are not in it.
    assert {node.op for node in nodes if not hasattr(tf.raw_ops, node.op)} <= functions
    assert not {node.op for node in nodes if "PyFunc" in node.op}
