"""InteractionExampleGen's executor: a Beam pipeline that reads, checks, joins, splits, encodes and writes.

A file is the unit of parallelism: one Beam element is one CSV, and its rows go by in blocks that never leave the worker
that reads them. No row is shuffled between workers, so memory grows neither with the files nor with their number; what
must fit into memory is the lookup tables and the ids of the catalogue.

Beam turns an exception in a worker into its own, so what is wrong with the data is collected as a value, and the
executor raises it after the pipeline.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import IO, Any, Self

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging
from tfx import types
from tfx.components.example_gen import write_split
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_beam_executor
from tfx.dsl.io import fileio
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import proto_utils

from components.example_gen.config import SPLITS, decode_config
from components.example_gen.errors import BadRow, DataError
from components.example_gen.examples import Shard, encode
from components.example_gen.join import Lookup, LookupPart, assemble
from components.example_gen.rows import ARROW_TYPES, read_rows
from components.example_gen.sources import ITEMS, Sources, Table, inspect_sources, no_file
from components.example_gen.split import Mask, Timestamps, random_split, time_split
from pipeline.recipe import Data, RandomSplit, TimeSplit

REJECTED = "rejected"
"""Folder beside the splits with the rejected rows as JSON lines: table, file, line, reason and row."""

_SCRATCH = ".partial"
_PLACES_SHOWN = 5
_CATALOGUE_BATCH = 1 << 15


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of a table that one worker reads.

    Attributes:
        table: `interactions`, `items` or `users`.
        index: Its number within the table.
        file: What to read.
    """

    table: str
    index: int
    file: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of one unit.

    Attributes:
        unit: The unit.
        rows: Rows read, good and bad.
        rejected: Bad rows.
        places: The first few of them in words.
        splits: Rows written per split.
        files: Files written, by split or `rejected`; they lie in the scratch folder.
        problem: Why the unit could not be read at all.
    """

    unit: Unit
    rows: int = 0
    rejected: int = 0
    places: tuple[str, ...] = ()
    splits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problem: str | None = None


class Executor(base_beam_executor.BaseBeamExecutor):  # type: ignore[misc,unused-ignore]
    """Writes the splits `train`, `eval` and `catalogue`, and the rejected rows beside them."""

    def Do(  # noqa: N802  (TFX calls it so)
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Runs the step.

        Args:
            input_dict: Empty.
            output_dict: `examples`: one Examples artifact.
            exec_properties: `input_base`; `input_config` with one pattern a table, as resolved by TFX's driver;
                `custom_config` as written by `config.encode_config`.

        Raises:
            DataError: The CSVs cannot be used; nothing is left in the artifact's folder.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        artifact = artifact_utils.get_single_instance(output_dict[standard_component_specs.EXAMPLES_KEY])
        data, schema = decode_config(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY])
        scratch = os.path.join(artifact.uri, _SCRATCH)
        _clear(artifact.uri)  # of what an interrupted attempt may have left
        fileio.makedirs(scratch)
        try:
            sources = inspect_sources(_find_files(exec_properties, data), data, schema, _open)
            reports = self._run(sources, data, scratch)
            _check(reports, data)
            artifact.split_names = artifact_utils.encode_split_names(list(SPLITS))
            _publish(reports, artifact)
            fileio.rmtree(scratch)
        except BaseException:
            _clear(artifact.uri)
            raise
        _describe(reports, artifact, exec_properties)
        logging.info("Examples generated.")

    def _run(self, sources: Sources, data: Data, scratch: str) -> list[Report]:
        """Runs the Beam pipeline and returns what it reported, in order."""
        result = os.path.join(scratch, "reports.json")
        with self._make_beam_pipeline() as pipeline:
            assembled = [
                pipeline
                | f"Files[{name}]" >> beam.Create(_units(table))
                | f"Read[{name}]" >> beam.Map(_read_lookup, table, scratch)
                | f"Gather[{name}]" >> beam.combiners.ToList()
                | f"Assemble[{name}]" >> beam.Map(_assemble, table)
                for name, table in sources.lookups.items()
            ]
            lookups = beam.pvalue.AsList(assembled | beam.Flatten() if assembled else pipeline | beam.Create([]))
            timestamps = None
            if isinstance(data.split, TimeSplit):
                timestamps = beam.pvalue.AsSingleton(
                    pipeline
                    | "Files[timestamps]" >> beam.Create(_units(sources.interactions))
                    | "Read[timestamps]" >> beam.Map(_summarize_timestamps, sources.interactions, data)
                    | "Gather[timestamps]" >> beam.CombineGlobally(Timestamps.merge)
                )
            _ = (
                pipeline
                | "Files[interactions]" >> beam.Create(_units(sources.interactions))
                | "Write[interactions]" >> beam.Map(_write_interactions, lookups, timestamps, sources, data, scratch)
                | "Gather[interactions]" >> beam.combiners.ToList()
                | "Write[catalogue]" >> beam.Map(_finish, lookups, sources, data, scratch, result)
            )
        with fileio.open(result, "r") as stream:
            return [Report(**{**entry, "unit": Unit(**entry["unit"])}) for entry in json.load(stream)]


# --- the pipeline's steps ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Assembled:
    """A lookup table, or None if it cannot be used, and the reports on its files."""

    name: str
    reports: Sequence[Report]
    lookup: Lookup | None


def _read_lookup(unit: Unit, table: Table, scratch: str) -> tuple[Report, LookupPart | None]:
    """Reads one file of a lookup table."""
    batches, lines = [], []
    with _Rejects(unit, scratch) as rejects:
        try:
            with _open(unit.file) as stream:
                for rows, at, bad in read_rows(stream, unit.file, table.columns):
                    batches.append(rows)
                    lines.append(at)
                    rejects.add(bad)
        except DataError as error:
            return Report(unit, problem=str(error)), None
    schema = pa.schema([(column.name, ARROW_TYPES[column.type]) for column in table.columns])
    part = LookupPart(unit.file, pa.Table.from_batches(batches, schema), np.concatenate([[], *lines]).astype(np.int64))
    return rejects.report(part.rows.num_rows), part


def _assemble(parts: Sequence[tuple[Report, LookupPart | None]], table: Table) -> _Assembled:
    """Puts a lookup table together."""
    reports = [report for report, _ in parts]
    read = [part for _, part in parts if part is not None]
    lookup = None
    try:
        lookup = assemble(table, read) if len(read) == len(parts) else None
    except DataError as error:
        reports.append(Report(Unit(table.name, len(reports), ""), problem=str(error)))
    return _Assembled(table.name, reports, lookup)


def _summarize_timestamps(unit: Unit, table: Table, data: Data) -> Timestamps:
    """The timestamps of a unit's good rows; a file that cannot be read is reported when it is read for good."""
    summary = Timestamps.merge([])
    with contextlib.suppress(DataError), _open(unit.file) as stream:
        for rows, _, _ in read_rows(stream, unit.file, table.columns):
            summary = Timestamps.merge([summary, Timestamps.of(rows.column(data.columns.timestamp).to_numpy())])
    return summary


