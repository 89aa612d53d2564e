"""Rows of the eval split as requests of a client: user, item and context columns."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class EvalRows:
    """B rows of the eval split."""

    examples: Sequence[bytes]
    """Serialized raw tf.Examples."""
    users: Sequence[str]
    items: Sequence[str]
    columns: Sequence[Mapping[str, Any]]
    """Other columns of each row that have a value: string, int or float by name."""

    def context(self, defaults: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return the columns that a signature takes, B values each.

        Args:
            defaults: The default of each column, for rows without a value.
        """
        return {name: [row.get(name, default) for row in self.columns] for name, default in defaults.items()}

    def __len__(self) -> int:
        return len(self.examples)


def read_eval_rows(uri: str, count: int, user_column: str, item_column: str) -> EvalRows:
    """Read the first examples of a split.

    Args:
        uri: Folder of gzipped TFRecords.
        count: Maximum number of rows.
        user_column: Column of the user ids.
        item_column: Column of the item ids.
    """
    files = sorted(tf.io.gfile.glob(os.path.join(uri, "*")))
    examples = [record.numpy() for record in tf.data.TFRecordDataset(files, compression_type="GZIP").take(count)]
    rows = [_values(example) for example in examples]
    return EvalRows(
        examples=examples,
        users=[row.pop(user_column) for row in rows],
        items=[row.pop(item_column) for row in rows],
        columns=rows,
    )


def _values(example: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, feature in tf.train.Example.FromString(example).features.feature.items():
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else []
        if len(values):
            row[name] = values[0].decode() if kind == "bytes_list" else values[0]
    return row
