"""End-to-end runs of the shipped recipes on their samples, and of recipes from `tandem init`, to served responses.

`make test` runs `books`; the others are slow.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

from components.infra_validator.server_process import serving
from tandem_client import Recommender

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests" / "samples"
MODEL = "recommender"

Tandem = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Served:
    """A recipe's pushed model behind a server.

    Attributes:
        recipe: Its name.
        result: What `tandem run --json` said.
        client: Asks the server.
        users: Some users of the data.
        items: Every item id that the data has, as it stands there, with what should be displayed.
        broken: Rows that were broken on purpose.
    """

    recipe: str
    result: Mapping[str, Any]
    client: Recommender
    users: tuple[str, ...]
    items: Mapping[str, Mapping[str, str]]
    broken: int


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def hm_items(data: Path) -> dict[str, dict[str, str]]:
    shown = ("prod_name", "product_type_name", "colour_group_name")
    return {row["article_id"]: {column: row[column] for column in shown} for row in table(data / "articles.csv")}


def olist_items(data: Path) -> dict[str, dict[str, str]]:
    english = {row["product_category_name"]: row["product_category_name_english"]
               for row in table(data / "product_category_name_translation.csv")}  # fmt: skip
    return {
        row["product_id"]: {"product_category_name_english": english.get(row["product_category_name"], "")}
        for row in table(data / "olist_products_dataset.csv")
    }


def books(data: Path) -> dict[str, Any]:
    (export,) = data.glob("*-export.json")
    return json.loads(export.read_text(encoding="utf-8"))


def movielens_items(data: Path) -> dict[str, dict[str, str]]:
    return {row["item_id"]: {"title": row["title"]} for row in table(data / "items.csv")}


Ids = Callable[[Path], Any]
# By recipe: users of the data, and items with what is displayed.
SHIPPED: dict[str, tuple[Ids, Ids]] = {
    "hm": (lambda data: [row["customer_id"] for row in table(data / "transactions_train.csv")], hm_items),
    "olist": (lambda data: [row["customer_id"] for row in table(data / "olist_orders_dataset.csv")], olist_items),
    "books": (
        lambda data: [rating["userId"] for rating in books(data)["User_Book"].values()],
        lambda data: {book["isbn"]: {} for book in books(data)["Books"].values()},
    ),
    "movielens": (lambda data: [row["user_id"] for row in table(data / "users.csv")], movielens_items),
    "synthetic": (lambda data: [row["user_id"] for row in table(data / "users.csv")], movielens_items),
}


def plain_csv(path: Path, explicit: bool) -> Path:
    """Somebody's only CSV: ids that look like numbers; with ratings and times, or with neither."""
    random = Random(7)
    quality, leniency = [random.gauss(0, 0.7) for _ in range(60)], [random.gauss(3.5, 0.5) for _ in range(50)]
    pairs = set()
    while len(pairs) < 900:
        user = random.randrange(50)
        group = user % 3 if random.random() < 0.85 else random.randrange(3)
        pairs.add((user, 3 * min(int(random.expovariate(0.12)), 19) + group))
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("client", "sku", "stars", "when") if explicit else ("client", "sku"))
        for user, item in sorted(pairs):
            row: list[Any] = [f"{user:04d}", f"{item:05d}"]
            if explicit:
                like = 0.4 if item % 3 == user % 3 else -0.6
                stars = round(min(5, max(1, random.gauss(leniency[user] + quality[item] + like, 0.5))))
                row += [stars, f"2024-{random.randrange(1, 13):02d}-{random.randrange(1, 29):02d}T10:00:00Z"]
            writer.writerow(row)
    return path


