"""Malformed lines that ExampleGen must reject; `files.py` inserts them between the valid ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

Cells = Sequence[bytes]

# Functions of a valid row's user, item, rating and timestamp.
KINDS: dict[str, Callable[[Cells], bytes]] = {
    "no user id": lambda cells: b",".join((b"", *cells[1:])),
    "no item id": lambda cells: b",".join((cells[0], b"", *cells[2:])),
    "no rating": lambda cells: b",".join((*cells[:2], b"", cells[3])),
    "rating is no number": lambda cells: b",".join((*cells[:2], b"good", cells[3])),
    "rating out of range": lambda cells: b",".join((*cells[:2], b"9" + cells[2], cells[3])),
    "no timestamp": lambda cells: b",".join((*cells[:3], b"")),
    "timestamp is no number": lambda cells: b",".join((*cells[:3], b"2024-02-30 12:00")),
    "timestamp in milliseconds": lambda cells: b",".join((*cells[:3], cells[3] + b"000")),
    "too few columns": lambda cells: b",".join(cells[:3]),
    "too many columns": lambda cells: b",".join((*cells, b"1")),
    "not UTF-8": lambda cells: b",".join((*cells[:2], b"\xe9", cells[3])),
}


def insert_malformed(text: bytes, count: int, random: np.random.Generator, kinds: Counter[str]) -> bytes:
    """Insert malformed lines between valid ones.

    Args:
        text: Valid lines, each with its line break.
        count: Number of malformed lines; each is a malformed copy of a valid line.
        random: Draws their positions and kinds.
        kinds: Counter of the kinds; updated.

    Returns:
        The lines with the malformed ones.
    """
    ends = 1 + np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    starts = np.concatenate([[0], ends[:-1]])
    names = list(KINDS)
    parts = []
    begun = 0
    for line in np.sort(random.integers(0, len(ends), count)).tolist():
        name = names[int(random.integers(len(names)))]
        kinds[name] += 1
        start, end = int(starts[line]), int(ends[line])
        parts += [text[begun:end], KINDS[name](text[start : end - 1].split(b",")), b"\n"]
        begun = end
    return b"".join([*parts, text[begun:]])
