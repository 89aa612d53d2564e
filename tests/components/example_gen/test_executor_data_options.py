"""InteractionExampleGen's executor with the options of `data`: joins, JSON, times, duplicates, negatives, splits."""

from __future__ import annotations

import datetime
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from ingestion import INTERACTIONS, Ingested, make_data, make_interactions, make_schema, make_tables

from components.example_gen import executor, spill
from components.example_gen.data_errors import DataError
from recipe.data import Data

Ingest = Callable[..., Ingested]
PLAIN = "".join(f'feature {{ name: "{name}" type: {kind} }}\n' for name, kind in {
    "user_id": "BYTES", "item_id": "BYTES", "rating": "FLOAT", "timestamp": "INT", "title": "BYTES", "age": "INT"
}.items())  # fmt: skip
IS_POSITIVE = 'feature { name: "is_positive" type: FLOAT }\n'


def rows_of(result: Ingested) -> list[dict[str, Any]]:
    return [row for split in ("train", "eval") for row in result.splits[split]]


def count(result: Ingested, name: str) -> int:
    return int(result.artifact.get_int_custom_property(f"rows_{name}"))


def check_accounts(result: Ingested) -> None:
    made = count(result, "read") + count(result, "negatives")
    assert made == sum(count(result, name) for name in ("train", "eval", "rejected", "merged"))
    assert [count(result, name) for name in ("train", "eval")] == [
        len(result.splits[name]) for name in ("train", "eval")
    ]


# --- joins and formats ------------------------------------------------------------------------------------------------

SHOP_SCHEMA = """
    feature { name: "customer" type: BYTES }
    feature { name: "item_id" type: BYTES }
    feature { name: "rating" type: FLOAT float_domain { min: 1 max: 5 } }
    feature { name: "timestamp" type: INT int_domain { min: 788918400 max: 4102444800 } }
    feature { name: "category" type: BYTES }
    feature { name: "city" type: BYTES }
"""


def shop(**changes: Any) -> Data:
    """Five tables: order items, their orders and reviews, and products with translated categories."""
    return Data.model_validate({
        "sources": {
            "interactions": {
                "files": "order_items.csv",
                "rename": {"product_id": "item_id"},
                "lookups": [
                    {"files": "orders.csv", "key": "order_id"},
                    {"files": "reviews.csv", "key": "order_id", "duplicates": "last", "rename": {"score": "rating"}},
                    {"files": "cities.csv", "key": "customer"},
                ],
            },
            "items": {
                "files": "products.csv",
                "key": "item_id",
                "rename": {"product_id": "item_id", "category": "category_pt"},
                "lookups": [{"files": "translation.csv", "key": "category_pt", "rename": {"english": "category"}}],
            },
        },
        "columns": {"user_id": "customer", "item_id": "item_id", "label": "rating", "timestamp": "timestamp"},
        "timestamp_format": "%Y-%m-%d %H:%M:%S",
        "split": {"kind": "random", "eval_fraction": 0.5},
        **changes,
    })  # fmt: skip


def shop_tables() -> dict[str, str | bytes]:
    orders = range(30)
    return {
        "order_items.csv": "order_id,product_id,price\n" + "".join(f"o{i},p{i % 4},{i}.5\n" for i in orders),
        "orders.csv": "order_id,customer,timestamp\n"
        + "".join(f"o{i},c{i % 5},2018-01-{1 + i % 28:02} 10:00:00\n" for i in orders),
        "reviews.csv": "review,order_id,score\n"
        + "".join(f"r{i},o{i},{1 + i % 5}\nr{i}b,o{i},{1 + (i + 1) % 5}\n" for i in orders),
        "cities.csv": "customer,city\nc1,Recife\nc2,Belém\n",
        "products.csv": "product_id,category\np0,casa\np1,livros\np2,\np9,casa\n",
        "translation.csv": "\ufeffcategory_pt,english\ncasa,home\nlivros,books\n",
    }


