"""`make bench-pipeline`: what its figures are made of, and when it fails; and that a run of its own counts whole."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Last, because a script there has the name of a package of the project.
sys.path.append(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    # By its path, because a package of the project has its name.
    spec = importlib.util.spec_from_file_location("bench_pipeline", ROOT / "benchmarks" / "pipeline.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(wall: float, cpu: float, peak: float, infra: float | None = None) -> dict[str, Any]:
    components = {"Trainer": {"wall": wall / 2, "cpu": cpu / 2, "peak_mib": peak}}
    if infra is not None:
        components["InfraValidator"] = {"wall": infra, "cpu": infra / 2, "peak_mib": peak}
    return {"wall": wall, "cpu": cpu, "peak_mib": peak, "components": components}


def test_ratios_are_of_neighbouring_runs(bench: ModuleType) -> None:
    """A machine that became busy slows both sides of a round; the medians of the sides alone would say otherwise."""
    stock = [run(60, 50, 900), run(600, 50, 900), run(66, 50, 900)]
    ours = [run(30, 25, 600, 10), run(200, 25, 600, 10), run(330, 25, 600, 10)]
    found = bench.summary({"stock": stock, "ours": ours})
    assert found["ratio"]["wall"] == pytest.approx(2)
    assert found["ratio"]["cpu"] == pytest.approx(2)
    assert found["ratio"]["peak_mib"] == pytest.approx(1.5)
    # 60 / 20, 600 / 190, 66 / 320.
    assert found["ratio"]["wall_without"] == pytest.approx(3)
    assert found["ratio"]["cpu_without"] == pytest.approx(2.5)
    assert found["medians"]["stock"]["whole"]["wall"] == 66
    assert found["medians"]["ours"]["components"]["InfraValidator"] == {"wall": 10, "cpu": 5, "peak_mib": 600}


def test_what_no_component_took_is_the_start_and_the_end(bench: ModuleType) -> None:
    events = [
        {"name": "Transform", "begin": 110.0, "end": 120.0, "cpu": 8.0},
        {"name": "Trainer", "begin": 120.5, "end": 125.5, "cpu": 6.0},
    ]
    samples = [(101.0, 300.0), (112.0, 800.0), (119.0, 700.0), (121.0, 900.0), (127.0, 850.0)]
    found = bench.component_times.measured(100.0, 128.0, 20.0, events, samples)
    assert (found["wall"], found["cpu"], found["peak_mib"]) == (28, 20, 900)
    assert found["components"]["Transform"] == {"wall": 10, "cpu": 8, "peak_mib": 800}
    assert found["components"]["Trainer"] == {"wall": 5, "cpu": 6, "peak_mib": 900}
    assert found["components"][bench.AROUND] == {"wall": 13, "cpu": 6, "peak_mib": 850}


def test_memory_is_that_of_the_process_and_its_children(bench: ModuleType) -> None:
    """The InfraValidator's server is a process of its own."""
    hold = "import sys, time; kept = bytearray(60_000_000); time.sleep(1.5)"
    both = f"import subprocess, sys; kept = bytearray(60_000_000); subprocess.run([sys.executable, '-c', {hold!r}])"
    process = subprocess.Popen([sys.executable, "-c", both])
    samples: list[tuple[float, float]] = []
    begin = time.monotonic()
    bench.component_times.sample_memory(process.pid, samples)
    assert process.wait() == 0
    assert max(size for _, size in samples) > 114
    assert all(begin <= moment <= time.monotonic() for moment, _ in samples)


def test_a_row_has_the_columns_of_all_three_files(bench: ModuleType, tmp_path: Path) -> None:
    files = {
        "interactions.csv": ["user_id,item_id,rating,timestamp", "1,7,4,900", "2,8,5,901"],
        "items.csv": ["item_id,title,year,genres", '7,"Film, The",1990,Drama|War', "8,Other,,Comedy"],
        "users.csv": ["user_id,age,gender,occupation", "1,30,F,artist", "2,40,M,doctor"],
    }
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    bench.join(tmp_path, tmp_path / "joined")
    with open(tmp_path / "joined" / "movielens.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0] == {
        **{"user_id": "1", "item_id": "7", "rating": "4", "timestamp": "900", "title": "Film, The", "year": "1990"},
        **{"genres": "Drama|War", "age": "30", "gender": "F", "occupation": "artist"},
    }
    assert rows[1]["year"] == ""


def test_the_stock_model_is_that_of_the_preset(bench: ModuleType) -> None:
    settings = bench.preset_settings()
    assert settings["embedding_dim"] == 32 and settings["layers"] == [256, 128]
    assert settings["batch_size"] == 8192 and settings["learning_rate"] == 0.1
    # The tutorial adds both losses up; TFRS's retrieval task has summed its own over the batch.
    assert settings["rating_weight"] == settings["retrieval_weight"] == 1


def test_a_run_that_breaks_down_says_what_it_said(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; print('no such folder'); sys.exit(2)")
    monkeypatch.setattr(bench, "__file__", str(script))
    with pytest.raises(SystemExit, match="no such folder"):
        bench.in_fresh_process("ours", tmp_path, tmp_path / "run", 3)


def test_all_of_a_process_counts(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From before its imports until it has ended, and what its children computed."""
    script = tmp_path / "script.py"
    script.write_text(
        "import json, subprocess, sys, time\n"
        "subprocess.run([sys.executable, '-c', 'import time\\nwhile time.process_time() < 0.3: pass'])\n"
        "begin = time.monotonic()\n"
        "time.sleep(0.2)\n"
        "event = {'name': 'Trainer', 'begin': begin, 'end': time.monotonic(), 'cpu': 0.0}\n"
        f"open(sys.argv[4] + '/{bench.EVENTS}', 'w').write(json.dumps(event))\n"
    )
    monkeypatch.setattr(bench, "__file__", str(script))
    found = bench.in_fresh_process("ours", tmp_path, tmp_path / "run", 3)
    assert found["cpu"] >= 0.3
    assert found["wall"] >= 0.5
    assert 0.2 <= found["components"]["Trainer"]["wall"] <= found["wall"] - 0.3
    assert found["peak_mib"] > 0
    assert os.path.isdir(tmp_path / "run")
