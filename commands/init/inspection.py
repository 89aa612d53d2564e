"""Inspects a folder of CSVs: finds the interactions, items and users tables and measures them."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from commands.init.feature_inference import InferredFeature, infer_feature
from components.example_gen.csv_reader import Header, read_batches, read_header
from components.example_gen.data_errors import BadRow, DataError, shown
from components.example_gen.hashing import hash_values, mix
from components.example_gen.rows import parse
from components.example_gen.table_layout import Column
from components.example_gen.times import parse_times
from recipe import BadInput
from recipe.columns import IS_POSITIVE
from recipe.errors import did_you_mean
from recipe.serving import SIGNATURE_OUTPUTS, can_name_an_input

MOST_BAD_ROWS = 0.01
"""Maximum fraction of malformed rows; with more, the column or the file is wrong."""
MOST_PAIRS = 20_000_000
"""Number of rows that are checked for repeated pairs of user and item."""
LABEL = "interacted"
"""Name of the constant label of implicit feedback, if no column has this name."""

TimeFormat = Literal["seconds", "milliseconds", "iso"]

_MILLISECONDS_FROM = 100_000_000_000  # As seconds, this is the year 5138; as milliseconds, 1973.
_MILLISECONDS_TO = 100_000_000_000_000  # As milliseconds, this is the year 5138; as microseconds, 1973.


class InitError(BadInput):
    """No recipe can be inferred from the data, or the output files exist."""


@dataclasses.dataclass(frozen=True)
class ColumnRoles:
    """Columns with the user ids, item ids, ratings and timestamps, from the command line."""

    user: str
    item: str
    rating: str | None
    timestamp: str | None

    def flags(self) -> dict[str, str]:
        """Return the columns by command-line flag."""
        named = {"--user": self.user, "--item": self.item, "--rating": self.rating, "--timestamp": self.timestamp}
        return {flag: column for flag, column in named.items() if column is not None}


@dataclasses.dataclass
class RatingStatistics:
    """Running statistics of the rating column."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: np.ndarray) -> None:
        if len(values):
            self.count += len(values)
            self.total += float(values.sum())
            self.squares += float((values * values).sum())
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    @property
    def deviation(self) -> float:
        mean = self.total / self.count
        return math.sqrt(max(self.squares / self.count - mean * mean, 0.0))


@dataclasses.dataclass
class InteractionsTable:
    """The interactions table.

    Attributes:
        file: Path below the data folder.
        header: Column names.
        rows: Number of valid rows.
        bad: Number of malformed rows.
        first_bad: First malformed row.
        users: User ids.
        items: Item ids.
        ratings: Statistics of the rating column.
        time_format: Format of the timestamps; None without timestamps.
        times: First and last timestamp, in seconds.
        repeated: Number of rows whose user and item are in an earlier row.
    """

    file: str
    header: Header
    rows: int = 0
    bad: int = 0
    first_bad: BadRow | None = None
    users: set[str] = dataclasses.field(default_factory=set)
    items: set[str] = dataclasses.field(default_factory=set)
    ratings: RatingStatistics = dataclasses.field(default_factory=RatingStatistics)
    time_format: TimeFormat | None = None
    times: tuple[int, int] = (0, 0)
    repeated: int = 0

    @property
    def time_passes(self) -> bool:
        """Whether there are distinct timestamps."""
        return self.time_format is not None and self.times[0] < self.times[1]


