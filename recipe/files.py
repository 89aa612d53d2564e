"""File names in a schema folder."""

from __future__ import annotations

RECIPE_FILE = "recipe.yaml"
SCHEMA_FILE = "schema.pbtxt"
PRESETS_FOLDER = "presets"
