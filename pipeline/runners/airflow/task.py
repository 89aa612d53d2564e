"""One component of one planned run, in a process of its own.

`python -m pipeline.runners.airflow.task PLAN RUN COMPONENT` ends with 0, or says why not: with 2 where the
user's input has to be mended first, else with 1 where trying again may help.
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
from pipeline.runners.airflow.plan import Plan, read_plan, say_why
from pipeline.runners.launch import Launches
from pipeline.workdir import only_run_in
from recipe import BadInput
from recipe.data import Data


def main(arguments: list[str]) -> int:
    """Runs the component."""
    plan, run_id, name = read_plan(Path(arguments[0])), arguments[1], arguments[2]
    start = time.monotonic()
    try:
        # Tasks that Airflow runs side by side may; a run that was started by hand must wait, or be waited for.
        with only_run_in(Path(plan.deployment.workdir), kind=fcntl.LOCK_SH):
            return _launch(plan, run_id, name, start)
    except BadInput as error:
        say_why(error)
        return FAILED


def _launch(plan: Plan, run_id: str, name: str, start: float) -> int:
    compiled = json_format.ParseDict(plan.pipeline, pipeline_pb2.Pipeline())
    # Not in the plan, which is compiled once and may be older than the files; only their size is needed here.
    input_bytes = interactions_bytes(Path(plan.deployment.data), Data.model_validate(plan.recipe["data"]))
    launches = Launches(compiled, run_id, plan.deployment.beam.pipeline_args(input_bytes))
    _remove_half_written(plan, run_id, name)
    try:
        outcome = launches.launch(name)
    except BadInput as error:
        logging.error("%s failed", name, exc_info=error)
        say_why(f"{name}: {error}")
        return BAD_INPUT
    except Exception as error:
        logging.error("%s failed", name, exc_info=error)
        first = next(iter(str(error).strip().splitlines()), "no message")
        say_why(f"{name} failed: {type(error).__name__}: {first}")
        return FAILED
    taken = "taken from the cache" if outcome.cached else f"done in {time.monotonic() - start:.1f} s"
    print(f"{name}: {taken}", flush=True)
    return 0


def _remove_half_written(plan: Plan, run_id: str, name: str) -> None:
    """Removes the files of a try that was killed: the launcher goes on with the same folders."""
    root = Path(plan.deployment.workdir, "artifacts", name)
    for step in Lineage(Path(plan.deployment.workdir)).steps(run_id):
        if step.component == name and step.state == "unfinished":
            for folder in root.glob(f"*/{step.id}"):
                shutil.rmtree(folder)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.INFO)
    code = main(sys.argv[1:])
    # Otherwise Python goes through all of TensorFlow's objects once more at its end, which takes four seconds.
    gc.freeze()
    raise SystemExit(code)
