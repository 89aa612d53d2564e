"""Resolving sources before a run: finds the files and names what is wrong with them, fast and without TensorFlow."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ingestion import SCHEMA, make_data, make_features, make_interactions, make_schema, make_tables, write_tables

from components.example_gen.data_errors import DataError
from components.example_gen.resolve import check_features, interactions_bytes, resolve_sources
from recipe.data import Data


def test_valid_tables_pass(folder: Path) -> None:
    write_tables(folder, make_tables())
    sources = resolve_sources(folder, make_data(), make_schema())
    check_features(make_features(), make_data().columns, sources)
    assert [table.files for table in (sources.interactions, *sources.lookups.values())] == [
        (str(folder / f"{name}.csv"),) for name in ("interactions", "items", "users")
    ]


def test_the_size_of_the_interactions(folder: Path) -> None:
    tables = {**make_tables(), "interactions-2.csv": make_interactions(7)}
    write_tables(folder, tables)
    size = sum(len(tables[name]) for name in ("interactions.csv", "interactions-2.csv"))
    assert resolve_sources(folder, make_data(), make_schema()).interactions.bytes == size
    assert interactions_bytes(folder, make_data()) == size


def test_gzip_and_several_files_pass(folder: Path) -> None:
    tables = make_tables()
    content = tables.pop("interactions.csv")
    assert isinstance(content, str)
    for part in range(2):
        tables[f"interactions-{part}.csv.gz"] = gzip.compress(content.encode())
    write_tables(folder, tables)
    resolve_sources(folder, make_data(), make_schema())


def test_no_tensorflow() -> None:
    code = (
        "import components.example_gen.resolve, sys; "
        "print([name for name in ('tensorflow', 'tfx', 'apache_beam', 'tfx_bsl') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("items.csv", None, r"data\.sources\.items\.files: no file matches 'items\*\.csv\*' in .*Files: .*users"),
        ("interactions.csv", "", r"interactions\.csv: the file is empty"),
        ("users.csv", "user_id,age\n", r"users\.csv:1: no row after the header"),
        ("interactions.csv", "user_id,item,rating,timestamp\n1,2,3,4\n",
         r"interactions\.csv:1: no column 'item_id'; .*did you mean 'item'\?"),
        ("items.csv", "item_id,titel,year\n1,2,3\n", r"no column 'title'; .*did you mean 'titel'\?"),
        ("items.csv", "id,title,year\n1,2,3\n", r"items\.csv:1: no column 'item_id'; it is the key of items"),
        ("items.csv", "item_id,title,year,age\n1,2,3,4\n", r"'age' in one table, got .*items\.csv and .*users\.csv"),
        ("items.csv", "item_id,title,year,title\n1,2,3,4\n", r"items\.csv:1: the column 'title' is in the header tw"),
        ("items-2.csv", "item_id,title\n77,2\n", r"items-2\.csv:1: no column 'year'; the other files"),
        ("users.csv", b"user_id,age\n1,\xff\n", r"users\.csv:2: expected UTF-8, got"),
    ],
)  # fmt: skip
def test_errors_have_a_location_and_a_remedy(
    folder: Path, table: str, content: str | bytes | None, message: str
) -> None:
    tables = make_tables()
    if content is None:
        del tables[table]
    else:
        tables[table] = content
    write_tables(folder, tables)
    with pytest.raises(DataError, match=message):
        resolve_sources(folder, make_data(), make_schema())


def test_a_feature_that_is_in_no_table(folder: Path) -> None:
    write_tables(folder, make_tables())
    schema = make_schema(SCHEMA + 'feature { name: "titles" type: BYTES }')
    with pytest.raises(DataError, match=r"no column 'titles'; the schema has this feature; did you mean 'title'\?"):
        resolve_sources(folder, make_data(), schema)


def test_the_error_is_one_line_that_ends_in_a_remedy(folder: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"in {folder}. Add the file, or correct the pattern in the recipe.")):
        resolve_sources(folder, make_data(), make_schema())


def test_the_latest_span_and_version_are_checked(folder: Path) -> None:
    write_tables(folder, make_tables())
    for span, version, content in ((1, 1, ""), (2, 9, ""), (2, 10, "user_id,item_id,rating,timestamp\n1,2,3,4\n")):
        path = folder / f"span-{span}" / f"v{version}"
        path.mkdir(parents=True)
        (path / "interactions.csv").write_text(content)
    data = make_data(sources={**make_data().sources.model_dump(),
                              "interactions": {"files": "span-{SPAN}/v{VERSION}/interactions.csv"}})  # fmt: skip
    resolve_sources(folder, data, make_schema())


def lookup_data(**items: Any) -> Data:
    sources = make_data().sources.model_dump()
    return make_data(sources={**sources, "items": {"files": "items*.csv*", "key": "item_id", **items}})


def test_headers_of_lookups_renamed_columns_and_json(folder: Path) -> None:
    tables = {**make_tables(), "items.csv": "id,year,kind\ni1,1990,k\n", "kinds.json": '{"all": {"a": {"kind": 1}}}'}
    write_tables(folder, tables)
    kinds = {"files": "kinds.json", "records": "all", "key": "kind"}
    for lookup, message in (
        ({**kinds}, r"no column 'title'; the schema has this feature"),
        ({**kinds, "records": "al"}, r"kinds\.json: no key 'al'; did you mean 'all'\? Keys: all\."),
        ({**kinds, "files": "sorts.json"}, r"data\.sources\.items\.lookups\.0\.files: no file matches 'sorts\.json'"),
        (
            {**kinds, "rename": {"name": "title"}},
            r"no column 'name'; data\.sources\.items\.lookups\.0\.rename names it",
        ),
    ):
        with pytest.raises(DataError, match=message):
            data = lookup_data(rename={"id": "item_id"}, lookups=[lookup])
            resolve_sources(folder, data, make_schema())
    write_tables(folder, {"kinds.json": '{"all": [null, {"kind": "k", "name": "Film"}]}'})
    renamed = {**kinds, "rename": {"name": "title"}}
    resolve_sources(folder, lookup_data(rename={"id": "item_id"}, lookups=[renamed]), make_schema())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": {"constant": 1}}, r"data\.label makes the column 'rating', which .*interactions\.csv already has"),
        ({"duplicates": "aggregate", "aggregate": {"sum": {"price": "year"}}}, r"data\.aggregate makes the column"),
        ({"duplicates": "aggregate", "aggregate": {"sum": {"price": "spent"}}},
         r"no column 'price'; data\.aggregate or data\.negatives names it"),
        ({"negatives": {"per_positive": 1, "context": ["channel"]}}, r"no column 'channel'; data\.aggr"),
    ],
)  # fmt: skip
def test_columns_that_the_recipe_makes_or_names(folder: Path, changes: dict[str, Any], message: str) -> None:
    write_tables(folder, make_tables())
    with pytest.raises(DataError, match=message):
        resolve_sources(folder, make_data(**changes), make_schema())
