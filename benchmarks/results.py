"""Run all benchmarks one after the other and write `benchmarks/results.md`: `make bench`.

Ratios are meaningful on an idle machine; the file records the load average at the start, and neither paths nor host
names. It is written only if all benchmarks have completed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

FOLDER = Path(__file__).resolve().parent
BENCHMARKS = ("ingest", "train", "serving", "pipeline", "scaling")
PACKAGES = ("tensorflow", "tfx", "apache-beam", "tensorflow-recommenders")


class Result(NamedTuple):
    """Result of one benchmark."""

    command: str
    passed: bool
    ratios: Sequence[Mapping[str, Any]]
    """`what` is compared, the `ratio`, and its minimum `at_least`, or None."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER / "results.md", help="file to write")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, help="benchmarks to run")
    for name in BENCHMARKS:
        parser.add_argument(f"--{name}", default="", metavar="OPTIONS", help=f"additional options of {name}.py")
    arguments = parser.parse_args()
    load, begin = os.getloadavg(), datetime.datetime.now(datetime.UTC)
    results = {name: run(name, shlex.split(getattr(arguments, name))) for name in arguments.only}
    write_whole(arguments.out, page(results, begin, load, machine()))
    print(f"\n{arguments.out.name}: {len(results)} benchmarks")
    failed = [name for name, result in results.items() if not result.passed]
    if failed:
        print(f"Below the minimum: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, options: Sequence[str]) -> Result:
    """Run one benchmark, which prints its own tables.

    Raises:
        SystemExit: It failed before it wrote measurements.
    """
    print(f"\n=== {name} ===\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        figures = Path(folder, "figures.json")
        command = [sys.executable, str(FOLDER / f"{name}.py"), *options]
        done = subprocess.run([*command, "--json", str(figures)], check=False)
        if not figures.is_file():
            raise SystemExit(f"{name}.py exited with {done.returncode} and without measurements; nothing was written.")
        ratios = json.loads(figures.read_text())["ratios"]
    shown = shlex.join(Path(option).name if os.path.isabs(option) else option for option in options)
    return Result(f"python benchmarks/{name}.py {shown}".rstrip(), done.returncode == 0, ratios)


def machine() -> dict[str, str]:
    """Properties of the machine and packages that ratios depend on."""
    cpu = platform.machine()
    with open("/proc/cpuinfo") as stream:
        cpu = next((line.partition(":")[2].strip() for line in stream if line.startswith("model name")), cpu)
    return {
        "CPU": f"{cpu}, {os.cpu_count()} cores",
        "Memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "Python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }


def page(
    results: Mapping[str, Result], begin: datetime.datetime, load: Sequence[float], described: Mapping[str, str]
) -> str:
    """Markdown text of the file."""
    lines = [
        "# Results of the benchmarks",
        "",
        "Written by `make bench`; README.md describes what each benchmark compares. Unless stated otherwise, a ratio",
        "is the speed of Tandem divided by that of the baseline.",
        "",
        f"- Date: {begin:%Y-%m-%d %H:%M} UTC",
        *(f"- {name}: {value}" for name, value in described.items()),
        f"- Load average at the start, of 1, 5 and 15 minutes: {', '.join(f'{each:.2f}' for each in load)}",
        "",
        "| benchmark | what | ratio | fails below |",
        "|-----------|------|------:|------------:|",
    ]
    for name, result in results.items():
        for ratio in result.ratios:
            least = "" if ratio["at_least"] is None else f"{ratio['at_least']:g}"
            lines.append(f"| {name} | {ratio['what']} | {ratio['ratio']:.2f} | {least} |")
    lines += ["", "The commands, from the root of the repository:", ""]
    lines += [
        f"    {result.command}" + ("" if result.passed else "    # below the minimum") for result in results.values()
    ]
    return "\n".join(lines) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Replace a file atomically."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


if __name__ == "__main__":
    sys.exit(main())
