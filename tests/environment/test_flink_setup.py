"""What `make flink-setup` refuses: a machine without its tools, and jars that are not the pinned ones."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ENVIRONMENT = Path(__file__).resolve().parents[2] / "environment"


@pytest.fixture(scope="module")
def flink_setup() -> ModuleType:
    """environment/flink_setup.py, which is a script."""
    spec = importlib.util.spec_from_file_location("flink_setup", ENVIRONMENT / "flink_setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def tools(folder: Path, **scripts: str) -> str:
    """A folder for PATH with programs that print something to standard error, as `java -version` does."""
    for name, said in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\necho '{said}' >&2\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/bin:/usr/bin" if len(scripts) == 2 else str(folder)


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"mvn": ""}, ["java is not on PATH", "openjdk-17-jre-headless"]),
        ({"java": 'openjdk version "17.0.15"'}, ["mvn is not on PATH", "maven"]),
        ({"java": 'java version "1.8.0_402"', "mvn": ""}, ["expected Java 17 or newer", "1.8.0_402"]),
    ],
    ids=["no java", "no maven", "old java"],
)
def test_a_machine_without_its_tools_is_told_what_to_install(
    flink_setup: ModuleType,
    installed: dict[str, str],
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", tools(tmp_path, **installed))
    with pytest.raises(flink_setup.SetupError) as refused:
        flink_setup.check_tools()
    for part in expected:
        assert part in str(refused.value)


def test_java_17_will_do(flink_setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", tools(tmp_path, java='openjdk version "17.0.15" 2025-04-15', mvn=""))
    flink_setup.check_tools()


def test_jars_that_are_not_the_pinned_ones_are_refused_by_name(flink_setup: ModuleType, tmp_path: Path) -> None:
    for name in ("a.jar", "b.jar"):
        (tmp_path / name).write_text(name)
    pinned = flink_setup.hashes(tmp_path)
    flink_setup.check(tmp_path, pinned)
    (tmp_path / "b.jar").write_text("something else")
    (tmp_path / "c.jar").write_text("one more")
    with pytest.raises(flink_setup.SetupError, match=r"2 jars .* among them b\.jar, c\.jar"):
        flink_setup.check(tmp_path, pinned)
    (tmp_path / "a.jar").unlink()
    with pytest.raises(flink_setup.SetupError, match=r"3 jars .* a\.jar"):
        flink_setup.check(tmp_path, pinned)
