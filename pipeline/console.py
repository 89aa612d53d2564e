"""Progress of a run on the terminal. The logs of TFX and TensorFlow, tens of thousands of lines, go to a file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

CACHED = "cached"


@contextlib.contextmanager
def output_to_file(path: Path) -> Iterator[IO[str]]:
    """Redirect the output of this process and its children to `path`; yield a stream to the terminal.

    File descriptors are redirected, not `sys.stdout`, because C++ libraries and child processes print too.
    """
    if _is_notebook(sys.stdout):
        with _python_output_to_descriptors() as cell, output_to_file(path):
            yield cell
        return
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding or "utf-8", errors="replace")
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
        os.close(log)
        terminal.close()


def _is_notebook(stream: IO[str]) -> bool:
    return type(stream).__module__.startswith("ipykernel")


@contextlib.contextmanager
def _python_output_to_descriptors() -> Iterator[IO[str]]:
    """Let Python write to the file descriptors as in a terminal; yield the notebook's stream, which does not."""
    cell = sys.stdout
    with (
        open(1, "w", buffering=1, closefd=False) as stdout,
        open(2, "w", buffering=1, closefd=False) as stderr,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        yield cell


def progress_console(terminal: IO[str]) -> Console:
    """Return a console for progress on a stream of `output_to_file`: plain lines in a notebook."""
    # A notebook's stream claims to be a terminal, but does not move a cursor.
    return Console(file=terminal, force_terminal=False if _is_notebook(terminal) else None, force_jupyter=False)


class Progress:
    """One line per component: a spinner with the elapsed time, then the duration."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._live: Live | None = None

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show `name` as running inside the block."""
        self.start(name)
        try:
            yield
        finally:
            self._stop()

    def start(self, name: str) -> None:
        self._stop()
        if self._console.is_terminal:
            counter = f"{self._done + 1}/{self._total}" if self._total else ""
            self._live = Live(
                _Running(f"{counter:>5}  {name}"),
                console=self._console,
                refresh_per_second=8,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()

    def done(self, name: str, seconds: float, note: str = "") -> None:
        self._done += 1
        self._stop()
        self._line("[green]✓[/green]", name, seconds, note)

    def failed(self, name: str, seconds: float) -> None:
        self._stop()
        self._line("[red]✗[/red]", name, seconds, "failed")

    def _line(self, mark: str, name: str, seconds: float, note: str) -> None:
        counter = f"{self._done}/{self._total}" if self._total else ""
        self._console.print(f"{mark} {counter:>5}  {name:<22} {seconds:6.1f} s  [dim]{note}[/dim]", highlight=False)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class _Running:
    """A spinner, a name and the seconds since it appeared."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spinner = Spinner("dots")
        self._start: float | None = None

    def __rich_console__(self, console: Console, options: object) -> Iterator[Table]:
        now = console.get_time()
        self._start = now if self._start is None else self._start
        row = Table.grid(padding=(0, 1))
        row.add_row(
            self._spinner.render(now), Text(f"{self._name:<29}"), Text(f"{now - self._start:6.1f} s", style="dim")
        )
        yield row
