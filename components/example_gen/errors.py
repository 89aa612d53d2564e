"""What can be wrong with the CSVs: `DataError` stops a run, a `BadRow` is put aside. Raised by every module here."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the word of `known` that is closest to `word`, or nothing."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def shown(text: str, limit: int = 60) -> str:
    """`text` in quotes, shortened to `limit` characters, for a message."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
