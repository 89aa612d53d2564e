"""The section `tuner`: a hyperparameter search. `TunerRecipe` is the part of the recipe that the Tuner reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from recipe.keys import DottedKey
from recipe.section import Section
from recipe.trainer import TrainerRecipe


class Search(Section):
    """The search space of one key: `choices`, or a range from `low` to `high`."""

    choices: Annotated[tuple[Any, ...], Field(min_length=2)] | None = None
    """List of values that the key accepts: numbers, strings, lists or whole sections."""
    low: float | None = None
    """Minimum of the range."""
    high: float | None = None
    """Maximum of the range."""
    step: PositiveFloat | None = None
    """Step between two values of the range, starting at `low`; with `scale: log` a factor. If not set, the range is
    continuous."""
    scale: Literal["linear", "log"] = "linear"
    """Sampling of the range: uniform, or uniform in the logarithm."""

    @pydantic.model_validator(mode="after")
    def _is_choices_or_a_range(self) -> Search:
        bounds = (self.low, self.high)
        if self.choices is not None:
            if any(bound is not None for bound in (*bounds, self.step)) or self.scale != "linear":
                raise ValueError("expected choices or a range, got both; remove one of them")
            return self
        if self.low is None or self.high is None:
            raise ValueError("expected choices, or both low and high; add the missing key")
        if self.low >= self.high:
            raise ValueError(f"expected low < high, got low {self.low:g} and high {self.high:g}; swap or change them")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"expected low > 0 with scale: log, got {self.low:g}; increase low, or use scale: linear")
        if self.scale == "log" and self.step is not None and self.step <= 1:
            raise ValueError(
                f"expected step > 1 with scale: log, where it is a factor, got {self.step:g}; increase step"
            )
        return self

    def ends(self, fractions: bool) -> tuple[float, float]:
        """Return both ends of the range, as integers unless the key accepts `fractions`."""
        if self.low is None or self.high is None:
            raise ValueError("choices is set, so the search space is not a range")
        return (self.low, self.high) if fractions else (int(self.low), int(self.high))


class Objective(Section):
    """The objective of a trial, measured on the validation split: weighted top-100 accuracy minus weighted RMSE."""

    top_100_accuracy: Annotated[float, Field(ge=0)] = 0.0
    """Weight of top-100 accuracy."""
    rmse: Annotated[float, Field(ge=0)] = 0.0
    """Weight of RMSE."""

    @pydantic.model_validator(mode="after")
    def _has_a_metric(self) -> Objective:
        if not self.top_100_accuracy and not self.rmse:
            raise ValueError("top_100_accuracy and rmse are both 0; set at least one of them above 0")
        return self


class Tuner(Section):
    """Hyperparameter search with KerasTuner. The Trainer then trains with the values of the best trial.

    Trials train on the train split without the validation split (`training.validation`, or its defaults) and are
    evaluated on the validation split. The eval split is not used.
    """

    search: Annotated[dict[DottedKey, Search], Field(min_length=1)]
    """Search space by dotted key of `model` or `training`, such as `training.optimizer.learning_rate`."""
    objective: Objective = Objective(top_100_accuracy=1, rmse=1)
    """Objective of a trial. If not set, both metrics have weight 1."""
    algorithm: Literal["random", "bayesian", "hyperband"] = "random"
    """Search algorithm of KerasTuner: random search, Bayesian optimization with a Gaussian process, or Hyperband (Li et
    al. 2018, jmlr.org/papers/v18/16-558.html)."""
    trials: PositiveInt | None = None
    """Maximum number of trials. If not set, 10. `hyperband` derives it from `epochs`."""
    epochs: PositiveInt | None = None
    """Maximum number of epochs of a trial. If not set, `training.epochs`."""
    seed: int = 0
    """Random seed of the search. Trials use `training.seed`."""

    @pydantic.model_validator(mode="after")
    def _hyperband_derives_trials(self) -> Tuner:
        if self.algorithm == "hyperband" and self.trials is not None:
            raise ValueError(
                f"trials is {self.trials}, but hyperband derives the number of trials from epochs; remove trials"
            )
        return self


class TunerRecipe(TrainerRecipe):
    """The part of the recipe that the Tuner reads; see `Recipe.for_tuner`."""

    tuner: Tuner
