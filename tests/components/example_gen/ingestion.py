"""Runs InteractionExampleGen's executor on small CSVs and reads its output."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from recipe.data import Data
from recipe.features import Features

INTERACTIONS = "user_id,item_id,rating,timestamp\n"
SCHEMA = """
    feature { name: "user_id" type: BYTES }
    feature { name: "item_id" type: BYTES }
    feature { name: "rating" type: FLOAT float_domain { min: 1 max: 5 } }
    feature { name: "timestamp" type: INT int_domain { min: 1000 max: 9999 } }
    feature { name: "title" type: BYTES }
    feature { name: "year" type: INT }
    feature { name: "age" type: INT }
"""


def make_data(**changes: Any) -> Data:
    """Return a data section with three tables and the given changes."""
    values = {
        "sources": {
            "interactions": {"files": "interactions*.csv*"},
            "items": {"files": "items*.csv*", "key": "item_id"},
            "users": {"files": "users*.csv*", "key": "user_id"},
        },
        "columns": {"user_id": "user_id", "item_id": "item_id", "label": "rating", "timestamp": "timestamp"},
        "split": {"kind": "random", "eval_fraction": 0.5},
    }
    return Data.model_validate({**values, **changes})


def make_features() -> Features:
    """Return valid features of both towers."""
    return Features.model_validate(
        {
            "query": [{"column": "user_id", "kind": "id"}, {"column": "age", "kind": "normalized"}],
            "candidate": [{"column": "item_id", "kind": "id"}, {"column": "title", "kind": "text"}],
        }
    )


def make_schema(text: str = SCHEMA) -> schema_pb2.Schema:
    return text_format.Parse(text, schema_pb2.Schema())


def make_interactions(rows: int = 40) -> str:
    """Return interactions of 8 users and 10 items, with all labels and distinct timestamps."""
    return INTERACTIONS + "".join(f"u{i % 8},i{i % 10},{1 + i % 5},{1000 + i}\n" for i in range(rows))


def make_tables() -> dict[str, str | bytes]:
    return {
        "interactions.csv": make_interactions(),
        "items.csv": "item_id,title,year\n" + "".join(f"i{i},Film {i},{1990 + i}\n" for i in range(12)),
        "users.csv": "user_id,age\n" + "".join(f"u{i},{20 + i}\n" for i in range(8)),
    }


@dataclasses.dataclass
class Ingested:
    """Output of a run: the artifact, its examples by split as dictionaries, and the rejected rows."""

    artifact: Any
    splits: dict[str, list[dict[str, Any]]]
    rejected: list[dict[str, Any]]

    def counts(self) -> tuple[int, int, int, int]:
        """Return the artifact's number of rows read, rejected, train and eval."""
        read, rejected, train, evaluated = (
            self.artifact.get_int_custom_property(f"rows_{name}") for name in ("read", "rejected", "train", "eval")
        )
        return read, rejected, train, evaluated


def write_tables(folder: Path, tables: Mapping[str, str | bytes]) -> None:
    for name, content in tables.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def run_executor(folder: Path, out: Path, data: Data, schema: schema_pb2.Schema) -> Ingested:
    import apache_beam as beam
    from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
    from tfx.types import artifact_utils, standard_artifacts
    from tfx.utils import proto_utils

    from components.example_gen.component import InteractionExampleGen
    from components.example_gen.executor import Executor

    component = InteractionExampleGen(str(folder), data, schema, "test")
    properties = {
        name: value if isinstance(value, str | int) else proto_utils.proto_to_json(value)
        for name, value in component.exec_properties.items()
        if value is not None
    }
    artifact = standard_artifacts.Examples()
    artifact.uri = str(out)
    out.mkdir(exist_ok=True)
    context = BaseBeamExecutor.Context(make_beam_pipeline_fn=lambda: beam.Pipeline(runner="FnApiRunner"))
    Executor(context).Do({}, {"examples": [artifact]}, properties)
    splits = {name: read_examples(artifact_utils.get_split_uri([artifact], name))
              for name in artifact_utils.decode_split_names(artifact.split_names)}  # fmt: skip
    rejected = [json.loads(line) for file in sorted(out.glob("rejected/*"))
                for line in file.read_text(encoding="utf-8").splitlines()]  # fmt: skip
    return Ingested(artifact, splits, rejected)


def read_examples(split_uri: str) -> list[dict[str, Any]]:
    """Read the examples of a split as TFX does: feature name to value, or to None if it is missing."""
    import tensorflow as tf
    from tfx.utils import io_utils

    files = sorted(tf.io.gfile.glob(io_utils.all_files_pattern(split_uri)))
    rows = []
    for record in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
        row = {}
        for name, feature in sorted(tf.train.Example.FromString(record).features.feature.items()):
            kind = feature.WhichOneof("kind")
            (row[name],) = getattr(feature, kind).value if kind else (None,)
        rows.append(row)
    return rows
