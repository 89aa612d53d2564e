"""A model's numbered versions in the folder that TensorFlow Serving watches: listed, published, removed.

The Pusher, `tandem rollback` and `tandem promote` work on the folder through these functions. A server looks at names
that are whole numbers only, so whatever is on its way in or out has another name.
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

# Where a version comes from, for `tandem` and for whoever finds the folder.
ORIGIN_FILE = os.path.join("assets.extra", "tandem.json")

# A copy whose process is gone is cleaned up; one of a machine that we cannot ask is left alone this long.
ABANDONED_AFTER_S = 6 * 3600

# Version numbers are int64 in TensorFlow Serving.
_HIGHEST = 2**63 - 1
_UNFINISHED = re.compile(r"\.(?:pushing|removing)-[0-9]+-(?:(?P<process>[0-9]+)@(?P<host>.+)-)?[0-9a-f]{32}")


class WouldGoBackwards(BadInput):
    """The version would not be the newest one in its folder, so nobody would be served it."""


def pushed_versions(folder: str) -> list[int]:
    """The version numbers in a folder that TensorFlow Serving watches, ascending; empty where it does not exist."""
    return sorted(int(name) for name in _names(folder) if name.isascii() and name.isdigit())


def version_path(folder: str, version: int) -> str:
    """Folder of one version."""
    return os.path.join(folder, str(version))


def next_version(folder: str) -> int:
    """The time in seconds, or one more than the newest where the clock is behind it.

    Raises:
        WouldGoBackwards: The newest version has the highest number there is.
    """
    newest = max(pushed_versions(folder), default=-1)
    if newest >= _HIGHEST:
        raise WouldGoBackwards(
            f"{version_path(folder, newest)}: no version can have a higher number than this one, so none can be pushed "
            "any more. Push to another folder, or remove this version if it is not served"
        )
    return max(int(time.time()), newest + 1)


def publish(source: str, folder: str, version: int, origin: dict[str, Any]) -> str:
    """Copies a SavedModel beside the other versions, and renames the whole copy to its number.

    Args:
        source: Folder of the SavedModel.
        folder: Where the versions are; made if needed.
        version: The number.
        origin: What `origin_of` tells of the version later; `model` is the URI of its Model artifact.

    Returns:
        The version's folder.

    Raises:
        WouldGoBackwards: By the time the copy was whole, there was a version with this number or a higher one. The
            copy is gone, and what was there is as it was.
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
                f"{folder}: version {newest} was pushed by somebody else while version {version} was being copied. It "
                "would not be the newest, and nobody would be served it: nothing was pushed. If this model is the one "
                "to serve, push it again"
            )
        try:
            fileio.rename(staging, target)
        except (OSError, tf.errors.OpError) as error:
            if fileio.exists(target):
                raise WouldGoBackwards(
                    f"{target} was pushed by somebody else at the same second: nothing was pushed. Push again"
                ) from error
            raise
    except BaseException:
        if fileio.exists(staging):
            fileio.rmtree(staging)
        raise
    return target


def origin_of(path: str) -> dict[str, Any] | None:
    """What `publish` noted about the version at `path`; None where something else wrote it."""
    target = os.path.join(path, ORIGIN_FILE)
    if not fileio.exists(target):
        return None
    with fileio.open(target) as file:
        found = json.load(file)
    return found if isinstance(found, dict) else None


def remove_old_versions(folder: str, keep: int, in_use: Callable[[], Collection[int]]) -> list[int]:
    """Removes all but the newest versions: each is renamed at once, and only then deleted file by file.

    Args:
        folder: Where the versions are.
        keep: How many of the newest stay; at least 1.
        in_use: The versions that stay besides. It is asked again when a version has been taken out of sight, and a
            version that somebody promoted meanwhile comes back.

    Returns:
        The numbers removed. A version without `ORIGIN_FILE` was not pushed by us and stays.
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
    """Removes copies that a process left behind when it was killed, and versions that it had begun to delete.

    Removed is what is older than `ABANDONED_AFTER_S`, unless its process still runs on this machine.

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
        logging.info("Removing %s: the process that wrote it ended before it was whole.", path)
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
