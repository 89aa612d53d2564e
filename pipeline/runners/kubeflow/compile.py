"""Compiles the DAG for Kubeflow Pipelines v2: one YAML file for the open-source backend and Vertex AI.

In addition to TFX's compiler, it sets run parameters, resources, retries and caching options, and the command of the
containers (`container.py`), because the open-source backend lacks some features that TFX's containers require.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx import v1 as tfx
from tfx.dsl.components.base import base_driver

from pipeline.beam import DIRECT, BeamOptions
from pipeline.dag import NEVER_CACHED, create_pipeline
from pipeline.runners.kubeflow import container as kubeflow_container
from pipeline.runners.kubeflow.container import DATA_ROOT, OVERRIDES, PUSH_DESTINATION, TRAINING_PARAMETERS
from recipe import BadInput, Recipe
from recipe.orchestration import Resources

COMMAND = ("python", "-m", kubeflow_container.__name__)

# Properties of components that become run parameters: component, property, parameter.
RUN_PARAMETERS = (
    ("InteractionExampleGen", "input_base", DATA_ROOT),
    ("ModelResolver", "push_destination", PUSH_DESTINATION),
    ("Pusher", "push_destination", PUSH_DESTINATION),
)
TRAINING_COMPONENTS = ("Tuner", "Trainer")

# The length limit of an argument on Linux; a container gets all its properties in one. The rest is for paths.
LARGEST_ARGUMENT = 128 * 1024 - 8 * 1024

_SCHEMES = ("gs://", "s3://", "minio://")
_ParameterType = pipeline_spec_pb2.ParameterType


@dataclasses.dataclass(frozen=True)
class Volume:
    """A PersistentVolumeClaim that every container mounts; open-source backend only."""

    claim: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Volume:
        """Parse `CLAIM:/PATH`.

        Raises:
            BadInput: `text` has another format.
        """
        claim, _, path = text.partition(":")
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", claim) or not path.startswith("/"):
            raise BadInput(f"--volume {text}: expected CLAIM:/PATH, such as tandem-data:/mnt/tandem, got {text!r}")
        return cls(claim, path)


class Options(pydantic.BaseModel):
    """Options of the compiled pipeline that are not part of the recipe."""

    image: str
    """Container image of every component, with Tandem."""
    pipeline_root: str
    """Default pipeline root for artifacts, in an object store; a run may set another."""
    data_root: str = ""
    """Default of the run parameter; if empty, each run must set it."""
    push_destination: str = ""
    """Default of the run parameter; if empty, each run must set it."""
    retries: int = 2
    """Number of retries of a failed container."""
    cache: Literal["none", "same-inputs", "same-folder"] = "same-inputs"
    """Caching policy; `same-folder` assumes that a data folder of the same name has the same data."""
    beam: BeamOptions = DIRECT
    """Beam's runner and options, which are arguments of the containers and thereby part of the cache key."""
    volumes: tuple[Volume, ...] = ()


