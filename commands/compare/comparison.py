"""A comparison of presets: its JSON, its table and its curves on the terminal."""

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

# Metrics that the table shows where the Evaluator has them, and its words for them.
COLUMNS = {"top_100_accuracy": "top-100", "top_100_accuracy_unseen": "unseen", "rmse": "RMSE", "mae": "MAE"}

# What is shown by epoch: columns of curves.json, and what a reader calls them.
CURVES = {"validation_top_100_accuracy": "top-100 accuracy", "validation_rmse": "RMSE"}

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 12


class PresetTraining(pydantic.BaseModel):
    """One preset, trained with one seed."""

    preset: str
    seed: int
    metrics: dict[str, float] = {}
    """Of the exported model on the eval split, by the Evaluator."""
    bounds: tuple[Bound, ...] = ()
    """The preset's gates, without those that compare with an earlier model."""
    curves: dict[str, list[float]] = {}
    """Values by epoch; see components/trainer/fitting/curves.py."""
    error: str | None = None
    """Why there is no model; None where there is one."""

    @property
    def passed(self) -> bool:
        """Whether the model passed its gates."""
        return self.error is None and all(bound.passed for bound in self.bounds)

    @property
    def epochs(self) -> int:
        return len(self.curves.get("epoch", []))

    @property
    def seconds(self) -> float:
        """What the epochs took, also where the model came from the cache."""
        return sum(self.curves.get("seconds", []))

    @property
    def kept_epoch(self) -> int:
        """The epoch, from 1, whose weights the model has."""
        return self.curves["kept"].index(1) + 1


class PresetSummary(pydantic.BaseModel):
    """What all trainings of one preset came to."""

    preset: str
    seeds: tuple[int, ...]
    metrics: dict[str, float]
    """Means over the seeds."""
    spread: dict[str, float]
    """Standard deviations over the seeds; empty for a single one."""
    epochs: float
    seconds: float
    """Of training, without the components before and after it."""
    passed: bool
    """Whether every one of the models passed the gates."""
    failed_gates: tuple[str, ...]
    error: str | None


class Comparison(pydantic.BaseModel):
    """What `tandem compare --json` prints and its folder keeps."""

    run_id: str
    recipe: str
    validation: ValidationSplit | None
    """The slice of train that no preset was trained on; None where each did as it says."""
    rows: tuple[PresetSummary, ...]
    trained: tuple[PresetTraining, ...]
    plot: str | None
    """Path of the page with the curves; None where there are none."""
    log: str

    @property
    def note(self) -> str:
        """What the table and the curves are of."""
        measured = "The table: the exported models on the eval split, against the absolute gates."
        if self.validation is None:
            return f"{measured} Each preset was trained as tandem run trains it."
        return (
            f"{measured} The curves: a validation slice, {self.validation.fraction:.3g} of train, which no preset was "
            "trained on here; tandem run trains on all of train unless the preset has a slice of its own."
        )


def summed_up(trained: Sequence[PresetTraining]) -> tuple[PresetSummary, ...]:
    """One row a preset, in the order of the trainings: means over its seeds, and how far these lie apart."""
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
    """Of the table's columns; see `cells`."""
    return ("preset", *(COLUMNS[name] for name in _measured(comparison)), "epochs", "training", "gates")


def cells(comparison: Comparison, row: PresetSummary) -> Sequence[str]:
    """One row of the table in words: the preset, its metrics, epochs, seconds of training, and its gates."""
    metrics = []
    for name in _measured(comparison):
        spread = f" ± {row.spread[name]:.4f}" if name in row.spread else ""
        metrics.append(f"{row.metrics[name]:.4f}{spread}" if name in row.metrics else "-")
    if row.error is not None:
        gates = "could not be trained"
    else:
        gates = "pass" if row.passed else f"fails {', '.join(row.failed_gates)}"
    return (row.preset, *metrics, f"{row.epochs:.3g}", f"{row.seconds:.1f} s", gates)


def headline(metrics: Mapping[str, float]) -> str:
    """The two tasks in a few words; a metric that could not be computed is a dash."""
    return ", ".join(
        f"{COLUMNS[name]} {f'{metrics[name]:.4f}' if name in metrics else '-'}" for name in ("top_100_accuracy", "rmse")
    )


def print_comparison(console: Console, comparison: Comparison) -> None:
    """The table, with a small picture of each curve, and where the large ones are."""
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
    """A line a preset; side by side with the other table they would not fit a terminal of 80 columns."""
    drawn = [column for column in CURVES if any(column in each.curves for each in comparison.trained)]
    if not drawn:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("by epoch")
    for column in drawn:
        table.add_column(f"{CURVES[column]}, best in epoch", no_wrap=True)
    for row in comparison.rows:
        table.add_row(row.preset, *(_drawn(comparison, row.preset, column) for column in drawn))
    console.print()
    console.print(table)


def spark(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """A curve as one line of blocks, the lowest value the lowest block; at most `width` of them."""
    places = range(len(values)) if len(values) <= width else [
        round(place * (len(values) - 1) / (width - 1)) for place in range(width)
    ]  # fmt: skip
    low, high = min(values), max(values)
    steps = len(SPARKS) - 1
    return "".join(SPARKS[round(steps * (values[place] - low) / (high - low)) if high > low else 0] for place in places)


def _drawn(comparison: Comparison, preset: str, column: str) -> str:
    """The curve of a preset's first seed, and its best epoch."""
    values = next(
        (each.curves[column] for each in comparison.trained if each.preset == preset and column in each.curves), None
    )
    if values is None:
        return ""
    best = _best(column.removeprefix("validation_"), values)
    return f"{spark(values):<{SPARK_WIDTH}} {best:.4f} in {values.index(best) + 1}"


def _best(metric: str, values: Sequence[float]) -> float:
    return min(values) if METRICS.get(metric) == "lower" else max(values)


def _measured(comparison: Comparison) -> Sequence[str]:
    """The metrics of the table's columns."""
    return [name for name in COLUMNS if any(name in row.metrics for row in comparison.rows)]
