"""Batch inference: a Beam job that writes recommendations for all users of a CSV; `tandem batch` calls it.

The CSV is divided into byte ranges, and each byte range becomes one shard of the output. A shard is written under a
temporary name and renamed when it is complete; its totals are in a file of their own. A restarted job computes the
shards without such a file.
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
from components.infra_validator.local_model import LocalModel
from components.pusher.push_destination import pushed_versions
from pipeline.beam import DIRECT, BeamOptions
from recipe import BadInput
from recipe.columns import ColumnType
from recipe.errors import did_you_mean

Format = Literal["parquet", "csv"]

SPAN_BYTES = 128 << 10
"""Bytes of the CSV per shard: about 10,000 users without other columns."""
BATCH_SIZE = 256
"""Users per call of the model."""

# Files that are not shards: readers of Parquet folders skip names that begin with an underscore.
NOTES = "_tandem"
JOB_FILE = os.path.join(NOTES, "batch.json")
REJECTED_FILE = os.path.join(NOTES, "rejected.csv")

RECOMMEND = "recommend"
RECOMMEND_FILTERED = "recommend_filtered"
USER_ID = "user_id"
K = "k"
# Inputs of the signatures that are not user features.
_NO_COLUMNS = {USER_ID, K, "history", "exclude", "only"}
_FIXED_OUTPUTS = ("item_ids", "scores", "ratings")
_TYPES: dict[int, ColumnType] = {tf.string.as_datatype_enum: "BYTES", tf.int64.as_datatype_enum: "INT",
                                 tf.float32.as_datatype_enum: "FLOAT"}  # fmt: skip


class BatchError(BadInput):
    """Invalid arguments of the job; nothing was computed."""


class Rejected(pydantic.BaseModel):
    """A rejected row of the CSV."""

    file: str
    line: int | None
    reason: str
    row: str


class ShardTotals(pydantic.BaseModel):
    """Totals of one shard, written next to it."""

    users: int
    rows: int
    rejected: tuple[Rejected, ...]


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """Contents of the output folder after the job."""

    model: Path
    shards: tuple[Path, ...]
    computed: int
    """Number of shards that this job computed; the others existed."""
    users: int
    rows: int
    rejected: tuple[Rejected, ...]
    ignored_columns: tuple[str, ...]
    """Columns of the CSV that are not inputs of the model."""


class BatchJob(pydantic.BaseModel):
    """Arguments of a batch job; a job resumes from existing shards only if all of them are equal."""

    model: str
    users: str
    """SHA-256 of the CSV's content."""
    user_column: str
    k: int
    format: Format
    spans: tuple[tuple[int, int | None, int], ...]
    """Start, end and first line of each shard's byte range."""

    def shard(self, number: int) -> str:
        """Return the file name of a shard."""
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
    """Write the top k recommendations of each user: one row per user and item, by rank.

    The columns are the user column, `rank` (from 1), `item_id`, `score`, `rating` and the items' display columns. A
    user with fewer than k recommendable items gets fewer rows. Columns of the CSV that are inputs of the model's
    `recommend` signature are sent with the user id; for an empty cell the model uses the stored user feature.

    Args:
        model_dir: Folder with the numbered versions.
        users: CSV of the users, with a header; gzipped if its name ends in `.gz`, which gives one shard.
        out: Folder for the shards; created if missing. Shards of an earlier job with the same arguments are kept.
        version: Version to load; the latest if None.
        k: Number of items per user.
        user_column: Column with the user ids.
        format: File format of the shards.
        beam: Beam runner and options.
        span_bytes: Bytes of the CSV per shard.
        progress: Called about once a second with the number of finished shards and of all shards.

    Raises:
        BatchError: The version or the column does not exist, or the folder contains shards of another job.
        BadInput: Invalid Beam options.
        DataError: The CSV cannot be read.
    """
    beam.check()
    path = _version(model_dir, version)
    signature, columns = _signature_for(path, k)
    with _open(users) as stream:
        names = read_header(stream, str(users), bad_rows_allowed=True).names
    if user_column not in names:
        raise BatchError(
            f"{users}:1: column {user_column!r} does not exist{did_you_mean(user_column, names) or '.'} Columns: "
            f"{', '.join(names)}. Set the column with the user ids with --user-column"
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
    """Writes the shard of one byte range of the CSV."""

    def __init__(
        self, job: BatchJob, users: Path, out: Path, signature: str, columns: Mapping[str, ColumnType]
    ) -> None:
        """Store the job, and the columns (with types) to send besides the user column."""
        self._job = job
        self._users = users
        self._out = out
        self._signature = signature
        self._columns = [
            Column(job.user_column, "BYTES", required=True),
            *(Column(name, kind) for name, kind in columns.items()),
        ]
        self._model: LocalModel | None = None

    def setup(self) -> None:
        """Load the model once per worker."""
        self._model = LocalModel(self._job.model)

    def teardown(self) -> None:
        """Release the model."""
        if self._model is not None:
            self._model.close()
            self._model = None

    def process(self, number: int) -> Iterator[int]:
        """Write shard `number` and yield the number; the file appears under its name when it is complete."""
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
                    for start in range(0, found.columns.num_rows, BATCH_SIZE):
                        batch = found.columns.slice(start, BATCH_SIZE)
                        written = self._recommended(self._model, batch, schema)
                        writer.write(written)
                        users += batch.num_rows
                        rows += written.num_rows
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        note = ShardTotals(users=users, rows=rows, rejected=tuple(rejected))
        _write_whole(_note(self._out, self._job, number), note.model_dump_json(indent=1))
        yield number

    def _recommended(self, model: LocalModel, batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
        """Return the rows of a batch of users."""
        defaults = model.signatures[self._signature].defaults
        users = batch.column(self._job.user_column).to_pylist()
        inputs: dict[str, Any] = {USER_ID: users}
        for column in self._columns[1:]:
            missing = tf.make_ndarray(defaults[column.name]).ravel()[0]
            values = batch.column(column.name).to_pylist()
            inputs[column.name] = [missing if value is None else value for value in values]
        if self._signature == RECOMMEND_FILTERED:
            inputs[K] = self._job.k
        outputs = {name: values[:, : self._job.k] for name, values in model(self._signature, inputs).items()}
        # Shorter lists are padded with empty ids.
        there = outputs["item_ids"] != b""
        row, rank = np.nonzero(there)
        values = [np.array(users, object)[row], rank + 1, *(outputs[name][there] for name in _outputs(outputs))]
        arrays = [pa.array(_text(part), field.type) for part, field in zip(values, schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)


# --- inputs -----------------------------------------------------------------------------------------------------------


def _version(model_dir: Path, version: int | None) -> Path:
    there = pushed_versions(str(model_dir))
    if not there:
        raise BatchError(
            f"{model_dir}: no versions found. Set --model-dir to the push destination, for example "
            "work/movielens/serving/movielens"
        )
    if version is not None and version not in there:
        raise BatchError(f"{model_dir}: version {version} does not exist. Versions: {', '.join(map(str, there))}")
    return model_dir.absolute() / str(there[-1] if version is None else version)


def _signature_for(model: Path, k: int) -> tuple[str, dict[str, ColumnType]]:
    """Return the signature that returns `k` items, and its inputs that can be columns."""
    with LocalModel(str(model)) as loaded:
        if RECOMMEND not in loaded.signatures:
            raise BatchError(
                f"{model}: the model has no signature {RECOMMEND!r}. Pass a model that Tandem has exported"
            )
        (_, length) = (dim.size for dim in loaded.signatures[RECOMMEND].outputs["item_ids"].tensor_shape.dim)
        chosen = RECOMMEND
        if not k <= length and RECOMMEND_FILTERED in loaded.signatures:
            chosen = RECOMMEND_FILTERED
        elif 0 < length < k:
            raise BatchError(
                f"{model}: expected --k of at most {length} (serving.k of the model), got {k}. Decrease --k, or train "
                f"a model with serving.k={k}"
            )
        inputs = loaded.signatures[chosen].inputs
        return chosen, {
            name: _TYPES[info.dtype]
            for name, info in inputs.items()
            if name not in _NO_COLUMNS and info.dtype in _TYPES
        }


def _keep_job(job: BatchJob, out: Path) -> None:
    """Write the job's arguments to the folder, or check that those in the folder are equal."""
    path = out / JOB_FILE
    if path.exists():
        found = BatchJob.model_validate_json(path.read_text())
        changed = [name for name in BatchJob.model_fields if getattr(found, name) != getattr(job, name)]
        if changed:
            raise BatchError(
                f"{out} contains shards of a job with another value of: {', '.join(changed)}. Pass the same arguments "
                "to resume it, set --out to another folder, or remove this one"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise BatchError(f"{out} is not empty and was not written by `tandem batch`. Set --out to another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(path, job.model_dump_json(indent=1))


# --- outputs ----------------------------------------------------------------------------------------------------------

_WRITERS: dict[str, Callable[[Path, pa.Schema], Any]] = {
    "parquet": lambda path, schema: pq.ParquetWriter(path, schema),
    "csv": lambda path, schema: pa_csv.CSVWriter(path, schema),
}


def _schema(model: LocalModel, signature: str, user_column: str) -> pa.Schema:
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
    """Return the names of a signature's outputs, display columns last."""
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
    """Write one line per rejected row; remove the file if there are none."""
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
        raise BatchError(f"{path}: {error.strerror or error}. Set --users to a CSV of the users") from None


@contextlib.contextmanager
def _reporting(report: Callable[[], None]) -> Iterator[None]:
    """Call `report` about once a second, and once at the end."""
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
