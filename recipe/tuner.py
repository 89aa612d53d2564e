"""The section `tuner`: a search for better values of some keys. `TunerRecipe` is what the Tuner gets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from recipe.section import Section
from recipe.trainer import TrainerRecipe


class Search(Section):
    """The values of one key that the Tuner tries: `choices`, or what lies between `low` and `high`."""

    choices: Annotated[tuple[Any, ...], Field(min_length=2)] | None = None
    """Values as the key takes them: numbers, words, lists, or whole sections."""
    low: float | None = None
    """The smallest number."""
    high: float | None = None
    """The largest number."""
    step: PositiveFloat | None = None
    """The distance from one number to the next, from `low` on; with `scale: log` the factor. Left out, any number."""
    scale: Literal["linear", "log"] = "linear"
    """`log` tries as many numbers from 0.001 to 0.01 as from 0.01 to 0.1."""

    @pydantic.model_validator(mode="after")
    def _is_choices_or_a_range(self) -> Search:
        bounds = (self.low, self.high)
        if self.choices is not None:
            if any(bound is not None for bound in (*bounds, self.step)) or self.scale != "linear":
                raise ValueError("choices stands beside a range; keep one of them")
            return self
        if self.low is None or self.high is None:
            raise ValueError("either choices, or low and high were wanted")
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}; low must be less")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low is {self.low:g}, which has no logarithm; give a low above 0")
        if self.scale == "log" and self.step is not None and self.step <= 1:
            raise ValueError(f"step is {self.step:g}; with scale: log it is a factor, so more than 1 was wanted")
        return self

    def ends(self, fractions: bool) -> tuple[float, float]:
        """Both ends of the range: whole numbers unless the key takes `fractions`."""
        if self.low is None or self.high is None:
            raise ValueError("choices have no ends")
        return (self.low, self.high) if fractions else (int(self.low), int(self.high))


class Objective(Section):
    """What makes a trial good, measured on the validation slice: accuracy times its weight minus RMSE times its own."""

    top_100_accuracy: Annotated[float, Field(ge=0)] = 0.0
    """Weight of top-100 accuracy."""
    rmse: Annotated[float, Field(ge=0)] = 0.0
    """Weight of RMSE."""

    @pydantic.model_validator(mode="after")
    def _measures_something(self) -> Objective:
        if not self.top_100_accuracy and not self.rmse:
            raise ValueError("no metric has a weight; give top_100_accuracy or rmse one above 0")
        return self


class Tuner(Section):
    """A search for better values of some keys, before the Trainer, which then trains with the best ones.

    Trials train on train without the validation slice (`training.validation`, or its defaults) and are measured on
    the slice. The eval split is never looked at.
    """

    search: Annotated[dict[str, Search], Field(min_length=1)]
    """What is tried: dotted keys of `model` and `training`, such as `training.optimizer.learning_rate`."""
    objective: Objective = Objective(top_100_accuracy=1, rmse=1)
    """What makes a trial good; left out, both metrics have the weight 1."""
    algorithm: Literal["random", "bayesian", "hyperband"] = "random"
    """How KerasTuner chooses the next trial: at random, by a Gaussian process over the trials so far, or at random with
    most trials stopped early (Li et al. 2018, jmlr.org/papers/v18/16-558.html)."""
    trials: PositiveInt | None = None
    """How many trials; left out, 10. How many `hyperband` runs follows from `epochs`."""
    epochs: PositiveInt | None = None
    """Epochs of a trial, at most; left out, those of `training`."""
    seed: int = 0
    """Another seed tries other values; the trials' own seed is that of `training`."""

    @pydantic.model_validator(mode="after")
    def _counts_trials_once(self) -> Tuner:
        if self.algorithm == "hyperband" and self.trials is not None:
            raise ValueError(f"trials is {self.trials}, but hyperband's number of trials follows from epochs; drop it")
        return self


class TunerRecipe(TrainerRecipe):
    """What the Tuner gets; see `Recipe.for_tuner`."""

    tuner: Tuner
