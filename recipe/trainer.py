"""`TrainerRecipe`: the part of the recipe that the Trainer reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic

from recipe.columns import Columns, Negatives
from recipe.errors import Contradiction, RecipeError, did_you_mean
from recipe.features import Features, Normalized
from recipe.keys import assign, dotted_key
from recipe.messages import wording
from recipe.model import Model
from recipe.renamed import current_key, with_current_names
from recipe.section import Section
from recipe.serving import Serving
from recipe.training import Training


class TrainerRecipe(Section):
    """The part of the recipe that the Trainer reads; see `Recipe.for_trainer`."""

    columns: Columns
    features: Features
    model: Model
    training: Training
    serving: Serving
    negatives: Negatives | None = None
    """Set if the examples include sampled negatives, for which the feature `IS_POSITIVE` is 0."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _reads_old_names(cls, values: Any) -> Any:
        return with_current_names(cls, values)

    @pydantic.model_validator(mode="after")
    def _towers_have_features(self) -> TrainerRecipe:
        check_towers(self.features, self.model)
        return self

    def with_values(self, found: Mapping[str, Any]) -> TrainerRecipe:
        """Return this recipe with changed values.

        Example:
            recipe.with_values({"model.embedding_dim": 32})

        Args:
            found: Values by dotted key of `model` or `training`.

        Raises:
            RecipeError: The values contradict each other or the rest of the recipe.
        """
        values = self.model_dump(mode="json", exclude_none=True)
        for key, value in found.items():
            assign(values, current_key(type(self), dotted_key(key)), value)
        try:
            return type(self).model_validate(values)
        except pydantic.ValidationError as error:
            messages = [wording(type(self), entry, values)[1] for entry in error.errors()]
            raise RecipeError(f"{dict(found)}: {'; '.join(messages)}") from None


def check_towers(features: Features, model: Model) -> None:
    """Raise Contradiction if a tower has an unknown input feature, or an output of the wrong dimension."""
    head = model.rating_head
    towers = [
        ("model.query_tower", model.query_tower, "query", model.embedding_dim, model.vector_dim),
        ("model.candidate_tower", model.candidate_tower, "candidate", model.embedding_dim, model.vector_dim),
    ]
    if head.inputs != "shared":
        for side in ("query", "candidate"):
            tower = getattr(head, f"{side}_tower")
            towers.append((f"model.rating_head.{side}_tower", tower, side, head.dimension, head.dimension))
    for key, tower, side, embedding_dim, expected in towers:
        known = {feature.name: feature for feature in getattr(features, side)}
        for name in tower.features or ():
            if name not in known:
                raise Contradiction(
                    f"{key}.features",
                    f"{key}.features: expected features of features.{side} ({', '.join(sorted(known))}), "
                    f"got {name!r}{did_you_mean(name, known)}",
                )
        chosen = [known[name] for name in tower.features] if tower.features is not None else [*known.values()]
        if not chosen:
            raise Contradiction(
                f"{key}.features",
                f"{key}.features: expected at least one feature, got an empty list; add one, or remove the key",
            )
        dimensions = [1 if isinstance(feature, Normalized) else embedding_dim for feature in chosen]
        dimension = tower.layers[-1] if tower.layers else embedding_dim if tower.combine == "sum" else sum(dimensions)
        if not tower.projection and dimension != expected:
            raise Contradiction(
                key,
                f"{key}: expected an output of dimension {expected}, got {dimension}; set projection: true, or change "
                "layers or features",
            )
