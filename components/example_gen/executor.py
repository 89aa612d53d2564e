"""InteractionExampleGen's executor: a Beam pipeline that reads, checks, joins, splits, encodes and writes.

The unit of parallelism is a file, or a byte range of a large one: each is one Beam element, and is read in blocks. If a
row's examples depend on that row alone, the worker that reads the row writes them. If they depend on all rows of the
user (duplicates, leave-last-n split, negatives) or of the dataset (split by time), workers first write the rows to
files by partition of users, and each partition is then one Beam element. No row is shuffled through Beam, so memory
does not grow with the size or the number of files. The lookup tables, the ids of the catalogue, one partition and all
rows of any one user must fit into memory.

Beam replaces an exception in a worker by one of its own, so workers return problems with the data as values, and the
executor raises them after the pipeline.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Self

import apache_beam as beam
import numpy as np
import numpy.typing as npt
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

from components.example_gen.config import CATALOGUE, SPLITS, decode_config
from components.example_gen.csv_reader import WHOLE_FILE, ByteRange, find_byte_ranges
from components.example_gen.data_errors import BadRow, DataError
from components.example_gen.duplicates import merge
from components.example_gen.examples import Shard, encode
from components.example_gen.hashing import hash_values
from components.example_gen.join import LookupTable, LookupTablePart, assemble, join_all, one_chunk
from components.example_gen.negatives import sample_negatives
from components.example_gen.rows import ARROW_TYPES, Mask, read_rows, reason
from components.example_gen.spill import Spill, count_partitions, read_spilled, write_rows
from components.example_gen.splitters import Splitter, splitter_of
from components.example_gen.table_layout import (
    INTERACTIONS,
    ITEMS,
    Column,
    ResolvedSources,
    Table,
    no_file,
    read_headers,
)
from recipe.columns import IS_POSITIVE
from recipe.data import Data

REJECTED = "rejected"
"""Folder beside the splits with the rejected rows as JSON lines: table, file, line, reason and row."""

PARTITIONS = "partitions"

RANGE_BYTES = 64 << 20
"""Size of the byte ranges in which an uncompressed CSV larger than twice this is read."""

_SCRATCH = ".partial"
_PLACES_SHOWN = 5
_BATCH_ROWS = 1 << 15
_COMPRESSION = 6


@dataclasses.dataclass(frozen=True)
class Unit:
    """Rows that one worker reads or writes: a byte range of a file, a partition, or the catalogue.

    Attributes:
        table: Name of the table as in `data.sources.tables()`, or `partitions` or `catalogue`.
        index: Number of the file within the table, or of the partition.
        file: The file to read.
        part: Number of the byte range within the file.
        byte_range: The part of the file to read.
    """

    table: str
    index: int
    file: str
    part: int = 0
    byte_range: ByteRange = WHOLE_FILE


@dataclasses.dataclass(frozen=True)
class UnitReport:
    """Result of reading or writing one unit.

    Attributes:
        unit: The unit.
        rows: Number of rows read, valid and malformed.
        rejected: Number of malformed rows.
        merged: Number of valid rows that were merged into others as duplicates.
        negatives: Number of sampled negatives.
        places: Messages on the first rejected rows.
        splits: Number of examples written, by split.
        files: Files written to the scratch folder, by split or `rejected`.
        problem: Error message, if the unit could not be read.
    """

    unit: Unit
    rows: int = 0
    rejected: int = 0
    merged: int = 0
    negatives: int = 0
    places: tuple[str, ...] = ()
    splits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problem: str | None = None


class Executor(base_beam_executor.BaseBeamExecutor):  # type: ignore[misc,unused-ignore]
    """Write the splits `train`, `eval` and `catalogue`, and the rejected rows beside them."""

    def Do(  # noqa: N802  (TFX calls it so)
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Run the component.

        Args:
            input_dict: Empty.
            output_dict: `examples`: one Examples artifact.
            exec_properties: `input_base`; `input_config` with one pattern per table, resolved by TFX's driver;
                `custom_config` as written by `config.encode_config`.

        Raises:
            DataError: The files cannot be used. The artifact's folder is empty then.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        artifact = artifact_utils.get_single_instance(output_dict[standard_component_specs.EXAMPLES_KEY])
        data, schema = decode_config(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY])
        scratch = os.path.join(artifact.uri, _SCRATCH)
        _clear(artifact.uri)  # an interrupted attempt may have left files
        fileio.makedirs(scratch)
        try:
            sources = read_headers(_find_files(exec_properties), data, schema, _open)
            reports = self._run(sources, data, scratch)
            _check(reports, sources, data)
            artifact.split_names = artifact_utils.encode_split_names(list(SPLITS))
            _publish(reports, artifact)
            fileio.rmtree(scratch)
        except BaseException:
            _clear(artifact.uri)
            raise
        _set_properties(reports, artifact, exec_properties)
        logging.info("Examples generated.")

    def _run(self, sources: ResolvedSources, data: Data, scratch: str) -> list[UnitReport]:
        """Run the Beam pipeline and return the reports of all units, in order."""
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
            each = assembled | beam.Flatten() if assembled else pipeline | "No lookups" >> beam.Create([])
            lookups = beam.pvalue.AsSingleton(
                pipeline
                | "Start[lookups]" >> beam.Create([None])
                | "Gather[lookups]" >> beam.Map(_gather_lookups, beam.pvalue.AsList(each), sources)
            )
            units = (
                pipeline
                | "Files[interactions]" >> beam.Create(_units(sources.interactions))
                | "Divide[interactions]" >> beam.FlatMap(_divide, sources.interactions)
                | "Spread[interactions]" >> beam.Reshuffle()
            )
            if _row_by_row(data):
                written = units | "Write[interactions]" >> beam.Map(_write_rows, lookups, sources, data, scratch)
                others = pipeline | "No partitions" >> beam.Create([])
            else:
                partitions = count_partitions(_uncompressed_bytes(sources.interactions))
                written = units | "Spill[interactions]" >> beam.Map(
                    _spill_rows, lookups, sources, data, scratch, partitions
                )
                spilled = beam.pvalue.AsList(written)
                merged = (
                    pipeline
                    | "Partitions" >> beam.Create(range(partitions))
                    | "Spread[partitions]" >> beam.Reshuffle()
                    | "Merge[partitions]" >> beam.Map(_merge_partition, spilled, sources, data, scratch)
                )
                whole = beam.pvalue.AsSingleton(
                    pipeline
                    | "Start[whole]" >> beam.Create([None])
                    | "Combine[partitions]"
                    >> beam.Map(_combine, spilled, beam.pvalue.AsList(merged), lookups, sources, data)
                )
                others = merged | "Write[partitions]" >> beam.Map(
                    _write_partition, whole, lookups, sources, data, scratch
                )
            _ = (
                pipeline
                | "Start[catalogue]" >> beam.Create([None])
                | "Write[catalogue]"
                >> beam.Map(
                    _finish,
                    beam.pvalue.AsList(written),
                    beam.pvalue.AsList(others),
                    lookups,
                    sources,
                    data,
                    scratch,
                    result,
                )
            )
        with fileio.open(result, "r") as stream:
            return [_report(entry) for entry in json.load(stream)]


def _row_by_row(data: Data) -> bool:
    """Return whether each row's examples depend on that row alone."""
    return not splitter_of(data).needs_all_rows and data.duplicates == "keep" and data.negatives is None


