"""What the client answers with: plain frozen values, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item_id: the item.
        score: what the list is ordered by; comparable within one answer only.
        rating: the rating the model predicts, on the scale of the training data.
        display: further columns that the model carries for items, such as the title.
    """

    item_id: str
    score: float
    rating: float
    display: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recommendations:
    """A user's recommendations, best first; fewer than asked for where the model has no more for this user."""

    user_id: str
    items: tuple[Recommendation, ...]


@dataclass(frozen=True)
class SimilarItem:
    """An item that is like another.

    Attributes:
        item_id: the item.
        score: cosine of the two items' retrieval vectors, -1 to 1.
        display: further columns that the model carries for items, such as the title.
    """

    item_id: str
    score: float
    display: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SimilarItems:
    """An item's nearest ones, nearest first, never itself; none for an item that the model does not know."""

    item_id: str
    items: tuple[SimilarItem, ...]


@dataclass(frozen=True)
class FoundItem:
    """An item that a text leads to, and the columns it may have been found in."""

    item_id: str
    display: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundItems:
    """The items with a word that starts with the text, best first; none for the empty text."""

    text: str
    items: tuple[FoundItem, ...]


@dataclass(frozen=True)
class Embedding:
    """A vector for a vector store. The dot product of a user's and an item's is the score of `recommend`.

    Attributes:
        id: whose it is: a user id or an item id, '' for an item described by its columns alone.
        vector: D numbers, float32 on the wire.
    """

    id: str
    vector: tuple[float, ...]


@dataclass(frozen=True)
class VersionStatus:
    """A version of the model on the server.

    Attributes:
        version: its number.
        state: START, LOADING, AVAILABLE, UNLOADING or END.
        error_code: canonical code; 0 where nothing went wrong.
        error_message: why the version failed; empty where nothing went wrong.
    """

    version: int
    state: str
    error_code: int = 0
    error_message: str = ""
