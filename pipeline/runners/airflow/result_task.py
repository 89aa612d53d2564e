"""The last task of an Airflow run: writes the result, as `tandem run` does, and fails if no model was pushed.

`python -m pipeline.runners.airflow.result_task COMPILED_DAG RUN` exits with 0 if a model was pushed, else with 3 after
it printed the reasons. It imports neither TensorFlow nor TFX.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.exit_codes import NOT_BLESSED
from pipeline.lineage import Lineage
from pipeline.oracle_metrics import oracle_metrics
from pipeline.result import ComponentTime, RunResult, result_of
from pipeline.runners.airflow.compiled_dag import print_reason, read_compiled_dag
from pipeline.workdir import RESULT_FILE, run_folder, write_whole


def main(arguments: list[str]) -> int:
    """Write the result and return the exit code."""
    dag, run_id = read_compiled_dag(Path(arguments[0])), arguments[1]
    workdir = Path(dag.deployment.workdir)
    steps = Lineage(workdir).steps(run_id)
    result = result_of(
        workdir,
        run_id,
        str(dag.recipe["name"]),
        dag.deployment.preset,
        max(step.started + step.seconds for step in steps) - min(step.started for step in steps),
        [
            ComponentTime(name=step.component, seconds=round(step.seconds, 2), cached=step.state == "cached")
            for step in steps
        ],
        oracle_metrics(Path(dag.deployment.data), dag.recipe["data"]["split"]),
    )
    write_whole(run_folder(workdir, run_id) / RESULT_FILE, result.model_dump_json(indent=1))
    if result.pushed_model:
        print(f"Blessed; pushed to {result.pushed_model}", flush=True)
        return 0
    print(f"All gates and slices: tandem gates {run_id} --workdir {workdir}", flush=True)
    print_reason(why_not_pushed(result))
    return NOT_BLESSED


def why_not_pushed(result: RunResult) -> str:
    """Return the reason in one line, which Airflow shows as the task's error."""
    if result.verdict.blessed and result.not_servable is not None:
        reason = f"not servable: {result.not_servable}"
    else:
        reason = "not blessed: " + "; ".join(map(str, result.verdict.failures()))
    return f"{reason}. Nothing was pushed; the served version is unchanged."


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
