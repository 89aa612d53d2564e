"""`tandem compare`: the summary of several trainings, the table, the page, and the ML Metadata of earlier runs."""

from __future__ import annotations

import contextlib
import io
import re
import sqlite3
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from commands.compare.comparison import (
    SPARKS,
    Comparison,
    PresetTraining,
    headline,
    print_comparison,
    spark,
    summarised,
)
from commands.compare.presets import _take_over_metadata as take_over_metadata
from recipe.training import ValidationSplit


def trained(preset: str, seed: int = 0, accuracy: float = 0.3, rmse: float = 1.0, epochs: int = 3) -> PresetTraining:
    places = range(1, epochs + 1)
    return PresetTraining.model_validate(
        {
            "preset": preset,
            "seed": seed,
            "metrics": {"top_100_accuracy": accuracy, "rmse": rmse, "mae": 0.7},
            "curves": {
                "epoch": [*places],
                "seconds": [2.0 for _ in places],
                "validation_top_100_accuracy": [accuracy * place / epochs for place in places],
                "validation_rmse": [rmse + 1 / place for place in places],
                "kept": [float(place == epochs) for place in places],
            },
        }
    )


def comparison(*each: PresetTraining) -> Comparison:
    return Comparison(
        run_id="1",
        recipe="films",
        validation=ValidationSplit(),
        rows=summarised(each),
        trained=each,
        plot=None,
        log="log.txt",
    )


def printed(found: Comparison, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_comparison(console, found)
    return console.export_text()


# --- rows -------------------------------------------------------------------------------------------------------------


def test_seeds_give_mean_and_standard_deviation() -> None:
    (row,) = summarised([trained("a", seed, accuracy) for seed, accuracy in enumerate((0.30, 0.31, 0.32))])
    assert row.seeds == (0, 1, 2)
    assert row.metrics["top_100_accuracy"] == pytest.approx(0.31)
    assert row.spread["top_100_accuracy"] == pytest.approx(0.01)
    assert (row.epochs, row.seconds, row.passed) == (3, 6, True)


def test_single_seed_has_no_standard_deviation() -> None:
    (row,) = summarised([trained("a")])
    assert row.spread == {} and row.metrics["rmse"] == 1.0


def test_rows_keep_the_order_of_the_arguments() -> None:
    rows = summarised([trained("z"), trained("a"), trained("z", 1)])
    assert [row.preset for row in rows] == ["z", "a"]


def test_one_failed_gate_of_one_seed_fails_the_preset() -> None:
    poor = trained("a", 1)
    bound = {"metric": "rmse", "condition": "at_most", "allowed": 0.9, "limit": 0.9, "measured": 1.0, "passed": False,
             "margin": -0.1}  # fmt: skip
    poor = PresetTraining.model_validate(poor.model_dump() | {"bounds": [bound]})
    (row,) = summarised([trained("a"), poor])
    assert not row.passed and row.failed_gates == ("rmse",)


def test_failed_training_does_not_affect_other_presets_and_seeds() -> None:
    rows = summarised([trained("a"), PresetTraining(preset="a", seed=1, error="Trainer failed"), trained("b")])
    assert rows[0].error == "Trainer failed" and rows[0].metrics["rmse"] == 1.0 and not rows[0].passed
    assert rows[1].passed
    text = printed(comparison(PresetTraining(preset="a", seed=0, error="Trainer: no [/way]"), trained("b")))
    assert "training failed" in text and "Trainer: no [/way]" in text


def test_a_metric_that_could_not_be_computed_is_a_dash() -> None:
    """Ratings that are not numbers have no RMSE; the comparison goes on."""
    astray = PresetTraining.model_validate(trained("a").model_dump() | {"metrics": {"top_100_accuracy": 0.1}})
    assert headline(astray.metrics) == "top-100 0.1000, RMSE -"
    found = comparison(astray, trained("b"))
    (line, _) = (line for line in printed(found).splitlines() if line.startswith("a "))
    assert re.match(r"a +0\.1000 +- +- +3", line)


# --- the terminal -----------------------------------------------------------------------------------------------------


def test_table_has_metrics_epochs_duration_and_gates() -> None:
    text = printed(comparison(trained("tutorial", accuracy=0.2), trained("best", accuracy=0.41, rmse=0.88)))
    header = next(line for line in text.splitlines() if line.startswith("preset"))
    for word in ("top-100", "RMSE", "MAE", "epochs", "training", "gates"):
        assert word in header
    assert "unseen" not in header
    measured, curves = (line for line in text.splitlines() if line.startswith("best"))
    assert re.match(r"best +0\.4100 +0\.8800 +0\.7000 +3 +6\.0 s +pass", measured)
    assert "▁▅█" in curves and "0.4100 (3)" in curves


def test_metrics_that_the_evaluator_lacks_have_no_column() -> None:
    each = trained("a")
    with_unseen = each.model_copy(update={"metrics": each.metrics | {"top_100_accuracy_unseen": 0.6}})
    assert "unseen" in printed(comparison(with_unseen))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(2, 20))
