"""Lifecycle of a model's versions: found on disk, loaded, warmed up, available, unloaded after their last request.

States and their order are TensorFlow Serving's (START, LOADING, AVAILABLE, UNLOADING, END), and so are the version
policies (latest n, all, specific). A new version is loaded before an old one is unloaded, so that one is always
available.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from serving.api.served_models import State, VersionStatus
from serving.api.status import ServingError, not_found
from serving.config.model_config import ModelSettings
from serving.server.servable import Servable

_VERSION_FOLDER = re.compile(r"[0-9]{1,19}")
_GRAPH_FILES = ("saved_model.pb", "saved_model.pbtxt")
_MAX_ENDED = 100  # versions at END that the status still reports; bounds the memory of a server that runs for months

_logger = logging.getLogger(__name__)


class _Harness:
    """A servable with the number of requests that use it."""

    def __init__(self, servable: Servable) -> None:
        self.servable = servable
        self.requests = 0


_Fingerprint = tuple[tuple[str, int, int], ...]
Loader = Callable[[str, int, Path], Servable]


class ServableVersions:
    """Follows one model's base path and provides its available versions.

    Each poll loads the versions that the policy selects; of "latest n" the n highest that load. A version that does not
    load is logged, reported at END with the reason and skipped until its files change (it may be incomplete); the
    available versions stay available meanwhile. Without any version on disk, the available ones stay (TensorFlow
    Serving's `servable_versions_always_present`).
    """

    def __init__(
        self,
        settings: ModelSettings,
        loader: Loader,
        *,
        poll_interval_s: float = 1.0,
        on_change: Callable[[ServableVersions], None] | None = None,
    ) -> None:
        """Make the versions of a model; `start` starts to follow its folder.

        Args:
            settings: the model's name, its base path and its version policy.
            loader: loads a version (`servable_loader.py`).
            poll_interval_s: seconds between two polls of the folder.
            on_change: called, from the thread that follows the folder, when a version became available or unavailable.
        """
        self.name = settings.name
        self._settings = settings
        self._poll_interval_s = poll_interval_s
        self._loader = loader
        self._on_change = on_change
        self._changed = threading.Condition()
        self._available: dict[int, _Harness] = {}
        self._statuses: dict[int, VersionStatus] = {}
        self._failed: dict[int, _Fingerprint] = {}
        self._polls = 0
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._unloads: list[threading.Thread] = []
        self._warned = ""

    # -- requests ---------------------------------------------------------------------------------------------------

    @contextmanager
    def servable(self, version: int | None = None) -> Iterator[Servable]:
        """Hold this version, or the latest one, loaded for the length of the block.

        Raises:
            ServingError: NOT_FOUND, the version is not available.
        """
        with self._changed:
            number = version if version is not None else max(self._available, default=None)
            harness = self._available.get(number) if number is not None else None
            if harness is None:
                raise self._not_available(version)
            harness.requests += 1
        try:
            yield harness.servable
        finally:
            with self._changed:
                harness.requests -= 1
                if not harness.requests:
                    self._changed.notify_all()

    def _not_available(self, version: int | None) -> ServingError:
        request = f"Latest({self.name})" if version is None else f"Specific({self.name}, {version})"
        available = ", ".join(str(number) for number in sorted(self._available)) or "none"
        return not_found(f"Servable not found for request: {request}. Available versions: {available}.")

    def statuses(self, version: int | None = None) -> list[VersionStatus]:
        """Return the status of every version seen so far, newest first, or of this one.

        Raises:
            ServingError: NOT_FOUND, no such version was seen.
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

    @property
    def base_path(self) -> Path:
        """The folder that holds the numbered versions."""
        return self._settings.base_path

    def available(self) -> list[int]:
        """Return the numbers of the available versions, ascending."""
        with self._changed:
            return sorted(self._available)

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until no request is running; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not any(harness.requests for harness in self._available.values()), max(0.0, timeout)
            )

    def wait_until_available(self, timeout: float | None = None) -> int | None:
        """Wait for an available version; return its number, or None after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._available), timeout)
            return max(self._available, default=None)

    def wait_until_polled(self, timeout: float | None = None) -> bool:
        """Wait until every version of the first poll was loaded or rejected; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._polls > 0, timeout)

    # -- lifecycle -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to follow the folder, in a thread of its own."""
        self._thread = threading.Thread(target=self._follow, name=f"versions-{self.name}", daemon=True)
        self._thread.start()

    def reconfigure(self, settings: ModelSettings) -> None:
        """Apply another version policy or folder; available versions that it selects stay loaded."""
        self._settings = settings
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """Stop following and unload all versions; running requests get up to `timeout` seconds to finish."""
        deadline = time.monotonic() + timeout
        self._stopping.set()
        self._wake.set()
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
                _logger.exception(
                    "model %s: polling %s failed; the next poll retries", self.name, self._settings.base_path
                )
            with self._changed:
                self._polls += 1
                self._changed.notify_all()
            self._wake.wait(self._poll_interval_s)
            self._wake.clear()

    def poll(self) -> None:
        """Poll the folder once: load the versions that the policy selects and unload those that they replace."""
        settings = self._settings
        on_disk = self._versions_on_disk(settings.base_path)
        self._failed = {number: seen for number, seen in self._failed.items() if number in on_disk}
        keep: set[int] = set()
        for number in settings.policy.selected(on_disk):
            if len(keep) == settings.policy.limit:
                break
            if number not in self._available and not self._try_to_load(number, on_disk[number]):
                continue
            keep.add(number)
        if self._stopping.is_set() or settings is not self._settings:
            return  # another configuration was applied meanwhile
        if keep:
            self._warned = ""
            self._retire_others(keep)
        elif not self._available:
            self._warn_once(
                f"no version of model {self.name} in {settings.base_path} loads; waiting. Expected folders named by a "
                "number, such as 1/saved_model.pb"
            )

    def _try_to_load(self, number: int, path: Path) -> bool:
        if self._stopping.is_set():
            return False
        fingerprint = _fingerprint(path)
        if self._failed.get(number) == fingerprint:
            return False
        if self._load(number, path):
            return True
        self._failed[number] = fingerprint
        return False

    def _versions_on_disk(self, base_path: Path) -> dict[int, Path]:
        """Return the version folders with a graph; one without it is still being written."""
        try:
            entries = sorted(base_path.iterdir())
        except OSError as error:
            # The available versions stay: network file systems fail and recover.
            self._warn_once(f"Could not find base path {base_path} for model {self.name}: {error}")
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
                "version %d of model %s skipped: %s; %s",
                number,
                self.name,
                failure.message,
                "no version is available" if serving is None else f"version {serving} stays available",
            )
            self._set_status(VersionStatus(number, State.END, failure))
            return False
        with self._changed:
            if self._stopping.is_set():  # stop() would not unload it
                servable.close()
                self._set_status(VersionStatus(number, State.END))
                return False
            self._available[number] = _Harness(servable)
        self._set_status(VersionStatus(number, State.AVAILABLE))
        _logger.info("version %d of model %s: available", number, self.name)
        self._notify()
        return True

    def _retire_others(self, keep: set[int]) -> None:
        with self._changed:
            others = [number for number in self._available if number not in keep]
            for number in others:
                self._retire(number, deadline=None)
        if others:
            self._notify()

    def _notify(self) -> None:
        if self._on_change is not None:
            self._on_change(self)

    def _retire(self, number: int, deadline: float | None) -> None:
        """Make a version unavailable (with the lock held) and unload it after its last request."""
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
            if not self._changed.wait_for(lambda: not harness.requests, timeout):
                _logger.warning(
                    "version %d of model %s: timed out waiting for %d requests", number, self.name, harness.requests
                )
                return
        harness.servable.close()
        with self._changed:
            # The same number may have been pushed and loaded again meanwhile.
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
    """Return names, sizes and times of a version's files; they change while it is being written."""
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            try:
                entry = os.stat(file)
            except OSError:
                continue  # deleted meanwhile
            found.append((file, entry.st_size, entry.st_mtime_ns))
    return tuple(sorted(found))


def _unexpected(number: int, error: Exception) -> ServingError:
    _logger.exception("version %d: unexpected error while loading", number)
    return ServingError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
