"""What the recipe decides about the evaluation; what the component hands to its executor."""

from __future__ import annotations

import pydantic

from recipe.evaluation import READY_SLICES, Gate, Slices


class Settings(pydantic.BaseModel):
    """Everything about the evaluation but the models and the examples."""

    gates: tuple[Gate, ...]
    slices: Slices
    label: str
    """The raw feature that holds the label."""
    exclude_seen: bool
    """Whether `recommend` leaves out what the user has had: per-user metrics are over what it chooses from."""
    negatives: bool = False
    """Whether the examples hold sampled negatives, which `IS_POSITIVE` tells from interactions."""
    code_version: str = ""
    """Changes with the code, so that no cached verdict outlives it."""

    @property
    def slice_columns(self) -> tuple[str, ...]:
        """The raw features whose values are slices."""
        gated = [gate.slice_key[0] for gate in self.gates if gate.slice_key is not None]
        return tuple(dict.fromkeys([*self.slices.columns, *(name for name in gated if name not in READY_SLICES)]))