def compile_pipeline(recipe: Recipe, schema: schema_pb2.Schema, options: Options) -> list[dict[str, Any]]:
    """Compile a recipe to YAML documents.

    Args:
        recipe: The recipe.
        schema: The curated schema; it becomes part of the pipeline.
        options: Image, pipeline root and further options.

    Returns:
        The PipelineSpec and, if there are volumes, the platform spec for Kubernetes.

    Raises:
        BadInput: Kubeflow Pipelines cannot run the pipeline with these options.

    Example:
        options = Options(image="registry.example.com/tandem:0.1.0", pipeline_root="gs://bucket/pipelines")
        write_pipeline(compile_pipeline(recipe, schema, options), recipe.description, Path("movielens.yaml"))
    """
    if not options.pipeline_root.startswith(_SCHEMES):
        raise BadInput(
            f"--pipeline-root {options.pipeline_root}: expected a path in an object store that begins with "
            f"{', '.join(_SCHEMES[:-1])} or {_SCHEMES[-1]}, got {options.pipeline_root!r}"
        )
    # Kubeflow allows no underscore in a name.
    named = recipe.model_copy(update={"name": recipe.name.replace("_", "-").rstrip("-")})
    dag = create_pipeline(
        named,
        schema,
        data_root=options.data_root,
        pipeline_root=options.pipeline_root,
        serving_dir=options.push_destination,
        beam_pipeline_args=options.beam.pipeline_args(),
    )
    spec = _compile(dag, options.image)
    spec.default_pipeline_root = options.pipeline_root
    deployment = json_format.ParseDict(
        json_format.MessageToDict(spec.deployment_spec), pipeline_spec_pb2.PipelineDeploymentConfig()
    )
    _add_run_parameters(spec, options)
    _add_training_parameters(spec, recipe)
    for name, task in spec.root.dag.tasks.items():
        if options.retries:
            task.retry_policy.max_retry_count = options.retries
            task.retry_policy.backoff_duration.FromSeconds(30)
            task.retry_policy.backoff_factor = 2
        task.caching_options.enable_cache = name not in _uncached(dag, options)
        container = deployment.executors[spec.components[name].executor_label].container
        _refresh_input_definitions(container, spec.components[name])
        if name in recipe.resources:
            _set_resources(container.resources, recipe.resources[name])
    spec.deployment_spec.Clear()
    spec.deployment_spec.update(json_format.MessageToDict(deployment))
    _check_sizes(spec)
    documents = [json_format.MessageToDict(spec)]
    if options.volumes:
        documents.append(_platform(deployment, options.volumes))
    return documents


def write_pipeline(documents: Sequence[Mapping[str, Any]], description: str, path: Path) -> None:
    """Write the documents with a header that the Kubeflow UI shows, `description` included."""
    spec = documents[0]
    header = ["# PIPELINE DEFINITION", f"# Name: {spec['pipelineInfo']['name']}"]
    if description:
        header.append(f"# Description: {' '.join(description.split())}")
    header.append("# Inputs:")
    for name, parameter in sorted(spec["root"]["inputDefinitions"]["parameters"].items()):
        kind = _PYTHON_TYPES[parameter["parameterType"]]
        default = f" [Default: {kind(parameter['defaultValue'])!r}]" if "defaultValue" in parameter else ""
        header.append(f"#    {name}: {kind.__name__}{default}")
    body = yaml.safe_dump_all(documents, sort_keys=True, allow_unicode=True, width=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(header) + "\n" + body, encoding="utf-8")


_PYTHON_TYPES: dict[str, type] = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": float}


def _compile(dag: tfx.dsl.Pipeline, image: str) -> pipeline_spec_pb2.PipelineSpec:
    config = tfx.orchestration.experimental.KubeflowV2DagRunnerConfig(
        default_image=image, default_commands=list(COMMAND), use_pipeline_spec_2_1=True
    )
    job = tfx.orchestration.experimental.KubeflowV2DagRunner(config=config).run(dag, write_out=False)
    return json_format.ParseDict(job["pipelineSpec"], pipeline_spec_pb2.PipelineSpec())


def _add_run_parameters(spec: pipeline_spec_pb2.PipelineSpec, options: Options) -> None:
    """Replace the constants of the data root and the push destination by run parameters."""
    defaults = {DATA_ROOT: options.data_root, PUSH_DESTINATION: options.push_destination}
    descriptions = {
        DATA_ROOT: "Folder with the data: gs://… or a path on a volume.",
        PUSH_DESTINATION: "Push destination: gs://… or a path on a volume.",
    }
    for component, name, parameter in RUN_PARAMETERS:
        task = spec.root.dag.tasks[component]
        task.inputs.parameters[name].Clear()
        task.inputs.parameters[name].component_input_parameter = parameter
        declared = spec.root.input_definitions.parameters[parameter]
        declared.parameter_type = _ParameterType.STRING
        declared.description = descriptions[parameter]
        if defaults[parameter]:
            declared.default_value.string_value = defaults[parameter]


