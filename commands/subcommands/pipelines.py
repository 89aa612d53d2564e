"""Subcommands that take a recipe: `run`, `compare` and `check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from commands.subcommands.shared_options import (
    AsJson,
    BeamArgs,
    BeamEngine,
    DataDir,
    Overrides,
    Preset,
    SchemaDir,
    WorkDir,
)
from pipeline.beam import BeamOptions, BeamRunner
from pipeline.exit_codes import FAILED, NOT_BLESSED


def run(
    schema_dir: SchemaDir,
    data: DataDir = None,
    workdir: WorkDir = None,
    preset: Preset = None,
    overrides: Overrides = None,
    serving_dir: Annotated[
        Path | None, typer.Option(help="Push destination. \\[default: WORKDIR/serving/NAME]")
    ] = None,
    wait_for: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="After the push, wait until this gRPC server has loaded the new version."
        ),
    ] = None,
    beam_runner: BeamEngine = BeamRunner.DIRECT,
    beam_args: BeamArgs = None,
    as_json: AsJson = False,
) -> None:
    """Run the pipeline: read the CSVs, train, evaluate, check the gates and push the model if it is blessed.

    Exit code 0: pushed. 1: a component failed. 2: invalid input. 3: not blessed; nothing was pushed.
    """
    from commands.run_summary import print_run_summary, run_as_json
    from pipeline.runners.local import run_recipe

    name = schema_dir.resolve().name
    result = run_recipe(
        schema_dir,
        data or Path("data") / name,
        workdir or Path("work") / name,
        overrides=[*(overrides or []), *([f"serving.wait_for.target={json.dumps(wait_for)}"] if wait_for else [])],
        preset=preset,
        serving_dir=serving_dir,
        beam=BeamOptions(beam_runner, tuple(beam_args or ())),
    )
    if as_json:
        print(json.dumps(run_as_json(result), indent=1))
    else:
        print_run_summary(result)
    if not result.pushed_model:
        raise typer.Exit(NOT_BLESSED)


def compare(
    presets: Annotated[
        list[str], typer.Argument(help="Presets to compare: names of files in SCHEMA_DIR/presets, without .yaml.")
    ],
    schema_dir: Annotated[Path, typer.Option(help="Folder with recipe.yaml, schema.pbtxt and presets.")] = Path(
        "schemas/movielens"
    ),
    data: DataDir = None,
    workdir: WorkDir = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings per preset, with consecutive seeds.")] = 1,
    curves: Annotated[
        bool,
        typer.Option(help="Hold out the same validation split for every preset and evaluate it after each epoch."),
    ] = True,
    overrides: Overrides = None,
    beam_runner: BeamEngine = BeamRunner.DIRECT,
    beam_args: BeamArgs = None,
    as_json: AsJson = False,
) -> None:
    """Train several presets on the same data and compare their metrics and curves. Nothing is pushed.

    Exit code 0: all presets were trained, blessed or not. 1: the training of a preset failed. 2: invalid input.
    """
    from rich.console import Console

    from commands.compare.comparison import print_comparison
    from commands.compare.presets import compare_presets

    name = schema_dir.resolve().name
    comparison = compare_presets(
        schema_dir,
        list(dict.fromkeys(presets)),
        data or Path("data") / name,
        workdir or Path("work") / name,
        overrides=overrides or [],
        seeds=seeds,
        curves=curves,
        beam=BeamOptions(beam_runner, tuple(beam_args or ())),
    )
    if as_json:
        print(comparison.model_dump_json(indent=1))
    else:
        print_comparison(Console(highlight=False), comparison)
    if any(row.error is not None for row in comparison.rows):
        raise typer.Exit(FAILED)


def check(schema_dir: SchemaDir, data: DataDir = None, preset: Preset = None) -> None:
    """Validate a recipe, its presets, its schema and the headers of the CSVs without running the pipeline."""
    from components.example_gen.resolve import check_features, resolve_sources
    from recipe import BadInput, load_recipe, load_schema, preset_names

    folder = data or Path("data") / schema_dir.resolve().name

    recipe = load_recipe(schema_dir, preset=preset)
    sources = resolve_sources(folder, recipe.data, load_schema(schema_dir, recipe))
    check_features(recipe.features, recipe.data.columns, sources)
    names = preset_names(schema_dir) if preset is None else []
    problems = []
    for name in names:
        try:
            changed = load_recipe(schema_dir, preset=name)
            load_schema(schema_dir, changed)
            # A preset changes neither data nor schema, so its sources are the recipe's.
            check_features(changed.features, changed.data.columns, sources)
        except BadInput as error:
            problems.append(str(error))
    if problems:
        raise BadInput("\n".join(problems))
    features = len(recipe.features.query) + len(recipe.features.candidate)
    parts = [f"{features} features", f"{len(recipe.gates)} gates"]
    parts += [f"preset {preset}"] if preset else []
    parts += [f"presets {', '.join(names)}"] if names else []
    print(f"{schema_dir}: recipe {recipe.name!r} is valid: {', '.join(parts)}. Data: {folder}")
