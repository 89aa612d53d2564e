"""`tandem init`: the inferred recipe and schema of many CSVs; existing files are never overwritten."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tensorflow_metadata.proto.v0 import schema_pb2

from commands.init.feature_inference import infer_feature
from commands.init.inspection import ColumnRoles
from commands.init.recipe_writer import gate_k, init_recipe
from components.example_gen.resolve import check_features, resolve_sources
from recipe import BadInput, Recipe, load_recipe, load_schema
from recipe.columns import column_types

SAMPLES = Path(__file__).resolve().parents[1] / "samples"


def write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


def rows(count: int = 300, time: Callable[[int], Any] = lambda second: second) -> list[tuple[Any, ...]]:
    """User, item, rating and time of interactions in which no pair repeats."""
    return [(f"{n % 20:03d}", f"{1000 + n // 20}", n % 5 + 1, time(1_500_000_000 + 3600 * n)) for n in range(count)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with ratings, items and users."""
    write(tmp_path / "data" / "ratings.csv", ("who", "what", "stars", "at"), rows())
    write(
        tmp_path / "data" / "things.csv",
        ("what", "title", "tags", "price", "year", "code", "url"),
        [
            (1000 + n, f"The {['red', 'blue', 'old'][n % 3]} thing {n}", ["a|b", "b", "c|a", "c", "a|b|c"][n % 5],
             f"{n + 0.5}", 1990 + n, f"{n % 4:02d}", f"https://example.com/{n}")
            for n in range(40)
        ],
    )  # fmt: skip
    write(
        tmp_path / "data" / "people.csv",
        ("who", "age", "town"),
        [(f"{n:03d}", 20 + n, "ABC"[n % 3]) for n in range(20)],
    )
    return tmp_path / "data"


EXPLICIT = ColumnRoles("who", "what", "stars", "at")
IMPLICIT = ColumnRoles("who", "what", None, None)


def loaded(schema_dir: Path, data: Path) -> tuple[Recipe, schema_pb2.Schema]:
    """What was written, checked as a run checks it."""
    recipe = load_recipe(schema_dir)
    schema = load_schema(schema_dir, recipe)
    check_features(recipe.features, recipe.data.columns, resolve_sources(data, recipe.data, schema))
    return recipe, schema


def domain(schema: schema_pb2.Schema, name: str) -> Any:
    (feature,) = (feature for feature in schema.feature if feature.name == name)
    return getattr(feature, feature.WhichOneof("domain_info"))


# --- what is inferred -------------------------------------------------------------------------------------------------


def test_ratings_with_times_items_and_users(data: Path, tmp_path: Path) -> None:
    written = init_recipe(tmp_path / "My schema", data, EXPLICIT)
    assert written.data == data
    recipe, schema = loaded(tmp_path / "My schema", data)
    assert recipe.name == "my-schema"
    assert recipe.data.sources.interactions.files == "ratings.csv"
    assert recipe.data.sources.items is not None and recipe.data.sources.items.files == "things.csv"
    assert recipe.data.sources.users is not None and recipe.data.sources.users.files == "people.csv"
    assert recipe.data.columns.model_dump() == {
        "user_id": "who", "item_id": "what", "label": "stars", "timestamp": "at"
    }  # fmt: skip
    assert (recipe.data.split.kind, recipe.data.timestamp_format) == ("time", "seconds")
    assert recipe.data.negatives is None and recipe.data.label is None
    assert recipe.data.duplicates == "keep" and recipe.data.max_bad_rows == 0
    assert [(feature.column, feature.kind) for feature in recipe.features.query] == [
        ("who", "id"), ("age", "buckets"), ("town", "categorical")
    ]  # fmt: skip
    assert [(feature.column, feature.kind, feature.display) for feature in recipe.features.candidate] == [
        ("what", "id", False), ("title", "text", True), ("tags", "multi_value", False), ("price", "normalized", False),
        ("year", "buckets", False), ("code", "categorical", False),
    ]  # fmt: skip
    types = column_types(schema)
    # Every id of the items is a number, and an id is text all the same.
    assert types["who"] == types["what"] == types["code"] == "BYTES"
    assert types["stars"] == types["price"] == "FLOAT" and types["year"] == "INT"
    assert (domain(schema, "stars").min, domain(schema, "stars").max) == (1.0, 5.0)


