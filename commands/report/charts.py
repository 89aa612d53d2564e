"""Draws the report's charts with Plotly: each has a title, a caption and its values as a table."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from commands.report.data_statistics import Calibration, Histogram
from commands.report.words import metric_words, value

# Colours of the light scheme and their replacements in the dark one (report.js). They differ in lightness, so that
# they can be distinguished with colour blindness.
LIGHT_TO_DARK = {
    "#1d5fbf": "#79b0ff",
    "#b8540a": "#ffa657",
    "#0b7a6f": "#4fd1c0",
    "#7a3fb0": "#c9a0ff",
    "#5f6875": "#a3adba",
    "#1b2330": "#e7ebf1",
    "#dfe4ec": "#323b49",
    "#fefefe": "#181f2a",
}
MODEL, BASELINE, LAST, FOURTH, MUTED, TEXT, GRID, PAPER = LIGHT_TO_DARK
SERIES = (MODEL, BASELINE, LAST, FOURTH, MUTED)

_SPLIT_COLOURS = {"train": MODEL, "eval": BASELINE}
_HEIGHT = 300
NAME_LENGTH = 26


@dataclasses.dataclass(frozen=True)
class Chart:
    """One chart of the report."""

    id: str
    title: str
    caption: str
    """One or two sentences; also the text alternative."""
    plot: str
    """Plotly's JSON."""
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The values that are drawn."""
    height: int = _HEIGHT


Curves = Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class SliceScore:
    """One metric on one slice."""

    name: str
    examples: int
    measured: float
    low: float | None
    high: float | None
    """Bounds of the 95 % confidence interval; None if there is no formula for the metric."""
    baseline: float | None = None


# --- data -------------------------------------------------------------------------------------------------------------


def ratings_chart(histogram: Histogram, label: str) -> Chart:
    """Draw the distribution of the labels by split."""
    shares = {name: counts / max(counts.sum(), 1) for name, counts in histogram.counts.items()}
    names = _bin_names(histogram)
    most = names[int(np.argmax(next(iter(histogram.counts.values()))))]
    figure = _figure(yaxis_title="fraction of the split", xaxis_title=label)
    for split, share in shares.items():
        figure.add_bar(x=names, y=share, name=split, marker_color=_SPLIT_COLOURS[split],
                       hovertemplate="%{x}: %{y:.1%}<extra>" + split + "</extra>")  # fmt: skip
    figure.update_yaxes(tickformat=".0%")
    figure.update_xaxes(type="category")
    return _chart(
        figure,
        "ratings",
        f"Values of {label}",
        f"Most frequent value: {most}. The distributions of the splits should be similar.",
        (label, *shares),
        [(name, *(f"{share[place]:.1%}" for share in shares.values())) for place, name in enumerate(names)],
    )


def times_chart(histogram: Histogram) -> Chart:
    """Draw the number of interactions over time by split."""
    days = [datetime.datetime.fromtimestamp(edge, datetime.UTC) for edge in histogram.edges]
    middles = [
        datetime.datetime.fromtimestamp((low + high) / 2, datetime.UTC)
        for low, high in zip(histogram.edges[:-1], histogram.edges[1:], strict=True)
    ]
    figure = _figure(barmode="stack", yaxis_title="interactions")
    for split, counts in histogram.counts.items():
        figure.add_bar(x=middles, y=counts, name=split, marker_color=_SPLIT_COLOURS[split],
                       hovertemplate="%{x|%d %b %Y}: %{y:,}<extra>" + split + "</extra>")  # fmt: skip
    figure.update_layout(bargap=0.05, legend_traceorder="normal")
    return _chart(
        figure,
        "times",
        "Interactions over time",
        f"From {days[0]:%d %B %Y} to {days[-1]:%d %B %Y} (UTC). A gap or a sudden drop indicates missing data.",
        ("from", *histogram.counts),
        [
            (f"{day:%Y-%m-%d}", *(f"{counts[place]:,}" for counts in histogram.counts.values()))
            for place, day in enumerate(days[:-1])
        ],
    )


def activity_chart(histogram: Histogram, median: float, users: int) -> Chart:
    """Draw the number of users by number of interactions."""
    (counts,) = histogram.counts.values()
    names = [
        f"{int(low):,}" if high - low == 1 else f"{int(low):,}–{int(high) - 1:,}"
        for low, high in zip(histogram.edges[:-1], histogram.edges[1:], strict=True)
    ]
    first = int(np.flatnonzero(counts)[0])
    names, counts = names[first:], counts[first:]
    figure = _figure(xaxis_title="users", yaxis_title="interactions in the train split")
    # Horizontal bars, because their names do not fit side by side on a phone.
    figure.add_bar(
        x=counts, y=names, orientation="h", marker_color=MODEL, hovertemplate="%{y}: %{x:,} users<extra></extra>"
    )
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    return _chart(
        figure,
        "activity",
        "User activity",
        f"{users:,} users; median number of interactions in the train split: {median:g}.",
        ("interactions", "users"),
        [(name, f"{count:,}") for name, count in zip(names, counts, strict=True)],
    )


def popularity_chart(share_of_items: np.ndarray, share_of_interactions: np.ndarray) -> Chart:
    """Draw the Lorenz curve of item popularity."""
    tenth = float(np.interp(0.1, share_of_items, share_of_interactions))
    figure = _figure(xaxis_title="fraction of the catalogue", yaxis_title="fraction of interactions")
    figure.add_scatter(x=share_of_items, y=share_of_interactions, mode="lines", line={"color": MODEL, "width": 2.5},
                       name="most popular first", hovertemplate="top %{x:.0%}: %{y:.1%}<extra></extra>")  # fmt: skip
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": MUTED, "width": 1, "dash": "dot"},
                       name="uniform popularity", hoverinfo="skip")  # fmt: skip
    figure.update_xaxes(tickformat=".0%", range=[0, 1])
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    shown = [0.01, 0.05, 0.1, 0.2, 0.5, 1.0]
    return _chart(
        figure,
        "popularity",
        "Item popularity",
        f"The most popular 10% of the catalogue have {tenth:.0%} of the interactions.",
        ("most popular", "fraction of interactions"),
        [(f"{one:.0%}", f"{np.interp(one, share_of_items, share_of_interactions):.1%}") for one in shown],
    )


# --- training ---------------------------------------------------------------------------------------------------------


LOG_SCALE = 50
"""Ratio of the largest to the smallest loss above which the axis is logarithmic."""


def curve_charts(runs: Mapping[str, Curves]) -> list[Chart]:
    """Draw one chart per kind of curve (loss, accuracy, RMSE) over epochs, with the curves of every run.

    Args:
        runs: Curves by label of the run and name of the curve, from the Trainer's `curves.json`.
    """
    kinds: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for curves in runs.values() for name in curves):
        varies = any(len(set(curves[name])) > 1 for curves in runs.values() if name in curves)
        if varies and not _repeats(name, runs):
            kinds.setdefault(_curve_kind(name), []).append(name)
    order = ("loss", "top-k accuracy", "rating error", "other curves")
    return [_curve_chart(kind, kinds[kind], runs) for kind in order if kind in kinds]


def _curve_kind(name: str) -> str:
    if "loss" in name:
        return "loss"
    if "top_" in name or "accuracy" in name:
        return "top-k accuracy"
    return "rating error" if "rmse" in name or "mae" in name else "other curves"


def _repeats(name: str, runs: Mapping[str, Curves]) -> bool:
    """Return whether an earlier curve is equal in every run, as Keras's total loss without regularisation."""
    names = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    return any(
        all(curves.get(other) == curves.get(name) for curves in runs.values()) for other in names[: names.index(name)]
    )


