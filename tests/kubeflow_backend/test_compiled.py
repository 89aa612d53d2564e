"""The compiled pipeline: the DAG of the local runner, as a file that the Kubeflow SDK and backend understand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from compiled_recipes import OPTIONS, ROOT
from google.protobuf import json_format
from kfp_backend import BackendError, load_deployment, load_spec

from pipeline.beam import BeamOptions, BeamRunner
from recipe import BadInput, load_recipe, load_schema

Compile = Callable[..., Path]

TUNER = 'tuner={"search": {"training.optimizer.learning_rate": {"low": 0.001, "high": 0.01}}, "objective": {"rmse": 1}}'
RECIPES = {"books": ("books",), "hm": ("hm",), "olist": ("olist",), "movielens": ("movielens",),
           "with a tuner": ("books", TUNER)}  # fmt: skip
TRAINING = {"epochs", "batch_size", "learning_rate", "embedding_dim", "seed", "recipe_overrides"}


def local_nodes(name: str, *overrides: str) -> dict[str, Any]:
    """The pipeline as the local runner compiles it."""
    from tfx.dsl.compiler import compiler

    from pipeline.beam import DIRECT
    from pipeline.dag import create_pipeline

    recipe = load_recipe(ROOT / "schemas" / name, overrides)
    dag = create_pipeline(
        recipe,
        load_schema(ROOT / "schemas" / name, recipe),
        data_root=OPTIONS["data_root"],
        pipeline_root="artifacts",
        serving_dir=OPTIONS["push_destination"],
        beam_pipeline_args=DIRECT.pipeline_args(),
    )
    return {node.pipeline_node.node_info.id: node.pipeline_node for node in compiler.Compiler().compile(dag).nodes}


def local_edges(node: Any) -> dict[str, tuple[str, str]]:
    found = {}
    for key, spec in node.inputs.inputs.items():
        (channel,) = spec.channels
        found[key] = (channel.producer_node_query.id, channel.output_key)
    return found


def local_properties(node: Any) -> dict[str, Any]:
    values = {name: value.field_value for name, value in node.parameters.parameters.items()}
    return {name: getattr(value, value.WhichOneof("value")) for name, value in values.items()}


def properties(spec: Any, task: Any) -> dict[str, Any]:
    """Properties with the defaults of the run's parameters filled in."""
    found = {}
    for name, source in task.inputs.parameters.items():
        if source.WhichOneof("kind") == "component_input_parameter":
            value = spec.root.input_definitions.parameters[source.component_input_parameter].default_value
        else:
            value = source.runtime_value.constant
        found[name] = json_format.MessageToDict(value)
    return found


@pytest.mark.parametrize("case", RECIPES)
def test_components_edges_and_properties_are_those_of_the_local_pipeline(compiled: Compile, case: str) -> None:
    spec, nodes = load_spec(compiled(*RECIPES[case])), local_nodes(*RECIPES[case])
    assert set(spec.root.dag.tasks) == set(spec.components) == set(nodes)
    for name, node in nodes.items():
        task = spec.root.dag.tasks[name]
        edges = {
            key: (source.task_output_artifact.producer_task, source.task_output_artifact.output_artifact_key)
            for key, source in task.inputs.artifacts.items()
        }
        assert edges == local_edges(node), name
        assert set(task.dependent_tasks) == set(node.upstream_nodes), name
        assert set(spec.components[name].output_definitions.artifacts) == set(node.outputs.outputs), name
        found, wanted = properties(spec, task), local_properties(node)
        if name == "Pusher":
            # A run names a folder; its container makes the proto that TFX's Pusher wants.
            destination = json.loads(wanted.pop("push_destination"))
            assert found.pop("push_destination") == destination["filesystem"]["base_directory"]
        extra = set(found) - set(wanted)
        assert extra == (TRAINING if name in ("Trainer", "Tuner") else set()), name
        assert {key: value for key, value in found.items() if key not in extra} == wanted, name


def test_the_sdk_loads_it_with_the_parameters_of_a_run(compiled: Compile) -> None:
    from kfp import components

    loaded = components.load_component_from_file(str(compiled("books", data_root="", push_destination="")))
    assert loaded.name == "books"
    inputs = {name: (spec.type, spec.default) for name, spec in loaded.component_spec.inputs.items()}
    assert inputs == {
        "data_root": ("String", None),
        "push_destination": ("String", None),
        "epochs": ("Integer", 20),
        "batch_size": ("Integer", 32),
        "learning_rate": ("Float", 0.001),
        "embedding_dim": ("Integer", 64),
        "seed": ("Integer", 0),
        "recipe_overrides": ("String", "{}"),
    }