def test_thresholds_are_those_of_a_model_without_information(data: Path, tmp_path: Path) -> None:
    init_recipe(tmp_path / "schema", data, EXPLICIT)
    gates = {gate.metric: gate for gate in loaded(tmp_path / "schema", data)[0].gates}
    assert set(gates) == {"top_5_accuracy", "rmse"}
    assert gates["top_5_accuracy"].at_least == pytest.approx(5 / 40)
    # Five ratings, equally often.
    assert gates["rmse"].at_most == pytest.approx(math.sqrt(2), abs=1e-3)
    assert gates["rmse"].at_most >= math.sqrt(2)


@pytest.mark.parametrize(("catalogue", "k"), [(1, 1), (5, 1), (24, 1), (25, 5), (499, 50), (500, 100), (10**6, 100)])
def test_gate_k_is_at_most_a_fifth_of_the_catalogue(catalogue: int, k: int) -> None:
    assert gate_k(catalogue) == k


def test_implicit_feedback_gets_negatives_and_no_timestamps_a_random_split(data: Path, tmp_path: Path) -> None:
    init_recipe(tmp_path / "schema", data, IMPLICIT)
    recipe, schema = loaded(tmp_path / "schema", data)
    assert recipe.data.label is not None and recipe.data.label.constant == 1
    assert recipe.data.negatives is not None and recipe.data.negatives.per_positive == 4
    assert recipe.data.columns.label == "interacted" and recipe.data.columns.timestamp is None
    assert recipe.data.split.kind == "random"
    assert column_types(schema)["is_positive"] == "FLOAT"
    assert next(gate for gate in recipe.gates if gate.metric == "rmse").at_most == pytest.approx(0.4)


def test_constant_ratings_are_implicit_feedback(tmp_path: Path) -> None:
    write(tmp_path / "d" / "x.csv", ("u", "i", "r", "interacted"), [(n % 9, n, 1, "y") for n in range(90)])
    init_recipe(tmp_path / "schema", tmp_path / "d", ColumnRoles("u", "i", "r", None))
    recipe, _ = loaded(tmp_path / "schema", tmp_path / "d")
    assert recipe.data.negatives is not None
    assert recipe.data.columns.label == "interacted_2", "a column of that name is there"


@pytest.mark.parametrize(
    ("time", "wanted"),
    [
        (lambda second: second, "seconds"),
        (lambda second: 1000 * second + 7, "milliseconds"),
        (lambda second: "2017-07-14 02:40:00", "iso"),
        (lambda second: f"20{second // 3600 % 30 + 10}-05-31", "iso"),
        (lambda second: f"2017-0{second // 3600 % 9 + 1}-14T02:40:00.123Z", "iso"),
    ],
)
def test_times_are_recognised(tmp_path: Path, time: Callable[[int], Any], wanted: str) -> None:
    write(tmp_path / "d" / "x.csv", ("who", "what", "stars", "at"), rows(time=time))
    init_recipe(tmp_path / "schema", tmp_path / "d", EXPLICIT)
    recipe, schema = loaded(tmp_path / "schema", tmp_path / "d")
    assert recipe.data.timestamp_format == wanted
    assert domain(schema, "at").max == 4_102_444_800, "a domain in seconds, whatever the file has"
    # With one single time there is nothing to split by.
    assert recipe.data.split.kind == ("random" if time(0) == time(5000) else "time")


def test_repeated_pairs_keep_the_last_row(tmp_path: Path) -> None:
    write(tmp_path / "d" / "x.csv", ("who", "what", "stars", "at"), [*rows(), *rows(7)])
    init_recipe(tmp_path / "schema", tmp_path / "d", EXPLICIT)
    assert loaded(tmp_path / "schema", tmp_path / "d")[0].data.duplicates == "last"
    assert "# 7 rows repeat a pair of user and item" in (tmp_path / "schema" / "recipe.yaml").read_text()


