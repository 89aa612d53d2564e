"""Compare the MovieLens run with the same DAG of stock TFX components: `make bench-pipeline`.

Alternates, each in a fresh process, `tandem run schemas/movielens --preset tutorial` and `stock_dag.py` on TFX's
LocalDagRunner, which trains the tutorial's model for as many epochs. The measurement is of the whole process. Stock TFX
cannot join tables: the time to write the joined CSV is printed but not included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import component_times
from component_times import AROUND, EVENTS, watch

ROOT = Path(__file__).resolve().parent.parent
SCHEMA_DIR = ROOT / "schemas" / "movielens"
PRESET = "tutorial"
SIDES = ("stock", "ours")
# Rows of the table: our name of a component, and stock TFX's.
STEPS = {
    "InteractionExampleGen": "CsvExampleGen",
    "StatisticsGen": "StatisticsGen",
    "ImportSchemaGen": "SchemaGen",
    "ExampleValidator": "ExampleValidator",
    "Transform": "Transform",
    "Trainer": "Trainer",
    "ModelResolver": "Resolver",
    "Evaluator": "Evaluator",
    "InfraValidator": None,
    "Pusher": "Pusher",
}
ONLY_OURS = "InfraValidator"
# Three epochs do not pass the recipe's gates, and without a blessing the Pusher would not run on either side.
THRESHOLDS = {"top_100_accuracy": 0.05, "rmse": 2.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with MovieLens-100K, if it exists already")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of both trainings")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, alternating")
    parser.add_argument("--at-least", type=float, default=1.5, help="minimum ratio; below it the exit code is 1")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "DATA", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        side, data, folder = arguments.one
        return {"stock": run_stock, "ours": run_ours}[side](Path(data), Path(folder), arguments.epochs)

    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="bench-pipeline-") as temporary:
        folder = Path(temporary)
        data = (arguments.data or folder / "data").resolve()
        if not arguments.data:
            fetch(data)
        seconds = join(data, folder / "joined")
        print(f"The stock DAG's CSV was joined beforehand in {seconds:.1f} s (not included).\n", flush=True)
        for number in range(arguments.rounds):
            # Alternate the order: the second run may find a warmer or busier machine.
            for side in SIDES if number % 2 == 0 else reversed(SIDES):
                read = folder / "joined" if side == "stock" else data
                runs[side].append(in_fresh_process(side, read, folder / f"{side}-{number}", arguments.epochs))
    figures = summary(runs) | {"epochs": arguments.epochs, "at_least": arguments.at_least, "join_seconds": seconds}
    print_table(figures)
    ratio = figures["ratio"]
    figures["ratios"] = [
        {"what": "the whole MovieLens run without our InfraValidator, against stock TFX, which has none that runs here",
         "ratio": ratio["wall_without"], "at_least": arguments.at_least},
        {"what": "the same with our InfraValidator", "ratio": ratio["wall"], "at_least": None},
        {"what": "the same, CPU time, without our InfraValidator", "ratio": ratio["cpu_without"], "at_least": None},
        {"what": "the same, CPU time, with our InfraValidator", "ratio": ratio["cpu"], "at_least": None},
    ]  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(figures | {"runs": runs}, indent=1) + "\n")
    return 0 if ratio["wall_without"] >= arguments.at_least else 1


def fetch(data: Path) -> None:
    sys.path.insert(0, str(ROOT))
    from commands.movielens import write_movielens

    write_movielens(data)


def join(data: Path, folder: Path) -> float:
    """Write one CSV with the columns of items and users in each interaction; return the seconds."""
    import pandas as pd

    begin = time.perf_counter()
    folder.mkdir()
    tables = [pd.read_csv(data / name) for name in ("interactions.csv", "items.csv", "users.csv")]
    joined = tables[0].merge(tables[1], how="left", on="item_id").merge(tables[2], how="left", on="user_id")
    # Otherwise a year would be a float, because some are missing.
    joined.astype({"year": "Int64"}).to_csv(folder / "movielens.csv", index=False)
    return time.perf_counter() - begin


# --- one run, in a process of its own ---------------------------------------------------------------------------------


def run_stock(data: Path, folder: Path, epochs: int) -> int:
    # Keep this file's folder in the path: the components import `stock_movielens` from it.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    import stock_dag
    from tfx import v1 as tfx

    watch(folder / EVENTS)
    settings = {**preset_settings(), "epochs": epochs}
    tfx.orchestration.LocalDagRunner().run(stock_dag.create_pipeline(data, folder, settings, THRESHOLDS))
    return 0


def run_ours(data: Path, folder: Path, epochs: int) -> int:
    sys.path[0] = str(ROOT)
    from commands.cli import main as tandem

    watch(folder / EVENTS)
    gates = [{"metric": "top_100_accuracy", "at_least": THRESHOLDS["top_100_accuracy"]},
             {"metric": "rmse", "at_most": THRESHOLDS["rmse"]}]  # fmt: skip
    overrides = [f"training.epochs={epochs}", f"gates={json.dumps(gates)}"]
    sys.argv = ["tandem", "run", str(SCHEMA_DIR), "--preset", PRESET, "--data", str(data), "--workdir", str(folder)]
    sys.argv += [part for override in overrides for part in ("--set", override)]
    tandem()
    return 0


def preset_settings() -> dict[str, Any]:
    """Hyperparameters of the preset for the stock model."""
    import yaml

    preset = yaml.safe_load((SCHEMA_DIR / "presets" / f"{PRESET}.yaml").read_text())
    model, training = preset["model"], preset["training"]
    assert training["optimizer"]["kind"] == "adagrad"
    return {
        "embedding_dim": model["embedding_dim"],
        "layers": model["rating_head"]["layers"],
        "rating_weight": model["rating_weight"],
        # The preset's weight turns the batch mean into a sum; the TFRS task sums already.
        "retrieval_weight": model["retrieval_weight"] / training["batch_size"],
        "batch_size": training["batch_size"],
        "learning_rate": training["optimizer"]["learning_rate"],
    }


def in_fresh_process(side: str, data: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """Run one side; see `component_times.in_fresh_process`."""
    folder.mkdir()
    command = [sys.executable, __file__, "--one", side, str(data), str(folder), "--epochs", str(epochs)]
    return component_times.in_fresh_process(command, folder)


# --- measurements -----------------------------------------------------------------------------------------------------


def summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians by component and side, and the medians of the ratios stock : ours of neighbouring runs.

    `wall` and `cpu` are of the whole run; `*_without` leave out our InfraValidator, which the stock DAG does not have.
    """
    pairs = list(zip(runs["stock"], runs["ours"], strict=True))
    ratio: dict[str, float] = {}
    for kind in ("wall", "cpu"):
        ratio[kind] = statistics.median(stock[kind] / ours[kind] for stock, ours in pairs)
        ratio[f"{kind}_without"] = statistics.median(
            stock[kind] / (ours[kind] - ours["components"][ONLY_OURS][kind]) for stock, ours in pairs
        )
    ratio["peak_mib"] = statistics.median(stock["peak_mib"] / ours["peak_mib"] for stock, ours in pairs)
    medians = {
        side: {
            "whole": _medians(each),
            "components": {name: _medians([run["components"][name] for run in each]) for name in each[0]["components"]},
        }
        for side, each in runs.items()
    }
    return {"ratio": ratio, "medians": medians}


