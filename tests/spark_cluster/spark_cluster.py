"""A standalone Apache Spark on this machine: a master, two workers, Beam's job server and a pool of Python workers.

The workers have loopback addresses of their own, so that Spark's records tell where a task ran.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SPARK_HOME = ROOT / ".spark"
MASTER_HOST = "127.0.0.1"
WORKER_HOSTS = ("127.0.0.2", "127.0.0.3")

# What Spark's own launcher gives Java 17 (org.apache.spark.launcher.JavaModuleOptions).
JAVA_OPTIONS = (
    "-XX:+IgnoreUnrecognizedVMOptions",
    *(
        f"--add-opens={package}=ALL-UNNAMED"
        for package in (
            "java.base/java.lang",
            "java.base/java.lang.invoke",
            "java.base/java.lang.reflect",
            "java.base/java.io",
            "java.base/java.net",
            "java.base/java.nio",
            "java.base/java.util",
            "java.base/java.util.concurrent",
            "java.base/java.util.concurrent.atomic",
            "java.base/sun.nio.ch",
            "java.base/sun.nio.cs",
            "java.base/sun.security.action",
            "java.base/sun.util.calendar",
            "java.security.jgss/sun.security.krb5",
        )
    ),
    "-Djdk.reflect.useDirectMethodHandle=false",
)
# An executor's tasks start a Python worker that imports TensorFlow; on a busy machine this takes minutes.
PATIENCE_S = 600


@dataclasses.dataclass(frozen=True)
class Application:
    """What Spark's event log says of one job of Beam.

    Attributes:
        name: The job's name.
        tasks: How many tasks ended well, by the worker's address.
        lost: How many tasks ended because their executor was lost, by the worker's address.
        last: When the last good task of a worker ended, in seconds since the epoch, by its address.
        removed: Why executors were removed, by the worker's address.
    """

    name: str
    tasks: dict[str, int]
    lost: dict[str, int]
    last: dict[str, float]
    removed: dict[str, str]

    def __str__(self) -> str:
        shares = ", ".join(f"{count} tasks on {host}" for host, count in sorted(self.tasks.items()))
        lost = "".join(f", {count} lost with {host}" for host, count in sorted(self.lost.items()))
        return f"{self.name}: {shares}{lost}"


class SparkCluster:
    """A cluster that nobody else uses; `with` starts and ends it."""

    def __init__(self, folder: Path) -> None:
        """Takes an empty folder for logs and scratch files."""
        self.folder = folder
        self.ports = dict(zip(("master", "page", "driver", "jobs", "artifacts", "pool"), free_ports(6), strict=True))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> SparkCluster:
        (self.folder / "events").mkdir(parents=True)
        try:
            self._start_master()
            for host in WORKER_HOSTS:
                self._start_worker(host)
            self._start_job_server()
            self._start_pool()
            wait_for(lambda: set(WORKER_HOSTS) == self.workers_alive(), "both workers at the master")
            for name in ("jobs", "pool"):
                wait_for(lambda name=name: listens(self.ports[name]), f"{name} to listen")  # type: ignore[misc]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for name in reversed(list(self._processes)):
            self._end(name, signal.SIGTERM)

    @property
    def beam_args(self) -> tuple[str, ...]:
        """What `tandem run --beam-runner spark` has to be told."""
        return (
            f"--job_endpoint=localhost:{self.ports['jobs']}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{self.ports['pool']}",
            # Otherwise each stage of a job starts Python workers anew.
            "--environment_cache_millis=600000",
            # Executors have all jars already; unless one is named, each job sends them its whole class path.
            f"--files_to_stage={next((SPARK_HOME / 'jars').glob('beam-runners-java-job-service-*.jar'))}",
        )

    # --- what it says of itself ---------------------------------------------------------------------------------------

    def workers_alive(self) -> set[str]:
        """The addresses of the workers that the master counts on."""
        return {worker["host"] for worker in self._master()["workers"] if worker["state"] == "ALIVE"}

    def completed(self) -> dict[str, str]:
        """The state that the master has of each job that is over, by its name."""
        return {app["name"]: app["state"] for app in self._master()["completedapps"]}

    def active_tasks(self) -> dict[str, int]:
        """The tasks that run now, by worker address, as the running job's driver says; empty between jobs."""
        with contextlib.suppress(urllib.error.URLError, ConnectionError, IndexError, TimeoutError):
            base = f"http://{MASTER_HOST}:{self.ports['driver']}/api/v1/applications"
            executors = fetch(f"{base}/{fetch(base)[0]['id']}/executors")
            return {one["hostPort"].partition(":")[0]: one["activeTasks"] for one in executors if one["id"] != "driver"}
        return {}

    def applications(self) -> list[Application]:
        """The jobs that are over, oldest first, from Spark's event logs."""
        logs = sorted((self.folder / "events").glob("app-*"), key=lambda path: path.name)
        return [read_events(log) for log in logs if not log.name.endswith(".inprogress")]

    def log_of(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _master(self) -> dict[str, Any]:
        return fetch(f"http://{MASTER_HOST}:{self.ports['page']}/json/")

    # --- its processes ------------------------------------------------------------------------------------------------

    def _start_master(self) -> None:
        self._java("master", "org.apache.spark.deploy.master.Master", "--host", MASTER_HOST,
                   "--port", self.ports["master"], "--webui-port", self.ports["page"])  # fmt: skip
        wait_for(lambda: listens(self.ports["page"]) and "workers" in self._master(), "the master")

    def _start_worker(self, host: str) -> None:
        """Starts a worker with one core, which starts an executor for each job."""
        self._java(host, "org.apache.spark.deploy.worker.Worker", "--host", host, "--cores", "1", "--memory", "2g",
                   "--work-dir", self.folder / f"work-{host}", "--webui-port", "0",
                   f"spark://{MASTER_HOST}:{self.ports['master']}")  # fmt: skip

    def kill_worker(self, host: str) -> None:
        """Ends a worker and its executor as a machine that loses power would."""
        self._end(host, signal.SIGKILL)

    def _start_job_server(self) -> None:
        settings = {
            "spark.executor.memory": "1g",
            "spark.executor.extraJavaOptions": " ".join(JAVA_OPTIONS),
            "spark.ui.port": self.ports["driver"],
            "spark.eventLog.enabled": "true",
            "spark.eventLog.compress": "false",
            "spark.eventLog.dir": (self.folder / "events").as_uri(),
        }
        self._java("jobs", *(f"-D{key}={value}" for key, value in settings.items()),
                   "org.apache.beam.runners.spark.SparkJobServerDriver",
                   f"--spark-master-url=spark://{MASTER_HOST}:{self.ports['master']}", "--job-host=localhost",
                   f"--job-port={self.ports['jobs']}", f"--artifact-port={self.ports['artifacts']}",
                   "--expansion-port=0", f"--artifacts-dir={self.folder / 'artifacts'}")  # fmt: skip

    def _start_pool(self) -> None:
        # It starts `python` for each worker. Where Tandem is not installed, PYTHONPATH leads to it.
        bin_folder = str(Path(sys.executable).parent)
        path = os.pathsep.join([bin_folder, os.environ["PATH"]])
        env = {**os.environ, "PATH": path, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
        self._start("pool", [*command, f"--service_port={self.ports['pool']}", "--container_executable="], env)

    def _java(self, name: str, *arguments: object) -> None:
        command = ["java", *JAVA_OPTIONS, "-Xmx1g", "-cp", str(SPARK_HOME / "jars" / "*"), *map(str, arguments)]
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SPARK_")},
            "SPARK_HOME": str(SPARK_HOME),
            "SPARK_SCALA_VERSION": "2.12",
            "SPARK_LOCAL_IP": name if name in WORKER_HOSTS else MASTER_HOST,
            "SPARK_LOCAL_DIRS": str(self.folder / f"scratch-{name}"),
        }
        self._start(name, command, env)

    def _start(self, name: str, command: list[str], env: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            # A group of its own: what a process starts ends with it.
            self._processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=env,
                cwd=self.folder,
                start_new_session=True,
            )

    def _end(self, name: str, how: signal.Signals) -> None:
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read_events(log: Path) -> Application:
    """What a job's event log comes to."""
    name, hosts = "", {}
    tasks: dict[str, int] = {}
    lost: dict[str, int] = {}
    last: dict[str, float] = {}
    removed: dict[str, str] = {}
    for event in map(json.loads, log.read_text().splitlines()):
        match event["Event"]:
            case "SparkListenerApplicationStart":
                name = event["App Name"]
            case "SparkListenerExecutorAdded":
                hosts[event["Executor ID"]] = event["Executor Info"]["Host"]
            case "SparkListenerExecutorRemoved":
                removed[hosts[event["Executor ID"]]] = event["Removed Reason"]
            case "SparkListenerTaskEnd":
                info = event["Task Info"]
                host, ended = info["Host"], info["Finish Time"] / 1000
                if event["Task End Reason"]["Reason"] == "Success":
                    tasks[host] = tasks.get(host, 0) + 1
                    last[host] = max(ended, last.get(host, 0))
                elif event["Task End Reason"]["Reason"] == "ExecutorLostFailure":
                    lost[host] = lost.get(host, 0) + 1
    return Application(name, tasks, lost, last, removed)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((MASTER_HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex((MASTER_HOST, port)) == 0


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def wait_for(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_S, every: float = 0.2) -> None:
    """Waits until something is so.

    Raises:
        TimeoutError: It was not in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if condition():
                return
        time.sleep(every)
    raise TimeoutError(f"waited {seconds:.0f} s for {what}")
