"""How `tandem runs` and `tandem diff` print what `pipeline.runs` found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.runs import Change, Run, RunDiff, Status
from recipe.evaluation import METRICS

# What a line about a run shows, where it was measured, and its words for it.
MAIN_METRICS = {"top_100_accuracy": "top-100", "top_100_accuracy_unseen": "unseen", "rmse": "RMSE"}

_COLOURS: dict[Status, str] = {"pushed": "green", "running": "yellow"}


def runs_as_json(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What `tandem runs --json` prints, oldest first."""
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
    """One line a run, oldest first, with the main metrics that any of them has."""
    shown = [name for name in MAIN_METRICS if any(name in run.metrics for run in runs)]
    recipes = {run.recipe_name for run in runs}
    table = _table(
        "run",
        *(["recipe"] if len(recipes) > 1 else []),
        "verdict",
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
    """What changed, part by part."""
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
            console.print(f"[bold]{title}[/bold]: the same\n")
        elif part == "data_schema":
            console.print(f"[bold]{title}[/bold]")
            for change in changes:
                console.print(f"  {change.key}\n    [red]-[/red] {escape(_value(change.before))}", soft_wrap=True)
                console.print(f"    [green]+[/green] {escape(_value(change.after))}\n", soft_wrap=True)
        else:
            table = _table(title, right=("before", "after"))
            for change in changes:
                table.add_row(escape(change.key), escape(_value(change.before)), escape(_value(change.after)))
            console.print(table)
            console.print()
    if not diff.metrics:
        console.print("[bold]Metrics[/bold]: neither run measured any")
        return
    table = _table("Metrics", right=("before", "after", "change"))
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


def _table(first: str, *left: str, right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(f"[bold]{first}[/bold]", no_wrap=first == "run", overflow="fold")
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
