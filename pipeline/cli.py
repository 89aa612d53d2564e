"""The `tandem` command. Each command imports what it needs when it is called, so that `tandem --help` is instant."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from components.evaluator.verdict import Verdict
    from pipeline.recipe import Recipe
    from pipeline.run import RunResult
    from tandem_client import Recommendations

# Exit codes of every command, besides 0.
FAILED = 1
BAD_INPUT = 2
NOT_BLESSED = 3

DEFAULT_MODEL = "recommender"
DEFAULT_TARGET = "127.0.0.1:8500"

app = typer.Typer(
    name="tandem",
    help="Interaction CSVs in, a gated and served two-task recommender out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Get sample data.", no_args_is_help=True)
app.add_typer(data_app, name="data")

SchemaDir = Annotated[Path, typer.Argument(help="Folder with recipe.yaml and schema.pbtxt, such as schemas/movielens.")]
DataDir = Annotated[Path | None, typer.Option("--data", help="Folder with the CSVs. [default: data/NAME]")]
WorkDir = Annotated[
    Path | None, typer.Option("--workdir", help="Folder for artifacts, metadata and logs. [default: work/NAME]")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change a key of the recipe, e.g. model.embedding_dim=32. Repeatable.")
]
Preset = Annotated[
    str | None, typer.Option("--preset", help="Use SCHEMA_DIR/presets/NAME.yaml in place of the recipe's own sections.")
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="Id of a run or its beginning, `latest`, or `previous`: the one before it.")
]
RunsDir = Annotated[Path, typer.Option("--workdir", help="Folder of the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Target = Annotated[str, typer.Option("--target", help="HOST:PORT of the gRPC server.")]
ModelName = Annotated[str, typer.Option("--model", help="Name the server knows the model by.")]
Touched = Annotated[
    list[str] | None,
    typer.Option("--history", help="Id of an item the user touched, on top of what the model remembers. Repeatable."),
]


@app.command()
def run(
    schema_dir: SchemaDir,
    data: DataDir = None,
    workdir: WorkDir = None,
    preset: Preset = None,
    overrides: Overrides = None,
    serving_dir: Annotated[
        Path | None, typer.Option(help="Folder TensorFlow Serving watches. [default: WORKDIR/serving/NAME]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole pipeline: CSVs in, a gated model out.

    Exit code 0: pushed. 1: a component failed. 2: bad input. 3: the model did not pass its gates; nothing was pushed.
    """
    from pipeline.run import run_recipe

    name = schema_dir.resolve().name
    result = run_recipe(
        schema_dir,
        data or Path("data") / name,
        workdir or Path("work") / name,
        overrides=overrides or [],
        preset=preset,
        serving_dir=serving_dir,
    )
    if as_json:
        print(json.dumps(_as_json(result), indent=1))
    else:
        _print_result(result)
    if not result.pushed_model:
        raise typer.Exit(NOT_BLESSED)


@app.command()
def gates(run: RunName = "latest", workdir: RunsDir = Path("work/movielens"), as_json: AsJson = False) -> None:
    """Print again what an earlier run measured and how its gates decided, by slice and beside the baselines."""
    from rich.console import Console

    from pipeline.gates import print_gates, print_measured
    from pipeline.runs import find_run, read_verdict

    result, verdict = read_verdict(workdir, find_run(workdir, run))
    if as_json:
        found = {"run_id": result.run_id, "recipe": result.recipe_name, "blessed": verdict.blessed}
        print(json.dumps({**found, "metrics": verdict.metrics, **_verdict_as_json(verdict)}, indent=1))
        return
    console = Console(highlight=False)
    decision = "[green bold]blessed[/green bold]" if verdict.blessed else "[red bold]not blessed[/red bold]"
    console.print(f"Run {result.run_id} of {result.recipe_name}: {decision}\n", soft_wrap=True)
    print_gates(console, verdict)
    for bound in verdict.failures():
        console.print(f"  {bound}", soft_wrap=True)
    print_measured(console, verdict)


