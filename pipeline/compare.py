"""`tandem compare`: presets trained on the same transformed data; one table and one plot, and nothing is pushed.

Everything lies in `compare` below the workdir, ML Metadata included, so that no later run can take one of these models
for the last blessed one.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sqlite3
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.evaluator.verdict import VERDICT_FILE, Bound, Verdict
from components.example_gen.check import check_sources, interactions_bytes
from pipeline.beam import DIRECT, BeamOptions
from pipeline.console import Progress, output_to_file
from pipeline.recipe import METRICS, Recipe, Validation, load_recipe, load_schema
from pipeline.run import check_folder, explained, only_run_in, start_tfx
from pipeline.workdir import METADATA_FILE, new_folder

if TYPE_CHECKING:
    from tensorflow_metadata.proto.v0 import schema_pb2

    from pipeline.runners.local import ComponentRun

FOLDER = "compare"
COMPARISON_FILE = "comparison.json"
PLOT_FILE = "curves.html"

# Metrics that the table shows where the Evaluator has them, and its words for them.
COLUMNS = {"top_100_accuracy": "top-100", "top_100_accuracy_unseen": "unseen", "rmse": "RMSE", "mae": "MAE"}

# What is shown by epoch: columns of curves.json, and what a reader calls them.
CURVES = {"validation_top_100_accuracy": "top-100 accuracy", "validation_rmse": "RMSE"}

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 12

# What is a preset's own: where one of these fails, the other presets can still be compared.
OF_A_PRESET = ("Tuner", "Trainer", "Evaluator")


class Trained(pydantic.BaseModel):
    """One preset, trained with one seed."""

    preset: str
    seed: int
    metrics: dict[str, float] = {}
    """Of the exported model on the eval split, by the Evaluator."""
    bounds: tuple[Bound, ...] = ()
    """The preset's gates, without those that compare with an earlier model."""
    curves: dict[str, list[float]] = {}
    """Values by epoch; see components/trainer/curves.py."""
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


class Row(pydantic.BaseModel):
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
    validation: Validation | None
    """The slice of train that no preset was trained on; None where each did as it says."""
    rows: tuple[Row, ...]
    trained: tuple[Trained, ...]
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


def compare_presets(
    schema_dir: Path,
    presets: Sequence[str],
    data: Path,
    workdir: Path,
    *,
    overrides: Sequence[str] = (),
    seeds: int = 1,
    curves: bool = True,
    beam: BeamOptions = DIRECT,
) -> Comparison:
    """Trains and measures presets one after another, with progress on the terminal's standard error.

    Args:
        schema_dir: Folder with `recipe.yaml`, `schema.pbtxt` and `presets`.
        presets: Their names.
        data: Folder with the CSVs.
        workdir: Folder for artifacts; what earlier runs there have from the same data is not made again.
        overrides: `key=value` changes to every preset.
        seeds: Trainings of each preset, with its own seed and those that follow it.
        curves: Whether the same slice of train is kept from every preset and measured after each epoch. Without, each
            is trained exactly as `tandem run` would, and curves are those of presets with a slice of their own.
        beam: Where Beam's part is computed.

    Raises:
        BadInput: A preset, the schema, the data or Beam's options cannot be used.
        ComponentFailure: A component failed that all presets share.
    """
    recipes = {name: load_recipe(schema_dir, overrides, name) for name in presets}
    for recipe in recipes.values():
        schema = load_schema(schema_dir, recipe)
        check_sources(data, recipe.data, schema, recipe.features)
    beam.check()
    slice_ = _common_slice(recipes, overrides) if curves else None
    if slice_ is not None:
        recipes = {name: _with_training(recipe, validation=slice_) for name, recipe in recipes.items()}
    home = (workdir / FOLDER).absolute()
    check_folder("--workdir", home)
    with only_run_in(workdir.absolute()):
        _take_over_metadata(workdir.absolute() / METADATA_FILE, home / METADATA_FILE)
        folder = new_folder(home / "runs")
        with output_to_file(folder / "log.txt") as terminal:
            trainings = _Trainings(schema, data.absolute(), home, folder, beam, terminal)
            trained = trainings.run(recipes, seeds)
        comparison = Comparison(
            run_id=folder.name,
            recipe=next(iter(recipes.values())).name,
            validation=slice_,
            rows=summed_up(trained),
            trained=tuple(trained),
            plot=None,
            log=str(folder / "log.txt"),
        )
        if any("validation_rmse" in each.curves for each in trained):
            from pipeline.compare_page import page

            (folder / PLOT_FILE).write_text(page(comparison), encoding="utf-8")
            comparison = comparison.model_copy(update={"plot": str(folder / PLOT_FILE)})
        (folder / COMPARISON_FILE).write_text(comparison.model_dump_json(indent=1))
    return comparison


