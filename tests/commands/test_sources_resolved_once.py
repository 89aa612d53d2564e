"""A recipe's sources are resolved once: each command opens every file of the data folder one time before the run."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from commands.compare import presets
from commands.subcommands import pipelines
from commands.synthetic.files import write_synthetic
from commands.synthetic.ground_truth import SyntheticSpec
from components.example_gen import resolve
from pipeline.runners import local

SYNTHETIC = Path(__file__).resolve().parents[2] / "schemas" / "synthetic"


class Stopped(Exception):
    """Raised instead of running the DAG."""


def check(schema_dir: Path, data: Path, workdir: Path) -> None:
    pipelines.check(schema_dir, data)


def run(schema_dir: Path, data: Path, workdir: Path) -> None:
    with pytest.raises(Stopped):
        local.run_recipe(schema_dir, data, workdir)


def compare(schema_dir: Path, data: Path, workdir: Path) -> None:
    with pytest.raises(Stopped):
        presets.compare_presets(schema_dir, ["small", "tiny"], data, workdir)


@pytest.mark.parametrize("command", [check, run, compare])
def test_every_file_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[[Path, Path, Path], None]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    opened: list[str] = []

    def open_(file: str) -> IO[bytes]:
        opened.append(Path(file).name)
        return open(file, "rb")

    write_synthetic(SyntheticSpec(40, 40, 300, clusters=4), tmp_path / "data")
    shutil.copytree(SYNTHETIC, tmp_path / "schema")
    (tmp_path / "schema" / "presets").mkdir()
    for name in ("small", "tiny"):
        (tmp_path / "schema" / "presets" / f"{name}.yaml").write_text("description: A preset.\n")
    monkeypatch.setattr(resolve, "_open", open_)
    monkeypatch.setattr(local, "_run", stop)
    monkeypatch.setattr(presets, "start_tfx", stop)
    command(tmp_path / "schema", tmp_path / "data", tmp_path / "work")
    assert Counter(opened) == {"interactions.csv": 1, "items.csv": 1, "users.csv": 1}