def test_few_malformed_rows_are_allowed_and_named(tmp_path: Path) -> None:
    content = rows()
    content[150] = ("", *content[150][1:])
    content[200] = (*content[200][:2], "four", content[200][3])
    file = write(tmp_path / "d" / "x.csv", ("who", "what", "stars", "at"), content)
    init_recipe(tmp_path / "schema", tmp_path / "d", EXPLICIT)
    assert loaded(tmp_path / "schema", tmp_path / "d")[0].data.max_bad_rows == 0.01
    assert f"{file}:152" in (tmp_path / "schema" / "recipe.yaml").read_text()


def test_side_table_needs_unique_keys(data: Path, tmp_path: Path) -> None:
    people = (data / "people.csv").read_text()
    (data / "people.csv").write_text(people + people.splitlines()[-1] + "\n")
    written = init_recipe(tmp_path / "schema", data, EXPLICIT)
    assert loaded(tmp_path / "schema", data)[0].data.sources.users is None
    assert any("people.csv" in line and "is not unique" in line for line in written.summary)


def test_columns_of_two_tables_are_renamed(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    write(folder / "x.csv", ("u", "i", "name"), [(n % 9, n % 40, "x") for n in range(90)])
    write(folder / "items.csv", ("i", "name"), [(n, f"thing number {n % 7}") for n in range(40)])
    write(folder / "users.csv", ("u", "name"), [(n, "AB"[n % 2]) for n in range(9)])
    init_recipe(tmp_path / "schema", folder, ColumnRoles("u", "i", None, None))
    recipe, _ = loaded(tmp_path / "schema", folder)
    assert [feature.column for feature in recipe.features.query] == ["u", "users_name"]
    assert [feature.column for feature in recipe.features.candidate] == ["i", "items_name"]


def test_a_file_can_be_named_and_may_be_gzipped(data: Path, tmp_path: Path) -> None:
    packed = data / "more.csv.gz"
    packed.write_bytes(gzip.compress((data / "ratings.csv").read_bytes()))
    with pytest.raises(BadInput, match=r"several CSVs have the columns .*: more\.csv\.gz, ratings\.csv"):
        init_recipe(tmp_path / "schema", data, EXPLICIT)
    written = init_recipe(tmp_path / "schema", packed, EXPLICIT)
    assert written.data == data
    assert loaded(tmp_path / "schema", data)[0].data.sources.interactions.files == "more.csv.gz"


VALUES = 200


@pytest.mark.parametrize(
    ("column", "cell", "kind", "type"),
    [
        ("colour", lambda n: ["red", "green"][n % 2], "categorical", "BYTES"),
        ("floor", lambda n: n % 7, "categorical", "BYTES"),
        ("zip", lambda n: f"{n % 30:05d}", "categorical", "BYTES"),
        ("department_no", lambda n: 1000 + n % 30, "categorical", "BYTES"),
        ("sellerId", lambda n: 1000 + n, None, "BYTES"),
        ("pages", lambda n: 3 * n, "buckets", "INT"),
        ("huge", lambda n: 10**20 + n, "buckets", "FLOAT"),
        ("height", lambda n: 1.5 + n / 400, "normalized", "FLOAT"),
        ("income", lambda n: 1e6 if n == 3 else 10.5 + n, "buckets", "FLOAT"),
        ("title", lambda n: f"The great book {n}", "text", "BYTES"),
        ("genres", lambda n: ["Crime|Drama", "Drama", "Horror|Crime"][n % 3], "categorical", "BYTES"),
        ("tags", lambda n: ";".join("abcdef"[m] for m in range(6) if n >> m & 1), "multi_value", "BYTES"),
        ("labels", lambda n: ", ".join(["old", "new", "big"][: n % 3 + 1]), "categorical", "BYTES"),
        ("summary", lambda n: f"A story, told by {n}, of people who left home, and why", "text", "BYTES"),
        ("link", lambda n: f"https://example.com/{n}", None, "BYTES"),
        ("released", lambda n: f"2020-01-{n % 28 + 1:02d}", None, "BYTES"),
        ("hash", lambda n: f"{n * 2654435761 % 2**32:x}", None, "BYTES"),
        ("row", lambda n: n, None, "INT"),
        ("currency", lambda n: "EUR", None, "BYTES"),
        ("nothing", lambda n: None, None, "BYTES"),
        ("mostly_empty", lambda n: None if n % 10 else n, "buckets", "INT"),
    ],
)
def test_the_kind_of_a_column(column: str, cell: Callable[[int], Any], kind: str | None, type: str) -> None:
    cells = [cell(n) for n in range(VALUES)]
    found = infer_feature(
        column, pa.array([None if value is None or value == "" else str(value) for value in cells], pa.string())
    )
    assert (found.kind, found.type) == (kind, type), found.why
    assert found.why and "\n" not in found.why


# --- what is written --------------------------------------------------------------------------------------------------

AWKWARD = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\u2028\u2029\ufeff")
    | st.sampled_from("#:'\"{}[],&*!|>%@`\\ "),
    min_size=1, max_size=12,
).filter(lambda text: text.strip() != "")  # fmt: skip


