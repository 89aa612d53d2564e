"""Compare stock CsvExampleGen with InteractionExampleGen on one synthetic data set: `make bench-ingest`.

Both run in TFX's own executors on Beam's in-memory runner (one process, one worker), one after the other, each in a
fresh process, on new files. CsvExampleGen reads the interactions only and hash-splits them 4:1. InteractionExampleGen
reads the same file, joins an items and a users table, splits it in the same proportion and also writes the catalogue.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = 1_000_000
SCHEMA = """
    feature { name: "user_id" type: BYTES }
    feature { name: "item_id" type: BYTES }
    feature { name: "rating" type: FLOAT float_domain { min: 1 max: 5 } }
    feature { name: "timestamp" type: INT int_domain { min: 788918400 max: 4102444800 } }
    feature { name: "title" type: BYTES }
    feature { name: "genres" type: BYTES }
    feature { name: "year" type: INT }
    feature { name: "age" type: INT }
    feature { name: "gender" type: BYTES }
    feature { name: "occupation" type: BYTES }
"""
# Cases of InteractionExampleGen: rows go directly to their split, or through files of user partitions.
SECTIONS: dict[str, dict[str, Any]] = {
    "ours": {"split": {"kind": "random", "eval_fraction": 0.2}},
    "ours_by_time": {"split": {"kind": "time", "eval_fraction": 0.2}},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="interactions in the generated file")
    parser.add_argument("--growth", type=int, default=10, help="ratio of the two file sizes of the memory comparison")
    parser.add_argument("--without-stock", action="store_true", help="measure InteractionExampleGen only")
    parser.add_argument("--at-least", type=float, default=8.0, help="minimum ratio; below it the exit code is 1")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "DATA", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return 0

    small_rows = max(1, arguments.rows // arguments.growth)
    figures: dict[str, Any] = {"rows": arguments.rows}
    with tempfile.TemporaryDirectory(prefix="bench-ingest-") as folder:
        for name, rows in (("small", small_rows), ("full", arguments.rows)):
            generate(Path(folder, name), rows)
        size = Path(folder, "full", "interactions.csv").stat().st_size
        print(f"{arguments.rows:,} interactions ({size / 2**20:.0f} MiB), with an items and a users table\n")
        print(f"{'':42}{'seconds':>9}{'peak memory':>13}{'grown by':>10}")
        stock = [] if arguments.without_stock else [("stock", "full", "CsvExampleGen, interactions only")]
        for what, data, title in [
            *stock,
            ("ours", "full", "InteractionExampleGen, joined"),
            ("ours", "small", f"  {small_rows:,} of the rows"),
            ("ours_by_time", "full", "InteractionExampleGen, split by time"),
            ("ours_by_time", "small", f"  {small_rows:,} of the rows"),
        ]:
            found = in_fresh_process(what, Path(folder, data), Path(folder, f"out-{what}-{data}"))
            figures[f"{what}_{data}"] = found
            print(f"{title:42}{found['seconds']:>9.1f}{found['peak_mib']:>9.0f} MiB{found['grown_mib']:>6.0f} MiB",
                  flush=True)  # fmt: skip
    if arguments.without_stock:
        return 0
    ratio = figures["ratio"] = figures["stock_full"]["seconds"] / figures["ours_full"]["seconds"]
    by_time = figures["ratio_by_time"] = figures["stock_full"]["seconds"] / figures["ours_by_time_full"]["seconds"]
    print(f"\n{ratio:.1f} times as fast as CsvExampleGen; split by time, {by_time:.1f} times "
          f"(minimum {arguments.at_least:g})")  # fmt: skip
    figures["ratios"] = [
        {
            "what": "InteractionExampleGen, joined, against CsvExampleGen",
            "ratio": ratio,
            "at_least": arguments.at_least,
        },
        {"what": "InteractionExampleGen, split by time, against CsvExampleGen", "ratio": by_time, "at_least": None},
    ]
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if ratio >= arguments.at_least else 1


def in_fresh_process(what: str, data: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", what, str(data), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(what: str, data: str, out: str) -> dict[str, float]:
    """Run one of the executors in this process; imports are not measured.

    Returns:
        Seconds of wall time, peak resident memory in MiB, and how much of that came after the imports.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import components  # isort: skip  (first, because it decides which Keras TensorFlow imports)
    import apache_beam as beam
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2
    from tfx.components import CsvExampleGen
    from tfx.components.example_gen.csv_example_gen.executor import Executor as CsvExecutor
    from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
    from tfx.proto import example_gen_pb2
    from tfx.types import standard_artifacts
    from tfx.utils import proto_utils

    from components.example_gen.component import InteractionExampleGen
    from components.example_gen.executor import Executor
    from recipe.data import Data

    assert components
    executor_class: type[BaseBeamExecutor]
    if what == "stock":
        split = example_gen_pb2.SplitConfig.Split
        component: Any = CsvExampleGen(
            input_base=data,
            input_config=example_gen_pb2.Input(
                splits=[example_gen_pb2.Input.Split(name="interactions", pattern="interactions.csv")]
            ),
            output_config=example_gen_pb2.Output(
                split_config=example_gen_pb2.SplitConfig(
                    splits=[split(name="train", hash_buckets=4), split(name="eval", hash_buckets=1)]
                )
            ),
        )
        executor_class = CsvExecutor
    else:
        section = Data.model_validate({
            "sources": {
                "interactions": {"files": "interactions.csv"},
                "items": {"files": "items.csv", "key": "item_id"},
                "users": {"files": "users.csv", "key": "user_id"},
            },
            "columns": {"user_id": "user_id", "item_id": "item_id", "label": "rating", "timestamp": "timestamp"},
            **SECTIONS[what],
        })  # fmt: skip
        component = InteractionExampleGen(data, section, text_format.Parse(SCHEMA, schema_pb2.Schema()), "bench")
        executor_class = Executor
    properties = {
        name: value if isinstance(value, str | int) else proto_utils.proto_to_json(value)
        for name, value in component.exec_properties.items()
        if value is not None
    }
    artifact = standard_artifacts.Examples()
    artifact.uri = out
    Path(out).mkdir()
    context = BaseBeamExecutor.Context(make_beam_pipeline_fn=lambda: beam.Pipeline(runner="FnApiRunner"))
    before = peak_mib()
    start = time.perf_counter()
    executor_class(context).Do({}, {"examples": [artifact]}, properties)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mib": peak_mib(), "grown_mib": peak_mib() - before}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def generate(folder: Path, rows: int) -> None:
    """Write `rows` interactions of 50,000 users with 10,000 items, and a table of each."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    folder.mkdir()
    users, items = 50_000, 10_000
    random = np.random.default_rng(0)
    chunk = 1 << 20
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("rating", pa.int64()),
                        ("timestamp", pa.int64())])  # fmt: skip
    with pa_csv.CSVWriter(
        folder / "interactions.csv",
        schema,
        write_options=pa_csv.WriteOptions(quoting_style="none"),
    ) as writer:
        for start in range(0, rows, chunk):
            size = min(chunk, rows - start)
            # Item popularity has a long tail.
            popular = (items * random.random(size) ** 3).astype(np.int64)
            columns = [
                np.char.add("u", random.integers(0, users, size).astype(str)),
                np.char.add("i", popular.astype(str)),
                random.integers(1, 6, size),
                random.integers(874_724_710, 893_286_638, size),
            ]
            writer.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema))
    genres = ["Action", "Comedy", "Drama", "Western|Drama", "Film-Noir|Crime|Mystery"]
    with open(folder / "items.csv", "w") as stream:
        stream.write("item_id,title,genres,year\n")
        stream.writelines(
            f'i{item},"The Film, number {item} (1990)",{genres[item % 5]},{1930 + item % 70}\n' for item in range(items)
        )
    with open(folder / "users.csv", "w") as stream:
        stream.write("user_id,age,gender,occupation\n")
        stream.writelines(f"u{user},{18 + user % 60},{'FM'[user % 2]},job {user % 21}\n" for user in range(users))


if __name__ == "__main__":
    sys.exit(main())
