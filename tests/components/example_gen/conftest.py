"""Fixtures: a data folder, and InteractionExampleGen's executor run on it."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tensorflow_metadata.proto.v0 import schema_pb2

sys.path.insert(0, str(Path(__file__).parent))

from ingestion import Ingested, make_data, make_schema, make_tables, run_executor, write_tables

from recipe.data import Data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data folder."""
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture
def ingest(folder: Path, tmp_path: Path) -> Callable[..., Ingested]:
    """Write tables to the data folder, run the executor on it and read the result."""

    def run(
        tables: Mapping[str, str | bytes] | None = None,
        data: Data | None = None,
        schema: schema_pb2.Schema | None = None,
    ) -> Ingested:
        write_tables(folder, make_tables() if tables is None else tables)
        return run_executor(folder, tmp_path / "examples", data or make_data(), schema or make_schema())

    return run
