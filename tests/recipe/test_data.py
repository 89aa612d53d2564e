"""The section `data`: every key is loaded, and contradictions are errors with a remedy."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipe import Recipe, RecipeError, load_recipe, load_schema
from recipe.columns import IS_POSITIVE
from recipe.data import Data
from recipe.trainer import TrainerRecipe

# Every key that a data section can have.
DATA: dict[str, Any] = yaml.safe_load("""
sources:
  interactions:
    files: order_items.csv
    format: csv
    rename: {product_id: item_id}
    lookups:
      - {files: orders.csv, key: order_id}
      - {files: reviews.json, format: json, records: app/reviews, key: order_id, duplicates: last, rename: {s: score}}
  items:
    files: products.json.gz
    records: products
    key: item_id
    rename: {product_id: item_id}
    duplicates: first
    lookups: [{files: translation.csv, key: category_pt}]
  users: {files: users.csv, key: user_id, lookups: [{files: cities.csv, key: zip}]}
columns: {user_id: user_id, item_id: item_id, label: purchases, timestamp: at}
timestamp_format: "%Y-%m-%d %H:%M:%S"
duplicates: aggregate
aggregate: {count: purchases, sum: {price: spent}}
negatives: {per_positive: 4, label: 0, context: [channel], seed: 3}
split: {kind: leave_last_n, n: 2}
max_bad_rows: 0.01
""")
RECIPE: dict[str, Any] = {
    "name": "shop",
    "data": DATA,
    "features": {
        "query": [{"column": "user_id", "kind": "id"}, {"column": "age", "kind": "normalized"}],
        "candidate": [{"column": "item_id", "kind": "id"}],
    },
    "gates": [{"metric": "rmse", "at_most": 9}],
}
SCHEMA = "".join(
    f'feature {{ name: "{name}" type: {kind} }}\n'
    for name, kind in {
        "user_id": "BYTES", "item_id": "BYTES", "purchases": "FLOAT", "spent": "FLOAT", "at": "INT", "age": "INT",
    }.items()
)  # fmt: skip
POSITIVE = f'feature {{ name: "{IS_POSITIVE}" type: FLOAT }}\n'

Load = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a recipe with changes of its section `data`: dotted keys to new values; `...` removes a key."""

    def run(changes: dict[str, Any] | None = None, schema: str = SCHEMA + POSITIVE, **others: Any) -> Recipe:
        values = {**copy.deepcopy(RECIPE), **others}
        for dotted, value in (changes or {}).items():
            place = values["data"]
            *parents, last = (int(part) if part.isdecimal() else part for part in dotted.split("."))
            for part in parents:
                place = place[part]
            if value is ...:
                del place[last]
            else:
                place[last] = value
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
        (tmp_path / "schema.pbtxt").write_text(schema)
        recipe = load_recipe(tmp_path)
        load_schema(tmp_path, recipe)
        return recipe

    return run


def test_every_key_is_loaded_and_the_same_after_json(load: Load) -> None:
    recipe = load()
    assert recipe.data.model_dump(mode="json", exclude_unset=True) == DATA
    assert Data.model_validate_json(recipe.data.model_dump_json()) == recipe.data
    assert list(recipe.data.sources.tables()) == [
        "interactions", "interactions.lookups.0", "interactions.lookups.1", "items", "items.lookups.0", "users",
        "users.lookups.0",
    ]  # fmt: skip


def test_required_keys_are_sufficient(load: Load) -> None:
    smallest = {"sources": {"interactions": {"files": "log.csv"}},
                "columns": {"user_id": "user_id", "item_id": "item_id", "label": "purchases"}}  # fmt: skip
    features = {**RECIPE["features"], "query": RECIPE["features"]["query"][:1]}
    recipe = load(data=smallest, features=features)
    assert recipe.data.sources.interactions.file_format == "csv"
    assert recipe.for_trainer().negatives is None


def test_format_follows_the_file_extension(load: Load) -> None:
    tables = load().data.sources.tables()
    assert {name: table.file_format for name, table in tables.items() if table.file_format == "json"} == {
        "interactions.lookups.1": "json", "items": "json"
    }  # fmt: skip