def _curve_chart(kind: str, names: Sequence[str], runs: Mapping[str, Curves]) -> Chart:
    figure = _figure(xaxis_title="epoch", yaxis_title=kind)
    several = len(runs) > 1
    rows, header = [], []
    for place, (run, curves) in enumerate(runs.items()):
        shown = [name for name in names if name in curves]
        if place:
            # Of the other runs only the main curve: all curves of ten runs are not readable.
            shown = [] if kind == "other curves" else [name for name in shown if name == _main_curve(shown)]
        for line, name in enumerate(shown):
            label = (
                f"{run}: {_curve_name(name)}" if several and len(names) > 1 else run if several else _curve_name(name)
            )
            colour = SERIES[(place if several else line) % len(SERIES)]
            dash = ("solid", "dash", "dot", "dashdot")[(line if several else 0) % 4]
            epochs = list(range(1, len(curves[name]) + 1))
            figure.add_scatter(x=epochs, y=list(curves[name]), name=label, mode="lines+markers",
                               line={"color": colour, "width": 2, "dash": dash}, marker={"size": 5},
                               hovertemplate="epoch %{x}: %{y:.4g}<extra>" + label + "</extra>")  # fmt: skip
            header.append(label)
            rows.append([float(one) for one in curves[name]])
    longest = max(len(row) for row in rows)
    figure.update_xaxes(dtick=max(1, math.ceil(longest / 10)))
    if kind == "top-k accuracy":
        figure.update_yaxes(tickformat=".0%")
    values = [value for row in rows for value in row]
    if kind == "loss" and several and min(values) > 0 and max(values) > LOG_SCALE * min(values):
        # Losses with different weights have different scales.
        figure.update_yaxes(type="log")
    first, last, form = rows[0][0], rows[0][-1], ".1%" if kind == "top-k accuracy" else ".4g"
    titles = {
        "loss": "Training loss",
        "top-k accuracy": "Accuracy by epoch",
        "rating error": "Rating error by epoch",
        "other curves": "Other curves",
    }
    return _chart(
        figure,
        f"curve-{kind.replace(' ', '-')}",
        titles[kind],
        f"{header[0][:1].upper()}{header[0][1:]}: {first:{form}} in epoch 1, {last:{form}} in epoch {len(rows[0])}.",
        ("epoch", *header),
        [
            (str(epoch + 1), *(f"{row[epoch]:.4g}" if epoch < len(row) else "" for row in rows))
            for epoch in range(longest)
        ],
    )


