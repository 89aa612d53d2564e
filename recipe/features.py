"""The section `features`: which columns each tower reads, and how Transform turns them into numbers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field, PositiveInt

from recipe.columns import NUMBERS, STRINGS, ColumnType
from recipe.section import Section


class Feature(Section):
    """One column as one tower sees it. `kind` says how Transform turns it into numbers."""

    column: str
    """Name of the column, after `rename`; its type in schema.pbtxt must fit the kind."""
    display: bool = False
    """Returned with recommended item ids (candidate features only)."""

    @property
    def name(self) -> str:
        """Name of the transformed feature."""
        return f"{self.column}_{getattr(self, 'kind')}"  # noqa: B009  (declared by every subclass)


class Identifier(Feature):
    """An id, looked up in the vocabulary of all ids seen; unseen ids share one out-of-vocabulary row."""

    kind: Literal["id"]
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


class Categorical(Feature):
    """A string with few values, looked up in a vocabulary."""

    kind: Literal["categorical"]
    min_count: PositiveInt = 1
    """Values that stand in fewer rows of train and catalogue count as unknown."""
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


class Text(Feature):
    """Words, lower-cased and split on everything but letters and digits; their embeddings are averaged."""

    kind: Literal["text"]
    vocabulary_size: PositiveInt = 10_000
    """The most frequent words that get an embedding of their own."""
    min_count: PositiveInt = 2
    """Words that come up less often in train and catalogue count as unknown."""
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


class MultiValue(Feature):
    """Several values in one string; their embeddings are averaged."""

    kind: Literal["multi_value"]
    separator: Annotated[str, Field(min_length=1, max_length=1)] = "|"
    """Stands between two values; spaces around a value do not count."""
    min_count: PositiveInt = 1
    """Values that come up less often in train and catalogue count as unknown."""
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


class Buckets(Feature):
    """A number cut into intervals, each with an embedding."""

    kind: Literal["buckets"]
    buckets: Annotated[int, Field(ge=2)]
    """How many intervals."""
    boundaries: Literal["uniform", "quantile"] = "quantile"
    """Intervals of equal width between the smallest and the largest value, or of equal count."""
    types: ClassVar[tuple[ColumnType, ...]] = NUMBERS


class Normalized(Feature):
    """A number as z-score: mean 0 and standard deviation 1 over train."""

    kind: Literal["normalized"]
    types: ClassVar[tuple[ColumnType, ...]] = NUMBERS


class History(Feature):
    """The items that the user has interactions with in train (query features only); `column` is the item's id.

    While training, a row's own item is left out. The served model remembers every known user's history, and a request
    may bring another one, so that a stranger's first clicks count at once. Sampled negatives are nobody's history.
    """

    kind: Literal["history"]
    pooling: Literal["sum_sqrt", "mean", "attention", "gru"] = "sum_sqrt"
    """How the items' embeddings become one vector: their sum over the square root of their number, their mean, a
    softmax-weighted mean with a learned query, or the last state of a recurrent network over them in order of time."""
    max_length: PositiveInt = 1000
    """The latest items that count. `attention` and `gru` cost memory for each of them: 50 is much there."""
    labels: bool = False
    """Items count for what the user thought of them too: a second embedding of each item, weighted with how far its
    label lies from what user and item means let expect (Koren 2010, doi:10.1145/1644873.1644874)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of a history's items that training leaves out at random."""
    order: Literal["any", "earlier"] | None = None
    """Which other interactions of the user a training row sees: `any`, or only those that are `earlier` than it. Left
    out, it is `earlier` where the split is by time or by each user's last rows, because no request sees the future."""
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


AnyFeature = Annotated[
    Identifier | Categorical | Text | MultiValue | Buckets | Normalized | History,
    Field(discriminator="kind"),
]


class Features(Section):
    """What each tower looks at."""

    query: Annotated[tuple[AnyFeature, ...], Field(min_length=1)]
    """Who asks and when: columns of the interactions and users."""
    candidate: Annotated[tuple[AnyFeature, ...], Field(min_length=1)]
    """What is recommended: columns of the items."""

    @property
    def history(self) -> History | None:
        """The history feature, if there is one."""
        return next((feature for feature in self.query if isinstance(feature, History)), None)

    def for_transform(self) -> Features:
        """Without the history, which is no column but made of other interactions by the Trainer."""
        return self.model_copy(update={"query": tuple(f for f in self.query if not isinstance(f, History))})

    @pydantic.model_validator(mode="after")
    def _names_are_unique(self) -> Features:
        if any(isinstance(feature, History) for feature in self.candidate):
            raise ValueError("a history is the user's; list it under features.query")
        names = [feature.name for feature in (*self.query, *self.candidate)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the feature {name!r} is listed twice; keep one of them")
        for feature in self.query:
            if feature.display:
                raise ValueError(f"display: true on the query feature {feature.name!r}; only items are displayed")
        return self