# --- lookups ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _AssembledLookup:
    """A lookup table, None if it cannot be used, and the reports on its files."""

    name: str
    reports: Sequence[UnitReport]
    lookup: LookupTable | None


@dataclasses.dataclass(frozen=True)
class _LookupTables:
    """All lookup tables of a run, ready to be joined.

    Attributes:
        reports: Reports on their files.
        usable: Whether all could be read. If not, `first` and `roots` are empty.
        first: Tables joined onto the interactions as they are read.
        roots: `items` and `users`, each with its own lookups joined; joined last.
    """

    reports: Sequence[UnitReport]
    usable: bool
    first: Sequence[LookupTable] = ()
    roots: Sequence[LookupTable] = ()

    @property
    def items(self) -> LookupTable | None:
        return next((lookup for lookup in self.roots if lookup.table.name == ITEMS), None)


def _read_lookup(unit: Unit, table: Table, scratch: str) -> tuple[UnitReport, LookupTablePart | None]:
    """Read one file of a lookup table."""
    batches, places = [], []
    with _RejectedRows(unit, scratch) as rejects:
        try:
            with _open(unit.file) as stream:
                for rows in read_rows(stream, unit.file, table):
                    batches.append(rows.columns)
                    places.append(rows.places())
                    rejects.add(rows.bad)
        except DataError as error:
            return UnitReport(unit, problem=str(error)), None
    schema = pa.schema([(column.name, ARROW_TYPES[column.type]) for column in table.columns])
    kind = pa.string() if table.format == "json" else pa.int64()
    part = LookupTablePart(unit.file, pa.Table.from_batches(batches, schema), pa.chunked_array(places, kind))
    return rejects.report(part.rows.num_rows), part


