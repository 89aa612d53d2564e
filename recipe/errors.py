"""The errors that a user's input raises, and the hint about a misspelled word. Every layer may raise `BadInput`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """What the user gave cannot be used. Its text says where, what was found, what was wanted and what to do."""


class RecipeError(BadInput):
    """The recipe, its schema or an override cannot be used; names the file, line and key."""


class Contradiction(ValueError):
    """Keys of several sections that do not fit together, told at the key that one would change."""

    def __init__(self, key: str | tuple[str | int, ...], message: str) -> None:
        """Takes the key whose line is named, dotted or in parts, and the whole message."""
        super().__init__(message)
        self.key = key


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known word, empty where none is close."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
