"""The recipe: `recipe.yaml` as a strict pydantic model, one module per section.

Example:
    recipe = load_recipe(Path("schemas/movielens"), ["training.epochs=3"], preset="tutorial")
    schema = load_schema(Path("schemas/movielens"), recipe)
"""

from __future__ import annotations

from recipe.errors import BadInput, RecipeError
from recipe.loading import load_recipe, preset_names
from recipe.recipe import Recipe
from recipe.schema import load_schema

__all__ = ["BadInput", "Recipe", "RecipeError", "load_recipe", "load_schema", "preset_names"]