def test_chained_lookups_and_renames(ingest: Ingest) -> None:
    result = ingest(shop_tables(), shop(), make_schema(SHOP_SCHEMA))
    check_accounts(result)
    categories = {0: b"home", 1: b"books", 2: None, 3: None}
    cities = {1: b"Recife", 2: "Belém".encode()}
    start = datetime.datetime(2018, 1, 1, 10, tzinfo=datetime.UTC).timestamp()
    assert sorted(map(repr, rows_of(result))) == sorted(
        repr({
            "category": categories[i % 4],
            "city": cities.get(i % 5),
            "customer": b"c%d" % (i % 5),
            "item_id": b"p%d" % (i % 4),
            "rating": 1.0 + (i + 1) % 5,
            "timestamp": int(start + i % 28 * 86400),
        })
        for i in range(30)
    )  # fmt: skip
    assert result.splits["catalogue"] == [
        {"category": category, "item_id": item}
        for item, category in [(b"p0", b"home"), (b"p1", b"books"), (b"p2", None), (b"p9", b"home"), (b"p3", None)]
    ]
    assert count(result, "merged_interactions_lookups_1") == 30
    assert count(result, "merged") == 0


def test_an_interaction_without_its_row_in_a_required_lookup_is_rejected(ingest: Ingest) -> None:
    tables = shop_tables()
    tables["order_items.csv"] = str(tables["order_items.csv"]) + "o99,p1,1\n"
    with pytest.raises(DataError, match=r"order_items\.csv:32: customer: expected a string, got nothing "
                                        r"\(by order_id from interactions\.lookups\.0\); "):  # fmt: skip
        ingest(tables, shop(), make_schema(SHOP_SCHEMA))
    result = ingest(tables, shop(max_bad_rows=0.1), make_schema(SHOP_SCHEMA))
    check_accounts(result)
    assert [(row["line"], row["row"]) for row in result.rejected] == [(32, "o99,p1,1")]


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("orders.csv", "order_id,customer,timestamp\no1,c1,2018-02-30 10:00:00\n",
         r"orders\.csv:2: timestamp: expected a valid .*, got '2018-02-30 10:00:00'"),
        ("orders.csv", "order_id,customer,timestamp\no1,c1,1918-02-20 10:00:00\n",
         r"orders\.csv:2: timestamp: .* from 1995-01-01 00:00:00 to 2100-01-01 00:00:00, got '1918"),
        ("orders.csv", "order_id,customer,timestamp\no1,c1,2018-02-20 10:00:00\no1,c1,2018-02-20 10:00:00\n",
         r"orders\.csv:3: order_id: .*, got 'o1' again; .* data\.sources\.interactions\.lookups\.0\.duplicates: first"),
        ("orders.csv", "order,customer,timestamp\n1,2,3\n",
         r"no column 'order_id'; it is the key of interactions\.lookups\.0"),
        ("order_items.csv", "order_id,item,price\n1,2,3\n", r"no column 'product_id'; data\.sources\.interactions\.re"),
        ("order_items.csv", "order_id,product_id,item_id\n1,2,3\n",
         r"'product_id' is renamed to 'item_id', but the file already has a column of that name"),
        ("products.csv", "product_id,category,city\n1,2,3\n",
         r"'city' in one table, got it in .*cities\.csv and .*products\.csv"),
    ],
)  # fmt: skip
def test_errors_in_a_lookup_have_a_location(ingest: Ingest, table: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ingest({**shop_tables(), table: content}, shop(), make_schema(SHOP_SCHEMA))


def test_a_firebase_export(ingest: Ingest) -> None:
    export = {
        "User_Book": {
            f"-N{i}": {"bookId": f"-M{i % 4}", "isbn": f"{i % 4:013}", "myRate": 0.5 + i % 9 / 2, "userId": f"u{i % 6}"}
            for i in range(36)
        },
        "Books": {f"-M{i}": {"isbn": f"{i % 5:013}", "title": f"Title {i}"} for i in range(8)},
    }
    schema = make_schema("".join(f'feature {{ name: "{name}" type: {kind} }}\n' for name, kind in {
        "userId": "BYTES", "isbn": "BYTES", "myRate": "FLOAT", "title": "BYTES"}.items()))  # fmt: skip
    data = Data.model_validate({
        "sources": {
            "interactions": {"files": "export.json", "records": "User_Book"},
            "items": {"files": "export.json", "records": "Books", "key": "isbn", "duplicates": "first"},
        },
        "columns": {"user_id": "userId", "item_id": "isbn", "label": "myRate"},
        "split": {"kind": "random", "eval_fraction": 0.5},
    })  # fmt: skip
    result = ingest({"export.json": json.dumps(export)}, data, schema)
    check_accounts(result)
    assert count(result, "read") == 36
    assert count(result, "merged_items") == 3
    assert {row["title"] for row in rows_of(result)} == {b"Title %d" % i for i in range(4)}
    assert len(result.splits["catalogue"]) == 5

    del export["User_Book"]["-N3"]["userId"]
    with pytest.raises(
        DataError, match=r"export\.json: User_Book/-N3: userId: expected a string, got nothing\n1 of 36"
    ):
        ingest({"export.json": json.dumps(export)}, data, schema)
    kept = ingest(None, data.model_copy(update={"max_bad_rows": 0.1}), schema)
    (rejected,) = kept.rejected
    assert rejected["key"] == "User_Book/-N3"
    assert json.loads(rejected["row"]) == export["User_Book"]["-N3"]
    check_accounts(kept)

    strict = data.model_dump()
    strict["sources"]["items"]["duplicates"] = "error"
    with pytest.raises(
        DataError,
        match=r"export\.json: Books/-M5: isbn: .* got '0+' again; the first is at .* Books/-M0\.",
    ):
        ingest({"export.json": json.dumps(export)}, Data.model_validate(strict), schema)


def test_constant_label_and_milliseconds(ingest: Ingest) -> None:
    lines = [f"u{i % 8},i{i % 10},{(1000 + i) * 1000 + 999}" for i in range(40)]
    tables = {**make_tables(), "interactions.csv": "user_id,item_id,timestamp\n" + "\n".join(lines)}
    result = ingest(tables, make_data(label={"constant": 2}, timestamp_format="milliseconds"))
    assert sorted(row["timestamp"] for row in rows_of(result)) == list(range(1000, 1040))
    assert {row["rating"] for row in rows_of(result)} == {2.0}
    with pytest.raises(
        DataError, match=r"data\.label makes the column 'rating', which .*interactions\.csv already has"
    ):
        ingest(make_tables(), make_data(label={"constant": 2}))


# --- splits -----------------------------------------------------------------------------------------------------------

SPLITS = [
    {"kind": "random", "eval_fraction": 0.3},
    {"kind": "by_user", "eval_fraction": 0.4},
    {"kind": "time", "eval_fraction": 0.3},
    {"kind": "leave_last_n", "n": 2},
]

PINNED = {
    "random": "bd54b5fa1f3384b5",
    "by_user": "312165bb58f4a60b",
    "time": "3c77aba196ba1adb",
    "leave_last_n": "be21355369f63b78",
}
"""A digest of the eval rows of each split: the same rows must stay in the same splits across versions."""


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split["kind"])
def test_every_split_with_partitions_and_byte_ranges(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch, split: dict[str, Any]
) -> None:
    """Splits do not depend on byte ranges or partitions, and no eval row is in train."""
    numbers = random.Random(1)
    rows = [(f"u{numbers.randrange(9)}", f"i{numbers.randrange(10)}", numbers.randrange(1, 6),
             numbers.randrange(1000, 1060)) for _ in range(150)]  # fmt: skip
    text = INTERACTIONS + "".join(f'"{user}",{item},{rating},{time}\n' for user, item, rating, time in rows)
    tables = {**make_tables(), "interactions.csv": text}
    whole = ingest(tables, make_data(split=split))
    check_accounts(whole)
    monkeypatch.setattr(spill, "PARTITION_BYTES", 600)
    monkeypatch.setattr(executor, "RANGE_BYTES", 500)
    parts = ingest(tables, make_data(split=split))
    for name in ("train", "eval", "catalogue"):
        assert Counter(map(repr, parts.splits[name])) == Counter(map(repr, whole.splits[name]))
    names = ("user_id", "item_id", "rating", "timestamp")
    train, evaluated = ([tuple(row[name] for name in names) for row in parts.splits[split]]
                        for split in ("train", "eval"))  # fmt: skip
    assert Counter(train + evaluated) == Counter((u.encode(), i.encode(), float(r), t) for u, i, r, t in rows)
    assert not set(train) & set(evaluated)
    assert hashlib.sha256(repr(sorted(evaluated)).encode()).hexdigest()[:16] == PINNED[split["kind"]]
    if split["kind"] == "time":
        assert max(row[3] for row in train) < min(row[3] for row in evaluated)
    if split["kind"] == "by_user":
        assert not {row[0] for row in train} & {row[0] for row in evaluated}
    if split["kind"] == "leave_last_n":
        assert set(Counter(row[0] for row in set(evaluated)).values()) == {2}
        latest_train, first_eval = defaultdict(int), {}
        for row in train:
            latest_train[row[0]] = max(latest_train[row[0]], row[3])
        for row in evaluated:
            first_eval[row[0]] = min(first_eval.get(row[0], 9999), row[3])
        assert all(latest_train[user] <= time for user, time in first_eval.items())


