"""The statistics and charts of the report."""

from __future__ import annotations

import datetime
import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_metadata.proto.v0 import schema_pb2

from commands.report import charts, data_statistics
from commands.report.charts import SliceScore
from commands.report.data_statistics import Calibration, SplitInteractions


def interactions(
    labels: list[float], times: list[int] | None = None, users: list[bytes] | None = None
) -> SplitInteractions:
    count = len(labels)
    return SplitInteractions(
        users=np.array(users or [b"u"] * count, object),
        items=np.array([b"i"] * count, object),
        labels=np.array(labels, float),
        times=None if times is None else np.array(times),
        is_whole=True,
    )


# --- intervals --------------------------------------------------------------------------------------------------------


def test_wilson_interval_equals_published_values() -> None:
    # Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I, method 3.
    for hits, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                                   (1, 29, 0.0061, 0.1718)):  # fmt: skip
        found = charts.wilson_interval(hits / count, count)
        assert found == pytest.approx((low, high), abs=5e-5)


@given(st.floats(0, 1), st.integers(1, 10**6))
def test_wilson_interval_contains_the_fraction_and_narrows(share: float, count: int) -> None:
    low, high = charts.wilson_interval(share, count)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1
    wider = charts.wilson_interval(share, max(count // 4, 1))
    assert high - low <= wider[1] - wider[0] + 1e-12


def test_interval_without_observations_covers_all_values() -> None:
    assert charts.wilson_interval(0.0, 0) == (0.0, 1.0)
    assert charts.error_interval(1.0, 0)[1] == math.inf


def test_rmse_interval_has_its_confidence_level() -> None:
    random = np.random.default_rng(1)
    errors = random.normal(0, 0.9, (2000, 200))
    held = [
        low <= 0.9 <= high for low, high in (charts.error_interval(np.sqrt((row**2).mean()), 200) for row in errors)
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


# --- distributions ----------------------------------------------------------------------------------------------------


def test_few_distinct_ratings_are_their_own_bins() -> None:
    few = data_statistics.label_histogram({"train": interactions([1, 1, 5, 3]), "eval": interactions([5])})
    assert few.discrete and few.edges.tolist() == [1, 3, 5]
    assert few.counts["train"].tolist() == [2, 1, 1] and few.counts["eval"].tolist() == [0, 0, 1]
    many = data_statistics.label_histogram({"train": interactions(np.linspace(0, 9, 500).tolist())})
    assert not many.discrete and len(many.counts["train"]) == 20 and many.counts["train"].sum() == 500


def test_time_histogram_needs_timestamps() -> None:
    assert data_statistics.time_histogram({"train": interactions([1.0])}) is None
    found = data_statistics.time_histogram({"train": interactions([1.0] * 3, [0, 5, 30])})
    assert found is not None and found.counts["train"].sum() == 3 and (found.edges[0], found.edges[-1]) == (0, 30)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50))
def test_every_user_is_in_one_bin_of_activity(counts: list[int]) -> None:
    histogram = data_statistics.activity_histogram(np.array(sorted(counts, reverse=True)))
    assert histogram.counts["train"].sum() == len(counts)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=50), st.integers(0, 30))
def test_lorenz_curve_is_above_the_diagonal(counts: list[int], untouched: int) -> None:
    sorted_counts = np.array(sorted(counts, reverse=True))
    items, interactions_ = data_statistics.concentration(sorted_counts, len(counts) + untouched)
    assert interactions_[0] == 0 and interactions_[-1] == pytest.approx(1) and items[-1] == 1
    assert (interactions_ >= items - 1e-9).all() and (np.diff(interactions_) >= -1e-12).all()


def test_counts_are_descending() -> None:
    assert data_statistics.counts_of(np.array([b"a", b"b", b"a", b"c", b"a", b"c"], object)).tolist() == [3, 2, 1]


# --- drift ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def statistics() -> Any:
    import tensorflow_data_validation as tfdv

    def of(gender: list[str], age: list[int]) -> Any:
        frame = pd.DataFrame({"gender": gender, "age": age})
        return tfdv.generate_statistics_from_dataframe(frame).datasets[0]

    return of


SCHEMA = schema_pb2.Schema()
SCHEMA.feature.add(name="gender", type=schema_pb2.BYTES)
SCHEMA.feature.add(name="age", type=schema_pb2.INT)


def test_drift_is_linf_for_strings_and_jensen_shannon_for_numbers(statistics: Any) -> None:
    now = statistics(["F"] * 30 + ["M"] * 70, [20] * 50 + [60] * 50)
    same, other = (
        statistics(["F"] * 3 + ["M"] * 7, [20, 60] * 5),
        statistics(["F"] * 80 + ["M"] * 20, [20] * 90 + [60] * 10),
    )
    found = {one.feature: one for one in data_statistics.drift(SCHEMA, now, {"same": same, "other": other})}
    assert found["gender"].measure == "L∞" and found["age"].measure == "JS"
    assert found["gender"].distances["other"] == pytest.approx(0.5)
    assert found["gender"].distances["same"] == pytest.approx(0, abs=1e-9)
    # In bits, against the mean of the two.
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    mean = (p + q) / 2
    divergence = (np.sum(p * np.log2(p / mean)) + np.sum(q * np.log2(q / mean))) / 2
    assert found["age"].distances["other"] == pytest.approx(divergence, abs=0.01)
    assert found["gender"].is_notable and found["age"].is_notable == (divergence > data_statistics.NOTABLE_DRIFT)
    assert not any(one.is_notable for one in data_statistics.drift(SCHEMA, now, {"same": same}))