def _main_curve(names: Sequence[str]) -> str | None:
    """Return the main curve of a kind: on the validation split if there is one, over the whole catalogue."""
    measured = [name for name in names if name.startswith("validation_")]
    return next((name for name in (*measured, *names) if "unseen" not in name), None)


def _curve_name(name: str) -> str:
    return name.replace("_", " ").replace("rmse", "RMSE")


# --- quality ----------------------------------------------------------------------------------------------------------


def accuracy_chart(series: Mapping[str, Mapping[int, float]], unseen: bool) -> Chart | None:
    """Draw top-k accuracy over k of the model and the compared models; None with fewer than two values of k."""
    series = {name: dict(sorted(points.items())) for name, points in series.items() if len(points) > 1}
    if not series:
        return None
    figure = _figure(xaxis_title="k", yaxis_title="top-k accuracy")
    # Each line has its own marker, because colour alone is not accessible.
    for (name, points), colour, mark in zip(
        series.items(), SERIES, ("circle", "diamond", "square", "x", "cross"), strict=False
    ):
        figure.add_scatter(x=list(points), y=list(points.values()), name=name, mode="lines+markers",
                           line={"color": colour, "width": 2.5 if colour == MODEL else 1.5},
                           marker={"size": 8, "symbol": mark},
                           hovertemplate="top %{x}: %{y:.1%}<extra>" + name + "</extra>")  # fmt: skip
    ks = sorted({k for points in series.values() for k in points})
    figure.update_xaxes(type="log", tickvals=ks, ticktext=[str(k) for k in ks])
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    among = "without the user's items of the train split" if unseen else "over the whole catalogue"
    return _chart(
        figure,
        "accuracy-unseen" if unseen else "accuracy",
        "Top-k accuracy" + (", unseen items" if unseen else ""),
        f"Fraction of examples whose item is in the top k, {among}.",
        ("k", *series),
        [(str(k), *(f"{points[k]:.1%}" if k in points else "" for points in series.values())) for k in ks],
    )


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the confidence interval of a fraction (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Args:
        share: Observed fraction, 0 to 1.
        count: Number of observations.
        z: Quantile of the normal distribution; 1.96 is 95 %.
    """
    if count <= 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def error_interval(rmse: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the approximate confidence interval of a root mean squared error.

    For normally distributed errors, its standard error is rmse / sqrt(2 n): Ahn and Fessler 2003, "Standard
    errors of mean, variance, and standard deviation estimators".
    """
    half = z * rmse / math.sqrt(2 * count) if count > 0 else math.inf
    return max(0.0, rmse - half), rmse + half


def slice_chart(metric: str, scores: Sequence[SliceScore], whole: float | None) -> Chart:
    """Draw slices as bars, worst first, with confidence intervals; the whole eval split as a line."""
    words = metric_words(metric)
    scores = sorted(scores, key=lambda score: score.measured, reverse=not words.higher_is_better)
    # Plotly draws the first bar at the bottom.
    drawn = list(reversed(scores))
    names = [score.name for score in drawn]
    figure = _figure(xaxis_title=words.label)
    known = [score.low is not None and score.high is not None for score in drawn]
    figure.add_bar(
        x=[score.measured for score in drawn],
        y=names,
        orientation="h",
        marker_color=MODEL,
        width=0.42,
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [(score.high or 0) - score.measured if ok else 0 for score, ok in zip(drawn, known, strict=True)],
            "arrayminus": [
                score.measured - (score.low or 0) if ok else 0 for score, ok in zip(drawn, known, strict=True)
            ],
            "color": TEXT,
            "thickness": 1.5,
            "width": 4,
        },
        customdata=[[score.examples] for score in drawn],
        name="model",
        hovertemplate="%{y}: %{x:.4g} of %{customdata[0]:,} examples<extra></extra>",
    )
    compared = [score for score in drawn if score.baseline is not None]
    if compared:
        figure.add_scatter(
            x=[score.baseline for score in compared],
            y=[score.name for score in compared],
            mode="markers",
            marker={"symbol": "diamond", "size": 10, "color": BASELINE},
            name="baseline",
            hovertemplate="baseline: %{x:.4g}<extra></extra>",
        )
    if whole is not None:
        figure.add_vline(x=whole, line={"color": MUTED, "width": 1.5, "dash": "dot"}, layer="below")
    # Names are above their bars: next to them they would take half of a phone's width.
    for score in drawn:
        figure.add_annotation(
            x=0,
            y=score.name,
            text=f"{_short(score.name)} · {score.examples:,} · {value(metric, score.measured)}",
            showarrow=False,
            xanchor="left",
            yshift=18,
            font={"size": 12},
            bgcolor=PAPER,
            borderpad=0,
        )
    figure.update_yaxes(showticklabels=False, showgrid=False, range=[-0.5, len(drawn) - 0.3])
    figure.update_layout(showlegend=bool(compared), margin={"l": 8, "t": 46 if compared else 24})
    if words.is_share:
        figure.update_xaxes(tickformat=".0%")
    figure.update_xaxes(rangemode="tozero")
    worst = scores[0]
    overall = f" Dotted line: whole eval split, {value(metric, whole)}." if whole is not None else ""
    baseline = " Diamonds: baseline." if compared else ""
    return _chart(
        figure,
        f"slices-{metric}",
        f"{words.label} by slice",
        f"Worst slice: {worst.name}, {value(metric, worst.measured)}. Labels: slice, number of examples, value. "
        f"Whiskers: 95 % confidence interval.{overall}{baseline}",
        ("slice", "examples", words.label, "95 % confidence", "baseline"),
        [
            (
                score.name,
                f"{score.examples:,}",
                value(metric, score.measured),
                f"{value(metric, score.low)} to {value(metric, score.high)}" if score.low is not None else "",
                value(metric, score.baseline),
            )
            for score in scores
        ],
        height=90 + 52 * len(scores),
    )


