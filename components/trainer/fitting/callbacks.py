"""The Keras callback of a training: validation, learning curves, TensorBoard and early stopping after each epoch."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from absl import logging

from components.trainer.fitting.backup import remove_backup
from components.trainer.fitting.curves import CURVES_FILE, VALIDATION, Curves, best_epoch, with_epoch
from components.trainer.fitting.optimizers import CompositeOptimizer
from components.trainer.fitting.steps import TrainingSteps
from components.trainer.fitting.validation import ValidationMetrics
from recipe.errors import BadInput
from recipe.trainer import TrainerRecipe


class TrainingDiverged(BadInput):
    """The loss became NaN or infinite; nothing was exported."""


class EpochCallback(tf.keras.callbacks.Callback):
    """Runs validation, writes curves and TensorBoard events, and stops early.

    At the end of training it restores the best epoch's weights.
    """

    def __init__(
        self,
        recipe: TrainerRecipe,
        steps: TrainingSteps,
        optimizer: CompositeOptimizer,
        validation: ValidationMetrics | None,
        *,
        run_dir: str | None,
        backup_dir: str | None,
        completed_epochs: int,
    ) -> None:
        """
        Args:
            recipe: The recipe.
            steps: The length of the training.
            optimizer: The optimizer, whose averaged weights are validated.
            validation: The metrics to compute on the validation split; None without one.
            run_dir: Folder for TensorBoard event files; None for none.
            backup_dir: Folder of the backup, which includes the curves; None for none.
            completed_epochs: Number of epochs in the backup.
        """
        super().__init__()
        self.curves: Curves = {}
        self._recipe = recipe
        self._stopping = recipe.training.early_stopping
        self._steps = steps
        self._optimizer = optimizer
        self._validation = validation
        self._writer = tf.summary.create_file_writer(run_dir) if run_dir else None
        self._backup_dir = backup_dir
        self._curves_file = os.path.join(backup_dir, CURVES_FILE) if backup_dir else None
        if self._curves_file and completed_epochs:
            with tf.io.gfile.GFile(self._curves_file) as stream:
                saved = json.load(stream)
            # The curves are written before the backup, so that they may have an epoch more.
            self.curves = {name: values[:completed_epochs] for name, values in saved.items()}
            for index in range(completed_epochs):
                self._write_summary({name: values[index] for name, values in self.curves.items()})

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the epoch's clock and set its number of steps."""
        self._start = time.perf_counter()
        self.model.begin_epoch(epoch)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Validate the model, add the epoch to the curves and decide whether to stop.

        Raises:
            TrainingDiverged: The loss became NaN or infinite.
        """
        losses = {name: float(value) for name, value in (logs or {}).items()}
        if not all(math.isfinite(value) for value in losses.values()):
            if self._backup_dir:
                # A training that resumed from this backup would diverge again.
                remove_backup(self._backup_dir)
            raise TrainingDiverged(self._divergence(epoch))
        variables = self.model.recommender.trainable_variables
        measured = {}
        with self._optimizer.evaluation_weights(variables):
            if self._validation is not None:
                measured = {f"{VALIDATION}{name}": value for name, value in self._validation.compute().items()}
            if self._stopping is not None:
                values = [*self.curves.get(f"{VALIDATION}{self._stopping.metric}", [])]
                values.append(measured[f"{VALIDATION}{self._stopping.metric}"])
                if best_epoch(values, self._stopping) == epoch:
                    for best, variable in zip(self.model.best, variables, strict=True):
                        best.assign(variable)
        row = {
            "epoch": epoch + 1,
            "steps": epoch * self._steps.steps_per_epoch + self._steps.steps_in(epoch),
            "seconds": time.perf_counter() - self._start,
            "learning_rate": float(self._optimizer.learning_rate.read_value()),
            **losses,
            **measured,
            "kept": 0,
        }
        self.curves = with_epoch(self.curves, row)
        self._mark_kept()
        logging.info(
            "Epoch %d of %d: %s",
            *(epoch + 1, self._steps.epochs),
            ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("epoch", "steps", "kept")),
        )
        self._write_summary(row)
        if self._curves_file:
            tf.io.gfile.makedirs(self._backup_dir)
            with tf.io.gfile.GFile(f"{self._curves_file}.new", "w") as stream:
                json.dump(self.curves, stream)
            tf.io.gfile.rename(f"{self._curves_file}.new", self._curves_file, overwrite=True)
        self.model.stop_training = self.stopped

    def on_train_end(self, logs: Any = None) -> None:
        """Restore the best epoch's weights and close the TensorBoard writer."""
        variables = self.model.recommender.trainable_variables
        if self._stopping is not None:
            for variable, best in zip(variables, self.model.best, strict=True):
                variable.assign(best)
            logging.info("Restored the weights of epoch %d.", self.curves["kept"].index(1) + 1)
        if self._writer is not None:
            self._writer.close()

    def _best(self) -> int:
        """Return the index of the epoch whose weights the model has after training."""
        if self._stopping is None:
            return len(self.curves["epoch"]) - 1
        return best_epoch(self.curves[f"{VALIDATION}{self._stopping.metric}"], self._stopping)

    def _mark_kept(self) -> None:
        best = self._best()
        self.curves["kept"] = [float(index == best) for index in range(len(self.curves["epoch"]))]

    @property
    def stopped(self) -> bool:
        """Whether early stopping ends the training after the epochs in the curves."""
        if self._stopping is None or not self.curves:
            return False
        return len(self.curves["epoch"]) - 1 - self._best() >= self._stopping.patience

    def _write_summary(self, row: Mapping[str, float]) -> None:
        """Write an epoch's values for TensorBoard, with the epoch as the step."""
        if self._writer is None:
            return
        with self._writer.as_default(step=int(row["epoch"])):
            for name, value in row.items():
                if name not in ("epoch", "kept"):
                    tf.summary.scalar(name, value)
        self._writer.flush()

    def _divergence(self, epoch: int) -> str:
        # A mean over an epoch of finite losses can overflow; its last step is reported then.
        in_epoch = min(self.model.finite_steps + 1, self._steps.steps_in(epoch))
        optimizer = self._recipe.training.optimizer
        remedies = [f"a training.optimizer.learning_rate below {optimizer.learning_rate:g}"]
        if optimizer.clip_norm is None:
            remedies.append("training.optimizer.clip_norm: 1")
        if not optimizer.warm_up:
            remedies.append("training.optimizer.warm_up: 0.1")
        if self._recipe.training.mixed_precision:
            remedies.append("training.mixed_precision: false")
        return (
            f"Loss became NaN or infinite at step {epoch * self._steps.steps_per_epoch + in_epoch} (epoch {epoch + 1} "
            f"of {self._steps.epochs}); nothing was exported. Set {' or '.join(remedies)}."
        )