def summed_up(trained: Sequence[Trained]) -> tuple[Row, ...]:
    """One row a preset, in the order of the trainings: means over its seeds, and how far these lie apart."""
    rows = []
    for preset in dict.fromkeys(each.preset for each in trained):
        own = [each for each in trained if each.preset == preset]
        done = [each for each in own if each.error is None]
        names = [name for name in (done[0].metrics if done else ()) if all(name in each.metrics for each in done)]
        values = {name: [each.metrics[name] for each in done] for name in names}
        rows.append(
            Row(
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


def cells(comparison: Comparison, row: Row) -> Sequence[str]:
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


class _Trainings:
    """Runs the DAG up to the Evaluator, once for each preset and seed."""

    def __init__(
        self,
        schema: schema_pb2.Schema,
        data: Path,
        home: Path,
        folder: Path,
        beam: BeamOptions,
        terminal: Any,
    ) -> None:
        self._schema = schema
        self._beam = beam
        self._data = data
        self._home = home
        self._run_id = folder.name
        self._log = folder / "log.txt"
        self._console = Console(file=terminal)

    def run(self, recipes: Mapping[str, Recipe], seeds: int) -> list[Trained]:
        """Trains every recipe `seeds` times."""
        with start_tfx(self._console):
            wanted = [
                (name, _with_training(recipe, seed=recipe.training.seed + offset))
                for name, recipe in recipes.items()
                for offset in range(seeds)
            ]
            progress = Progress(self._console, len(wanted))
            return [self._train(name, recipe, progress, seeds) for name, recipe in wanted]

    def _train(self, preset: str, recipe: Recipe, progress: Progress, seeds: int) -> Trained:
        import tensorflow as tf
        from tfx import v1 as tfx

        from pipeline.dag import create_pipeline
        from pipeline.runners import local

        seed = recipe.training.seed
        label = preset if seeds == 1 else f"{preset}, seed {seed}"
        dag = create_pipeline(
            recipe,
            self._schema,
            data_root=str(self._data),
            pipeline_root=str(self._home / "artifacts"),
            metadata=tfx.orchestration.metadata.sqlite_metadata_connection_config(str(self._home / METADATA_FILE)),
            beam_pipeline_args=self._beam.pipeline_args(interactions_bytes(self._data, recipe.data)),
            last="Evaluator",
        )
        start = time.monotonic()
        try:
            components = local.run(
                dag,
                f"{self._run_id}-{preset}-{seed}",
                started=lambda name: progress.start(f"{label}: {name}"),
                finished=lambda _: None,
            )
        except local.ComponentError as error:
            progress.failed(label, time.monotonic() - start)
            told = explained(error, self._log)
            if error.component not in OF_A_PRESET:
                raise told from error
            return Trained(preset=preset, seed=seed, error=str(told))
        finally:
            # Dozens of models in one process would otherwise all stay in memory.
            tf.keras.backend.clear_session()
            gc.collect()
        trained = _read(preset, seed, components)
        progress.done(label, time.monotonic() - start, headline(trained.metrics))
        return trained


def _read(preset: str, seed: int, components: Sequence[ComponentRun]) -> Trained:
    from components.trainer.curves import CURVES_FILE

    outputs = {component.name: component.outputs for component in components}
    (evaluation,) = outputs["Evaluator"]["evaluation"]
    (model_run,) = outputs["Trainer"]["model_run"]
    verdict = Verdict.model_validate_json(Path(evaluation.uri, VERDICT_FILE).read_text())
    return Trained(
        preset=preset,
        seed=seed,
        metrics=verdict.metrics,
        bounds=verdict.bounds,
        curves=json.loads(Path(model_run.uri, CURVES_FILE).read_text()),
    )


def _common_slice(recipes: Mapping[str, Recipe], overrides: Sequence[str]) -> Validation:
    """The slice that is kept from every preset: what `--set` says, or the defaults."""
    given = next(iter(recipes.values())).training.validation
    if given is not None and any(text.startswith("training.validation") for text in overrides):
        return given
    return Validation()


def _with_training(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})


def _take_over_metadata(source: Path, target: Path) -> None:
    """Starts with what earlier runs know, so that the data they have transformed is not transformed again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() or not source.exists():
        return
    temporary = target.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(temporary)) as new:
        old.backup(new)
    os.replace(temporary, target)
