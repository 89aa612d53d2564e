"""Settings of the Evaluator from the recipe, which the component passes to its executor."""

from __future__ import annotations

import pydantic

from recipe.evaluation import READY_SLICES, Gate, Slices


class EvaluatorSettings(pydantic.BaseModel):
    """All inputs of the evaluation except models and examples."""

    gates: tuple[Gate, ...]
    slices: Slices
    label: str
    """Raw feature of the label."""
    exclude_seen: bool
    """Whether `recommend` excludes seen items; per-user metrics then rank unseen items only."""
    negatives: bool = False
    """Whether the examples include sampled negatives, for which `IS_POSITIVE` is 0."""
    code_version: str = ""
    """Hash of the component's code; part of the cache key."""

    @property
    def slice_columns(self) -> tuple[str, ...]:
        """Raw features whose values are slices."""
        gated = [gate.slice_key[0] for gate in self.gates if gate.slice_key is not None]
        return tuple(dict.fromkeys([*self.slices.columns, *(name for name in gated if name not in READY_SLICES)]))