def _add_training_parameters(spec: pipeline_spec_pb2.PipelineSpec, recipe: Recipe) -> None:
    """Add run parameters for hyperparameters; the defaults are the recipe's values."""
    parameters = {name: (key, kubeflow_container.value_of(recipe, key)) for name, key in TRAINING_PARAMETERS.items()}
    for component in TRAINING_COMPONENTS:
        if component not in spec.root.dag.tasks:
            continue
        for name, (key, default) in parameters.items():
            whole = isinstance(default, int)
            declared = spec.root.input_definitions.parameters[name]
            declared.parameter_type = _ParameterType.NUMBER_INTEGER if whole else _ParameterType.NUMBER_DOUBLE
            declared.default_value.number_value = default
            declared.description = f"{key} of the recipe"
        declared = spec.root.input_definitions.parameters[OVERRIDES]
        declared.parameter_type = _ParameterType.STRING
        declared.default_value.string_value = "{}"
        declared.description = (
            'Other keys of the recipe\'s model and training as JSON: {"training.optimizer.ema": 0.98}'
        )
        for name in (*parameters, OVERRIDES):
            kind = spec.root.input_definitions.parameters[name].parameter_type
            spec.components[component].input_definitions.parameters[name].parameter_type = kind
            spec.root.dag.tasks[component].inputs.parameters[name].component_input_parameter = name


def _uncached(dag: tfx.dsl.Pipeline, options: Options) -> set[str]:
    """Return the components that run every time.

    Drivers add to the cache key (the fingerprint of the data, the latest version), and the open-source backend runs no
    drivers.
    """
    if options.cache == "none":
        return {component.id for component in dag.components}
    driven = {component.id for component in dag.components if component.driver_class != base_driver.BaseDriver}
    if options.cache == "same-folder":
        driven.discard("InteractionExampleGen")
    return {*driven, *NEVER_CACHED}


def _refresh_input_definitions(container: Any, component: pipeline_spec_pb2.ComponentSpec) -> None:
    """Update the argument that has the input definitions, to which parameters were added."""
    arguments = list(container.args)
    place = arguments.index("--json_serialized_inputs_spec_args") + 1
    arguments[place] = json_format.MessageToJson(component.input_definitions, sort_keys=True, indent=None)
    del container.args[:]
    container.args.extend(arguments)


def _set_resources(spec: Any, resources: Resources) -> None:
    """Set requests and limits to the same values: Kubernetes evicts such containers last."""
    if resources.cpu is not None:
        for name in ("cpu_request", "cpu_limit"):
            setattr(spec, name, resources.cpu)
            setattr(spec, f"resource_{name}", f"{resources.cpu:g}")
    if resources.memory is not None:
        for name in ("memory_request", "memory_limit"):
            setattr(spec, name, _gigabytes(resources.memory))
            setattr(spec, f"resource_{name}", resources.memory)
    if resources.gpu:
        accelerator = spec.accelerator
        accelerator.type = accelerator.resource_type = resources.gpu_type
        accelerator.count, accelerator.resource_count = resources.gpu, str(resources.gpu)


def _gigabytes(memory: str) -> float:
    """Convert to 10^9 bytes, the unit of older backends and Vertex AI."""
    units = {"M": 1e6, "G": 1e9, "T": 1e12, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    number, unit = re.fullmatch(r"(\d+)(\D+)", memory).groups()  # type: ignore[union-attr]
    return float(int(number) * units[unit] / 1e9)


def _check_sizes(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    for name, task in sorted(spec.root.dag.tasks.items()):
        size = len(json_format.MessageToJson(task.inputs, indent=None))
        if size > LARGEST_ARGUMENT:
            raise BadInput(
                f"{name}: expected at most {LARGEST_ARGUMENT:,} bytes of properties, the limit of a container's "
                f"argument, got {size:,}. Shorten the string_domain lists of schema.pbtxt"
            )


def _platform(deployment: Any, volumes: Sequence[Volume]) -> dict[str, Any]:
    """Return the platform spec for Kubernetes, as the Kubeflow SDK writes it."""
    mounts = [
        {
            # Older backends read `constant`.
            "constant": volume.claim,
            "mountPath": volume.path,
            "pvcNameParameter": {"runtimeValue": {"constant": volume.claim}},
        }
        for volume in volumes
    ]
    executors = {label: {"pvcMount": mounts} for label in sorted(deployment.executors)}
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}
