"""The Evaluator's decision in words and numbers: every bound, what was measured, and by how much it passed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pydantic

VERDICT_FILE = "verdict.json"

Condition = Literal["at_least", "at_most", "may_drop", "may_rise"]


class Bound(pydantic.BaseModel):
    """One condition of one gate, measured."""

    metric: str
    condition: Condition
    limit: float
    """The bound on the metric itself; for `may_drop` and `may_rise` the last blessed model's value is included."""
    measured: float | None
    """None where the metric could not be computed."""
    passed: bool
    margin: float | None
    """How far on the good side of the limit; negative where it failed."""

    def __str__(self) -> str:
        side = {"at_least": "at least", "may_drop": "at least", "at_most": "at most", "may_rise": "at most"}
        source = " (last blessed model)" if self.condition.startswith("may_") else ""
        # More digits where four would show the same number twice.
        digits = 8 if self.measured is not None and f"{self.measured:.4f}" == f"{self.limit:.4f}" else 4
        measured = "nothing" if self.measured is None else f"{self.measured:.{digits}f}"
        return f"{self.metric}: {side[self.condition]} {self.limit:.{digits}f} wanted{source}, {measured} measured"


class Verdict(pydantic.BaseModel):
    """What the Evaluator found; written as `verdict.json` beside TFMA's own output."""

    blessed: bool
    examples: int
    """Eval examples measured."""
    metrics: dict[str, float]
    baseline_metrics: dict[str, float]
    """The last blessed model's metrics on the same examples; empty where there is none yet."""
    bounds: tuple[Bound, ...]

    def failures(self) -> Sequence[Bound]:
        return [bound for bound in self.bounds if not bound.passed]
