"""`make bench`: every benchmark is in it, and its page holds ratios and commands, and nothing of the machine's own."""

from __future__ import annotations

import datetime
import os
import re
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BEGIN = datetime.datetime(2026, 11, 22, 18, 5, tzinfo=datetime.UTC)


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "results", raising=False)
    import results

    return results


@pytest.fixture
def folder(results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Benchmarks of a line or two stand in for the real ones."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


def script(folder: Path, name: str, ratio: float, code: int = 0, figures: bool = True) -> None:
    found = {"ratios": [{"what": f"{name} against stock", "ratio": ratio, "at_least": 2.0}]}
    write = f"open(sys.argv[-1], 'w').write(json.dumps({found!r}))" if figures else "pass"
    (folder / f"{name}.py").write_text(
        f"import json, sys\nprint('table of', *sys.argv[1:-2])\n{write}\nsys.exit({code})\n"
    )


def call(results: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["results.py", *arguments])
    code: int = results.main()
    return code


def test_every_benchmark_of_the_makefile_is_run(results: ModuleType) -> None:
    targets = set(re.findall(r"^bench-([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets == set(results.BENCHMARKS)
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in targets)


def test_the_page_has_ratios_commands_and_how_busy_the_machine_was(
    results: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script(folder, "ingest", 9.25)
    script(folder, "pipeline", 2.5)
    options = ["--pipeline", f"--rounds 1 --data {folder}/movielens"]
    code = call(results, monkeypatch, "--only", "ingest", "pipeline", "--out", str(folder / "results.md"), *options)
    assert code == 0
    text = (folder / "results.md").read_text()
    assert "| ingest | ingest against stock | 9.25 | 2 |" in text
    assert "| pipeline | pipeline against stock | 2.50 | 2 |" in text
    assert "    python benchmarks/ingest.py\n" in text
    assert "    python benchmarks/pipeline.py --rounds 1 --data movielens\n" in text
    assert re.search(rf"- CPU: .+, {os.cpu_count()} cores\n- Memory: \d+ GiB\n", text)
    assert re.search(r"- Load average at the start.*: \d+\.\d\d, \d+\.\d\d, \d+\.\d\d\n", text)
    for package in ("tensorflow", "tfx", "apache-beam"):
        assert re.search(rf"- {package}: \d+\.\d+", text)
    assert str(folder) not in text and socket.gethostname() not in text
    assert "table of --rounds 1" in capfd.readouterr().out


def test_a_ratio_that_is_too_low_is_written_and_fails(
    results: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(folder, "train", 1.5, code=1)
    assert call(results, monkeypatch, "--only", "train", "--out", str(folder / "results.md")) == 1
    assert "python benchmarks/train.py    # below the minimum" in (folder / "results.md").read_text()
    assert "train" in capsys.readouterr().err


def test_a_benchmark_that_breaks_down_leaves_the_old_page(
    results: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(folder, "ingest", 9.0)
    script(folder, "train", 1.5, code=3, figures=False)
    (folder / "results.md").write_text("as it was")
    with pytest.raises(SystemExit, match=r"train\.py exited with 3"):
        call(results, monkeypatch, "--only", "ingest", "train", "--out", str(folder / "results.md"))
    assert (folder / "results.md").read_text() == "as it was"
    assert [path.name for path in folder.glob("*.new")] == []


def test_a_ratio_without_a_bound_has_none_on_the_page(results: ModuleType) -> None:
    ratios = [{"what": "something", "ratio": 1.0, "at_least": None}]
    text = results.page({"train": results.Result("python x", True, ratios)}, BEGIN, (0.0, 0.1, 0.2), {"CPU": "one"})
    assert "- Date: 2026-11-22 18:05 UTC\n- CPU: one\n" in text
    assert "| train | something | 1.00 |  |" in text
