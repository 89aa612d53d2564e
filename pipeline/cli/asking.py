"""Commands that ask a server, ours or TensorFlow Serving: `recommend` and `rate`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import DEFAULT_MODEL, DEFAULT_TARGET, AsJson, ModelName, Target, Touched

if TYPE_CHECKING:
    from tandem_client import Recommendations


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
