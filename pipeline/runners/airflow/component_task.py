"""One component of an Airflow run, in its own process.

`python -m pipeline.runners.airflow.component_task COMPILED_DAG RUN COMPONENT` exits with 0 on success, with 2 if the
recipe or the data is invalid, and with 1 after any other error, which a retry may solve.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import sys
import time
from pathlib import Path

from absl import logging
from google.protobuf import json_format
from tfx.proto.orchestration import pipeline_pb2

from components.example_gen.resolve import interactions_bytes
from pipeline.exit_codes import BAD_INPUT, FAILED
from pipeline.lineage import Lineage
from pipeline.runners.airflow.compiled_dag import CompiledDag, print_reason, read_compiled_dag
from pipeline.runners.launch import Launches
from pipeline.workdir import ARTIFACTS_FOLDER, only_run_in
from recipe import BadInput
from recipe.data import Data


def main(arguments: list[str]) -> int:
    """Run the component and return the exit code."""
    dag, run_id, name = read_compiled_dag(Path(arguments[0])), arguments[1], arguments[2]
    start = time.monotonic()
    try:
        # Tasks of one run may run in parallel, but not beside `tandem run`.
        with only_run_in(Path(dag.deployment.workdir), kind=fcntl.LOCK_SH):
            return _launch(dag, run_id, name, start)
    except BadInput as error:
        print_reason(error)
        return FAILED


def _launch(dag: CompiledDag, run_id: str, name: str, start: float) -> int:
    compiled = json_format.ParseDict(dag.pipeline, pipeline_pb2.Pipeline())
    # Not in the compiled DAG, which may be older than the files; only their size is needed here.
    input_bytes = interactions_bytes(Path(dag.deployment.data), Data.model_validate(dag.recipe["data"]))
    launches = Launches(compiled, run_id, dag.deployment.beam.pipeline_args(input_bytes))
    _remove_partial_outputs(dag, run_id, name)
    try:
        result = launches.launch(name)
    except BadInput as error:
        logging.error("%s failed", name, exc_info=error)
        print_reason(f"{name}: {error}")
        return BAD_INPUT
    except Exception as error:
        logging.error("%s failed", name, exc_info=error)
        first = next(iter(str(error).strip().splitlines()), "no message")
        print_reason(f"{name} failed: {type(error).__name__}: {first}")
        return FAILED
    how = "cached" if result.cached else f"done in {time.monotonic() - start:.1f} s"
    print(f"{name}: {how}", flush=True)
    return 0


def _remove_partial_outputs(dag: CompiledDag, run_id: str, name: str) -> None:
    """Remove the outputs of an attempt that was killed: the launcher reuses the same folders."""
    root = Path(dag.deployment.workdir, ARTIFACTS_FOLDER, name)
    for step in Lineage(Path(dag.deployment.workdir)).steps(run_id):
        if step.component == name and step.state == "unfinished":
            for folder in root.glob(f"*/{step.id}"):
                shutil.rmtree(folder)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.INFO)
    code = main(sys.argv[1:])
    # Otherwise the garbage collector visits all of TensorFlow's objects at exit, which takes 4 s.
    gc.freeze()
    raise SystemExit(code)
