"""Apache Flink on this machine: a session cluster of two task managers, Beam's job server and a pool of Python workers.

The task managers have loopback addresses of their own, so that Flink's records have the task manager of each task.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FLINK_HOME = ROOT / ".flink"
HOST = "127.0.0.1"
TASK_MANAGERS = ("127.0.0.2", "127.0.0.3")

# The exports and opens are those of Flink's own configuration (env.java.opts.all), without what its SQL needs.
JAVA_OPTIONS = (
    # It lives for minutes only, and shares two cores: nothing that pays later.
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    *(
        f"--add-exports={package}=ALL-UNNAMED"
        for package in ("java.base/sun.net.util", "java.rmi/sun.rmi.registry", "java.security.jgss/sun.security.krb5")
    ),
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in (
            "java.lang",
            "java.lang.reflect",
            "java.net",
            "java.io",
            "java.nio",
            "java.text",
            "java.time",
            "java.util",
            "java.util.concurrent",
            "java.util.concurrent.atomic",
            "java.util.concurrent.locks",
            "sun.nio.ch",
        )
    ),
)
LOGGING = """
rootLogger.level=INFO
rootLogger.appenderRef.out.ref=out
appender.out.name=out
appender.out.type=Console
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %-5p %c{1} - %m%n
"""
# One slot of each does a job; when one task manager is gone, the two of the other do.
PARALLELISM = SLOTS = 2
TASK_MANAGER_MEMORY = {
    # Flink's scripts make these of one figure for the process; it is started here without them.
    "taskmanager.cpu.cores": 1.0,
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.task.heap.size": "384m",
    "taskmanager.memory.task.off-heap.size": "0m",
    "taskmanager.memory.network.min": "384m",
    "taskmanager.memory.network.max": "384m",
    "taskmanager.memory.managed.size": "256m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "192m",
    "taskmanager.memory.jvm-overhead.max": "192m",
}
# The first task on a task manager starts a Python worker that imports TensorFlow; on a busy machine this takes minutes.
PATIENCE_S = 600


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Flink's record of one attempt of one subtask.

    Attributes:
        task_manager: Where it ran; its address.
        state: FINISHED, or what became of it.
        ended: In seconds since the epoch.
        records: How many it read.
    """

    task_manager: str
    state: str
    ended: float
    records: int


@dataclasses.dataclass(frozen=True)
class Job:
    """Flink's record of one job of Beam: id, name, final state, and the exceptions after which it was restarted."""

    id: str
    name: str
    state: str
    attempts: tuple[Attempt, ...]
    failures: tuple[str, ...]

    def finished(self) -> dict[str, list[Attempt]]:
        """The attempts that ended well, by task manager."""
        there: dict[str, list[Attempt]] = {}
        for one in self.attempts:
            if one.state == "FINISHED":
                there.setdefault(one.task_manager, []).append(one)
        return there

    def __str__(self) -> str:
        shares = ", ".join(
            f"{len(there)} subtasks that read {sum(one.records for one in there)} records on {task_manager}"
            for task_manager, there in sorted(self.finished().items())
        )
        again = "".join(f"; started again after {failure}" for failure in self.failures)
        return f"{self.state} {self.name}: {shares}{again}"


