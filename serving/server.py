"""The embedded model server: one model's version folder behind TensorFlow Serving's gRPC and REST ports.

    python -m serving.server --model-dir DIR [--model-name recommender] [--host 127.0.0.1] [--port 8500]
                             [--rest-port 8501] [--fail-fast]

Once a version answers, one line of JSON goes to stdout: {"model": …, "version": …, "grpc": "host:port", "rest":
"host:port"}. Logs go to stderr. SIGTERM and SIGINT drain: no new calls, those running finish, exit code 0.
Exit code 1: --fail-fast and no version loads. Exit code 2: a wrong option, no such folder, a port in use.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import grpc

from serving.rest import RestServer

# TensorFlow is imported in ModelServer.start: a wrong option, a missing folder or a port in use is told before it.
if TYPE_CHECKING:
    from serving.core import ServerCore
    from serving.versions import ServableVersions

DEFAULT_MODEL = "recommender"
DEFAULT_PORT = 8500
DEFAULT_REST_PORT = 8501
_DRAIN_S = 30.0
# How long a stopping server answers UNAVAILABLE before it closes its ports.
_REFUSING_S = 0.2
_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_logger = logging.getLogger("serving.server")  # not __name__, which is __main__ under `python -m`


class ServerStartError(Exception):
    """The server cannot start as configured: no such folder, or a port that cannot be bound."""


class NoLoadableVersionError(Exception):
    """The model folder holds no version that loads, and the caller did not want to wait for one."""


class ModelServer:
    """Serves the versions in one folder. Also a context manager: starts on entry, stops on exit.

    The ports are bound in `start`. Calls are answered as soon as every version found at the first look was tried, so
    that a version that failed to load can be asked for its status; callers before that wait in the socket's queue.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike[str],
        *,
        model_name: str = DEFAULT_MODEL,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        rest_port: int = DEFAULT_REST_PORT,
        poll_interval_s: float = 1.0,
        max_workers: int | None = None,
    ) -> None:
        """Args:
        model_dir: holds a folder a version, named by its number, as a Pusher writes them.
        model_name: the model's name in requests.
        host: the address to bind; anything but loopback opens the server to the network, without authentication.
        port: gRPC; 0 picks a free one.
        rest_port: REST; 0 picks a free one.
        poll_interval_s: seconds between looks for a new version.
        max_workers: threads that answer gRPC calls; by default four a core, at least eight.
        """
        self._model_dir = Path(model_dir)
        self.model_name = model_name
        self.host = host
        self._wanted_ports = (port, rest_port)
        self._poll_interval_s = poll_interval_s
        self._max_workers = max_workers or max(8, 4 * (os.cpu_count() or 1))
        self._grpc: grpc.Server | None = None
        self._rest: RestServer | None = None
        self._port = 0
        self._versions: ServableVersions | None = None
        self._core: ServerCore | None = None
        self._opening: threading.Thread | None = None
        self._opening_lock = threading.Lock()
        self._stopped = False

    @property
    def port(self) -> int:
        """The gRPC port bound. Known after `start`."""
        self._require_started()
        return self._port

    @property
    def rest_port(self) -> int:
        """The REST port bound. Known after `start`."""
        self._require_started()
        assert self._rest is not None
        return self._rest.port

    def start(self) -> None:
        """Binds the ports and starts loading, in the background.

        Raises:
            ServerStartError: no such folder, or a port that cannot be bound.
        """
        if self._grpc is not None:
            raise RuntimeError("ModelServer.start was called before; make a new ModelServer")
        if not self._model_dir.is_dir():
            found = "is not a folder" if self._model_dir.exists() else "does not exist"
            raise ServerStartError(
                f"model folder {self._model_dir} {found}; give the folder that holds the numbered versions "
                f"(such as {self._model_dir}/1/saved_model.pb)"
            )
        self._bind()

        from serving.core import ServerCore
        from serving.grpc_services import add_services
        from serving.versions import ServableVersions

        self._versions = ServableVersions(self.model_name, self._model_dir, poll_interval_s=self._poll_interval_s)
        self._core = ServerCore({self.model_name: self._versions})
        assert self._grpc is not None
        add_services(self._grpc, self._core)
        self._versions.start()
        self._opening = threading.Thread(target=self._open, args=(self._core,), name="open-ports", daemon=True)
        self._opening.start()

    def wait_until_available(self, timeout: float | None = None, *, fail_fast: bool = False) -> int:
        """Blocks until a version answers on both ports.

        Args:
            timeout: seconds to wait; None waits for ever.
            fail_fast: give up when every version there was tried and none loads, instead of waiting for another.

        Returns:
            The version.

        Raises:
            NoLoadableVersionError: only with `fail_fast`; says why each version did not load.
            TimeoutError: nothing answers after `timeout` seconds; says what became of each version.
        """
        self._require_started()
        assert self._versions is not None and self._opening is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        if fail_fast:
            polled = self._versions.wait_until_polled(timeout)
            version = self._versions.wait_until_available(0.0)
            if polled and version is None:
                raise NoLoadableVersionError(f"no version in {self._model_dir} loads: {self._what_became()}")
        else:
            version = self._versions.wait_until_available(timeout)
        if version is not None:
            self._opening.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if version is None or self._opening.is_alive():
            raise TimeoutError(
                f"no version of model {self.model_name} answers after {timeout} s; {self._model_dir}: "
                f"{self._what_became()}"
            )
        return version

    def stop(self, grace: float = 5.0) -> None:
        """Takes no new calls, lets those running finish for up to `grace` seconds, unloads. Can be called twice."""
        with self._opening_lock:
            self._stopped = True
        deadline = time.monotonic() + grace
        if self._core is not None:
            self._core.drain()
            # A call that arrives while gRPC stops ends as CANCELLED, which nobody retries: turn clients away before.
            time.sleep(min(_REFUSING_S, grace))
        drained = self._grpc.stop(grace) if self._grpc is not None else None
        if self._rest is not None:
            self._rest.stop(grace)
        if drained is not None:
            drained.wait(max(0.0, deadline - time.monotonic()) + 1.0)
        if self._versions is not None:
            self._versions.stop(max(1.0, deadline - time.monotonic()))

    def __enter__(self) -> ModelServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _bind(self) -> None:
        port, rest_port = self._wanted_ports
        server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=self._max_workers, thread_name_prefix="grpc"),
            options=[
                # Without this, two servers share a port and each gets some of the calls.
                ("grpc.so_reuseport", 0),
                # As in TensorFlow Serving: tensors are larger than gRPC's 4 MiB.
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        try:
            self._port = server.add_insecure_port(join_host_port(self.host, port))
        except RuntimeError as error:
            raise ServerStartError(self._cannot_bind("gRPC", port, "port", str(error))) from error
        if not self._port:
            raise ServerStartError(self._cannot_bind("gRPC", port, "port", "the address cannot be bound"))
        try:
            self._rest = RestServer(self.host, rest_port)
        except (OSError, OverflowError) as error:
            server.stop(None)
            raise ServerStartError(self._cannot_bind("REST", rest_port, "rest-port", str(error))) from error
        self._grpc = server

    def _cannot_bind(self, api: str, port: int, option: str, reason: str) -> str:
        return (
            f"cannot listen on {join_host_port(self.host, port)} for {api} (in use, or not an address of this "
            f"machine): {' '.join(reason.split())}; choose another with --{option} (0 picks a free one)"
        )

    def _open(self, core: object) -> None:
        from serving.core import ServerCore

        assert isinstance(core, ServerCore) and self._versions is not None
        assert self._grpc is not None and self._rest is not None
        self._versions.wait_until_polled()
        with self._opening_lock:
            if not self._stopped:
                self._grpc.start()
                self._rest.start(core)

    def _what_became(self) -> str:
        from serving.status import ServingError

        assert self._versions is not None
        try:
            statuses = self._versions.statuses()
        except ServingError:
            return "it holds no version folder (a number, with a saved_model.pb in it)"
        return "; ".join(
            f"version {each.version} is {each.state.name}" + (f": {each.error.message}" if each.error else "")
            for each in statuses
        )

    def _require_started(self) -> None:
        if self._grpc is None:
            raise RuntimeError("ModelServer is not started; call start() first")


def join_host_port(host: str, port: int) -> str:
    """`127.0.0.1:8500`, `[::1]:8500`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    options = _parser().parse_args(arguments)
    # Blocked here, before any thread exists, so that every thread inherits it and sigtimedwait below gets them: a
    # signal is then handled at a defined place, never in the middle of a lock.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    logging.basicConfig(
        stream=sys.stderr,
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else TensorFlow greets with a page of CPU features
    server = ModelServer(
        options.model_dir,
        model_name=options.model_name,
        host=options.host,
        port=options.port,
        rest_port=options.rest_port,
        poll_interval_s=options.poll_interval,
    )
    try:
        server.start()
    except ServerStartError as error:
        return _fail(error, 2)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # the session loader announces its deprecation
    try:
        version = _wait(server, options.fail_fast)
    except NoLoadableVersionError as error:
        server.stop(0)
        return _fail(error, 1)
    if version is not None:
        announcement = {
            "model": server.model_name,
            "version": version,
            "grpc": join_host_port(server.host, server.port),
            "rest": join_host_port(server.host, server.rest_port),
        }
        print(json.dumps(announcement), flush=True)
        received = signal.sigwait(_SIGNALS)
        _logger.info("%s: draining; a second one stops at once", signal.Signals(received).name)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    server.stop(options.drain)
    return 0


def _wait(server: ModelServer, fail_fast: bool) -> int | None:
    """The first version that answers; None when a signal came first."""
    while True:
        try:
            return server.wait_until_available(0.1, fail_fast=fail_fast)
        except TimeoutError:
            if signal.sigtimedwait(_SIGNALS, 0) is not None:
                return None


def _fail(error: Exception, code: int) -> int:
    print("serving.server: error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.server",
        description="Serve a folder of SavedModel versions, as TensorFlow Serving does.",
    )
    parser.add_argument("--model-dir", required=True, help="folder that holds the numbered versions")
    parser.add_argument("--model-name", default=DEFAULT_MODEL, help="the model's name in requests (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (%(default)s)")
    parser.add_argument("--port", type=_port, default=DEFAULT_PORT, help="gRPC port, 0 for a free one (%(default)s)")
    parser.add_argument(
        "--rest-port", type=_port, default=DEFAULT_REST_PORT, help="REST port, 0 for a free one (%(default)s)"
    )
    parser.add_argument(
        "--poll-interval",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="time between looks for a new version (%(default)s)",
    )
    parser.add_argument(
        "--drain",
        type=_seconds,
        default=_DRAIN_S,
        metavar="SECONDS",
        help="time that running calls get to finish on SIGTERM (%(default)s)",
    )
    parser.add_argument(
        "--fail-fast", action="store_true", help="exit 1 when no version there loads, instead of waiting for another"
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; give seconds above 0")
    return seconds


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is drained and unloaded by now; taking TensorFlow's modules apart as well would cost seconds.
    os._exit(exit_code)
