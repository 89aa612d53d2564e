"""The report as one HTML page that needs nothing else: style, charts and the plotting library are inside."""

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
from pipeline.runs import flat

SECTIONS = {
    "verdict": "Verdict",
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
    """The whole page.

    Args:
        facts: From `gather`.
        out: Where the page will lie; links to artifacts are relative to its folder, so that both can move together.
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
        command=command(facts.asked) if facts.asked else None,
        href=functools.partial(_href, folder=out.absolute().parent),
        card=_html(model_card(facts)),
        dark=json.dumps(charts.LIGHT_TO_DARK),
        script=_asset("report.js"),
        style=_asset("report.css"),
        plotly=_compressed_plotly(),
        script_json=_script_json,
    )


def _html(markdown: str) -> str:
    """Markdown as HTML, one level of headings deeper; HTML in it stays text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1]) + 2}"
    return str(parser.renderer.render(tokens, parser.options, {}))


@functools.cache
def _compressed_plotly() -> str:
    """Plotly, gzipped, as base64: a third of its size. The browser unpacks it (`DecompressionStream`)."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def _marked(text: str) -> str:
    """Text with `code` as HTML."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _script_json(text: str) -> str:
    """JSON that may stand in a script element, whatever text is in it."""
    return text.replace("<", "\\u003c")


def _href(place: str, folder: Path) -> str:
    """A link to a file or folder: relative where it is a local one."""
    if "://" in place:
        return place
    return Path(os.path.relpath(place, folder)).as_posix()


def _plain(value: Any) -> str:
    """A value of the recipe, as `--set` takes it."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value or "empty"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False) if value else "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
