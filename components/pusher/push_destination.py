"""The push destination: lists, publishes and removes a model's numbered versions.

The Pusher, `tandem rollback` and `tandem promote` use these functions. Servers ignore names that are not numbers, so
versions that are being copied or removed have other names.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Collection
from typing import Any

import tensorflow as tf
from absl import logging
from tfx.dsl.io import fileio
from tfx.utils import io_utils

from recipe.errors import BadInput

# The origin of a version: the URI of its Model artifact.
ORIGIN_FILE = os.path.join("assets.extra", "tandem.json")

# Age at which a partial copy is removed, unless its process still runs on this machine.
ABANDONED_AFTER_S = 6 * 3600

# Version numbers are int64 in TensorFlow Serving.
_HIGHEST = 2**63 - 1
_UNFINISHED = re.compile(r"\.(?:pushing|removing)-[0-9]+-(?:(?P<process>[0-9]+)@(?P<host>.+)-)?[0-9a-f]{32}")


class WouldGoBackwards(BadInput):
    """The version would not be the latest in its folder, so no client would get it."""


def pushed_versions(folder: str) -> list[int]:
    """Return the version numbers in a push destination, ascending; empty if it does not exist."""
    return sorted(int(name) for name in _names(folder) if name.isascii() and name.isdigit())


def version_path(folder: str, version: int) -> str:
    """Return the folder of a version."""
    return os.path.join(folder, str(version))


def next_version(folder: str) -> int:
    """Return the time in seconds, or one more than the latest version if the clock is behind it.

    Raises:
        WouldGoBackwards: The latest version has the highest possible number.
    """
    newest = max(pushed_versions(folder), default=-1)
    if newest >= _HIGHEST:
        raise WouldGoBackwards(
            f"{version_path(folder, newest)}: this is the highest possible version number; no version can be pushed. "
            "Push to another folder, or remove this version if it is not served"
        )
    return max(int(time.time()), newest + 1)


def publish(source: str, folder: str, version: int, origin: dict[str, Any]) -> str:
    """Copy a SavedModel into the push destination, and rename the complete copy to its version number.

    Args:
        source: Folder of the SavedModel.
        folder: The push destination; made if it does not exist.
        version: The version number.
        origin: Origin of the version, which `origin_of` returns; `model` is the URI of its Model artifact.

    Returns:
        The version's folder.

    Raises:
        WouldGoBackwards: When the copy was complete, there was a version with this number or a higher one. The copy
            was removed; other versions are unchanged.
    """
    staging = _unfinished(folder, "pushing", version)
    target = version_path(folder, version)
    fileio.makedirs(folder)
    try:
        io_utils.copy_dir(source, staging)
        io_utils.write_string_file(os.path.join(staging, ORIGIN_FILE), json.dumps(origin))
        newest = max(pushed_versions(folder), default=-1)
        if newest >= version:
            raise WouldGoBackwards(
                f"{folder}: another process pushed version {newest} while version {version} was being copied, which "
                "would not be the latest: nothing was pushed. Rerun to push this model as the latest version"
            )
        try:
            fileio.rename(staging, target)
        except (OSError, tf.errors.OpError) as error:
            if fileio.exists(target):
                raise WouldGoBackwards(
                    f"{target}: another process pushed this version in the same second: nothing was pushed. Rerun"
                ) from error
            raise
    except BaseException:
        if fileio.exists(staging):
            fileio.rmtree(staging)
        raise
    return target


def origin_of(path: str) -> dict[str, Any] | None:
    """Return the origin that `publish` wrote into the version at `path`; None if Tandem did not push it."""
    target = os.path.join(path, ORIGIN_FILE)
    if not fileio.exists(target):
        return None
    with fileio.open(target) as file:
        found = json.load(file)
    return found if isinstance(found, dict) else None


def remove_old_versions(folder: str, keep: int, in_use: Callable[[], Collection[int]]) -> list[int]:
    """Remove all but the latest versions: each is renamed atomically, then deleted.

    Args:
        folder: The push destination.
        keep: Number of latest versions to keep; at least 1.
        in_use: Returns further versions to keep. It is called again after a version was renamed; if the version was
            promoted in the meantime, it is renamed back.

    Returns:
        The numbers removed. A version without `ORIGIN_FILE` was not pushed by Tandem and stays.
    """
    removed = []
    for version in pushed_versions(folder)[: -max(keep, 1)]:
        path = version_path(folder, version)
        if version in in_use() or origin_of(path) is None:
            continue
        hidden = _unfinished(folder, "removing", version)
        fileio.rename(path, hidden)
        if version in in_use():
            fileio.rename(hidden, path)
            continue
        fileio.rmtree(hidden)
        removed.append(version)
    return removed


def remove_abandoned(folder: str) -> list[str]:
    """Remove partial copies, and partly deleted versions, of processes that were killed.

    A folder is removed if it is older than `ABANDONED_AFTER_S`, unless its process still runs on this machine.

    Returns:
        The names removed.
    """
    removed = []
    for name in _names(folder):
        found = _UNFINISHED.fullmatch(name)
        path = os.path.join(folder, name)
        if found is None or _age_s(path) < ABANDONED_AFTER_S:
            continue
        if found["host"] == socket.gethostname() and _runs(int(found["process"])):
            continue
        logging.info("Removed %s, a partial copy of a process that ended.", path)
        fileio.rmtree(path)
        removed.append(name)
    return removed


def _names(folder: str) -> list[str]:
    return [name.rstrip("/") for name in fileio.listdir(folder)] if fileio.isdir(folder) else []


def _unfinished(folder: str, doing: str, version: int) -> str:
    name = f".{doing}-{version}-{os.getpid()}@{socket.gethostname()}-{uuid.uuid4().hex}"
    return os.path.join(folder, name)


def _age_s(path: str) -> float:
    return time.time() - tf.io.gfile.stat(path).mtime_nsec / 1e9


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