# --- duplicates and negatives -----------------------------------------------------------------------------------------

PURCHASES = """
    feature { name: "user_id" type: BYTES }
    feature { name: "item_id" type: BYTES }
    feature { name: "timestamp" type: INT }
    feature { name: "purchases" type: FLOAT }
    feature { name: "spent" type: FLOAT }
    feature { name: "channel" type: BYTES }
    feature { name: "price" type: FLOAT }
    feature { name: "title" type: BYTES }
    feature { name: "age" type: INT }
"""


def purchases(**changes: Any) -> Data:
    return Data.model_validate({
        "sources": {
            "interactions": {"files": "transactions.csv", "rename": {"t_dat": "timestamp"}},
            "items": {"files": "items.csv", "key": "item_id"},
            "users": {"files": "users.csv", "key": "user_id"},
        },
        "columns": {"user_id": "user_id", "item_id": "item_id", "label": "purchases", "timestamp": "timestamp"},
        "timestamp_format": "iso",
        "duplicates": "aggregate",
        "aggregate": {"count": "purchases", "sum": {"price": "spent"}},
        **changes,
    })  # fmt: skip


def purchase_tables() -> tuple[dict[str, str | bytes], list[tuple[str, str, str, int, float]]]:
    numbers = random.Random(2)
    rows = [(f"2020-09-{numbers.randrange(1, 29):02}", f"u{numbers.randrange(8)}", f"0{numbers.randrange(10)}",
             numbers.randrange(1, 3), numbers.randrange(100) / 100) for _ in range(200)]  # fmt: skip
    return {
        "transactions.csv": "t_dat,user_id,item_id,channel,price\n"
        + "".join(",".join(map(str, row)) + "\n" for row in rows),
        "items.csv": "item_id,title\n" + "".join(f"0{i},Shirt {i}\n" for i in range(30)),
        "users.csv": "user_id,age\n" + "".join(f"u{i},{20 + i}\n" for i in range(8)),
    }, rows


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split["kind"])
def test_purchases_become_counts_and_sampled_negatives(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch, split: dict[str, Any]
) -> None:
    tables, rows = purchase_tables()
    data = purchases(split=split, negatives={"per_positive": 3, "context": ["channel"], "seed": 5})
    monkeypatch.setattr(spill, "PARTITION_BYTES", 2000)
    result = ingest(tables, data, make_schema(PURCHASES + IS_POSITIVE))
    check_accounts(result)
    bought: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row[0]):
        bought[row[1], row[2]].append(row)
    assert count(result, "merged") == len(rows) - len(bought)
    positives = [row for row in rows_of(result) if row["is_positive"] == 1]
    negatives = [row for row in rows_of(result) if row["is_positive"] == 0]
    assert len(positives) == len(bought)
    assert len(positives) + len(negatives) == len(rows_of(result))
    for row in positives:
        same = bought.pop((row["user_id"].decode(), row["item_id"].decode()))
        assert row["purchases"] == len(same)
        assert row["spent"] == pytest.approx(sum(other[4] for other in same), abs=1e-5)
        assert row["price"] == pytest.approx(same[-1][4])
        assert row["channel"] == str(same[-1][3]).encode()
        day = datetime.datetime.fromtimestamp(row["timestamp"], datetime.UTC)
        assert f"{day:%Y-%m-%d}" == same[-1][0]
        assert row["title"] == b"Shirt %d" % int(row["item_id"])
    seen = {(row[1].encode(), row[2].encode()) for row in rows}
    where = defaultdict(set)
    for name in ("train", "eval"):
        parents = {(row["user_id"], row["timestamp"], row["channel"], row["age"])
                   for row in result.splits[name] if row["is_positive"]}  # fmt: skip
        for row in result.splits[name]:
            if not row["is_positive"]:
                assert (row["user_id"], row["item_id"]) not in seen
                assert (row["user_id"], row["timestamp"], row["channel"], row["age"]) in parents
                assert (row["purchases"], row["price"], row["spent"]) == (0.0, None, None)
                assert row["title"] == b"Shirt %d" % int(row["item_id"])
                where[row["user_id"], row["item_id"]].add(name)
    assert all(len(names) == 1 for names in where.values())
    assert len(negatives) == 3 * len(positives)
    monkeypatch.setattr(spill, "PARTITION_BYTES", 10**9)
    again = ingest(tables, data, make_schema(PURCHASES + IS_POSITIVE))
    for name in ("train", "eval"):
        assert Counter(map(repr, again.splits[name])) == Counter(map(repr, result.splits[name]))


