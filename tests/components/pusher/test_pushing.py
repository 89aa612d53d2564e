"""A pushed version is served immediately: it must be blessed and complete, and must not change afterwards."""

from __future__ import annotations

import json
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import components.pusher.push_destination as pusher
from components.pusher.push_destination import ORIGIN_FILE, pushed_versions

Files = Callable[[Path], dict[str, bytes]]


def clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(pusher, "time", types.SimpleNamespace(time=lambda: seconds))


def test_a_blessed_model_becomes_one_numbered_version_with_every_file(
    push: Any, make_model: Any, serving_dir: Path, files: Files
) -> None:
    model = make_model("a")
    before = int(time.time())
    result = push(model)
    assert result.pushed == 1
    (version,) = serving_dir.iterdir()
    assert before <= int(version.name) <= time.time()
    assert (result.destination, result.version) == (str(version), version.name)
    served = files(version)
    assert json.loads(served.pop(ORIGIN_FILE)) == {"model": str(model)}
    assert served == files(model / "Format-Serving")


def test_the_artifact_has_a_copy_of_the_pushed_version(push: Any, make_model: Any, files: Files) -> None:
    result = push(make_model("a"))
    assert files(result.folder) == files(Path(result.destination))


@pytest.mark.parametrize("turned_down_by", ["evaluator", "infra_validator"])
def test_a_model_without_both_blessings_is_not_pushed(
    push: Any, make_model: Any, serving_dir: Path, turned_down_by: str
) -> None:
    result = push(make_model("a"), **{turned_down_by: False})
    assert (result.pushed, result.destination) == (0, None)
    assert not serving_dir.exists() or not list(serving_dir.iterdir())


def test_a_model_that_is_not_blessed_leaves_the_served_version_unchanged(
    push: Any, make_model: Any, serving_dir: Path, files: Files
) -> None:
    push(make_model("a"))
    before = files(serving_dir)
    push(make_model("b"), evaluator=False)
    assert files(serving_dir) == before


def test_a_version_is_complete_when_it_appears(
    push: Any, make_model: Any, serving_dir: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any time during the push, a server finds a complete version or none."""
    seen: list[dict[str, bytes]] = []

    def looking(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            found = [path for path in serving_dir.glob("*") if path.name.isdigit()]
            seen.extend(files(path) for path in found)
            answer = function(*arguments, **options)
            found = [path for path in serving_dir.glob("*") if path.name.isdigit()]
            seen.extend(files(path) for path in found)
            return answer

        return wrapped

    for module, name in (
        (pusher.io_utils, "copy_dir"),
        (pusher.io_utils, "copy_file"),
        (pusher.io_utils, "write_string_file"),
        (pusher.fileio, "copy"),
        (pusher.fileio, "makedirs"),
        (pusher.fileio, "rename"),
    ):
        monkeypatch.setattr(module, name, looking(getattr(module, name)))
    result = push(make_model("a"))
    whole = files(Path(result.destination))
    assert seen and all(look == whole for look in seen)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_copy_leaves_no_files(
    push: Any,
    make_model: Any,
    serving_dir: Path,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    push(make_model("a"))
    before = files(serving_dir)
    begun: list[str] = []

    def break_off(source: str, target: str) -> None:
        Path(target, "variables").mkdir(parents=True)
        Path(target, "saved_model.pb").write_bytes(b"graph")
        begun.append(target)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(pusher.io_utils, "copy_dir", break_off)
        with pytest.raises(type(error)):
            push(make_model("b"))
    assert begun and Path(begun[0]).parent == serving_dir and not Path(begun[0]).name.isdigit()
    assert files(serving_dir) == before
    assert len(list(serving_dir.iterdir())) == 1

    assert push(make_model("b")).pushed == 1, "the next run pushes it"
    assert len(pushed_versions(str(serving_dir))) == 2


def test_the_same_model_is_pushed_once_and_its_version_is_returned_again(
    push: Any, make_model: Any, serving_dir: Path, files: Files
) -> None:
    model = make_model("a")
    first = push(model)
    again = push(model)
    assert (again.pushed, again.destination, again.version) == (1, first.destination, first.version)
    assert [path.name for path in serving_dir.iterdir()] == [first.version]
    assert files(again.folder) == files(first.folder)


def test_an_older_model_that_is_blessed_again_becomes_the_newest(push: Any, make_model: Any, files: Files) -> None:
    first, second, third = push(make_model("a")), push(make_model("b")), push(make_model("a"))
    assert int(first.version) < int(second.version) < int(third.version)
    assert files(Path(third.destination)) == files(Path(first.destination))


def test_a_newer_model_gets_a_higher_number_when_the_clock_goes_backwards(
    push: Any, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 2_000_000_000)
    first = push(make_model("a"))
    clock(monkeypatch, 1_000_000_000)
    second = push(make_model("b"))
    clock(monkeypatch, 2_000_000_100)
    third = push(make_model("c"))
    assert [each.version for each in (first, second, third)] == ["2000000000", "2000000001", "2000000100"]


def test_earlier_versions_are_unchanged(push: Any, make_model: Any, files: Files) -> None:
    first = push(make_model("a"))
    before = files(Path(first.destination))
    push(make_model("b"))
    assert files(Path(first.destination)) == before


def test_other_files_in_the_folder_are_unchanged(push: Any, make_model: Any, serving_dir: Path) -> None:
    for name in ("README", ".pushing-5-abandoned", "v7", "latest", "²"):
        (serving_dir / name).mkdir(parents=True)
    result = push(make_model("a"))
    assert result.pushed == 1
    assert {path.name for path in serving_dir.iterdir()} == {
        *("README", ".pushing-5-abandoned", "v7", "latest", "²"),
        result.version,
    }


def test_a_version_that_another_tool_wrote_does_not_pass_for_this_model(
    push: Any, make_model: Any, serving_dir: Path
) -> None:
    (serving_dir / "3").mkdir(parents=True)
    assert push(make_model("a")).version != "3"
    assert (serving_dir / "3").is_dir()


names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=12)
numbers = st.integers(0, 2**63 - 1).map(str)


@given(st.sets(st.one_of(names, numbers).filter(lambda name: name not in (".", ".."))))
def test_versions_are_the_names_that_are_integers(tmp_path_factory: pytest.TempPathFactory, found: set[str]) -> None:
    folder = tmp_path_factory.mktemp("serving")
    for name in found:
        (folder / name).mkdir()
    expected = sorted(int(name) for name in found if set(name) <= set("0123456789"))
    assert pushed_versions(str(folder)) == expected


def test_a_folder_that_does_not_exist_has_no_versions(tmp_path: Path) -> None:
    assert pushed_versions(str(tmp_path / "nothing")) == []