@app.command()
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
    as_json: AsJson = False,
) -> None:
    """Train several presets on the same data: one table, one plot, and nothing is pushed.

    Exit code 0: all were trained, whatever their gates say. 1: one could not be trained. 2: bad input.
    """
    from rich.console import Console

    from pipeline.compare import compare_presets, print_comparison

    name = schema_dir.resolve().name
    comparison = compare_presets(
        schema_dir,
        list(dict.fromkeys(presets)),
        data or Path("data") / name,
        workdir or Path("work") / name,
        overrides=overrides or [],
        seeds=seeds,
        curves=curves,
    )
    if as_json:
        print(comparison.model_dump_json(indent=1))
    else:
        print_comparison(Console(highlight=False), comparison)
    if any(row.error is not None for row in comparison.rows):
        raise typer.Exit(FAILED)


@app.command()
def check(schema_dir: SchemaDir, data: DataDir = None, preset: Preset = None) -> None:
    """Check a recipe, its presets, its schema and the headers of the CSVs, without running anything."""
    from components.example_gen.check import check_sources
    from pipeline.recipe import BadInput, load_recipe, load_schema, preset_names

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


@app.command()
def report(
    run: RunName = "latest",
    workdir: RunsDir = Path("work/movielens"),
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    model_card: Annotated[Path | None, typer.Option(help="Markdown file for the model card.")] = None,
) -> None:
    """Write a page about a run: verdict, data, training, metrics, slices, sample users. It needs no network."""
    from pipeline.report.report import write_report

    run_id = write_report(workdir, run, out, model_card)
    print(f"{out}: the report of run {run_id}" + (f"; {model_card}: its model card" if model_card else ""))


@app.command()
def runs(workdir: RunsDir = Path("work/movielens"), as_json: AsJson = False) -> None:
    """List the runs of a work folder: when, verdict, main metrics, pushed version."""
    from rich.console import Console

    from pipeline.runs import list_runs
    from pipeline.runs_table import print_runs, runs_as_json

    found = list_runs(workdir)
    if as_json:
        print(json.dumps(runs_as_json(found), indent=1))
    else:
        print_runs(Console(highlight=False), found)


@app.command()
def diff(
    run_a: Annotated[str, typer.Argument(help="The earlier run, as for `tandem report`.")],
    run_b: Annotated[str, typer.Argument(help="The later run.")],
    workdir: RunsDir = Path("work/movielens"),
    as_json: AsJson = False,
) -> None:
    """Show what changed between two runs: recipe, data and metrics."""
    from rich.console import Console

    from pipeline.lineage import Lineage
    from pipeline.runs import diff_runs, find_run, read_run
    from pipeline.runs_table import print_diff

    lineage = Lineage(workdir)
    before, after = (read_run(workdir, find_run(workdir, name, lineage), lineage) for name in (run_a, run_b))
    found = diff_runs(workdir, before, after, lineage)
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        print_diff(Console(highlight=False), found)


@app.command()
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

    from pipeline.init.data import Parts
    from pipeline.init.recipe_files import init_recipe

    written = init_recipe(schema_dir, data, Parts(user, item, rating, timestamp))
    for line in written.summary:
        print(line)
    print(
        f"\nWritten: {schema_dir / 'recipe.yaml'}, {schema_dir / 'schema.pbtxt'}. Read the comments, then type\n"
        f"  tandem run {shlex.quote(str(schema_dir))} --data {shlex.quote(str(written.data))}"
    )


@data_app.command()
def movielens(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("data/movielens"),
) -> None:
    """MovieLens-100K: 100,000 ratings of 1,682 films by 943 people."""
    from pipeline.datasets import write_movielens

    fetched = write_movielens(out)
    print(f"{out}: interactions.csv, items.csv, users.csv{'' if fetched else ' (already there)'}")


