"""Old versions are removed from the push destination, but no version with a label."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_serving.config import model_server_config_pb2

import components.pusher.push_destination as versions
from components.pusher.push_destination import ABANDONED_AFTER_S, ORIGIN_FILE, WouldGoBackwards, pushed_versions

HEX = "0" * 32


def label(serving_dir: Path, **labels: int) -> Path:
    """Writes `models.config` beside the folder, with these labels."""
    config = model_server_config_pb2.ModelServerConfig()
    entry = config.model_config_list.config.add(name="recommender", base_path="/models/recommender")
    for name, version in labels.items():
        entry.version_labels[name] = version
    path = serving_dir.parent / "models.config"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_format.MessageToString(config))
    return path


def write_version(folder: Path, number: int) -> None:
    """A version as the Pusher writes it."""
    (folder / str(number) / "assets.extra").mkdir(parents=True)
    (folder / str(number) / ORIGIN_FILE).write_text('{"model": "m"}')


def there(serving_dir: Path) -> list[int]:
    return pushed_versions(str(serving_dir))


def test_the_latest_versions_are_kept(push: Any, make_model: Any, serving_dir: Path) -> None:
    pushed = [int(push(make_model(name), keep_versions=2).version) for name in "abcd"]
    assert there(serving_dir) == pushed[-2:]
    assert {path.name for path in serving_dir.iterdir()} == {str(number) for number in pushed[-2:]}


def test_a_version_with_a_label_stays(push: Any, make_model: Any, serving_dir: Path) -> None:
    first = int(push(make_model("a")).version)
    label(serving_dir, stable=first)
    pushed = [int(push(make_model(name), keep_versions=1).version) for name in "bc"]
    assert there(serving_dir) == [first, pushed[-1]]
    label(serving_dir, stable=pushed[-1])
    push(make_model("c"), keep_versions=1)
    assert there(serving_dir) == pushed[-1:], "without its label it goes"


def test_no_version_is_removed_if_the_labels_are_unknown(push: Any, make_model: Any, serving_dir: Path) -> None:
    push(make_model("a"))
    label(serving_dir).write_text("model_config_list { confg {} }")
    assert push(make_model("b"), keep_versions=1).pushed == 1
    assert len(there(serving_dir)) == 2


def test_versions_of_other_tools_stay(push: Any, make_model: Any, serving_dir: Path) -> None:
    (serving_dir / "3").mkdir(parents=True)
    pushed = int(push(make_model("a"), keep_versions=1).version)
    assert there(serving_dir) == [3, pushed]


def test_a_model_that_is_not_blessed_removes_nothing(push: Any, make_model: Any, serving_dir: Path) -> None:
    before = [int(push(make_model(name)).version) for name in "ab"]
    push(make_model("c"), evaluator=False, keep_versions=1)
    assert there(serving_dir) == before


def test_a_version_promoted_while_it_is_being_removed_comes_back(tmp_path: Path) -> None:
    for number in (1, 2):
        write_version(tmp_path, number)
    in_use = iter([set(), {1}])
    assert versions.remove_old_versions(str(tmp_path), 1, lambda: next(in_use)) == []
    assert there(tmp_path) == [1, 2] and (tmp_path / "1" / ORIGIN_FILE).is_file()


def test_a_version_is_renamed_before_its_first_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        write_version(tmp_path, number)

    def killed(path: str) -> None:
        assert there(tmp_path) == [2] and Path(path, ORIGIN_FILE).is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(versions.fileio, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        versions.remove_old_versions(str(tmp_path), 1, set)
    assert there(tmp_path) == [2]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.sets(st.integers(0, 20)), keep=st.integers(1, 6), used=st.sets(st.integers(0, 20)))
def test_the_latest_versions_and_those_in_use_stay(
    tmp_path_factory: pytest.TempPathFactory, numbers: set[int], keep: int, used: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("versions")
    for number in numbers:
        write_version(folder, number)
    removed = versions.remove_old_versions(str(folder), keep, lambda: used)
    expected = sorted(set(sorted(numbers)[-keep:]) | (numbers & used))
    assert there(folder) == expected and removed == sorted(numbers - set(expected))


# --- copies left behind -----------------------------------------------------------------------------------------------


@pytest.fixture
def left_behind(serving_dir: Path) -> Callable[..., Path]:
    def make(process: int, *, host: str = socket.gethostname(), age: float, doing: str = "pushing") -> Path:
        path = serving_dir / f".{doing}-5-{process}@{host}-{HEX}"
        path.mkdir(parents=True)
        (path / "saved_model.pb").write_bytes(b"half")
        moment = time.time() - age
        os.utime(path, (moment, moment))
        return path

    return make


@pytest.fixture(scope="module")
def ended() -> int:
    """Number of a process that ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("doing", ["pushing", "removing"])
def test_partial_copies_of_a_killed_push_are_removed(
    push: Any, make_model: Any, left_behind: Any, ended: int, doing: str
) -> None:
    path = left_behind(ended, age=ABANDONED_AFTER_S + 60, doing=doing)
    push(make_model("a"))
    assert not path.exists()


def test_a_push_that_may_still_run_keeps_its_copy(push: Any, make_model: Any, left_behind: Any, ended: int) -> None:
    old, young = ABANDONED_AFTER_S + 60, ABANDONED_AFTER_S - 600
    kept = [left_behind(os.getpid(), age=old), left_behind(ended, host="another", age=young)]
    gone = left_behind(os.getpid(), host="third", age=old)
    push(make_model("a"))
    assert all(path.exists() for path in kept), "its process lives, or it is young"
    assert not gone.exists(), "a process of another machine has ended after hours"


# --- never backwards --------------------------------------------------------------------------------------------------


def overtaken(monkeypatch: pytest.MonkeyPatch, serving_dir: Path, ahead: int) -> None:
    """Another process pushes a version during the next push; its number is `ahead` of that push's."""
    copy = versions.io_utils.copy_dir

    def slow(source: str, target: str) -> None:
        copy(source, target)
        name = Path(target).name
        if name.startswith(".pushing-"):
            write_version(serving_dir, int(name.split("-")[1]) + ahead)

    monkeypatch.setattr(versions.io_utils, "copy_dir", slow)


@pytest.mark.parametrize("ahead", [0, 1, 1000])
def test_a_push_after_a_later_version_is_rejected(
    push: Any, make_model: Any, serving_dir: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    first = int(push(make_model("a")).version)
    with monkeypatch.context() as patched:
        overtaken(patched, serving_dir, ahead)
        with pytest.raises(WouldGoBackwards, match="another process"):
            push(make_model("b"))
    (_, other) = there(serving_dir)
    assert {path.name for path in serving_dir.iterdir()} == {str(first), str(other)}, "no half copy stays"
    assert int(push(make_model("b")).version) > other, "a new push is the newest"


def test_a_push_after_an_earlier_version_succeeds(
    push: Any, make_model: Any, serving_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        overtaken(patched, serving_dir, -1)
        pushed = int(push(make_model("a")).version)
    assert there(serving_dir) == [pushed - 1, pushed]


def test_no_version_is_pushed_beyond_the_highest_number(push: Any, make_model: Any, serving_dir: Path) -> None:
    write_version(serving_dir, 2**63 - 1)
    with pytest.raises(WouldGoBackwards, match="the highest possible version number"):
        push(make_model("a"))
    assert there(serving_dir) == [2**63 - 1]
