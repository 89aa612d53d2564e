"""The section `data.columns`, sampled negatives and column types: the parts of `data` that training depends on."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from tensorflow_metadata.proto.v0 import schema_pb2

from recipe.section import Section

ColumnType = Literal["BYTES", "INT", "FLOAT"]
"""Feature types of TensorFlow Metadata, by the names in `schema.pbtxt`."""

NUMBERS: tuple[ColumnType, ...] = ("INT", "FLOAT")

STRINGS: tuple[ColumnType, ...] = ("BYTES",)


class Columns(Section):
    """Names of the columns of the joined table that hold the user, the item, the label and the timestamp."""

    user_id: str
    """User id column. Ids are read as strings, so leading zeros are preserved."""
    item_id: str
    """Item id column. Ids are read as strings."""
    label: str
    """Label column: the value that the rating head predicts. A column of the files, the count or a sum of `aggregate`,
    or the name of a new column for the constant `label`."""
    timestamp: str | None = None
    """Time of the interaction, in the format of `timestamp_format`."""


IS_POSITIVE = "is_positive"
"""Name of the feature that is 1 for interactions and 0 for sampled negatives."""


class Negatives(Section):
    """Sampled negatives: examples of items that the user has no interaction with, in the train or the eval split.

    They are sampled uniformly from the catalogue and belong to the split of the interaction that they are sampled for.
    """

    per_positive: PositiveInt
    """Number of negatives per interaction. Users who interacted with nearly all items get fewer."""
    label: float = 0
    """Value of `columns.label` for negatives."""
    context: tuple[str, ...] = ()
    """Columns of the interaction that describe the query and not the outcome, such as channel, device or city.
    Negatives copy them, the timestamp and the user's columns. Other columns of the interaction are missing in
    negatives."""
    seed: int = 0
    """Random seed."""


def column_types(schema: schema_pb2.Schema) -> dict[str, ColumnType]:
    """Return the type of every feature of `schema` by name."""
    return {feature.name: schema_pb2.FeatureType.Name(feature.type) for feature in schema.feature}
