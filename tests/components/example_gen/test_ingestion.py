"""InteractionExampleGen's executor, run as TFX runs it: the examples are the rows of the CSVs, or the run stops."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ingestion import INTERACTIONS, Ingested, make_data, make_interactions, make_schema, make_tables

from components.example_gen.data_errors import DataError

Ingest = Callable[..., Ingested]


def interactions_of(result: Ingested) -> list[tuple[Any, ...]]:
    """Return the interactions of train and eval, sorted."""
    names = ("user_id", "item_id", "rating", "timestamp")
    return sorted(tuple(row[name] for name in names) for split in ("train", "eval") for row in result.splits[split])


def test_examples_are_the_joined_rows(ingest: Ingest) -> None:
    result = ingest()
    assert result.counts()[:2] == (40, 0)
    assert sum(result.counts()[2:]) == 40
    assert result.splits["train"]
    assert result.splits["eval"]
    for row in (*result.splits["train"], *result.splits["eval"]):
        i = row["timestamp"] - 1000
        assert row == {
            "user_id": b"u%d" % (i % 8),
            "item_id": b"i%d" % (i % 10),
            "rating": 1.0 + i % 5,
            "timestamp": 1000 + i,
            "title": b"Film %d" % (i % 10),
            "year": 1990 + i % 10,
            "age": 20 + i % 8,
        }
    assert len(interactions_of(result)) == len(set(interactions_of(result)))
    assert result.splits["catalogue"] == [
        {"item_id": b"i%d" % i, "title": b"Film %d" % i, "year": 1990 + i} for i in range(12)
    ]
    assert result.artifact.get_int_custom_property("rows_catalogue") == 12
    assert result.artifact.get_string_custom_property("payload_format") == "FORMAT_TF_EXAMPLE"
    assert result.artifact.get_string_custom_property("file_format") == "tfrecords_gzip"
    assert not result.rejected
    assert sorted(path.name for path in Path(result.artifact.uri).iterdir()) == [
        "Split-catalogue", "Split-eval", "Split-train"
    ]  # fmt: skip


def test_the_random_split_does_not_depend_on_files_or_order(ingest: Ingest, folder: Path) -> None:
    whole = ingest()
    lines = make_interactions().splitlines(keepends=True)[1:]
    (folder / "interactions.csv").unlink()
    tables = make_tables()
    del tables["interactions.csv"]
    header = "extra,timestamp,rating,item_id,user_id"
    turned = ["x," + ",".join(reversed(line.strip().split(","))) for line in reversed(lines)]
    tables["interactions-1.csv"] = "\ufeff" + "\r\n".join([header, *turned[:15], ""])
    tables["interactions-2.csv.gz"] = gzip.compress(("\n".join([header, *turned[15:]])).encode())
    parts = ingest(tables)
    for split in ("train", "eval"):
        assert Counter(map(repr, parts.splits[split])) == Counter(map(repr, whole.splits[split]))
    assert len(list(Path(parts.artifact.uri).glob("Split-train/data_tfrecord-*-of-00002.gz"))) == 2


def test_a_time_split_has_no_train_row_after_an_eval_row(ingest: Ingest) -> None:
    rows = [f"u{i % 8},i{i % 10},3,{1000 + (i * 7) % 20}\n" for i in range(60)]
    tables = {**make_tables(), "interactions.csv": INTERACTIONS + "".join(rows)}
    result = ingest(tables, make_data(split={"kind": "time", "eval_fraction": 0.3}))
    assert result.counts() == (60, 0, 42, 18)
    assert max(row["timestamp"] for row in result.splits["train"]) == 1013
    assert min(row["timestamp"] for row in result.splits["eval"]) == 1014


def test_missing_values_and_unmatched_lookups(ingest: Ingest) -> None:
    tables = {
        "interactions.csv": INTERACTIONS
        + "".join(f"007,{item},3,{1000 + i}\n" for i in range(9) for item in ("07", "7", "new")),
        "items.csv": "item_id,title,year\n07,,1999\n7,Seven,\n9,Nine,2009\n",
        "users.csv": 'user_id,age\n7,30\n007,""\n',
    }  # fmt: skip
    result = ingest(tables)
    by_item = {row["item_id"]: row for split in ("train", "eval") for row in result.splits[split]}
    missing: dict[str, Any] = {"title": None, "year": None}
    known: dict[bytes, dict[str, Any]] = {b"07": {"year": 1999}, b"7": {"title": b"Seven"}, b"new": {}}
    for item, features in known.items():
        row = {**by_item[item], "timestamp": 0}
        assert row == {
            "user_id": b"007", "item_id": item, "rating": 3.0, "timestamp": 0, "age": None, **missing, **features
        }  # fmt: skip
    assert result.splits["catalogue"] == [
        {"item_id": b"07", "title": None, "year": 1999},
        {"item_id": b"7", "title": b"Seven", "year": None},
        {"item_id": b"9", "title": b"Nine", "year": 2009},
        {"item_id": b"new", "title": None, "year": None},
    ]


def test_interactions_without_items_and_users(ingest: Ingest) -> None:
    schema = make_schema(
        'feature { name: "u" type: BYTES } feature { name: "i" type: BYTES } feature { name: "y" type: INT }'
    )
    data = make_data(
        sources={"interactions": {"files": "log.csv"}}, columns={"user_id": "u", "item_id": "i", "label": "y"}
    )
    rows = [(f"u{i % 7}", f"i{i % 3}", i % 2) for i in range(42)]
    result = ingest({"log.csv": "i,junk,u,y\n" + "".join(f"{i},?,{u},{y}\n" for u, i, y in rows)}, data, schema)
    read = [
        (row["u"].decode(), row["i"].decode(), row["y"]) for name in ("train", "eval") for row in result.splits[name]
    ]
    assert Counter(read) == Counter(rows)
    assert result.splits["catalogue"] == [{"i": b"i0"}, {"i": b"i1"}, {"i": b"i2"}]


def test_equal_rows_are_in_the_same_split(ingest: Ingest) -> None:
    tables = make_tables()
    tables["interactions.csv"] = make_interactions() + make_interactions().partition("\n")[2]
    result = ingest(tables)
    train, evaluated = ({repr(row) for row in result.splits[name]} for name in ("train", "eval"))
    assert result.counts()[0] == 80
    assert not train & evaluated


# --- malformed rows ---------------------------------------------------------------------------------------------------

MALFORMED_ROWS = [
    ("u1,i1,five,1001", "rating: expected a number from 1 to 5, got 'five'"),
    ("u1,i1,5.5,1001", "rating: expected a number from 1 to 5, got '5.5'"),
    ("u1,i1,nan,1001", "rating: expected a number from 1 to 5, got 'nan'"),
    ("u1,i1,,1001", "rating: expected a number from 1 to 5, got nothing"),
    (",i1,3,1001", "user_id: expected a string, got nothing"),
    ('u1,"",3,1001', "item_id: expected a string, got nothing"),
    ("u1,i1,3,1001000", "timestamp: expected an integer from 1000 to 9999, got '1001000'"),
    ("u1,i1,3,2024-05-01", "timestamp: expected an integer from 1000 to 9999, got '2024-05-01'"),
    ("u1,i1,3,", "timestamp: expected an integer from 1000 to 9999, got nothing"),
    ("u1,i1,3", "expected 4 columns, got 3"),
    ("u1,i1,3,1001,x", "expected 4 columns, got 5"),
    (",i1,x,1001", "user_id: expected a string, got nothing; rating: expected a number from 1 to 5, got 'x'"),
]


def test_malformed_rows_within_the_limit_are_rejected(ingest: Ingest, folder: Path) -> None:
    tables = make_tables()
    # Line breaks inside quotes count as lines, blank lines are not rows.
    tables["interactions.csv"] = (
        make_interactions() + '"u\n1",i1,3,1001\n\n' + "".join(f"{row}\n" for row, _ in MALFORMED_ROWS)
    )
    result = ingest(tables, make_data(max_bad_rows=0.3))
    read, rejected, train, evaluated = result.counts()
    assert (read, rejected) == (41 + len(MALFORMED_ROWS), len(MALFORMED_ROWS))
    assert train + evaluated == 41
    assert len(interactions_of(result)) == 41
    file = str(folder / "interactions.csv")
    assert result.rejected == [
        {"table": "interactions", "file": file, "line": 45 + index, "reason": reason, "row": row}
        for index, (row, reason) in enumerate(MALFORMED_ROWS)
    ]


@pytest.mark.parametrize("split", [{"kind": "random", "eval_fraction": 0.5}, {"kind": "time"}])
def test_malformed_rows_over_the_limit_stop_the_run(
    ingest: Ingest, folder: Path, tmp_path: Path, split: dict[str, Any]
) -> None:
    tables = make_tables()
    tables["interactions.csv"] = make_interactions() + "".join(f"{row}\n" for row, _ in MALFORMED_ROWS)
    with pytest.raises(DataError) as stopped:
        ingest(tables, make_data(max_bad_rows=0.2, split=split))
    file = folder / "interactions.csv"
    assert str(stopped.value).splitlines() == [
        *(f"{file}:{42 + index}: {reason}" for index, (_, reason) in enumerate(MALFORMED_ROWS[:5])),
        "… and 7 more",
        "12 of 52 rows of interactions are malformed; expected at most 10 (data.max_bad_rows: 0.2). Fix them, or raise "
        "data.max_bad_rows: rejected rows are then written beside the examples.",
    ]
    assert not list((tmp_path / "examples").iterdir())


def test_one_malformed_row_stops_the_run_by_default(ingest: Ingest) -> None:
    tables = {**make_tables(), "interactions.csv": make_interactions() + "u1,i1,9,1001\n"}
    with pytest.raises(
        DataError, match=r"interactions\.csv:42: rating: expected a number from 1 to 5, got '9'\n1 of 41 rows"
    ):
        ingest(tables)


def test_malformed_rows_of_a_lookup(ingest: Ingest, folder: Path) -> None:
    tables = {
        **make_tables(),
        "users.csv": "user_id,age\n" + "".join(f"u{i},{'old' if i == 3 else i}\n" for i in range(8)),
    }
    with pytest.raises(DataError, match=r"users\.csv:5: age: expected an integer, got 'old'\n1 of 8 rows of users"):
        ingest(tables)
    result = ingest(tables, make_data(max_bad_rows=0.2))
    assert result.rejected == [
        {"table": "users", "file": str(folder / "users.csv"), "line": 5, "row": "u3,old",
         "reason": "age: expected an integer, got 'old'"}
    ]  # fmt: skip
    assert result.counts()[:2] == (40, 0)
    assert result.artifact.get_int_custom_property("rows_rejected_users") == 1
    assert {row["user_id"] for name in ("train", "eval") for row in result.splits[name] if row["age"] is None} == {
        b"u3"
    }


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("items.csv", "item_id,title,year\n1,A,1\n" + '2,"B\n\nb",2\n' + "1,C,3\n",
         r"items\.csv:6: item_id: expected each key of items once, got '1' again; the first is at .*items\.csv:2\."),
        ("items-2.csv", "item_id,title,year\n77,A,1\ni3,B,2\n",
         r"items\.csv:5: item_id: expected each key of items once, got 'i3' again; the first is at .*items-2\.csv:3\."),
        ("interactions.csv", make_interactions() + 'u1,"i1,3,1001\nu2,i2,3,1002\n',
         r"interactions\.csv:42: a quote that opens in this row is not closed"),
        ("users.csv", 'user_id,age\nu1,"30\n', r"users\.csv:2: a quote that opens in this row is not closed"),
        ("interactions.csv", INTERACTIONS, r"interactions\.csv:1: no row after the header"),
        ("interactions.csv", "", r"interactions\.csv: the file is empty"),
        ("interactions.csv", "user_id,item_id,ratings,timestamp\n1,2,3,4\n", r"did you mean 'ratings'\?"),
        ("interactions.csv", INTERACTIONS + "u1,i1,3,1001\n", r"none of the 1 valid rows of interactions is in"),
    ],
)  # fmt: skip
def test_unusable_tables_stop_the_run(ingest: Ingest, tmp_path: Path, table: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ingest({**make_tables(), table: content}, make_data(max_bad_rows=0.5))
    assert not list((tmp_path / "examples").iterdir())


def test_a_missing_table_stops_the_run(ingest: Ingest) -> None:
    tables = make_tables()
    del tables["users.csv"]
    with pytest.raises(DataError, match=r"data\.sources\.users\.files: no file matches 'users\*\.csv\*'"):
        ingest(tables)


def test_a_time_split_of_a_single_timestamp(ingest: Ingest) -> None:
    tables = {**make_tables(), "interactions.csv": INTERACTIONS + "".join(f"u{i},i1,3,1001\n" for i in range(9))}
    with pytest.raises(DataError, match="all 9 valid rows of interactions have the same timestamp"):
        ingest(tables, make_data(split={"kind": "time"}))


def test_leave_last_n_of_users_with_few_rows(ingest: Ingest) -> None:
    with pytest.raises(DataError, match=r"in eval: no user has more than n = 5 distinct rows\. Choose a smaller n"):
        ingest(None, make_data(split={"kind": "leave_last_n", "n": 5}))


def test_rejected_rows_keep_bytes_that_are_not_utf8(ingest: Ingest) -> None:
    tables = {
        **make_tables(),
        "interactions.csv": make_interactions().encode() + b"u\xe9,i1,3,1001\nu\xe9,i1,3\nu1,i1,3\n",
    }
    result = ingest(tables, make_data(max_bad_rows=0.2))
    assert [(row["line"], row["row"], row["reason"]) for row in result.rejected] == [
        (42, "u\\xe9,i1,3,1001", "expected UTF-8, got other bytes"),
        (43, "u\\xe9,i1,3", "expected UTF-8, got other bytes"),
        (44, "u1,i1,3", "expected 4 columns, got 3"),
    ]
    assert json.dumps(result.rejected)
