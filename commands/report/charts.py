"""The page's charts, drawn with Plotly: each with a title, a sentence on what to see, and its numbers as a table."""

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

# Colours of the light page and what the dark page takes for them; page.js exchanges them. Told apart by the
# colour-blind too (blue, orange, green-blue, purple of different lightness).
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
    """One chart of the page."""

    id: str
    title: str
    takeaway: str
    """What the chart shows, in a sentence; also its text alternative."""
    plot: str
    """Plotly's JSON."""
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The numbers that are drawn."""
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
    """Ends of the 95 % confidence interval; None where there is no formula for one."""
    baseline: float | None = None


# --- data -------------------------------------------------------------------------------------------------------------


def ratings_chart(histogram: Histogram, label: str) -> Chart:
    """Shares of the ratings by split."""
    shares = {name: counts / max(counts.sum(), 1) for name, counts in histogram.counts.items()}
    names = _bin_names(histogram)
    most = names[int(np.argmax(next(iter(histogram.counts.values()))))]
    figure = _figure(yaxis_title="share of the split", xaxis_title=label)
    for split, share in shares.items():
        figure.add_bar(x=names, y=share, name=split, marker_color=_SPLIT_COLOURS[split],
                       hovertemplate="%{x}: %{y:.1%}<extra>" + split + "</extra>")  # fmt: skip
    figure.update_yaxes(tickformat=".0%")
    figure.update_xaxes(type="category")
    return _chart(
        figure,
        "ratings",
        f"Values of {label}",
        f"{most} is the most frequent value. The splits should look alike.",
        (label, *shares),
        [(name, *(f"{share[place]:.1%}" for share in shares.values())) for place, name in enumerate(names)],
    )


def times_chart(histogram: Histogram) -> Chart:
    """SplitInteractions over time by split."""
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
        "When interactions happened",
        f"From {days[0]:%d %B %Y} to {days[-1]:%d %B %Y} (UTC). A gap or a cliff is a sign of missing data.",
        ("from", *histogram.counts),
        [
            (f"{day:%Y-%m-%d}", *(f"{counts[place]:,}" for counts in histogram.counts.values()))
            for place, day in enumerate(days[:-1])
        ],
    )


def activity_chart(histogram: Histogram, median: float, users: int) -> Chart:
    """Users by number of interactions."""
    (counts,) = histogram.counts.values()
    names = [
        f"{int(low):,}" if high - low == 1 else f"{int(low):,}–{int(high) - 1:,}"
        for low, high in zip(histogram.edges[:-1], histogram.edges[1:], strict=True)
    ]
    first = int(np.flatnonzero(counts)[0])
    names, counts = names[first:], counts[first:]
    figure = _figure(xaxis_title="users", yaxis_title="interactions in train")
    # Lying bars: their names would not fit beside each other on a phone.
    figure.add_bar(
        x=counts, y=names, orientation="h", marker_color=MODEL, hovertemplate="%{y}: %{x:,} users<extra></extra>"
    )
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    return _chart(
        figure,
        "activity",
        "How active users are",
        f"{users:,} users; half of them have {median:g} interactions or more in train.",
        ("interactions", "users"),
        [(name, f"{count:,}") for name, count in zip(names, counts, strict=True)],
    )


def popularity_chart(share_of_items: np.ndarray, share_of_interactions: np.ndarray) -> Chart:
    """The Lorenz curve of item popularity."""
    tenth = float(np.interp(0.1, share_of_items, share_of_interactions))
    figure = _figure(xaxis_title="share of the catalogue", yaxis_title="share of interactions")
    figure.add_scatter(x=share_of_items, y=share_of_interactions, mode="lines", line={"color": MODEL, "width": 2.5},
                       name="most popular first", hovertemplate="top %{x:.0%}: %{y:.1%}<extra></extra>")  # fmt: skip
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": MUTED, "width": 1, "dash": "dot"},
                       name="all equally popular", hoverinfo="skip")  # fmt: skip
    figure.update_xaxes(tickformat=".0%", range=[0, 1])
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    shown = [0.01, 0.05, 0.1, 0.2, 0.5, 1.0]
    return _chart(
        figure,
        "popularity",
        "How popularity is spread",
        f"The most popular tenth of the catalogue gets {tenth:.0%} of the interactions.",
        ("most popular", "share of interactions"),
        [(f"{one:.0%}", f"{np.interp(one, share_of_items, share_of_interactions):.1%}") for one in shown],
    )


# --- training ---------------------------------------------------------------------------------------------------------


LOG_SCALE = 50
"""How many times the smallest loss the largest may be until the axis becomes logarithmic."""


def curve_charts(runs: Mapping[str, Curves]) -> list[Chart]:
    """One chart a kind of curve (loss, accuracy, RMSE) over epochs, with the curves of every run.

    Args:
        runs: Curves by name, for each run by its label; `curves.json` of a Trainer has them.
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
    """Whether an earlier curve is the same in every run, as Keras's total loss is where nothing is added to it."""
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
            # Of the runs beside this one only what they are compared by: all curves of ten runs are a thicket.
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
        # Losses with other weights are of another size.
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
        f"{header[0][:1].upper()}{header[0][1:]} went from {first:{form}} to {last:{form}} in {len(rows[0])} epochs.",
        ("epoch", *header),
        [
            (str(epoch + 1), *(f"{row[epoch]:.4g}" if epoch < len(row) else "" for row in rows))
            for epoch in range(longest)
        ],
    )


