"""The sections `slices` and `gates`: the metrics that the Evaluator measures, and the conditions of its blessing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from recipe.errors import did_you_mean
from recipe.section import Fraction, Section

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
"""Metrics of the Evaluator, and whether higher or lower is better; components/evaluator/metrics.py defines them."""

RATING_METRICS = ("rmse", "mae")
"""Metrics of the rating task. Their baseline is the damped means; that of the others is the most popular items."""

CONDITIONS = ("at_least", "at_most", "may_drop", "may_rise", "beats_baseline_by")
"""Keys of a gate's thresholds."""

USER_ACTIVITY = "user_activity"

ITEM_POPULARITY = "item_popularity"

READY_SLICES: dict[str, tuple[str, ...]] = {
    USER_ACTIVITY: ("new", "light", "heavy"),
    ITEM_POPULARITY: ("cold", "tail", "torso", "head"),
}
"""Built-in slices by number of interactions in the train split, in ascending order."""


class UserActivity(Section):
    """Slices of the eval split by the user's number of interactions in the train split.

    `new`: none; `light`: up to the quantile `heavy`; `heavy`: above it.
    """

    heavy: Fraction = 0.5
    """Quantile of the users of the train split, by number of interactions, above which users are `heavy`."""


class ItemPopularity(Section):
    """Slices of the eval split by the item's number of interactions in the train split.

    `cold`: none; `tail`: up to the quantile `torso`; `torso`: up to the quantile `head`; `head`: above it.
    """

    torso: Fraction = 0.5
    """Quantile of the items of the train split, by number of interactions, above which items are `torso`."""
    head: Fraction = 0.8
    """Quantile of the items of the train split, by number of interactions, above which items are `head`."""

    @pydantic.model_validator(mode="after")
    def _is_in_order(self) -> ItemPopularity:
        if self.torso > self.head:
            raise ValueError(
                f"expected torso ≤ head, got torso {self.torso:g} and head {self.head:g}; swap or change them"
            )
        return self


class Slices(Section):
    """Slices of the eval split, which are measured besides the whole split."""

    columns: tuple[str, ...] = ()
    """Columns with strings or integers and few distinct values. Each value is a slice; examples without a value are in
    no slice. Columns of the gates' slices are added automatically."""
    user_activity: UserActivity | None = UserActivity()
    """Enabled by default; `null` disables it."""
    item_popularity: ItemPopularity | None = ItemPopularity()
    """Enabled by default; `null` disables it."""


def _is_no_boolean(value: Any) -> Any:
    # YAML 1.1 reads `no` and `off` as false, which pydantic would convert to 0.
    if isinstance(value, bool):
        raise ValueError(f"expected a string or integer, got {str(value).lower()}; put the value in quotes")
    return value


class Gate(Section):
    """Thresholds of one metric, on the whole eval split or on a slice. A model that fails a gate is not blessed."""

    metric: str
    """Name of the metric, one of `METRICS`."""
    slice: dict[str, Annotated[str | int, pydantic.BeforeValidator(_is_no_boolean)]] | None = None
    """Slice of the eval split, as `{user_activity: new}` or `{COLUMN: VALUE}`. If not set, the whole split. A gate on a
    slice without examples fails."""
    at_least: float | None = None
    """Value threshold: minimum of the metric."""
    at_most: float | None = None
    """Value threshold: maximum of the metric."""
    may_drop: Annotated[float, Field(ge=0)] | None = None
    """Change threshold: maximum decrease from the last blessed model."""
    may_rise: Annotated[float, Field(ge=0)] | None = None
    """Change threshold: maximum increase from the last blessed model."""
    beats_baseline_by: Annotated[float, Field(ge=0)] | None = None
    """Minimum improvement over the baseline; 0 accepts a model that is equal to it. The baseline of `rmse` and `mae` is
    the damped user and item means, that of other metrics the most popular items."""

    @property
    def conditions(self) -> dict[str, float]:
        """The thresholds that are set, by key."""
        given = {name: getattr(self, name) for name in CONDITIONS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def slice_key(self) -> tuple[str, str] | None:
        """Name and value of the slice, or None for the whole eval split."""
        return None if self.slice is None else next((name, str(value)) for name, value in self.slice.items())

    @pydantic.field_validator("metric")
    @classmethod
    def _is_a_metric(cls, name: str) -> str:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}{did_you_mean(name, METRICS)}")
        return name

    @pydantic.field_validator("slice")
    @classmethod
    def _is_one_slice(cls, found: dict[str, str | int] | None) -> dict[str, str | int] | None:
        if found is not None and len(found) != 1:
            raise ValueError(
                f"expected one entry, such as {{{USER_ACTIVITY}: new}}, got {len(found)}; add one gate per slice"
            )
        for name, value in (found or {}).items():
            known = READY_SLICES.get(name)
            if known is not None and str(value) not in known:
                close = did_you_mean(str(value), known)
                raise ValueError(f"expected one of {', '.join(known)} for {name}, got {value!r}{close}")
        return found

    @pydantic.model_validator(mode="after")
    def _has_thresholds(self) -> Gate:
        if not self.conditions:
            raise ValueError(f"the gate has no threshold; set {', '.join(CONDITIONS[:-1])} or {CONDITIONS[-1]}")
        wrong = "may_rise" if METRICS[self.metric] == "higher" else "may_drop"
        if getattr(self, wrong) is not None:
            right = "may_drop" if wrong == "may_rise" else "may_rise"
            raise ValueError(f"{wrong} does not apply to {self.metric}, where {METRICS[self.metric]} is better; "
                             f"use {right}")  # fmt: skip
        return self