def calibration_chart(calibration: Calibration, label: str) -> Chart:
    """Draw the mean actual over the mean predicted rating, in bins of equal count."""
    low = float(min(calibration.predicted.min(), (calibration.actual - calibration.error).min()))
    high = float(max(calibration.predicted.max(), (calibration.actual + calibration.error).max()))
    off = float(np.average(np.abs(calibration.actual - calibration.predicted), weights=calibration.counts))
    figure = _figure(xaxis_title=f"predicted {label}", yaxis_title=f"actual {label}, mean")
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", name="perfect",
                       line={"color": MUTED, "width": 1.5, "dash": "dot"}, hoverinfo="skip")  # fmt: skip
    figure.add_scatter(x=calibration.predicted, y=calibration.actual, mode="lines+markers", name="model",
                       line={"color": MODEL, "width": 2}, marker={"size": 7},
                       error_y={"type": "data", "array": calibration.error, "thickness": 1.5, "width": 3},
                       hovertemplate="predicted %{x:.2f}, actual %{y:.2f}<extra></extra>")  # fmt: skip
    return _chart(
        figure,
        "calibration",
        "Calibration",
        f"Mean absolute difference of predicted and actual mean: {off:.2f}. Dotted line: perfect calibration.",
        ("predicted", "actual", "± 95 %", "examples"),
        [
            (f"{predicted:.2f}", f"{actual:.2f}", f"{error:.2f}", f"{count:,}")
            for predicted, actual, error, count in zip(
                calibration.predicted, calibration.actual, calibration.error, calibration.counts, strict=True
            )
        ],
    )