def _main_curve(names: Sequence[str]) -> str | None:
    """The one of a kind that runs are compared by: on the validation slice, if there is one, and over all items."""
    measured = [name for name in names if name.startswith("validation_")]
    return next((name for name in (*measured, *names) if "unseen" not in name), None)


def _curve_name(name: str) -> str:
    return name.replace("_", " ").replace("rmse", "RMSE")


# --- quality ----------------------------------------------------------------------------------------------------------


def accuracy_chart(series: Mapping[str, Mapping[int, float]], unseen: bool) -> Chart | None:
    """Top-k accuracy over k of the model and what it is compared with; None where fewer than two k were measured."""
    series = {name: dict(sorted(points.items())) for name, points in series.items() if len(points) > 1}
    if not series:
        return None
    figure = _figure(xaxis_title="k, length of the list", yaxis_title="top-k accuracy")
    # All lines have their own mark too, because colour alone is not for everyone.
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
    among = "Items that the user has met in train are left out." if unseen else "Over the whole catalogue."
    return _chart(
        figure,
        "accuracy-unseen" if unseen else "accuracy",
        "Accuracy by length of the list" + (", unseen items" if unseen else ""),
        f"How often the item that a user chose is among the first k. {among}",
        ("k", *series),
        [(str(k), *(f"{points[k]:.1%}" if k in points else "" for points in series.values())) for k in ks],
    )


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Args:
        share: What was observed, from 0 to 1.
        count: Of how many.
        z: Standard errors; 1.96 is 95 %.
    """
    if count <= 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def error_interval(rmse: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Approximate confidence interval of a root mean squared error.

    Where errors are normally distributed, its standard error is rmse / sqrt(2 n): Ahn and Fessler 2003, "Standard
    errors of mean, variance, and standard deviation estimators".
    """
    half = z * rmse / math.sqrt(2 * count) if count > 0 else math.inf
    return max(0.0, rmse - half), rmse + half


def slice_chart(metric: str, scores: Sequence[SliceScore], whole: float | None) -> Chart:
    """Slices as bars, worst first, with intervals; the whole eval split as a line."""
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
    # Names stand above their bars: beside them they would take half of a phone's width.
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
    overall = f" The dotted line is the whole eval split, {value(metric, whole)}." if whole is not None else ""
    better = "" if compared == [] else " Diamonds are the baseline."
    return _chart(
        figure,
        f"slices-{metric}",
        f"{words.label} by slice",
        f"Worst first: {worst.name} with {value(metric, worst.measured)}. After each name stand the number of examples "
        f"and the value; whiskers are 95 % confidence."
        f"{overall}{better}",
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
    """Mean actual against mean predicted rating, in bins of equal count."""
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
        "Do predicted ratings come true?",
        f"On average the real mean is {off:.2f} away from the predicted one. On the dotted line they would be equal.",
        ("predicted", "actual", "± 95 %", "examples"),
        [
            (f"{predicted:.2f}", f"{actual:.2f}", f"{error:.2f}", f"{count:,}")
            for predicted, actual, error, count in zip(
                calibration.predicted, calibration.actual, calibration.error, calibration.counts, strict=True
            )
        ],
    )


def residuals_chart(calibration: Calibration) -> Chart:
    """Distribution of actual minus predicted."""
    counts, edges = np.histogram(calibration.residuals, 24)
    shares, middles = counts / counts.sum(), (edges[:-1] + edges[1:]) / 2
    near, off = float(np.mean(np.abs(calibration.residuals) <= 0.5)), float(np.mean(calibration.residuals))
    figure = _figure(xaxis_title="actual minus predicted", yaxis_title="share of the examples")
    figure.add_bar(x=middles, y=shares, marker_color=MODEL, hovertemplate="%{x:.2f}: %{y:.1%}<extra></extra>")
    figure.update_layout(bargap=0.05)
    figure.update_yaxes(tickformat=".0%")
    return _chart(
        figure,
        "residuals",
        "How far predictions are off",
        f"{near:.0%} of the predictions are within half a point. On average they are {abs(off):.3f} too "
        f"{'high' if off < 0 else 'low'}.",
        ("from", "to", "share"),
        [
            (f"{low:.2f}", f"{high:.2f}", f"{share:.1%}")
            for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True)
        ],
    )


# --- drawing ----------------------------------------------------------------------------------------------------------


def _figure(barmode: str = "group", xaxis_title: str = "", yaxis_title: str = "") -> go.Figure:
    axis: dict[str, Any] = {
        "gridcolor": GRID, "linecolor": GRID, "zerolinecolor": GRID, "automargin": True,
        # Dragging a finger scrolls the page and does not zoom the chart.
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
    takeaway: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    height: int = _HEIGHT,
) -> Chart:
    figure.update_layout(height=height)
    return Chart(id_, title, takeaway, str(figure.to_json()), tuple(header), tuple(map(tuple, rows)), height)


def _short(name: str) -> str:
    """A name that fits above a bar on a phone."""
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _bin_names(histogram: Histogram) -> list[str]:
    if histogram.discrete:
        return [f"{one:g}" for one in histogram.edges]
    return [f"{low:.3g} to {high:.3g}" for low, high in zip(histogram.edges[:-1], histogram.edges[1:], strict=True)]
