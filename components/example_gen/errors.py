"""What can be wrong with the CSVs: `DataError` stops a run, a `BadRow` is put aside. Raised by every module here."""

from __future__ import annotations

import dataclasses

from pipeline.recipe import BadInput


class DataError(BadInput):
    """The CSVs cannot be used. The text names file and line, what was found, what was wanted and what to do."""


@dataclasses.dataclass(frozen=True)
class BadRow:
    """One rejected row of a CSV.

    Attributes:
        file: The file it stands in.
        line: The line it starts on, from 1; line breaks inside quotes count.
        reason: `column: found X, wanted Y`, joined by `; ` where several columns are wrong.
        row: The row's text as it stands in the file, without its line break.
    """

    file: str
    line: int
    reason: str
    row: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def shown(text: str, limit: int = 60) -> str:
    """`text` in quotes, shortened to `limit` characters, for a message."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
