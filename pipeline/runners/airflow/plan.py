"""What Airflow runs, as a file: the compiled DAG, and how its tasks depend on each other.

Airflow reads a DAG file anew every few seconds and before each task, and importing TFX takes over ten. So the DAG is
compiled in a process of its own, once for each state of the recipe, the schema and Tandem's code; reading a plan takes
milliseconds and only the standard library. That also lets Airflow live in an environment without TensorFlow.

`python -m pipeline.runners.airflow.plan FILE DEPLOYMENT` makes a plan.
"""

from __future__ import annotations

import dataclasses
import fcntl
import gc
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.beam import BeamOptions, BeamRunner
from pipeline.exit_codes import BAD_INPUT
from pipeline.workdir import METADATA_FILE, write_whole

PLANS_FOLDER = "plans"
PACKAGES = ("pipeline", "components", "recipe", "serving")
"""Whose code decides what a compiled DAG is, and is asked for by its tasks."""

_MESSAGE = "tandem: "


class PlanError(Exception):
    """The DAG cannot be made; the text is for the person who wrote the recipe or the DAG file."""


@dataclasses.dataclass(frozen=True)
class Deployment:
    """A recipe, and where it runs. All paths are absolute."""

    schema_dir: str
    """Folder with `recipe.yaml` and `schema.pbtxt`."""
    data: str
    """Folder with the CSVs."""
    workdir: str
    """Folder for artifacts, ML Metadata and runs."""
    serving_dir: str | None = None
    """Folder that TensorFlow Serving watches; None for `serving/NAME` in `workdir`."""
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    """`key=value` changes to the recipe and its preset."""
    beam_runner: str = BeamRunner.DIRECT.value
    beam_args: tuple[str, ...] = ()
    """Options of Beam besides the engine."""

    @property
    def beam(self) -> BeamOptions:
        """Where Beam's part is computed."""
        return BeamOptions(BeamRunner(self.beam_runner), self.beam_args)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Deployment:
        """A deployment from its JSON, which has lists for tuples."""
        values: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in found.items()}
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A compiled DAG."""

    path: Path
    deployment: Deployment
    recipe: Mapping[str, Any]
    """As `recipe.json` of a run has it: defaults, preset and overrides included."""
    tasks: Mapping[str, tuple[str, ...]]
    """Names of the components in an order in which they can run; each with those that must be done before it."""
    pipeline: dict[str, Any]
    """TFX's intermediate representation, as the JSON of its proto."""


def read_plan(path: Path) -> Plan:
    """Reads what `main` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return Plan(
        path=path,
        deployment=Deployment.of(found["deployment"]),
        recipe=found["recipe"],
        tasks={name: tuple(before) for name, before in found["tasks"].items()},
        pipeline=found["pipeline"],
    )


def plan_for(deployment: Deployment, python: str) -> Plan:
    """The plan of a deployment as it stands now; compiled where nobody has done it yet.

    Args:
        deployment: What to run.
        python: An interpreter that has Tandem with TFX.

    Raises:
        PlanError: The recipe, the schema or Beam's options cannot be used, or `python` cannot.
    """
    path = Path(deployment.workdir, PLANS_FOLDER, f"{_fingerprint(deployment, python)}.json")
    if not path.is_file():
        _compile_in_a_process(deployment, python, path)
    return read_plan(path)


def say_why(message: object) -> None:
    """Prints why a process will end without success, for `last_words` in the one that started it."""
    print(f"{_MESSAGE}{message}\n", flush=True)


def last_words(output: str) -> str | None:
    """What a process said with `say_why`; None where it ended without a word."""
    _, found, message = f"\n{output}".rpartition(f"\n{_MESSAGE}")
    # Libraries may have printed something after it.
    return message.partition("\n\n")[0].strip() if found else None


def _fingerprint(deployment: Deployment, python: str) -> str:
    """What the compiled DAG depends on, as one hash: files, code and the environment it is compiled in."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(deployment)).encode())
    folder = Path(deployment.schema_dir)
    files = [folder / "recipe.yaml", folder / "schema.pbtxt"]
    if deployment.preset is not None:
        files.append(folder / "presets" / f"{deployment.preset}.yaml")
    code = Path(__file__).resolve().parents[3]
    files += sorted(path for package in PACKAGES for path in (code / package).rglob("*.py"))
    for path in files:
        # A file that is missing is for the compiler to complain about.
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"\n{path} {len(content)}\n".encode() + content)
    environment = Path(python)
    made = environment.stat().st_mtime_ns if environment.exists() else 0
    digest.update(f"{python} {made}".encode())
    return digest.hexdigest()[:16]


def _compile_in_a_process(deployment: Deployment, python: str, path: Path) -> None:
    command = [
        python,
        "-P",
        "-m",
        "pipeline.runners.airflow.plan",
        str(path),
        json.dumps(dataclasses.asdict(deployment)),
    ]
    try:
        # Airflow interrupts a DAG file that takes too long. The process is left to finish then, in a session of its
        # own, and the next reading finds the plan.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise PlanError(
            f"{python} cannot be run ({error.strerror}). TANDEM_PYTHON names the Python that has Tandem with TFX, such "
            "as .venv/bin/python of its checkout."
        ) from None
    output, _ = process.communicate()
    if process.returncode != 0:
        raise PlanError(
            last_words(output)
            or f"{python} could not compile the DAG. TANDEM_PYTHON names the Python that has Tandem with TFX. "
            f"Its last words:\n{output.strip()[-2000:]}"
        )


def compile_plan(deployment: Deployment) -> dict[str, Any]:
    """The plan of a deployment, as the file has it; imports TFX.

    Raises:
        BadInput: The recipe, the schema or Beam's options cannot be used.
    """
    from google.protobuf import json_format
    from tfx.orchestration import metadata

    from pipeline.dag import compile_dag, create_pipeline
    from recipe import load_recipe, load_schema

    schema_dir, workdir = Path(deployment.schema_dir), Path(deployment.workdir)
    deployment.beam.check()
    recipe = load_recipe(schema_dir, deployment.overrides, deployment.preset)
    compiled = compile_dag(
        create_pipeline(
            recipe,
            load_schema(schema_dir, recipe),
            data_root=deployment.data,
            pipeline_root=str(workdir / "artifacts"),
            serving_dir=deployment.serving_dir or str(workdir / "serving" / recipe.name),
            metadata=metadata.sqlite_metadata_connection_config(str(workdir / METADATA_FILE)),
            beam_pipeline_args=deployment.beam.pipeline_args(),
        )
    )
    nodes = [node.pipeline_node for node in compiled.nodes]
    return {
        "deployment": dataclasses.asdict(deployment),
        "recipe": recipe.model_dump(mode="json"),
        "tasks": {node.node_info.id: list(node.upstream_nodes) for node in nodes},
        "pipeline": json_format.MessageToDict(compiled, preserving_proto_field_name=True),
    }


def main(arguments: list[str]) -> int:
    """Writes the plan of a deployment, given as JSON, to a file."""
    from recipe import BadInput

    path, deployment = Path(arguments[0]), Deployment.of(json.loads(arguments[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / ".lock", "w") as lock:
        # Airflow's processes read the DAG file side by side; one of them compiles.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_file():
            return 0
        try:
            plan = compile_plan(deployment)
        except BadInput as error:
            say_why(error)
            return BAD_INPUT
        write_whole(path, json.dumps(plan))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    code = main(sys.argv[1:])
    # Otherwise Python goes through all of TensorFlow's objects once more at its end, which takes four seconds.
    gc.freeze()
    raise SystemExit(code)
