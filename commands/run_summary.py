"""Prints the result of a run: rows, gates, latency and the blessing, as text or as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from commands.tables import print_gates, verdict_as_json
from pipeline.oracle_metrics import compare_with_oracle
from pipeline.result import RunResult


def print_run_summary(result: RunResult) -> None:
    """Print rows, gates, latency and whether the model was blessed and pushed."""
    console = Console(highlight=False)
    rows = result.rows
    parts = [f"{rows[name]:,} {name}" for name in ("train", "eval", "rejected")]
    parts += [f"{rows[name]:,} {name}" for name in ("merged", "negatives") if rows[name]]
    console.print(
        f"\n{rows['read']:,} rows: {', '.join(parts)}; {rows['catalogue']:,} items.\n"
        f"{result.seconds:.0f} s; {sum(component.cached for component in result.components)} of "
        f"{len(result.components)} components from cache.\n"
    )
    if result.hyperparameters is not None:
        best = ", ".join(f"{key}={json.dumps(value)}" for key, value in result.hyperparameters.items())
        console.print(f"Best hyperparameters of the Tuner: {best}", soft_wrap=True)
    print_gates(console, result.verdict)
    for one in compare_with_oracle(result.best_possible, result.verdict):
        way = "" if one.way is None else f"; {one.way:.0%} of the way from the baseline {one.baseline:.4f}"
        console.print(f"{one.metric}: {one.model:.4f}, upper bound {one.best:.4f}{way}", soft_wrap=True)
    if result.latency is not None:
        console.print(
            f"recommend latency: p50 {result.latency.p50_ms:.1f} ms, p99 {result.latency.p99_ms:.1f} ms "
            "(1 client, gRPC)",
            soft_wrap=True,
        )
    if result.pushed_model:
        console.print(
            f"[green bold]Blessed[/green bold]. Pushed to {short_path(Path(result.pushed_model))}\n", soft_wrap=True
        )
        return
    console.print("[red bold]Not blessed[/red bold]. Nothing was pushed; the served version is unchanged.")
    for bound in result.verdict.failures():
        console.print(f"  {bound}", soft_wrap=True)
    if result.not_servable:
        console.print(f"  Not servable: {result.not_servable}", soft_wrap=True)
    console.print(
        f"  Thresholds: key 'gates' of the recipe. Full logs: {short_path(Path(result.log))}\n", soft_wrap=True
    )


def run_as_json(result: RunResult) -> dict[str, Any]:
    """Return the object that `tandem run --json` prints."""
    return {
        "run_id": result.run_id,
        "recipe": result.recipe,
        "preset": result.preset,
        "total_seconds": result.seconds,
        "seconds": {component.name: component.seconds for component in result.components},
        "cached": [component.name for component in result.components if component.cached],
        "rows": result.rows,
        "hyperparameters": result.hyperparameters,
        "metrics": result.metrics,
        **verdict_as_json(result.verdict),
        "reached": [dataclasses.asdict(one) for one in compare_with_oracle(result.best_possible, result.verdict)],
        "latency_ms": None if result.latency is None else {"p50": result.latency.p50_ms, "p99": result.latency.p99_ms},
        "not_servable": result.not_servable,
        "blessed": result.blessed,
        "pushed_model": result.pushed_model,
        "log": result.log,
    }


def short_path(path: Path) -> Path:
    """Return the path relative to the current folder if it is inside it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
