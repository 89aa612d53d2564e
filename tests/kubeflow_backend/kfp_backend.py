"""Runs a compiled pipeline on this machine as a Kubeflow Pipelines backend would, one container command after another.

What the driver and the launcher do was read from the open-source backend (kubeflow/pipelines, backend/src/v2, at commit
7b70c7b9): how inputs are resolved, what an artifact looks like after its way through ML Metadata, how placeholders are
filled, what becomes of the output file, what a cache key is made of. Where that backend would go on in silence, this
one fails: a placeholder without a value, a missing output, an unknown field.

What differs from a cluster: a container is a process of this machine with an empty working folder, and the pipeline
root is a plain path, which TensorFlow reads and writes as it does gs://.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2 as spec_pb2

State = Literal["succeeded", "cached", "failed", "skipped"]


class BackendError(Exception):
    """The compiled pipeline would not run on a cluster; the message has the reason."""


@dataclasses.dataclass
class Task:
    """What became of one task of a run."""

    name: str
    state: State
    log: str = ""
    exit_code: int | None = None
    attempts: int = 0
    outputs: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    """RuntimeArtifact by name, as the next task gets it."""
    executor_input: Any = dataclasses.field(default=None, repr=False)

    def output(self, name: str) -> Path:
        """Folder of an output."""
        return Path(self.outputs[name].uri)

    def properties(self, name: str) -> dict[str, Any]:
        """What ML Metadata has about an output."""
        return json_format.MessageToDict(self.outputs[name].metadata)


class Backend:
    """A backend with its ML Metadata and its cache, both as small as they can be.

    Attributes:
        root: The pipeline root.
        vertex: Whether it does what Vertex AI does beyond the open-source backend: it runs the hooks before a look into
            the cache, and tells input artifacts' types.
    """

    def __init__(self, root: Path, *, vertex: bool = False, environment: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.vertex = vertex
        self._environment = {**os.environ, **(environment or {})}
        self._ids = itertools.count(1)
        self._cache: dict[str, Task] = {}

    def run(
        self, compiled: Path, parameters: Mapping[str, Any] | None = None, *, retry: bool = False
    ) -> dict[str, Task]:
        """Runs every task whose upstream tasks succeeded.

        Args:
            compiled: The YAML file.
            parameters: Of the run.
            retry: Whether failed containers start again as the retry policies say, without the waiting.

        Returns:
            What became of each task, in the order they ran.

        Raises:
            BackendError: The file is not one that a backend can run.
        """
        spec = load_spec(compiled)
        deployment = load_deployment(spec)
        values = _run_values(spec, parameters or {})
        tasks: dict[str, Task] = {}
        for name in _order(spec):
            task = spec.root.dag.tasks[name]
            if any(tasks[other].state in ("failed", "skipped") for other in task.dependent_tasks):
                tasks[name] = Task(name, "skipped")
                continue
            component = spec.components[task.component_ref.name]
            container = deployment.executors[component.executor_label].container
            inputs = self._inputs(name, task, component, values, tasks)
            tasks[name] = self._run(spec.pipeline_info.name, name, task, component, container, inputs, retry)
        return tasks

    def _run(
        self, pipeline: str, name: str, task: Any, component: Any, container: Any, inputs: Any, retry: bool
    ) -> Task:
        folder = self.root / pipeline / name / str(uuid.uuid4())
        executor_input = spec_pb2.ExecutorInput(inputs=inputs, outputs=_provision(folder, component))
        hook = container.lifecycle.pre_cache_check
        result = Task(name, "failed", executor_input=executor_input)
        if self.vertex and hook.command:
            self._execute(name, hook.command, hook.args, executor_input, result)
            if result.exit_code:
                return result
            driver_output = _read_output(name, executor_input.outputs.output_file)
            for key, value in driver_output.parameter_values.items():
                executor_input.inputs.parameter_values[key].CopyFrom(value)
            _merge(driver_output, executor_input.outputs)
        key = _cache_key(executor_input, task, container)
        if task.caching_options.enable_cache and key in self._cache:
            return dataclasses.replace(self._cache[key], state="cached", log="", attempts=0)
        for _ in range(1 + (task.retry_policy.max_retry_count if retry else 0)):
            result.attempts += 1
            self._execute(name, container.command, container.args, executor_input, result)
            if result.exit_code == 0:
                break
        else:
            return result
        result.state = "succeeded"
        result.outputs = self._publish(name, executor_input)
        if task.caching_options.enable_cache:
            self._cache[key] = result
        return result

    def _execute(self, name: str, command: Sequence[str], args: Sequence[str], executor_input: Any, to: Task) -> None:
        """Runs one container command; stdout and stderr are added to the task's log."""
        filled = [fill_placeholders(name, argument, executor_input) for argument in (*command, *args)]
        if not filled:
            raise BackendError(f"{name}: its container has no command")
        if filled[0] == "python":
            filled[0] = sys.executable
        place = Path(executor_input.outputs.output_file).parent
        working = place / "working"
        working.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                filled, cwd=working, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", check=False,
            )  # fmt: skip
        except OSError as error:
            raise BackendError(f"{name}: its container cannot start: {error}") from error
        to.log += done.stdout
        to.exit_code = done.returncode

    def _inputs(
        self, name: str, task: Any, component: Any, values: Mapping[str, Any], tasks: Mapping[str, Task]
    ) -> Any:
        """As the driver resolves them; every input that the component defines must come from somewhere."""
        inputs = spec_pb2.ExecutorInput.Inputs()
        for key, source in task.inputs.parameters.items():
            kind = source.WhichOneof("kind")
            if kind == "component_input_parameter":
                if source.component_input_parameter not in values:
                    raise BackendError(
                        f"{name}: {key} is {source.component_input_parameter!r}, no parameter of the run"
                    )
                value = values[source.component_input_parameter]
            elif kind == "runtime_value" and source.runtime_value.WhichOneof("value") == "constant":
                value = source.runtime_value.constant
            else:
                raise BackendError(f"{name}: where the parameter {key} comes from is not known: {kind}")
            _check_type(f"{name}: {key}", component.input_definitions.parameters, key, value)
            inputs.parameter_values[key].CopyFrom(value)
        for key in task.inputs.artifacts:
            source = task.inputs.artifacts[key].task_output_artifact
            if source.producer_task not in task.dependent_tasks:
                raise BackendError(f"{name}: {key} comes from {source.producer_task!r}, which it does not wait for")
            given = tasks[source.producer_task].outputs.get(source.output_artifact_key)
            if given is None:
                raise BackendError(f"{name}: {source.producer_task} has no output {source.output_artifact_key!r}")
            artifact = spec_pb2.RuntimeArtifact()
            artifact.CopyFrom(given)
            if not self.vertex:
                # The open-source backend keeps the place and loses the content (metadata/client.go).
                artifact.type.instance_schema = ""
            inputs.artifacts[key].artifacts.append(artifact)
        for what, wanted, given in (
            ("parameter", component.input_definitions.parameters, inputs.parameter_values),
            ("artifact", component.input_definitions.artifacts, inputs.artifacts),
        ):
            missing = sorted(key for key in set(wanted) - set(given) if not wanted[key].is_optional)
            if missing:
                raise BackendError(f"{name}: no value for the {what} {', '.join(missing)}")
        return inputs

    def _publish(self, name: str, executor_input: Any) -> dict[str, Any]:
        """The outputs as ML Metadata gives them to the next task."""
        _merge(_read_output(name, executor_input.outputs.output_file), executor_input.outputs, name)
        outputs = {}
        for key, listed in executor_input.outputs.artifacts.items():
            (artifact,) = listed.artifacts
            if not Path(artifact.uri).exists():
                raise BackendError(f"{name}: the output {key} is not at {artifact.uri}")
            stored = spec_pb2.RuntimeArtifact(name=str(next(self._ids)), uri=artifact.uri, type=artifact.type)
            metadata = {key: _stored(value) for key, value in json_format.MessageToDict(artifact.metadata).items()}
            # What the launcher adds.
            stored.metadata.update({"display_name": key, "store_session_info": "{}", **metadata})
            outputs[key] = stored
        return outputs


