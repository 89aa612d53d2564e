"""The result of `tandem compare`: its JSON, and its table and curves on the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import pydantic
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.evaluator.verdict import Bound
from recipe.evaluation import METRICS
from recipe.training import ValidationSplit

# Metrics of the table, with their headings.
COLUMNS = {"top_100_accuracy": "top-100", "top_100_accuracy_unseen": "unseen", "rmse": "RMSE", "mae": "MAE"}

# Columns of curves.json that are drawn, with their titles.
CURVES = {"validation_top_100_accuracy": "top-100 accuracy", "validation_rmse": "RMSE"}

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 12


class PresetTraining(pydantic.BaseModel):
    """One training: a preset with one seed."""

    preset: str
    seed: int
    metrics: dict[str, float] = {}
    """Metrics of the exported model on the eval split."""
    bounds: tuple[Bound, ...] = ()
    """Gate results; thresholds relative to the last blessed model are skipped."""
    curves: dict[str, list[float]] = {}
    """Values by epoch; see components/trainer/fitting/curves.py."""
    error: str | None = None
    """Error message if the training failed, else None."""

    @property
    def passed(self) -> bool:
        """Whether the model passed all gates."""
        return self.error is None and all(bound.passed for bound in self.bounds)

    @property
    def epochs(self) -> int:
        return len(self.curves.get("epoch", []))

    @property
    def seconds(self) -> float:
        """Duration of the epochs, also if the model came from the cache."""
        return sum(self.curves.get("seconds", []))

    @property
    def kept_epoch(self) -> int:
        """Epoch whose weights were exported, from 1."""
        return self.curves["kept"].index(1) + 1


class PresetSummary(pydantic.BaseModel):
    """Summary of all trainings of one preset."""

    preset: str
    seeds: tuple[int, ...]
    metrics: dict[str, float]
    """Mean over the seeds."""
    spread: dict[str, float]
    """Standard deviation over the seeds; empty for one seed."""
    epochs: float
    seconds: float
    """Duration of the epochs, mean over the seeds."""
    passed: bool
    """Whether the models of all seeds passed all gates."""
    failed_gates: tuple[str, ...]
    error: str | None


class Comparison(pydantic.BaseModel):
    """Result of a comparison; `tandem compare --json` prints it, and its folder contains it."""

    run_id: str
    recipe: str
    validation: ValidationSplit | None
    """Common validation split; None if each preset used its own `training.validation`."""
    rows: tuple[PresetSummary, ...]
    trained: tuple[PresetTraining, ...]
    plot: str | None
    """Path of the page with the curves; None without curves."""
    log: str

    @property
    def note(self) -> str:
        """Explanation of the table and the curves."""
        table = "Table: metrics of the exported models on the eval split; gates without may_drop and may_rise."
        if self.validation is None:
            return f"{table} Each preset was trained as by tandem run."
        return (
            f"{table} Curves: metrics on a validation split ({self.validation.fraction:.3g} of the train split) "
            "that is held out for all presets; tandem run holds one out only if the preset sets training.validation."
        )


def summarised(trained: Sequence[PresetTraining]) -> tuple[PresetSummary, ...]:
    """Summarise the trainings of each preset: means and standard deviations over its seeds."""
    rows = []
    for preset in dict.fromkeys(each.preset for each in trained):
        own = [each for each in trained if each.preset == preset]
        done = [each for each in own if each.error is None]
        names = [name for name in (done[0].metrics if done else ()) if all(name in each.metrics for each in done)]
        values = {name: [each.metrics[name] for each in done] for name in names}
        rows.append(
            PresetSummary(
                preset=preset,
                seeds=tuple(each.seed for each in own),
                metrics={name: statistics.fmean(found) for name, found in values.items()},
                spread={name: statistics.stdev(found) for name, found in values.items() if len(found) > 1},
                epochs=statistics.fmean(each.epochs for each in done) if done else 0.0,
                seconds=statistics.fmean(each.seconds for each in done) if done else 0.0,
                passed=all(each.passed for each in own),
                failed_gates=tuple(
                    dict.fromkeys(bound.subject for each in done for bound in each.bounds if not bound.passed)
                ),
                error=next((each.error for each in own if each.error is not None), None),
            )
        )
    return tuple(rows)


def headings(comparison: Comparison) -> Sequence[str]:
    """Return the headings of the table's columns; see `cells`."""
    return ("preset", *(COLUMNS[name] for name in _measured(comparison)), "epochs", "training", "gates")


