"""The HTML file that `tandem compare` writes: the table, and accuracy and RMSE by epoch; works offline."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import jinja2
import plotly.colors
import plotly.graph_objects
import plotly.io
from plotly.subplots import make_subplots

from commands.compare.comparison import CURVES, Comparison, PresetTraining, cells, headings

# A grey that is readable on white and on black, because the page follows the browser's colour scheme.
_INK = "#8a8a8a"
_GRID = "rgba(138, 138, 138, 0.25)"

_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 68rem; padding: 0 1rem; }
  h1 { font-size: 1.3rem; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; }
  th, td { padding: 0.2rem 0.8rem 0.2rem 0; text-align: right; white-space: nowrap; }
  th { color: #8a8a8a; font-weight: normal; }
  th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
  p { color: #8a8a8a; max-width: 46rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<div class="scroll">
<table>
<tr>{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}</tr>
{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
</div>
<p>{{ note }}</p>
{{ figure | safe }}
</body>
</html>
""")


def page(comparison: Comparison) -> str:
    """Return the HTML, with the plotting library embedded."""
    return _PAGE.render(
        title=f"{comparison.recipe}: {', '.join(row.preset for row in comparison.rows)}",
        headings=headings(comparison),
        rows=[cells(comparison, row) for row in comparison.rows],
        note=comparison.note,
        figure=plotly.io.to_html(
            figure(comparison.trained), full_html=False, include_plotlyjs=True, config={"displaylogo": False}
        ),
    )


def figure(trained: Sequence[PresetTraining]) -> plotly.graph_objects.Figure:
    """Draw two panels over the same epochs; with several seeds the mean and the range."""
    drawn = make_subplots(rows=len(CURVES), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    colours = plotly.colors.qualitative.D3
    presets = list(dict.fromkeys(each.preset for each in trained))
    for place, preset in enumerate(presets):
        colour = colours[place % len(colours)]
        for panel, column in enumerate(CURVES, start=1):
            curves = [each.curves[column] for each in trained if each.preset == preset and column in each.curves]
            if not curves:
                continue
            epochs = list(range(1, max(map(len, curves)) + 1))
            # A training that stopped early has no values for later epochs.
            values = [[curve[epoch - 1] for curve in curves if len(curve) >= epoch] for epoch in epochs]
            shared = {"legendgroup": preset, "line": {"color": colour, "width": 2}}
            drawn.add_scatter(
                x=epochs,
                y=[statistics.fmean(found) for found in values],
                name=preset,
                mode="lines+markers",
                marker={"size": 5},
                showlegend=panel == 1,
                row=panel,
                col=1,
                **shared,
            )
            if len(curves) > 1:
                drawn.add_scatter(
                    x=[*epochs, *reversed(epochs)],
                    y=[*map(max, values), *map(min, reversed(values))],
                    name=preset,
                    mode="none",
                    fill="toself",
                    fillcolor=colour,
                    opacity=0.15,
                    hoverinfo="skip",
                    legendgroup=preset,
                    showlegend=False,
                    row=panel,
                    col=1,
                )
    for panel, title in enumerate(CURVES.values(), start=1):
        drawn.update_yaxes(title_text=title, row=panel, col=1)
    drawn.update_xaxes(gridcolor=_GRID, zeroline=False)
    drawn.update_yaxes(gridcolor=_GRID, zeroline=False)
    drawn.update_xaxes(title_text="epoch", row=len(CURVES), col=1)
    drawn.update_layout(
        height=760,
        margin={"l": 60, "r": 10, "t": 60, "b": 50},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"color": _INK},
        hovermode="x unified",
        hoverlabel={"font": {"color": "#202020"}, "bgcolor": "#f4f4f4"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02},
    )
    return drawn
