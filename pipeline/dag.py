"""The TFX pipeline of a recipe: creates all components and connects them, in the order of the data.

TFX's names are imported from their own modules: `tfx.v1` imports Google's AI platform, a quarter of all import time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components import StatisticsGen, Trainer, Transform, Tuner
from tfx.dsl.compiler import compiler
from tfx.orchestration import metadata as tfx_metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.proto.orchestration import pipeline_pb2
from tfx.proto.pusher_pb2 import PushDestination
from tfx.proto.trainer_pb2 import EvalArgs, TrainArgs
from tfx.proto.transform_pb2 import SplitsConfig

from components.evaluator.component import Evaluator
from components.evaluator.settings import EvaluatorSettings
from components.example_gen.component import InteractionExampleGen
from components.example_validator.component import ExampleValidator
from components.infra_validator.component import InfraValidator
from components.infra_validator.executor import InfraValidatorSettings
from components.model_resolver.component import ModelResolver
from components.pusher.component import Pusher
from components.pusher.executor import SETTINGS_KEY as PUSHER_SETTINGS_KEY
from components.pusher.executor import PusherSettings
from components.schema_gen.component import ImportSchemaGen
from pipeline.code_version import code_version
from recipe import Recipe

CATALOGUE = "catalogue"

PREPROCESSING = "components.transform.preprocessing"
TRAINING = "components.trainer.run_fn"
TUNING = "components.tuner.tuning"

CODE = {
    "InteractionExampleGen": ("components.example_gen.executor",),
    "ImportSchemaGen": ("components.schema_gen.executor",),
    "ExampleValidator": ("components.example_validator.executor",),
    "Transform": (PREPROCESSING,),
    "Tuner": (TUNING,),
    "Trainer": (TRAINING,),
    "ModelResolver": ("components.model_resolver.executor", "components.model_resolver.driver"),
    "Evaluator": ("components.evaluator.executor",),
    # It starts the server as a process.
    "InfraValidator": ("components.infra_validator.executor", "serving.server.__main__"),
}
"""The modules that a component runs; a change in them, or in what they import, is a change of its cache key.

