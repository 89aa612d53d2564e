"""Public data sets as the CSVs a recipe reads; `tandem data` calls this.

MovieLens-100K may not be passed on, so it is not in this repository. The package registry has it inside a wheel
(`schemas/movielens/data.lock` pins which), and it is taken out of there onto the user's machine.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from recipe import BadInput

MOVIELENS_LOCK = Path(__file__).resolve().parent.parent / "schemas" / "movielens" / "data.lock"
MOVIELENS_COLUMNS = {
    "interactions.csv": ("user_id", "item_id", "rating", "timestamp"),
    "items.csv": ("item_id", "title", "year", "genres"),
    "users.csv": ("user_id", "age", "gender", "occupation"),
}
MOVIELENS_ROWS = {"interactions.csv": 100_000, "items.csv": 1_682, "users.csv": 943}

_IN_WHEEL = "recbole/dataset_example/ml-100k/ml-100k"
_YEAR = re.compile(r"\d{4}")
_TITLE_WITH_YEAR = re.compile(r"(.*) \((\d{4})\)")


class DatasetError(BadInput):
    """A data set cannot be fetched or is not what it should be."""


def write_movielens(out: Path) -> bool:
    """Writes MovieLens-100K to `out` as `interactions.csv`, `items.csv` and `users.csv`.

    Genres are joined by `|`. An unknown year is an empty cell. Files already there are kept if they are whole.

    Returns:
        True if the files were fetched and written, False if they were there already.

    Raises:
        DatasetError: The wheel cannot be fetched or holds other data than expected, or `out` has files in the way.
    """
    there = [name for name in MOVIELENS_COLUMNS if (out / name).exists()]
    absent = [name for name in MOVIELENS_COLUMNS if name not in there]
    if not absent:
        for name in there:
            _check_count(out / name)
        return False
    if there:
        raise DatasetError(
            f"{out}: {', '.join(there)} is there and {', '.join(absent)} is not; "
            "all three files were wanted, or none. Remove what is there, or name another folder."
        )
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out}: is a file; a folder was wanted.")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside `out`, so that moving into it cannot fail halfway for want of space.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary)
        wheel = _fetch(MOVIELENS_LOCK, folder / "wheel", out)
        finished = folder / "finished"
        finished.mkdir()
        _convert(wheel, finished)
        for name in MOVIELENS_COLUMNS:
            _check_count(finished / name)
        if out.exists():
            for name in MOVIELENS_COLUMNS:
                (finished / name).rename(out / name)
        else:
            finished.rename(out)
    return True


def _fetch(lock: Path, folder: Path, out: Path) -> Path:
    """Downloads the one wheel that `lock` pins; pip refuses one with another hash."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-input",
               "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(lock),
               "--dest", str(folder)]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if answer.returncode or len(wheels) != 1:
        said = "\n".join(f"    {line}" for line in answer.stderr.strip().splitlines()[-4:])
        raise DatasetError(
            f"MovieLens-100K could not be fetched from the package registry. pip said:\n{said}\n"
            "Check the network and pip's index settings and try again; or take ml-100k.zip from GroupLens and put "
            + "; ".join(f"{out / name} ({','.join(columns)})" for name, columns in MOVIELENS_COLUMNS.items())
            + " there by hand, with genres joined by |."
        )
    return wheels[0]


def _convert(wheel: Path, folder: Path) -> None:
    """Writes the CSVs from RecBole's files: tab-separated, each column name followed by a colon and a type."""
    with zipfile.ZipFile(wheel) as archive:
        interactions = _rows(archive, "inter", ("user_id", "item_id", "rating", "timestamp"))
        _write(folder / "interactions.csv", interactions)
        items = _rows(archive, "item", ("item_id", "movie_title", "release_year", "class"))
        _write(folder / "items.csv", (_item(*item) for item in items))
        users = _rows(archive, "user", ("user_id", "age", "gender", "occupation"))
        _write(folder / "users.csv", users)


def _item(item_id: str, title: str, year: str, genres: str) -> tuple[str, str, str, str]:
    """One item; puts right where RecBole's cutting of the year off the title went wrong."""
    misplaced = _TITLE_WITH_YEAR.fullmatch(title)
    if misplaced and not _YEAR.fullmatch(year):
        title, year = misplaced.groups()
    title = "unknown" if title == "unkonwn" else title
    return item_id, title, year if _YEAR.fullmatch(year) else "", genres.replace(" ", "|")


def _rows(archive: zipfile.ZipFile, suffix: str, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The wanted columns of one of RecBole's files."""
    name = f"{_IN_WHEEL}.{suffix}"
    try:
        lines = archive.read(name).decode("utf-8").splitlines()
    except (KeyError, UnicodeDecodeError) as error:
        raise DatasetError(f"{archive.filename}: {name} is missing or is not UTF-8: {error}") from error
    header = [column.partition(":")[0] for column in lines[0].split("\t")]
    if not set(columns) <= set(header):
        raise DatasetError(f"{name}:1: found the columns {', '.join(header)}, wanted {', '.join(columns)}")
    for line, text in enumerate(lines[1:], start=2):
        cells = text.split("\t")
        if len(cells) != len(header):
            raise DatasetError(f"{name}:{line}: found {len(cells)} columns, wanted {len(header)}")
        row = dict(zip(header, cells, strict=True))
        yield tuple(row[column] for column in columns)


def _write(path: Path, rows: Iterator[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(MOVIELENS_COLUMNS[path.name])
        writer.writerows(rows)


def _check_count(path: Path) -> None:
    """Makes sure that a file has the columns and the number of rows that MovieLens-100K has."""
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream)
        header = tuple(next(reader, ()))
        rows = sum(1 for _ in reader)
    if header != MOVIELENS_COLUMNS[path.name] or rows != MOVIELENS_ROWS[path.name]:
        raise DatasetError(
            f"{path}: found {rows:,} rows of {','.join(header)}, wanted {MOVIELENS_ROWS[path.name]:,} of "
            f"{','.join(MOVIELENS_COLUMNS[path.name])}. Remove the file to get it anew, or name another folder."
        )
