"""The embedded model server: versions of SavedModels behind TensorFlow Serving's gRPC and REST ports.

    python -m serving.server --model-dir DIR        (options: serving/config/server_options.py, docs/server.md)

When every model has an available version, one line of JSON goes to stdout: {"model": …, "version": …, "grpc":
"host:port", "rest": "host:port"}; with a model config file also "models": {name: version}, and "model" is the first of
them. Logs go to stderr. SIGTERM and SIGINT drain: new requests are rejected, running ones finish, exit code 0. Exit
code 1: --fail-fast and a model without a version that loads. Exit code 2: a wrong option or configuration file, a
missing folder, a port in use.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

import grpc

from serving.api.health import Health
from serving.api.prometheus import ServingMetrics
from serving.api.rest import RestServer
from serving.api.status import ServingError
from serving.config.errors import ConfigFileError
from serving.config.model_config import ModelSettings
from serving.config.server_options import CommandLine, ServerOptions

# ModelServer.start imports TensorFlow after it has checked options and files and has bound the ports.
if TYPE_CHECKING:
    from serving.api.core import ServerCore
    from serving.api.served_models import ServableVersions
    from serving.config.batching_parameters import BatchingParameters
    from serving.config.ssl_config import Tls
    from serving.server.batching import Batcher

# Seconds for which a stopping server answers UNAVAILABLE before it closes its ports.
_REJECTING_S = 0.2
# Requests can only be merged if they wait together: TensorFlow Serving recommends 2 * max_batch_size client threads.
_MAX_BATCHING_THREADS = 128
_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_logger = logging.getLogger("serving.server")  # not __name__, which is __main__ under `python -m`


class ServerStartError(Exception):
    """The server cannot start: a missing folder, a wrong configuration file, or a port that cannot be bound."""


class NoLoadableVersionError(Exception):
    """No version in a model's folder loads, and `fail_fast` is set."""


