"""MovieLens-100K from a wheel; the tests generate the wheel and need no network."""

from __future__ import annotations

import csv
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from commands import movielens
from commands.movielens import DatasetError, write_movielens

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t267\t4\t881250949\n2\t1412\t5\t891717742\n"
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    '1\tShanghai Triad, or "Yao"\t1995\tFilm-Noir Children\'s\n'
    "267\tunkonwn\tunkonwn\tunknown\n"
    "1412\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation Children's\n"
    "543\tMisérables, Les\t1995\tDrama\n"
)
USER = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\ttechnician\t85711\n"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel in RecBole's layout, which `pip download` is made to find."""
    path = tmp_path / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for suffix, text in (("inter", INTER), ("item", ITEM), ("user", USER)):
            archive.writestr(f"recbole/dataset_example/ml-100k/ml-100k.{suffix}", text)
    monkeypatch.setattr(movielens, "MOVIELENS_ROWS", {"interactions.csv": 2, "items.csv": 4, "users.csv": 1})

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--require-hashes", "--no-deps", str(movielens.MOVIELENS_LOCK)} <= set(command)
        if not path.exists():
            return subprocess.CompletedProcess(
                command, 1, "", "WARNING: retrying\nERROR: No matching distribution found"
            )
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    return path


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def test_files_are_written(wheel: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "data"
    assert write_movielens(out)
    assert sorted(path.name for path in out.parent.rglob("*")) == ["data", "interactions.csv", "items.csv", "users.csv"]
    assert rows(out / "interactions.csv") == [
        ["user_id", "item_id", "rating", "timestamp"], ["1", "267", "4", "881250949"], ["2", "1412", "5", "891717742"]
    ]  # fmt: skip
    assert rows(out / "items.csv") == [
        ["item_id", "title", "year", "genres"],
        ["1", 'Shanghai Triad, or "Yao"', "1995", "Film-Noir|Children's"],
        ["267", "unknown", "", "unknown"],
        ["1412", "Land Before Time III: The Time of the Great Giving", "1995", "Animation|Children's"],
        ["543", "Misérables, Les", "1995", "Drama"],
    ]
    assert rows(out / "users.csv") == [["user_id", "age", "gender", "occupation"], ["1", "24", "M", "technician"]]


def test_files_already_there_are_kept(wheel: Path, tmp_path: Path) -> None:
    assert write_movielens(tmp_path / "data")
    wheel.unlink()
    assert not write_movielens(tmp_path / "data")


def test_other_files_in_the_folder_are_left_alone(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("mine")
    assert write_movielens(tmp_path / "data")
    assert (tmp_path / "data" / "notes.txt").read_text() == "mine"
    assert len(list((tmp_path / "data").iterdir())) == 4


def test_incomplete_files_are_an_error(wheel: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    write_movielens(out)
    (out / "items.csv").write_text("item_id,title,year,genres\n1,A,1995,Drama\n")
    with pytest.raises(DatasetError, match=r"items\.csv: expected 4 rows of item_id,title,year,genres, got 1"):
        write_movielens(out)
    (out / "items.csv").unlink()
    with pytest.raises(DatasetError, match=r"got interactions\.csv, users\.csv without items\.csv"):
        write_movielens(out)


def test_failed_download_names_the_remedy(wheel: Path, tmp_path: Path) -> None:
    wheel.unlink()
    with pytest.raises(DatasetError, match=r"(?s)Output of pip:.*No matching distribution.*ml-100k\.zip") as error:
        write_movielens(tmp_path / "data")
    assert f"{tmp_path / 'data' / 'items.csv'} (item_id,title,year,genres)" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_wrong_wheel_is_an_error_and_writes_nothing(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movielens, "MOVIELENS_ROWS", {**movielens.MOVIELENS_ROWS, "users.csv": 943})
    with pytest.raises(DatasetError, match=r"users\.csv: expected 943 rows of .*, got 1"):
        write_movielens(tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]


def test_the_lock_pins_a_hash_and_names_no_registry() -> None:
    text = movielens.MOVIELENS_LOCK.read_text()
    assert "recbole==1.2.1 --hash=sha256:" in text
    assert "://" not in text