def test_the_last_row_of_a_pair_wins(ingest: Ingest) -> None:
    lines = ["u1,i1,1,1005", "u1,i1,2,1009", "u1,i1,3,1007", "u2,i1,4,1001", "u2,i1,5,1001"]
    lines += [f"u{i},i2,3,1000" for i in range(20)]
    tables = {**make_tables(), "interactions.csv": INTERACTIONS + "\n".join(lines)}
    result = ingest(tables, make_data(duplicates="last"))
    check_accounts(result)
    found = {(row["user_id"], row["item_id"]): row["rating"] for row in rows_of(result)}
    assert (found[b"u1", b"i1"], found[b"u2", b"i1"]) == (2.0, 5.0)
    assert count(result, "merged") == 3


def test_negatives_of_the_smallest_recipe(ingest: Ingest) -> None:
    """No items table, no timestamp, a constant label."""
    schema = "".join(f'feature {{ name: "{name}" type: {kind} }}\n' for name, kind in (
        ("u", "BYTES"), ("i", "BYTES"), ("y", "INT")))  # fmt: skip
    data = make_data(
        sources={"interactions": {"files": "log.csv"}},
        columns={"user_id": "u", "item_id": "i", "label": "y"},
        label={"constant": 1},
        negatives={"per_positive": 2},
    )
    pairs = {(f"u{i % 7}", f"i{i * i % 31}") for i in range(60)}
    content = "u,i\n" + "".join(f"{user},{item}\n" for user, item in sorted(pairs))
    result = ingest({"log.csv": content}, data, make_schema(schema + IS_POSITIVE))
    check_accounts(result)
    labels = {(row["u"].decode(), row["i"].decode()): row["y"] for row in rows_of(result)}
    assert {pair for pair, label in labels.items() if label == 1} == pairs
    assert {row["is_positive"] for row in rows_of(result) if row["y"] == 0} == {0.0}
    assert count(result, "negatives") > len(pairs)
    train, evaluated = ({(row["u"], row["i"]) for row in result.splits[name]} for name in ("train", "eval"))
    assert not train & evaluated


@pytest.mark.parametrize("split", [{"kind": "time"}, {"kind": "leave_last_n"}])
def test_rejected_rows_are_counted_with_partitions(ingest: Ingest, split: dict[str, Any]) -> None:
    tables = {**make_tables(), "interactions.csv": make_interactions() + "u1,i1,9,1001\n"}
    with pytest.raises(DataError, match=r"interactions\.csv:42: rating: expected a number from 1 to 5, got '9'"):
        ingest(tables, make_data(split=split))
    result = ingest(tables, make_data(split=split, max_bad_rows=0.1))
    check_accounts(result)
    assert count(result, "rejected") == 1
