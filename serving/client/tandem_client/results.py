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