def test_sparkline_has_full_width_and_the_last_value(values: list[float], width: int) -> None:
    drawn = spark(values, width)
    assert len(drawn) == min(len(values), width)
    assert set(drawn) <= set(SPARKS)
    if max(values) > min(values) and len(values) <= width:
        assert drawn[values.index(max(values))] == SPARKS[-1] and drawn[values.index(min(values))] == SPARKS[0]


# --- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags, what they load, and the cells of the table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.cells: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._in_cell = tag in ("td", "th")
        self.loads += [value or "" for name, value in attributes if name in ("src", "href") and tag != "a"]

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = False


def test_page_works_offline_and_escapes_names() -> None:
    from commands.compare.curves_page import page

    text = page(comparison(trained("tutorial"), trained("<b>est</b>", 0), trained("<b>est</b>", 1)))
    found = Page(text)
    assert [load for load in found.loads if not load.startswith("data:")] == []
    assert "<b>est</b>" in found.cells and "tutorial" in found.cells
    assert "<h1>films: tutorial, &lt;b&gt;est&lt;/b&gt;</h1>" in text
    assert len(text) < 5_500_000


def test_the_figure_has_a_line_for_each_preset_and_panel_and_a_band_for_several_seeds() -> None:
    from commands.compare.curves_page import figure

    drawn = figure([trained("a"), trained("b", 0, 0.2), trained("b", 1, 0.4, epochs=2)])
    lines = [trace for trace in drawn.data if trace.mode == "lines+markers"]
    assert [(line.name, line.yaxis) for line in lines] == [("a", "y"), ("a", "y2"), ("b", "y"), ("b", "y2")]
    assert [line.showlegend for line in lines] == [True, False, True, False]
    # The third epoch is the first seed's alone: the second one stopped before it.
    assert lines[2].y == pytest.approx([(0.2 / 3 + 0.4 / 2) / 2, (0.4 / 3 + 0.4) / 2, 0.2])
    assert sum(trace.fill == "toself" for trace in drawn.data) == 2


# --- the workdir ------------------------------------------------------------------------------------------------------


def database(path: Path, rows: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table run (id integer)")
        connection.executemany("insert into run values (?)", [(row,) for row in range(rows)])


def rows_of(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("select count(*) from run").fetchone()[0])


def test_metadata_of_earlier_runs_is_copied_once(tmp_path: Path) -> None:
    source, target = tmp_path / "metadata.sqlite", tmp_path / "compare" / "metadata.sqlite"
    take_over_metadata(source, target)
    assert not target.exists()
    database(source, 3)
    before = source.read_bytes()
    take_over_metadata(source, target)
    assert rows_of(target) == 3 and source.read_bytes() == before
    with contextlib.closing(sqlite3.connect(target)) as connection, connection:
        connection.execute("insert into run values (9)")
    take_over_metadata(source, target)
    assert rows_of(target) == 4 and source.read_bytes() == before
