"""The section `training`: epochs, optimizer, validation split and early stopping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from recipe.section import Fraction, Section


class Lookahead(Section):
    """Slow weights that are interpolated towards the optimizer's weights (Zhang et al. 2019, arXiv:1907.08610)."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"steps": "sync_period", "slow_step": "slow_step_size"}

    sync_period: PositiveInt = 6
    """Number of optimizer steps between two updates of the slow weights."""
    slow_step_size: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Interpolation factor of an update: 0 keeps the slow weights, 1 copies the optimizer's weights."""


class Optimizer(Section):
    """The optimizer, its learning-rate schedule, and averages of the weights."""

    kind: Literal["adagrad", "adam", "adamw", "radam"] = "adam"
    """Adagrad, Adam, Adam with decoupled weight decay, or rectified Adam (Liu et al. 2020, arXiv:1908.03265). `radam`
    with `lookahead` is known as Ranger."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate, after the warm-up and before the decay."""
    rating_learning_rate: PositiveFloat | None = None
    """Learning rate of the weights that only the rating head uses: its biases, layers and own towers. If not set,
    `learning_rate`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay (`adamw` and `radam`): a step multiplies every weight by 1 minus this times the learning
    rate."""
    warm_up: Fraction = 0.0
    """Fraction of the steps in which the learning rate rises linearly from 0."""
    decay: Literal["none", "cosine"] = "none"
    """Learning-rate decay after the warm-up: constant, or cosine decay to 0."""
    clip_norm: PositiveFloat | None = None
    """Maximum global norm of the gradients of both tasks, embeddings included. Larger gradients are scaled down. If not
    set, gradients are not clipped."""
    ema: Fraction | None = None
    """Decay of an exponential moving average (EMA) of the weights, with bias correction. The average is evaluated on
    the validation split and exported. If not set, the last weights are used, or the slow weights of `lookahead`."""
    lookahead: Lookahead | None = None
    """Lookahead (Zhang et al. 2019). If not set, it is not used."""

    @pydantic.model_validator(mode="after")
    def _supports_weight_decay(self) -> Optimizer:
        if self.weight_decay and self.kind not in ("adamw", "radam"):
            raise ValueError(
                f"weight_decay is {self.weight_decay:g}, which the optimizer {self.kind} does not support; use adamw "
                "or radam, or embedding_l2 and l2 of the towers"
            )
        return self


class ValidationSplit(Section):
    """The validation split: rows of the train split that are held out from training. The eval split is not used."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Fraction of the train split."""
    max_rows: PositiveInt = 100_000
    """Maximum number of rows. The time of an epoch's validation is proportional to it, as each row is ranked among all
    items."""
    kind: Literal["random", "latest"] | None = None
    """Selection of the rows: random or latest. If not set, `latest` for the splits `time` and `leave_last_n`, otherwise
    `random`."""
    seed: int = 0
    """Random seed."""


class EarlyStopping(Section):
    """Early stopping: training ends when the metric stops improving, and the best epoch's weights are restored."""

    metric: Literal["top_100_accuracy", "rmse"]
    """Metric to monitor. It is measured on the validation split after every epoch."""
    patience: PositiveInt = 3
    """Number of epochs without improvement after which training ends."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Minimum change of the metric that counts as an improvement."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value of `metric` is an improvement."""
        return self.metric == "top_100_accuracy"


class Training(Section):
    """The training loop: epochs, batches, optimizer and early stopping."""

    epochs: PositiveInt = 10
    """Maximum number of epochs."""
    steps: PositiveInt | None = None
    """Number of steps. If set, training ends after this number of batches and `epochs` is ignored."""
    batch_size: PositiveInt = 4096
    """Number of interactions per step. With in-batch softmax, the other items of the batch are the negatives."""
    optimizer: Optimizer = Optimizer()
    recency_half_life_days: PositiveFloat | None = None
    """Half-life of the weight of interactions in the retrieval loss, in days before the latest interaction of the train
    split. If not set, all weights are 1."""
    rating_recency_half_life_days: PositiveFloat | None = None
    """Half-life of the weight of interactions in the rating loss, as `recency_half_life_days`."""
    validation: ValidationSplit | None = None
    """Validation split. If not set, no rows are held out, and the learning curves have no accuracy and no RMSE."""
    early_stopping: EarlyStopping | None = None
    """Early stopping, which requires `validation`. If not set, training runs for all epochs."""
    mixed_precision: bool = False
    """Whether to compute in mixed precision: float16 on GPUs, bfloat16 on other devices."""
    xla: bool = False
    """Whether to compile the training step with XLA. Compilation takes place once for full batches and once for the
    last batch of an epoch, which is worth it in long runs on a GPU. Without XLA, duplicate items of a batch are scored
    once, which is faster on CPUs."""
    seed: int = 0
    """Random seed of the initial weights, the order of the interactions and dropout."""

    @pydantic.model_validator(mode="after")
    def _early_stopping_has_a_validation_split(self) -> Training:
        if self.early_stopping is not None and self.validation is None:
            raise ValueError("early_stopping requires validation, which is not set; set validation: {fraction: 0.05}")
        return self
