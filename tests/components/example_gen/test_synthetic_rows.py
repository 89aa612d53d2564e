"""The malformed lines of `tandem data synthetic --broken`, and no others, are rejected."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from ingestion import run_executor

from commands.synthetic.files import write_synthetic
from commands.synthetic.ground_truth import SyntheticSpec
from recipe import load_recipe, load_schema

RECIPE = Path(__file__).resolve().parents[3] / "schemas" / "synthetic"

# A pattern of the reason, by kind of malformed line.
REASONS = {
    "no user id": "user_id: expected a string, got nothing",
    "no item id": "item_id: expected a string, got nothing",
    "no rating": "rating: expected a number from 1 to 5, got nothing",
    "rating is no number": "rating: expected a number from 1 to 5, got 'good'",
    "rating out of range": "rating: expected a number from 1 to 5, got '9",
    "no timestamp": "^timestamp: .* got nothing",
    "timestamp is no number": "got '2024-02-30 12:00'",
    "timestamp in milliseconds": "000'",
    "too few columns": "columns, got 3",
    "too many columns": "columns, got 5",
    "not UTF-8": "expected UTF-8",
}


def test_broken_lines_are_rejected_each_for_its_own_reason(tmp_path: Path) -> None:
    truth = write_synthetic(SyntheticSpec(200, 80, 3_000, clusters=4, broken=0.1), tmp_path / "data")
    recipe = load_recipe(RECIPE, ["data.max_bad_rows=0.2"])
    found = run_executor(tmp_path / "data", tmp_path / "examples", recipe.data, load_schema(RECIPE, recipe))
    read, rejected, train, evaluated = found.counts()
    assert (read, rejected) == (3_000 + truth["rows"]["broken"], truth["rows"]["broken"])
    assert train + evaluated == 3_000
    assert len(found.splits["catalogue"]) == 80
    kinds = Counter(
        kind for row in found.rejected for kind, pattern in REASONS.items() if re.search(pattern, row["reason"])
    )
    assert kinds == truth["broken"] and len(kinds) == len(REASONS)
