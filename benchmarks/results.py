"""Runs every benchmark of the project, one after the other, and writes `benchmarks/results.md`: `make bench`.

Ratios mean something on a machine that does nothing else; the file says how busy it was when it began. It holds neither
paths nor names of the machine. It is written when every benchmark has given its figures, and not at all otherwise.
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
    """What one benchmark gave."""

    command: str
    passed: bool
    ratios: Sequence[Mapping[str, Any]]
    """`what` was compared, the `ratio`, and `at_least`, below which the benchmark fails; None where it does not."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER / "results.md", help="file to write")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, help="those to run")
    for name in BENCHMARKS:
        parser.add_argument(f"--{name}", default="", metavar="OPTIONS", help=f"further options of {name}.py")
    arguments = parser.parse_args()
    load, begin = os.getloadavg(), datetime.datetime.now(datetime.UTC)
    results = {name: run(name, shlex.split(getattr(arguments, name))) for name in arguments.only}
    write_whole(arguments.out, page(results, begin, load, machine()))
    print(f"\n{arguments.out.name}: {len(results)} benchmarks")
    failed = [name for name, result in results.items() if not result.passed]
    if failed:
        print(f"Below what was wanted: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, options: Sequence[str]) -> Result:
    """Runs one benchmark, whose own tables go to the terminal.

    Raises:
        SystemExit: It broke down before it had figures.
    """
    print(f"\n=== {name} ===\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        figures = Path(folder, "figures.json")
        command = [sys.executable, str(FOLDER / f"{name}.py"), *options]
        done = subprocess.run([*command, "--json", str(figures)], check=False)
        if not figures.is_file():
            raise SystemExit(f"{name}.py ended with {done.returncode} and without figures; nothing was written.")
        ratios = json.loads(figures.read_text())["ratios"]
    shown = shlex.join(Path(option).name if os.path.isabs(option) else option for option in options)
    return Result(f"python benchmarks/{name}.py {shown}".rstrip(), done.returncode == 0, ratios)


def machine() -> dict[str, str]:
    """What ratios may depend on."""
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
    """The file's text, in Markdown."""
    lines = [
        "# Results of the benchmarks",
        "",
        "Written by `make bench`; README.md says what each benchmark compares. A ratio says how many times as fast",
        "ours is as what it is compared with, where nothing else is said.",
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
        f"    {result.command}" + ("" if result.passed else "    # below what was wanted")
        for result in results.values()
    ]
    return "\n".join(lines) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is complete or as it was before."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


if __name__ == "__main__":
    sys.exit(main())
