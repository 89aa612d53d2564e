"""Checks a folder of tables before a run, in well under a second and without TensorFlow. The command line calls it."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import IO

from tensorflow_metadata.proto.v0 import schema_pb2

from components.example_gen.errors import DataError
from components.example_gen.sources import inspect_sources, no_file
from recipe.data import Data
from recipe.features import Features

# TFX's placeholders for spans, versions and dates, with an optional width: {SPAN}, {SPAN:2}, {VERSION}, {YYYY}, …
_PLACEHOLDER = re.compile(r"\{(?:SPAN|VERSION)(?::\d+)?\}|\{(?:YYYY|MM|DD)\}")


def check_sources(input_base: Path, data: Data, schema: schema_pb2.Schema, features: Features) -> None:
    """Checks that every table is there with a readable header, the columns needed and at least one row.

    Only the first block of each file is read; rows are checked by the run itself.

    Args:
        input_base: The folder that the recipe's patterns are relative to.
        data: The recipe's data section.
        schema: The curated schema; every feature in it must stand in some table.
        features: The recipe's features. What the query tower sees must not come from the item it has to find, and what
            the candidate tower sees must be known of every item.

    Raises:
        DataError: Names the file, and the line where there is one, and says what to do.
    """
    files = {}
    for name, source in data.sources.tables().items():
        files[name] = _latest_span(input_base, source.files)
        if not files[name]:
            there = sorted(path.name for path in input_base.iterdir()) if input_base.is_dir() else []
            raise no_file(name, source.files, str(input_base), there)
    items = {*inspect_sources(files, data, schema, _open).item_features}
    for index, feature in enumerate(features.query):
        if feature.column in items:
            raise DataError(
                f"features.query.{index}.column: {feature.column!r} is a column of the items table, so it would show "
                "the query tower the item that it has to find. List it under features.candidate, or drop it."
            )
    for index, feature in enumerate(features.candidate):
        if feature.column not in items and feature.column != data.columns.item_id:
            raise DataError(
                f"features.candidate.{index}.column: {feature.column!r} is no column of the items table, so most of "
                "the catalogue would be without it. List it under features.query, or add it to the items table."
            )


def interactions_bytes(input_base: Path, data: Data) -> int:
    """Size of the files of interactions that a run reads, 0 where there are none.

    Args:
        input_base: The folder that the recipe's patterns are relative to.
        data: The recipe's data section.
    """
    return sum(Path(file).stat().st_size for file in _latest_span(input_base, data.sources.interactions.files))


def _open(file: str) -> IO[bytes]:
    return open(file, "rb")


def _latest_span(input_base: Path, pattern: str) -> list[str]:
    """The files a run reads: those of the latest span and version where the pattern has placeholders."""
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
