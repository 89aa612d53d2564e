"""A model server in a process of its own, for as long as somebody needs it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging


class ServerFailed(Exception):
    """The server ended, or was not ready in time; the text says which, and the last thing that it said."""


@contextlib.contextmanager
def serving(model_dir: Path, model_name: str, timeout_s: float = 300.0) -> Iterator[str]:
    """Runs the embedded server on free loopback ports and stops it in the end.

    Args:
        model_dir: Folder with numbered versions.
        model_name: Name that clients ask for.
        timeout_s: Seconds until a version must be available.

    Yields:
        HOST:PORT of its gRPC API.

    Raises:
        ServerFailed: The model does not load, or not in time.
    """
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "serving.server", "--fail-fast", "--model-dir", str(model_dir)),
                *("--model-name", model_name, "--port", "0", "--rest-port", "0"),
            ],
            stdout=subprocess.PIPE,
            stderr=log,
        )

        def said() -> str:
            log.seek(0)
            return log.read().decode(errors="replace").strip()

        try:
            yield _address(server, timeout_s, said)
        finally:
            server.terminate()
            try:
                server.wait(timeout=15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            logging.info("Server log:\n%s", said())


def _address(server: subprocess.Popen[bytes], timeout_s: float, said: Callable[[], str]) -> str:
    """The gRPC address in the one line that the server prints once a version is available."""
    assert server.stdout is not None
    readable, _, _ = select.select([server.stdout], [], [], timeout_s)
    line = server.stdout.readline() if readable else b""
    if line.startswith(b"{"):
        return str(json.loads(line)["grpc"])
    last = (said().splitlines() or ["nothing"])[-1]
    if readable:
        raise ServerFailed(f"the server ended: {last}")
    # What TensorFlow logs while it starts is not why it is slow: another program often is.
    busy = f"{os.getloadavg()[0]:.1f} processes wanted the {os.cpu_count()} cores in the last minute"
    raise ServerFailed(
        f"the server was not ready in time ({timeout_s:g} s); {busy}: if that is more than there are, run again "
        f"when the machine is less busy. The last line of its log: {last}"
    )
