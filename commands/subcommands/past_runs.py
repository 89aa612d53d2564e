"""Subcommands about past runs: `runs`, `gates`, `report` and `diff`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from commands.subcommands.shared_options import AsJson, RunName, RunsDir


def runs(workdir: RunsDir = Path("work/movielens"), as_json: AsJson = False) -> None:
    """List the runs of a work folder: status, duration, main metrics and pushed version."""
    from rich.console import Console

    from commands.tables import print_runs, runs_as_json
    from pipeline.run_history import list_runs

    found = list_runs(workdir)
    if as_json:
        print(json.dumps(runs_as_json(found), indent=1))
    else:
        print_runs(Console(highlight=False), found)


def gates(run: RunName = "latest", workdir: RunsDir = Path("work/movielens"), as_json: AsJson = False) -> None:
    """Print the gate results and metrics of a run, with baselines and slices."""
    from rich.console import Console

    from commands.tables import print_gates, print_measured, verdict_as_json
    from pipeline.run_history import find_run, read_verdict

    result, verdict = read_verdict(workdir, find_run(workdir, run))
    if as_json:
        found = {"run_id": result.run_id, "recipe": result.recipe_name, "blessed": verdict.blessed}
        print(json.dumps({**found, "metrics": verdict.metrics, **verdict_as_json(verdict)}, indent=1))
        return
    console = Console(highlight=False)
    decision = "[green bold]blessed[/green bold]" if verdict.blessed else "[red bold]not blessed[/red bold]"
    console.print(f"Run {result.run_id} of {result.recipe_name}: {decision}\n", soft_wrap=True)
    print_gates(console, verdict)
    for bound in verdict.failures():
        console.print(f"  {bound}", soft_wrap=True)
    print_measured(console, verdict)


def report(
    run: RunName = "latest",
    workdir: RunsDir = Path("work/movielens"),
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    model_card: Annotated[Path | None, typer.Option(help="Markdown file for the model card.")] = None,
) -> None:
    """Write the report of a run as one HTML file: gates, data, training, metrics, slices and sample users."""
    from commands.report.writing import write_report

    run_id = write_report(workdir, run, out, model_card)
    print(f"Wrote the report of run {run_id} to {out}" + (f" and its model card to {model_card}" if model_card else ""))


def diff(
    run_a: Annotated[str, typer.Argument(help="Earlier run: id, prefix, `latest` or `previous`.")],
    run_b: Annotated[str, typer.Argument(help="Later run.")],
    workdir: RunsDir = Path("work/movielens"),
    as_json: AsJson = False,
) -> None:
    """Print the differences of two runs: recipe, data and metrics."""
    from rich.console import Console

    from commands.tables import print_diff
    from pipeline.lineage import Lineage
    from pipeline.run_history import diff_runs, find_run, read_run

    lineage = Lineage(workdir)
    before, after = (read_run(workdir, find_run(workdir, name, lineage), lineage) for name in (run_a, run_b))
    found = diff_runs(workdir, before, after, lineage)
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        print_diff(Console(highlight=False), found)
