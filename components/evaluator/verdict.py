"""Gate results: every threshold of every gate with the measured value and the margin, and the decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import pydantic

from recipe.evaluation import METRICS, RATING_METRICS, READY_SLICES, Gate

VERDICT_FILE = "verdict.json"

Condition = Literal["at_least", "at_most", "may_drop", "may_rise", "beats_baseline_by"]

CONDITIONS: tuple[Condition, ...] = get_args(Condition)

SliceKey = tuple[str, str]
"""Name and value of a slice: `("user_activity", "new")`."""

# Tolerance of float differences: an unchanged metric passes `may_drop: 0`.
ROUNDING = 1e-9

NO_LAST_BLESSED = "passed without a comparison: no model is blessed yet"


class Measured(pydantic.BaseModel):
    """Metrics of the eval split or a slice; metrics that could not be computed are omitted."""

    examples: int = 0
    metrics: dict[str, float] = {}
    baselines: dict[str, float] = {}
    """Metrics of the baselines: user and item means for `RATING_METRICS`, else the most popular items."""
    last_blessed: dict[str, float] = {}
    """Metrics of the last blessed model; empty if there is none, or it cannot be evaluated."""


class MeasuredSlice(Measured):
    """Metrics of a slice."""

    name: str
    value: str


class Bound(pydantic.BaseModel):
    """Result of one condition of one gate."""

    metric: str
    slice: dict[str, str] | None = None
    """Name and value of the slice; None for the eval split."""
    condition: Condition
    allowed: float
    """Value of the condition in the recipe."""
    reference: float | None = None
    """Value of the last blessed model or the baseline, for conditions that compare with it."""
    limit: float | None
    """Threshold of the metric, computed from `allowed` and `reference`; None without a required reference."""
    measured: float | None
    """Value of the metric; None if it could not be computed."""
    passed: bool
    margin: float | None
    """Distance of the value from the threshold; negative if it failed."""
    examples: int = 0
    """Number of eval examples in the slice."""
    reason: str = ""
    """Reason why it failed without a value, or passed without a comparison."""

    @property
    def subject(self) -> str:
        """The metric and its slice."""
        where = [f" where {name} is {value}" for name, value in (self.slice or {}).items()]
        return self.metric + "".join(where)

    def __str__(self) -> str:
        if self.reason:
            return f"{self.subject}: {self.reason}"
        assert self.limit is not None and self.measured is not None
        # More digits if the rounded values are equal.
        digits = 8 if f"{self.measured:.4f}" == f"{self.limit:.4f}" and not self.passed else 4
        sign = "≥" if _is_lower_bound(self.metric, self.condition) else "≤"
        text = f"{self.subject}: threshold {sign} {self.limit:.{digits}f}, measured {self.measured:.{digits}f}"
        if self.reference is None:
            return text
        source = "last blessed model" if self.condition != "beats_baseline_by" else _baseline(self.metric)
        return f"{text} ({source}: {self.reference:.{digits}f})"


class Verdict(Measured):
    """Metrics, gate results and decision; written as `verdict.json` beside TFMA's output."""

    blessed: bool
    bounds: tuple[Bound, ...]
    slices: tuple[MeasuredSlice, ...] = ()
    last_blessed_problem: str | None = None
    """Reason why the last blessed model could not be evaluated; None if it was, or there is none."""

    def failures(self) -> Sequence[Bound]:
        """Return the results that failed."""
        return [bound for bound in self.bounds if not bound.passed]


def decide(
    gates: Sequence[Gate], measured: Mapping[SliceKey | None, Measured], last_blessed_problem: str | None = None
) -> Verdict:
    """Apply the gates: the model is blessed if it passes every threshold.

    A threshold on a metric that was not measured fails, so that a gate on a slice without examples never passes
    silently. A change threshold (`may_drop`, `may_rise`) passes without a last blessed model: otherwise no first model
    could be blessed.

    Args:
        gates: The recipe's gates.
        measured: Metrics by slice; the key of the eval split is None.
        last_blessed_problem: Why the last blessed model could not be evaluated; None if it was, or there is none.
    """
    whole = measured.get(None, Measured())
    nothing = last_blessed_problem or NO_LAST_BLESSED
    bounds = tuple(
        _bound(gate, condition, measured.get(gate.slice_key, Measured()), nothing)
        for gate in gates
        for condition in CONDITIONS
        if condition in gate.conditions
    )
    slices = [(key, found) for key, found in measured.items() if key is not None]
    return Verdict(
        **whole.model_dump(),
        blessed=whole.examples > 0 and all(bound.passed for bound in bounds),
        bounds=bounds,
        slices=tuple(
            MeasuredSlice(name=key[0], value=key[1], **found.model_dump()) for key, found in sorted(slices, key=_order)
        ),
        last_blessed_problem=last_blessed_problem,
    )


def _bound(gate: Gate, condition: Condition, measured: Measured, nothing: str) -> Bound:
    allowed, metric = gate.conditions[condition], gate.metric
    is_lower = _is_lower_bound(metric, condition)
    reference, reason = None, ""
    limit: float | None = allowed
    if condition == "beats_baseline_by":
        reference = measured.baselines.get(metric)
        limit = None if reference is None else reference + (allowed if is_lower else -allowed)
    elif condition in ("may_drop", "may_rise"):
        reference = measured.last_blessed.get(metric)
        limit = None if reference is None else reference + (-allowed if is_lower else allowed)
        reason = "" if measured.last_blessed else nothing
    value = measured.metrics.get(metric)
    margin = None
    if value is None:
        passed, reason = False, _why_nothing(gate, measured)
    elif limit is None:
        passed = condition != "beats_baseline_by"
        other = "baseline" if condition == "beats_baseline_by" else "last blessed model"
        reason = reason or f"the {other} has no {metric} to compare with"
    else:
        margin = value - limit if is_lower else limit - value
        passed = margin >= (0 if reference is None else -ROUNDING)
    return Bound(
        metric=metric,
        slice=None if gate.slice_key is None else dict([gate.slice_key]),
        condition=condition,
        allowed=allowed,
        reference=reference,
        limit=limit,
        measured=value,
        passed=passed,
        margin=margin,
        examples=measured.examples,
        reason=reason,
    )


def _why_nothing(gate: Gate, measured: Measured) -> str:
    """Return why a metric was not measured, with a remedy."""
    if not measured.examples and gate.slice_key is not None:
        return (
            "not measured: no eval example is in this slice. Remove the gate, or change the split so that "
            "the slice has examples"
        )
    if not measured.examples:
        return "not measured: the eval split has no examples"
    if gate.metric in RATING_METRICS:
        return "not measured: some predicted ratings are NaN or infinite; training diverged"
    return "not measured: all examples are sampled negatives, which ranking metrics do not count"


def _is_lower_bound(metric: str, condition: Condition) -> bool:
    """Whether the threshold of a condition is a lower bound."""
    return {"at_least": True, "at_most": False, "may_drop": True, "may_rise": False}.get(
        condition, METRICS[metric] == "higher"
    )


def _baseline(metric: str) -> str:
    """Name of a metric's baseline."""
    return "baseline, user and item means" if metric in RATING_METRICS else "baseline, most popular items"


def _order(slice_: tuple[SliceKey, Measured]) -> tuple[int, str, int, int, str]:
    """Sort key: built-in slices by activity or popularity, then columns by number of examples."""
    (name, value), measured = slice_
    if name in READY_SLICES:
        return list(READY_SLICES).index(name), name, READY_SLICES[name].index(value), 0, value
    return len(READY_SLICES), name, 0, -measured.examples, value
