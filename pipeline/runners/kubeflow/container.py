"""Entry point of every container of a compiled Kubeflow pipeline; it wraps TFX's executor entry point.

`python -m pipeline.runners.kubeflow.container` takes the arguments of TFX's
`tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor` and passes them on after these changes:

- The open-source backend does not set the types of input artifacts (github.com/tensorflow/tfx/issues/7768); they are
  taken from the component's definition, which is an argument.
- It does not run ExampleGen's driver, which Vertex AI runs before it queries its cache; the driver runs here.
- TensorFlow cannot read s3:// and minio://; the launcher mounts such artifacts as local folders.
- Run parameters override the recipe in Tuner and Trainer.
- If no model was pushed, the run fails, and the last lines of the log are the reasons: a run that succeeds while the
  served model is unchanged would not be noticed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pydantic
from absl import logging
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from tfx.dsl.io import fileio
from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor
from tfx.orchestration.kubeflow.v2.file_based_example_gen import driver as example_gen_driver
from tfx.proto import pusher_pb2
from tfx.types import standard_component_specs as keys
from tfx.utils import json_utils, proto_utils

from components.evaluator.executor import REASON_PROPERTY
from pipeline.exit_codes import BAD_INPUT, NOT_BLESSED
from recipe import BadInput
from recipe.trainer import TrainerRecipe
from recipe.tuner import TunerRecipe

# Parameters of a run.
DATA_ROOT = "data_root"
PUSH_DESTINATION = "push_destination"
TRAINING_PARAMETERS = {
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "learning_rate": "training.optimizer.learning_rate",
    "embedding_dim": "model.embedding_dim",
    "seed": "training.seed",
}
"""The recipe key of each run parameter."""
OVERRIDES = "recipe_overrides"
"""The run parameter for all other keys of `model` and `training`, as a JSON object."""

# Local folders of artifacts that TensorFlow cannot read, by scheme.
LOCAL_FOLDERS = {"s3://": "/s3/", "minio://": "/minio/"}


def value_of(recipe: pydantic.BaseModel, key: str) -> Any:
    """Return the value of a dotted key."""
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def prepare(
    executor_input: pipeline_spec_pb2.ExecutorInput, inputs_spec: pipeline_spec_pb2.ComponentInputsSpec
) -> None:
    """Convert the executor input of any backend to what TFX's entry point expects.

    Args:
        executor_input: From the launcher; changed in place.
        inputs_spec: Input definitions of the component.

    Raises:
        BadInput: A run parameter is invalid.
    """
    for name, listed in executor_input.inputs.artifacts.items():
        for artifact in listed.artifacts:
            if not (artifact.type.instance_schema or artifact.type.schema_title):
                artifact.type.CopyFrom(inputs_spec.artifacts[name].artifact_type)
    for _, artifact in _artifacts(executor_input):
        artifact.uri = local_path(artifact.uri)
    parameters = executor_input.inputs.parameter_values
    for key, parameter in ((keys.INPUT_BASE_KEY, DATA_ROOT), (keys.PUSH_DESTINATION_KEY, PUSH_DESTINATION)):
        if key in parameters:
            _check_reachable(parameter, parameters[key].string_value)
    overrides = {
        key: _number(parameters[name].number_value, inputs_spec, name)
        for name, key in TRAINING_PARAMETERS.items()
        if name in parameters
    }
    if OVERRIDES in parameters:
        overrides |= parse_overrides(parameters[OVERRIDES].string_value)
        config = json_utils.loads(parameters[keys.CUSTOM_CONFIG_KEY].string_value)
        config["recipe"] = _with_settings(config["recipe"], overrides)
        parameters[keys.CUSTOM_CONFIG_KEY].string_value = json_utils.dumps(config)
    if keys.MODEL_BLESSING_KEY in executor_input.inputs.artifacts:
        # The Pusher expects a proto.
        folder = parameters[keys.PUSH_DESTINATION_KEY].string_value
        destination = pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=folder)
        )
        parameters[keys.PUSH_DESTINATION_KEY].string_value = proto_utils.proto_to_json(destination)


def parse_overrides(text: str) -> dict[str, Any]:
    """Parse the run parameter `recipe_overrides`: a JSON object of values by dotted key.

    Raises:
        BadInput: It is not a JSON object, or a key is in another section.
    """
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise BadInput(f"{OVERRIDES}: {_EXPECTED_OVERRIDES}, got {text!r} ({error})") from None
    if not isinstance(found, dict):
        raise BadInput(f"{OVERRIDES}: {_EXPECTED_OVERRIDES}, got {text!r}")
    for key in found:
        if not key.startswith(("model.", "training.")):
            raise BadInput(
                f"{OVERRIDES}: expected keys of model or training, got {key!r}. Other keys are part of the compiled "
                "pipeline; compile it again with --set"
            )
    return found


_EXPECTED_OVERRIDES = 'expected a JSON object such as {"training.optimizer.ema": 0.98}'


def _with_settings(recipe_json: str, overrides: Mapping[str, Any]) -> str:
    """Return the recipe of a Tuner or Trainer with the run's overrides."""
    kind = TunerRecipe if "tuner" in json.loads(recipe_json) else TrainerRecipe
    recipe = kind.model_validate_json(recipe_json)
    # Only what differs, so that a run with the defaults trains the same recipe.
    changed = {key: value for key, value in overrides.items() if not _is(recipe, key, value)}
    if changed:
        logging.info("Overrides of this run: %s", changed)
    return (recipe.with_values(changed) if changed else recipe).model_dump_json()


