"""Recommendations for a whole user base, without a server: a Beam job over a pushed model; `tandem batch` calls it.

The file of users is cut into spans, and each span becomes one shard of the output. A shard is written under another
name and renamed when it is whole, with a note of its totals beside it; a job that is started again does the shards that
have no such note.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pydantic
import tensorflow as tf
from apache_beam import Create, DoFn, ParDo, Pipeline, Reshuffle
from apache_beam.options.pipeline_options import PipelineOptions

from components.example_gen.csv_reader import WHOLE_FILE, ByteRange, find_byte_ranges, read_header
from components.example_gen.rows import read_rows
from components.example_gen.table_layout import Column, Table
from components.infra_validator.offline import OfflineModel
from components.pusher.push_destination import pushed_versions
from pipeline.beam import DIRECT, BeamOptions
from recipe import BadInput
from recipe.columns import ColumnType
from recipe.errors import did_you_mean

Format = Literal["parquet", "csv"]

SPAN_BYTES = 128 << 10
"""Bytes of the file of users that make one shard: some 10,000 users without columns."""
USERS_A_CALL = 256

# What is no shard lies apart, under a name that readers of a folder of Parquet files pass over.
NOTES = "_tandem"
JOB_FILE = os.path.join(NOTES, "batch.json")
REJECTED_FILE = os.path.join(NOTES, "rejected.csv")

RECOMMEND = "recommend"
RECOMMEND_FILTERED = "recommend_filtered"
USER_ID = "user_id"
K = "k"
# Inputs of the signatures that are no columns of a user.
_NO_COLUMNS = {USER_ID, K, "history", "exclude", "only"}
_FIXED_OUTPUTS = ("item_ids", "scores", "ratings")
_TYPES: dict[int, ColumnType] = {tf.string.as_datatype_enum: "BYTES", tf.int64.as_datatype_enum: "INT",
                                 tf.float32.as_datatype_enum: "FLOAT"}  # fmt: skip


class BatchError(BadInput):
    """The job cannot be done as asked; nothing was computed."""


class Rejected(pydantic.BaseModel):
    """A row of the file of users that got no recommendations."""

    file: str
    line: int | None
    reason: str
    row: str


class ShardTotals(pydantic.BaseModel):
    """What came of one shard; the note beside it."""

    users: int
    rows: int
    rejected: tuple[Rejected, ...]


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """What the folder holds when the job has ended."""

    model: Path
    shards: tuple[Path, ...]
    computed: int
    """How many of them this job made; the others were there."""
    users: int
    rows: int
    rejected: tuple[Rejected, ...]
    ignored_columns: tuple[str, ...]
    """Columns of the file that the model does not take."""


class BatchJob(pydantic.BaseModel):
    """What the shards of a folder are made of; only a job with the same plan may go on with them."""

    model: str
    users: str
    """SHA-256 of the file's content."""
    user_column: str
    k: int
    format: Format
    spans: tuple[tuple[int, int | None, int], ...]
    """Start, end and first line of each shard's part of the file."""

    def shard(self, number: int) -> str:
        """File name of a shard."""
        return f"part-{number:05}-of-{len(self.spans):05}.{self.format}"


