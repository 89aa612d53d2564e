"""Subcommands about data: `init` writes a recipe for CSVs; `data movielens` and `data synthetic` write sample data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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

    from commands.init.inspection import ColumnRoles
    from commands.init.recipe_writer import init_recipe

    written = init_recipe(schema_dir, data, ColumnRoles(user, item, rating, timestamp))
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
    from commands.synthetic.ground_truth import SyntheticSpec
    from pipeline.best_possible import TRUTH

    truth = write_synthetic(SyntheticSpec(users, items, interactions, seed, clusters, drift, broken), out)
    print(f"{out}: {', '.join(TABLES)}, {TRUTH}")
    for metric, estimate in truth["best"].items():
        print(f"  best possible {metric}: {estimate['value']:.3f}")
