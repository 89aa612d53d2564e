"""MovieLens-100K as the CSVs that a recipe reads; `tandem data movielens` calls it.

The licence of MovieLens-100K does not allow redistribution, so it is not in this repository. A wheel in the package
registry contains it; `schemas/movielens/data.lock` pins the wheel's version and hash.
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
    """The dataset cannot be downloaded, or its content is not as expected."""


def write_movielens(out: Path) -> bool:
    """Download MovieLens-100K and write it to `out` as `interactions.csv`, `items.csv` and `users.csv`.

    Genres are joined by `|`. A missing year is an empty cell. Existing complete files are kept.

        from commands import write_movielens
        write_movielens(Path("data/movielens"))

    Args:
        out: Folder for the CSVs; created if missing.

    Returns:
        True if the files were downloaded, False if they existed.

    Raises:
        DatasetError: The download failed, the wheel has other content, or `out` contains only some of the files.
    """
    there = [name for name in MOVIELENS_COLUMNS if (out / name).exists()]
    absent = [name for name in MOVIELENS_COLUMNS if name not in there]
    if not absent:
        for name in there:
            _check_count(out / name)
        return False
    if there:
        raise DatasetError(
            f"{out}: expected all three files or none, got {', '.join(there)} without {', '.join(absent)}. "
            "Remove these files, or choose another folder."
        )
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out}: expected a folder, got a file.")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Next to `out`, on the same disk, so that the move is atomic.
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
    """Download the wheel that `lock` pins; pip checks its hash."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-input",
               "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(lock),
               "--dest", str(folder)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        output = "\n".join(f"    {line}" for line in done.stderr.strip().splitlines()[-4:])
        raise DatasetError(
            f"Downloading MovieLens-100K from the package registry failed. Output of pip:\n{output}\n"
            "Check the network and pip's index settings and rerun; or download ml-100k.zip from GroupLens and create "
            + "; ".join(f"{out / name} ({','.join(columns)})" for name, columns in MOVIELENS_COLUMNS.items())
            + ", with genres joined by |."
        )
    return wheels[0]


def _convert(wheel: Path, folder: Path) -> None:
    """Write the CSVs from RecBole's files: tab-separated, each column name followed by a colon and a type."""
    with zipfile.ZipFile(wheel) as archive:
        interactions = _rows(archive, "inter", ("user_id", "item_id", "rating", "timestamp"))
        _write(folder / "interactions.csv", interactions)
        items = _rows(archive, "item", ("item_id", "movie_title", "release_year", "class"))
        _write(folder / "items.csv", (_item(*item) for item in items))
        users = _rows(archive, "user", ("user_id", "age", "gender", "occupation"))
        _write(folder / "users.csv", users)


def _item(item_id: str, title: str, year: str, genres: str) -> tuple[str, str, str, str]:
    """Return one item, with title and year fixed where RecBole has split them wrongly."""
    misplaced = _TITLE_WITH_YEAR.fullmatch(title)
    if misplaced and not _YEAR.fullmatch(year):
        title, year = misplaced.groups()
    title = "unknown" if title == "unkonwn" else title
    return item_id, title, year if _YEAR.fullmatch(year) else "", genres.replace(" ", "|")


def _rows(archive: zipfile.ZipFile, suffix: str, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the selected columns of one of RecBole's files."""
    name = f"{_IN_WHEEL}.{suffix}"
    try:
        lines = archive.read(name).decode("utf-8").splitlines()
    except (KeyError, UnicodeDecodeError) as error:
        raise DatasetError(f"{archive.filename}: {name} is missing or is not UTF-8: {error}") from error
    header = [column.partition(":")[0] for column in lines[0].split("\t")]
    if not set(columns) <= set(header):
        raise DatasetError(f"{name}:1: expected the columns {', '.join(columns)}, got {', '.join(header)}")
    for line, text in enumerate(lines[1:], start=2):
        cells = text.split("\t")
        if len(cells) != len(header):
            raise DatasetError(f"{name}:{line}: expected {len(header)} columns, got {len(cells)}")
        row = dict(zip(header, cells, strict=True))
        yield tuple(row[column] for column in columns)


def _write(path: Path, rows: Iterator[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(MOVIELENS_COLUMNS[path.name])
        writer.writerows(rows)


def _check_count(path: Path) -> None:
    """Check that a file has the columns and the number of rows of MovieLens-100K."""
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream)
        header = tuple(next(reader, ()))
        rows = sum(1 for _ in reader)
    if header != MOVIELENS_COLUMNS[path.name] or rows != MOVIELENS_ROWS[path.name]:
        raise DatasetError(
            f"{path}: expected {MOVIELENS_ROWS[path.name]:,} rows of {','.join(MOVIELENS_COLUMNS[path.name])}, got "
            f"{rows:,} of {','.join(header)}. Remove the three files and rerun, or choose another folder."
        )
