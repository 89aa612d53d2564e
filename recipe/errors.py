"""Errors about a user's input, and the suggestion for a misspelled word. Every layer may raise `BadInput`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """Invalid input by the user. The message has the location, the value found, the expected value and a remedy."""


class RecipeError(BadInput):
    """Invalid recipe, schema or override. The message starts with the file, the line and the key."""


class Contradiction(ValueError):
    """Conflict between keys of several sections, reported at the line of one of them."""

    def __init__(self, key: str | tuple[str | int, ...], message: str) -> None:
        """Takes the key whose line is reported, dotted or as a tuple, and the complete message."""
        super().__init__(message)
        self.key = key


class DeprecatedKey(DeprecationWarning):
    """Use of a key under its old name. The message starts with the file, the line and the old key."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known word, or an empty string if none is close.

    Example:
        did_you_mean("embeding_dim", ["embedding_dim", "epochs"])  # "; did you mean 'embedding_dim'?"
    """
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