def _assemble(parts: Sequence[tuple[UnitReport, LookupTablePart | None]], table: Table) -> _AssembledLookup:
    """Combine the files of a lookup table."""
    reports = [report for report, _ in parts]
    read = [part for _, part in parts if part is not None]
    lookup = None
    try:
        lookup = assemble(table, read) if len(read) == len(parts) else None
        if lookup is not None and lookup.merged:
            reports.append(UnitReport(Unit(table.name, len(reports), ""), merged=lookup.merged))
    except DataError as error:
        reports.append(UnitReport(Unit(table.name, len(reports), ""), problem=str(error)))
    return _AssembledLookup(table.name, reports, lookup)


def _gather_lookups(_: None, assembled: Sequence[_AssembledLookup], sources: ResolvedSources) -> _LookupTables:
    """Join the lookups of items and users onto them."""
    reports = [report for one in assembled for report in one.reports]
    ready = {one.name: one.lookup for one in assembled if one.lookup is not None}
    if len(ready) < len(assembled):
        return _LookupTables(reports, usable=False)
    first = [ready[name] for name in sources.lookups_of(INTERACTIONS)]
    roots = [lookup.joined_with([ready[child] for child in sources.lookups_of(name)])
             for name, lookup in sorted(ready.items()) if name == sources.lookups[name].root]  # fmt: skip
    return _LookupTables(reports, True, first, roots)


# --- interactions -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _ReadResult:
    """Result of reading one unit of interactions.

    Attributes:
        report: Report on the unit.
        item_ids: The distinct items in it.
        spilled: The files that its rows were written to, by partition.
    """

    report: UnitReport
    item_ids: pa.Array
    spilled: Mapping[int, str] = dataclasses.field(default_factory=dict)


def _divide(unit: Unit, table: Table) -> list[Unit]:
    """Divide the unit into byte ranges, if its file is large and can be read from the middle."""
    if table.format != "csv" or unit.file.endswith(".gz") or table.sizes[unit.index] <= 2 * RANGE_BYTES:
        return [unit]
    with _open(unit.file) as stream:
        ranges = find_byte_ranges(stream, RANGE_BYTES)
    return [dataclasses.replace(unit, part=part, byte_range=byte_range) for part, byte_range in enumerate(ranges)]


def _interactions(
    unit: Unit, sources: ResolvedSources, lookups: Sequence[LookupTable], data: Data, rejects: _RejectedRows
) -> Iterator[pa.RecordBatch]:
    """Yield the valid rows of a unit, block by block, with the columns of the interactions' own lookups.

    Raises:
        DataError: The file cannot be read.
    """
    names = [column.name for column in sources.carried]
    with _open(unit.file) as stream:
        for rows in read_rows(stream, unit.file, sources.interactions, unit.byte_range):
            joined = dataclasses.replace(rows, columns=join_all(rows.columns, lookups))
            reasons: dict[int, list[str]] = {}
            for column in sources.required if lookups else ():
                for place in np.flatnonzero(joined.columns.column(column.name).is_null()).tolist():
                    reasons.setdefault(place, []).append(reason(column, None) + _unmatched(column, lookups))
            good = joined.reject(reasons)
            rejects.add(good.bad)
            columns = good.columns.select(names)
            if data.label is not None:
                kind = ARROW_TYPES[sources.types[data.columns.label]]
                constant = pa.array(np.full(columns.num_rows, data.label.constant)).cast(kind)
                columns = columns.append_column(data.columns.label, constant)
            yield columns