def _write_interactions(
    unit: Unit,
    lookups: Sequence[_Assembled],
    timestamps: Timestamps | None,
    sources: Sources,
    data: Data,
    scratch: str,
) -> tuple[Report, pa.Array]:
    """Reads one file of interactions, writes its train and eval shard, and returns the item ids in it."""
    item_ids = pa.array([], pa.string())
    if any(assembled.lookup is None for assembled in lookups):
        return Report(unit), item_ids  # the run stops for the lookup's sake
    joined = [assembled.lookup for assembled in lookups if assembled.lookup is not None]
    cut = (
        timestamps.cut(data.split.eval_fraction)
        if timestamps is not None and isinstance(data.split, TimeSplit)
        else None
    )
    try:
        with contextlib.ExitStack() as stack:
            rejects = stack.enter_context(_Rejects(unit, scratch))
            shards = {
                name: stack.enter_context(Shard(_scratch_file(scratch, name, unit))) for name in ("train", "eval")
            }
            stream = stack.enter_context(_open(unit.file))
            for number, (rows, _, bad) in enumerate(read_rows(stream, unit.file, sources.interactions.columns)):
                rejects.add(bad)
                is_eval = _is_eval(rows, data, cut)
                order = np.random.default_rng([unit.index, number]).permutation(rows.num_rows)
                for name, members in (("train", order[~is_eval[order]]), ("eval", order[is_eval[order]])):
                    shards[name].write(encode(_join(rows.take(pa.array(members)), joined, sources.features)))
                item_ids = pc.unique(pa.concat_arrays([item_ids, rows.column(data.columns.item_id)]))
    except DataError as error:
        return Report(unit, problem=str(error)), item_ids
    return rejects.report(sum(shard.rows for shard in shards.values()), shards), item_ids


def _is_eval(rows: pa.RecordBatch, data: Data, cut: int | None) -> Mask:
    columns = data.columns
    if isinstance(data.split, RandomSplit):
        names = [columns.user_id, columns.item_id, columns.timestamp, columns.label]
        keys = [rows.column(name) for name in names if name is not None]
        return random_split(keys, data.split.eval_fraction, data.split.seed)
    assert cut is not None  # a split by time has its side input
    return time_split(rows.column(columns.timestamp), cut)