def run_batch(
    model_dir: Path,
    users: Path,
    out: Path,
    *,
    version: int | None = None,
    k: int = 100,
    user_column: str = USER_ID,
    format: Format = "parquet",
    beam: BeamOptions = DIRECT,
    span_bytes: int = SPAN_BYTES,
    progress: Callable[[int, int], None] = lambda done, shards: None,
) -> BatchResult:
    """Writes `k` recommendations for each user: one row for each user and item, best first.

    The columns are the user column, `rank` (from 1), `item_id`, `score`, `rating` and the items' display columns. A
    user for whom the model has fewer items gets fewer rows. Columns of the file that the model's `recommend` takes are
    sent with the user, and an empty cell is what the model remembers of the user.

    Args:
        model_dir: Folder with the numbered versions.
        users: CSV of the users, with a header; gzipped if it ends in `.gz`, and then it becomes one shard.
        out: Folder for the shards; made if needed. Shards that a job with the same arguments left are kept.
        version: The version; None for the newest.
        k: Items a user.
        user_column: Column of the user ids.
        format: Of the shards.
        beam: Where it is computed.
        span_bytes: Bytes of the file that make a shard.
        progress: Called about once a second with the number of shards done and of all.

    Raises:
        BatchError: There is no such version or column, or the folder holds another job's shards.
        BadInput: Beam's options cannot be used.
        DataError: The file cannot be read.
    """
    beam.check()
    path = _version(model_dir, version)
    signature, columns = _question(path, k)
    with _open(users) as stream:
        names = read_header(stream, str(users), bad_rows_allowed=True).names
    if user_column not in names:
        raise BatchError(
            f"{users}:1: there is no column {user_column!r}{did_you_mean(user_column, names) or '.'} It has "
            f"{', '.join(names)}. Name the column of the user ids with --user-column"
        )
    spans = [WHOLE_FILE]
    if users.suffix != ".gz":
        with _open(users) as stream:
            spans = find_byte_ranges(stream, span_bytes)
    with open(users, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    job = BatchJob(
        model=str(path),
        users=digest,
        user_column=user_column,
        k=k,
        format=format,
        spans=tuple((span.start, span.end, span.first_line) for span in spans),
    )
    _keep_job(job, out)
    open_shards = [number for number in range(len(spans)) if not _note(out, job, number).exists()]
    taken = {name: kind for name, kind in columns.items() if name in names and name != user_column}
    if open_shards:
        writer = RecommendSpan(job, users, out, signature, taken)
        options = PipelineOptions(list(beam.pipeline_args()))
        with _reporting(lambda: progress(_done(out, job), len(spans))), Pipeline(options=options) as pipeline:
            _ = pipeline | "Shards" >> Create(open_shards) | "SpreadOut" >> Reshuffle() | "Recommend" >> ParDo(writer)
    totals = [ShardTotals.model_validate_json(_note(out, job, number).read_text()) for number in range(len(spans))]
    rejected = tuple(row for shard in totals for row in shard.rejected)
    _write_rejected(out / REJECTED_FILE, rejected)
    return BatchResult(
        model=path,
        shards=tuple(out / job.shard(number) for number in range(len(spans))),
        computed=len(open_shards),
        users=sum(shard.users for shard in totals),
        rows=sum(shard.rows for shard in totals),
        rejected=rejected,
        ignored_columns=tuple(name for name in names if name not in taken and name != user_column),
    )


class RecommendSpan(DoFn):
    """Writes the shard of one span of the file of users."""

    def __init__(
        self, job: BatchJob, users: Path, out: Path, signature: str, columns: Mapping[str, ColumnType]
    ) -> None:
        """Takes the columns to send, and their types, besides the user column."""
        self._job = job
        self._users = users
        self._out = out
        self._signature = signature
        self._columns = [
            Column(job.user_column, "BYTES", required=True),
            *(Column(name, kind) for name, kind in columns.items()),
        ]
        self._model: OfflineModel | None = None

    def setup(self) -> None:
        """Loads the model once a worker."""
        self._model = OfflineModel(self._job.model)

    def teardown(self) -> None:
        """Lets the model go."""
        if self._model is not None:
            self._model.close()
            self._model = None

    def process(self, number: int) -> Iterator[int]:
        """Writes shard `number` and answers its number; nothing of it is seen before it is whole."""
        assert self._model is not None
        target = self._out / self._job.shard(number)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        schema = _schema(self._model, self._signature, self._job.user_column)
        users = rows = 0
        rejected: list[Rejected] = []
        try:
            with _open(self._users) as stream, _WRITERS[self._job.format](temporary, schema) as writer:
                table = Table("users", (str(self._users),), tuple(self._columns), ())
                for found in read_rows(stream, str(self._users), table, ByteRange(*self._job.spans[number])):
                    rejected += [Rejected(**dataclasses.asdict(row)) for row in found.bad]
                    for start in range(0, found.columns.num_rows, USERS_A_CALL):
                        asked = found.columns.slice(start, USERS_A_CALL)
                        answered = self._recommended(self._model, asked, schema)
                        writer.write(answered)
                        users += asked.num_rows
                        rows += answered.num_rows
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        note = ShardTotals(users=users, rows=rows, rejected=tuple(rejected))
        _write_whole(_note(self._out, self._job, number), note.model_dump_json(indent=1))
        yield number

    def _recommended(self, model: OfflineModel, asked: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
        """The rows of some users."""
        defaults = model.signatures[self._signature].defaults
        users = asked.column(self._job.user_column).to_pylist()
        inputs: dict[str, Any] = {USER_ID: users}
        for column in self._columns[1:]:
            not_given = tf.make_ndarray(defaults[column.name]).ravel()[0]
            values = asked.column(column.name).to_pylist()
            inputs[column.name] = [not_given if value is None else value for value in values]
        if self._signature == RECOMMEND_FILTERED:
            inputs[K] = self._job.k
        answer = {name: values[:, : self._job.k] for name, values in model(self._signature, inputs).items()}
        # A list that is shorter than the others is padded with empty ids.
        there = answer["item_ids"] != b""
        row, rank = np.nonzero(there)
        values = [np.array(users, object)[row], rank + 1, *(answer[name][there] for name in _outputs(answer))]
        arrays = [pa.array(_text(part), field.type) for part, field in zip(values, schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)


# --- what is asked ----------------------------------------------------------------------------------------------------


def _version(model_dir: Path, version: int | None) -> Path:
    there = pushed_versions(str(model_dir))
    if not there:
        raise BatchError(
            f"{model_dir}: there is no version in it. Give the folder that the Pusher writes, such as "
            "work/movielens/serving/movielens"
        )
    if version is not None and version not in there:
        raise BatchError(f"{model_dir}: there is no version {version}. There are: {', '.join(map(str, there))}")
    return model_dir.absolute() / str(there[-1] if version is None else version)


def _question(model: Path, k: int) -> tuple[str, dict[str, ColumnType]]:
    """The signature that answers `k` items, and the columns it takes."""
    with OfflineModel(str(model)) as loaded:
        if RECOMMEND not in loaded.signatures:
            raise BatchError(f"{model}: the model has no signature {RECOMMEND!r}; was it pushed by a Tandem pipeline?")
        (_, length) = (dim.size for dim in loaded.signatures[RECOMMEND].outputs["item_ids"].tensor_shape.dim)
        chosen = RECOMMEND
        if not k <= length and RECOMMEND_FILTERED in loaded.signatures:
            chosen = RECOMMEND_FILTERED
        elif 0 < length < k:
            raise BatchError(
                f"{model}: the model answers {length} items a user, {k} were wanted. Ask for fewer with --k, or train "
                f"a model with serving.k={k}"
            )
        inputs = loaded.signatures[chosen].inputs
        return chosen, {
            name: _TYPES[info.dtype]
            for name, info in inputs.items()
            if name not in _NO_COLUMNS and info.dtype in _TYPES
        }


def _keep_job(job: BatchJob, out: Path) -> None:
    """Notes what the folder's shards are made of, or makes sure that it is the same."""
    path = out / JOB_FILE
    if path.exists():
        found = BatchJob.model_validate_json(path.read_text())
        changed = [name for name in BatchJob.model_fields if getattr(found, name) != getattr(job, name)]
        if changed:
            raise BatchError(
                f"{out} holds the shards of another job: it had another {', '.join(changed)}. Give the same arguments "
                "to go on with it, name another folder with --out, or take this one away"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise BatchError(f"{out} is not empty, and no job of `tandem batch` began it. Name another folder with --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(path, job.model_dump_json(indent=1))


# --- what is written --------------------------------------------------------------------------------------------------

_WRITERS: dict[str, Callable[[Path, pa.Schema], Any]] = {
    "parquet": lambda path, schema: pq.ParquetWriter(path, schema),
    "csv": lambda path, schema: pa_csv.CSVWriter(path, schema),
}


def _schema(model: OfflineModel, signature: str, user_column: str) -> pa.Schema:
    display = _outputs(model.signatures[signature].outputs)[len(_FIXED_OUTPUTS) :]
    return pa.schema(
        [
            (user_column, pa.string()),
            ("rank", pa.int32()),
            ("item_id", pa.string()),
            ("score", pa.float32()),
            ("rating", pa.float32()),
            *((name, pa.string()) for name in display),
        ]
    )


def _outputs(there: Mapping[str, Any]) -> list[str]:
    """The names of a signature's outputs, the display columns last."""
    return [*_FIXED_OUTPUTS, *sorted(there.keys() - set(_FIXED_OUTPUTS))]


def _text(values: npt.NDArray[Any]) -> Any:
    if values.dtype != object:
        return values
    return [value.decode() if isinstance(value, bytes) else value for value in values]


def _note(out: Path, job: BatchJob, number: int) -> Path:
    return out / NOTES / f"{job.shard(number)}.json"


def _done(out: Path, job: BatchJob) -> int:
    return sum(_note(out, job, number).exists() for number in range(len(job.spans)))


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(text)
    os.replace(temporary, path)


def _write_rejected(path: Path, rejected: Sequence[Rejected]) -> None:
    """One line for each rejected row; no file where there are none."""
    if not rejected:
        path.unlink(missing_ok=True)
        return
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "line", "reason", "row"))
        writer.writerows((row.file, row.line, row.reason, row.row) for row in rejected)


def _open(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise BatchError(f"{path}: {error.strerror or error}. Give a CSV of the users with --users") from None


@contextlib.contextmanager
def _reporting(report: Callable[[], None]) -> Iterator[None]:
    """Calls `report` about once a second, and once in the end."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(1.0):
            report()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        report()