def test_trainers_recipe_contains_negatives(load: Load) -> None:
    trainer = load().for_trainer()
    assert trainer.negatives is not None
    assert trainer.negatives.per_positive == 4
    assert TrainerRecipe.model_validate_json(trainer.model_dump_json()) == trainer
    assert load({"negatives": ...}).for_trainer() != trainer


@pytest.mark.parametrize(
    ("place", "key", "closest"),
    [
        ("sources.interactions", "renames", "rename"),
        ("sources.interactions", "lookup", "lookups"),
        ("sources.interactions.lookups.0", "duplicate", "duplicates"),
        ("sources.items.lookups.0", "record", "records"),
        ("", "timestamp_formats", "timestamp_format"),
        ("", "negative", "negatives"),
        ("aggregate", "counts", "count"),
        ("negatives", "per_postive", "per_positive"),
        ("split", "m", ""),
    ],
)
def test_unknown_key_names_the_closest_one(load: Load, place: str, key: str, closest: str) -> None:
    dotted = ".".join(filter(None, ("data", place, key)))
    hint = f"; did you mean {closest!r}?" if closest else ""
    with pytest.raises(RecipeError, match=re.escape(f"{dotted}: unknown key{hint}")):
        load({f"{place}.{key}" if place else key: 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources.interactions.records": "a"},
         "expected JSON files with records: a, got 'order_items.csv', which is read as CSV; remove records, or add"),
        ({"sources.interactions.rename": {"a": "c", "b": "c"}}, "rename maps two columns to 'c'; choose"),
        ({"sources.interactions.rename": ["a"]}, "rename: expected a mapping, got a list"),
        ({"sources.items.key": "sku"},
         "data.sources.items.key: expected data.columns.item_id, 'item_id', got 'sku'; set both"),
        ({"sources.users.key": "account"}, "with negatives both must be the same column"),
        ({"columns.timestamp": ..., "split": {"kind": "random"}},
         "data.timestamp_format: '%Y-%m-%d %H:%M:%S' requires data.columns.timestamp, which is not set; set it, or"),
        ({"columns.timestamp": ..., "timestamp_format": ...},
         "data.split: kind leave_last_n requires data.columns.timestamp, which is not set; set it, or use "
         "kind: random"),
        ({"columns.timestamp": ..., "timestamp_format": ..., "split": {"kind": "time"}}, "data.split: kind time"),
        ({"timestamp_format": "millis"}, "or a strptime pattern such as %Y-%m-%d, got 'millis'"),
        ({"timestamp_format": "second"}, "did you mean 'seconds'?"),
        ({"timestamp_format": "%Y-%Q"}, "data.timestamp_format: expected a strptime pattern, got '%Y-%Q'"),
        ({"timestamp_format": "%H:%M"}, "expected a pattern with year, month and day, such as %Y-%m-%d, got '%H:%M'"),
        ({"duplicates": "last"},
         "data.aggregate: requires duplicates: aggregate, got last; set data.duplicates, or remove"),
        ({"duplicates": ...},
         "data.aggregate: requires duplicates: aggregate, got keep; set data.duplicates, or remove"),
        ({"aggregate": ...}, "data.duplicates: aggregate requires data.aggregate, which is not set; set aggregate"),
        ({"aggregate": {}}, "aggregate adds no column; set count or sum"),
        ({"aggregate.sum": {"price": "purchases"}}, "aggregate adds the column 'purchases' twice; choose a"),
        ({"aggregate.sum": {"price": "price"}}, "reads and adds the column 'price'; choose a new name"),
        ({"aggregate.sum": {"price": "at"}},
         "data.aggregate: adds the column 'at', which is data.columns.timestamp; choose a"),
        ({"label": {"constant": 1}}, "'purchases', which is both a column of aggregate and the constant label; remove"),
        ({"label": {"constant": 1}, "columns.label": "user_id"},
         "data.label: adds the column 'user_id', which is data.columns.user_id"),
        ({"label": {"constant": 0}, "columns.label": "y"}, "data.negatives.label: data.label.constant is 0 as well"),
        ({"negatives.per_positive": 0}, "negatives.per_positive: "),
        ({"negatives.context": ["purchases"]}, "data.negatives.context.0: 'purchases' describes the outcome"),
        ({"aggregate.count": IS_POSITIVE}, "the column name 'is_positive' is reserved for the feature"),
        ({"split": {"kind": "by_time"}}, "expected one of random, by_user, time, leave_last_n, got 'by_time'"),
        ({"split": {"kind": "leave_last_n", "n": 0}}, "data.split.n: "),
        ({"split": {"kind": "by_user", "eval_fraction": 1}}, "data.split.eval_fraction: "),
    ],
)  # fmt: skip
def test_contradiction_is_an_error_with_a_remedy(load: Load, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load(changes)


@pytest.mark.parametrize("time_format", ["iso", "milliseconds", "%d/%m/%y", "%Y-%m-%dT%H:%M:%S%z", "%c"])
def test_timestamp_formats_are_accepted(load: Load, time_format: str) -> None:
    assert load({"timestamp_format": time_format}).data.timestamp_format == time_format


def test_duplicates_last_requires_no_timestamp(load: Load) -> None:
    data = load({"duplicates": "last", "aggregate": ..., "columns.timestamp": ..., "timestamp_format": ...,
                 "split": {"kind": "by_user"}}).data  # fmt: skip
    assert data.duplicates == "last"


# --- validation against the schema and the features -------------------------------------------------------------------


def test_negatives_require_their_feature_in_the_schema(load: Load) -> None:
    remedy = 'Add `feature { name: "is_positive" type: FLOAT }`.'
    with pytest.raises(RecipeError, match=re.escape(remedy)):
        load(schema=SCHEMA)
    with pytest.raises(RecipeError, match=r"column 'is_positive': expected type FLOAT for data\.negatives, got INT"):
        load(schema=SCHEMA + POSITIVE.replace("FLOAT", "INT"))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (SCHEMA.replace('"spent"', '"total"'),
         "data.aggregate.sum.price: expected a column of schema.pbtxt, got 'spent'"),
        (SCHEMA.replace('"spent" type: FLOAT', '"spent" type: BYTES'),
         "column 'spent': expected type INT or FLOAT for data.aggregate.sum.price, got BYTES"),
        (SCHEMA.replace('"purchases" type: FLOAT', '"purchases" type: INT int_domain { min: 1 }'),
         "data.negatives.label: expected a number ≥ 1, the domain of 'purchases' in schema.pbtxt, got 0"),
    ],
)  # fmt: skip
def test_added_columns_are_validated_against_the_schema(load: Load, schema: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load(schema=schema + POSITIVE)


def test_constant_label_is_validated_against_the_schema(load: Load) -> None:
    schema = SCHEMA + POSITIVE + 'feature { name: "y" type: INT int_domain { min: 0 max: 1 } }\n'
    changes = {"columns.label": "y", "label": {"constant": 1}}
    assert load(changes, schema).data.label is not None
    for value, expected in ((0.5, "an integer"), (2, "a number ≤ 1")):
        with pytest.raises(
            RecipeError, match=f"data.label.constant: expected {expected}, the domain .*, got {value:g}"
        ):
            load({**changes, "label": {"constant": value}}, schema)


@pytest.mark.parametrize("column", ["spent", IS_POSITIVE])
def test_outcome_cannot_be_a_query_feature(load: Load, column: str) -> None:
    features = copy.deepcopy(RECIPE["features"])
    features["query"].append({"column": column, "kind": "normalized"})
    with pytest.raises(
        RecipeError, match=f"'{column}' is an outcome of the interaction, which is unknown to the query"
    ):
        load(features=features)


def test_query_feature_that_negatives_lack_is_an_error(load: Load) -> None:
    with pytest.raises(RecipeError, match=r"add 'age' to data\.negatives\.context"):
        load({"sources.users": ...})
    assert load({"sources.users": ..., "negatives.context": ["age"]})
