"""Wall time, CPU time and memory of each component of a pipeline run in a fresh process.

Used by pipeline.py and scaling.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

AROUND = "start and end"
"""Name of the remainder that belongs to no component."""
EVENTS = "components.jsonl"
SAMPLED_EVERY_S = 0.05


def watch(events: Path) -> None:
    """Let TFX's launcher, which runs each component, record the component's start, end and CPU time.

    CPU time is that of this process with all threads and of the child processes that it has waited for.
    """
    from tfx.orchestration.portable import launcher

    launch = launcher.Launcher.launch

    def watched(self: Any) -> Any:
        begin, used = time.monotonic(), sum(os.times()[:4])
        found = launch(self)
        event = {"name": self._pipeline_node.node_info.id, "begin": begin, "end": time.monotonic(),
                 "cpu": sum(os.times()[:4]) - used}  # fmt: skip
        with events.open("a") as stream:
            stream.write(json.dumps(event) + "\n")
        return found

    launcher.Launcher.launch = watched


def in_fresh_process(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a command whose process calls `watch` with `EVENTS` in `folder`, which no other process uses.

    Returns:
        Wall and CPU seconds and peak memory in MiB, in total and of each component by name.
    """
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    with (folder / "output.txt").open("w") as output:
        begin = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        samples: list[tuple[float, float]] = []
        sampler = threading.Thread(target=sample_memory, args=(process.pid, samples))
        sampler.start()
        _, status, used = os.wait4(process.pid, 0)
        end = time.monotonic()
        sampler.join()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{(folder / 'output.txt').read_text()[-4000:]}")
    events = [json.loads(line) for line in (folder / EVENTS).read_text().splitlines()]
    return measured(begin, end, used.ru_utime + used.ru_stime, events, samples)


def sample_memory(pid: int, samples: list[tuple[float, float]]) -> None:
    """Sample the resident memory in MiB of a process and its children until it ends."""
    try:
        root = psutil.Process(pid)
        while root.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for process in (root, *root.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            samples.append((time.monotonic(), total / 2**20))
            time.sleep(SAMPLED_EVERY_S)
    except psutil.NoSuchProcess:
        return


def measured(
    begin: float, end: float, cpu: float, events: Sequence[Mapping[str, Any]], samples: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Measurements of one run; `AROUND` holds imports, compiling the DAG and the end of the process."""
    components = {
        event["name"]: {
            "wall": event["end"] - event["begin"],
            "cpu": event["cpu"],
            "peak_mib": max((size for moment, size in samples if event["begin"] <= moment <= event["end"]), default=0),
        }
        for event in events
    }
    whole = {"wall": end - begin, "cpu": cpu, "peak_mib": max((size for _, size in samples), default=0)}
    around = {name: whole[name] - sum(component[name] for component in components.values()) for name in ("wall", "cpu")}
    outside = [size for moment, size in samples
               if not any(event["begin"] <= moment <= event["end"] for event in events)]  # fmt: skip
    return {**whole, "components": components | {AROUND: around | {"peak_mib": max(outside, default=0)}}}
