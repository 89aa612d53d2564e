"""The section `data.columns`, sampled negatives, and the types that columns have: what training needs of `data`."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from tensorflow_metadata.proto.v0 import schema_pb2

from recipe.section import Section

# The feature types of a schema, by the names that schema.pbtxt uses.
ColumnType = Literal["BYTES", "INT", "FLOAT"]

NUMBERS: tuple[ColumnType, ...] = ("INT", "FLOAT")

STRINGS: tuple[ColumnType, ...] = ("BYTES",)


class Columns(Section):
    """Which columns of the joined table play which part."""

    user_id: str
    """Who did it; ids are text, so leading zeros survive."""
    item_id: str
    """With which item; text as well."""
    label: str
    """How much the user liked the item; what the rating head predicts. A column of the files, the count or a sum of
    `aggregate`, or the name of the constant `label`."""
    timestamp: str | None = None
    """When it happened, written as `timestamp_format` says."""


IS_POSITIVE = "is_positive"
"""The feature that says which examples are interactions (1) and which are sampled negatives (0)."""


class Negatives(Section):
    """Examples of what did not happen: items that the user has no interaction with, in train or eval.

    They are drawn uniformly from the catalogue, and lie in the split of the interaction they belong to.
    """

    per_positive: PositiveInt
    """Negatives for every interaction; fewer for a user who has touched nearly everything."""
    label: float = 0
    """The value of `columns.label` for negatives."""
    context: tuple[str, ...] = ()
    """Columns of the interaction that belong to the question and not to its answer (channel, device, city), besides
    the user's columns and the timestamp: negatives copy them. Other columns of the interaction are missing there."""
    seed: int = 0
    """Another seed draws other items."""


def column_types(schema: schema_pb2.Schema) -> dict[str, ColumnType]:
    """The type of every feature of `schema`."""
    return {feature.name: schema_pb2.FeatureType.Name(feature.type) for feature in schema.feature}
