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
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from commands.compare.comparison import Comparison, PresetTraining, headline, summed_up
from components.evaluator.verdict import VERDICT_FILE, Verdict
from components.example_gen.resolve import check_features, resolve_sources
from pipeline.beam import DIRECT, BeamOptions
from pipeline.console import Progress, output_to_file
from pipeline.runners.local import explained, start_tfx
from pipeline.workdir import METADATA_FILE, check_folder, new_folder, only_run_in
from recipe import Recipe, load_recipe, load_schema
from recipe.training import ValidationSplit

if TYPE_CHECKING:
    from tensorflow_metadata.proto.v0 import schema_pb2

    from pipeline.runners.launch import ComponentRun

FOLDER = "compare"
COMPARISON_FILE = "comparison.json"
PLOT_FILE = "curves.html"

# What is a preset's own: where one of these fails, the other presets can still be compared.
OF_A_PRESET = ("Tuner", "Trainer", "Evaluator")


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
    # A preset changes neither data nor schema, so all recipes have the same sources.
    sources = resolve_sources(data, recipe.data, schema)
    for recipe in recipes.values():
        check_features(recipe.features, recipe.data.columns, sources)
    beam.check()
    beam_args = beam.pipeline_args(sources.interactions.bytes)
    slice_ = _common_slice(recipes, overrides) if curves else None
    if slice_ is not None:
        recipes = {name: _with_training(recipe, validation=slice_) for name, recipe in recipes.items()}
    home = (workdir / FOLDER).absolute()
    check_folder("--workdir", home)
    with only_run_in(workdir.absolute()):
        _take_over_metadata(workdir.absolute() / METADATA_FILE, home / METADATA_FILE)
        folder = new_folder(home / "runs")
        with output_to_file(folder / "log.txt") as terminal:
            trainings = _Trainings(schema, data.absolute(), home, folder, beam_args, terminal)
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
            from commands.compare.curves_page import page

            (folder / PLOT_FILE).write_text(page(comparison), encoding="utf-8")
            comparison = comparison.model_copy(update={"plot": str(folder / PLOT_FILE)})
        (folder / COMPARISON_FILE).write_text(comparison.model_dump_json(indent=1))
    return comparison


class _Trainings:
    """Runs the DAG up to the Evaluator, once for each preset and seed."""

    def __init__(
        self,
        schema: schema_pb2.Schema,
        data: Path,
        home: Path,
        folder: Path,
        beam_args: Sequence[str],
        terminal: Any,
    ) -> None:
        self._schema = schema
        self._beam_args = beam_args
        self._data = data
        self._home = home
        self._run_id = folder.name
        self._log = folder / "log.txt"
        self._console = Console(file=terminal)

    def run(self, recipes: Mapping[str, Recipe], seeds: int) -> list[PresetTraining]:
        """Trains every recipe `seeds` times."""
        with start_tfx(self._console):
            wanted = [
                (name, _with_training(recipe, seed=recipe.training.seed + offset))
                for name, recipe in recipes.items()
                for offset in range(seeds)
            ]
            progress = Progress(self._console, len(wanted))
            return [self._train(name, recipe, progress, seeds) for name, recipe in wanted]

    def _train(self, preset: str, recipe: Recipe, progress: Progress, seeds: int) -> PresetTraining:
        import tensorflow as tf
        from tfx.orchestration import metadata

        from pipeline.dag import compile_dag, create_pipeline
        from pipeline.runners import launch

        seed = recipe.training.seed
        label = preset if seeds == 1 else f"{preset}, seed {seed}"
        dag = create_pipeline(
            recipe,
            self._schema,
            data_root=str(self._data),
            pipeline_root=str(self._home / "artifacts"),
            metadata=metadata.sqlite_metadata_connection_config(str(self._home / METADATA_FILE)),
            beam_pipeline_args=self._beam_args,
            last="Evaluator",
        )
        start = time.monotonic()
        try:
            components = launch.run(
                compile_dag(dag),
                f"{self._run_id}-{preset}-{seed}",
                started=lambda name: progress.start(f"{label}: {name}"),
                finished=lambda _: None,
            )
        except launch.ComponentError as error:
            progress.failed(label, time.monotonic() - start)
            told = explained(error, self._log)
            if error.component not in OF_A_PRESET:
                raise told from error
            return PresetTraining(preset=preset, seed=seed, error=str(told))
        finally:
            # Dozens of models in one process would otherwise all stay in memory.
            tf.keras.backend.clear_session()
            gc.collect()
        trained = _read(preset, seed, components)
        progress.done(label, time.monotonic() - start, headline(trained.metrics))
        return trained


def _read(preset: str, seed: int, components: Sequence[ComponentRun]) -> PresetTraining:
    from components.trainer.fitting.curves import CURVES_FILE

    outputs = {component.name: component.outputs for component in components}
    (evaluation,) = outputs["Evaluator"]["evaluation"]
    (model_run,) = outputs["Trainer"]["model_run"]
    verdict = Verdict.model_validate_json(Path(evaluation.uri, VERDICT_FILE).read_text())
    return PresetTraining(
        preset=preset,
        seed=seed,
        metrics=verdict.metrics,
        bounds=verdict.bounds,
        curves=json.loads(Path(model_run.uri, CURVES_FILE).read_text()),
    )


def _common_slice(recipes: Mapping[str, Recipe], overrides: Sequence[str]) -> ValidationSplit:
    """The slice that is kept from every preset: what `--set` says, or the defaults."""
    given = next(iter(recipes.values())).training.validation
    if given is not None and any(text.startswith("training.validation") for text in overrides):
        return given
    return ValidationSplit()


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
