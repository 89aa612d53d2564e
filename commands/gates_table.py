"""Prints a verdict: how each gate decided, and what was measured beside the baselines and the last blessed model."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from components.evaluator.verdict import Bound, Condition, Verdict
from recipe.evaluation import METRICS, RATING_METRICS

_WANTED: dict[Condition, str] = {
    "at_least": "≥ {}",
    "at_most": "≤ {}",
    "may_drop": "≥ {} (last)",
    "may_rise": "≤ {} (last)",
}

# As many of the gates' metrics fit beside each other on 80 columns.
_SLICE_METRICS = 2


def verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    """What `--json` says of a verdict."""
    return {
        "examples": verdict.examples,
        "baselines": verdict.baselines,
        "last_blessed_metrics": verdict.last_blessed,
        "last_blessed_problem": verdict.last_blessed_problem,
        "slices": [found.model_dump() for found in verdict.slices],
        "gates": [bound.model_dump() for bound in verdict.bounds],
    }


def print_gates(console: Console, verdict: Verdict) -> None:
    """One line for each bound of each gate."""
    table = _table("", "gate", right=("measured", "wanted", "margin"))
    for bound in verdict.bounds:
        compared = bound.limit is not None
        table.add_row(
            "[red]FAIL[/red]" if not bound.passed else "[green]pass[/green]" if compared else "[dim]skip[/dim]",
            bound.subject,
            _number(bound.measured),
            _wanted(bound),
            _number(bound.margin, "+.4f"),
        )
    console.print(table)
    if verdict.last_blessed_problem:
        console.print(
            f"[yellow]{verdict.last_blessed_problem[:1].upper()}{verdict.last_blessed_problem[1:]}.[/yellow] "
            "Gates on the change against it were skipped.",
            soft_wrap=True,
        )


def print_measured(console: Console, verdict: Verdict) -> None:
    """All metrics of the whole eval split, and those of the gates by slice."""
    table = _table(f"{verdict.examples:,} eval examples", right=("model", "baseline", "last blessed"))
    for name in METRICS:
        values = (verdict.metrics, verdict.baselines, verdict.last_blessed)
        table.add_row(name, *(_number(found.get(name)) for found in values))
    console.print()
    console.print(table)
    console.print(
        "[dim]The baseline is user and item means for rmse and mae, else the most popular items.[/dim]\n",
        soft_wrap=True,
    )
    if not verdict.slices:
        return
    gated = list(dict.fromkeys(bound.metric for bound in verdict.bounds))[:_SLICE_METRICS]
    table = _table("slice", right=("examples", *(f"{name} (baseline)" for name in gated)))
    for found in verdict.slices:
        numbers = [f"{_number(found.metrics.get(name))} ({_number(found.baselines.get(name))})" for name in gated]
        table.add_row(f"{found.name}: {found.value}", f"{found.examples:,}", *numbers)
    console.print(table)


def _table(*left: str, right: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in left:
        table.add_column(heading, no_wrap=heading == "slice")
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _wanted(bound: Bound) -> str:
    if bound.limit is None:
        return "no last model"
    if bound.condition == "beats_baseline_by":
        source = "means" if bound.metric in RATING_METRICS else "popular"
        sign = "≥" if METRICS[bound.metric] == "higher" else "≤"
        return f"{sign} {_number(bound.limit)} ({source})"
    return _WANTED[bound.condition].format(_number(bound.limit))


def _number(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else f"{value:{form}}"
