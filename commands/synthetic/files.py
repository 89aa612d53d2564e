"""Writes a synthetic dataset and its upper bounds; `tandem data synthetic` calls it."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from commands.synthetic.ground_truth import GroundTruth, SyntheticError, SyntheticSpec, stream
from commands.synthetic.malformed_rows import insert_malformed
from commands.synthetic.oracle import Sample, UpperBounds, find_upper_bounds
from commands.synthetic.sampling import InteractionBlock, stream_interactions
from commands.synthetic.side_tables import item_tables, user_tables
from pipeline.oracle_metrics import TRUTH

COLUMNS = ("user_id", "item_id", "rating", "timestamp")
TABLES = ("interactions.csv", "items.csv", "users.csv")

FORMAT = 1
"""Version of the files; incremented when the same arguments give other bytes."""

_BREAKING = 5
_BARE = pa_csv.WriteOptions(include_header=False, quoting_style="none")


def write_synthetic(arguments: SyntheticSpec, out: Path) -> dict[str, Any]:
    """Write `TABLES` and `TRUTH` to `out`; existing files of the same arguments are kept.

    interactions.csv is sorted by user and time, so that users are sampled block by block without repeated items.
    Memory grows with the number of users and items, not with the number of interactions.

    Returns:
        The content of `TRUTH`.

    Raises:
        SyntheticError: The arguments are inconsistent, or `out` contains other files.
    """
    arguments.check()
    there = _truth_there(arguments, out)
    if there is not None:
        return there
    out.parent.mkdir(parents=True, exist_ok=True)
    # Next to `out`, on the same disk, so that the move is atomic.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        finished = Path(temporary) / "finished"
        finished.mkdir()
        truth = _write(arguments, finished)
        if out.exists():
            # TRUTH last: a folder without it is incomplete.
            for name in (*TABLES, TRUTH):
                (finished / name).rename(out / name)
        else:
            finished.rename(out)
    return truth


def _truth_there(arguments: SyntheticSpec, out: Path) -> dict[str, Any] | None:
    """Return the content of `TRUTH` if `out` has the files of these arguments; None if it has none of the files."""
    if out.exists() and not out.is_dir():
        raise SyntheticError(f"{out}: expected a folder, got a file.")
    there = [name for name in (*TABLES, TRUTH) if (out / name).exists()]
    if not there:
        return None
    remedy = "Remove the files, or set --out to another folder."
    absent = [name for name in (*TABLES, TRUTH) if name not in there]
    if absent:
        raise SyntheticError(
            f"{out}: expected all files or none, got {', '.join(there)} without {', '.join(absent)}. {remedy}"
        )
    try:
        truth = json.loads((out / TRUTH).read_text(encoding="utf-8"))
        found = (truth["format"], truth["arguments"], truth["bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise SyntheticError(f"{out / TRUTH}: not written by this command: {error!r}. {remedy}") from error
    if found[:2] != (FORMAT, dataclasses.asdict(arguments)):
        raise SyntheticError(f"{out}: contains data of other arguments: {found[1]}, format {found[0]}. {remedy}")
    for name, size in found[2].items():
        if (out / name).stat().st_size != size:
            raise SyntheticError(
                f"{out / name}: expected {size:,} bytes, got {(out / name).stat().st_size:,}. {remedy}"
            )
    return dict(truth)


def _write(arguments: SyntheticSpec, folder: Path) -> dict[str, Any]:
    ground_truth = GroundTruth.draw(arguments)
    _write_table(folder / "items.csv", item_tables(ground_truth))
    _write_table(folder / "users.csv", user_tables(ground_truth))
    kinds: Counter[str] = Counter()
    best = _write_interactions(folder / "interactions.csv", ground_truth, kinds)
    truth = {
        "format": FORMAT,
        "arguments": dataclasses.asdict(arguments),
        "bytes": {name: (folder / name).stat().st_size for name in TABLES},
        "rows": {"good": arguments.interactions, "broken": kinds.total()},
        "broken": dict(sorted(kinds.items())),
        **best.as_json(),
    }
    (folder / TRUTH).write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return truth


def _write_table(path: Path, tables: Iterator[pa.Table]) -> None:
    with path.open("wb") as file:
        for place, table in enumerate(tables):
            if not place:
                file.write(f"{','.join(table.column_names)}\n".encode())
            pa_csv.write_csv(table, file, _BARE)


def _write_interactions(path: Path, ground_truth: GroundTruth, kinds: Counter[str]) -> UpperBounds:
    """Write the interactions block by block, and compute the upper bounds on a sample of them."""
    arguments = ground_truth.arguments
    random = stream(arguments.seed, _BREAKING)
    sample = Sample(ground_truth)
    rows = lines = 0
    with path.open("wb") as file:
        file.write(f"{','.join(COLUMNS)}\n".encode())
        for block in stream_interactions(ground_truth):
            sample.add(block)
            text = _csv(ground_truth, block)
            rows += len(block.users)
            due = arguments.broken_lines * rows // arguments.interactions
            file.write(insert_malformed(text, due - lines, random, kinds) if due > lines else text)
            lines = due
    return find_upper_bounds(ground_truth, sample)


def _csv(ground_truth: GroundTruth, block: InteractionBlock) -> bytes:
    columns = (block.users + 1, ground_truth.items.number[block.slots], block.ratings, block.times)
    text = pa.BufferOutputStream()
    pa_csv.write_csv(pa.table(dict(zip(COLUMNS, columns, strict=True))), text, _BARE)
    return text.getvalue().to_pybytes()
