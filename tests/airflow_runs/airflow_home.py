"""A real Airflow in `.venv-airflow`: its own home and database, one DAG file, and ways to run it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import html
import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv-airflow" / "bin"
DAG_FILE = ROOT / "pipeline" / "runners" / "airflow" / "example_dag.py"

# Each night of a place where it is noon now: no second night begins while a test waits for the run of the latest one.
NIGHTLY = f"15 {(datetime.datetime.now(datetime.UTC).hour + 12) % 24} * * *"

LOOK_AT_DAGS = """
import json, sys, time
from airflow.models import DagBag
import airflow.models.dagbag
start = time.monotonic()
bag = DagBag(include_examples=False)
first = time.monotonic() - start
start = time.monotonic()
DagBag(include_examples=False)
again = time.monotonic() - start
print(json.dumps({
    "errors": bag.import_errors,
    "first_s": first,
    "again_s": again,
    "heavy": sorted(name for name in ("tensorflow", "tfx", "apache_beam", "ml_metadata") if name in sys.modules),
    "dags": {dag.dag_id: {
        "description": dag.description, "doc": dag.doc_md, "tags": sorted(dag.tags), "catchup": dag.catchup,
        "schedule": dag.timetable.summary, "max_active_runs": dag.max_active_runs,
        "tasks": {task.task_id: {"upstream": sorted(task.upstream_task_ids), "retries": task.retries,
                                 "retry_delay": task.retry_delay.total_seconds()} for task in dag.tasks},
    } for dag in bag.dags.values()},
}))
"""


class AirflowHome:
    """An Airflow of these tests."""

    def __init__(self, home: Path, **settings: Any) -> None:
        """Makes the database and copies the DAG file.

        Args:
            home: An empty folder.
            settings: The TANDEM_* variables, without the prefix and in lower case.
        """
        self.home = home
        self._scheduler: subprocess.Popen[bytes] | None = None
        self.settings = {f"TANDEM_{name.upper()}": str(value) for name, value in settings.items()}
        (home / "dags").mkdir(parents=True)
        shutil.copy(DAG_FILE, home / "dags")
        done = self.airflow("db", "migrate")
        assert done.returncode == 0, done.stdout[-3000:]

    @property
    def environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "TANDEM_"))}
        return {
            **env,
            # Its executor calls `airflow`.
            "PATH": f"{BIN}{os.pathsep}{env['PATH']}",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            # Only the first reading of a changed recipe takes long; see docs/airflow.md.
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
            "AIRFLOW__CORE__DAG_FILE_PROCESSOR_TIMEOUT": "300",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTOR": "SequentialExecutor",
            "AIRFLOW__SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "5",
            "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.basic_auth",
            "AIRFLOW__WEBSERVER__WORKERS": "1",
            "AIRFLOW__WEBSERVER__WEB_SERVER_MASTER_TIMEOUT": "300",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "PYTHONWARNINGS": "ignore",
            **self.settings,
        }

    @contextlib.contextmanager
    def other(self, **settings: Any) -> Iterator[AirflowHome]:
        """This Airflow with some TANDEM_* variables changed for a while."""
        before = self.settings
        self.settings = before | {f"TANDEM_{name.upper()}": str(value) for name, value in settings.items()}
        try:
            yield self
        finally:
            self.settings = before

    def airflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the `airflow` command; what it prints on either stream is in `stdout`."""
        return self._run(str(BIN / "airflow"), *arguments)

    def look(self) -> dict[str, Any]:
        """What Airflow makes of the DAG file."""
        done = self._run(str(BIN / "python"), "-c", LOOK_AT_DAGS)
        assert done.returncode == 0, done.stdout[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    def rows(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        """Asks Airflow's database; nothing where it is being written."""
        with contextlib.closing(sqlite3.connect(self.home / "airflow.db", timeout=30)) as database:
            return database.execute(sql, values).fetchall()

    def states(self, run_id: str) -> dict[str, tuple[str, int]]:
        """State and tries of each task of a DAG run."""
        rows = self.rows("select task_id, state, try_number from task_instance where run_id = ?", run_id)
        return {task: (state, tries) for task, state, tries in rows}

    @contextlib.contextmanager
    def scheduler(self) -> Iterator[None]:
        """A scheduler at work."""
        with self._running("scheduler") as self._scheduler:
            yield

    @contextlib.contextmanager
    def webserver(self, timeout_s: float = 300) -> Iterator[Pages]:
        """Airflow's pages and REST API, for an operator who may see everything."""
        name, password = "operator", "only for this test"
        done = self.airflow(
            *("users", "create", "--role", "Admin", "--username", name, "--password", password),
            *("--firstname", "An", "--lastname", "Operator", "--email", "operator@example.org"),
        )
        assert done.returncode == 0, done.stdout[-3000:]
        with socket.create_server(("127.0.0.1", 0)) as free:
            pages = Pages(free.getsockname()[1], name, password)
        with self._running("webserver", "--hostname", "127.0.0.1", "--port", str(pages.port)) as process:
            end = time.monotonic() + timeout_s
            while not pages.answers():
                log = (self.home / "webserver.log").read_text()[-3000:]
                assert process.poll() is None and time.monotonic() < end, f"no pages within {timeout_s:.0f} s\n{log}"
                time.sleep(0.5)
            yield pages

    @contextlib.contextmanager
    def _running(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """An `airflow` command that runs until it is stopped."""
        with open(self.home / f"{arguments[0]}.log", "w") as log:
            process = subprocess.Popen(
                [str(BIN / "airflow"), *arguments], cwd=self.home, env=self.environment, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                yield process
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def wait(self, run_type: str, timeout_s: float = 1800) -> tuple[str, str]:
        """Waits for the one DAG run of a type that is not done.

        Returns:
            Its id and state.
        """
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and self._scheduler is not None and self._scheduler.poll() is None:
            found = self.rows("select run_id, state from dag_run where run_type = ?", run_type)
            if found and found[-1][1] in ("success", "failed"):
                return found[-1]
            time.sleep(1)
        log = (self.home / "scheduler.log").read_text()[-3000:]
        raise AssertionError(f"no {run_type} run ended within {timeout_s:.0f} s, or the scheduler did\n{log}")

    def log(self, run_id: str, task: str) -> str:
        """What the tries of a task logged."""
        folder = next(self.home.glob(f"logs/dag_id=*/run_id={run_id}/task_id={task}"))
        return "".join(path.read_text(errors="replace") for path in sorted(folder.iterdir()))

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.home, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip


class Pages:
    """The pages of a webserver for a user who has logged in."""

    def __init__(self, port: int, name: str, password: str) -> None:
        self.port = port
        self._name = name
        self._password = password

    def answers(self) -> bool:
        """Whether the webserver does."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self._get("/health")[0] == 200
        return False

    def api(self, path: str) -> Any:
        """The response of the REST API."""
        token = base64.b64encode(f"{self._name}:{self._password}".encode()).decode()
        status, text = self._get(f"/api/v1{path}", {"Authorization": f"Basic {token}"})
        assert status == 200, text
        return json.loads(text)

    def page(self, path: str) -> str:
        """The text of a page, without tags."""
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        login = f"http://127.0.0.1:{self.port}/login/"
        with browser.open(login, timeout=120) as answer:
            found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', answer.read().decode())
        assert found, "the page to log in has no form"
        form = {"username": self._name, "password": self._password, "csrf_token": found[1]}
        browser.open(login, urllib.parse.urlencode(form).encode(), timeout=120).close()
        with browser.open(f"http://127.0.0.1:{self.port}{path}", timeout=120) as answer:
            text = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", answer.read().decode(), flags=re.DOTALL)
        return " ".join(html.unescape(text).split())

    def _get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode()


@dataclasses.dataclass(frozen=True)
class RunAtOnce:
    """What `airflow dags test` did."""

    home: AirflowHome
    workdir: Path
    output: str
    code: int


def killing_python(folder: Path) -> Path:
    """A Python that is killed as the system kills what needs too much memory.

    The component that the file `kill-half-way` beside it names dies once, when its first output has begun to appear;
    the one that `kill` names dies whenever it is started.
    """
    folder.mkdir()
    path = folder / "python"
    path.write_text(
        f"""#!/bin/bash
for last; do :; done
if [ "$last" = "$(cat {folder}/kill 2>/dev/null)" ]; then kill -9 $$; fi
if [ "$last" = "$(cat {folder}/kill-half-way 2>/dev/null)" ]; then
    rm {folder}/kill-half-way
    {sys.executable} "$@" &
    until compgen -G "$PWD/artifacts/$last/*/*" > /dev/null || ! kill -0 $!; do sleep 0.02; done
    touch "$(compgen -G "$PWD/artifacts/$last/*/*" | head -1)/half-written"
    kill -9 $! $$
fi
exec {sys.executable} "$@"
"""
    )
    path.chmod(0o755)
    return path