def residuals_chart(calibration: Calibration) -> Chart:
    """Draw the distribution of actual minus predicted ratings."""
    counts, edges = np.histogram(calibration.residuals, 24)
    shares, middles = counts / counts.sum(), (edges[:-1] + edges[1:]) / 2
    near, off = float(np.mean(np.abs(calibration.residuals) <= 0.5)), float(np.mean(calibration.residuals))
    figure = _figure(xaxis_title="actual minus predicted", yaxis_title="fraction of examples")
    figure.add_bar(x=middles, y=shares, marker_color=MODEL, hovertemplate="%{x:.2f}: %{y:.1%}<extra></extra>")
    figure.update_layout(bargap=0.05)
    figure.update_yaxes(tickformat=".0%")
    return _chart(
        figure,
        "residuals",
        "Residuals",
        f"{near:.0%} of the predicted ratings have an error of at most 0.5. Mean residual: {off:+.3f}.",
        ("from", "to", "fraction"),
        [
            (f"{low:.2f}", f"{high:.2f}", f"{share:.1%}")
            for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True)
        ],
    )


# --- drawing ----------------------------------------------------------------------------------------------------------


def _figure(barmode: str = "group", xaxis_title: str = "", yaxis_title: str = "") -> go.Figure:
    axis: dict[str, Any] = {
        "gridcolor": GRID, "linecolor": GRID, "zerolinecolor": GRID, "automargin": True,
        # A swipe scrolls the page instead of zooming the chart.
        "fixedrange": True,
        "title": {"font": {"size": 13}, "standoff": 8},
    }  # fmt: skip
    return go.Figure(
        layout=go.Layout(
            template="none",
            barmode=barmode,
            font={"family": "system-ui, sans-serif", "size": 13, "color": TEXT},
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            margin={"l": 12, "r": 12, "t": 36, "b": 12},
            legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 13}},
            hoverlabel={"font": {"size": 13}},
            dragmode=False,
            xaxis=axis | {"title": {"text": xaxis_title, **axis["title"]}},
            yaxis=axis | {"title": {"text": yaxis_title, **axis["title"]}},
        )
    )


def _chart(
    figure: go.Figure,
    id_: str,
    title: str,
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    height: int = _HEIGHT,
) -> Chart:
    figure.update_layout(height=height)
    return Chart(id_, title, caption, str(figure.to_json()), tuple(header), tuple(map(tuple, rows)), height)


def _short(name: str) -> str:
    """Shorten a name to fit above a bar on a phone."""
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _bin_names(histogram: Histogram) -> list[str]:
    if histogram.discrete:
        return [f"{one:g}" for one in histogram.edges]
    return [f"{low:.3g} to {high:.3g}" for low, high in zip(histogram.edges[:-1], histogram.edges[1:], strict=True)]