class ModelServer:
    """Serves models from folders of versions. As a context manager, it starts on entry and stops on exit.

        with ModelServer("work/movielens/serving/movielens", port=0, rest_port=0) as server:
            server.wait_until_available(timeout=60)
            print(server.port, server.rest_port)

    `start` binds the ports. Requests are answered after the first poll, when every version was loaded or rejected, so
    that the status of a rejected version can be requested; earlier requests wait in the socket's queue.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike[str] | None = None,
        *,
        model_name: str = CommandLine.model_name,
        host: str = CommandLine.host,
        port: int = CommandLine.port,
        rest_port: int = CommandLine.rest_port,
        poll_interval_s: float = CommandLine.poll_interval_s,
        options: ServerOptions | None = None,
    ) -> None:
        """Make a server; `start` starts it.

        Args:
            model_dir: folder that holds the numbered versions, as the Pusher writes them; None with
                `options.model_config_file`.
            model_name: the model's name in requests.
            host: address to bind; any address but loopback opens the server to the network, without authentication
                unless `options.ssl_config_file` requires client certificates.
            port: gRPC port; 0 selects a free one.
            rest_port: REST port; 0 selects a free one.
            poll_interval_s: seconds between two looks for a new version.
            options: the options that TensorFlow Serving has, too.
        """
        self.options = options or ServerOptions()
        if (model_dir is None) == (self.options.model_config_file is None):
            raise ValueError("expected either model_dir or options.model_config_file")
        self._model_dir = None if model_dir is None else Path(model_dir)
        self.model_name = model_name
        self.host = host
        self.metrics = ServingMetrics()
        self._requested_ports = (port, rest_port)
        self._poll_interval_s = poll_interval_s
        self._health = Health()
        self._grpc: grpc.Server | None = None
        self._rest: RestServer | None = None
        self._port = 0
        self._core: ServerCore | None = None
        self._batcher: Batcher | None = None
        self._opening: threading.Thread | None = None
        self._opening_lock = threading.Lock()
        self._stopping = threading.Event()

    @property
    def port(self) -> int:
        """The bound gRPC port; available after `start`."""
        self._require_started()
        return self._port

    @property
    def rest_port(self) -> int:
        """The bound REST port; available after `start`."""
        self._require_started()
        assert self._rest is not None
        return self._rest.port

    def start(self) -> None:
        """Read the configuration, bind the ports and start to load versions in the background.

        Raises:
            ServerStartError: a missing folder, a wrong configuration file, or a port that cannot be bound.
        """
        if self._grpc is not None:
            raise RuntimeError("ModelServer.start was already called; make a new ModelServer")
        try:
            settings = self._settings()
            batching = self.options.batching()
            metrics_path = self.options.metrics_path()
            tls = self.options.tls()
        except ConfigFileError as error:
            raise ServerStartError(str(error)) from error
        server = self._bind(tls, metrics_path, batching)

        from serving.api.core import ServerCore
        from serving.api.grpc_services import add_services

        self._core = ServerCore(
            self._follower(batching),
            self.metrics,
            allow_labels_for_unavailable=self.options.allow_version_labels_for_unavailable_models,
            on_models=self._health.follow,
        )
        add_services(server, self._core)
        self._health.add_to(server)
        self._grpc = server
        try:
            self._core.apply(settings)
        except ServingError as error:
            self.stop(0)
            raise ServerStartError(f"{self.options.model_config_file}: {error.message}") from error
        self._opening = threading.Thread(target=self._open, args=(self._core,), name="open-ports", daemon=True)
        self._opening.start()
        if self.options.model_config_file is not None and self.options.model_config_file_poll_wait_s:
            threading.Thread(
                target=self._follow_config_file, args=(self._core, settings), name="model-config", daemon=True
            ).start()

    def available_versions(self) -> dict[str, int | None]:
        """Return the highest available version by model name; None without an available version."""
        self._require_started()
        assert self._core is not None
        return {name: max(versions.available(), default=None) for name, versions in self._core.models.items()}

    def wait_until_available(self, timeout: float | None = None, *, fail_fast: bool = False) -> int:
        """Wait until every model has an available version, and both ports are open.

        Args:
            timeout: seconds to wait; None waits without limit.
            fail_fast: raise if no version of a model loads, instead of waiting for another one.

        Returns:
            The highest version of the first model; 0 if the configuration has no model.

        Raises:
            NoLoadableVersionError: only with `fail_fast`; with the reason for each version.
            TimeoutError: a model has no available version after `timeout` seconds; with the status of each version.
        """
        self._require_started()
        assert self._core is not None and self._opening is not None
        deadline = None if timeout is None else time.monotonic() + timeout

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - time.monotonic())

        found = []
        for versions in self._core.models.values():
            if fail_fast and versions.wait_until_polled(left()) and not versions.available():
                raise NoLoadableVersionError(f"no version in {versions.base_path} loads: {_statuses_text(versions)}")
            version = versions.wait_until_available(left())
            if version is None:
                raise TimeoutError(_timed_out(versions, timeout))
            found.append(version)
        self._opening.join(left())
        if self._opening.is_alive():
            raise TimeoutError(f"the ports did not open within {timeout} s")
        return found[0] if found else 0

    def stop(self, grace: float = 5.0) -> None:
        """Reject new requests, let running ones finish for up to `grace` seconds, and unload. Can be called twice.

        Meanwhile, the health service answers NOT_SERVING, and all other requests get UNAVAILABLE.
        """
        with self._opening_lock:
            self._stopping.set()
        deadline = time.monotonic() + grace
        self._health.drain()
        if self._core is not None:
            self._core.drain()
            # A request that arrives while gRPC stops ends as CANCELLED, which clients do not retry: reject it before.
            time.sleep(min(_REJECTING_S, grace))
            self._core.wait_until_idle(deadline - time.monotonic())
        drained = self._grpc.stop(max(0.0, deadline - time.monotonic())) if self._grpc is not None else None
        if self._rest is not None:
            self._rest.stop(max(0.0, deadline - time.monotonic()))
        if drained is not None:
            drained.wait(max(0.0, deadline - time.monotonic()) + 1.0)
        if self._core is not None:
            self._core.stop(max(1.0, deadline - time.monotonic()))
        if self._batcher is not None:
            self._batcher.stop()

    def __enter__(self) -> ModelServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _settings(self) -> list[ModelSettings]:
        settings = self.options.models()
        if settings is not None:
            self.model_name = settings[0].name if settings else ""
            return settings
        assert self._model_dir is not None
        if not self._model_dir.is_dir():
            found = "is not a folder" if self._model_dir.exists() else "does not exist"
            raise ConfigFileError(
                f"model folder {self._model_dir} {found}; expected the folder that holds the numbered versions (such "
                f"as {self._model_dir}/1/saved_model.pb)"
            )
        return [ModelSettings(self.model_name, self._model_dir)]

    def _bind(self, tls: Tls | None, metrics_path: str | None, batching: BatchingParameters | None) -> grpc.Server:
        port, rest_port = self._requested_ports
        limit = self.options.max_message_bytes
        server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=self._threads(batching), thread_name_prefix="grpc"),
            options=[
                # Without this, two servers can share a port, and each gets some of the requests.
                ("grpc.so_reuseport", 0),
                # As in TensorFlow Serving: tensors can exceed gRPC's default of 4 MiB.
                ("grpc.max_receive_message_length", limit or -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        address = join_host_port(self.host, port)
        try:
            if tls is None:
                self._port = server.add_insecure_port(address)
            else:
                self._port = server.add_secure_port(address, tls.grpc_credentials())
        except RuntimeError as error:
            raise ServerStartError(self._cannot_bind("gRPC", port, "port", str(error))) from error
        if not self._port:
            raise ServerStartError(self._cannot_bind("gRPC", port, "port", "the address cannot be bound"))
        try:
            self._rest = RestServer(
                self.host,
                rest_port,
                tls=None if tls is None else tls.ssl_context(),
                metrics_path=metrics_path,
                max_body_bytes=limit,
            )
        except (OSError, OverflowError) as error:
            server.stop(None)
            raise ServerStartError(self._cannot_bind("REST", rest_port, "rest-port", str(error))) from error
        return server

    def _threads(self, batching: BatchingParameters | None) -> int:
        threads = max(8, 4 * (os.cpu_count() or 1))
        if batching is not None:
            threads = max(threads, min(_MAX_BATCHING_THREADS, 2 * batching.max_batch_size))
        return self.options.grpc_max_threads or threads

    def _cannot_bind(self, api: str, port: int, option: str, reason: str) -> str:
        return (
            f"cannot listen on {join_host_port(self.host, port)} for {api} (in use, or not an address of this "
            f"machine): {' '.join(reason.split())}; select another port with --{option} (0 selects a free one)"
        )

    def _follower(self, batching: BatchingParameters | None) -> Callable[[ModelSettings], ServableVersions]:
        from serving.server.batching import Batcher
        from serving.server.servable_loader import ServableLoader
        from serving.server.versions import ServableVersions

        self._batcher = None if batching is None else Batcher(batching, self.metrics)
        loader = ServableLoader(self.metrics, self._batcher)

        def follow(settings: ModelSettings) -> ServableVersions:
            return ServableVersions(
                settings,
                loader,
                poll_interval_s=self._poll_interval_s,
                on_change=lambda _: self._health.update(),
            )

        return follow

    def _open(self, core: ServerCore) -> None:
        assert self._grpc is not None and self._rest is not None
        for versions in list(core.models.values()):
            versions.wait_until_polled()
        with self._opening_lock:
            if not self._stopping.is_set():
                self._grpc.start()
                self._rest.start(core)

    def _follow_config_file(self, core: ServerCore, applied: Sequence[ModelSettings]) -> None:
        """Apply the model config file whenever it changes; a rejected file is retried at the next poll."""
        logged = ""
        while not self._stopping.wait(self.options.model_config_file_poll_wait_s):
            try:
                settings = self.options.models()
                if settings is None or settings == applied:
                    continue
                core.apply(settings)
            except (ConfigFileError, ServingError) as error:
                if str(error) != logged:
                    logged = str(error)
                    _logger.error("%s was not applied: %s", self.options.model_config_file, logged)
            else:
                applied, logged = settings, ""
                _logger.info("%s applied", self.options.model_config_file)

    def _require_started(self) -> None:
        if self._grpc is None:
            raise RuntimeError("ModelServer is not started; call start() first")


def join_host_port(host: str, port: int) -> str:
    """Join host and port, such as `127.0.0.1:8500` or `[::1]:8500`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _statuses_text(versions: ServableVersions) -> str:
    try:
        statuses = versions.statuses()
    except ServingError:
        return "expected folders named by a number with a saved_model.pb in them, got none"
    return "; ".join(
        f"version {each.version} is {each.state.name}" + (f": {each.error.message}" if each.error else "")
        for each in statuses
    )


