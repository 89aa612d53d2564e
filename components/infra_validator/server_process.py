"""The embedded model server in its own process, for the duration of a block."""

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
    """The server ended or was not ready in time; the message has the last line of its log."""


@contextlib.contextmanager
def serving(model_dir: Path, model_name: str, timeout_s: float = 300.0) -> Iterator[str]:
    """Run the embedded server on free loopback ports, and stop it at the end of the block.

    Args:
        model_dir: Folder with numbered versions.
        model_name: Name of the model in requests.
        timeout_s: Seconds until a version must be available.

    Yields:
        HOST:PORT of its gRPC API.

    Raises:
        ServerFailed: The model cannot be loaded, or not within `timeout_s`.
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

        def output() -> str:
            log.seek(0)
            return log.read().decode(errors="replace").strip()

        try:
            yield _address(server, timeout_s, output)
        finally:
            server.terminate()
            try:
                server.wait(timeout=15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            logging.info("Server log:\n%s", output())


def _address(server: subprocess.Popen[bytes], timeout_s: float, output: Callable[[], str]) -> str:
    """Return the gRPC address from the line that the server prints when a version is available."""
    assert server.stdout is not None
    readable, _, _ = select.select([server.stdout], [], [], timeout_s)
    line = server.stdout.readline() if readable else b""
    if line.startswith(b"{"):
        return str(json.loads(line)["grpc"])
    last = (output().splitlines() or ["(empty)"])[-1]
    if readable:
        raise ServerFailed(f"the server ended: {last}")
    # TensorFlow's logs do not show that other processes slow the start down; the load average does.
    raise ServerFailed(
        f"the server was not ready after {timeout_s:g} s; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} "
        f"cores: if it is higher than the number of cores, rerun at lower load. Last line of the server's log: {last}"
    )