def _is(recipe: pydantic.BaseModel, key: str, value: Any) -> bool:
    try:
        return bool(value_of(recipe, key) == value)
    except AttributeError:
        return False


def _check_reachable(parameter: str, folder: str) -> None:
    """Check that a folder outlives the container: the launcher uploads artifacts only."""
    if not folder or folder.startswith(tuple(LOCAL_FOLDERS)):
        raise BadInput(
            f"{parameter}: expected gs://… or a path on a volume (tandem compile kubeflow --volume CLAIM:/PATH), got "
            f"{folder!r}, which a container cannot reach"
        )


def _number(value: float, inputs_spec: pipeline_spec_pb2.ComponentInputsSpec, name: str) -> float:
    whole = inputs_spec.parameters[name].parameter_type == pipeline_spec_pb2.ParameterType.NUMBER_INTEGER
    return int(value) if whole else value


def local_path(uri: str) -> str:
    """Return the path at which this process reads and writes a URI."""
    for scheme, folder in LOCAL_FOLDERS.items():
        if uri.startswith(scheme):
            return folder + uri.removeprefix(scheme)
    return uri


def _artifacts(executor_input: pipeline_spec_pb2.ExecutorInput) -> Iterator[tuple[str, Any]]:
    for side in (executor_input.inputs, executor_input.outputs):
        for name, listed in side.artifacts.items():
            for artifact in listed.artifacts:
                yield name, artifact


def run(argv: Sequence[str]) -> int:
    """Run one component.

    Args:
        argv: Arguments of the compiled pipeline with their placeholders filled; unknown arguments are Beam's.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--executor_class_path", required=True)
    parser.add_argument("--json_serialized_invocation_args", required=True)
    parser.add_argument("--json_serialized_inputs_spec_args", required=True)
    arguments, beam_args = parser.parse_known_args(argv)
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    executor_input = _parse(arguments.json_serialized_invocation_args, pipeline_spec_pb2.ExecutorInput())
    inputs_spec = _parse(arguments.json_serialized_inputs_spec_args, pipeline_spec_pb2.ComponentInputsSpec())
    remote = {name: artifact.uri for name, artifact in _artifacts(executor_input)}
    try:
        prepare(executor_input, inputs_spec)
        arguments.json_serialized_invocation_args = json_format.MessageToJson(executor_input)
        output_file = executor_input.outputs.output_file
        if keys.INPUT_CONFIG_KEY in executor_input.inputs.parameter_values and not fileio.exists(output_file):
            example_gen_driver.main(arguments)
            _add_driver_metadata(output_file, executor_input)
            arguments.json_serialized_invocation_args = json_format.MessageToJson(executor_input)
        kubeflow_v2_run_executor.main((arguments, list(beam_args)))
    except BadInput as error:
        print(f"tandem: {error}", file=sys.stderr)
        return BAD_INPUT
    output = _read_output(output_file)
    for name, listed in output.artifacts.items():
        for artifact in listed.artifacts:
            artifact.uri = remote[name]
    with fileio.open(output_file, "w") as file:
        file.write(json_format.MessageToJson(output))
    if keys.MODEL_BLESSING_KEY in executor_input.inputs.artifacts:
        return _push_result(executor_input, output)
    return 0


def _push_result(executor_input: pipeline_spec_pb2.ExecutorInput, output: pipeline_spec_pb2.ExecutorOutput) -> int:
    """Return the Pusher's exit code, and print the reasons if nothing was pushed."""
    (pushed,) = output.artifacts[keys.PUSHED_MODEL_KEY].artifacts
    if pushed.metadata["pushed"] == 1:
        return 0
    print("tandem: not blessed: nothing was pushed; the served version is unchanged.", file=sys.stderr)
    for key, source in ((keys.MODEL_BLESSING_KEY, "gates"), (keys.INFRA_BLESSING_KEY, "InfraValidator")):
        for artifact in executor_input.inputs.artifacts[key].artifacts:
            metadata = json_format.MessageToDict(artifact.metadata)
            if metadata.get("blessed") != 1:
                print(f"tandem: {source}: {metadata.get(REASON_PROPERTY, 'no reason recorded')}", file=sys.stderr)
    return NOT_BLESSED


def _add_driver_metadata(output_file: str, executor_input: pipeline_spec_pb2.ExecutorInput) -> None:
    """Copy the driver's metadata to the output artifacts, as Vertex AI does."""
    for name, listed in _read_output(output_file).artifacts.items():
        for found, artifact in zip(listed.artifacts, executor_input.outputs.artifacts[name].artifacts, strict=True):
            artifact.metadata.update(json_format.MessageToDict(found.metadata))


def _read_output(path: str) -> pipeline_spec_pb2.ExecutorOutput:
    with fileio.open(path) as file:
        return _parse(file.read(), pipeline_spec_pb2.ExecutorOutput())


def _parse(text: str, message: Any) -> Any:
    return json_format.Parse(text, message, ignore_unknown_fields=True)


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
