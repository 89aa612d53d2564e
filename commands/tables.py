"""Tables on the terminal: gates and metrics of a run, the runs of a work folder, and the difference of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.evaluator.verdict import Bound, Condition, Verdict
from pipeline.run_history import Change, Run, RunDiff, Status
from recipe.evaluation import METRICS

MAIN_METRICS = {"top_100_accuracy": "top-100", "top_100_accuracy_unseen": "unseen", "rmse": "RMSE"}
"""Metrics in the list of runs, with their headings."""

_COMPARED_WITH: dict[Condition, str] = {
    "may_drop": "last blessed",
    "may_rise": "last blessed",
    "beats_baseline_by": "baseline",
}
"""The model that a condition compares the candidate model with."""
_COLOURS: dict[Status, str] = {"pushed": "green", "running": "yellow"}

# More metrics do not fit in 80 columns.
_SLICE_METRICS = 2


# --- gates and metrics of one run -------------------------------------------------------------------------------------


def verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    """Return the part of a `--json` object that holds the gate results."""
    return {
        "examples": verdict.examples,
        "baselines": verdict.baselines,
        "last_blessed_metrics": verdict.last_blessed,
        "last_blessed_problem": verdict.last_blessed_problem,
        "slices": [found.model_dump() for found in verdict.slices],
        "gates": [bound.model_dump() for bound in verdict.bounds],
    }


def print_gates(console: Console, verdict: Verdict) -> None:
    """Print one line per threshold of each gate: metric, value, threshold, the compared value and the margin."""
    table = _table("", "metric", right=("value", "threshold", "compared with", "margin"))
    for bound in verdict.bounds:
        compared = bound.limit is not None
        table.add_row(
            "[red]FAIL[/red]" if not bound.passed else "[green]pass[/green]" if compared else "[dim]skip[/dim]",
            bound.subject,
            _number(bound.measured),
            _threshold(bound),
            _compared(bound),
            _number(bound.margin, "+.4f"),
        )
    console.print(table)
    if verdict.last_blessed_problem:
        console.print(
            f"[yellow]{verdict.last_blessed_problem[:1].upper()}{verdict.last_blessed_problem[1:]}.[/yellow] "
            "Skipped the gates that compare with it (may_drop, may_rise).",
            soft_wrap=True,
        )


def print_measured(console: Console, verdict: Verdict) -> None:
    """Print all metrics on the eval split, and the metrics of the gates by slice."""
    table = _table(f"{verdict.examples:,} eval examples", right=("model", "baseline", "last blessed"))
    for name in METRICS:
        values = (verdict.metrics, verdict.baselines, verdict.last_blessed)
        table.add_row(name, *(_number(found.get(name)) for found in values))
    console.print()
    console.print(table)
    console.print(
        "[dim]Baseline: user and item means for rmse and mae, the most popular items for the other metrics.[/dim]\n",
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


def _table(*left: str, right: Sequence[str]) -> Table:
    """An empty table with these headings: columns of text on the left, numbers on the right."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in left:
        table.add_column(heading, no_wrap=heading in ("slice", "run"), overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _threshold(bound: Bound) -> str:
    if bound.limit is None:
        return "-"
    lower = bound.condition in ("at_least", "may_drop") or (
        bound.condition == "beats_baseline_by" and METRICS[bound.metric] == "higher"
    )
    return f"{'≥' if lower else '≤'} {_number(bound.limit)}"


def _compared(bound: Bound) -> str:
    other = _COMPARED_WITH.get(bound.condition)
    if other is None:
        return "-"
    if bound.reference is None:
        return "no baseline" if other == "baseline" else "no blessed model"
    return f"{other} {_number(bound.reference)}"


def _number(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else f"{value:{form}}"


# --- runs -------------------------------------------------------------------------------------------------------------


def runs_as_json(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the list that `tandem runs --json` prints, oldest run first."""
    return [
        {
            "run_id": run.run_id,
            "recipe": run.recipe_name,
            "started": run.started.isoformat(),
            "seconds": run.seconds,
            "status": run.status,
            "error": run.error,
            "rows": run.rows,
            "metrics": run.metrics,
            "pushed_version": run.pushed_version,
            "pushed_model": run.pushed_model,
        }
        for run in runs
    ]


def print_runs(console: Console, runs: Sequence[Run]) -> None:
    """Print one line per run, oldest first, with the main metrics."""
    shown = [name for name in MAIN_METRICS if any(name in run.metrics for run in runs)]
    recipes = {run.recipe_name for run in runs}
    table = _table(
        "run",
        *(["recipe"] if len(recipes) > 1 else []),
        "status",
        right=("seconds", *(MAIN_METRICS[name] for name in shown), "version"),
    )
    for run in runs:
        colour = _COLOURS.get(run.status, "red")
        table.add_row(
            run.run_id,
            *([run.recipe_name] if len(recipes) > 1 else []),
            f"[{colour}]{run.status}[/{colour}]",
            f"{run.seconds:,.0f}",
            *(_number(run.metrics.get(name)) for name in shown),
            run.pushed_version or "-",
        )
    console.print(table)


def print_diff(console: Console, diff: RunDiff) -> None:
    """Print the changes of recipe, rows, schema, statistics and metrics."""
    console.print(f"From {diff.before} to {diff.after}\n")
    for title, part in (
        ("Recipe", "recipe"),
        ("Rows", "rows"),
        ("Schema", "data_schema"),
        ("Statistics", "statistics"),
    ):
        changes: Sequence[Change] = getattr(diff, part)
        if part in diff.not_comparable:
            console.print(f"[bold]{title}[/bold]: {diff.not_comparable[part]}\n", soft_wrap=True)
        elif not changes:
            console.print(f"[bold]{title}[/bold]: unchanged\n")
        elif part == "data_schema":
            console.print(f"[bold]{title}[/bold]")
            for change in changes:
                console.print(f"  {change.key}\n    [red]-[/red] {escape(_value(change.before))}", soft_wrap=True)
                console.print(f"    [green]+[/green] {escape(_value(change.after))}\n", soft_wrap=True)
        else:
            table = _table(f"[bold]{title}[/bold]", right=("before", "after"))
            for change in changes:
                table.add_row(escape(change.key), escape(_value(change.before)), escape(_value(change.after)))
            console.print(table)
            console.print()
    if not diff.metrics:
        console.print("[bold]Metrics[/bold]: neither run was evaluated")
        return
    table = _table("[bold]Metrics[/bold]", right=("before", "after", "change"))
    for change in diff.metrics:
        table.add_row(change.key, _number(change.before), _number(change.after), _difference(change))
    console.print(table)


def _difference(change: Change) -> str:
    if change.before is None or change.after is None:
        return "-"
    difference = change.after - change.before
    if abs(difference) < 5e-5:
        return "[dim]0[/dim]"
    better = (difference > 0) == (METRICS.get(change.key, "higher") == "higher")
    return f"[{'green' if better else 'red'}]{difference:+.4f}[/]"


def _value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
