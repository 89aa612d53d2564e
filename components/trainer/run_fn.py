"""`run_fn`, the entry point of the Trainer: transformed examples to an exported model."""

from __future__ import annotations

import json
import os

import tensorflow as tf
import tensorflow_transform as tft
from absl import logging
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.utils import io_utils

from components.trainer.data.training_data import id_feature, read_training_data
from components.trainer.export import ServedRecommender, label_bounds, save
from components.trainer.fitting.backup import BACKUPS, fingerprint, remove_backup, remove_expired_backups
from components.trainer.fitting.curves import CURVES_FILE
from components.trainer.fitting.hyperparameters import recipe_values
from components.trainer.fitting.training_loop import train
from recipe.trainer import TrainerRecipe

WARM_UP_IDS = 8
"""Number of users and of items in warm-up requests."""
CHECKPOINT = "checkpoint"
"""Name of the checkpoint with the trained model's weights in the model run."""


def run_fn(fn_args: FnArgs) -> None:
    """Train the recipe's model on the train split and export it.

    The Trainer does not read the eval split, on which the Evaluator measures the exported model; TFX's argument
    `eval_files` has the catalogue. The model run gets the curves, TensorBoard event files and a checkpoint. An
    interrupted Trainer leaves a backup beside its model run, and the next one with the same recipe, data and code
    resumes from it.

    Args:
        fn_args: From TFX. `custom_config["recipe"]` is a `TrainerRecipe` as JSON, `custom_config["code"]` a hash of the
            code, and `hyperparameters` the Tuner's best hyperparameters, or None.

    Raises:
        TrainingDiverged: The loss became NaN or infinite.
    """
    recipe = TrainerRecipe.model_validate_json(fn_args.custom_config["recipe"])
    if fn_args.hyperparameters is not None:
        values = recipe_values(fn_args.hyperparameters)
        logging.info("Best hyperparameters of the Tuner: %s", values)
        recipe = recipe.with_values(values)
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
    run_dir = fn_args.model_run_dir.rstrip("/")
    name = fingerprint(recipe, data, str(fn_args.custom_config.get("code", "")))
    # TFX creates a model run per execution; the folder above all of them is the same in the next execution.
    backup_dir = os.path.join(os.path.dirname(os.path.dirname(run_dir)), BACKUPS, name)
    bounds = label_bounds(schema, recipe.columns.label)
    model, curves = train(recipe, data, transform_output, bounds=bounds, run_dir=run_dir, backup_dir=backup_dir)
    # Stored histories and excluded items include the validation split.
    served = ServedRecommender(model, data, transform_output, recipe, schema)
    users = transform_output.vocabulary_by_name(data.user_feature)[:WARM_UP_IDS]
    items = transform_output.vocabulary_by_name(id_feature(recipe.features.candidate, recipe.columns.item_id).name)
    save(served, fn_args.serving_model_dir, users, items[:WARM_UP_IDS])
    io_utils.write_string_file(os.path.join(run_dir, CURVES_FILE), json.dumps(curves, indent=1))
    tf.train.Checkpoint(model=model).write(os.path.join(run_dir, CHECKPOINT))
    # After the export, so that a Trainer that is interrupted during the export does not train again.
    remove_backup(backup_dir)
    remove_expired_backups(os.path.dirname(backup_dir))
