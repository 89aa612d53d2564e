"""The compiled DAG that Airflow's tasks run, as a JSON file with the dependencies of its components.

Airflow parses a DAG file every few seconds and before each task, and importing TFX takes more than 10 s. Therefore a
separate process compiles the DAG, once for each state of the recipe, the schema and Tandem's code. Reading the file
takes milliseconds and needs the standard library only, so Airflow's environment needs no TensorFlow.

`python -m pipeline.runners.airflow.compiled_dag FILE DEPLOYMENT` writes the file.
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
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.beam import BeamOptions, BeamRunner
from pipeline.exit_codes import BAD_INPUT
from pipeline.workdir import (
    ARTIFACTS_FOLDER,
    COMPILED_DAGS_FOLDER,
    LOCK_FILE,
    METADATA_FILE,
    push_destination,
    write_whole,
)

PACKAGES = ("pipeline", "components", "recipe", "serving")
"""Packages whose code determines the compiled DAG."""

_REASON = "tandem: "


class CompileWarning(UserWarning):
    """A warning of the process that compiled the DAG: a deprecated recipe key or an unknown option of Beam."""


class CompileError(Exception):
    """The DAG cannot be compiled; the message is for the author of the recipe or the DAG file."""


@dataclasses.dataclass(frozen=True)
class Deployment:
    """A recipe with the folders and the Beam runner that it runs with. All paths are absolute."""

    schema_dir: str
    """Folder with `recipe.yaml` and `schema.pbtxt`."""
    data: str
    """Folder with the CSVs."""
    workdir: str
    """Folder for artifacts, ML Metadata and runs."""
    serving_dir: str | None = None
    """Push destination; if None, `serving/NAME` in `workdir`."""
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    """`key=value` changes to the recipe and its preset."""
    beam_runner: str = BeamRunner.DIRECT.value
    beam_args: tuple[str, ...] = ()
    """Beam's other pipeline options."""

    @property
    def beam(self) -> BeamOptions:
        """Beam's runner and options."""
        return BeamOptions(BeamRunner(self.beam_runner), self.beam_args)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Deployment:
        """Return a deployment from its JSON, which has lists for tuples."""
        values: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in found.items()}
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class CompiledDag:
    """The compiled DAG of a deployment."""

    path: Path
    deployment: Deployment
    recipe: Mapping[str, Any]
    """The resolved recipe: defaults, preset and overrides included."""
    tasks: Mapping[str, tuple[str, ...]]
    """Components in topological order, each with its upstream components."""
    pipeline: dict[str, Any]
    """TFX's intermediate representation, as the JSON of its proto."""
    warnings: tuple[str, ...] = ()


def read_compiled_dag(path: Path) -> CompiledDag:
    """Read a file that `main` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return CompiledDag(
        path=path,
        deployment=Deployment.of(found["deployment"]),
        recipe=found["recipe"],
        tasks={name: tuple(before) for name, before in found["tasks"].items()},
        pipeline=found["pipeline"],
        warnings=tuple(found.get("warnings", ())),
    )


def compiled_dag_for(deployment: Deployment, python: str) -> CompiledDag:
    """Return the compiled DAG of a deployment; compile it if its recipe, schema or code has changed.

    Issues its warnings each time, as `CompileWarning`.

    Args:
        deployment: Recipe, folders and Beam options.
        python: Python interpreter of an environment with Tandem and TFX.

    Raises:
        CompileError: The recipe, the schema, Beam's options or `python` is invalid.
    """
    path = Path(deployment.workdir, COMPILED_DAGS_FOLDER, f"{_fingerprint(deployment, python)}.json")
    if not path.is_file():
        _compile_in_a_process(deployment, python, path)
    compiled = read_compiled_dag(path)
    for message in compiled.warnings:
        warnings.warn(message, CompileWarning, stacklevel=3)
    return compiled


def print_reason(message: object) -> None:
    """Print why this process fails; the process that started it reads it with `printed_reason`."""
    print(f"{_REASON}{message}\n", flush=True)


def printed_reason(output: str) -> str | None:
    """Return the message that a process printed with `print_reason`, or None."""
    _, found, message = f"\n{output}".rpartition(f"\n{_REASON}")
    # Libraries may print after it.
    return message.partition("\n\n")[0].strip() if found else None


def _fingerprint(deployment: Deployment, python: str) -> str:
    """Return a hash of the files, the code and the environment that the compiled DAG depends on."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(deployment)).encode())
    folder = Path(deployment.schema_dir)
    # Not the names of `recipe.files`: importing the package imports pydantic.
    files = [folder / "recipe.yaml", folder / "schema.pbtxt"]
    if deployment.preset is not None:
        files.append(folder / "presets" / f"{deployment.preset}.yaml")
    code = Path(__file__).resolve().parents[3]
    files += sorted(path for package in PACKAGES for path in (code / package).rglob("*.py"))
    for path in files:
        # The compiler reports a missing file.
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
        "pipeline.runners.airflow.compiled_dag",
        str(path),
        json.dumps(dataclasses.asdict(deployment)),
    ]
    try:
        # Airflow interrupts the parsing of a DAG file after a timeout. The process has its own session, so it
        # finishes, and the next parsing reads its file.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise CompileError(
            f"{python}: cannot be executed ({error.strerror}). Set TANDEM_PYTHON to the Python of an environment with "
            "Tandem and TFX, such as .venv/bin/python of the checkout."
        ) from None
    output, _ = process.communicate()
    if process.returncode != 0:
        raise CompileError(
            printed_reason(output)
            or f"{python}: could not compile the DAG. Set TANDEM_PYTHON to the Python of an environment with Tandem "
            f"and TFX. Last lines of its output:\n{output.strip()[-2000:]}"
        )


def compile_deployment(deployment: Deployment) -> dict[str, Any]:
    """Compile the DAG of a deployment and return the content of its file. Imports TFX.

    Raises:
        BadInput: The recipe, the schema or Beam's options are invalid.
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
            pipeline_root=str(workdir / ARTIFACTS_FOLDER),
            serving_dir=deployment.serving_dir or str(push_destination(workdir, recipe.name)),
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
    """Compile the deployment that the second argument has as JSON, into the file that is the first argument."""
    from recipe import BadInput
    from recipe.errors import DeprecatedKey

    path, deployment = Path(arguments[0]), Deployment.of(json.loads(arguments[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / LOCK_FILE, "w") as lock:
        # Airflow's processes parse the DAG file in parallel; one of them compiles.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_file():
            return 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DeprecatedKey)
            try:
                content = compile_deployment(deployment)
            except BadInput as error:
                print_reason("\n".join([str(error), *_own(caught)]))
                return BAD_INPUT
        write_whole(path, json.dumps(content | {"warnings": _own(caught)}))
    return 0


def _own(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """Return the distinct messages of Tandem's warnings."""
    own = (each for each in caught if each.category.__module__.startswith(("pipeline.", "recipe.")))
    return list(dict.fromkeys(str(each.message) for each in own))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    code = main(sys.argv[1:])
    # Otherwise the garbage collector visits all of TensorFlow's objects at exit, which takes 4 s.
    gc.freeze()
    raise SystemExit(code)