def test_drift_threshold_of_the_schema_is_used(statistics: Any) -> None:
    schema = schema_pb2.Schema()
    schema.CopyFrom(SCHEMA)
    schema.feature[0].drift_comparator.infinity_norm.threshold = 0.9
    now, other = statistics(["F", "M"] * 50, [20] * 100), statistics(["F"] * 100, [20] * 100)
    found = {one.feature: one for one in data_statistics.drift(schema, now, {"other": other})}
    assert found["gender"].threshold == pytest.approx(0.9) and not found["gender"].is_notable
    assert schema.feature[0].drift_comparator.infinity_norm.threshold == pytest.approx(0.9)


# --- charts -----------------------------------------------------------------------------------------------------------


def test_slices_are_sorted_worst_first() -> None:
    scores = [
        SliceScore("middle", 10, 0.5, 0.4, 0.6),
        SliceScore("low", 10, 0.1, 0.0, 0.2),
        SliceScore("high", 9, 0.9, None, None),
    ]
    accuracy = charts.slice_chart("top_100_accuracy", scores, 0.5)
    assert [row[0] for row in accuracy.rows] == ["low", "middle", "high"]
    assert "Worst slice: low" in accuracy.caption
    error = charts.slice_chart("rmse", scores, None)
    assert [row[0] for row in error.rows] == ["high", "middle", "low"]
    # Plotly draws the first one at the bottom.
    assert json.loads(error.plot)["data"][0]["y"] == ["low", "middle", "high"]


def test_curves_of_several_runs_share_a_chart() -> None:
    runs = {"this run": {"loss": [3.0, 2.0, 1.0]}, "tutorial": {"loss": [4.0, 3.5], "validation_rmse": [1.0, 0.9]}}
    loss, error = charts.curve_charts(runs)
    assert "This run: 3 in epoch 1, 1 in epoch 3." in loss.caption
    assert loss.header == ("epoch", "this run", "tutorial")
    assert loss.rows == (("1", "3", "4"), ("2", "2", "3.5"), ("3", "1", ""))
    assert [line["name"] for line in json.loads(loss.plot)["data"]] == ["this run", "tutorial"]
    assert error.header == ("epoch", "tutorial")


def test_compared_runs_show_their_main_curve_only() -> None:
    curves = {"loss": [3.0, 2.0], "rating_loss": [1.0, 0.5], "train_rmse": [1.0, 0.8], "validation_rmse": [1.1, 0.9]}
    rates = {"learning_rate": [0.1, 0.05]}
    loss, error, other = charts.curve_charts({"this run": {**curves, **rates}, "tutorial": {**curves, **rates}})
    assert loss.header == ("epoch", "this run: loss", "this run: rating loss", "tutorial: loss")
    assert error.header == (
        "epoch", "this run: train RMSE", "this run: validation RMSE", "tutorial: validation RMSE"
    )  # fmt: skip
    assert other.header == ("epoch", "this run")


@pytest.mark.parametrize(("beside", "scale"), [([4.0, 3.0], None), ([60_000.0, 50_000.0], "log")])
def test_losses_of_different_scale_have_a_logarithmic_axis(beside: list[float], scale: str | None) -> None:
    (loss,) = charts.curve_charts({"this run": {"loss": [3.0, 2.0]}, "tutorial": {"loss": beside}})
    assert json.loads(loss.plot)["layout"]["yaxis"].get("type") == scale


def test_curves_keep_the_names_of_their_columns() -> None:
    (chart,) = charts.curve_charts({"this run": {"loss": [2.0, 1.0], "retrieval_loss": [1.5, 0.5]}})
    assert chart.header == ("epoch", "loss", "retrieval loss")
    (chart,) = charts.curve_charts({"this run": {"validation_top_100_accuracy": [0.25, 0.5]}})
    assert "25.0% in epoch 1, 50.0% in epoch 2" in chart.caption


def test_constant_and_repeated_curves_are_not_drawn() -> None:
    (chart,) = charts.curve_charts({"this run": {"loss": [2.0, 1.0], "total_loss": [2.0, 1.0], "l2_loss": [0.0, 0.0]}})
    assert chart.header == ("epoch", "loss")


def test_calibration_captions_have_the_errors() -> None:
    calibration = Calibration(
        predicted=np.array([2.0, 4.0]), actual=np.array([2.5, 4.0]), error=np.array([0.1, 0.1]),
        counts=np.array([100, 300]), residuals=np.array([0.5] * 100 + [0.0] * 300),
    )  # fmt: skip
    assert "mean: 0.12" in charts.calibration_chart(calibration, "rating").caption
    residuals = charts.residuals_chart(calibration)
    assert "100% of the predicted ratings" in residuals.caption and "+0.125" in residuals.caption


def test_all_colours_have_a_dark_replacement() -> None:
    drawn = [
        charts.ratings_chart(
            data_statistics.label_histogram({"train": interactions([1, 2]), "eval": interactions([1])}), "rating"
        ),
        charts.slice_chart("rmse", [SliceScore("a", 10, 0.5, 0.4, 0.6, 0.7)], 0.5),
        *charts.curve_charts({str(run): {"loss": [2.0, run]} for run in range(6)}),
    ]
    for chart in drawn:
        for colour in set(re.findall(r"#[0-9a-fA-F]{6}", chart.plot)):
            assert colour in charts.LIGHT_TO_DARK, (chart.id, colour)


def test_times_name_the_first_and_the_last_day() -> None:
    days = [datetime.datetime(2026, 3, day, tzinfo=datetime.UTC).timestamp() for day in (1, 9)]
    histogram = data_statistics.time_histogram({"train": interactions([1.0, 1.0], [int(day) for day in days])})
    assert histogram is not None
    assert "From 01 March 2026 to 09 March 2026" in charts.times_chart(histogram).caption
