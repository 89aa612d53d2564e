"""What is measured is what numpy computes one example at a time: as a whole, by slice, and for the baselines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_model_analysis.metrics.metric_types import StandardMetricInputs

from components.evaluator.metrics import RecommenderMetrics
from recipe.evaluation import METRICS, READY_SLICES, Gate, ItemPopularity, Slices, UserActivity

SHIFT = 0.5
RANKS_LOST = 4

ANY = [Gate(metric="rmse", at_most=99.0)]


@pytest.fixture(scope="module")
def measured(evaluate: Any, model: Callable[..., Path]) -> Any:
    """A worse candidate beside the last blessed model, with a column of slices."""
    slices = Slices(columns=("gender",))
    return evaluate(model(shift=SHIFT, ranks_lost=RANKS_LOST), ANY, model(), slices=slices).verdict


def slices_of(verdict: Any) -> dict[tuple[str, str], Any]:
    return {(found.name, found.value): found for found in verdict.slices}


def test_metrics_of_the_whole(measured: Any, rows: Any) -> None:
    assert measured.metrics == pytest.approx(rows.worse(SHIFT, RANKS_LOST).metrics(), abs=1e-6)
    assert list(measured.metrics) == list(METRICS)
    assert measured.examples == len(rows.label)


def test_ranking_metrics_are_exact(measured: Any, rows: Any) -> None:
    expected = rows.worse(SHIFT, RANKS_LOST).metrics()
    for name in METRICS:
        if name not in ("rmse", "mae", "popularity_bias_10"):
            assert measured.metrics[name] == pytest.approx(expected[name], rel=1e-12), name


def test_the_last_blessed_model_is_measured_on_the_same_examples(measured: Any, rows: Any) -> None:
    assert measured.last_blessed == pytest.approx(rows.metrics(), abs=1e-6)


def test_baselines_are_measured_on_the_same_examples(measured: Any, rows: Any) -> None:
    assert measured.baselines == pytest.approx(rows.baselines(), abs=1e-6)
    assert list(measured.baselines) == list(METRICS)


def test_the_baselines_differ_from_the_model(measured: Any) -> None:
    assert all(measured.baselines[name] != measured.metrics[name] for name in METRICS)


def test_every_slice_is_measured_on_its_own_examples(measured: Any, rows: Any) -> None:
    found = slices_of(measured)
    assert set(found) == {
        *((name, value) for name, values in READY_SLICES.items() for value in values), ("gender", "F"), ("gender", "M")
    }  # fmt: skip
    for key, part in found.items():
        own = rows.only(rows.slice(*key))
        assert part.examples == len(own.label) > 5, key
        assert part.metrics == pytest.approx(own.worse(SHIFT, RANKS_LOST).metrics(), abs=1e-6), key
        assert part.baselines == pytest.approx(own.baselines(), abs=1e-6), key
        assert part.last_blessed == pytest.approx(own.metrics(), abs=1e-6), key


def test_ready_slices_cut_all_examples_once_and_columns_those_that_have_a_value(measured: Any, rows: Any) -> None:
    for name in READY_SLICES:
        assert sum(part.examples for part in measured.slices if part.name == name) == measured.examples
    missing = sum(value is None for value in rows.gender)
    assert sum(part.examples for part in measured.slices if part.name == "gender") == measured.examples - missing
    assert missing


def test_slices_come_in_the_order_a_reader_expects(measured: Any) -> None:
    names = [(part.name, part.value) for part in measured.slices]
    ready = [(name, value) for name, values in READY_SLICES.items() for value in values]
    assert names == [*ready, ("gender", "M"), ("gender", "F")]


def test_thresholds_of_the_recipe_move_the_slices_and_null_switches_them_off(
    evaluate: Any, model: Callable[..., Path], rows: Any
) -> None:
    slices = Slices(user_activity=None, item_popularity=ItemPopularity(torso=0.1, head=0.3))
    found = slices_of(evaluate(model(), ANY, slices=slices).verdict)
    known, share = rows.outputs["item_interactions"] > 0, rows.outputs["item_popularity"]
    assert {key: part.examples for key, part in found.items()} == {
        ("item_popularity", "cold"): (~known).sum(),
        ("item_popularity", "tail"): (known & (share <= 0.1)).sum(),
        ("item_popularity", "torso"): (known & (share > 0.1) & (share <= 0.3)).sum(),
        ("item_popularity", "head"): (known & (share > 0.3)).sum(),
    }
    heavy = slices_of(evaluate(model(), ANY, slices=Slices(user_activity=UserActivity(heavy=0.7))).verdict)
    assert heavy[("user_activity", "heavy")].examples == (rows.outputs["user_activity"] > 0.7).sum() > 0


def test_per_user_metrics_are_over_what_recommend_chooses_from(
    evaluate: Any, model: Callable[..., Path], rows: Any
) -> None:
    verdict = evaluate(model(), ANY, exclude_seen=False).verdict
    assert verdict.metrics == pytest.approx(rows.metrics(exclude_seen=False), abs=1e-6)
    assert verdict.baselines == pytest.approx(rows.baselines(exclude_seen=False), abs=1e-6)
    assert verdict.metrics["mrr"] < rows.metrics()["mrr"] - 0.01


def test_the_slice_of_a_gate_is_measured_without_being_listed(evaluate: Any, model: Callable[..., Path]) -> None:
    gates = [Gate(metric="rmse", slice={"gender": "F"}, at_most=99.0)]
    assert ("gender", "F") in slices_of(evaluate(model(), gates).verdict)


def test_examples_in_several_files_and_batches_add_up(
    evaluate: Any, model: Callable[..., Path], rows: Any, examples: Callable[..., Path]
) -> None:
    """Users and recommended items overlap between the parts, so that nothing but a union of them is right."""
    folder = examples(rows.only(np.arange(len(rows.label)) < 150))
    for place, part in enumerate([np.arange(150, 260), np.arange(260, len(rows.label))], start=1):
        (file,) = (examples(rows.only(part)) / "Split-eval").iterdir()
        file.rename(folder / "Split-eval" / f"data-0000{place}-of-00003.gz")
    verdict = evaluate(model(), ANY, split_=folder).verdict
    assert verdict.metrics == pytest.approx(rows.metrics(), abs=1e-6)
    assert verdict.baselines == pytest.approx(rows.baselines(), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 2**32 - 1), st.booleans())
def test_the_sum_of_parts_does_not_depend_on_how_workers_share_them(
    rows: Any, workers: list[int], seed: int, twice: bool
) -> None:
    """Beam adds batches up on any worker and merges the sums in any order, as often as it likes."""
    chosen = rows.only(np.random.default_rng(seed).integers(0, len(rows.label), len(workers)))
    (computation,) = RecommenderMetrics(exclude_seen=True).computations(model_names=[""])
    combiner = computation.combiner
    sums = {worker: combiner.create_accumulator() for worker in range(5)}
    hits = {
        f"top_{k}{suffix}_hit": (chosen.outputs[f"rank{suffix}"] >= 0) & (chosen.outputs[f"rank{suffix}"] < k)
        for suffix in ("", "_unseen") for k in (1, 5, 10, 50, 100)
    }  # fmt: skip
    outputs = chosen.outputs | hits
    for worker in set(workers):
        part = np.flatnonzero(np.array(workers) == worker)
        for batch in np.array_split(part, 2):
            predictions = {name: values[batch] for name, values in outputs.items()}
            inputs = StandardMetricInputs(labels=chosen.label[batch], predictions=predictions)
            sums[worker] = combiner.add_input(sums[worker], inputs)
    merged = (
        [combiner.merge_accumulators(list(sums.values())[:2]), *list(sums.values())[2:]] if twice else sums.values()
    )
    found = combiner.extract_output(combiner.merge_accumulators(merged))
    values = {key.name: value for key, value in found.items()}
    assert values.pop("example_count") == len(workers)
    baselines = {name.removeprefix("baseline_"): values.pop(name) for name in list(values) if name.startswith("base")}
    assert values == pytest.approx(chosen.metrics(), abs=1e-6)
    assert baselines == pytest.approx(chosen.baselines(), abs=1e-6)


def test_other_splits_are_never_measured(
    evaluate: Any, model: Callable[..., Path], rows: Any, examples: Callable[..., Path]
) -> None:
    folder = examples(rows.only(np.arange(len(rows.label)) < 100))
    (examples(rows) / "Split-eval").rename(folder / "Split-train")
    verdict = evaluate(model(), ANY, split_=folder).verdict
    assert verdict.examples == 100
    assert verdict.metrics == pytest.approx(rows.only(np.arange(len(rows.label)) < 100).metrics(), abs=1e-6)