def test_the_header_tells_people_what_a_run_takes(compiled: Compile) -> None:
    text = compiled("books", data_root="").read_text()
    assert text.startswith("# PIPELINE DEFINITION\n# Name: books\n# Description: Book ratings of an app")
    assert "#    data_root: str\n" in text
    assert "#    epochs: int [Default: 20]\n" in text


def test_everything_is_a_container_of_the_image_that_any_backend_can_run(compiled: Compile) -> None:
    spec = load_spec(compiled("books"))
    deployment = load_deployment(spec)
    assert spec.default_pipeline_root == "gs://bucket/root"
    assert len(deployment.executors) == len(spec.components)
    for component in spec.components.values():
        container = deployment.executors[component.executor_label].container
        assert container.image == "registry/tandem:1"
        assert list(container.command) == ["python", "-m", "pipeline.runners.kubeflow.container"]
        # The container learns types from it, those of the run's parameters included.
        definitions = container.args[list(container.args).index("--json_serialized_inputs_spec_args") + 1]
        assert json.loads(definitions) == json_format.MessageToDict(component.input_definitions)


def test_a_component_asks_for_what_the_recipe_says_and_others_for_nothing(compiled: Compile) -> None:
    asked = ('resources={"Trainer": {"cpu": 4, "memory": "16Gi", "gpu": 1}, "InteractionExampleGen": {"cpu": 0.5}}',)
    deployment = load_deployment(load_spec(compiled("books", *asked)))
    found = {
        name.removesuffix("_executor"): json_format.MessageToDict(executor.container.resources)
        for name, executor in deployment.executors.items()
        if executor.container.HasField("resources")
    }
    # Numbers for older backends and Vertex AI (memory in 10⁹ bytes), text for newer ones.
    assert found == {
        "Trainer": {
            **{"cpuRequest": 4, "cpuLimit": 4, "resourceCpuRequest": "4", "resourceCpuLimit": "4"},
            **{"memoryRequest": pytest.approx(17.18, abs=0.01), "memoryLimit": pytest.approx(17.18, abs=0.01)},
            **{"resourceMemoryRequest": "16Gi", "resourceMemoryLimit": "16Gi"},
            "accelerator": {
                "type": "nvidia.com/gpu", "count": "1", "resourceType": "nvidia.com/gpu", "resourceCount": "1"
            },
        },
        "InteractionExampleGen": {
            "cpuRequest": 0.5, "cpuLimit": 0.5, "resourceCpuRequest": "0.5", "resourceCpuLimit": "0.5"
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ('resources={"Trainee": {"cpu": 4}}', "Trainee"),
        ('resources={"Trainer": {"memory": "16 gigabytes"}}', "resources.Trainer.memory"),
        ('resources={"Trainer": {"gpu": -1}}', "resources.Trainer.gpu"),
    ],
)
def test_resources_that_no_cluster_understands_are_an_error_of_the_recipe(override: str, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        load_recipe(ROOT / "schemas" / "books", (override,))


def test_failed_containers_are_started_again_as_often_as_asked(compiled: Compile) -> None:
    def policies(path: Path) -> list[tuple[int, int, float]]:
        tasks = [task.retry_policy for task in load_spec(path).root.dag.tasks.values()]
        return [(each.max_retry_count, each.backoff_duration.seconds, each.backoff_factor) for each in tasks]

    assert set(policies(compiled("books", retries=3))) == {(3, 30, 2.0)}
    assert set(policies(compiled("books", retries=0))) == {(0, 0, 0.0)}


@pytest.mark.parametrize(
    ("cache", "uncached"),
    [
        ("same-inputs", {"InteractionExampleGen", "ModelResolver", "Pusher"}),
        ("same-folder", {"ModelResolver", "Pusher"}),
        ("none", None),
    ],
)
def test_what_a_driver_would_find_out_is_never_cached_where_no_driver_runs(
    compiled: Compile, cache: str, uncached: set[str] | None
) -> None:
    """New data under an old name, and a new version in the serving folder."""
    tasks = load_spec(compiled("books", cache=cache)).root.dag.tasks
    found = {name for name, task in tasks.items() if not task.caching_options.enable_cache}
    assert found == (set(tasks) if uncached is None else uncached)


def test_every_container_gets_the_volumes(compiled: Compile) -> None:
    from kfp import components

    from pipeline.runners.kubeflow.compile import Volume

    path = compiled("books", volumes=(Volume.parse("tandem-data:/mnt/tandem"),))
    spec, platform = yaml.safe_load_all(path.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(spec["deploymentSpec"]["executors"])
    for executor in executors.values():
        (mount,) = executor["pvcMount"]
        assert (mount["constant"], mount["mountPath"]) == ("tandem-data", "/mnt/tandem")
    assert components.load_component_from_file(str(path)).platform_spec.platforms["kubernetes"].deployment_spec


@pytest.mark.parametrize("text", ["/mnt/tandem", "claim", "claim:mnt", "Claim:/mnt", ":/mnt"])
def test_a_volume_is_a_claim_and_a_path(text: str) -> None:
    from pipeline.runners.kubeflow.compile import Volume

    with pytest.raises(BadInput, match="expected CLAIM:/PATH"):
        Volume.parse(text)


def test_artifacts_need_an_object_store(compiled: Compile) -> None:
    with pytest.raises(BadInput, match=r"--pipeline-root /mnt/root: .*gs://, s3:// or minio://"):
        compiled("books", pipeline_root="/mnt/root")


def test_a_name_with_an_underscore_becomes_one_that_kubeflow_allows(compiled: Compile) -> None:
    assert load_spec(compiled("books", "name=book_shop_")).pipeline_info.name == "book-shop"


def test_a_schema_that_fits_no_command_line_is_refused_before_a_cluster_does() -> None:
    from pipeline.runners.kubeflow.compile import Options, compile_pipeline

    recipe = load_recipe(ROOT / "schemas" / "books")
    schema = load_schema(ROOT / "schemas" / "books", recipe)
    schema.feature[0].string_domain.value.extend(f"user {number:08d}" for number in range(10_000))
    with pytest.raises(BadInput, match=r"ImportSchemaGen: expected at most 122,880 .* got \d{3},\d{3}.*string_domain"):
        compile_pipeline(recipe, schema, Options(**OPTIONS))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--cache", "sometimes"), "--cache: expected none, same-inputs or same-folder, got 'sometimes'"),
        (("--set", "training.epoch=3"), "did you mean 'epochs'"),
    ],
)
def test_the_command_refuses_what_it_cannot_compile_before_tensorflow_starts(
    tandem: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    path = tmp_path / "pipeline.yaml"
    given = ("--image", "registry/tandem:1", "--pipeline-root", "gs://bucket/root", "--out", path)
    outcome = tandem("compile", "kubeflow", "schemas/books", *given, *arguments)
    assert outcome.code == 2
    assert complaint in outcome.stderr and outcome.stderr.startswith("tandem: ")
    assert not path.exists()


def test_compiling_twice_gives_the_same_file(compiled: Compile) -> None:
    assert compiled("books").read_text() == compiled("books").read_text()


def test_an_executor_that_is_no_container_would_not_run(compiled: Compile) -> None:
    """What TFX's own Resolver compiles to."""
    spec = load_spec(compiled("books"))
    deployment = json_format.MessageToDict(spec.deployment_spec)
    deployment["executors"]["ModelResolver_executor"] = {"resolver": {}}
    spec.deployment_spec.Clear()
    spec.deployment_spec.update(deployment)
    with pytest.raises(BackendError, match=r"ModelResolver: .* 'resolver'"):
        load_deployment(spec)


def test_beams_options_are_arguments_of_the_containers(compiled: Compile) -> None:
    """Of all: what a container does not know itself goes to Beam, where its component has any."""
    beam = BeamOptions(BeamRunner.FLINK, ("--job_endpoint=flink:8099", "--environment_type=LOOPBACK"))
    spec = load_spec(compiled("books", beam=beam))
    deployment = load_deployment(spec)
    for name in ("InteractionExampleGen", "StatisticsGen", "Transform", "Evaluator"):
        container = deployment.executors[spec.components[name].executor_label].container
        assert tuple(container.args[-4:]) == beam.pipeline_args(), name
