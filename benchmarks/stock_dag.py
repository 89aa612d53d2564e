"""The MovieLens run with TFX's stock components only, as `pipeline.py` times it.

Stock TFX cannot join, so the CSV has the columns of items and users in every row. There is no InfraValidator: the stock
one needs Docker or Kubernetes. All other settings are defaults, except where the runs would differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2
from tfx import v1 as tfx

# In memory: by default, Beam first tries to download its Prism runner.
BEAM_ARGS = ["--runner=FnApiRunner"]


def create_pipeline(
    data: Path, folder: Path, settings: Mapping[str, Any], thresholds: Mapping[str, float]
) -> tfx.dsl.Pipeline:
    """The DAG.

    Args:
        data: Folder with the joined CSV.
        folder: Where everything is written.
        settings: The model's and the training's, for `run_fn`.
        thresholds: The least top-100 accuracy and the largest RMSE that are blessed.
    """
    split = tfx.proto.SplitConfig.Split
    example_gen = tfx.components.CsvExampleGen(
        input_base=str(data),
        output_config=tfx.proto.Output(
            split_config=tfx.proto.SplitConfig(
                splits=[split(name="train", hash_buckets=4), split(name="eval", hash_buckets=1)]
            )
        ),
    )
    statistics_gen = tfx.components.StatisticsGen(examples=example_gen.outputs["examples"])
    schema_gen = tfx.components.SchemaGen(statistics=statistics_gen.outputs["statistics"], infer_feature_shape=True)
    example_validator = tfx.components.ExampleValidator(
        statistics=statistics_gen.outputs["statistics"], schema=schema_gen.outputs["schema"]
    )
    transform = tfx.components.Transform(
        examples=example_gen.outputs["examples"],
        schema=schema_gen.outputs["schema"],
        preprocessing_fn="stock_movielens.preprocessing_fn",
    )
    trainer = tfx.components.Trainer(
        run_fn="stock_movielens.run_fn",
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=schema_gen.outputs["schema"],
        train_args=tfx.proto.TrainArgs(splits=["train"]),
        eval_args=tfx.proto.EvalArgs(splits=["eval"]),
        custom_config=dict(settings),
    )
    resolver = tfx.dsl.Resolver(
        strategy_class=tfx.dsl.experimental.LatestBlessedModelStrategy,
        model=tfx.dsl.Channel(type=tfx.types.standard_artifacts.Model),
        model_blessing=tfx.dsl.Channel(type=tfx.types.standard_artifacts.ModelBlessing),
    ).with_id("Resolver")
    evaluator = tfx.components.Evaluator(
        examples=example_gen.outputs["examples"],
        model=trainer.outputs["model"],
        baseline_model=resolver.outputs["model"],
        eval_config=eval_config(thresholds),
    )
    pusher = tfx.components.Pusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        push_destination=tfx.proto.PushDestination(
            filesystem=tfx.proto.PushDestination.Filesystem(base_directory=str(folder / "serving"))
        ),
    )
    return tfx.dsl.Pipeline(
        pipeline_name="stock",
        pipeline_root=str(folder / "artifacts"),
        components=[example_gen, statistics_gen, schema_gen, example_validator, transform, trainer, resolver,
                    evaluator, pusher],
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
            str(folder / "metadata.sqlite")
        ),
        beam_pipeline_args=BEAM_ARGS,
    )  # fmt: skip


def eval_config(thresholds: Mapping[str, float]) -> tfma.EvalConfig:
    """Both metrics of the signature `evaluate`, in total and by gender, and the thresholds."""
    value = tfma.GenericValueThreshold

    def one(output: str, class_name: str, name: str, threshold: tfma.GenericValueThreshold) -> tfma.MetricsSpec:
        metric = tfma.MetricConfig(
            class_name=class_name,
            config=f'{{"name": "{name}"}}',
            threshold=tfma.MetricThreshold(value_threshold=threshold),
        )
        return tfma.MetricsSpec(output_names=[output], metrics=[metric])

    return tfma.EvalConfig(
        # The metrics that Keras saved with the model do not support two outputs.
        options=config_pb2.Options(include_default_metrics={"value": False}),
        model_specs=[tfma.ModelSpec(signature_name="evaluate", label_key="rating")],
        slicing_specs=[tfma.SlicingSpec(), tfma.SlicingSpec(feature_keys=["gender"])],
        metrics_specs=[
            one("rating", "RootMeanSquaredError", "rmse", value(upper_bound={"value": thresholds["rmse"]})),
            one("top_100_hit", "MeanPrediction", "top_100_accuracy",
                value(lower_bound={"value": thresholds["top_100_accuracy"]})),
        ],
    )  # fmt: skip
