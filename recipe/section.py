"""The strict pydantic base class of all sections of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0, lt=1)]
"""A fraction or probability: 0 or more, less than 1."""


class Section(pydantic.BaseModel):
    """A section of the recipe. Unknown keys are errors, and instances are immutable."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=False, allow_inf_nan=False, use_attribute_docstrings=True
    )

    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Old name to new name of keys that were renamed; see `recipe.renamed`."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _booleans_are_not_numbers(cls, values: Any) -> Any:
        # Not strict, because YAML 1.1 reads 1e-3 as a string; but `true` must not be accepted as 1.
        for name, field in cls.model_fields.items():
            found = values.get(name) if isinstance(values, dict) else None
            if isinstance(found, bool) and field.annotation is not bool:
                raise PydanticCustomError("boolean", "expected a number or string", {"key": name})
        return values