@given(st.lists(AWKWARD, min_size=4, max_size=4, unique=True), AWKWARD)
@example(["yes", "null", "1", "~"], "no")
@example(["# user", "item: {", '"stars"', "a\\b"], "{SPAN}")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_column_names_make_a_recipe_that_loads(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], feature: str
) -> None:
    folder = tmp_path_factory.mktemp("awkward")
    user, item, rating, at = names
    write(folder / "d" / "x.csv", names, [(n % 9, n % 40, n % 5, n) for n in range(90)])
    write(folder / "d" / "items.csv", (item, feature), [(n, "AB"[n % 2]) for n in range(40)])
    if feature == item:
        return
    init_recipe(folder / "schema", folder / "d", ColumnRoles(user, item, rating, at))
    recipe, _ = loaded(folder / "schema", folder / "d")
    assert recipe.data.columns.model_dump() == {"user_id": user, "item_id": item, "label": rating, "timestamp": at}
    assert recipe.data.sources.items is not None


def test_existing_files_are_not_overwritten(data: Path, tmp_path: Path) -> None:
    schema_dir = tmp_path / "schema"
    init_recipe(schema_dir, data, EXPLICIT)
    before = {path: path.read_bytes() for path in schema_dir.iterdir()}
    for missing in (None, "recipe.yaml", "schema.pbtxt"):
        if missing:
            (schema_dir / missing).rename(tmp_path / missing)
        there = sorted(schema_dir.iterdir())
        with pytest.raises(BadInput, match=r"file exists.*Choose another folder"):
            init_recipe(schema_dir, data, IMPLICIT)
        assert sorted(schema_dir.iterdir()) == there
        if missing:
            (tmp_path / missing).rename(schema_dir / missing)
    assert {path: path.read_bytes() for path in schema_dir.iterdir()} == before


def test_a_folder_with_other_files_is_written_to(data: Path, tmp_path: Path) -> None:
    schema_dir = tmp_path / "schema"
    schema_dir.mkdir()
    (schema_dir / "notes.txt").write_text("mine")
    init_recipe(schema_dir, data, EXPLICIT)
    assert sorted(path.name for path in schema_dir.iterdir()) == ["notes.txt", "recipe.yaml", "schema.pbtxt"]
    loaded(schema_dir, data)


# --- bad input --------------------------------------------------------------------------------------------------------


