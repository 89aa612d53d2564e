"""`TrainerRecipe`: the part of the recipe that decides what is trained and exported."""

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
from recipe.section import Section
from recipe.serving import Serving
from recipe.training import Training


class TrainerRecipe(Section):
    """What the Trainer gets; see `Recipe.for_trainer`."""

    columns: Columns
    features: Features
    model: Model
    training: Training
    serving: Serving
    negatives: Negatives | None = None
    """Given where the examples hold sampled negatives, which the feature `IS_POSITIVE` tells from interactions."""

    @pydantic.model_validator(mode="after")
    def _towers_look_at_features(self) -> TrainerRecipe:
        check_towers(self.features, self.model)
        return self

    def with_values(self, found: Mapping[str, Any]) -> TrainerRecipe:
        """This recipe with other values.

        Args:
            found: Values by dotted key of `model` or `training`, such as `model.embedding_dim`.

        Raises:
            RecipeError: The values contradict each other or the rest.
        """
        values = self.model_dump(mode="json", exclude_none=True)
        for key, value in found.items():
            assign(values, dotted_key(key), value)
        try:
            return type(self).model_validate(values)
        except pydantic.ValidationError as error:
            told = [wording(type(self), entry, values)[1] for entry in error.errors()]
            raise RecipeError(f"{dict(found)}: {'; '.join(told)}") from None


def check_towers(features: Features, model: Model) -> None:
    """Raises where a tower looks at what is not there, or its vectors have another width than what they meet."""
    head = model.rating_head
    towers = [
        ("model.query_tower", model.query_tower, "query", model.embedding_dim, model.vector_dim),
        ("model.candidate_tower", model.candidate_tower, "candidate", model.embedding_dim, model.vector_dim),
    ]
    if head.inputs != "shared":
        for side in ("query", "candidate"):
            tower = getattr(head, f"{side}_tower")
            towers.append((f"model.rating_head.{side}_tower", tower, side, head.dimension, head.dimension))
    for key, tower, side, embedding_dim, wanted in towers:
        known = {feature.name: feature for feature in getattr(features, side)}
        for name in tower.features or ():
            if name not in known:
                raise Contradiction(
                    f"{key}.features",
                    f"{key}.features: no feature {name!r} under features.{side}{did_you_mean(name, known) or '.'} "
                    f"Features there: {', '.join(sorted(known))}",
                )
        chosen = [known[name] for name in tower.features] if tower.features is not None else [*known.values()]
        if not chosen:
            raise Contradiction(
                f"{key}.features", f"{key}.features is empty; name at least one feature, or leave the key out"
            )
        widths = [1 if isinstance(feature, Normalized) else embedding_dim for feature in chosen]
        width = tower.layers[-1] if tower.layers else embedding_dim if tower.combine == "sum" else sum(widths)
        if not tower.projection and width != wanted:
            raise Contradiction(
                key,
                f"{key}: its vectors have {width} numbers and {wanted} are wanted; write projection: true, or "
                "change the layers or features",
            )