def _join(rows: pa.RecordBatch, lookups: Sequence[Lookup], features: Sequence[str]) -> pa.RecordBatch:
    columns = {name: rows.column(name) for name in rows.schema.names}
    for lookup in lookups:
        columns.update(lookup.join(rows))
    return pa.RecordBatch.from_arrays([columns[name] for name in features], list(features))


def _finish(
    written: Sequence[tuple[Report, pa.Array]],
    lookups: Sequence[_Assembled],
    sources: Sources,
    data: Data,
    scratch: str,
    result: str,
) -> None:
    """Writes the catalogue and, in one file, everybody's reports."""
    reports = [report for report, _ in written]
    for assembled in lookups:
        reports.extend(assembled.reports)
    if all(report.problem is None for report in reports):
        items = next((assembled.lookup for assembled in lookups if assembled.name == ITEMS), None)
        catalogue = _catalogue([item_ids for _, item_ids in written], items, sources, data.columns.item_id)
        unit = Unit("catalogue", 0, "")
        with Shard(_scratch_file(scratch, "catalogue", unit)) as shard:
            for batch in catalogue.to_batches(max_chunksize=_CATALOGUE_BATCH):
                shard.write(encode(batch))
        reports.append(Report(unit, splits={"catalogue": shard.rows}, files=_files([("catalogue", shard)])))
    order = {table: place for place, table in enumerate((sources.interactions.name, *sources.lookups, "catalogue"))}
    reports.sort(key=lambda report: (order[report.unit.table], report.unit.index))
    # Written under another name first: a worker that is run twice must not leave half a file.
    temporary = f"{result}.{uuid.uuid4().hex}"
    with fileio.open(temporary, "w") as stream:
        json.dump([dataclasses.asdict(report) for report in reports], stream)
    fileio.rename(temporary, result, overwrite=True)


def _catalogue(seen: Sequence[pa.Array], items: Lookup | None, sources: Sources, item_id: str) -> pa.Table:
    """Every known item once: the items table in its order, then other items that somebody touched, sorted by id."""
    ids = pc.unique(pa.concat_arrays([pa.array([], pa.string()), *seen]))
    table = pa.table({item_id: pa.array([], pa.string())})
    if items is not None:
        table = items.rows.select([item_id, *sources.item_features])
        ids = ids.filter(pc.invert(pc.is_in(ids, value_set=items.keys)))
    others = pa.table({item_id: ids.take(pc.sort_indices(ids))})
    return pa.concat_tables([table, others], promote_options="default")


