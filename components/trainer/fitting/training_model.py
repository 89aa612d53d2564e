"""The Keras model that `fit` trains: its train step is one epoch, a loop of gradient updates in one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from components.trainer.fitting.steps import TrainingSteps
from components.trainer.model.recommender import TwoTaskRecommender


class TrainingModel(tf.keras.Model):
    """Wraps a recommender so that `fit(..., steps_per_epoch=1)` runs an epoch in one graph.

    No Python code runs between two steps, and batches are prefetched meanwhile, across the end of an epoch as well.

    Example:
        >>> steps = TrainingSteps(batch_size=64, steps_per_epoch=7, total_steps=14)
        >>> training_model = TrainingModel(model, steps, keep_best=False)
        >>> training_model.compile(optimizer=tf.keras.optimizers.Adam(), jit_compile=False)
    """

    def __init__(self, recommender: TwoTaskRecommender, steps: TrainingSteps, keep_best: bool) -> None:
        """
        Args:
            recommender: The model to train.
            steps: The length of the training.
            keep_best: Whether to have variables for the best epoch's weights.
        """
        super().__init__(name="training")
        self.train_function: Callable[[Iterator[Any]], dict[str, tf.Tensor]] | None = None
        self.recommender = recommender
        self.built = True
        self._loss = tf.keras.metrics.Mean(name="loss")
        self._regularization_loss = tf.keras.metrics.Mean(name="regularization_loss")
        # Variables of the model, so that a backup includes the best epoch's weights.
        self.best = [
            tf.Variable(variable, trainable=False, name=f"best_{index}")
            for index, variable in enumerate(recommender.trainable_variables if keep_best else ())
        ]
        self._training_steps = steps
        self._steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps")
        self._finite_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="finite_steps")

    def begin_epoch(self, epoch: int) -> None:
        """Set the number of steps of an epoch, counted from 0."""
        self._steps.assign(self._training_steps.steps_in(epoch))

    @property
    def finite_steps(self) -> int:
        """Steps of the latest epoch before the first one whose loss was NaN or infinite."""
        return int(self._finite_steps.read_value())

    def train_step(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Update the weights on one replica's batch, and return its loss, float32 []."""
        variables = self.recommender.trainable_variables
        scaling = isinstance(self.optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
        with tf.GradientTape() as tape:
            loss = tf.cast(self.recommender.compute_loss(batch, training=True), tf.float32)
            regularization = tf.add_n([tf.zeros([]), *(tf.cast(part, tf.float32) for part in self.recommender.losses)])
            # Gradients are summed over the replicas, but the loss is the mean over all replicas' rows.
            scaled = (loss + regularization) / self.distribute_strategy.num_replicas_in_sync
            target = self.optimizer.get_scaled_loss(scaled) if scaling else scaled
        gradients = tape.gradient(target, variables)
        if scaling:
            gradients = self.optimizer.get_unscaled_gradients(gradients)
        # Variables of a task with weight 0 have no gradient; Keras would log a warning for them in each replica.
        pairs = zip(gradients, variables, strict=True)
        self.optimizer.apply_gradients([pair for pair in pairs if pair[0] is not None])
        self._loss.update_state(loss + regularization)
        self._regularization_loss.update_state(regularization)
        return loss + regularization

    def make_train_function(self, force: bool = False) -> Callable[[Iterator[Any]], dict[str, tf.Tensor]]:
        """Return the function that `fit` calls with its iterator, once per epoch."""
        if self.train_function is not None and not force:
            return self.train_function
        step = tf.function(self.train_step, jit_compile=True) if self.jit_compile else self.train_step
        strategy = self.distribute_strategy

        @tf.function
        def epoch(iterator: Iterator[Any]) -> None:
            finite_steps = tf.constant(0, tf.int64)
            for index in tf.range(self._steps):
                loss = strategy.reduce("SUM", strategy.run(step, args=(next(iterator),)), axis=None)
                # Counts only while all earlier steps were finite too.
                counts = tf.logical_and(tf.math.is_finite(loss), tf.equal(finite_steps, index))
                finite_steps += tf.cast(counts, tf.int64)
            self._finite_steps.assign(finite_steps)

        def train_function(iterator: Iterator[Any]) -> dict[str, tf.Tensor]:
            epoch(iterator)
            return {metric.name: metric.result() for metric in self.metrics}

        self.train_function = train_function
        return train_function
