"""The section `training`: epochs, optimizer, validation and early stopping."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from recipe.section import Section, Share


class Lookahead(Section):
    """Slow weights that follow the optimizer's fast ones (Zhang et al. 2019, arXiv:1907.08610)."""

    steps: PositiveInt = 6
    """Steps of the fast weights between two of the slow ones."""
    slow_step: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How far the slow weights go towards the fast ones."""


class Optimizer(Section):
    """How gradients change the weights."""

    kind: Literal["adagrad", "adam", "adamw", "radam"] = "adam"
    """Adagrad, Adam, Adam with decoupled weight decay, or rectified Adam (Liu et al. 2020, arXiv:1908.03265); radam
    with `lookahead` is known as Ranger."""
    learning_rate: PositiveFloat = 1e-3
    """Size of a step, after the warm-up and before the decay."""
    rating_learning_rate: PositiveFloat | None = None
    """Another one for the weights that only the rating head has: its biases, layers and own towers."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Part of every weight that a step takes off, times the learning rate (`adamw` and `radam`)."""
    warm_up: Share = 0.0
    """Part of the steps in which the learning rate climbs from 0, linearly."""
    decay: Literal["none", "cosine"] = "none"
    """What becomes of the learning rate after the warm-up: it stays, or falls to 0 along a cosine."""
    clip_norm: PositiveFloat | None = None
    """The largest norm of all gradients together, both tasks' and all embeddings'; larger ones are scaled down."""
    ema: Share | None = None
    """Part of the averaged weights that a step keeps; what is exported, and measured on the validation slice, is the
    average. It is corrected for its start, so the initial weights are no part of it, however short the training. Left
    out, the weights are the last ones, or Lookahead's slow ones."""
    lookahead: Lookahead | None = None
    """Left out, the optimizer's own steps are the weights."""

    @pydantic.model_validator(mode="after")
    def _decays_what_it_can(self) -> Optimizer:
        if self.weight_decay and self.kind not in ("adamw", "radam"):
            raise ValueError(
                f"weight_decay is {self.weight_decay:g}, which {self.kind} knows nothing of; use adamw or radam, or "
                "embedding_l2 and l2 of the towers"
            )
        return self


class Validation(Section):
    """A slice of train that is kept from training, to see when to stop. The eval split is never looked at."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """The part of train."""
    max_rows: PositiveInt = 100_000
    """At most as many interactions: each is ranked among all items after every epoch, and more tell little more."""
    kind: Literal["random", "latest"] | None = None
    """Which rows: any, or the latest ones. Left out, `latest` where the split is by time or each user's last rows."""
    seed: int = 0
    """Another seed keeps other rows."""


class EarlyStopping(Section):
    """Training ends when the validation slice says so, and goes back to the best epoch's weights."""

    metric: Literal["top_100_accuracy", "rmse"]
    """What is best, measured on the validation slice after every epoch."""
    patience: PositiveInt = 3
    """Epochs without a better value after which training ends."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Less than this does not count as better."""

    @property
    def higher_is_better(self) -> bool:
        """Whether more of `metric` is better."""
        return self.metric == "top_100_accuracy"


class Training(Section):
    """How long and in which steps the model is fitted."""

    epochs: PositiveInt = 10
    """How often training goes through all interactions, at most."""
    steps: PositiveInt | None = None
    """Batches instead of epochs: training ends after as many, in the middle of an epoch if need be, and `epochs` does
    not count."""
    batch_size: PositiveInt = 4096
    """Interactions a step; the retrieval task takes its negatives from among them."""
    optimizer: Optimizer = Optimizer()
    recency_half_life_days: PositiveFloat | None = None
    """Interactions weigh half as much for retrieval when they are this much older than the latest of train."""
    rating_recency_half_life_days: PositiveFloat | None = None
    """The same for ratings: fashions fade sooner than opinions."""
    validation: Validation | None = None
    """Left out, all of train is trained on, and the curves have no accuracy and no RMSE."""
    early_stopping: EarlyStopping | None = None
    """Needs `validation`."""
    mixed_precision: bool = False
    """Computes in 16 bits where that is safe: float16 on GPUs, bfloat16 elsewhere."""
    xla: bool = False
    """Compiles a step with XLA, once for full batches and once for the last one of an epoch: worth its start-up time in
    long runs on a GPU. Without, a batch's copies of an item are scored once, which is faster on CPUs."""
    seed: int = 0
    """Of the initial weights, the order of the interactions and dropout."""

    @pydantic.model_validator(mode="after")
    def _stops_by_what_it_measures(self) -> Training:
        if self.early_stopping is not None and self.validation is None:
            raise ValueError("early_stopping is given without validation; give validation: {fraction: 0.05}")
        return self
