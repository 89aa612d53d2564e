"""Loading of the curated `schema.pbtxt`, and its validation against the recipe."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from recipe.columns import IS_POSITIVE, column_types
from recipe.errors import RecipeError, did_you_mean
from recipe.files import RECIPE_FILE, SCHEMA_FILE
from recipe.recipe import Recipe


def load_schema(schema_dir: Path, recipe: Recipe) -> schema_pb2.Schema:
    """Read the curated `schema.pbtxt` of `schema_dir` and validate that it has all columns of `recipe`.

    Example:
        schema = load_schema(Path("schemas/movielens"), recipe)

    Raises:
        RecipeError: The schema does not exist or cannot be parsed, or a column is missing or has an invalid type.
    """
    path = schema_dir / SCHEMA_FILE
    if not path.is_file():
        raise RecipeError(
            f"{path}: the file does not exist. Expected a schema of TensorFlow Metadata with the type and domain of "
            "every column; `tandem init` writes one."
        )
    try:
        schema = text_format.Parse(path.read_text(encoding="utf-8"), schema_pb2.Schema())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: expected a schema of TensorFlow Metadata as text proto: {error}") from error
    types = column_types(schema)
    problems = []
    for column, key, allowed in recipe.columns():
        if column not in types and column == IS_POSITIVE:
            problems.append(
                f"{path}: data.negatives requires the feature {IS_POSITIVE!r}, which is missing. "
                f'Add `feature {{ name: "{IS_POSITIVE}" type: FLOAT }}`.'
            )
        elif column not in types:
            problems.append(
                f"{schema_dir / RECIPE_FILE}: {key}: expected a column of {SCHEMA_FILE}, got {column!r}"
                f"{did_you_mean(column, types) or '.'} Columns: {', '.join(sorted(types))}."
            )
        elif types[column] not in allowed:
            problems.append(
                f"{path}: column {column!r}: expected type {' or '.join(allowed)} for {key}, got {types[column]}. "
                "Change the type, or use another column in the recipe."
            )
    given = [("data.label.constant", recipe.data.label.constant)] if recipe.data.label is not None else []
    given += [("data.negatives.label", recipe.data.negatives.label)] if recipe.data.negatives is not None else []
    for key, value in given:
        expected = _label_bounds(schema, recipe.data.columns.label, value)
        if expected:
            problems.append(
                f"{schema_dir / RECIPE_FILE}: {key}: expected {expected}, the domain of {recipe.data.columns.label!r} "
                f"in {SCHEMA_FILE}, got {value:g}. Change the value or the domain."
            )
    if problems:
        raise RecipeError("\n".join(problems))
    return schema


def _label_bounds(schema: schema_pb2.Schema, label: str, value: float) -> str:
    """The constraint of the label's type or domain that `value` violates, or an empty string."""
    for feature in schema.feature:
        if feature.name == label:
            if feature.type == schema_pb2.INT and value != int(value):
                return "an integer"
            kind = feature.WhichOneof("domain_info")
            domain = getattr(feature, kind) if kind in ("int_domain", "float_domain") else None
            if domain is not None and domain.HasField("min") and value < domain.min:
                return f"a number ≥ {domain.min:g}"
            if domain is not None and domain.HasField("max") and value > domain.max:
                return f"a number ≤ {domain.max:g}"
    return ""
