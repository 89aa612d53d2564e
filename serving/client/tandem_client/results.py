"""The client's results: frozen dataclasses of plain values, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recommendation:
    """One recommended item."""

    item_id: str
    """Id of the item."""
    score: float
    """The retrieval score; comparable within one response only."""
    rating: float
    """The predicted rating, on the scale of the training data."""
    display: Mapping[str, str] = field(default_factory=dict)
    """Display columns of the item, such as the title."""


@dataclass(frozen=True)
class Recommendations:
    """A user's recommendations, best first; fewer than k if the model has no more items for the user."""

    user_id: str
    items: tuple[Recommendation, ...]


@dataclass(frozen=True)
class SimilarItem:
    """An item similar to another."""

    item_id: str
    """Id of the item."""
    score: float
    """Cosine of the two items' retrieval vectors, -1 to 1."""
    display: Mapping[str, str] = field(default_factory=dict)
    """Display columns of the item, such as the title."""


@dataclass(frozen=True)
class SimilarItems:
    """An item's similar items, most similar first, without itself; empty for an item outside the vocabulary."""

    item_id: str
    items: tuple[SimilarItem, ...]


@dataclass(frozen=True)
class FoundItem:
    """An item that matches a title search, with its display columns."""

    item_id: str
    display: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundItems:
    """The items with a word that starts with the text, best first; empty for the empty text."""

    text: str
    items: tuple[FoundItem, ...]


@dataclass(frozen=True)
class Embedding:
    """A vector for a vector store. The inner product of a user's and an item's vector is `recommend`'s score."""

    id: str
    """The user id or item id; '' for an item described by its columns alone."""
    vector: tuple[float, ...]
    """D components, float32 on the wire."""


@dataclass(frozen=True)
class VersionStatus:
    """Status of a version of the model on the server."""

    version: int
    """Number of the version."""
    state: str
    """START, LOADING, AVAILABLE, UNLOADING or END."""
    error_code: int = 0
    """Canonical code; 0 without an error."""
    error_message: str = ""
    """Why the version failed; empty without an error."""