def spoilt(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda data: data.joinpath(file).write_bytes(content) and None


def nothing(data: Path) -> None:
    """All is in order."""


def empty_folder(data: Path) -> None:
    for path in data.iterdir():
        path.unlink()


RATINGS = b"who,what,stars,at\n1,2,3,1500000000\n"
BAD: dict[str, tuple[Callable[[Path], None], ColumnRoles, Sequence[str]]] = {
    "a misspelt column": (
        nothing, ColumnRoles("whom", "what", "stars", "at"),
        ["ratings.csv:1", "column 'whom' of --user does not exist", "did you mean 'who'", "who, what, stars, at"],
    ),
    "one column twice": (nothing, ColumnRoles("who", "who", None, None), ["--user and --item", "'who'"]),
    "no CSV": (empty_folder, EXPLICIT, ["no .csv or .csv.gz file"]),
    "an empty CSV": (spoilt("ratings.csv", b""), EXPLICIT, ["ratings.csv: the file is empty"]),
    "not UTF-8": (
        spoilt("ratings.csv", RATINGS + "1,caf\xe9,3,1500000000\n".encode("latin-1")), EXPLICIT,
        ["ratings.csv:3", "expected UTF-8", "iconv"],
    ),
    "ratings in words": (
        spoilt("ratings.csv", RATINGS + b"1,3,good,1500000000\n" * 9), EXPLICIT,
        ["ratings.csv:3", "expected a number, got 'good'", "got 9 of 10"],
    ),
    "times in another format": (
        spoilt("ratings.csv", b"who,what,stars,at\n1,2,3,31/05/2024\n"), EXPLICIT,
        ["ratings.csv", "--timestamp at", "31/05/2024", "timestamp_format"],
    ),
    "times in nanoseconds": (
        spoilt("ratings.csv", b"who,what,stars,at\n1,2,3,1500000000000000000\n"), EXPLICIT,
        ["--timestamp at", "15000000"],
    ),
    "semicolons": (spoilt("ratings.csv", RATINGS.replace(b",", b";")), EXPLICIT, ["ratings.csv:1", "semicolons"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_file_and_line_and_writes_nothing(data: Path, tmp_path: Path, case: str) -> None:
    spoil, parts, told = BAD[case]
    spoil(data)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadInput) as error:
        init_recipe(tmp_path / "schema", data, parts)
    for part in told:
        assert part in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", ["the file is empty"]),
        (b"who,what,stars,at\n", ["no row after the header"]),
        (RATINGS + b"1,caf\xe9,3,1\n", ["expected", "UTF-8", "iconv"]),
        (RATINGS.replace(b",", b";"), ["expected columns separated by commas", "got semicolons"]),
        (b'who,what,stars,at\n1,"2,3,4\n', ["quote"]),
    ],
)
def test_unreadable_file_is_named(tmp_path: Path, content: bytes, told: Sequence[str]) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(content)
    with pytest.raises(BadInput) as error:
        init_recipe(tmp_path / "schema", file, EXPLICIT)
    for part in (str(file), *told):
        assert part in str(error.value)
    assert not (tmp_path / "schema").exists()


def test_missing_folder_suggests_the_closest_name(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="file or folder does not exist; did you mean 'data'"):
        init_recipe(tmp_path / "schema", tmp_path / "dta", EXPLICIT)


# --- the command ------------------------------------------------------------------------------------------------------


def test_command_prints_summary_and_next_command(tmp_path: Path, tandem: Callable[..., Any]) -> None:
    arguments = ("init", tmp_path / "hm", "--data", SAMPLES / "hm", "--user", "customer_id", "--item", "article_id")
    done = tandem(*arguments, "--timestamp", "t_dat")
    assert done.code == 0, done.stderr
    for part in ("Interactions: transactions_train.csv, 730 rows, 90 users, 160 items",
                 "Items:        articles.csv", "Users:        customers.csv",
                 f"tandem run {tmp_path / 'hm'} --data {SAMPLES / 'hm'}"):  # fmt: skip
        assert part in done.stdout
    checked = tandem("check", tmp_path / "hm", "--data", SAMPLES / "hm")
    assert checked.code == 0, checked.stderr
    again = tandem(*arguments)
    assert (again.code, again.stdout) == (2, "")
    assert "file exists" in again.stderr and "Traceback" not in again.stderr
    wrong = tandem("init", tmp_path / "new", "--data", SAMPLES / "hm", "--user", "customer", "--item", "article_id")
    assert wrong.code == 2
    assert "did you mean 'customer_id'" in wrong.stderr
    assert not (tmp_path / "new").exists()
