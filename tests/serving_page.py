"""docs/serving.md, the contract of the served model, as tests read it: its tables and its examples."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
DTYPES = {"string": tf.string, "float": tf.float32, "int64": tf.int64, "int32": tf.int32}

Columns = Mapping[str, Mapping[str, str]]
"""What stands for columns in the tables (`*query columns*`, …): names and dtypes of a model's columns."""


@dataclasses.dataclass(frozen=True)
class Documented:
    """One line of a table."""

    dtype: str
    shape: list[str]
    default: str

    def allows(self, size: int, place: int, sizes: Mapping[str, int]) -> bool:
        """Whether a dimension is as long as the table says; -1 is any length, and so is a letter not in `sizes`."""
        name = self.shape[place]
        return size == (int(name) if name.isdecimal() else sizes.get(name, -1))

    def is_default(self, exported: np.ndarray) -> bool:
        """Whether a signature's default is the one that the table names."""
        if self.default != "not given":
            wanted = np.array(json.loads(self.default))
            return bool(exported.tolist() == (np.char.encode(wanted) if wanted.dtype.kind == "U" else wanted).tolist())
        if exported.dtype.kind == "f":
            return bool(exported.shape == (1,) and np.isnan(exported).all())
        return bool(exported.tolist() == ([np.iinfo(np.int64).min] if exported.dtype.kind == "i" else [b""]))


@dataclasses.dataclass(frozen=True)
class Section:
    """What the page says about one signature."""

    inputs: dict[str, Documented]
    outputs: dict[str, Documented]
    requests: list[str]
    """REST bodies."""
    messages: list[str]
    """`PredictRequest`s in text format."""


def sections(columns: Columns) -> dict[str, Section]:
    """The sections by signature, for a model with these columns."""
    return dict(_sections(columns))


def overview() -> set[str]:
    """The signatures of the page's first table."""
    table = PAGE[PAGE.index("| signature |") : PAGE.index("\n## ")]
    return {name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line)}


def unpacked(values: Any) -> Any:
    """Inputs of a REST body, with `{"b64": …}` as bytes."""
    if isinstance(values, dict):
        return base64.b64decode(values["b64"])
    return [unpacked(value) for value in values] if isinstance(values, list) else values


def _sections(columns: Columns) -> Iterator[tuple[str, Section]]:
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title, *lines = part.splitlines()
        names = re.findall("`(.+?)`", title)
        blocks = {kind: re.findall(rf"```{kind}\n(.*?)```", part, re.DOTALL) for kind in ("json", "textproto")}
        for name in names:
            tables = (_table(lines, title, columns) for title in ("input", "output"))
            yield name, Section(*tables, blocks["json"], blocks["textproto"])


def _table(lines: list[str], title: str, columns: Columns) -> dict[str, Documented]:
    start = next(place for place, line in enumerate(lines) if line.startswith(f"| {title} |"))
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        names, dtype, shape, last = (cell.strip() for cell in line.strip("|").split("|"))
        dimensions = [part.strip() for part in shape.strip("`[]").split(",") if part.strip()]
        for name in names.split(", "):
            meant = columns.get(name, {name.strip("`"): dtype})
            found |= {column: Documented(kind, dimensions, last.strip("`")) for column, kind in meant.items()}
    return found
