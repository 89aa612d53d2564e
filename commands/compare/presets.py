"""`tandem compare`: trains presets on the same transformed data and compares them; nothing is pushed.

Artifacts and ML Metadata are in `compare` below the workdir, so that a later run cannot resolve one of these models as
the last blessed model.
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

from commands.compare.comparison import Comparison, PresetTraining, headline, summarised
from components.evaluator.verdict import VERDICT_FILE, Verdict
from components.example_gen.resolve import check_features, resolve_sources
from pipeline.beam import DIRECT, BeamOptions
from pipeline.console import Progress, output_to_file, progress_console
from pipeline.runners.local import explained, start_tfx
from pipeline.workdir import (
    ARTIFACTS_FOLDER,
    COMPARISON_FILE,
    COMPARISON_PLOT_FILE,
    COMPARISONS_FOLDER,
    LOG_FILE,
    METADATA_FILE,
    RUNS_FOLDER,
    check_folder,
    new_folder,
    only_run_in,
)
from recipe import Recipe, load_recipe, load_schema
from recipe.training import ValidationSplit

if TYPE_CHECKING:
    from tensorflow_metadata.proto.v0 import schema_pb2

    from pipeline.runners.launch import ComponentRun

# Components that depend on the preset: if one of them fails, the other presets are still compared.
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
    """Train and evaluate presets one after another, with progress on standard error.

    Args:
        schema_dir: Folder with `recipe.yaml`, `schema.pbtxt` and `presets`.
        presets: Names of the presets.
        data: Folder with the CSVs.
        workdir: Folder for artifacts; cached executions of earlier runs on it are used.
        overrides: `key=value` overrides of every preset.
        seeds: Number of trainings per preset, with consecutive seeds from the preset's own.
        curves: Whether to hold out the same validation split for every preset and evaluate it after each epoch. If
            false, each preset is trained as by `tandem run`, and only presets with `training.validation` have curves.
        beam: Beam runner and options.

    Returns:
        Metrics, gate results and curves of every preset.

    Raises:
        BadInput: A preset, the schema, the data or a Beam option is invalid.
        ComponentFailure: A component that all presets share failed.
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
    validation = _common_validation(recipes, overrides) if curves else None
    if validation is not None:
        recipes = {name: _with_training(recipe, validation=validation) for name, recipe in recipes.items()}
    home = (workdir / COMPARISONS_FOLDER).absolute()
    check_folder("--workdir", home)
    with only_run_in(workdir.absolute()):
        _take_over_metadata(workdir.absolute() / METADATA_FILE, home / METADATA_FILE)
        folder = new_folder(home / RUNS_FOLDER)
        with output_to_file(folder / LOG_FILE) as terminal:
            trainings = _Trainings(schema, data.absolute(), home, folder, beam_args, terminal)
            trained = trainings.run(recipes, seeds)
        comparison = Comparison(
            run_id=folder.name,
            recipe=next(iter(recipes.values())).name,
            validation=validation,
            rows=summarised(trained),
            trained=tuple(trained),
            plot=None,
            log=str(folder / LOG_FILE),
        )
        if any("validation_rmse" in each.curves for each in trained):
            from commands.compare.curves_page import page

            (folder / COMPARISON_PLOT_FILE).write_text(page(comparison), encoding="utf-8")
            comparison = comparison.model_copy(update={"plot": str(folder / COMPARISON_PLOT_FILE)})
        (folder / COMPARISON_FILE).write_text(comparison.model_dump_json(indent=1))
    return comparison


class _Trainings:
    """Runs the DAG up to the Evaluator for each preset and seed."""

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
        self._log = folder / LOG_FILE
        self._console = progress_console(terminal)

    def run(self, recipes: Mapping[str, Recipe], seeds: int) -> list[PresetTraining]:
        """Train every recipe `seeds` times."""
        with start_tfx(self._console):
            trainings = [
                (name, _with_training(recipe, seed=recipe.training.seed + offset))
                for name, recipe in recipes.items()
                for offset in range(seeds)
            ]
            progress = Progress(self._console, len(trainings))
            return [self._train(name, recipe, progress, seeds) for name, recipe in trainings]

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
            pipeline_root=str(self._home / ARTIFACTS_FOLDER),
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
            failure = explained(error, self._log)
            if error.component not in OF_A_PRESET:
                raise failure from error
            return PresetTraining(preset=preset, seed=seed, error=str(failure))
        finally:
            # Keras keeps every model of the process in memory otherwise.
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


def _common_validation(recipes: Mapping[str, Recipe], overrides: Sequence[str]) -> ValidationSplit:
    """Return the common validation split: the one that `--set` sets, or the default."""
    given = next(iter(recipes.values())).training.validation
    if given is not None and any(text.startswith("training.validation") for text in overrides):
        return given
    return ValidationSplit()


def _with_training(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})


def _take_over_metadata(source: Path, target: Path) -> None:
    """Copy the ML Metadata of earlier runs, so that their Transform executions are cache hits."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() or not source.exists():
        return
    temporary = target.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(temporary)) as new:
        old.backup(new)
    os.replace(temporary, target)
