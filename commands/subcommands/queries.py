"""Subcommands that send requests to a server, Tandem's or TensorFlow Serving: `recommend`, `rate` and `similar`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.subcommands.shared_options import (
    DEFAULT_MODEL,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    AsJson,
    Excluded,
    History,
    ModelName,
    Only,
    Target,
    Timeout,
    TlsCert,
    TlsKey,
    TlsRoot,
    UseTls,
    VersionLabel,
)

if TYPE_CHECKING:
    from tandem_client import FoundItem, Recommendation, Recommendations, Recommender, SimilarItem, Tls


def recommend(
    user: Annotated[str, typer.Option(help="User id; new users get the recommendations of the OOV index.")],
    k: Annotated[int, typer.Option(min=1, help="Number of items; at most the size of the catalogue.")] = 10,
    exclude: Excluded = None,
    only: Only = None,
    history: History = None,
    target: Target = DEFAULT_TARGET,
    model: ModelName = DEFAULT_MODEL,
    label: VersionLabel = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    tls: UseTls = False,
    tls_root: TlsRoot = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Request the recommended items of a user."""
    with _client(target, model, label, timeout, _tls(tls, tls_root, tls_cert, tls_key)) as client:
        response = client.recommend(user, k=k, exclude=exclude, only=only, history=history)
    if as_json:
        items = [
            {"item_id": item.item_id, "score": item.score, "rating": item.rating, **item.display}
            for item in response.items
        ]
        _print_json({"user_id": response.user_id, "items": items})
    else:
        print_recommendations(response)


def rate(
    user: Annotated[str, typer.Option(help="User id.")],
    item: Annotated[str, typer.Option(help="Item id.")],
    history: History = None,
    target: Target = DEFAULT_TARGET,
    model: ModelName = DEFAULT_MODEL,
    label: VersionLabel = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    tls: UseTls = False,
    tls_root: TlsRoot = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Request the predicted rating of a user and an item."""
    with _client(target, model, label, timeout, _tls(tls, tls_root, tls_cert, tls_key)) as client:
        rating = client.rate(user, item, history=history)
    if as_json:
        print(json.dumps({"user_id": user, "item_id": item, "rating": rating}))
    else:
        print(f"{rating:.2f}")


def similar(
    item: Annotated[str | None, typer.Option(help="Item id.")] = None,
    title: Annotated[
        str | None, typer.Option(help="Instead of --item: prefix of a word in the title, for example batman.")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="Number of items; at most serving.k of the recipe.")] = 10,
    target: Target = DEFAULT_TARGET,
    model: ModelName = DEFAULT_MODEL,
    label: VersionLabel = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    tls: UseTls = False,
    tls_root: TlsRoot = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Request the items that are most similar to an item, given by id or title."""
    if (item is None) == (title is None):
        raise _bad_input(
            "expected exactly one of --item ID and --title TEXT (title search); see `tandem similar --help`"
        )
    found: Sequence[FoundItem] = ()
    with _client(target, model, label, timeout, _tls(tls, tls_root, tls_cert, tls_key)) as client:
        if title is not None:
            found = client.find(title).items
            if not found:
                raise _bad_input(
                    f"--title {title!r}: no title has a word with this prefix. Pass another prefix or --item ID"
                )
        response = client.similar(found[0].item_id if found else item or "", k=k)
    named = found[0].display if found else {}
    if as_json:
        _print_json(
            {
                "item_id": response.item_id,
                **named,
                "items": [{"item_id": each.item_id, "score": each.score, **each.display} for each in response.items],
                "other_hits": [{"item_id": each.item_id, **each.display} for each in found[1:]],
            }
        )
        return
    title_line = ", ".join([f"Similar to item {response.item_id}", *named.values()])
    if response.items:
        _print_items(title_line, response.items, {"similarity": [f"{each.score:.3f}" for each in response.items]})
    else:
        print(f"No similar items for item {response.item_id}: it is not in the catalogue, or it is the only item.")
    if others := found[1:]:
        print(f"Other matches, for --item ID: {_listed(others)}")


def print_recommendations(response: Recommendations) -> None:
    """Print a table of recommended items with their predicted ratings."""
    if not response.items:
        print(
            f"No items left to recommend to user {response.user_id}: the user interacted with all items that the "
            "options allow, or they are not in the catalogue."
        )
        return
    _print_items(
        f"Recommendations for user {response.user_id}",
        response.items,
        {
            "predicted rating": [f"{item.rating:.2f}" for item in response.items],
            "score": [f"{item.score:.2f}" for item in response.items],
        },
    )


def _print_items(
    title: str, items: Sequence[Recommendation | SimilarItem], numbers: Mapping[str, Sequence[str]]
) -> None:
    """Print a table of at least one item: rank, id, display columns and columns of numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = list(items[0].display)
    # Ids and titles are data: "[REC]" is a film, not markup.
    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right", style="dim")
    table.add_column("item", justify="right")
    for column in columns:
        table.add_column(column, overflow="ellipsis", no_wrap=True, max_width=52)
    for place, column in enumerate(numbers):
        table.add_column(column, justify="right", style="dim" if place else None)
    for place, item in enumerate(items):
        shown = [Text(item.display[column]) for column in columns]
        table.add_row(str(place + 1), Text(item.item_id), *shown, *(column[place] for column in numbers.values()))
    console = Console(highlight=False)
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table)
    console.print()


def _listed(items: Iterable[FoundItem]) -> str:
    return ", ".join(" ".join([each.item_id, *each.display.values()]) for each in items)


def _print_json(response: Mapping[str, Any]) -> None:
    print(json.dumps(response, ensure_ascii=False, indent=1))


def _client(target: str, model: str, label: str | None, timeout: float, tls: bool | Tls) -> Recommender:
    from tandem_client import Recommender

    try:
        return Recommender(target, model=model, label=label, timeout=timeout, tls=tls)
    except ValueError as error:
        raise _bad_input(str(error)) from error


def _tls(use_tls: bool, root: Path | None, certificate: Path | None, key: Path | None) -> bool | Tls:
    from tandem_client import Tls

    if root is None and certificate is None and key is None:
        return use_tls
    if (certificate is None) != (key is None):
        given, missing = ("--tls-cert", "--tls-key") if key is None else ("--tls-key", "--tls-cert")
        raise _bad_input(f"{given} without {missing}: mutual TLS needs both. Add {missing} FILE or remove {given}")
    return Tls.from_files(root_certificates=root, private_key=key, certificate_chain=certificate)


def _bad_input(message: str) -> Exception:
    # Imported only on failure, because it imports pydantic and YAML.
    from recipe import BadInput

    return BadInput(message)