@pytest.fixture(
    scope="module",
    params=[
        "books",
        *(
            pytest.param(recipe, marks=pytest.mark.slow)
            for recipe in ("hm", "olist", "synthetic", "interactions explicit", "interactions implicit", "movielens")
        ),
    ],
)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tandem: Tandem
) -> Iterator[Served]:
    """Each recipe run through the command line, and a server on what it pushed."""
    recipe = request.param
    folder = tmp_path_factory.mktemp("recipes")
    broken = 0
    if recipe == "movielens":
        first_run = request.getfixturevalue("first_run")
        result, data = first_run.result, first_run.data
    else:
        schema_dir, data = ROOT / "schemas" / recipe, SAMPLES / recipe
        changes: tuple[str, ...] = ()
        if recipe == "synthetic":
            data = folder / "data"
            # A quarter of the rows that the recipe is for, and about as many steps.
            changes = ("--set", "training.batch_size=512")
            size = ("--users", "600", "--items", "400", "--interactions", "24000")
            made = tandem("data", "synthetic", *size, "--broken", "0.01", "--out", data)
            assert made.code == 0, made.stderr
            broken = json.loads((data / "truth.json").read_text())["rows"]["broken"]
        if recipe.startswith("interactions"):
            explicit = recipe.endswith("explicit")
            schema_dir, data = folder / "schema", plain_csv(folder / "data" / "mine.csv", explicit).parent
            named = ("--rating", "stars", "--timestamp", "when") if explicit else ()
            begun = tandem("init", schema_dir, "--data", data, "--user", "client", "--item", "sku", *named)
            assert begun.code == 0, begun.stderr
        outcome = tandem("run", schema_dir, "--data", data, "--workdir", folder / "work", *changes, "--json")
        assert outcome.code == 0, outcome.stderr + outcome.stdout
        result = outcome.json
    if recipe.startswith("interactions"):
        rows = table(data / "mine.csv")
        users, items = [row["client"] for row in rows], {row["sku"]: {} for row in rows}
    else:
        users, items = (read(data) for read in SHIPPED[recipe])
    with (
        serving(Path(result["pushed_model"]).parent, MODEL) as target,
        Recommender(target, model=MODEL) as client,
    ):
        yield Served(recipe, result, client, tuple(dict.fromkeys(users))[:5], items, broken)


def test_the_model_passes_its_gates_and_is_pushed(served: Served) -> None:
    result = served.result
    assert result["blessed"] is True
    assert (Path(result["pushed_model"]) / "saved_model.pb").is_file()
    assert {gate["metric"] for gate in result["gates"]} >= {"rmse"}
    assert all(gate["passed"] for gate in result["gates"])
    assert all(math.isfinite(value) for value in result["metrics"].values())
    assert result["rows"]["rejected"] == served.broken
    assert result["rows"]["catalogue"] == len(served.items)
    assert result["rows"]["train"] > result["rows"]["eval"] > 0


def test_the_model_knows_more_than_chance(served: Served) -> None:
    """The gates of the shipped recipes are for the real catalogues; the samples are small, so they are held to more."""
    # The largest k that is not most of the catalogue.
    k = max(k for k in (1, 5, 10, 50, 100) if 2 * k <= len(served.items))
    assert served.result["metrics"][f"top_{k}_accuracy"] > 1.2 * k / len(served.items)


def test_recommendations_are_items_of_the_catalogue_with_what_people_know_them_by(served: Served) -> None:
    for answer in served.client.recommend_batch([*served.users, "somebody new"], k=5):
        assert len({item.item_id for item in answer.items}) == 5
        scores = [item.score for item in answer.items]
        assert scores == sorted(scores, reverse=True)
        for item in answer.items:
            # The id as it stands in the file, leading zeros and all.
            assert item.item_id in served.items
            assert dict(item.display) == served.items[item.item_id]
            assert math.isfinite(item.rating) and math.isfinite(item.score)


def test_ratings_are_within_the_schemas_range(served: Served) -> None:
    low, high = {
        "hm": (0, 1), "olist": (-1, math.inf), "books": (0.5, 5), "movielens": (1, 5), "synthetic": (1, 5),
        "interactions explicit": (1, 5),
        "interactions implicit": (0, 1),
    }[served.recipe]  # fmt: skip
    items = list(served.items)[:5]
    for rating in served.client.rate_batch(list(served.users), items):
        assert low <= rating <= high


def test_negatives_come_with_implicit_data_only(served: Served) -> None:
    rows = served.result["rows"]
    implicit = served.recipe in ("hm", "olist", "interactions implicit")
    assert (rows["train"] + rows["eval"] > rows["read"]) is implicit


def test_only_of_synthetic_data_it_is_known_how_close_the_model_came(served: Served) -> None:
    found = {one["metric"]: one for one in served.result["reached"]}
    if served.recipe != "synthetic":
        assert found == {}
        return
    assert set(found) == {"top_100_accuracy", "top_100_accuracy_unseen", "rmse"}
    for metric, one in found.items():
        assert one["model"] == served.result["metrics"][metric]
        # Past the best by chance alone.
        assert 0 < one["way"] < 1.1, one