StatisticsGen is TFX's own, and the Pusher is never cached.
"""

# The push destination may have changed since the cached execution; the executor skips a model that is there already.
NEVER_CACHED = ("Pusher",)


def create_pipeline(
    recipe: Recipe,
    schema: schema_pb2.Schema,
    *,
    data_root: str,
    pipeline_root: str,
    serving_dir: str = "",
    metadata: tfx_metadata.ConnectionConfigType | None = None,
    beam_pipeline_args: Sequence[str] = (),
    last: Literal["Evaluator", "Pusher"] = "Pusher",
) -> Pipeline:
    """Return the whole pipeline, or its part up to the Evaluator.

    Args:
        recipe: The recipe.
        schema: The curated schema.
        data_root: Folder that the recipe's file names are relative to.
        pipeline_root: Folder for artifacts.
        serving_dir: Push destination; only ModelResolver and Pusher use it.
        metadata: Connection to ML Metadata; None if the orchestrator has its own.
        beam_pipeline_args: Beam's pipeline options, for all components on Beam.
        last: The last component. Without a Pusher there is no ModelResolver and no last blessed model.

    Example:
        recipe = load_recipe(Path("schemas/movielens"))
        schema = load_schema(Path("schemas/movielens"), recipe)
        dag = create_pipeline(recipe, schema, data_root="data/movielens", pipeline_root="work/artifacts")
    """
    columns = recipe.data.columns
    code = {name: code_version(*modules) for name, modules in CODE.items()}

    example_gen = InteractionExampleGen(
        input_base=data_root, data=recipe.data, schema=schema, code_version=code["InteractionExampleGen"]
    )

    # The catalogue has item columns only, so statistics and validation are for the interactions.
    statistics_gen = StatisticsGen(examples=example_gen.outputs["examples"], exclude_splits=[CATALOGUE])

    schema_gen = ImportSchemaGen(schema, code_version=code["ImportSchemaGen"])
    schema_gen.add_upstream_node(statistics_gen)

    example_validator = ExampleValidator(
        statistics=statistics_gen.outputs["statistics"],
        schema=schema_gen.outputs["schema"],
        code_version=code["ExampleValidator"],
    )

    transform = Transform(
        examples=example_gen.outputs["examples"],
        schema=schema_gen.outputs["schema"],
        preprocessing_fn=f"{PREPROCESSING}.preprocessing_fn",
        # The item vocabulary has all items of the catalogue; the eval split is not analyzed.
        splits_config=SplitsConfig(analyze=["train", CATALOGUE], transform=["train", CATALOGUE]),
        custom_config={
            "features": recipe.features.for_transform().model_dump_json(),
            "columns": columns.model_dump_json(),
            "negatives": recipe.data.negatives is not None,
            "code": code["Transform"],
        },
        disable_statistics=True,
        # With the cache, each analyzer would run once per split, and no later run would read its result.
        disable_analyzer_cache=True,
    )
    transform.add_upstream_node(example_validator)

    # TFX has two arguments for splits. The second one has the catalogue; training never reads the eval split.
    transformed: dict[str, Any] = {
        "examples": transform.outputs["transformed_examples"],
        "transform_graph": transform.outputs["transform_graph"],
        "schema": schema_gen.outputs["schema"],
        "train_args": TrainArgs(splits=["train"]),
        "eval_args": EvalArgs(splits=[CATALOGUE]),
    }

    parts = [example_gen, statistics_gen, schema_gen, example_validator, transform]

    best_hyperparameters = None
    if recipe.tuner is not None:
        tuner = Tuner(
            tuner_fn=f"{TUNING}.tuner_fn",
            custom_config={"recipe": recipe.for_tuner().model_dump_json(), "code": code["Tuner"]},
            **transformed,
        )
        best_hyperparameters = tuner.outputs["best_hyperparameters"]
        parts.append(tuner)

    trainer = Trainer(
        run_fn=f"{TRAINING}.run_fn",
        hyperparameters=best_hyperparameters,
        custom_config={"recipe": recipe.for_trainer().model_dump_json(), "code": code["Trainer"]},
        **transformed,
    )
    parts.append(trainer)

    baseline_model = None
    if last == "Pusher":
        model_resolver = ModelResolver(push_destination=serving_dir, code_version=code["ModelResolver"])
        model_resolver.add_upstream_node(trainer)
        baseline_model = model_resolver.outputs["model"]
        parts.append(model_resolver)

    evaluator = Evaluator(
        examples=example_gen.outputs["examples"],
        model=trainer.outputs["model"],
        baseline_model=baseline_model,
        settings=EvaluatorSettings(
            gates=recipe.gates,
            slices=recipe.slices,
            label=columns.label,
            exclude_seen=recipe.serving.exclude_seen,
            negatives=recipe.data.negatives is not None,
            code_version=code["Evaluator"],
        ),
    )
    parts.append(evaluator)

    if last == "Pusher":
        infra_validator = InfraValidator(
            model=trainer.outputs["model"],
            examples=example_gen.outputs["examples"],
            settings=InfraValidatorSettings(
                user_id=columns.user_id,
                item_id=columns.item_id,
                exclude_seen=recipe.serving.exclude_seen,
                max_p99_ms=recipe.serving.max_p99_ms,
                code_version=code["InfraValidator"],
            ),
        )
        infra_validator.add_upstream_node(evaluator)

        pusher = Pusher(
            model=trainer.outputs["model"],
            model_blessing=evaluator.outputs["blessing"],
            infra_blessing=infra_validator.outputs["blessing"],
            push_destination=PushDestination(filesystem=PushDestination.Filesystem(base_directory=serving_dir)),
            custom_config={
                PUSHER_SETTINGS_KEY: PusherSettings(
                    keep_versions=recipe.serving.keep_versions, wait_for=recipe.serving.wait_for
                ).model_dump_json()
            },
        )
        parts += [infra_validator, pusher]

    return Pipeline(
        pipeline_name=recipe.name,
        pipeline_root=pipeline_root,
        components=parts,
        enable_cache=True,
        metadata_connection_config=metadata,
        beam_pipeline_args=list(beam_pipeline_args),
    )


def compile_dag(dag: Pipeline) -> pipeline_pb2.Pipeline:
    """Return TFX's intermediate representation of a pipeline, which a launcher needs.

    Args:
        dag: From `create_pipeline`, with a connection to ML Metadata.
    """
    compiled = compiler.Compiler().compile(dag)
    for node in compiled.nodes:
        if node.pipeline_node.node_info.id in NEVER_CACHED:
            node.pipeline_node.execution_options.caching_options.enable_cache = False
    return compiled
