"""The strict pydantic base of every section of the recipe."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

Share = Annotated[float, Field(ge=0, lt=1)]


class Section(pydantic.BaseModel):
    """A part of the recipe. Unknown keys are errors, and nothing changes after validation."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=False, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _numbers_are_not_switches(cls, values: Any) -> Any:
        # Not strict, because YAML 1.1 reads 1e-3 as text; but `true` must not pass for 1.
        for name, field in cls.model_fields.items():
            found = values.get(name) if isinstance(values, dict) else None
            if isinstance(found, bool) and field.annotation is not bool:
                raise PydanticCustomError("switch", "a number or text was wanted", {"key": name})
        return values