def _unmatched(column: Column, lookups: Sequence[LookupTable]) -> str:
    """Return the lookup that a missing column comes from, for a message."""
    table = next((lookup.table for lookup in lookups if column.name in lookup.gives), None)
    return f" (by {table.key} from {table.name})" if table is not None else ""


def _write_rows(unit: Unit, lookups: _LookupTables, sources: ResolvedSources, data: Data, scratch: str) -> _ReadResult:
    """Read a unit, split it row by row and write its train and eval shard."""
    item_ids = pa.array([], pa.string())
    if not lookups.usable:
        return _ReadResult(UnitReport(unit), item_ids)  # the run ends with the lookup table's error
    try:
        with contextlib.ExitStack() as stack:
            rejects = stack.enter_context(_RejectedRows(unit, scratch))
            shards = {
                name: stack.enter_context(Shard(_scratch_file(scratch, name, unit))) for name in ("train", "eval")
            }
            splitter = splitter_of(data)
            for number, rows in enumerate(_interactions(unit, sources, lookups.first, data, rejects)):
                is_eval = splitter.assign(rows)
                order = np.random.default_rng([unit.index, unit.part, number]).permutation(rows.num_rows)
                for name, members in (("train", order[~is_eval[order]]), ("eval", order[is_eval[order]])):
                    shards[name].write(encode(_features(rows.take(pa.array(members)), lookups, sources)))
                item_ids = pc.unique(pa.concat_arrays([item_ids, rows.column(data.columns.item_id)]))
    except DataError as error:
        return _ReadResult(UnitReport(unit, problem=str(error)), item_ids)
    return _ReadResult(rejects.report(sum(shard.rows for shard in shards.values()), shards), item_ids)


def _spill_rows(
    unit: Unit, lookups: _LookupTables, sources: ResolvedSources, data: Data, scratch: str, partitions: int
) -> _ReadResult:
    """Read a unit and write its rows to the files of their partitions."""
    item_ids = pa.array([], pa.string())
    if not lookups.usable:
        return _ReadResult(UnitReport(unit), item_ids)
    good = 0
    try:
        with _RejectedRows(unit, scratch) as rejects, _spill(unit, scratch, partitions) as spill:
            for rows in _interactions(unit, sources, lookups.first, data, rejects):
                good += rows.num_rows
                spill.write(rows, rows.column(data.columns.user_id))
                item_ids = pc.unique(pa.concat_arrays([item_ids, rows.column(data.columns.item_id)]))
    except DataError as error:
        return _ReadResult(UnitReport(unit, problem=str(error)), item_ids)
    return _ReadResult(rejects.report(good), item_ids, spill.files)


def _spill(unit: Unit, scratch: str, partitions: int) -> Spill:
    return Spill(partitions, lambda partition: _scratch_file(scratch, f"spill-{partition:05d}", unit), _create)


def _features(rows: pa.RecordBatch, lookups: _LookupTables, sources: ResolvedSources) -> pa.RecordBatch:
    """Join items and users and return every feature of the schema, in its order."""
    joined = join_all(rows, lookups.roots)
    return pa.RecordBatch.from_arrays([joined.column(name) for name in sources.features], list(sources.features))


# --- partitions of users ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Partition:
    """One partition, with duplicates merged.

    Attributes:
        number: Its number.
        file: File with its rows in file order; None if there are none.
        rows: Number of rows.
        merged: Number of rows that were merged into others.
        summary: The splitter's summary of the rows.
        problem: Error message, if duplicates could not be merged.
    """

    number: int
    file: str | None = None
    rows: int = 0
    merged: int = 0
    summary: Any = None
    problem: str | None = None


@dataclasses.dataclass(frozen=True)
class _AllPartitions:
    """Values computed from all partitions that each partition needs when it is written.

    Attributes:
        splitter: The splitter, fitted to all partitions.
        item_ids: Every item of the catalogue, sorted, to sample negatives from.
    """

    splitter: Splitter[Any]
    item_ids: pa.Array | None = None