def _medians(measurements: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in measurements) for name in ("wall", "cpu", "peak_mib")}


def print_table(figures: Mapping[str, Any]) -> None:
    stock, ours = (figures["medians"][side] for side in SIDES)
    print(f"{'':24}{'stock TFX':^32}{'ours':^32}")
    print(f"{'medians':24}" + f"{'seconds':>10}{'CPU s':>10}{'peak MiB':>12}" * 2 + f"{'times':>8}")
    for name, other in {**STEPS, AROUND: AROUND}.items():
        print_row(name, stock["components"].get(other), ours["components"][name])
    print_row("in all", stock["whole"], ours["whole"])
    ratio = figures["ratio"]
    print(
        f"\n{ratio['wall_without']:.2f} times as fast as the stock DAG (minimum {figures['at_least']:g}), and "
        f"{ratio['wall']:.2f} times with our InfraValidator, which it lacks; CPU time: {ratio['cpu_without']:.2f} and "
        f"{ratio['cpu']:.2f} times less"
    )


def print_row(name: str, stock: Mapping[str, float] | None, ours: Mapping[str, float]) -> None:
    def shown(found: Mapping[str, float] | None) -> str:
        return (
            f"{found['wall']:>10.1f}{found['cpu']:>10.1f}{found['peak_mib']:>12,.0f}"
            if found
            else f"{'-':>10}" + " " * 22
        )

    times = f"{stock['wall'] / ours['wall']:>8.1f}" if stock and ours["wall"] >= 0.1 else ""
    print(f"{name:24}{shown(stock)}{shown(ours)}{times}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
