"""`run_fn` of the Trainer: transformed examples in, a trained and exported model out."""

from __future__ import annotations

import json
import os

import tensorflow as tf
import tensorflow_transform as tft
from absl import logging
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.utils import io_utils

from components.trainer.batches import batches
from components.trainer.export import ServedRecommender, save
from components.trainer.model import TwoTaskRecommender
from components.trainer.training_data import TrainingData, id_feature, read_training_data
from pipeline.recipe import Optimizer, TrainerRecipe

CURVES_FILE = "curves.json"
WARMUP_USERS = 8


def run_fn(fn_args: FnArgs) -> None:
    """Trains the recipe's model on the split `train` and exports it.

    The eval split is never read here: it stays unseen until the Evaluator measures the exported model on it. The slot
    that TFX calls `eval_files` carries the catalogue.

    Args:
        fn_args: From TFX; `custom_config["recipe"]` is a `TrainerRecipe` as JSON.
    """
    recipe = TrainerRecipe.model_validate_json(fn_args.custom_config["recipe"])
    schema = io_utils.parse_pbtxt_file(fn_args.schema_path, schema_pb2.Schema())
    transform_output = tft.TFTransformOutput(fn_args.transform_output)
    data = read_training_data(
        fn_args.train_files,
        fn_args.eval_files,
        transform_output,
        recipe.features,
        recipe.columns,
        negatives=recipe.negatives is not None,
    )
    logging.info(
        "Training on %d interactions of %d users with %d items, and %d sampled negatives.",
        *(data.positive.sum(), data.user_count, data.item_count, (~data.positive).sum()),
    )
    model, curves = train(recipe, data, transform_output)
    served = ServedRecommender(model, data, transform_output, recipe, schema)
    users = transform_output.vocabulary_by_name(data.user_feature)[:WARMUP_USERS]
    items = transform_output.vocabulary_by_name(id_feature(recipe.features.candidate, recipe.columns.item_id).name)
    save(served, fn_args.serving_model_dir, users, items[:WARMUP_USERS])
    io_utils.write_string_file(os.path.join(fn_args.model_run_dir, CURVES_FILE), json.dumps(curves, indent=1))


def train(
    recipe: TrainerRecipe, data: TrainingData, transform_output: tft.TFTransformOutput
) -> tuple[TwoTaskRecommender, dict[str, list[float]]]:
    """Fits a new model.

    Returns:
        The model, and its losses by epoch.
    """
    tf.keras.utils.set_random_seed(recipe.training.seed)
    model = TwoTaskRecommender(recipe.model, recipe.features.query, recipe.features.candidate, data, transform_output)
    model.compile(optimizer=optimizer(recipe.training.optimizer))
    history = model.fit(
        batches(
            data,
            recipe.training.batch_size,
            recipe.training.seed,
            recency_half_life_days=recipe.training.recency_half_life_days,
        ),
        epochs=recipe.training.epochs,
        verbose=2,
    )
    return model, {name: [float(value) for value in values] for name, values in history.history.items()}


def optimizer(config: Optimizer) -> tf.keras.optimizers.Optimizer:
    """The Keras optimizer that the recipe names."""
    kinds = {
        "adagrad": tf.keras.optimizers.Adagrad,
        "adam": tf.keras.optimizers.Adam,
        "adamw": tf.keras.optimizers.AdamW,
    }
    return kinds[config.kind](learning_rate=config.learning_rate)
