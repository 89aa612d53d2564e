"""Measure how time and memory of a run grow with the data: `make bench-scaling`.

For each size, `tandem data synthetic` writes the data and `tandem run schemas/synthetic` pushes a model, in a fresh
process. Users and items grow realistically: 50 interactions per user, and fewer items than users.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import component_times
from component_times import AROUND, EVENTS, watch

ROOT = Path(__file__).resolve().parent.parent
SCHEMA_DIR = ROOT / "schemas" / "synthetic"
ITEMS = {100_000: 1_000, 1_000_000: 5_000, 10_000_000: 20_000}
"""By interactions."""
A_USER = 50
"""Interactions per user, on average."""
SHOWN_FROM_S = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, nargs="+", choices=list(ITEMS), default=[100_000, 1_000_000], help="interactions"
    )
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each training")
    parser.add_argument("--beam-arg", action="append", default=[], help="option of Beam, as for `tandem run`")
    parser.add_argument("--most-gib", type=float, default=12.0, help="maximum peak memory; above it the exit code is 1")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--one", nargs=2, metavar=("DATA", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    options = [f"--epochs={arguments.epochs}", *(f"--beam-arg={arg}" for arg in arguments.beam_arg)]
    if arguments.one:
        data, folder = map(Path, arguments.one)
        return run(data, folder, arguments.epochs, arguments.beam_arg)

    runs: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as temporary:
        for rows in sorted(arguments.rows):
            data, folder = Path(temporary, f"data-{rows}"), Path(temporary, f"run-{rows}")
            generate(data, rows)
            folder.mkdir()
            command = [sys.executable, __file__, "--one", str(data), str(folder), *options]
            runs[rows] = component_times.in_fresh_process(command, folder)
            print_table(rows, runs[rows])
    most = max(each["peak_mib"] for each in runs.values()) / 1024
    ratios = [
        {"what": f"CPU time of {more:,} interactions against that of {less:,}",
         "ratio": runs[more]["cpu"] / runs[less]["cpu"], "at_least": None}
        for less, more in zip(list(runs), list(runs)[1:], strict=False)
    ]  # fmt: skip
    if arguments.json:
        figures = {"ratios": ratios, "runs": {str(rows): each for rows, each in runs.items()}}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"Peak memory {most:.2f} GiB (threshold ≤ {arguments.most_gib:g}).")
    return 0 if most <= arguments.most_gib else 1


def generate(data: Path, rows: int) -> None:
    sys.path.insert(0, str(ROOT))
    from commands.synthetic.files import write_synthetic
    from commands.synthetic.ground_truth import SyntheticSpec

    write_synthetic(SyntheticSpec(users=rows // A_USER, items=ITEMS[rows], interactions=rows), data)


def run(data: Path, folder: Path, epochs: int, beam_args: Sequence[str]) -> int:
    """Run the pipeline in this process."""
    # This file's folder has a script named like the package `pipeline`.
    sys.path[0] = str(ROOT)
    from commands.cli import main as tandem

    watch(folder / EVENTS)
    sys.argv = ["tandem", "run", str(SCHEMA_DIR), "--data", str(data), "--workdir", str(folder)]
    sys.argv += ["--set", f"training.epochs={epochs}", *(f"--beam-arg={arg}" for arg in beam_args)]
    tandem()
    return 0


def print_table(rows: int, found: Mapping[str, Any]) -> None:
    print(f"{f'{rows:,} interactions':26}{'seconds':>10}{'CPU s':>10}{'peak GiB':>10}")
    components = found["components"]
    for name in (*(name for name in components if name != AROUND), AROUND):
        each = components[name]
        if each["wall"] >= SHOWN_FROM_S:
            print(f"{name:26}{each['wall']:>10.1f}{each['cpu']:>10.1f}{each['peak_mib'] / 1024:>10.2f}")
    print(f"{'in all':26}{found['wall']:>10.1f}{found['cpu']:>10.1f}{found['peak_mib'] / 1024:>10.2f}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
