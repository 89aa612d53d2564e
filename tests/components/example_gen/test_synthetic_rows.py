"""The lines that `tandem data synthetic --broken` breaks, and no others, are put aside."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ingestion import run_executor

from commands.synthetic.files import write_synthetic
from commands.synthetic.ground_truth import SyntheticSpec
from recipe import load_recipe, load_schema

RECIPE = Path(__file__).resolve().parents[3] / "schemas" / "synthetic"

# What the reason says, by how the line is broken.
REASONS = {
    "no user id": "user_id: found nothing",
    "no item id": "item_id: found nothing",
    "no rating": "rating: found nothing",
    "rating is no number": "rating: found 'good'",
    "rating out of range": "wanted a number from 1 to 5",
    "no timestamp": "timestamp: found nothing",
    "timestamp is no number": "timestamp: found '2024-02-30 12:00'",
    "timestamp in milliseconds": "000', wanted a whole number from 1577836800",
    "too few columns": "found 3 columns",
    "too many columns": "found 5 columns",
    "not UTF-8": "not UTF-8",
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
        kind for row in found.rejected for kind, told in REASONS.items()
        if told in row["reason"] and (kind != "rating out of range" or row["reason"].startswith("rating: found '9"))
    )  # fmt: skip
    assert kinds == truth["broken"] and len(kinds) == len(REASONS)
