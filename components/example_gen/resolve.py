"""Resolves a recipe's sources before a run, in well under a second and without TensorFlow. The commands call it.

sources = resolve_sources(Path("data/movielens"), recipe.data, schema)
check_features(recipe.features, recipe.data.columns, sources)
beam_args = beam.pipeline_args(sources.interactions.bytes)
"""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import IO

from tensorflow_metadata.proto.v0 import schema_pb2

from components.example_gen.data_errors import DataError
from components.example_gen.table_layout import ResolvedSources, no_file, read_headers
from recipe.columns import Columns
from recipe.data import Data
from recipe.features import Features

# TFX's placeholders for spans, versions and dates, with an optional width: {SPAN}, {SPAN:2}, {VERSION}, {YYYY}, …
_PLACEHOLDER = re.compile(r"\{(?:SPAN|VERSION)(?::\d+)?\}|\{(?:YYYY|MM|DD)\}")


def resolve_sources(input_base: Path, data: Data, schema: schema_pb2.Schema) -> ResolvedSources:
    """Find the files of every table, and check that each has a readable header, the columns needed and a row.

    Only the first block of each file is read; rows are checked by the run itself.

    Args:
        input_base: The folder that the recipe's patterns are relative to.
        data: The recipe's data section.
        schema: The curated schema; every feature in it must be in some table.

    Raises:
        DataError: Names the file, the line if there is one, and the remedy.
    """
    files = {}
    for name, source in data.sources.tables().items():
        files[name] = _latest_span(input_base, source.files)
        if not files[name]:
            there = sorted(path.name for path in input_base.iterdir()) if input_base.is_dir() else []
            raise no_file(name, source.files, str(input_base), there)
    return read_headers(files, data, schema, _open)


def check_features(features: Features, columns: Columns, sources: ResolvedSources) -> None:
    """Check that each tower's features come from a table that the tower may use.

    Args:
        features: The recipe's features. A feature of the query tower must not come from the items table, which would
            show it the item to find; a feature of the candidate tower must, so that every item has it.
        columns: The recipe's `data.columns`.
        sources: The tables.

    Raises:
        DataError: Names the key of the feature and the remedy.
    """
    items = {*sources.item_features}
    for index, feature in enumerate(features.query):
        if feature.column in items:
            raise DataError(
                f"features.query.{index}.column: {feature.column!r} is a column of the items table, so it would show "
                "the query tower the item to find. Move it to features.candidate, or drop it."
            )
    for index, feature in enumerate(features.candidate):
        if feature.column not in items and feature.column != columns.item_id:
            raise DataError(
                f"features.candidate.{index}.column: {feature.column!r} is not a column of the items table, so most "
                "items would have no value. Move it to features.query, or add it to the items table."
            )


def interactions_bytes(input_base: Path, data: Data) -> int:
    """Return the size of the files of interactions, 0 if there are none, without opening them.

    For a process that runs one component of a DAG compiled earlier; where the sources are resolved, their
    `interactions.bytes` is the same figure.
    """
    return sum(Path(file).stat().st_size for file in _latest_span(input_base, data.sources.interactions.files))


def _open(file: str) -> IO[bytes]:
    return open(file, "rb")


def _latest_span(input_base: Path, pattern: str) -> list[str]:
    """Return the files of a pattern; if it has placeholders, those of the latest span and version."""
    base = glob.escape(str(input_base))
    found = [path for path in glob.glob(f"{base}/{_PLACEHOLDER.sub('*', pattern)}") if Path(path).is_file()]
    if not _PLACEHOLDER.search(pattern):
        return found
    parts = [glob_part.replace(r"\*", "[^/]*").replace(r"\?", "[^/]") for glob_part in
             map(re.escape, _PLACEHOLDER.split(pattern))]  # fmt: skip
    spans: dict[tuple[int, ...], list[str]] = {}
    for path in found:
        match = re.fullmatch(re.escape(str(input_base)) + "/" + r"(\d+)".join(parts), path)
        if match:
            spans.setdefault(tuple(map(int, match.groups())), []).append(path)
    return spans[max(spans)] if spans else []
