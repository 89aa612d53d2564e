"""The subcommand `demo`: from MovieLens-100K to served recommendations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.exit_codes import NOT_BLESSED

DEMO_USERS = ("42", "196", "new-user")
"""Users of the sample requests; the last one is a cold-start user."""


def demo(
    schema_dir: Annotated[Path, typer.Option(help="Folder of the MovieLens recipe.")] = Path("schemas/movielens"),
    data: Annotated[Path, typer.Option(help="Folder for the data.")] = Path("data/movielens"),
    workdir: Annotated[Path, typer.Option(help="Folder for artifacts, ML Metadata and logs.")] = Path("work/movielens"),
) -> None:
    """Download MovieLens-100K, run the pipeline, serve the model and request recommendations for three users."""
    from rich.console import Console

    from commands.local_serving import serve_locally
    from commands.movielens import write_movielens
    from commands.run_summary import print_run_summary, short_path
    from commands.subcommands.queries import print_recommendations
    from pipeline.runners.local import run_recipe

    console = Console(highlight=False)
    write_movielens(data)
    console.print(f"[bold]1. Data[/bold]       MovieLens-100K in {data}")
    console.print(
        f"[bold]2. Pipeline[/bold]   tandem run {schema_dir} --data {data} --workdir {workdir}", soft_wrap=True
    )
    result = run_recipe(schema_dir, data, workdir)
    print_run_summary(result)
    if not result.pushed_model:
        raise typer.Exit(NOT_BLESSED)
    model_dir = Path(result.pushed_model).parent
    console.print(f"[bold]3. Serving[/bold]    tandem serve --model-dir {short_path(model_dir)}", soft_wrap=True)
    with serve_locally(model_dir) as client:
        console.print("[bold]4. Requests[/bold]   recommend, over TensorFlow Serving's gRPC API\n")
        for user in DEMO_USERS:
            print_recommendations(client.recommend(user, k=10))
    console.print(
        "Stopped the server. Next steps:\n\n"
        "  [dim]# the run's report: data, curves, gates, slices, sample users[/dim]\n"
        f"  .venv/bin/tandem report --workdir {short_path(workdir)} --out report.html\n\n"
        "  [dim]# serve the model; send requests from another terminal[/dim]\n"
        f"  .venv/bin/tandem serve --model-dir {short_path(model_dir)}\n"
        "  .venv/bin/tandem recommend --user 42\n\n"
        "  [dim]# override a recipe key; the gates compare the model with the last blessed one[/dim]\n"
        f"  .venv/bin/tandem run {schema_dir} --set model.embedding_dim=32\n\n"
        "  [dim]# infer a recipe from your own CSVs[/dim]\n"
        "  .venv/bin/tandem init --help",
        soft_wrap=True,
    )
