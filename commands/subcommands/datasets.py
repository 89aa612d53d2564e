"""Subcommands about data: `init` writes a recipe for CSVs; `data movielens` and `data synthetic` write sample data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    schema_dir: Annotated[Path, typer.Argument(help="Folder for recipe.yaml and schema.pbtxt.")],
    data: Annotated[Path, typer.Option(help="CSV with the interactions, or a folder that contains it.")],
    user: Annotated[str, typer.Option(help="Column with the user ids.")],
    item: Annotated[str, typer.Option(help="Column with the item ids.")],
    rating: Annotated[str | None, typer.Option(help="Column with the ratings. \\[default: implicit feedback]")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Column with the timestamps. \\[default: random split]")] = None,
) -> None:
    """Infer a recipe and a schema from CSVs and write them; comments explain each inferred key."""
    import shlex

    from commands.init.inspection import ColumnRoles
    from commands.init.recipe_writer import init_recipe

    written = init_recipe(schema_dir, data, ColumnRoles(user, item, rating, timestamp))
    for line in written.summary:
        print(line)
    print(
        f"\nWrote {schema_dir / 'recipe.yaml'} and {schema_dir / 'schema.pbtxt'}. Review the comments, then run:\n"
        f"  tandem run {shlex.quote(str(schema_dir))} --data {shlex.quote(str(written.data))}"
    )


def movielens(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("data/movielens"),
) -> None:
    """Download MovieLens-100K: 100,000 ratings of 1,682 films by 943 users."""
    from commands.movielens import write_movielens

    fetched = write_movielens(out)
    print(f"{out}: interactions.csv, items.csv, users.csv{'' if fetched else ' (exist already)'}")


def synthetic(
    users: Annotated[int, typer.Option(help="Users in users.csv.")] = 2_000,
    items: Annotated[int, typer.Option(help="Items in items.csv.")] = 1_000,
    interactions: Annotated[int, typer.Option(help="Valid rows in interactions.csv.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Random seed. The same arguments give the same data.")] = 0,
    clusters: Annotated[int, typer.Option(help="Number of item clusters.")] = 10,
    drift: Annotated[
        float, typer.Option(help="Fraction of a user's preference that drifts to another cluster over two years.")
    ] = 0.5,
    broken: Annotated[float, typer.Option(help="Fraction of malformed lines in interactions.csv.")] = 0.0,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("data/synthetic"),
) -> None:
    """Generate synthetic data with a known structure, and the upper bounds of the metrics on it."""
    from commands.synthetic.files import TABLES, write_synthetic
    from commands.synthetic.ground_truth import SyntheticSpec
    from pipeline.oracle_metrics import TRUTH

    truth = write_synthetic(SyntheticSpec(users, items, interactions, seed, clusters, drift, broken), out)
    print(f"{out}: {', '.join(TABLES)}, {TRUTH}")
    for metric, estimate in truth["best"].items():
        print(f"  upper bound of {metric}: {estimate['value']:.3f}")
