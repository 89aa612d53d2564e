"""Which pushed version answers people: `tandem promote` and `tandem rollback`. docs/release.md explains the design.

A server that follows `models.config` learns of labels from it; any other serves the newest version. So a release is a
change of a label where the file has labels, and a new version with an older one's content where it has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorflow_serving.config import model_server_config_pb2

from components.pusher import push_destination as versions
from components.pusher.version_labels import (
    STABLE,
    ModelConfigError,
    config_path,
    model_entry,
    read_config,
    write_config,
)
from recipe import BadInput

MODEL_PLATFORM = "tensorflow"


class ReleaseError(BadInput):
    """There is no such version, or none to go back to."""


@dataclasses.dataclass(frozen=True)
class Released:
    """What a promotion or a rollback changed."""

    label: str | None
    """The label that was moved; None where an older version was published again."""
    before: int | None
    """The version that the label pointed to, or that was the newest; None where the label is new."""
    version: int
    """The version that the label points to now, or that is the newest now."""
    copy_of: int | None = None
    """The version whose content a republished one has."""
    config: Path | None = None
    """The file that was written."""


def promote(model_dir: Path, label: str, version: int | None, model: str) -> Released:
    """Points a label at a version, in the `models.config` beside the folder; writes the file if there is none.

    The model's version policy becomes `all`: labels can only point to versions that a server has loaded, and so a
    label is moved at once and without a load. Versions that nobody needs any more are the Pusher's to remove.

    Args:
        model_dir: Folder with the numbered versions.
        label: The label.
        version: The version; None for the newest.
        model: Name that the server knows the model by.

    Raises:
        ReleaseError: There is no such version.
        ModelConfigError: The file cannot be read, has no such model, or serves versions by number.
    """
    path = Path(config_path(str(model_dir)))
    there = _versions(model_dir)
    chosen = _existing(model_dir, there, version) if version is not None else there[-1]
    config = read_config(str(path))
    if config is None:
        config = model_server_config_pb2.ModelServerConfig()
        config.model_config_list.config.add(
            name=model, base_path=str(model_dir.absolute()), model_platform=MODEL_PLATFORM
        )
    entry = model_entry(config, str(path), model)
    _serve_all(entry, path)
    return _moved(config, entry, path, label, chosen)


def rollback(model_dir: Path, to: int | None, model: str) -> Released:
    """Goes back to an older version.

    Where `models.config` has the label `stable`, it is moved; a server that follows the file has the older version
    loaded already. Where there is no file or no such label, servers answer with the newest version: the older one is
    published again under a new number, because a version never changes and never gets another number.

    Args:
        model_dir: Folder with the numbered versions.
        to: The version to go back to; None for the one before the one that is stable, or the newest.
        model: Name that the server knows the model by.

    Raises:
        ReleaseError: There is no such version, or none to go back to.
        ModelConfigError: The file cannot be read, has no such model, or serves versions by number.
        WouldGoBackwards: Somebody pushed meanwhile.
    """
    path = Path(config_path(str(model_dir)))
    there = _versions(model_dir)
    config = read_config(str(path))
    entry = None if config is None else model_entry(config, str(path), model)
    if config is None or entry is None or STABLE not in entry.version_labels:
        return _republished(model_dir, there, to)
    stable = entry.version_labels[STABLE]
    chosen = _existing(model_dir, there, to) if to is not None else _before(model_dir, there, stable)
    if chosen == stable:
        raise ReleaseError(f"{path}: version {chosen} is stable already. Name another one with --to: {_list(there)}")
    _serve_all(entry, path)
    return _moved(config, entry, path, STABLE, chosen)


def _republished(model_dir: Path, there: Sequence[int], to: int | None) -> Released:
    newest = there[-1]
    # What a rollback published is a copy: going back once more means before what it is a copy of.
    newest_content = _content(model_dir, newest)
    chosen = _existing(model_dir, there, to) if to is not None else _before(model_dir, there, newest_content)
    if chosen == newest or _content(model_dir, chosen) == newest_content:
        raise ReleaseError(
            f"{model_dir}: the newest version, {newest}, has the content of version {chosen} already. Name another one "
            f"with --to: {_list(there)}"
        )
    source = versions.version_path(str(model_dir), chosen)
    origin: dict[str, Any] = {**(versions.origin_of(source) or {}), "copy_of": _content(model_dir, chosen)}
    number = versions.next_version(str(model_dir))
    versions.publish(source, str(model_dir), number, origin)
    return Released(label=None, before=newest, version=number, copy_of=chosen)


def _content(model_dir: Path, version: int) -> int:
    """The version that this one is a copy of; itself where it is none."""
    origin = versions.origin_of(versions.version_path(str(model_dir), version)) or {}
    return int(origin.get("copy_of", version))


def _moved(
    config: model_server_config_pb2.ModelServerConfig,
    entry: model_server_config_pb2.ModelConfig,
    path: Path,
    label: str,
    version: int,
) -> Released:
    before = entry.version_labels.get(label)
    entry.version_labels[label] = version
    write_config(str(path), config)
    return Released(label=label, before=before, version=version, config=path)


def _serve_all(entry: model_server_config_pb2.ModelConfig, path: Path) -> None:
    policy = entry.model_version_policy
    if policy.WhichOneof("policy_choice") == "specific":
        raise ModelConfigError(
            f"{path}: model {entry.name!r} serves the versions {_list(policy.specific.versions)} and no others, so a "
            "label cannot be moved safely. Take model_version_policy out of the file, and the versions that are kept "
            "in the folder are served"
        )
    policy.all.SetInParent()


def _versions(model_dir: Path) -> list[int]:
    found = versions.pushed_versions(str(model_dir))
    if not found:
        what = "there are no versions in it" if model_dir.is_dir() else "there is no such folder"
        raise ReleaseError(
            f"{model_dir}: {what}. Give the folder that the Pusher writes, such as work/movielens/serving/movielens"
        )
    return found


def _existing(model_dir: Path, there: Sequence[int], version: int) -> int:
    if version not in there:
        raise ReleaseError(f"{model_dir}: there is no version {version}. There are: {_list(there)}")
    return version


def _before(model_dir: Path, there: Sequence[int], version: int) -> int:
    earlier = [number for number in there if number < version]
    if not earlier:
        raise ReleaseError(
            f"{model_dir}: there is no version before {version} to go back to. There are: {_list(there)}"
        )
    return earlier[-1]


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