def _merge_partition(
    number: int, read: Sequence[_ReadResult], sources: ResolvedSources, data: Data, scratch: str
) -> _Partition:
    """Combine a partition's rows of all units, and merge duplicates."""
    if any(one.report.problem is not None for one in read):
        return _Partition(number)
    ordered = sorted(read, key=lambda one: (one.report.unit.index, one.report.unit.part))
    rows = read_spilled([one.spilled[number] for one in ordered if number in one.spilled], _open)
    if rows is None:
        return _Partition(number)
    before = rows.num_rows
    if data.duplicates != "keep":
        try:
            types = {name: ARROW_TYPES[kind] for name, kind in sources.types.items()}
            rows = merge(rows, data, types)
        except DataError as error:
            return _Partition(number, problem=str(error))
    summary = splitter_of(data).summarize(rows)
    file = _scratch_file(scratch, "merged", Unit(PARTITIONS, number, ""))
    write_rows(rows, file, _create)
    return _Partition(number, file, rows.num_rows, before - rows.num_rows, summary)


def _combine(
    _: None,
    read: Sequence[_ReadResult],
    partitions: Sequence[_Partition],
    lookups: _LookupTables,
    sources: ResolvedSources,
    data: Data,
) -> _AllPartitions:
    item_ids = None
    ordered = sorted(partitions, key=lambda one: one.number)
    splitter = splitter_of(data).fit(one.summary for one in ordered if one.file is not None)
    if data.negatives is not None:
        known = _catalogue([one.item_ids for one in read], lookups.items, sources, data.columns.item_id)
        ids = one_chunk(known.column(data.columns.item_id))
        item_ids = ids.take(pc.sort_indices(ids))
    return _AllPartitions(splitter, item_ids)


def _write_partition(
    partition: _Partition,
    whole: _AllPartitions,
    lookups: _LookupTables,
    sources: ResolvedSources,
    data: Data,
    scratch: str,
) -> UnitReport:
    """Split a partition, add its negatives, and write its train and eval shard."""
    unit = Unit(PARTITIONS, partition.number, "")
    if partition.file is None:
        return UnitReport(unit, problem=partition.problem)
    rows = read_spilled([partition.file], _open)
    assert rows is not None
    rows = rows.combine_chunks()
    is_eval = whole.splitter.assign(rows)
    count = 0
    if data.negatives is not None and whole.item_ids is not None:
        negatives, parents = _negatives(rows, is_eval, whole.item_ids, data, sources)
        count = negatives.num_rows
        positive = pa.array(np.ones(rows.num_rows, dtype=np.float32))
        rows = pa.concat_tables([rows.append_column(IS_POSITIVE, positive), negatives], promote_options="default")
        is_eval = np.concatenate([is_eval, is_eval[parents]])
    order = np.random.default_rng([len(sources.interactions.files), partition.number]).permutation(rows.num_rows)
    with contextlib.ExitStack() as stack:
        shards = {name: stack.enter_context(Shard(_scratch_file(scratch, name, unit))) for name in ("train", "eval")}
        for name, members in (("train", order[~is_eval[order]]), ("eval", order[is_eval[order]])):
            for start in range(0, len(members), _BATCH_ROWS):
                taken = rows.take(pa.array(members[start : start + _BATCH_ROWS])).combine_chunks()
                shards[name].write(encode(_features(taken.to_batches()[0], lookups, sources)))
    written = list(shards.items())
    splits = {name: shard.rows for name, shard in written}
    return UnitReport(unit, merged=partition.merged, negatives=count, splits=splits, files=_files(written))


