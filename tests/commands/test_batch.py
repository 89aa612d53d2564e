"""`tandem batch`: every user of a CSV gets recommendations once, also if the job is interrupted and restarted."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from commands import batch_inference
from commands.batch_inference import BatchError, run_batch
from commands.cli import main
from components.infra_validator.local_model import LocalModel
from pipeline.beam import BeamOptions, BeamRunner

ITEMS = [f"i{number}" for number in range(1, 7)]
AGE_NOT_GIVEN = -(2**63)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 7: `recommend` answers 4 of 6 items, `recommend_filtered` k of them, and two to the user `few`.

    Everybody gets the same list; what is told of a user's age is added to the ratings, 100 where nothing is.
    """
    module = tf.Module()

    def answer(user_id: tf.Tensor, age: tf.Tensor, k: Any) -> dict[str, tf.Tensor]:
        rows = tf.ones_like(user_id, tf.int32)[:, None]
        there = tf.logical_or((user_id != "few")[:, None], tf.range(k)[None, :] < 2)
        ids = tf.where(there, tf.gather(tf.constant(ITEMS), tf.range(k) * rows), "")
        known = tf.cast(tf.where(age == AGE_NOT_GIVEN, tf.constant(100, tf.int64), age), tf.float32)
        return {
            "item_ids": ids,
            "scores": tf.cast(10 - tf.range(k) * rows, tf.float32),
            "ratings": tf.broadcast_to(known[:, None], tf.shape(ids)),
            "title": tf.strings.join(["Title of ", ids]),
        }

    age = tf.constant([AGE_NOT_GIVEN], tf.int64)
    ids, ages = tf.TensorSpec([None], tf.string, name="user_id"), tf.TensorSpec([None], tf.int64, name="age")

    @tf.function(input_signature=[ids, ages])
    def recommend(user_id: tf.Tensor, age: tf.Tensor = age) -> dict[str, tf.Tensor]:
        return answer(user_id, age, 4)

    @tf.function(input_signature=[ids, ages, tf.TensorSpec([], tf.int32, name="k")])
    def recommend_filtered(user_id: tf.Tensor, age: tf.Tensor = age, k: tf.Tensor = 10) -> dict[str, tf.Tensor]:
        return answer(user_id, age, tf.minimum(k, len(ITEMS)))

    folder = tmp_path_factory.mktemp("serving")
    signatures = {"recommend": recommend, "recommend_filtered": recommend_filtered}
    tf.saved_model.save(module, str(folder / "7"), signatures=signatures)
    del signatures["recommend_filtered"]
    tf.saved_model.save(module, str(folder / "3"), signatures=signatures)
    return folder


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return write_users(tmp_path / "users.csv", [f"u{number},{number}" for number in range(40)])


def write_users(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["user_id,age", *rows, ""]))
    return path


def read(out: Path, format: str = "parquet") -> list[dict[str, Any]]:
    files = sorted(out.glob(f"part-*.{format}"))
    if format == "parquet":
        return [row for file in files for row in pq.read_table(file).to_pylist()]
    return [row for file in files for row in csv.DictReader(file.open())]


def lists(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["user_id"], []).append(row["item_id"])
        assert int(row["rank"]) == len(found[row["user_id"]])
    return found


def test_every_user_gets_k_items(model_dir: Path, users: Path, tmp_path: Path) -> None:
    result = run_batch(model_dir, users, tmp_path / "recs", k=3, span_bytes=60)
    rows = read(tmp_path / "recs")
    assert len(result.shards) > 3 and set(result.shards) == set((tmp_path / "recs").glob("part-*"))
    assert (result.users, result.rows, len(rows)) == (40, 120, 120)
    assert lists(rows) == {f"u{number}": ITEMS[:3] for number in range(40)}
    assert rows[0] == {
        "user_id": "u0",
        "rank": 1,
        "item_id": "i1",
        "score": 10.0,
        "rating": 0.0,
        "title": "Title of i1",
    }
    assert {row["rating"] for row in rows} == {float(number) for number in range(40)}, "each user's own age was sent"
    assert pq.read_table(tmp_path / "recs").num_rows == 120, "the folder reads as one table"