@dataclasses.dataclass(frozen=True)
class SideTable:
    """An items or users table.

    Attributes:
        table: `items` or `users`.
        file: Path below the data folder.
        key: Key column.
        rows: Number of rows.
        keys: Values of the key column.
        features: Inferred features of the other columns.
        rename: New names of columns whose names are taken or cannot be input names.
    """

    table: str
    file: str
    key: str
    rows: int
    keys: frozenset[str]
    features: tuple[InferredFeature, ...]
    rename: dict[str, str]

    def name(self, feature: InferredFeature) -> str:
        """Return the feature's column name in the recipe and the schema."""
        return self.rename.get(feature.column, feature.column)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Result of inspecting the data folder."""

    folder: Path
    roles: ColumnRoles
    interactions: InteractionsTable
    items: SideTable | None
    users: SideTable | None
    notes: tuple[str, ...]

    @property
    def implicit(self) -> bool:
        """Whether the data is implicit feedback: no ratings, or equal ratings."""
        return self.roles.rating is None or self.interactions.ratings.deviation == 0

    @property
    def label(self) -> str:
        if not self.implicit:
            return str(self.roles.rating)
        taken = {*self.interactions.header.names, *(f.column for e in self.side_tables() for f in e.features)}
        return next(name for name in (LABEL, *(f"{LABEL}_{n}" for n in range(2, 1000))) if name not in taken)

    @property
    def catalogue(self) -> int:
        """Number of items of the catalogue."""
        return len(self.interactions.items | (self.items.keys if self.items else frozenset()))

    def side_tables(self) -> list[SideTable]:
        return [table for table in (self.items, self.users) if table is not None]


def inspect_data(data: Path, roles: ColumnRoles) -> Inspection:
    """Read the CSVs: the interactions block by block, and the items and users tables next to it."""
    for flag, column in roles.flags().items():
        same = [other for other, name in roles.flags().items() if name == column and other != flag]
        if same:
            raise InitError(f"{flag} and {same[0]} are both set to the column {column!r}; expected different columns.")
    folder, headers, unreadable = _headers(data)
    header = _choose(data, headers, unreadable, roles)
    interactions = _read_interactions(folder, header, roles)
    others = [other for other in headers if other.file != header.file]
    notes = [f"Ignored {_file(folder, file)}: {_one_line(reason)}" for file, reason in unreadable.items()]
    items, more = _find_side_table("items", folder, others, roles.item, interactions.items)
    notes += more
    others = [other for other in others if items is None or other.file != items.file]
    users, more = _find_side_table("users", folder, others, roles.user, interactions.users)
    notes += more
    found = Inspection(folder, roles, interactions, items, users, tuple(notes))
    return _with_unique_names(found)


def _headers(data: Path) -> tuple[Path, list[Header], dict[Path, str]]:
    """Return the folder, the headers of its CSVs (that of `data` first if it is a file) and the errors by file."""
    if not data.exists():
        close = did_you_mean(data.name, [path.name for path in data.parent.iterdir()] if data.parent.is_dir() else [])
        raise InitError(
            f"--data {data}: file or folder does not exist{close or '.'} Expected a CSV or a folder with CSVs."
        )
    folder = data if data.is_dir() else data.parent
    there = sorted(path for path in folder.iterdir() if path.is_file() and _is_csv(path))
    if data.is_dir() and not there:
        raise InitError(
            f"--data {data}: no .csv or .csv.gz file in this folder; expected at least the CSV with the interactions."
        )
    if data.is_file() and not _is_csv(data):
        raise InitError(
            f"--data {data}: expected a file name that ends in .csv or .csv.gz. Rename the file if it is a CSV."
        )
    headers, unreadable = [], {}
    for path in there:
        try:
            with path.open("rb") as stream:
                headers.append(read_header(stream, str(path)))
        except (DataError, OSError) as error:
            if path == data:
                raise
            unreadable[path] = str(error)
    if data.is_file():
        headers.sort(key=lambda header: header.file != str(data))
    return folder, headers, unreadable


def _is_csv(path: Path) -> bool:
    return path.name.endswith((".csv", ".csv.gz"))


def _choose(data: Path, headers: Sequence[Header], unreadable: dict[Path, str], roles: ColumnRoles) -> Header:
    """Return the header of the interactions table: the only CSV that has all columns of the flags."""
    candidates = headers[:1] if data.is_file() else headers
    required = set(roles.flags().values())
    fitting = [header for header in candidates if required <= set(header.names)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = [Path(header.file).name for header in fitting]
        raise InitError(
            f"--data {data}: several CSVs have the columns {', '.join(sorted(required))}: {', '.join(names)}. "
            f"Set --data to the CSV with the interactions, for example --data {fitting[0].file}."
        )
    if unreadable:
        raise InitError(
            f"--data {data}: no CSV has the columns {', '.join(sorted(required))}; these CSVs cannot be read:\n"
            + "\n".join(f"  {reason}" for reason in unreadable.values())
        )
    closest = max(candidates, key=lambda header: sum(_likeness(column, header.names) for column in required))
    for flag, column in roles.flags().items():
        if column not in closest.names:
            close = did_you_mean(column, closest.names) or "."
            raise InitError(
                f"{closest.file}:1: column {column!r} of {flag} does not exist{close} "
                f"Columns: {', '.join(closest.names)}."
            )
    raise AssertionError("a CSV with all columns was not chosen")


def _likeness(column: str, names: Sequence[str]) -> float:
    """Return the similarity of `column` and the most similar of `names`, from 0 to 1."""
    return max(difflib.SequenceMatcher(None, column, name).ratio() for name in names)


def _read_interactions(folder: Path, header: Header, roles: ColumnRoles) -> InteractionsTable:
    """Read the columns of the flags block by block, as a run does."""
    found = InteractionsTable(_file(folder, Path(header.file)), header)
    columns = [Column(roles.user, "BYTES", required=True), Column(roles.item, "BYTES", required=True)]
    if roles.timestamp is not None:
        found.time_format = _time_format(header.file, roles.timestamp)
        columns.append(Column(roles.timestamp, "INT", required=True, time_format=found.time_format))
    if roles.rating is not None:
        columns.append(Column(roles.rating, "FLOAT", required=True))
    times: list[int] = []
    pairs: list[np.ndarray] = []
    with open(header.file, "rb") as stream:
        for batch in read_batches(stream, header.file, [column.name for column in columns]):
            rows = parse(batch, columns)
            found.rows += len(rows.columns)
            found.bad += len(rows.bad)
            found.first_bad = found.first_bad or next(iter(rows.bad), None)
            user, item = rows.columns.column(roles.user), rows.columns.column(roles.item)
            found.users.update(user.unique().to_pylist())
            found.items.update(item.unique().to_pylist())
            if roles.rating is not None:
                found.ratings.add(rows.columns.column(roles.rating).to_numpy().astype(np.float64))
            if roles.timestamp is not None and len(rows.columns):
                ends = pc.min_max(rows.columns.column(roles.timestamp))
                times += [ends["min"].as_py(), ends["max"].as_py()]
            if found.rows <= MOST_PAIRS:
                pairs.append(mix(hash_values(user)) ^ hash_values(item))
    if not found.rows or found.bad > MOST_BAD_ROWS * (found.rows + found.bad):
        total = found.rows + found.bad
        raise InitError(
            f"{found.first_bad}. Malformed rows: expected at most {MOST_BAD_ROWS:.0%}, got {found.bad:,} of {total:,}. "
            "Set another column, or fix the file."
        )
    found.times = (min(times), max(times)) if times else (0, 0)
    found.repeated = sum(map(len, pairs)) - len(np.unique(np.concatenate(pairs)))
    return found


def _time_format(file: str, column: str) -> TimeFormat:
    """Infer the timestamp format from the first rows; the other rows are parsed with it."""
    with open(file, "rb") as stream:
        batch = next(read_batches(stream, file, [column]))
    cells = pc.ascii_trim_whitespace(batch.columns.column(column).drop_null())
    cells = cells.filter(pc.not_equal(cells, ""))
    whole = cells.filter(pc.match_substring_regex(cells, r"^-?[0-9]{1,18}$"))
    if len(whole) and 2 * len(whole) > len(cells):
        largest = pc.max(pc.abs(whole.cast(pa.int64()))).as_py()
        if largest < _MILLISECONDS_TO:
            return "milliseconds" if largest >= _MILLISECONDS_FROM else "seconds"
    _, wrong = parse_times(cells, "iso")
    if len(cells) and 2 * wrong.sum() < len(cells):
        return "iso"
    example = shown(cells[0].as_py()) if len(cells) else "empty cells"
    raise InitError(
        f"{file}: --timestamp {column}: expected seconds or milliseconds since 1970, or dates such as 2024-05-31 or "
        f"2024-05-31T10:00:00Z, got {example}. Remove --timestamp, then set columns.timestamp and timestamp_format "
        "(for example %d/%m/%Y) in the recipe."
    )


def _find_side_table(
    table: str, folder: Path, headers: Sequence[Header], key: str, known: set[str]
) -> tuple[SideTable | None, list[str]]:
    """Return the table whose column `key` is unique and covers most of the known ids, and notes on the others."""
    notes: list[str] = []
    fitting: list[tuple[float, int, Header, pa.Table]] = []
    for header in headers:
        file = _file(folder, Path(header.file))
        if header.names.count(key) != 1:
            continue
        try:
            if not _one_row_each(header, key):
                notes.append(f"Ignored {file}: its column {key!r} is not unique.")
                continue
            content = _read_whole(header)
        except DataError as error:
            notes.append(f"Ignored {file}, which has a column {key!r}: {_one_line(str(error))}")
            continue
        covered = len(known & set(content.column(key).to_pylist())) / len(known)
        fitting.append((covered, len(header.names), header, content))
    if not fitting:
        return None, notes
    fitting.sort(key=lambda candidate: candidate[:2], reverse=True)
    covered, _, header, content = fitting[0]
    file = _file(folder, Path(header.file))
    if not covered:
        return None, [*notes, f"Ignored {file}: no value of its column {key!r} is in the interactions."]
    notes += [
        f"Ignored {_file(folder, Path(o.file))}: {file} covers more of the {table}." for _, _, o, _ in fitting[1:]
    ]
    features = tuple(
        infer_feature(name, content.column(name).combine_chunks()) for name in content.column_names if name != key
    )
    keys = frozenset(content.column(key).to_pylist())
    return SideTable(table, file, key, len(content), keys, features, {}), notes


def _one_row_each(header: Header, key: str) -> bool:
    """Return whether `key` has no missing and no repeated values; stops at the first block that has."""
    seen: set[str] = set()
    with open(header.file, "rb") as stream:
        for batch in read_batches(stream, header.file, [key]):
            keys = batch.columns.column(key)
            before = len(seen)
            seen.update(keys.drop_null().to_pylist())
            if len(seen) < before + len(keys):
                return False
    return True


def _read_whole(header: Header) -> pa.Table:
    """Read every column whose name is unique in the header, as strings."""
    names = [name for name in header.names if name and header.names.count(name) == 1]
    with open(header.file, "rb") as stream:
        batches = list(read_batches(stream, header.file, names))
    bad = next((row for batch in batches for row in batch.malformed), None)
    if bad is not None:
        raise DataError(str(bad))
    return pa.Table.from_batches([batch.columns for batch in batches])


def _with_unique_names(found: Inspection) -> Inspection:
    """Rename columns that are in two tables, and those whose name cannot be an input of the served model."""
    taken = {*found.interactions.header.names, IS_POSITIVE}
    items, users = (_renamed(table, taken) for table in (found.items, found.users))
    return dataclasses.replace(found, items=items, users=users)


def _renamed(table: SideTable | None, taken: set[str]) -> SideTable | None:
    """Rename the columns of `table` whose names are in `taken`, and add all of its names to `taken`."""
    if table is None:
        return None
    rename = {}
    for feature in table.features:
        name = feature.column
        if not can_name_an_input(name):
            word = re.sub(r"\W", "_", name, flags=re.ASCII)
            name = word if can_name_an_input(word) else f"{table.table}_{word}"
        while name in taken or name in SIGNATURE_OUTPUTS:
            name = f"{table.table}_{name}"
        if name != feature.column:
            rename[feature.column] = name
        taken.add(name)
    return dataclasses.replace(table, rename=rename)


def _file(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder))


def _one_line(text: str) -> str:
    return " ".join(text.split())
