"""The life of a model's versions: found on disk, loaded, warmed up, made available, unloaded after their last call.

States and their order are TensorFlow Serving's (START, LOADING, AVAILABLE, UNLOADING, END), and so are the policies
(latest n, all, specific). A new version is loaded before an old one is let go, so that there is always one to answer.
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

from serving.api.servables import State, VersionStatus
from serving.api.status import ServingError, not_found
from serving.config.model_config import ModelSettings
from serving.server.servable import Servable

_VERSION_FOLDER = re.compile(r"[0-9]{1,19}")
_GRAPH_FILES = ("saved_model.pb", "saved_model.pbtxt")
_MAX_ENDED = 100  # versions at END that status still reports; a server that runs for months must not grow

_logger = logging.getLogger(__name__)


class _Harness:
    """A servable with the number of calls that are using it."""

    def __init__(self, servable: Servable) -> None:
        self.servable = servable
        self.calls = 0


_Fingerprint = tuple[tuple[str, int, int], ...]
Loader = Callable[[str, int, Path], Servable]


class ServableVersions:
    """Follows one model's base path and hands out its available versions.

    Each poll serves the versions that the policy asks for and that load; of "latest n" the n highest that load. One
    that does not load is logged, reported at END with the reason and skipped until its files change (it may have been
    half written); what was served stays meanwhile. Without any version on disk the served ones stay (TensorFlow
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
        """Args:
        settings: the model's name, its base path and its version policy.
        loader: makes a servable of a version's folder (`loading.py`).
        poll_interval_s: seconds between looks at the folder.
        on_change: called, from the thread that follows the folder, when a version became available or was let go.
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

    @property
    def base_path(self) -> Path:
        """Where its versions are looked for."""
        return self._settings.base_path

    def available(self) -> list[int]:
        """The versions that answer now, ascending."""
        with self._changed:
            return sorted(self._available)

    def wait_until_idle(self, timeout: float) -> bool:
        """Blocks until no call is running; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not any(harness.calls for harness in self._available.values()), max(0.0, timeout)
            )

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

    def reconfigure(self, settings: ModelSettings) -> None:
        """Follows another policy or folder from now on; what is served and still wanted stays loaded."""
        self._settings = settings
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """Stops following and unloads; calls still running get up to `timeout` seconds to finish."""
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
                _logger.exception("model %s: looking at %s failed; trying again", self.name, self._settings.base_path)
            with self._changed:
                self._polls += 1
                self._changed.notify_all()
            self._wake.wait(self._poll_interval_s)
            self._wake.clear()

    def poll(self) -> None:
        """One look at the folder: loads what the policy asks for and lets go of what it replaces."""
        settings = self._settings
        on_disk = self._versions_on_disk(settings.base_path)
        self._failed = {number: seen for number, seen in self._failed.items() if number in on_disk}
        keep: set[int] = set()
        for number in settings.policy.wanted(on_disk):
            if len(keep) == settings.policy.limit:
                break
            if number not in self._available and not self._try_to_load(number, on_disk[number]):
                continue
            keep.add(number)
        if self._stopping.is_set() or settings is not self._settings:
            return  # a configuration that came meanwhile says what to keep
        if keep:
            self._warned = ""
            self._retire_others(keep)
        elif not self._available:
            self._warn_once(
                f"no versions of model {self.name} that load under {settings.base_path}; waiting. Versions are folders "
                "named by a number, such as 1/saved_model.pb"
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
        """Version folders that hold a graph; a number without one is still being written."""
        try:
            entries = sorted(base_path.iterdir())
        except OSError as error:
            # Not a reason to let go of what is served: network file systems go and come back.
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
        _logger.info("version %d of model %s: available", number, self.name)
        self._tell()
        return True

    def _retire_others(self, keep: set[int]) -> None:
        with self._changed:
            others = [number for number in self._available if number not in keep]
            for number in others:
                self._retire(number, deadline=None)
        if others:
            self._tell()

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change(self)

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
