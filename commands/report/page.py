"""Renders the report as one HTML file; style, charts and the plotting library are embedded."""

from __future__ import annotations

import base64
import functools
import gzip
import html
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from plotly.offline import get_plotlyjs

from commands.report import charts, words
from commands.report.gather import Facts
from commands.report.model_card import command, model_card
from pipeline.run_history import flat

SECTIONS = {
    "verdict": "Result",
    "recipe": "Recipe",
    "pipeline": "Pipeline",
    "data": "Data",
    "training": "Training",
    "metrics": "Metrics",
    "slices": "Slices",
    "calibration": "Calibration",
    "users": "Sample users",
    "card": "Model card",
}


def page(facts: Facts, out: Path) -> str:
    """Render the report.

    Args:
        facts: From `gather`.
        out: Path of the HTML file; links to artifacts are relative to its folder, so that both can be moved together.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("commands.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"duration": words.duration, "plain": _plain, "marked": _marked}
    return environment.get_template("report.html").render(
        facts=facts,
        run=facts.run,
        verdict=facts.verdict,
        words=words,
        sections=SECTIONS,
        summary=words.summary(facts.run),
        recipe=dict(flat(facts.run.recipe)),
        command=command(facts.arguments) if facts.arguments else None,
        href=functools.partial(_href, folder=out.absolute().parent),
        card=_html(model_card(facts)),
        dark=json.dumps(charts.LIGHT_TO_DARK),
        script=_asset("report.js"),
        style=_asset("report.css"),
        plotly=_compressed_plotly(),
        script_json=_script_json,
    )


def _html(markdown: str) -> str:
    """Render Markdown as HTML with headings two levels down; HTML in it is escaped."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1]) + 2}"
    return str(parser.renderer.render(tokens, parser.options, {}))


@functools.cache
def _compressed_plotly() -> str:
    """Return Plotly, gzipped and base64-encoded: a third of its size. The browser decompresses it."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def _marked(text: str) -> str:
    """Render text with `code` as HTML."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _script_json(text: str) -> str:
    """Escape JSON for a script element."""
    return text.replace("<", "\\u003c")


def _href(place: str, folder: Path) -> str:
    """Return a link to a file or folder; relative if it is local."""
    if "://" in place:
        return place
    return Path(os.path.relpath(place, folder)).as_posix()


def _plain(value: Any) -> str:
    """Format a value of the recipe as for `--set`."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value or "empty"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False) if value else "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