@app.command()
def serve(
    model_dir: Annotated[Path, typer.Option(help="Folder with numbered versions, as the Pusher writes them.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="gRPC port; 0 takes any free one.")] = 8500,
    rest_port: Annotated[int, typer.Option(help="REST port; 0 takes any free one.")] = 8501,
    model: ModelName = DEFAULT_MODEL,
) -> None:
    """Serve a pushed model with TensorFlow Serving's gRPC and REST API until Ctrl-C."""
    from serving.server import main as serve_forever

    raise typer.Exit(
        serve_forever(
            [
                *("--model-dir", str(model_dir), "--model-name", model),
                *("--host", host, "--port", str(port), "--rest-port", str(rest_port)),
            ]
        )
    )


@app.command()
def recommend(
    user: Annotated[str, typer.Option(help="User id; anyone unknown gets what the average user gets.")],
    k: Annotated[int, typer.Option(min=1, help="How many items.")] = 10,
    history: Touched = None,
    target: Target = DEFAULT_TARGET,
    model: ModelName = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Ask a server what to recommend to a user."""
    from tandem_client import Recommender

    with Recommender(target, model=model) as client:
        answer = client.recommend(user, k=k, history=history)
    if as_json:
        items = [
            {"item_id": item.item_id, "score": item.score, "rating": item.rating, **item.display}
            for item in answer.items
        ]
        print(json.dumps({"user_id": answer.user_id, "items": items}, ensure_ascii=False, indent=1))
    else:
        print_recommendations(answer)


@app.command()
def rate(
    user: Annotated[str, typer.Option(help="User id.")],
    item: Annotated[str, typer.Option(help="Item id.")],
    history: Touched = None,
    target: Target = DEFAULT_TARGET,
    model: ModelName = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Ask a server how much a user will like an item."""
    from tandem_client import Recommender

    with Recommender(target, model=model) as client:
        rating = client.rate(user, item, history=history)
    if as_json:
        print(json.dumps({"user_id": user, "item_id": item, "rating": rating}))
    else:
        print(f"{rating:.2f}")


@app.command()
def demo(
    schema_dir: Annotated[Path, typer.Option(help="Folder of the MovieLens recipe.")] = Path("schemas/movielens"),
    data: Annotated[Path, typer.Option(help="Folder for the data.")] = Path("data/movielens"),
    workdir: Annotated[Path, typer.Option(help="Folder for everything else.")] = Path("work/movielens"),
) -> None:
    """Get MovieLens-100K, run the pipeline, serve the model and ask it for three users' recommendations."""
    from rich.console import Console

    from components.infra_validator.server_process import serving
    from pipeline.datasets import write_movielens
    from pipeline.run import run_recipe
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


def print_recommendations(answer: Recommendations) -> None:
    """A table of recommended items with their predicted ratings."""
    from rich.console import Console
    from rich.table import Table

    columns = list(answer.items[0].display) if answer.items else []
    table = Table(
        title=f"For user {answer.user_id}", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    table.add_column("", justify="right", style="dim")
    table.add_column("item", justify="right")
    for column in columns:
        table.add_column(column, overflow="ellipsis", no_wrap=True, max_width=52)
    table.add_column("predicted rating", justify="right")
    table.add_column("score", justify="right", style="dim")
    for place, item in enumerate(answer.items, start=1):
        shown = [item.display[column] for column in columns]
        table.add_row(str(place), item.item_id, *shown, f"{item.rating:.2f}", f"{item.score:.2f}")
    console = Console(highlight=False)
    console.print(table)
    console.print()


def _print_result(result: RunResult) -> None:
    """Rows, metrics against the gates, and the verdict."""
    from rich.console import Console

    from pipeline.gates import print_gates

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
        **_verdict_as_json(result.verdict),
        "not_servable": result.not_servable,
        "blessed": result.blessed,
        "pushed_model": result.pushed_model,
        "log": result.log,
    }


def _verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "examples": verdict.examples,
        "baselines": verdict.baselines,
        "last_blessed_metrics": verdict.last_blessed,
        "last_blessed_problem": verdict.last_blessed_problem,
        "slices": [found.model_dump() for found in verdict.slices],
        "gates": [bound.model_dump() for bound in verdict.bounds],
    }


def _short(path: Path) -> Path:
    """Relative to the current folder where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def main() -> None:
    """Entry point: errors end with one message and an exit code, never with a traceback."""
    try:
        app()
    except Exception as error:
        code, message = _explain(error)
        if code is None:
            raise
        if "--json" in sys.argv:
            print(json.dumps({"error": message, "exit_code": code}))
        print(f"tandem: {message}", file=sys.stderr)
        raise SystemExit(code) from None


def _explain(error: Exception) -> tuple[int | None, str]:
    """Exit code and text of an error that a user can do something about; None for a bug of ours."""
    from components.infra_validator.server_process import ServerFailed
    from pipeline.recipe import BadInput
    from pipeline.run import ComponentFailure
    from tandem_client import InvalidRequest, TandemClientError

    if isinstance(error, BadInput | InvalidRequest):
        return BAD_INPUT, str(error)
    if isinstance(error, TandemClientError | ComponentFailure | ServerFailed):
        return FAILED, str(error)
    return None, ""


if __name__ == "__main__":
    main()
