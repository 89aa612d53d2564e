"""Commands that make something of data: `run`, `compare`, `check`, `init`, `demo`, `data`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.options import (
    DEFAULT_MODEL,
    AsJson,
    BeamArgs,
    BeamEngine,
    DataDir,
    Overrides,
    Preset,
    SchemaDir,
    WorkDir,
)
from commands.queries import print_recommendations
from pipeline.beam import BeamOptions, BeamRunner
from pipeline.exit_codes import FAILED, NOT_BLESSED

if TYPE_CHECKING:
    from pipeline.result import RunResult
    from recipe import Recipe


def run(
    schema_dir: SchemaDir,
    data: DataDir = None,
    workdir: WorkDir = None,
    preset: Preset = None,
    overrides: Overrides = None,
    serving_dir: Annotated[
        Path | None, typer.Option(help="Folder TensorFlow Serving watches. [default: WORKDIR/serving/NAME]")
    ] = None,
    wait_for: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="After the push, wait until this gRPC server has the new version."),
    ] = None,
    beam_runner: BeamEngine = BeamRunner.DIRECT,
    beam_args: BeamArgs = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole pipeline: CSVs in, a gated model out.

    Exit code 0: pushed. 1: a component failed. 2: bad input. 3: the model did not pass its gates; nothing was pushed.
    """
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
        print(json.dumps(_as_json(result), indent=1))
    else:
        _print_result(result)
    if not result.pushed_model:
        raise typer.Exit(NOT_BLESSED)


def compare(
    presets: Annotated[list[str], typer.Argument(help="Names of files in SCHEMA_DIR/presets, without .yaml.")],
    schema_dir: Annotated[Path, typer.Option(help="Folder with recipe.yaml, schema.pbtxt and presets.")] = Path(
        "schemas/movielens"
    ),
    data: DataDir = None,
    workdir: WorkDir = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each preset, with one seed after the other.")] = 1,
    curves: Annotated[
        bool,
        typer.Option(help="Keep the same slice of train from every preset and measure it after each epoch."),
    ] = True,
    overrides: Overrides = None,
    beam_runner: BeamEngine = BeamRunner.DIRECT,
    beam_args: BeamArgs = None,
    as_json: AsJson = False,
) -> None:
    """Train several presets on the same data: one table, one plot, and nothing is pushed.

    Exit code 0: all were trained, whatever their gates say. 1: one could not be trained. 2: bad input.
    """
    from rich.console import Console

    from commands.compare.comparison import print_comparison
    from commands.compare.training import compare_presets

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
    """Check a recipe, its presets, its schema and the headers of the CSVs, without running anything."""
    from components.example_gen.check import check_sources
    from recipe import BadInput, load_recipe, load_schema, preset_names

    folder = data or Path("data") / schema_dir.resolve().name

    def checked(name: str | None) -> Recipe:
        recipe = load_recipe(schema_dir, preset=name)
        check_sources(folder, recipe.data, load_schema(schema_dir, recipe), recipe.features)
        return recipe

    recipe = checked(preset)
    names = preset_names(schema_dir) if preset is None else []
    problems = []
    for name in names:
        try:
            checked(name)
        except BadInput as error:
            problems.append(str(error))
    if problems:
        raise BadInput("\n".join(problems))
    features = len(recipe.features.query) + len(recipe.features.candidate)
    told = [f"{features} features", f"{len(recipe.gates)} gates"]
    told += [f"preset {preset}"] if preset else []
    told += [f"presets {', '.join(names)}"] if names else []
    print(f"{schema_dir}: recipe {recipe.name!r}, {', '.join(told)}; {folder} has its files")


