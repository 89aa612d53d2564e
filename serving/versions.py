"""The life of a model's versions: found on disk, loaded, warmed up, made available, unloaded after their last call.

States and their order are TensorFlow Serving's (START, LOADING, AVAILABLE, UNLOADING, END). The policy is its default,
"latest 1", with a new version loaded before the old one is let go, so that there is always one to answer.
"""

from __future__ import annotations

import enum
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from serving.servable import Servable
from serving.status import ServingError, not_found
from serving.warmup import run_warmup

_VERSION_FOLDER = re.compile(r"[0-9]{1,19}")
_GRAPH_FILES = ("saved_model.pb", "saved_model.pbtxt")
_MAX_ENDED = 100  # versions at END that status still reports; a server that runs for months must not grow

_logger = logging.getLogger(__name__)


class State(enum.IntEnum):
    """`ModelVersionStatus.State` of TensorFlow Serving's API."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """Where a version is; `error` says why it got to END, where that was not the ordinary end."""

    version: int
    state: State
    error: ServingError | None = None


class _Harness:
    """A servable with the number of calls that are using it."""

    def __init__(self, servable: Servable) -> None:
        self.servable = servable
        self.calls = 0


_Fingerprint = tuple[tuple[str, int, int], ...]
Loader = Callable[[str, int, Path], Servable]


def load_and_warm_up(name: str, version: int, path: Path) -> Servable:
    """Loads a version and runs its warm-up requests.

    Raises:
        ServingError: it does not load, or a warm-up request fails; nothing stays loaded.
    """
    started = time.monotonic()
    servable = Servable.load(name, version, path)
    try:
        requests = run_warmup(servable, path)
    except BaseException:
        servable.close()
        raise
    elapsed = time.monotonic() - started
    _logger.info("version %d of model %s: loaded in %.2f s, %d warm-up requests", version, name, elapsed, requests)
    return servable


class ServableVersions:
    """Follows one model's base path and hands out its available version.

    Each poll serves the highest-numbered version that loads. One that does not is logged, reported at END with the
    reason and skipped until its files change (it may have been half written); a lower one serves meanwhile. Without
    any version on disk the served one stays (TensorFlow Serving's `servable_versions_always_present`).
    """

    def __init__(
        self, name: str, base_path: Path, *, poll_interval_s: float = 1.0, loader: Loader = load_and_warm_up
    ) -> None:
        """Args:
        name: the model's name in requests.
        base_path: holds a folder a version, named by its number.
        poll_interval_s: seconds between looks at the folder.
        loader: makes a servable of a version's folder; tests put a slow or failing one here.
        """
        self.name = name
        self._base_path = base_path
        self._poll_interval_s = poll_interval_s
        self._loader = loader
        self._changed = threading.Condition()
        self._available: dict[int, _Harness] = {}
        self._statuses: dict[int, VersionStatus] = {}
        self._failed: dict[int, _Fingerprint] = {}
        self._polls = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._unloads: list[threading.Thread] = []
        self._warned = ""

    # -- requests ---------------------------------------------------------------------------------------------------

    @contextmanager
    def servable(self, version: int | None = None) -> Iterator[Servable]:
        """The version asked for, or the latest; it stays loaded until the block is left.

        Raises:
            ServingError: NOT_FOUND, that version (or any) is not available.
        """
        with self._changed:
            number = version if version is not None else max(self._available, default=None)
            harness = self._available.get(number) if number is not None else None
            if harness is None:
                raise self._not_available(version)
            harness.calls += 1
        try:
            yield harness.servable
        finally:
            with self._changed:
                harness.calls -= 1
                if not harness.calls:
                    self._changed.notify_all()

    def _not_available(self, version: int | None) -> ServingError:
        request = f"Latest({self.name})" if version is None else f"Specific({self.name}, {version})"
        available = ", ".join(str(number) for number in sorted(self._available)) or "none"
        return not_found(f"Servable not found for request: {request}. Available versions: {available}.")

    def statuses(self, version: int | None = None) -> list[VersionStatus]:
        """What became of each version seen so far, newest first, or of the one asked for.

        Raises:
            ServingError: NOT_FOUND, never seen.
        """
        with self._changed:
            if version is None:
                statuses = [self._statuses[number] for number in sorted(self._statuses, reverse=True)]
            else:
                statuses = [self._statuses[version]] if version in self._statuses else []
        if statuses:
            return statuses
        if version is None:
            raise not_found(f"Could not find any versions of model {self.name}")
        raise not_found(f"Could not find version {version} of model {self.name}")

    def wait_until_available(self, timeout: float | None = None) -> int | None:
        """Blocks until a version answers; its number, or None after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._available), timeout)
            return max(self._available, default=None)

    def wait_until_polled(self, timeout: float | None = None) -> bool:
        """Blocks until every version found at the first look was tried; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._polls > 0, timeout)

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts to follow the folder, in a thread of its own."""
        self._thread = threading.Thread(target=self._follow, name=f"versions-{self.name}", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stops following and unloads; calls still running get up to `timeout` seconds to finish."""
        deadline = time.monotonic() + timeout
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            for number in list(self._available):
                self._retire(number, deadline)
            unloads = list(self._unloads)
        for unload in unloads:
            unload.join(max(0.0, deadline - time.monotonic()) + 1.0)

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                self.poll()
            except Exception:
                _logger.exception("model %s: looking at %s failed; trying again", self.name, self._base_path)
            with self._changed:
                self._polls += 1
                self._changed.notify_all()
            self._stopping.wait(self._poll_interval_s)

    def poll(self) -> None:
        """One look at the folder: loads what the policy asks for and lets go of what it replaces."""
        on_disk = self._versions_on_disk()
        self._failed = {number: seen for number, seen in self._failed.items() if number in on_disk}
        for number in sorted(on_disk, reverse=True):
            if number in self._available:
                self._retire_others(number)
                return
            if self._stopping.is_set():
                return
            fingerprint = _fingerprint(on_disk[number])
            if self._failed.get(number) == fingerprint:
                continue
            if self._load(number, on_disk[number]):
                self._retire_others(number)
                return
            self._failed[number] = fingerprint
        if not self._available:
            self._warn_once(
                f"no versions of model {self.name} that load under {self._base_path}; waiting. Versions are folders "
                "named by a number, such as 1/saved_model.pb"
            )

    def _versions_on_disk(self) -> dict[int, Path]:
        """Version folders that hold a graph; a number without one is still being written."""
        try:
            entries = sorted(self._base_path.iterdir())
        except OSError as error:
            # Not a reason to let go of what is served: network file systems go and come back.
            self._warn_once(f"Could not find base path {self._base_path} for model {self.name}: {error}")
            return {}
        return {
            int(entry.name): entry
            for entry in entries
            if _VERSION_FOLDER.fullmatch(entry.name) and any((entry / graph).is_file() for graph in _GRAPH_FILES)
        }

    def _load(self, number: int, path: Path) -> bool:
        self._set_status(VersionStatus(number, State.START))
        self._set_status(VersionStatus(number, State.LOADING))
        _logger.info("version %d of model %s: loading from %s", number, self.name, path)
        try:
            servable = self._loader(self.name, number, path)
        except Exception as error:
            failure = error if isinstance(error, ServingError) else _unexpected(number, error)
            with self._changed:
                serving = max(self._available, default=None)
            _logger.error(
                "version %d of model %s skipped, it does not load: %s; %s",
                number,
                self.name,
                failure.message,
                "no version is served yet" if serving is None else f"version {serving} stays",
            )
            self._set_status(VersionStatus(number, State.END, failure))
            return False
        with self._changed:
            if self._stopping.is_set():  # nobody would unload it any more
                servable.close()
                self._set_status(VersionStatus(number, State.END))
                return False
            self._available[number] = _Harness(servable)
        self._set_status(VersionStatus(number, State.AVAILABLE))
        self._warned = ""
        _logger.info("version %d of model %s: available", number, self.name)
        return True

    def _retire_others(self, keep: int) -> None:
        with self._changed:
            for number in [number for number in self._available if number != keep]:
                self._retire(number, deadline=None)

    def _retire(self, number: int, deadline: float | None) -> None:
        """Takes a version out of service (the lock is held) and unloads it when its last call is done."""
        self._set_status(VersionStatus(number, State.UNLOADING))
        harness = self._available.pop(number)
        unload = threading.Thread(
            target=self._unload, args=(number, harness, deadline), name=f"unload-{self.name}-{number}", daemon=True
        )
        self._unloads = [thread for thread in self._unloads if thread.is_alive()] + [unload]
        unload.start()

    def _unload(self, number: int, harness: _Harness, deadline: float | None) -> None:
        with self._changed:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._changed.wait_for(lambda: not harness.calls, timeout):
                _logger.warning("version %d of model %s: %d calls cut off", number, self.name, harness.calls)
                return
        harness.servable.close()
        with self._changed:
            # The same number may have been pushed and loaded anew while this one was let go.
            if number not in self._available and self._statuses[number].state == State.UNLOADING:
                self._set_status(VersionStatus(number, State.END))
        _logger.info("version %d of model %s: unloaded", number, self.name)

    def _set_status(self, status: VersionStatus) -> None:
        with self._changed:
            self._statuses.pop(status.version, None)
            self._statuses[status.version] = status
            ended = [number for number, each in self._statuses.items() if each.state == State.END]
            for number in ended[:-_MAX_ENDED]:
                del self._statuses[number]
            self._changed.notify_all()

    def _warn_once(self, message: str) -> None:
        if message != self._warned:
            self._warned = message
            _logger.warning(message)


def _fingerprint(path: Path) -> _Fingerprint:
    """Names, sizes and times of a version's files: changes when more of it gets written."""
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            try:
                entry = os.stat(file)
            except OSError:
                continue  # went away while we looked
            found.append((file, entry.st_size, entry.st_mtime_ns))
    return tuple(sorted(found))


def _unexpected(number: int, error: Exception) -> ServingError:
    _logger.exception("version %d: unexpected error while loading", number)
    return ServingError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
