"""The sections `slices` and `gates`: what the Evaluator measures, and what a model must reach to be blessed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from recipe.errors import did_you_mean
from recipe.section import Section, Share

# What the Evaluator measures on the eval split, and whether more of it is better; components/evaluator/metrics.py says
# what each one is.
METRICS: dict[str, Literal["higher", "lower"]] = {
    "top_1_accuracy": "higher",
    "top_5_accuracy": "higher",
    "top_10_accuracy": "higher",
    "top_50_accuracy": "higher",
    "top_100_accuracy": "higher",
    "top_1_accuracy_unseen": "higher",
    "top_5_accuracy_unseen": "higher",
    "top_10_accuracy_unseen": "higher",
    "top_50_accuracy_unseen": "higher",
    "top_100_accuracy_unseen": "higher",
    "ndcg_10": "higher",
    "recall_10": "higher",
    "mrr": "higher",
    "coverage_10": "higher",
    "popularity_bias_10": "lower",
    "rmse": "lower",
    "mae": "lower",
}

RATING_METRICS = ("rmse", "mae")
"""Those of the rating task, whose baseline is the damped user and item means; the others' is the most popular items."""

CONDITIONS = ("at_least", "at_most", "may_drop", "may_rise", "beats_baseline_by")
"""The bounds that a gate may have."""

USER_ACTIVITY = "user_activity"

ITEM_POPULARITY = "item_popularity"

# The slices that every dataset has, from the least known to the best.
READY_SLICES: dict[str, tuple[str, ...]] = {
    USER_ACTIVITY: ("new", "light", "heavy"),
    ITEM_POPULARITY: ("cold", "tail", "torso", "head"),
}


class UserActivity(Section):
    """Eval examples by how many interactions their user has in train.

    `new`: none; `light`: fewer than most; `heavy`: the others.
    """

    heavy: Share = 0.5
    """Heavy users have more interactions than this part of train's users."""


class ItemPopularity(Section):
    """Eval examples by how many interactions their item has in train.

    `cold`: none; `tail`, `torso` and `head`: few, more and most.
    """

    torso: Share = 0.5
    """Items above the tail have more interactions than this part of train's items."""
    head: Share = 0.8
    """Items of the head have more interactions than this part of train's items."""

    @pydantic.model_validator(mode="after")
    def _is_in_order(self) -> ItemPopularity:
        if self.torso > self.head:
            raise ValueError(f"torso is {self.torso:g} and head {self.head:g}; the torso begins below the head")
        return self


class Slices(Section):
    """Parts of the eval split that are measured on their own, besides the whole of it."""

    columns: tuple[str, ...] = ()
    """Columns, of text or whole numbers, with few different values; each value is a slice. Examples without a value
    are in none. The columns of the gates' slices are measured too, whether or not they are listed here."""
    user_activity: UserActivity | None = UserActivity()
    """Left out, it is on; `null` switches it off."""
    item_popularity: ItemPopularity | None = ItemPopularity()
    """Left out, it is on; `null` switches it off."""


def _is_a_value(value: Any) -> Any:
    # YAML 1.1 reads `no` and `off` as false, which pydantic would take for 0.
    if isinstance(value, bool):
        raise ValueError(f"the value was read as {str(value).lower()}; put it in quotes")
    return value


class Gate(Section):
    """A condition on one metric, on the whole eval split or on a slice. A model that fails any gate is not pushed."""

    metric: str
    """What is measured on the eval split: one of `METRICS`."""
    slice: dict[str, Annotated[str | int, pydantic.BeforeValidator(_is_a_value)]] | None = None
    """Which part of the eval split is measured, as `{user_activity: new}` or `{COLUMN: VALUE}`; left out, all of it.
    A gate whose slice has no examples fails."""
    at_least: float | None = None
    """The smallest value that passes."""
    at_most: float | None = None
    """The largest value that passes."""
    may_drop: Annotated[float, Field(ge=0)] | None = None
    """How far the metric may fall below the last blessed model's."""
    may_rise: Annotated[float, Field(ge=0)] | None = None
    """How far the metric may climb above the last blessed model's."""
    beats_baseline_by: Annotated[float, Field(ge=0)] | None = None
    """How much better than the baseline the metric must be, at least; 0 is as good. For `rmse` and `mae` the baseline
    predicts damped user and item means, for the others it recommends the most popular items."""

    @property
    def conditions(self) -> dict[str, float]:
        """The bounds that are given, by key."""
        given = {name: getattr(self, name) for name in CONDITIONS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def slice_key(self) -> tuple[str, str] | None:
        """Name and value of the slice; None for the whole eval split."""
        return None if self.slice is None else next((name, str(value)) for name, value in self.slice.items())

    @pydantic.model_validator(mode="after")
    def _is_a_condition(self) -> Gate:
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}{did_you_mean(self.metric, METRICS)}")
        if not self.conditions:
            raise ValueError(f"the gate has no bound; give {', '.join(CONDITIONS[:-1])} or {CONDITIONS[-1]}")
        wrong = "may_rise" if METRICS[self.metric] == "higher" else "may_drop"
        if getattr(self, wrong) is not None:
            right = "may_drop" if wrong == "may_rise" else "may_rise"
            raise ValueError(f"{wrong} makes no sense for {self.metric}, where {METRICS[self.metric]} is better; "
                             f"use {right}")  # fmt: skip
        return self

    @pydantic.model_validator(mode="after")
    def _has_one_slice(self) -> Gate:
        if self.slice is not None and len(self.slice) != 1:
            raise ValueError(
                f"slice has {len(self.slice)} entries; one was wanted, such as slice: {{{USER_ACTIVITY}: new}}"
            )
        if self.slice_key is not None:
            name, value = self.slice_key
            known = READY_SLICES.get(name)
            if known is not None and value not in known:
                raise ValueError(
                    f"the slice {name} has no part {value!r}{did_you_mean(value, known)}; it has {', '.join(known)}"
                )
        return self