def test_another_beam_runner_gives_equal_shards(
    model_dir: Path, users: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Through Flink's runner of Beam, with Beam's own job service in Flink's place."""
    run_batch(model_dir, users, tmp_path / "here", k=3, span_bytes=60)
    with caplog.at_level(logging.INFO):
        beam = BeamOptions(BeamRunner.FLINK, ("--job_endpoint=embed", "--environment_type=LOOPBACK"))
        run_batch(model_dir, users, tmp_path / "there", k=3, span_bytes=60, beam=beam)
    assert "Job state changed to DONE" in caplog.text
    assert read(tmp_path / "there") == read(tmp_path / "here")


def test_csv_shards_have_the_same_rows(model_dir: Path, users: Path, tmp_path: Path) -> None:
    run_batch(model_dir, users, tmp_path / "parquet", k=3, span_bytes=60)
    run_batch(model_dir, users, tmp_path / "csv", k=3, span_bytes=200, format="csv")
    expected = [{name: str(value) for name, value in row.items()} for row in read(tmp_path / "parquet")]
    for row in (found := read(tmp_path / "csv", "csv")):
        row |= {name: str(float(row[name])) for name in ("score", "rating")}
    assert found == expected


@pytest.mark.parametrize(("k", "length"), [(4, 4), (5, 5), (50, len(ITEMS))])
def test_small_catalogue_and_long_history_give_fewer_items(
    model_dir: Path, tmp_path: Path, k: int, length: int
) -> None:
    users = write_users(tmp_path / "users.csv", ["few,1", "many,2"])
    result = run_batch(model_dir, users, tmp_path / "recs", k=k)
    assert lists(read(tmp_path / "recs")) == {"few": ITEMS[:2], "many": ITEMS[:length]}
    assert result.rows == 2 + length


def test_missing_columns_are_not_sent(model_dir: Path, tmp_path: Path) -> None:
    """An empty cell, and a column that the model does not know, are no values."""
    path = tmp_path / "users.csv"
    path.write_text("town,user_id,age\nUlm,a,\nUlm,b,5\n")
    result = run_batch(model_dir, path, tmp_path / "recs", k=1)
    assert [(row["user_id"], row["rating"]) for row in read(tmp_path / "recs")] == [("a", 100.0), ("b", 5.0)]
    assert result.ignored_columns == ("town",)


def test_malformed_rows_are_rejected_with_file_and_line(model_dir: Path, tmp_path: Path) -> None:
    rows = ['"a\nb",1', "c,old", ",3", "d,4,5", *(f"u{number},6" for number in range(30)), "e,7.5"]
    users = write_users(tmp_path / "users.csv", rows)
    result = run_batch(model_dir, users, tmp_path / "recs", k=2, span_bytes=40)
    assert [row.line for row in result.rejected] == [4, 5, 6, 37], "line breaks inside quotes count"
    for row, word in zip(result.rejected, ("got 'old'", "user_id", "columns", "7.5"), strict=True):
        assert row.file == str(users) and word in row.reason
    assert (result.users, result.rows) == (31, 62)
    assert set(lists(read(tmp_path / "recs"))) == {"a\nb", *(f"u{number}" for number in range(30))}
    told = list(csv.DictReader((tmp_path / "recs" / "_tandem" / "rejected.csv").open()))
    assert [int(row["line"]) for row in told] == [4, 5, 6, 37]


class Stopped(Exception):
    pass


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`stop_after(n)`: the model fails at its n-th call after that. 0 lets it live."""

    def arm(calls: int) -> None:
        left = [calls]
        real = LocalModel.__call__

        def call(self: LocalModel, signature: str, inputs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Stopped
            return real(self, signature, inputs)

        monkeypatch.setattr(batch_inference.LocalModel, "__call__", call)

    return arm


def test_interrupted_job_resumes(
    model_dir: Path, users: Path, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    out = tmp_path / "recs"
    stop_after(4)
    with pytest.raises(Exception, match="Stopped"):
        run_batch(model_dir, users, out, k=2, span_bytes=60)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("part-*")}
    assert len(before) == 3 and not list(out.glob(".*")), "whole shards only, and nothing half written"
    stop_after(0)
    result = run_batch(model_dir, users, out, k=2, span_bytes=60)
    assert result.computed == len(result.shards) - 3
    for name, kept in before.items():
        assert ((out / name).stat().st_mtime_ns, (out / name).read_bytes()) == kept
    assert Counter(row["user_id"] for row in read(out)) == {f"u{number}": 2 for number in range(40)}
    assert (result.users, result.rows) == (40, 80), "totals count the shards from before"
    assert run_batch(model_dir, users, out, k=2, span_bytes=60).computed == 0


def test_shards_of_another_job_are_an_error(model_dir: Path, users: Path, tmp_path: Path) -> None:
    out = tmp_path / "recs"
    run_batch(model_dir, users, out, k=2)
    for changes, name in (({"k": 3}, "k"), ({"k": 2, "format": "csv"}, "format"), ({"k": 2, "version": 3}, "model")):
        with pytest.raises(BatchError, match=rf"shards of a job with another value of: {name}"):
            run_batch(model_dir, users, out, **changes)
    write_users(users, ["new,1"])
    with pytest.raises(BatchError, match=r"another value of: users"):
        run_batch(model_dir, users, out, k=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(BatchError, match=r"not empty"):
        run_batch(model_dir, users, tmp_path / "mine", k=2)


def test_a_gzipped_file_is_one_shard(model_dir: Path, users: Path, tmp_path: Path) -> None:
    packed = tmp_path / "users.csv.gz"
    packed.write_bytes(gzip.compress(users.read_bytes()))
    result = run_batch(model_dir, packed, tmp_path / "recs", k=1, span_bytes=60)
    assert (len(result.shards), result.rows) == (1, 40)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--user-column", "userid"), "user_id"),
        (("--version", "9"), "version 9 does not exist"),
        (("--version", "3", "--k", "5"), "serving.k=5"),
        (("--users", "nowhere.csv"), "nowhere.csv"),
        (("--beam-runner", "flink"), "--beam-arg=--flink_master=HOST:8081"),
        (("--beam-arg=--runner=FlinkRunner",), "set the runner with --beam-runner"),
    ],
)
def test_invalid_arguments_write_nothing(
    model_dir: Path,
    users: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    word: str,
) -> None:
    base = ["--model-dir", model_dir, "--users", users, "--out", tmp_path / "recs"]
    code, _, told = tandem(monkeypatch, capsys, *base, *arguments)
    assert code == 2 and word in told
    assert not (tmp_path / "recs").exists()


def test_command_prints_totals(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    users = write_users(tmp_path / "users.csv", ["a,1", "b,old"])
    base = ["--model-dir", model_dir, "--users", users, "--out", tmp_path / "recs", "--k", "2", "--format", "csv"]
    code, told, _ = tandem(monkeypatch, capsys, *base)
    assert code == 0
    for word in (
        "2 recommendations for 1 users",
        "/7",
        f"{users}:3: age: expected an integer, got 'old'",
        "Rejected 1 rows",
    ):
        assert word in told
    code, told, _ = tandem(monkeypatch, capsys, *base, "--json")
    found = json.loads(told)
    assert (found["users"], found["rows"], found["rejected"], found["computed"]) == (1, 2, 1, 0)


def tandem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["tandem", "batch", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err