class FlinkCluster:
    """A cluster of these tests; `with` starts and ends it."""

    def __init__(self, folder: Path) -> None:
        """Takes an empty folder for configuration, logs and scratch files."""
        self.folder = folder
        self.ports = dict(zip(("manager", "rest", "jobs", "artifacts", "pool"), free_ports(5), strict=True))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> FlinkCluster:
        self.folder.mkdir(parents=True)
        (self.folder / "log4j2.properties").write_text(LOGGING)
        try:
            self._start_job_manager()
            for host in TASK_MANAGERS:
                self._start_task_manager(host)
            self._start_job_server()
            self._start_pool()
            wait_for(lambda: set(TASK_MANAGERS) == self.task_managers(), "both task managers at the job manager")
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
        """The Beam options for `tandem run --beam-runner flink`."""
        return (
            f"--job_endpoint=localhost:{self.ports['jobs']}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{self.ports['pool']}",
            # Otherwise each stage of a job may start new Python workers.
            "--environment_cache_millis=600000",
            f"--parallelism={PARALLELISM}",
            # Task managers have all jars already; unless one is named, each job sends them its whole class path.
            f"--files_to_stage={next((FLINK_HOME / 'jars').glob('beam-runners-java-job-service-*.jar'))}",
        )

    # --- records of the cluster ---------------------------------------------------------------------------------------

    def task_managers(self) -> set[str]:
        """The addresses of the task managers that the job manager counts on."""
        return {one["id"] for one in self._rest("taskmanagers")["taskmanagers"]}

    def running(self) -> set[str]:
        """The task managers that have work of the job that runs now; empty between jobs."""
        there = set()
        for job in self._jobs():
            if job["state"] == "RUNNING":
                for subtask in self._subtasks(job["jid"]):
                    if subtask["status"] == "RUNNING":
                        there.add(subtask["taskmanager-id"])
        return there

    def jobs(self) -> list[Job]:
        """The jobs that are over, oldest first."""
        return [self._job(job) for job in self._jobs() if job["end-time"] > 0]

    def log_of(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _jobs(self) -> list[dict[str, Any]]:
        return sorted(self._rest("jobs/overview")["jobs"], key=lambda job: job["start-time"])

    def _job(self, overview: Mapping[str, Any]) -> Job:
        name, job_id = overview["name"], overview["jid"]
        attempts = [
            Attempt(
                task_manager=one["taskmanager-id"],
                state=one["status"],
                ended=one["end-time"] / 1000,
                records=one["metrics"]["read-records"],
            )
            for subtask in self._subtasks(job_id)
            for one in (*self._earlier(subtask), subtask)
        ]
        history = self._rest(f"jobs/{job_id}/exceptions")["exceptionHistory"]["entries"]
        failures = (one["stacktrace"].partition("\n")[0].strip() for one in reversed(history))
        return Job(job_id, name, overview["state"], tuple(attempts), tuple(failures))

    def _subtasks(self, job_id: str) -> list[dict[str, Any]]:
        """The parallel parts of a job's tasks, in their last attempt."""
        found = []
        for vertex in self._rest(f"jobs/{job_id}")["vertices"]:
            path = f"jobs/{job_id}/vertices/{vertex['id']}"
            found += [{**subtask, "path": path} for subtask in self._rest(path)["subtasks"]]
        return found

    def _earlier(self, subtask: Mapping[str, Any]) -> list[dict[str, Any]]:
        path = f"{subtask['path']}/subtasks/{subtask['subtask']}/attempts"
        return [self._rest(f"{path}/{number}") for number in range(subtask["attempt"])]

    def _rest(self, path: str) -> dict[str, Any]:
        return fetch(f"http://{HOST}:{self.ports['rest']}/{path}")

    # --- its processes ------------------------------------------------------------------------------------------------

    def _start_job_manager(self) -> None:
        config = self._configure("manager", {})
        self._java("manager", "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
                   "--configDir", config)  # fmt: skip
        wait_for(lambda: listens(self.ports["rest"]) and "taskmanagers" in self._rest("taskmanagers"), "Flink")

    def _start_task_manager(self, host: str) -> None:
        config = self._configure(
            host,
            {
                "taskmanager.host": host,
                "taskmanager.bind-host": host,
                "taskmanager.resource-id": host,
                "taskmanager.numberOfTaskSlots": SLOTS,
                # Transform's job has 1,242 subtasks, each with buffers of its own, and little to send.
                "taskmanager.memory.segment-size": "8k",
                "taskmanager.network.sort-shuffle.min-buffers": 64,
                **TASK_MANAGER_MEMORY,
            },
        )
        self._java(host, "org.apache.flink.runtime.taskexecutor.TaskManagerRunner", "--configDir", config)

    def kill_task_manager(self, host: str) -> None:
        """Ends a task manager as a machine that loses power would."""
        self._end(host, signal.SIGKILL)

    def _configure(self, name: str, own: Mapping[str, Any]) -> Path:
        """Writes the configuration of one of Flink's processes."""
        folder = self.folder / f"conf-{name}"
        folder.mkdir()
        scratch = self.folder / f"scratch-{name}"
        scratch.mkdir()
        settings = {
            "jobmanager.rpc.address": HOST,
            "jobmanager.rpc.port": self.ports["manager"],
            "jobmanager.bind-host": HOST,
            "rest.address": HOST,
            "rest.bind-address": HOST,
            "rest.port": self.ports["rest"],
            "io.tmp.dirs": str(scratch),
            "cluster.evenly-spread-out-slots": True,
            # A killed task manager is noticed by its broken connection; one on a busy machine may be silent for long.
            "heartbeat.interval": 1000,
            "heartbeat.timeout": 180_000,
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 10,
            "restart-strategy.fixed-delay.delay": "2 s",
            # What each process has on its class path is what a job brings.
            "classloader.resolve-order": "parent-first",
            "jobstore.expiration-time": 24 * 3600,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump({**settings, **own}, sort_keys=False))
        return folder

    def _start_job_server(self) -> None:
        self._java("jobs", "org.apache.beam.runners.flink.FlinkJobServerDriver",
                   f"--flink-master={HOST}:{self.ports['rest']}", "--job-host=localhost",
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
        logging = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        class_path = str(FLINK_HOME / "jars" / "*")
        env = {key: value for key, value in os.environ.items() if not key.startswith("FLINK_")}
        self._start(name, ["java", *JAVA_OPTIONS, logging, "-Xmx768m", "-cp", class_path, *map(str, arguments)], env)

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


def free_ports(count: int) -> list[int]:
    """Free ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex((HOST, port)) == 0


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.loads(answer.read())


def wait_for(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_S, every: float = 0.2) -> None:
    """Waits until something is so.

    Raises:
        TimeoutError: It was not in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            if condition():
                return
        time.sleep(every)
    raise TimeoutError(f"waited {seconds:.0f} s for {what}")