def cells(comparison: Comparison, row: PresetSummary) -> Sequence[str]:
    """Return one row of the table: preset, metrics, epochs, duration of the training, gates."""
    metrics = []
    for name in _measured(comparison):
        spread = f" ± {row.spread[name]:.4f}" if name in row.spread else ""
        metrics.append(f"{row.metrics[name]:.4f}{spread}" if name in row.metrics else "-")
    if row.error is not None:
        gates = "training failed"
    else:
        gates = "pass" if row.passed else f"fails {', '.join(row.failed_gates)}"
    return (row.preset, *metrics, f"{row.epochs:.3g}", f"{row.seconds:.1f} s", gates)


def headline(metrics: Mapping[str, float]) -> str:
    """Return one metric per task as text; a metric that was not computed is a dash."""
    return ", ".join(
        f"{COLUMNS[name]} {f'{metrics[name]:.4f}' if name in metrics else '-'}" for name in ("top_100_accuracy", "rmse")
    )


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the table, a sparkline of each curve and the path of the page."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    titles = headings(comparison)
    for title in titles:
        table.add_column(title, justify="left" if title in ("preset", "gates") else "right", no_wrap=title != "gates")
    best = {
        name: _best(name, [row.metrics[name] for row in comparison.rows if name in row.metrics])
        for name in _measured(comparison)
    }
    for row in comparison.rows:
        written = list(cells(comparison, row))
        for place, name in enumerate(best, start=1):
            if row.metrics.get(name) == best[name] and len(comparison.rows) > 1:
                written[place] = f"[bold]{written[place]}[/bold]"
        colour = "green" if row.passed else "red"
        written[-1] = f"[{colour}]{written[-1]}[/{colour}]"
        table.add_row(*written)
    console.print()
    console.print(table)
    _print_curves(console, comparison)
    for row in comparison.rows:
        if row.error is not None:
            console.print(f"[red]{escape(row.preset)}[/red]: {escape(row.error)}", soft_wrap=True)
    console.print(f"[dim]{comparison.note}[/dim]", soft_wrap=True)
    if comparison.plot is not None:
        console.print(f"Curves: {escape(comparison.plot)}\n", soft_wrap=True)


def _print_curves(console: Console, comparison: Comparison) -> None:
    """Print one line per preset; next to the other table it would not fit in 80 columns."""
    drawn = [column for column in CURVES if any(column in each.curves for each in comparison.trained)]
    if not drawn:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("curves by epoch")
    for column in drawn:
        table.add_column(f"{CURVES[column]} (best epoch)", no_wrap=True)
    for row in comparison.rows:
        table.add_row(row.preset, *(_drawn(comparison, row.preset, column) for column in drawn))
    console.print()
    console.print(table)


def spark(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """Return a curve as a sparkline of at most `width` characters."""
    places = range(len(values)) if len(values) <= width else [
        round(place * (len(values) - 1) / (width - 1)) for place in range(width)
    ]  # fmt: skip
    low, high = min(values), max(values)
    steps = len(SPARKS) - 1
    return "".join(SPARKS[round(steps * (values[place] - low) / (high - low)) if high > low else 0] for place in places)


def _drawn(comparison: Comparison, preset: str, column: str) -> str:
    """Return the sparkline of a preset's first seed, with the best value and its epoch."""
    values = next(
        (each.curves[column] for each in comparison.trained if each.preset == preset and column in each.curves), None
    )
    if values is None:
        return ""
    best = _best(column.removeprefix("validation_"), values)
    return f"{spark(values):<{SPARK_WIDTH}} {best:.4f} ({values.index(best) + 1})"


def _best(metric: str, values: Sequence[float]) -> float:
    return min(values) if METRICS.get(metric) == "lower" else max(values)


def _measured(comparison: Comparison) -> Sequence[str]:
    """Return the metrics of the table's columns."""
    return [name for name in COLUMNS if any(name in row.metrics for row in comparison.rows)]
