"""A model server in a process of its own, for as long as somebody needs it."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging


class ServerFailed(Exception):
    """The server ended, or was not ready in time; the text is the last thing it said."""


@contextlib.contextmanager
def serving(model_dir: Path, model_name: str, timeout_s: float = 120.0) -> Iterator[str]:
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
            yield _address(server, time.monotonic() + timeout_s, said)
        finally:
            server.terminate()
            try:
                server.wait(timeout=15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            logging.info("Server log:\n%s", said())


def _address(server: subprocess.Popen[bytes], deadline: float, said: Callable[[], str]) -> str:
    """The gRPC address in the one line that the server prints once a version is available."""
    assert server.stdout is not None
    readable, _, _ = select.select([server.stdout], [], [], max(0.0, deadline - time.monotonic()))
    line = server.stdout.readline() if readable else b""
    if line.startswith(b"{"):
        return str(json.loads(line)["grpc"])
    last = (said().splitlines() or ["it said nothing"])[-1]
    raise ServerFailed(f"the server {'ended' if readable else 'was not ready in time'}: {last}")
