"""The entry point of every container: its changes to TFX's own, and its errors for invalid parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compiled_recipes import ROOT
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from kfp_backend import load_spec

from recipe import BadInput, load_recipe
from recipe.trainer import TrainerRecipe

Compile = Callable[..., Path]
Prepared = Callable[..., Any]


@pytest.fixture
def prepared(compiled: Compile) -> Prepared:
    """An executor input of the Trainer, with parameters as a run could give them, after the entry point's changes."""
    from pipeline.runners.kubeflow import container as kubeflow_container

    def run(**parameters: Any) -> Any:
        spec = load_spec(compiled("books"))
        task, definitions = spec.root.dag.tasks["Trainer"], spec.components["Trainer"].input_definitions
        executor_input = pipeline_spec_pb2.ExecutorInput()
        for name, source in task.inputs.parameters.items():
            default = spec.root.input_definitions.parameters[name].default_value
            constant = source.WhichOneof("kind") == "runtime_value"
            executor_input.inputs.parameter_values[name].CopyFrom(
                source.runtime_value.constant if constant else default
            )
        for name, value in parameters.items():
            json_format.ParseDict(value, executor_input.inputs.parameter_values[name])
        kubeflow_container.prepare(executor_input, definitions)
        return executor_input

    return run


def trained(executor_input: Any) -> TrainerRecipe:
    """The recipe that the Trainer gets."""
    config = json.loads(executor_input.inputs.parameter_values["custom_config"].string_value)
    return TrainerRecipe.model_validate_json(config["recipe"])


def test_a_run_without_settings_trains_the_recipe_as_it_was_compiled(prepared: Prepared) -> None:
    assert trained(prepared()) == load_recipe(ROOT / "schemas" / "books").for_trainer()


def test_settings_of_the_run_reach_the_trainer(prepared: Prepared) -> None:
    others = json.dumps({"training.optimizer.ema": 0.98, "model.query_tower.dropout": 0.5})
    recipe = trained(prepared(epochs=3, learning_rate=0.01, embedding_dim=16, seed=7, recipe_overrides=others))
    assert (recipe.training.epochs, recipe.training.seed, recipe.training.batch_size) == (3, 7, 32)
    assert (recipe.training.optimizer.learning_rate, recipe.training.optimizer.ema) == (0.01, 0.98)
    assert (recipe.model.embedding_dim, recipe.model.query_tower.dropout) == (16, 0.5)


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"epochs": 0}, r"training.epochs"),
        (
            {"recipe_overrides": "epochs=3"},
            r"expected a JSON object .*\"training.optimizer.ema\": 0.98\}, got 'epochs=3'",
        ),
        ({"recipe_overrides": "[3]"}, r"expected a JSON object .*, got '\[3\]'"),
        (
            {"recipe_overrides": '{"gates.0.at_least": 0}'},
            r"expected keys of model or training, got 'gates.0.at_least'.*compile it again with --set",
        ),
        ({"recipe_overrides": '{"training.epoch": 3}'}, r"training.epoch"),
        ({"recipe_overrides": '{"training.optimizer.kind": "sgd"}'}, r"training.optimizer.kind"),
    ],
)
def test_a_setting_that_no_recipe_could_have_is_told(
    prepared: Prepared, parameters: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(BadInput, match=complaint):
        prepared(**parameters)


def test_types_that_the_backend_keeps_to_itself_come_from_the_definition(compiled: Compile) -> None:
    from pipeline.runners.kubeflow import container as kubeflow_container

    definitions = load_spec(compiled("books")).components["StatisticsGen"].input_definitions
    executor_input = pipeline_spec_pb2.ExecutorInput()
    for schema in ("", "title: tfx.Model\n"):
        executor_input.inputs.artifacts["examples"].artifacts.add().type.instance_schema = schema
    kubeflow_container.prepare(executor_input, definitions)
    schemas = [each.type.instance_schema for each in executor_input.inputs.artifacts["examples"].artifacts]
    assert schemas[0].startswith("title: tfx.Examples")
    assert schemas[1] == "title: tfx.Model\n", "a type that the backend sets is kept"


@pytest.fixture
def import_schema(compiled: Compile, tmp_path: Path) -> Callable[[str], tuple[int, Path]]:
    """Runs ImportSchemaGen's container for an output at a URI; gives the exit code and the output file."""
    from pipeline.runners.kubeflow import container as kubeflow_container

    def run(uri: str) -> tuple[int, Path]:
        spec = load_spec(compiled("books"))
        component = spec.components["ImportSchemaGen"]
        container = spec.deployment_spec["executors"][component.executor_label]["container"]
        outputs = tmp_path / "task" / "output_metadata.json"
        executor_input = pipeline_spec_pb2.ExecutorInput()
        for name, source in spec.root.dag.tasks["ImportSchemaGen"].inputs.parameters.items():
            executor_input.inputs.parameter_values[name].CopyFrom(source.runtime_value.constant)
        definition = component.output_definitions.artifacts["schema"]
        executor_input.outputs.artifacts["schema"].artifacts.add(uri=uri, type=definition.artifact_type)
        executor_input.outputs.output_file = str(outputs)
        filled = json_format.MessageToJson(executor_input)
        return kubeflow_container.run([argument.replace("{{$}}", filled) for argument in container["args"]]), outputs

    return run


@pytest.mark.parametrize("scheme", ["s3://", "minio://"])
def test_what_tensorflow_cannot_reach_is_written_where_the_launcher_takes_it_from(
    import_schema: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    from pipeline.runners.kubeflow import container as kubeflow_container

    assert kubeflow_container.LOCAL_FOLDERS == {"s3://": "/s3/", "minio://": "/minio/"}, "as launcher_v2.go has it"
    monkeypatch.setitem(kubeflow_container.LOCAL_FOLDERS, scheme, f"{tmp_path}/mounted/")
    uri = f"{scheme}bucket/runs/ImportSchemaGen/1/schema"
    code, outputs = import_schema(uri)
    assert code == 0
    assert (tmp_path / "mounted/bucket/runs/ImportSchemaGen/1/schema/schema.pbtxt").is_file()
    assert json.loads(outputs.read_text())["artifacts"]["schema"]["artifacts"][0]["uri"] == uri


def test_what_tensorflow_can_reach_is_written_there(import_schema: Any, tmp_path: Path) -> None:
    code, _ = import_schema(str(tmp_path / "root" / "schema"))
    assert code == 0
    assert (tmp_path / "root" / "schema" / "schema.pbtxt").is_file()


@pytest.mark.parametrize(("component", "name", "parameter"), [
    ("InteractionExampleGen", "input_base", "data_root"), ("ModelResolver", "push_destination", "push_destination"),
    ("Pusher", "push_destination", "push_destination"),
])  # fmt: skip
@pytest.mark.parametrize("folder", ["s3://bucket/serving", "minio://bucket/serving", ""])
def test_a_folder_that_only_the_launcher_could_reach_is_refused(
    component: str, name: str, parameter: str, folder: str
) -> None:
    """A model pushed to a local folder of the container would be gone with it, and the run would be green."""
    from pipeline.runners.kubeflow import container as kubeflow_container

    executor_input = pipeline_spec_pb2.ExecutorInput()
    executor_input.inputs.parameter_values[name].string_value = folder
    with pytest.raises(BadInput, match=rf"{parameter}: expected gs://.*--volume CLAIM:/PATH\), got '{folder}'"):
        kubeflow_container.prepare(executor_input, pipeline_spec_pb2.ComponentInputsSpec())