def _timed_out(versions: ServableVersions, timeout: float | None) -> str:
    return (
        f"no version of model {versions.name} is available after {timeout} s; {versions.base_path}: "
        f"{_statuses_text(versions)}"
    )


def main(options: CommandLine) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    # Blocked before any thread exists, so that all threads inherit it and sigwait below receives the signals: at a
    # defined place, never while a lock is held.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    logging.basicConfig(
        stream=sys.stderr,
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else TensorFlow logs its CPU features
    server = ModelServer(
        options.model_dir,
        model_name=options.model_name,
        host=options.host,
        port=options.port,
        rest_port=options.rest_port,
        poll_interval_s=options.poll_interval_s,
        options=options,
    )
    try:
        server.start()
    except ServerStartError as error:
        return _fail(error, 2)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # the session loader logs its deprecation
    try:
        version = _wait(server, options.fail_fast)
    except NoLoadableVersionError as error:
        server.stop(0)
        return _fail(error, 1)
    if version is not None:
        print(json.dumps(_announcement(server, version)), flush=True)
        received = signal.sigwait(_SIGNALS)
        _logger.info("%s: draining; a second signal stops the server immediately", signal.Signals(received).name)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    server.stop(options.drain_s)
    return 0


def _announcement(server: ModelServer, version: int) -> dict[str, object]:
    announcement: dict[str, object] = {
        "model": server.model_name,
        "version": version,
        "grpc": join_host_port(server.host, server.port),
        "rest": join_host_port(server.host, server.rest_port),
    }
    if server.options.model_config_file is not None:
        announcement["models"] = server.available_versions()
    return announcement


def _wait(server: ModelServer, fail_fast: bool) -> int | None:
    """Wait for an available version; return it, or None if a signal comes first."""
    while True:
        try:
            return server.wait_until_available(0.1, fail_fast=fail_fast)
        except TimeoutError:
            if signal.sigtimedwait(_SIGNALS, 0) is not None:
                return None


def _fail(error: Exception, code: int) -> int:
    print("serving.server: error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
    return code


def run(options: CommandLine) -> NoReturn:
    """`main` in a process of its own, which ends here with `main`'s exit code."""
    exit_code = main(options)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # All requests are finished and all models are unloaded. Python's shutdown would take seconds to free TensorFlow's
    # modules, and sometimes aborts because a thread of TensorFlow or gRPC still runs.
    os._exit(exit_code)
