"""The gate's decision in words and numbers: every bound of every gate, what was measured, by how much it passed."""

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

# Differences of floats are compared; a change of nothing must pass `may_drop: 0`.
ROUNDING = 1e-9

NO_LAST_BLESSED = "there is no blessed model yet to compare with"


class Measured(pydantic.BaseModel):
    """What was measured on a part of the eval split; metrics that could not be computed are left out."""

    examples: int = 0
    metrics: dict[str, float] = {}
    baselines: dict[str, float] = {}
    """The same metrics of the baselines: user and item means for `RATING_METRICS`, else the most popular items."""
    last_blessed: dict[str, float] = {}
    """The same metrics of the last blessed model; empty where there is none yet, or none that can be measured."""


class MeasuredSlice(Measured):
    """What was measured on a slice."""

    name: str
    value: str


class Bound(pydantic.BaseModel):
    """One condition of one gate, measured."""

    metric: str
    slice: dict[str, str] | None = None
    """Name and value of the slice; None for the whole eval split."""
    condition: Condition
    allowed: float
    """The number in the recipe."""
    reference: float | None = None
    """The last blessed model's value or the baseline's, for conditions that compare with it."""
    limit: float | None
    """The bound on the metric itself: `allowed`, with `reference` included; None where there is nothing to compare."""
    measured: float | None
    """None where the metric could not be computed."""
    passed: bool
    margin: float | None
    """How far on the good side of the limit; negative where it failed."""
    examples: int = 0
    """Eval examples of the slice."""
    reason: str = ""
    """Why it failed although no number is on the wrong side, or passed although nothing could be compared."""

    @property
    def subject(self) -> str:
        """The metric, and the slice it was measured on."""
        where = [f" where {name} is {value}" for name, value in (self.slice or {}).items()]
        return self.metric + "".join(where)

    def __str__(self) -> str:
        if self.reason:
            return f"{self.subject}: {self.reason}"
        assert self.limit is not None and self.measured is not None
        # More digits where four would show the same number twice.
        digits = 8 if f"{self.measured:.4f}" == f"{self.limit:.4f}" and not self.passed else 4
        side = "at least" if _is_lower_bound(self.metric, self.condition) else "at most"
        text = f"{self.subject}: {side} {self.limit:.{digits}f} wanted, {self.measured:.{digits}f} measured"
        if self.reference is None:
            return text
        source = "the last blessed model has" if self.condition != "beats_baseline_by" else _baseline(self.metric)
        return f"{text} ({source} {self.reference:.{digits}f})"


class Verdict(Measured):
    """What the Evaluator found; written as `verdict.json` beside TFMA's own output."""

    blessed: bool
    bounds: tuple[Bound, ...]
    slices: tuple[MeasuredSlice, ...] = ()
    last_blessed_problem: str | None = None
    """Why the last blessed model could not be measured, where there is one."""

    def failures(self) -> Sequence[Bound]:
        return [bound for bound in self.bounds if not bound.passed]


def decide(
    gates: Sequence[Gate], measured: Mapping[SliceKey | None, Measured], last_blessed_problem: str | None = None
) -> Verdict:
    """Whether a model may replace the one that is being served: it may if it passes every bound of every gate.

    A bound whose metric was not measured fails, so that a gate on a slice without examples never passes silently. A
    bound on the change against the last blessed model passes where there is none to compare with: otherwise there would
    never be a first one.

    Args:
        gates: The recipe's gates.
        measured: What was measured by slice, on the whole eval split under None.
        last_blessed_problem: Why the last blessed model could not be measured; None where it was, or there is none.
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
    """Why a metric could not be measured, and what to do."""
    if not measured.examples and gate.slice_key is not None:
        return (
            "nothing was measured, because no eval example is in this slice; drop the gate, or split the data so that "
            "the slice has examples"
        )
    if not measured.examples:
        return "nothing was measured, because the eval split has no examples"
    if gate.metric in RATING_METRICS:
        return "nothing was measured, because some of the model's ratings are not numbers; its training went astray"
    return (
        "nothing was measured, because every example here is a sampled negative, and those say nothing about what the "
        "model should recommend"
    )


def _is_lower_bound(metric: str, condition: Condition) -> bool:
    """Whether a condition asks for at least something."""
    return {"at_least": True, "at_most": False, "may_drop": True, "may_rise": False}.get(
        condition, METRICS[metric] == "higher"
    )


def _baseline(metric: str) -> str:
    """What the baseline does, as the start of a sentence that ends with its value."""
    if metric in RATING_METRICS:
        return "predicting user and item means gives"
    return "recommending the most popular items gives"


def _order(slice_: tuple[SliceKey, Measured]) -> tuple[int, str, int, int, str]:
    """Ready-made slices first, from the least known to the best; then columns, the most frequent value first."""
    (name, value), measured = slice_
    if name in READY_SLICES:
        return list(READY_SLICES).index(name), name, READY_SLICES[name].index(value), 0, value
    return len(READY_SLICES), name, 0, -measured.examples, value
