"""Version labels and rollback: `tandem promote` and `tandem rollback`. docs/release.md explains the design.

A server that reloads `models.config` reads the version labels from it; any other server serves the latest version. A
rollback therefore moves a label if the file has labels, and otherwise pushes the content of an earlier version again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorflow_serving.config import model_server_config_pb2

from components.pusher import push_destination
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
    """The version does not exist, or there is no earlier one to roll back to."""


@dataclasses.dataclass(frozen=True)
class Released:
    """Result of a promotion or a rollback."""

    label: str | None
    """Label that was moved; None if an earlier version was pushed again."""
    before: int | None
    """Version of the label, or latest version, before; None if the label is new."""
    version: int
    """Version of the label, or latest version, now."""
    copy_of: int | None = None
    """Version whose content was pushed again."""
    config: Path | None = None
    """The `models.config` that was written."""


def promote(model_dir: Path, label: str, version: int | None, model: str) -> Released:
    """Assign a label to a version in the `models.config` next to the folder; create the file if it is missing.

    Sets the model's version policy to `all`: a label can only be assigned to a version that a server has loaded, and
    with all versions loaded the label moves immediately. The Pusher removes versions that are no longer needed.

    Args:
        model_dir: Push destination: the folder with the numbered versions.
        label: Version label.
        version: Version for the label; the latest if None.
        model: Name of the model on the server.

    Raises:
        ReleaseError: The version does not exist.
        ModelConfigError: The file is invalid, does not contain the model, or has a policy with specific versions.
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
    """Roll back to an earlier version.

    If `models.config` has the label `stable`, the label moves; a server that reloads the file has loaded the earlier
    version already. Without the file or the label, servers serve the latest version: the earlier version is pushed
    again under a new number, because pushed versions are immutable.

    Args:
        model_dir: Push destination: the folder with the numbered versions.
        to: Version to roll back to; if None, the version before the stable one, or before the latest.
        model: Name of the model on the server.

    Raises:
        ReleaseError: The version does not exist, or there is no earlier one.
        ModelConfigError: The file is invalid, does not contain the model, or has a policy with specific versions.
        WouldGoBackwards: Another process pushed a version at the same time.
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
        raise ReleaseError(f"{path}: version {chosen} is already stable. Set --to to another version: {_list(there)}")
    _serve_all(entry, path)
    return _moved(config, entry, path, STABLE, chosen)


def _republished(model_dir: Path, there: Sequence[int], to: int | None) -> Released:
    newest = there[-1]
    # After a rollback the latest version is a copy: the next rollback goes before the version that was copied.
    newest_content = _content(model_dir, newest)
    chosen = _existing(model_dir, there, to) if to is not None else _before(model_dir, there, newest_content)
    if chosen == newest or _content(model_dir, chosen) == newest_content:
        raise ReleaseError(
            f"{model_dir}: the latest version, {newest}, already has the content of version {chosen}. Set --to to "
            f"another version: {_list(there)}"
        )
    source = push_destination.version_path(str(model_dir), chosen)
    origin: dict[str, Any] = {**(push_destination.origin_of(source) or {}), "copy_of": _content(model_dir, chosen)}
    number = push_destination.next_version(str(model_dir))
    push_destination.publish(source, str(model_dir), number, origin)
    return Released(label=None, before=newest, version=number, copy_of=chosen)


def _content(model_dir: Path, version: int) -> int:
    """Return the version that this one is a copy of, or the version itself."""
    origin = push_destination.origin_of(push_destination.version_path(str(model_dir), version)) or {}
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
            f"{path}: the model_version_policy of model {entry.name!r} is specific "
            f"({_list(policy.specific.versions)}); version labels need the policy all. Remove "
            "model_version_policy from the file"
        )
    policy.all.SetInParent()


def _versions(model_dir: Path) -> list[int]:
    found = push_destination.pushed_versions(str(model_dir))
    if not found:
        problem = "no versions found" if model_dir.is_dir() else "folder does not exist"
        raise ReleaseError(
            f"{model_dir}: {problem}. Set --model-dir to the push destination, for example "
            "work/movielens/serving/movielens"
        )
    return found


def _existing(model_dir: Path, there: Sequence[int], version: int) -> int:
    if version not in there:
        raise ReleaseError(f"{model_dir}: version {version} does not exist. Versions: {_list(there)}")
    return version


def _before(model_dir: Path, there: Sequence[int], version: int) -> int:
    earlier = [number for number in there if number < version]
    if not earlier:
        raise ReleaseError(f"{model_dir}: no version before {version} to roll back to. Versions: {_list(there)}")
    return earlier[-1]


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
