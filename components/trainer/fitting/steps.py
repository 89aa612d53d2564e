"""The length of a training: steps per epoch and in total."""

from __future__ import annotations

import dataclasses
import math

from recipe.training import Training


@dataclasses.dataclass(frozen=True)
class TrainingSteps:
    """Batch size, steps per epoch and total steps of one training.

    Example:
        >>> steps = TrainingSteps.of(Training(epochs=3, batch_size=100), rows=250, replicas=1)
        >>> steps.steps_per_epoch, steps.total_steps
        (3, 9)
    """

    batch_size: int
    """Interactions per batch of one replica."""
    steps_per_epoch: int
    """Steps in which the replicas together process all interactions once, with one batch per replica and step."""
    total_steps: int
    """Steps of the whole training."""

    @classmethod
    def of(cls, config: Training, rows: int, replicas: int) -> TrainingSteps:
        """Compute the steps for a number of interactions and of replicas."""
        batch_size = math.ceil(config.batch_size / replicas)
        steps_per_epoch = math.ceil(math.ceil(rows / batch_size) / replicas)
        return cls(batch_size, steps_per_epoch, config.steps or config.epochs * steps_per_epoch)

    @property
    def epochs(self) -> int:
        """Number of epochs, including a partial last one."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def steps_in(self, epoch: int) -> int:
        """Return the number of steps of an epoch, counted from 0; the last epoch may be shorter."""
        return min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)