def load_spec(compiled: Path) -> Any:
    """The PipelineSpec, held against its proto: an unknown field is an error."""
    document = next(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    try:
        return json_format.ParseDict(document, spec_pb2.PipelineSpec())
    except json_format.ParseError as error:
        raise BackendError(f"{compiled.name} is no PipelineSpec: {error}") from error


def load_deployment(spec: Any) -> Any:
    """How each component is executed; containers only, because nothing else runs on every backend."""
    try:
        deployment = json_format.ParseDict(
            json_format.MessageToDict(spec.deployment_spec), spec_pb2.PipelineDeploymentConfig()
        )
    except json_format.ParseError as error:
        raise BackendError(f"no PipelineDeploymentConfig: {error}") from error
    for name, component in spec.components.items():
        if component.executor_label not in deployment.executors:
            raise BackendError(f"{name}: no executor {component.executor_label!r}")
        kind = deployment.executors[component.executor_label].WhichOneof("spec")
        if kind != "container":
            raise BackendError(f"{name}: the open-source backend has no executor of kind {kind!r}")
    return deployment


def fill_placeholders(name: str, argument: str, executor_input: Any) -> str:
    """As the launcher does; one that is left is an error."""
    places = {"{{$}}": json_format.MessageToJson(executor_input, indent=None)}
    for key, value in executor_input.inputs.parameter_values.items():
        plain = json_format.MessageToDict(value)
        text = plain if isinstance(plain, str) else f"{plain:g}" if isinstance(plain, float) else json.dumps(plain)
        places[f"{{{{$.inputs.parameters['{key}']}}}}"] = text
    for side in ("inputs", "outputs"):
        for key, listed in getattr(executor_input, side).artifacts.items():
            for what in ("uri", "path"):
                places[f"{{{{$.{side}.artifacts['{key}'].{what}}}}}"] = listed.artifacts[0].uri
    left = re.findall(r"{{\$.*?}}", argument)
    unknown = [found for found in left if found not in places]
    if unknown:
        raise BackendError(f"{name}: no value for the placeholder {', '.join(unknown)}")
    for found in left:
        argument = argument.replace(found, places[found])
    return argument


def _run_values(spec: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    declared = spec.root.input_definitions.parameters
    unknown = sorted(set(given) - set(declared))
    if unknown:
        raise BackendError(f"the pipeline has no parameter {', '.join(unknown)}; it has {', '.join(sorted(declared))}")
    values = {}
    for name, parameter in declared.items():
        if name in given:
            values[name] = json_format.ParseDict(given[name], type(parameter.default_value)())
        elif parameter.HasField("default_value"):
            values[name] = parameter.default_value
        else:
            raise BackendError(f"the run has no value for the parameter {name}")
        _check_type(name, declared, name, values[name])
    return values


def _check_type(where: str, declared: Mapping[str, Any], key: str, value: Any) -> None:
    if key not in declared:
        raise BackendError(f"{where} is not a parameter of the component")
    number = (spec_pb2.ParameterType.NUMBER_INTEGER, spec_pb2.ParameterType.NUMBER_DOUBLE)
    kinds = {spec_pb2.ParameterType.STRING: "string_value", **dict.fromkeys(number, "number_value")}
    wanted, found = kinds.get(declared[key].parameter_type), value.WhichOneof("kind")
    if wanted is None or wanted != found:
        raise BackendError(f"{where}: expected {wanted}, got {found}")


def _order(spec: Any) -> list[str]:
    """Task names, each after those that it waits for."""
    tasks = spec.root.dag.tasks
    done: list[str] = []
    while len(done) < len(tasks):
        ready = [name for name in sorted(tasks) if name not in done and set(tasks[name].dependent_tasks) <= set(done)]
        if not ready:
            raise BackendError(f"these tasks depend on each other or on no task: {', '.join(set(tasks) - set(done))}")
        for name in ready:
            if tasks[name].trigger_policy.condition:
                raise BackendError(f"{name}: it has a condition, and this backend evaluates none")
        done += ready
    return done


def _provision(folder: Path, component: Any) -> Any:
    outputs = spec_pb2.ExecutorInput.Outputs(output_file=str(folder / "output_metadata.json"))
    if component.output_definitions.parameters:
        raise BackendError("output parameters are not implemented here")
    for name, definition in component.output_definitions.artifacts.items():
        artifact = spec_pb2.RuntimeArtifact(name=name, uri=str(folder / name), type=definition.artifact_type)
        artifact.metadata.CopyFrom(definition.metadata)
        outputs.artifacts[name].artifacts.append(artifact)
    return outputs


def _read_output(name: str, path: str) -> Any:
    if not Path(path).is_file():
        raise BackendError(f"{name}: its container wrote no output metadata file {path}")
    try:
        return json_format.Parse(Path(path).read_text(), spec_pb2.ExecutorOutput())
    except json_format.ParseError as error:
        raise BackendError(f"{name}: its output metadata file is no ExecutorOutput: {error}") from error


def _merge(output: Any, outputs: Any, complete: str | None = None) -> None:
    """Reads a container's output metadata; if `complete` is the task's name, all outputs must be there."""
    missing = sorted(set(outputs.artifacts) - set(output.artifacts))
    if complete is not None and missing:
        raise BackendError(f"{complete}: its output metadata file lacks {', '.join(missing)}")
    for key, listed in output.artifacts.items():
        for said, artifact in zip(listed.artifacts, outputs.artifacts[key].artifacts, strict=True):
            artifact.uri = said.uri or artifact.uri
            artifact.metadata.update(json_format.MessageToDict(said.metadata))


def _stored(value: Any) -> Any:
    """A value after its way through ML Metadata (metadata/converter.go)."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, list):
        return {"list": value}
    if isinstance(value, dict):
        return {"struct": value}
    if value is None:
        raise BackendError("ML Metadata has no null")
    return value


def _cache_key(executor_input: Any, task: Any, container: Any) -> str:
    """As cacheutils/cache.go: inputs by name of the artifact, parameters, outputs without their place, container."""
    outputs = {
        name: [json_format.MessageToDict(artifact.type) for artifact in listed.artifacts]
        for name, listed in executor_input.outputs.artifacts.items()
    }
    key = {
        "component": task.component_ref.name,
        "artifacts": {
            name: [artifact.name for artifact in listed.artifacts]
            for name, listed in executor_input.inputs.artifacts.items()
        },
        "parameters": {
            name: json_format.MessageToDict(value) for name, value in executor_input.inputs.parameter_values.items()
        },
        "outputs": outputs,
        "container": [container.image, *container.command, *container.args],
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
