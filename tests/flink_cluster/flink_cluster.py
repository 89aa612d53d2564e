"""An Apache Flink session cluster on this machine: a job manager, two task managers, Beam's job server and a pool.

The pool starts the Python workers that task managers ask for; on more than one machine, each would have its own.
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
JARS = ROOT / ".flink" / "jars"
HOST = "127.0.0.1"
TASK_MANAGERS = ("task-manager-1", "task-manager-2")

# The exports and opens are what Flink's own configuration gives to Java 17, as env.java.opts.all.
JAVA_OPTIONS = (
    # They live for minutes only, which optimizing compilation does not pay for.
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
            "java.lang.invoke",
            "java.lang.reflect",
            "java.io",
            "java.net",
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
# Tasks wait for a Python worker that imports TensorFlow; on a busy machine this takes minutes.
PATIENCE_S = 600

LOGGING = """
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = Console
appender.console.name = Console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %-5p %c{1} %m%n
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """What Flink's REST API says of a job.

    Attributes:
        name: Its name.
        state: FINISHED where all went well.
        subtasks: How many subtasks ended well, by task manager.
        attempts: The most attempts that one of its subtasks took.
        failures: The task managers on which something failed.
    """

    name: str
    state: str
    subtasks: dict[str, int]
    attempts: int
    failures: frozenset[str]

    def __str__(self) -> str:
        shares = ", ".join(f"{count} subtasks on {manager}" for manager, count in sorted(self.subtasks.items()))
        again = f"; {self.attempts} attempts, after a failure on {', '.join(sorted(self.failures))}"
        return f"{self.state} {self.name}: {shares}{again if self.failures else ''}"


