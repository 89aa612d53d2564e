"""Errors in the files: a `DataError` stops the run, a `BadRow` is rejected. Every module here uses them."""

from __future__ import annotations

import dataclasses

from recipe.errors import BadInput


class DataError(BadInput):
    """The files cannot be used. The message has the location, what was expected and found, and the remedy."""


@dataclasses.dataclass(frozen=True)
class BadRow:
    """One rejected row: a row of a CSV, a record of a JSON file, or an interaction without its row in a lookup.

    Attributes:
        file: Its file.
        line: The line of the CSV on which it starts, from 1; line breaks inside quotes count.
        reason: `column: expected X, got Y`, joined by `; ` if several columns are malformed.
        row: Its text in the file, without its line break.
        key: The path of its key in a JSON file, instead of a line.
    """

    file: str
    line: int | None
    reason: str
    row: str
    key: str | None = None

    def __str__(self) -> str:
        return f"{placed(self.file, self.line if self.key is None else self.key)}: {self.reason}"


def placed(file: str, place: object) -> str:
    """Return a location for messages: the line of a CSV, or the key in a JSON file."""
    return f"{file}: {place}" if isinstance(place, str) else f"{file}:{place}"


def shown(text: str, limit: int = 60) -> str:
    """Return `text` in quotes, shortened to `limit` characters, for messages."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
