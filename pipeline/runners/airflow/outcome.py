"""The last task of a planned run: writes what came of it, as `tandem run` does, and is red where nothing was pushed.

`python -m pipeline.runners.airflow.outcome PLAN RUN` ends with 0 where a model was pushed and with 3, and the reasons,
where not. It imports neither TensorFlow nor TFX.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.best_possible import best_possible
from pipeline.exit_codes import NOT_BLESSED
from pipeline.lineage import Lineage
from pipeline.result import ComponentTime, RunResult, result_of
from pipeline.runners.airflow.plan import read_plan, say_why
from pipeline.workdir import RESULT_FILE, run_folder, write_whole


def main(arguments: list[str]) -> int:
    """Writes the result."""
    plan, run_id = read_plan(Path(arguments[0])), arguments[1]
    workdir = Path(plan.deployment.workdir)
    steps = Lineage(workdir).steps(run_id)
    result = result_of(
        workdir,
        run_id,
        str(plan.recipe["name"]),
        plan.deployment.preset,
        max(step.started + step.seconds for step in steps) - min(step.started for step in steps),
        [
            ComponentTime(name=step.component, seconds=round(step.seconds, 2), cached=step.state == "cached")
            for step in steps
        ],
        best_possible(Path(plan.deployment.data), plan.recipe["data"]["split"]),
    )
    write_whole(run_folder(workdir, run_id) / RESULT_FILE, result.model_dump_json(indent=1))
    if result.pushed_model:
        print(f"Blessed and pushed to {result.pushed_model}", flush=True)
        return 0
    print(f"`tandem gates {run_id} --workdir {workdir}` shows all gates and slices.", flush=True)
    say_why(why_not_pushed(result))
    return NOT_BLESSED


def why_not_pushed(result: RunResult) -> str:
    """One line for whoever looks at a red task."""
    if result.verdict.blessed and result.not_servable is not None:
        reason = f"not servable: {result.not_servable}"
    else:
        reason = "not blessed: " + "; ".join(map(str, result.verdict.failures()))
    return f"{reason}. Nothing was pushed; what is being served stays as it is."


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
