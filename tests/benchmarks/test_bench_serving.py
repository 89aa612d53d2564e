"""`make bench-serving` on minimal data: its output, its measurements and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def bench(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    figures = folder / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "serving.py"), "--rounds", "1", "--seconds", "0.3"]
    done = subprocess.run([*command, "--json", str(figures), *arguments], capture_output=True, text=True, check=False)
    assert figures.is_file(), done.stderr
    return done, json.loads(figures.read_text())


def test_the_server_is_compared_with_calls_without_it(tmp_path: Path) -> None:
    done, figures = bench(tmp_path, "--catalogues", "400", "--index-items", "0")
    assert done.returncode == 0, done.stderr
    (found,) = figures["serving"].values()
    assert set(found) == {"signature", "session", "numpy", "server_1", "server_8", "server_32"}
    for (run,) in found.values():
        assert run["rate"] > 0
        assert 0 < run["p50"] <= run["p99"]
    assert "32 in flight" in done.stdout
    assert [ratio["ratio"] > 0 for ratio in figures["ratios"]] == [True, True]


def test_an_index_that_is_too_slow_fails(tmp_path: Path) -> None:
    done, figures = bench(
        tmp_path, "--catalogues", "--index-items", "3000", "--at-least", "1000", "--recall", "0.6", "--without-uniform"
    )
    assert done.returncode == 1
    assert "1000 times the throughput" in done.stdout
    assert figures["index"].keys() == {"clustered"}
    found = figures["index"]["clustered"]
    assert 0.55 <= found["recall"] <= 1
    assert found["probes"] <= found["cells"]
    assert [ratio["at_least"] for ratio in figures["ratios"]] == [1000, 1000, 1000]
    assert found["ratio"].keys() == found["milliseconds"].keys() == {"1", "8", "32"}
