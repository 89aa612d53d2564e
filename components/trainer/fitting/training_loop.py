"""The training loop: fits a new model of the recipe on the train split."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft
from absl import logging

from components.trainer.data.batches import batches
from components.trainer.data.training_data import TrainingData
from components.trainer.fitting.backup import Backup, completed_epochs
from components.trainer.fitting.callbacks import EpochCallback
from components.trainer.fitting.curves import Curves
from components.trainer.fitting.optimizers import build_optimizer
from components.trainer.fitting.steps import TrainingSteps
from components.trainer.fitting.training_model import TrainingModel
from components.trainer.fitting.validation import ValidationMetrics
from components.trainer.model.recommender import TwoTaskRecommender
from recipe.trainer import TrainerRecipe


def train(
    recipe: TrainerRecipe,
    data: TrainingData,
    transform_output: tft.TFTransformOutput,
    *,
    bounds: tuple[float, float] | None = None,
    run_dir: str | None = None,
    backup_dir: str | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> tuple[TwoTaskRecommender, Curves]:
    """Train a new model.

    Args:
        recipe: The recipe.
        data: The train split; the validation split is held out of it.
        transform_output: Output of Transform.
        bounds: Smallest and largest rating of the served model, to which validation clips predictions.
        run_dir: Folder for TensorBoard event files; None for none.
        backup_dir: Folder from which an interrupted training resumes, for the same arguments only. After training it
            has the completed training, for the caller to remove. None for no backup.
        strategy: Distribution strategy; by default, according to the devices.

    Returns:
        The model and its curves. The model is in single precision and on one device. It has the averaged weights if
        the recipe sets `ema`, and the best epoch's weights if it sets `early_stopping`.

    Raises:
        TrainingDiverged: The loss became NaN or infinite.

    Example:
        >>> model, curves = train(recipe, data, transform_output)
        >>> curves["epoch"]
        [1.0]
    """
    config = recipe.training
    fit, validation = data, None
    if config.validation is not None:
        kind = config.validation.kind or "random"
        fraction = min(config.validation.fraction, config.validation.max_rows / len(data.labels))
        fit, validation = data.hold_out(fraction, kind, config.validation.seed)
    strategy = strategy or device_strategy()
    done = completed_epochs(backup_dir) if backup_dir else 0
    if done:
        logging.info("Resuming training after epoch %d from the backup %s", done, backup_dir)
    # A resumed training must not repeat the order and the dropout of its first epochs.
    tf.keras.utils.set_random_seed(config.seed + done)

    def new_model() -> TwoTaskRecommender:
        return TwoTaskRecommender(
            recipe.model,
            recipe.features.query,
            recipe.features.candidate,
            fit,
            transform_output,
            static_shapes=config.xla,
        )

    steps = TrainingSteps.of(config, len(fit.labels), strategy.num_replicas_in_sync)
    with strategy.scope(), _mixed_precision(config.mixed_precision):
        model = new_model()
        training_model = TrainingModel(model, steps, keep_best=config.early_stopping is not None)
        variables = model.trainable_variables
        rating_variables = model.rating_head.trainable_variables
        optimizer = build_optimizer(config.optimizer, steps.total_steps, variables, rating_variables)
        optimizer.build(variables)
        training_model.compile(optimizer=optimizer, jit_compile=config.xla)

    def input_fn(context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        return batches(
            fit,
            steps.batch_size,
            config.seed + done,
            recency_half_life_days=config.recency_half_life_days,
            rating_recency_half_life_days=config.rating_recency_half_life_days,
        ).repeat()

    # Each replica reads its own batches, because the histories of a batch cannot be split between replicas.
    distributed = strategy.num_replicas_in_sync > 1
    rows: Any = strategy.distribute_datasets_from_function(input_fn) if distributed else input_fn()
    epoch_callback = EpochCallback(
        recipe,
        steps,
        optimizer,
        ValidationMetrics(model, validation, bounds) if validation is not None else None,
        run_dir=run_dir,
        backup_dir=backup_dir,
        completed_epochs=done,
    )
    callbacks: list[tf.keras.callbacks.Callback] = [epoch_callback]
    if backup_dir:
        callbacks.append(Backup(backup_dir))
    # No epochs are left if the interruption was after training and before export.
    epochs = done if epoch_callback.stopped else steps.epochs
    training_model.fit(rows, epochs=epochs, steps_per_epoch=1, callbacks=callbacks, verbose=0)
    plain = model
    if distributed or config.mixed_precision:
        plain = new_model()
        for variable, trained in zip(plain.variables, model.variables, strict=True):
            variable.assign(tf.cast(trained.read_value(), variable.dtype))
    plain.average_oov_embedding(fit)
    return plain, epoch_callback.curves


def device_strategy() -> tf.distribute.Strategy:
    """Return a mirrored strategy for several GPUs, and the default strategy otherwise.

    Example:
        >>> device_strategy().num_replicas_in_sync >= 1
        True
    """
    gpus = tf.config.list_logical_devices("GPU")
    return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus]) if len(gpus) > 1 else tf.distribute.get_strategy()


@contextlib.contextmanager
def _mixed_precision(enabled: bool) -> Iterator[None]:
    """Set the global mixed-precision policy for the layers that are created within the context."""
    policy = tf.keras.mixed_precision.global_policy()
    if enabled:
        dtype = "float16" if tf.config.list_physical_devices("GPU") else "bfloat16"
        tf.keras.mixed_precision.set_global_policy(f"mixed_{dtype}")
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