class _Rejects:
    """The bad rows of one unit: counts them and writes them to a file of their own."""

    def __init__(self, unit: Unit, scratch: str) -> None:
        self._unit = unit
        self._path = _scratch_file(scratch, REJECTED, unit)
        self._stream: IO[str] | None = None
        self._count = 0
        self._places: list[str] = []

    def add(self, rows: Sequence[BadRow]) -> None:
        if not rows:
            return
        if self._stream is None:
            self._stream = fileio.open(self._path, "w")
        for row in rows:
            entry = {"table": self._unit.table, **dataclasses.asdict(row)}
            self._stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._places.extend(str(row) for row in rows[: _PLACES_SHOWN - len(self._places)])
        self._count += len(rows)

    def report(self, good: int, shards: Mapping[str, Shard] | None = None) -> Report:
        """What became of the unit, given how many `good` rows it had and where they went."""
        written = list((shards or {}).items())
        files = {**_files(written), **({REJECTED: self._path} if self._count else {})}
        splits = {name: shard.rows for name, shard in written}
        return Report(self._unit, good + self._count, self._count, tuple(self._places), splits, files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._stream is not None:
            self._stream.close()


# --- before and after the pipeline ------------------------------------------------------------------------------------


def _find_files(exec_properties: Mapping[str, Any], data: Data) -> dict[str, list[str]]:
    """The files of each table; the patterns come from the driver, which has filled in span and version."""
    config = example_gen_pb2.Input()
    proto_utils.json_to_proto(exec_properties[standard_component_specs.INPUT_CONFIG_KEY], config)
    base = exec_properties[standard_component_specs.INPUT_BASE_KEY]
    files = {}
    for split in config.splits:
        files[split.name] = sorted(fileio.glob(os.path.join(base, split.pattern)))
        if not files[split.name]:
            there = sorted(fileio.listdir(base)) if fileio.isdir(base) else []
            raise no_file(split.name, split.pattern, base, there)
    return files


def _check(reports: Sequence[Report], data: Data) -> None:
    """Raises what is wrong with the data as a whole.

    Raises:
        DataError: A file could not be read, too many rows are bad, or a split is empty.
    """
    problems = list(dict.fromkeys(report.problem for report in reports if report.problem is not None))
    if problems:
        raise DataError("\n".join(problems[:_PLACES_SHOWN]))
    for table in data.sources.tables():
        mine = [report for report in reports if report.unit.table == table]
        rows, rejected = sum(report.rows for report in mine), sum(report.rejected for report in mine)
        allowed = int(data.max_bad_rows * rows)
        if rejected > data.max_bad_rows * rows:
            places = [place for report in mine for place in report.places][:_PLACES_SHOWN]
            more = f"\n… and {rejected - len(places):,} more" if rejected > len(places) else ""
            raise DataError(
                "\n".join(places) + more + f"\n{rejected:,} of {rows:,} rows of {table} are bad; {allowed:,} may be "
                f"(data.max_bad_rows: {data.max_bad_rows:g}). Correct them, or raise data.max_bad_rows: "
                "rejected rows are then kept beside the examples."
            )
    counts = _counts(reports)
    if counts["rows_read"] != counts["rows_train"] + counts["rows_eval"] + counts["rows_rejected"]:
        raise AssertionError(f"rows went missing, which is a bug in {__name__}: {counts}")
    for split in ("train", "eval"):
        if not counts[f"rows_{split}"]:
            good = f"{counts['rows_read'] - counts['rows_rejected']:,} good rows of interactions"
            if isinstance(data.split, TimeSplit):
                raise DataError(f"data.split: all {good} have the same timestamp, so a split by time leaves "
                                f"{split} empty. Split at random instead, or give more rows.")  # fmt: skip
            raise DataError(f"data.split: none of the {good} is in {split}; at least one was wanted. "
                            "Give more rows, another eval_fraction or another seed.")  # fmt: skip


def _counts(reports: Sequence[Report]) -> dict[str, int]:
    """The artifact's custom properties."""
    interactions = [report for report in reports if report.unit.table == "interactions"]
    counts = {
        "rows_read": sum(report.rows for report in interactions),
        "rows_rejected": sum(report.rejected for report in interactions),
    }
    for report in reports:
        if report.unit.table not in ("interactions", "catalogue"):
            name = f"rows_rejected_{report.unit.table}"
            counts[name] = counts.get(name, 0) + report.rejected
    for split in SPLITS:
        counts[f"rows_{split}"] = sum(report.splits.get(split, 0) for report in reports)
    return counts


def _publish(reports: Sequence[Report], artifact: types.Artifact) -> None:
    """Moves finished files from the scratch folder to where TFX looks for them."""
    for kind in (*SPLITS, REJECTED):
        files = [report.files[kind] for report in reports if kind in report.files]
        if kind == REJECTED:
            folder, name, suffix = os.path.join(artifact.uri, REJECTED), "rows", ".jsonl"
        else:
            folder = artifact_utils.get_split_uri([artifact], kind)
            name, suffix = write_split.DEFAULT_TF_RECORD_FILE_NAME, ".gz"
        if files:
            fileio.makedirs(folder)
        for index, file in enumerate(files):
            fileio.rename(file, os.path.join(folder, f"{name}-{index:05d}-of-{len(files):05d}{suffix}"))


def _describe(reports: Sequence[Report], artifact: types.Artifact, exec_properties: Mapping[str, Any]) -> None:
    """Sets the artifact's properties: counts, and the formats as TFX's own ExampleGen does."""
    for name, count in _counts(reports).items():
        artifact.set_int_custom_property(name, count)
    payload_format = exec_properties.get(standard_component_specs.OUTPUT_DATA_FORMAT_KEY)
    if payload_format:
        examples_utils.set_payload_format(artifact, payload_format)
    file_format = exec_properties.get(standard_component_specs.OUTPUT_FILE_FORMAT_KEY)
    if file_format:
        examples_utils.set_file_format(artifact, write_split.to_file_format_str(file_format))


def _units(table: Table) -> list[Unit]:
    return [Unit(table.name, index, file) for index, file in enumerate(table.files)]


def _open(file: str) -> IO[bytes]:
    stream: IO[bytes] = fileio.open(file, "rb")
    return stream


def _scratch_file(scratch: str, kind: str, unit: Unit) -> str:
    """A name nobody else uses: Beam may run a unit twice, and only one of the two is reported."""
    return os.path.join(scratch, f"{kind}-{unit.table}-{unit.index:05d}-{uuid.uuid4().hex}")


def _files(shards: Sequence[tuple[str, Shard]]) -> dict[str, str]:
    return {name: shard.path for name, shard in shards if shard.rows}


def _clear(folder: str) -> None:
    """Removes everything this executor writes."""
    for name in (*(f"Split-{split}" for split in SPLITS), REJECTED, _SCRATCH):
        path = os.path.join(folder, name)
        if fileio.isdir(path):
            fileio.rmtree(path)
