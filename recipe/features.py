"""The section `features`: the columns that each tower reads, and their transformations."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field, PositiveInt

from recipe.columns import NUMBERS, STRINGS, ColumnType
from recipe.section import Fraction, Section


class Feature(Section):
    """A column as an input of one tower. `kind` selects its transformation."""

    column: str
    """Name of the column, after `rename`. Its type in schema.pbtxt must be one that the kind accepts."""
    display: bool = False
    """Whether to return the column with recommended items (candidate features only)."""

    @property
    def name(self) -> str:
        """Name of the transformed feature, `COLUMN_KIND`."""
        return f"{self.column}_{getattr(self, 'kind')}"  # noqa: B009  (declared by every subclass)


class Identifier(Feature):
    """An id: an index in the vocabulary of all ids of the train split or the catalogue. Other ids get the OOV index."""

    kind: Literal["id"]
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


class Categorical(Feature):
    """A string with few distinct values: an index in a vocabulary."""

    kind: Literal["categorical"]
    min_count: PositiveInt = 1
    """Minimum frequency in the train split and the catalogue. Values with a lower frequency get the OOV index."""
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


class Text(Feature):
    """Free text: lower-cased and split at all characters but letters and digits; the word embeddings are averaged."""

    kind: Literal["text"]
    vocabulary_size: PositiveInt = 10_000
    """Maximum size of the vocabulary: the most frequent words."""
    min_count: PositiveInt = 2
    """Minimum frequency in the train split and the catalogue. Words with a lower frequency get the OOV index."""
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


class MultiValue(Feature):
    """Several values in one string; their embeddings are averaged."""

    kind: Literal["multi_value"]
    separator: Annotated[str, Field(min_length=1, max_length=1)] = "|"
    """Character that separates two values. Spaces around values are removed."""
    min_count: PositiveInt = 1
    """Minimum frequency in the train split and the catalogue. Values with a lower frequency get the OOV index."""
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


class Buckets(Feature):
    """A number, bucketized: each bucket has an embedding."""

    kind: Literal["buckets"]
    buckets: Annotated[int, Field(ge=2)]
    """Number of buckets."""
    boundaries: Literal["uniform", "quantile"] = "quantile"
    """Bucket boundaries: `uniform` gives buckets of equal width between minimum and maximum, `quantile` buckets with
    equal numbers of rows."""
    types: ClassVar[tuple[ColumnType, ...]] = NUMBERS


class Normalized(Feature):
    """A number, normalized to its z-score: mean 0 and standard deviation 1 over the train split."""

    kind: Literal["normalized"]
    types: ClassVar[tuple[ColumnType, ...]] = NUMBERS


class History(Feature):
    """The items that the user interacted with in the train split. `column` is the item id (query features only).

    Training excludes a row's own item (leave-one-out). The served model stores the history of every user of the train
    split, and a request can contain another history, which is used without retraining (fold-in). Sampled negatives are
    not part of histories.
    """

    kind: Literal["history"]
    pooling: Literal["sum_sqrt", "mean", "attention", "gru"] = "sum_sqrt"
    """Pooling of the items' embeddings: their sum divided by the square root of their number, their mean, a
    softmax-weighted mean with a learned query (attention), or the last state of a GRU over them in order of time."""
    max_length: PositiveInt = 1000
    """Maximum length: the latest items are used. The memory of `attention` and `gru` is proportional to it; use about
    50 with them."""
    labels: bool = False
    """Whether to use the labels of the history: adds a second embedding of each item, weighted by the difference of its
    label from the prediction of user and item means (Koren 2010, doi:10.1145/1644873.1644874)."""
    dropout: Fraction = 0.0
    """Probability of removing each item of a history during training."""
    order: Literal["any", "earlier"] | None = None
    """Interactions in the history of a training row: `any` other interaction of the user, or `earlier` ones only. If
    not set, `earlier` for the splits `time` and `leave_last_n`, otherwise `any`."""
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


AnyFeature = Annotated[
    Identifier | Categorical | Text | MultiValue | Buckets | Normalized | History,
    Field(discriminator="kind"),
]


class Features(Section):
    """The input features of both towers."""

    query: Annotated[tuple[AnyFeature, ...], Field(min_length=1)]
    """Query features: columns of the interactions and users that are known at the time of the request."""
    candidate: Annotated[tuple[AnyFeature, ...], Field(min_length=1)]
    """Candidate features: columns of the items."""

    @property
    def history(self) -> History | None:
        """The history feature, or None."""
        return next((feature for feature in self.query if isinstance(feature, History)), None)

    def for_transform(self) -> Features:
        """Return the features without the history, which the Trainer builds from other interactions."""
        return self.model_copy(update={"query": tuple(f for f in self.query if not isinstance(f, History))})

    @pydantic.model_validator(mode="after")
    def _names_are_unique(self) -> Features:
        if any(isinstance(feature, History) for feature in self.candidate):
            raise ValueError("history is a query feature; move it to features.query")
        names = [feature.name for feature in (*self.query, *self.candidate)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"duplicate feature {name!r}; remove one of them")
        for feature in self.query:
            if feature.display:
                raise ValueError(
                    f"display: true on the query feature {feature.name!r}, but only candidate features can be "
                    "displayed; remove it"
                )
        return self