def init(
    schema_dir: Annotated[Path, typer.Argument(help="Folder to write recipe.yaml and schema.pbtxt to.")],
    data: Annotated[Path, typer.Option(help="CSV of the interactions, or a folder of CSVs with it.")],
    user: Annotated[str, typer.Option(help="Column of the user ids.")],
    item: Annotated[str, typer.Option(help="Column of the item ids.")],
    rating: Annotated[str | None, typer.Option(help="Column of the ratings; without one the data is implicit.")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Column of the times; without one the split is random.")] = None,
) -> None:
    """Look at your CSVs and write a recipe for them, with what was inferred and why as comments."""
    import shlex

    from commands.init.inspection import Parts
    from commands.init.recipe_files import init_recipe

    written = init_recipe(schema_dir, data, Parts(user, item, rating, timestamp))
    for line in written.summary:
        print(line)
    print(
        f"\nWritten: {schema_dir / 'recipe.yaml'}, {schema_dir / 'schema.pbtxt'}. Read the comments, then type\n"
        f"  tandem run {shlex.quote(str(schema_dir))} --data {shlex.quote(str(written.data))}"
    )


def movielens(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("data/movielens"),
) -> None:
    """MovieLens-100K: 100,000 ratings of 1,682 films by 943 people."""
    from commands.movielens import write_movielens

    fetched = write_movielens(out)
    print(f"{out}: interactions.csv, items.csv, users.csv{'' if fetched else ' (already there)'}")


def synthetic(
    users: Annotated[int, typer.Option(help="Users in users.csv.")] = 2_000,
    items: Annotated[int, typer.Option(help="Items in items.csv.")] = 1_000,
    interactions: Annotated[int, typer.Option(help="Rows of interactions.csv, without the broken ones.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Another seed gives other data; the same arguments give the same.")] = 0,
    clusters: Annotated[int, typer.Option(help="Groups of items that tastes are about.")] = 10,
    drift: Annotated[float, typer.Option(help="Share of a taste that moves to another cluster over two years.")] = 0.5,
    broken: Annotated[float, typer.Option(help="Share of the lines of interactions.csv that are broken.")] = 0.0,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("data/synthetic"),
) -> None:
    """Made-up interactions with a known structure, and the best figures that a model can reach on them."""
    from commands.synthetic.files import TABLES, write_synthetic
    from commands.synthetic.planted import Arguments
    from pipeline.best_possible import TRUTH

    truth = write_synthetic(Arguments(users, items, interactions, seed, clusters, drift, broken), out)
    print(f"{out}: {', '.join(TABLES)}, {TRUTH}")
    for metric, estimate in truth["best"].items():
        print(f"  best possible {metric}: {estimate['value']:.3f}")


def demo(
    schema_dir: Annotated[Path, typer.Option(help="Folder of the MovieLens recipe.")] = Path("schemas/movielens"),
    data: Annotated[Path, typer.Option(help="Folder for the data.")] = Path("data/movielens"),
    workdir: Annotated[Path, typer.Option(help="Folder for everything else.")] = Path("work/movielens"),
) -> None:
    """Get MovieLens-100K, run the pipeline, serve the model and ask it for three users' recommendations."""
    from rich.console import Console

    from commands.movielens import write_movielens
    from components.infra_validator.server_process import serving
    from pipeline.runners.local import run_recipe
    from tandem_client import Recommender

    console = Console(highlight=False)
    write_movielens(data)
    console.print(f"[bold]1. Data[/bold]       MovieLens-100K in {data}")
    console.print(
        f"[bold]2. Pipeline[/bold]   tandem run {schema_dir} --data {data} --workdir {workdir}", soft_wrap=True
    )
    result = run_recipe(schema_dir, data, workdir)
    _print_result(result)
    if not result.pushed_model:
        raise typer.Exit(NOT_BLESSED)
    model_dir = Path(result.pushed_model).parent
    console.print(f"[bold]3. Serving[/bold]    tandem serve --model-dir {_short(model_dir)}", soft_wrap=True)
    with serving(model_dir, DEFAULT_MODEL) as target, Recommender(target, model=DEFAULT_MODEL) as client:
        console.print("[bold]4. Asking[/bold]     over TensorFlow Serving's gRPC API\n")
        for user in ("42", "196", "somebody new"):
            print_recommendations(client.recommend(user, k=10))
    console.print(
        "The server is stopped. What to type next:\n\n"
        "  [dim]# the whole run as one page: data, curves, gates, slices, sample users[/dim]\n"
        f"  .venv/bin/tandem report --workdir {_short(workdir)} --out report.html\n\n"
        "  [dim]# serve the model again, and ask it from another terminal[/dim]\n"
        f"  .venv/bin/tandem serve --model-dir {_short(model_dir)}\n"
        "  .venv/bin/tandem recommend --user 42\n\n"
        "  [dim]# change a line of the recipe, and see whether the new model may replace the old one[/dim]\n"
        f"  .venv/bin/tandem run {schema_dir} --set model.embedding_dim=32\n\n"
        "  [dim]# your own CSVs: init writes a recipe for them[/dim]\n"
        "  .venv/bin/tandem init --help",
        soft_wrap=True,
    )


def _print_result(result: RunResult) -> None:
    """Rows, metrics against the gates, and the verdict."""
    from rich.console import Console

    from commands.gates_table import print_gates
    from pipeline.best_possible import reached

    console = Console(highlight=False)
    rows = result.rows
    parts = [f"{rows[name]:,} {name}" for name in ("train", "eval", "rejected")]
    parts += [f"{rows[name]:,} {name}" for name in ("merged", "negatives") if rows[name]]
    console.print(
        f"\n{rows['read']:,} rows: {', '.join(parts)}; {rows['catalogue']:,} items.\n{result.seconds:.0f} s in all; "
        f"{sum(component.cached for component in result.components)} of {len(result.components)} components from cache."
    )
    if result.hyperparameters is not None:
        found = ", ".join(f"{key}={json.dumps(value)}" for key, value in result.hyperparameters.items())
        console.print(f"The Tuner found {found}", soft_wrap=True)
    print_gates(console, result.verdict)
    for one in reached(result.best_possible, result.verdict):
        way = "" if one.way is None else f", {one.way:.0%} of the way there from the baseline's {one.baseline:.4f}"
        console.print(f"{one.metric} is {one.model:.4f} of the best possible {one.best:.4f}{way}", soft_wrap=True)
    if result.latency is not None:
        console.print(
            f"A call of recommend takes {result.latency.p50_ms:.1f} ms, 99 of 100 up to {result.latency.p99_ms:.1f} ms "
            "(one caller, over gRPC, on this machine)",
            soft_wrap=True,
        )
    if result.pushed_model:
        console.print(
            f"[green bold]Blessed[/green bold] and pushed to {_short(Path(result.pushed_model))}\n", soft_wrap=True
        )
        return
    console.print("[red bold]Not blessed[/red bold]: nothing was pushed; what is being served stays as it is.")
    for bound in result.verdict.failures():
        console.print(f"  {bound}", soft_wrap=True)
    if result.not_servable:
        console.print(f"  The model cannot be served: {result.not_servable}", soft_wrap=True)
    console.print(f"  The gates are in the recipe under 'gates'. Log: {_short(Path(result.log))}\n", soft_wrap=True)


def _as_json(result: RunResult) -> dict[str, Any]:
    from commands.gates_table import verdict_as_json
    from pipeline.best_possible import reached

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
        "reached": [dataclasses.asdict(one) for one in reached(result.best_possible, result.verdict)],
        "latency_ms": None if result.latency is None else {"p50": result.latency.p50_ms, "p99": result.latency.p99_ms},
        "not_servable": result.not_servable,
        "blessed": result.blessed,
        "pushed_model": result.pushed_model,
        "log": result.log,
    }


def _short(path: Path) -> Path:
    """Relative to the current folder where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
