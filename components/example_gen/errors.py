"""What can be wrong with the files: `DataError` stops a run, a `BadRow` is put aside. Raised by every module here."""

from __future__ import annotations

import dataclasses

from recipe.errors import BadInput


class DataError(BadInput):
    """The files cannot be used. The text names file and line, what was found, what was wanted and what to do."""


@dataclasses.dataclass(frozen=True)
class BadRow:
    """One rejected row of a CSV, record of a JSON file, or interaction that no lookup completes.

    Attributes:
        file: The file it stands in.
        line: The line of the CSV it starts on, from 1; line breaks inside quotes count.
        reason: `column: found X, wanted Y`, joined by `; ` where several columns are wrong.
        row: The row's text as it stands in the file, without its line break.
        key: The path of its key in a JSON file, where lines say nothing.
    """

    file: str
    line: int | None
    reason: str
    row: str
    key: str | None = None

    def __str__(self) -> str:
        return f"{placed(self.file, self.line if self.key is None else self.key)}: {self.reason}"


def placed(file: str, place: object) -> str:
    """A place in words: the line of a CSV, or the key in a JSON file."""
    return f"{file}: {place}" if isinstance(place, str) else f"{file}:{place}"


def shown(text: str, limit: int = 60) -> str:
    """`text` in quotes, shortened to `limit` characters, for a message."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