def _negatives(
    rows: pa.Table, is_eval: Mask, item_ids: pa.Array, data: Data, sources: ResolvedSources
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Return negatives for the rows, with the columns copied from them, and the row that each belongs to."""
    assert data.negatives is not None
    parts = data.columns
    coded = one_chunk(rows.column(parts.user_id)).dictionary_encode()
    sampled = sample_negatives(
        users=coded.indices.to_numpy().astype(np.int64),
        user_hashes=hash_values(coded.dictionary),
        items=pc.index_in(one_chunk(rows.column(parts.item_id)), value_set=item_ids).to_numpy().astype(np.int64),
        is_eval=is_eval,
        catalogue_size=len(item_ids),
        per_positive=data.negatives.per_positive,
        seed=data.negatives.seed,
    )
    shared = [name for name in (parts.user_id, parts.timestamp, *data.negatives.context) if name in rows.column_names]
    columns = {name: rows.column(name).take(pa.array(sampled.parents)) for name in shared}
    columns[parts.item_id] = item_ids.take(pa.array(sampled.items))
    label = pa.array(np.full(len(sampled.items), data.negatives.label))
    columns[parts.label] = label.cast(ARROW_TYPES[sources.types[parts.label]])
    columns[IS_POSITIVE] = pa.array(np.zeros(len(sampled.items), dtype=np.float32))
    return pa.table(columns), sampled.parents


# --- catalogue and reports --------------------------------------------------------------------------------------------


def _finish(
    _: None,
    read: Sequence[_ReadResult],
    others: Sequence[UnitReport],
    lookups: _LookupTables,
    sources: ResolvedSources,
    data: Data,
    scratch: str,
    result: str,
) -> None:
    """Write the catalogue, and the reports of all units to one file."""
    reports = [*(one.report for one in read), *others, *lookups.reports]
    if all(report.problem is None for report in reports):
        catalogue = _catalogue([one.item_ids for one in read], lookups.items, sources, data.columns.item_id)
        unit = Unit(CATALOGUE, 0, "")
        with Shard(_scratch_file(scratch, CATALOGUE, unit)) as shard:
            for batch in catalogue.to_batches(max_chunksize=_BATCH_ROWS):
                shard.write(encode(batch))
        reports.append(UnitReport(unit, splits={CATALOGUE: shard.rows}, files=_files([(CATALOGUE, shard)])))
    tables = (sources.interactions.name, PARTITIONS, *sources.lookups, CATALOGUE)
    order = {table: place for place, table in enumerate(tables)}
    reports.sort(key=lambda report: (order[report.unit.table], report.unit.index, report.unit.part))
    # Written under another name first, because Beam may run this twice and must not leave half a file.
    temporary = f"{result}.{uuid.uuid4().hex}"
    with fileio.open(temporary, "w") as stream:
        json.dump([dataclasses.asdict(report) for report in reports], stream)
    fileio.rename(temporary, result, overwrite=True)


def _report(entry: dict[str, Any]) -> UnitReport:
    """Parse a report."""
    unit = Unit(**{**entry["unit"], "byte_range": ByteRange(**entry["unit"]["byte_range"])})
    return UnitReport(**{**entry, "unit": unit})


def _catalogue(seen: Sequence[pa.Array], items: LookupTable | None, sources: ResolvedSources, item_id: str) -> pa.Table:
    """Return every item once: the items table in its order, then other items with interactions, sorted by id."""
    ids = pc.unique(pa.concat_arrays([pa.array([], pa.string()), *seen]))
    table = pa.table({item_id: pa.array([], pa.string())})
    if items is not None:
        table = items.rows.select([item_id, *sources.item_features])
        ids = ids.filter(pc.invert(pc.is_in(ids, value_set=items.keys)))
    others = pa.table({item_id: ids.take(pc.sort_indices(ids))})
    return pa.concat_tables([table, others], promote_options="default")


class _RejectedRows:
    """Count the malformed rows of one unit and write them to a file."""

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
            given = {name: value for name, value in dataclasses.asdict(row).items() if value is not None}
            entry = {"table": self._unit.table, **given}
            self._stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._places.extend(str(row) for row in rows[: _PLACES_SHOWN - len(self._places)])
        self._count += len(rows)

    def report(self, good: int, shards: Mapping[str, Shard] | None = None) -> UnitReport:
        """Return the unit's report, given its number of valid rows and the shards that they were written to."""
        written = list((shards or {}).items())
        files = {**_files(written), **({REJECTED: self._path} if self._count else {})}
        splits = {name: shard.rows for name, shard in written}
        places = tuple(self._places)
        rows = good + self._count
        return UnitReport(self._unit, rows, self._count, places=places, splits=splits, files=files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._stream is not None:
            self._stream.close()


# --- before and after the pipeline ------------------------------------------------------------------------------------


def _find_files(exec_properties: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the files of each table.

    The command has resolved them before the run, for its own check. They are resolved once more here, because the
    executor may run on another machine and later, and must read what TFX's driver has put into the cache key: the
    driver fills span and version into the patterns and fingerprints the files that match them.
    """
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


def _check(reports: Sequence[UnitReport], sources: ResolvedSources, data: Data) -> None:
    """Raise the problems that the workers found.

    Raises:
        DataError: A file could not be read, too many rows are malformed, or a split is empty.
    """
    problems = list(dict.fromkeys(report.problem for report in reports if report.problem is not None))
    if problems:
        raise DataError("\n".join(problems[:_PLACES_SHOWN]))
    # Lookups first, because a malformed row in one may be the cause of a rejected interaction.
    for table in (*sources.lookups, INTERACTIONS):
        mine = [report for report in reports if report.unit.table == table]
        rows, rejected = sum(report.rows for report in mine), sum(report.rejected for report in mine)
        allowed = int(data.max_bad_rows * rows)
        if rejected > data.max_bad_rows * rows:
            places = [place for report in mine for place in report.places][:_PLACES_SHOWN]
            more = f"\n… and {rejected - len(places):,} more" if rejected > len(places) else ""
            raise DataError(
                "\n".join(places)
                + more
                + f"\n{rejected:,} of {rows:,} rows of {table} are malformed; expected at most "
                f"{allowed:,} (data.max_bad_rows: {data.max_bad_rows:g}). Fix them, or raise data.max_bad_rows: "
                "rejected rows are then written beside the examples."
            )
    counts = _counts(reports)
    made = counts["rows_read"] + counts["rows_negatives"]
    if made != sum(counts[f"rows_{name}"] for name in ("train", "eval", "rejected", "merged")):
        raise AssertionError(f"rows are missing, which is a bug in {__name__}: {counts}")
    for split in ("train", "eval"):
        if not counts[f"rows_{split}"]:
            good = f"{counts['rows_read'] - counts['rows_rejected']:,} valid rows of interactions"
            raise DataError(f"data.split: {splitter_of(data).empty_message(split, good)}")


def _counts(reports: Sequence[UnitReport]) -> dict[str, int]:
    """Return the artifact's custom properties."""
    interactions = [report for report in reports if report.unit.table == INTERACTIONS]
    counts = {
        "rows_read": sum(report.rows for report in interactions),
        "rows_rejected": sum(report.rejected for report in interactions),
        "rows_merged": sum(report.merged for report in reports if report.unit.table == PARTITIONS),
        "rows_negatives": sum(report.negatives for report in reports),
    }
    for report in reports:
        if report.unit.table not in (INTERACTIONS, PARTITIONS, CATALOGUE):
            table = report.unit.table.replace(".", "_")
            for name, count in ((f"rows_rejected_{table}", report.rejected), (f"rows_merged_{table}", report.merged)):
                counts[name] = counts.get(name, 0) + count
    for split in SPLITS:
        counts[f"rows_{split}"] = sum(report.splits.get(split, 0) for report in reports)
    return counts


def _publish(reports: Sequence[UnitReport], artifact: types.Artifact) -> None:
    """Move finished files from the scratch folder to the folders of their splits."""
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


def _set_properties(
    reports: Sequence[UnitReport], artifact: types.Artifact, exec_properties: Mapping[str, Any]
) -> None:
    """Set the artifact's properties: counts, and the formats as TFX's own ExampleGen does."""
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


def _create(file: str) -> IO[bytes]:
    stream: IO[bytes] = fileio.open(file, "wb")
    return stream


def _uncompressed_bytes(table: Table) -> int:
    """Return the size of a table's files, estimated for compressed ones."""
    return sum(
        size * (_COMPRESSION if file.endswith(".gz") else 1)
        for file, size in zip(table.files, table.sizes, strict=True)
    )


def _scratch_file(scratch: str, kind: str, unit: Unit) -> str:
    """Return a unique path: Beam may run a unit twice, and only one of the two attempts is reported."""
    return os.path.join(scratch, f"{kind}-{unit.table}-{unit.index:05d}-{unit.part:05d}-{uuid.uuid4().hex}")


def _files(shards: Sequence[tuple[str, Shard]]) -> dict[str, str]:
    return {name: shard.path for name, shard in shards if shard.rows}


def _clear(folder: str) -> None:
    """Remove everything that this executor writes."""
    for name in (*(f"Split-{split}" for split in SPLITS), REJECTED, _SCRATCH):
        path = os.path.join(folder, name)
        if fileio.isdir(path):
            fileio.rmtree(path)
