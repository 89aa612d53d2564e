"""Reads the curated `schema.pbtxt` and checks it against the recipe."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from recipe.columns import IS_POSITIVE, column_types
from recipe.errors import RecipeError, did_you_mean
from recipe.files import RECIPE_FILE, SCHEMA_FILE
from recipe.recipe import Recipe


def load_schema(schema_dir: Path, recipe: Recipe) -> schema_pb2.Schema:
    """Reads the curated `schema.pbtxt` of `schema_dir` and checks that it has every column of `recipe`.

    Raises:
        RecipeError: The schema is missing or not a schema, or a column is missing in it or has a type its use forbids.
    """
    path = schema_dir / SCHEMA_FILE
    if not path.is_file():
        raise RecipeError(
            f"{path}: there is no schema. It lists the type and the domain of every column, as TFDV does."
        )
    try:
        schema = text_format.Parse(path.read_text(encoding="utf-8"), schema_pb2.Schema())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a TensorFlow Metadata schema: {error}") from error
    types = column_types(schema)
    problems = []
    for column, key, allowed in recipe.columns():
        if column not in types and column == IS_POSITIVE:
            problems.append(
                f"{path}: data.negatives needs the feature {IS_POSITIVE!r} in the schema, which tells interactions "
                f'from sampled negatives. Add `feature {{ name: "{IS_POSITIVE}" type: FLOAT }}`.'
            )
        elif column not in types:
            problems.append(
                f"{schema_dir / RECIPE_FILE}: {key}: no column {column!r} in {SCHEMA_FILE}"
                f"{did_you_mean(column, types) or '.'} Columns there: {', '.join(sorted(types))}."
            )
        elif types[column] not in allowed:
            problems.append(
                f"{path}: the column {column!r} is {types[column]}, but {key} needs {' or '.join(allowed)}. "
                f"Change the type, or what the recipe does with the column."
            )
    given = [("data.label.constant", recipe.data.label.constant)] if recipe.data.label is not None else []
    given += [("data.negatives.label", recipe.data.negatives.label)] if recipe.data.negatives is not None else []
    for key, value in given:
        wanted = _label_bounds(schema, recipe.data.columns.label, value)
        if wanted:
            problems.append(
                f"{schema_dir / RECIPE_FILE}: {key} is {value:g}, but {SCHEMA_FILE} says that "
                f"{recipe.data.columns.label!r} is {wanted}. Change one of the two."
            )
    if problems:
        raise RecipeError("\n".join(problems))
    return schema


def _label_bounds(schema: schema_pb2.Schema, label: str, value: float) -> str:
    """What the schema wants the label to be where `value` is not that; empty where it is."""
    for feature in schema.feature:
        if feature.name == label:
            if feature.type == schema_pb2.INT and value != int(value):
                return "a whole number"
            kind = feature.WhichOneof("domain_info")
            domain = getattr(feature, kind) if kind in ("int_domain", "float_domain") else None
            if domain is not None and domain.HasField("min") and value < domain.min:
                return f"at least {domain.min:g}"
            if domain is not None and domain.HasField("max") and value > domain.max:
                return f"at most {domain.max:g}"
    return ""