class FlinkCluster:
    """A cluster that nobody else uses; `with` starts and ends it."""

    def __init__(self, folder: Path) -> None:
        """Takes an empty folder for logs and scratch files."""
        self.folder = folder
        self.ports = dict(zip(("rest", "rpc", "blob", "jobs", "artifacts", "pool"), free_ports(6), strict=True))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> FlinkCluster:
        self._configure()
        conf = ("--configDir", self.folder / "conf")
        try:
            # One after the other: its actor system gives a JVM ten seconds to start.
            entrypoint = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
            self._until(lambda: not self.task_managers(), "job-manager", entrypoint, *conf)
            for name in TASK_MANAGERS:
                runner = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
                self._until(lambda name=name: name in self.task_managers(), name,  # type: ignore[misc]
                            runner, *conf, f"-Dtaskmanager.resource-id={name}")  # fmt: skip
            self._until(lambda: listens(self.ports["jobs"]), "jobs",
                        "org.apache.beam.runners.flink.FlinkJobServerDriver",
                        f"--flink-master={HOST}:{self.ports['rest']}", "--job-host=localhost",
                        f"--job-port={self.ports['jobs']}", f"--artifact-port={self.ports['artifacts']}",
                        "--expansion-port=0", f"--artifacts-dir={self.folder / 'artifacts'}",
                        f"--flink-conf-dir={self.folder / 'conf'}")  # fmt: skip
            self._start_pool()
            wait_for(lambda: listens(self.ports["pool"]), "the pool of Python workers")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for name in reversed(list(self._processes)):
            self._end(name, signal.SIGTERM)

    @property
    def beam_args(self) -> tuple[str, ...]:
        """What `tandem run --beam-runner flink` has to be told."""
        return (
            f"--job_endpoint=localhost:{self.ports['jobs']}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{self.ports['pool']}",
            "--parallelism=2",
            # Otherwise each stage of a job starts Python workers anew.
            "--environment_cache_millis=600000",
            # The cluster has all jars already; unless one is named, each job sends it the job server's class path.
            f"--files_to_stage={next(JARS.glob('beam-runners-java-job-service-*.jar'))}",
        )

    # --- what it says of itself ---------------------------------------------------------------------------------------

    def task_managers(self) -> set[str]:
        """The task managers that the job manager counts on."""
        return {one["id"] for one in self._ask("taskmanagers")["taskmanagers"]}

    def jobs(self) -> list[Job]:
        """All jobs, oldest first."""
        jobs = sorted(self._ask("jobs/overview")["jobs"], key=lambda job: job["start-time"])
        return [self._job(job["jid"]) for job in jobs]

    def running_on(self, manager: str) -> bool:
        """Whether a subtask runs on a task manager."""
        for job in self._ask("jobs/overview")["jobs"]:
            if job["state"] == "RUNNING" and any(
                subtask["status"] == "RUNNING" and subtask["taskmanager-id"] == manager
                for subtask in self._subtasks(job["jid"])
            ):
                return True
        return False

    def log_of(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _job(self, identifier: str) -> Job:
        job = self._ask(f"jobs/{identifier}")
        subtasks: dict[str, int] = {}
        attempts = 1
        for subtask in self._subtasks(identifier):
            attempts = max(attempts, subtask["attempt"] + 1)
            if subtask["status"] == "FINISHED":
                subtasks[subtask["taskmanager-id"]] = subtasks.get(subtask["taskmanager-id"], 0) + 1
        said = json.dumps(self._ask(f"jobs/{identifier}/exceptions"))
        failures = frozenset(name for name in TASK_MANAGERS if name in said)
        return Job(job["name"], job["state"], subtasks, attempts, failures)

    def _subtasks(self, job: str) -> list[dict[str, Any]]:
        vertices = self._ask(f"jobs/{job}")["vertices"]
        return [one for vertex in vertices for one in self._ask(f"jobs/{job}/vertices/{vertex['id']}")["subtasks"]]

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{HOST}:{self.ports['rest']}/{path}", timeout=30) as answer:
            return json.loads(answer.read())

    # --- its processes ------------------------------------------------------------------------------------------------

    def kill(self, manager: str) -> None:
        """Ends a task manager as a machine that loses power would."""
        self._end(manager, signal.SIGKILL)

    def _configure(self) -> None:
        settings = {
            "jobmanager.rpc.address": HOST,
            "jobmanager.bind-host": HOST,
            "jobmanager.rpc.port": self.ports["rpc"],
            "blob.server.port": self.ports["blob"],
            "rest.address": HOST,
            "rest.bind-address": HOST,
            "rest.port": self.ports["rest"],
            "taskmanager.host": HOST,
            "taskmanager.bind-host": HOST,
            # All that a job needs has room on one of them, so that the one that is left can go on alone.
            "taskmanager.numberOfTaskSlots": 2,
            "cluster.evenly-spread-out-slots": "true",
            # Flink's start scripts would reckon these out.
            "taskmanager.cpu.cores": 1,
            "taskmanager.memory.task.heap.size": "512m",
            "taskmanager.memory.task.off-heap.size": "0m",
            "taskmanager.memory.network.min": "64m",
            "taskmanager.memory.network.max": "64m",
            "taskmanager.memory.managed.size": "128m",
            "taskmanager.memory.framework.heap.size": "128m",
            "taskmanager.memory.framework.off-heap.size": "128m",
            "taskmanager.memory.jvm-metaspace.size": "256m",
            "taskmanager.memory.jvm-overhead.min": "192m",
            "taskmanager.memory.jvm-overhead.max": "192m",
            # Longer than two heartbeats: before that, the job manager would send tasks to the dead one again.
            "restart-strategy": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 5,
            "restart-strategy.fixed-delay.delay": "10 s",
            "heartbeat.interval": 2_000,
            # Both have the same jars.
            "classloader.resolve-order": "parent-first",
            # For busy machines.
            "akka.ask.timeout": "300 s",
            "web.timeout": 300_000,
            "heartbeat.timeout": 120_000,
            "io.tmp.dirs": self.folder / "scratch",
        }
        for name in ("conf", "scratch"):
            (self.folder / name).mkdir(parents=True)
        lines = (f"{key}: {value}\n" for key, value in settings.items())
        (self.folder / "conf" / "flink-conf.yaml").write_text("".join(lines))
        (self.folder / "conf" / "log4j.properties").write_text(LOGGING)

    def _start_pool(self) -> None:
        # It starts `python` for each worker.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {**os.environ, "PATH": path, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
        self._start("pool", [*command, f"--service_port={self.ports['pool']}", "--container_executable="], env)

    def _java(self, name: str, *arguments: object) -> None:
        logging = f"-Dlog4j2.configurationFile={self.folder / 'conf' / 'log4j.properties'}"
        command = ["java", *JAVA_OPTIONS, logging, "-Xmx1g", "-cp", str(JARS / "*"), *map(str, arguments)]
        self._start(name, command, {key: value for key, value in os.environ.items() if not key.startswith("FLINK_")})

    def _start(self, name: str, command: list[str], env: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            # A group of its own: what a process starts ends with it.
            self._processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, cwd=self.folder,
                start_new_session=True,
            )  # fmt: skip

    def _end(self, name: str, how: signal.Signals) -> None:
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _until(self, ready: Callable[[], bool], name: str, *arguments: object) -> None:
        """Starts a JVM and waits until it is ready; on a busy machine it may take more than one try."""
        tries = 0

        def up() -> bool:
            nonlocal tries
            if name not in self._processes or self._processes[name].poll() is not None:
                assert tries < 5, f"{name} does not start: {self.log_of(name)[-3000:]}"
                tries += 1
                self._java(name, *arguments)
            return ready()

        wait_for(up, name)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex((HOST, port)) == 0


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
