"""Splits: deterministic, independent of row order, and without temporal leakage if chronological."""

from __future__ import annotations

from random import Random
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingestion import make_data

from commands.report.model_card import EVAL_SPLITS
from components.example_gen import splitters
from components.example_gen.splitters import SPLITTERS, Timestamps, leave_last_n, random_split, splitter_of
from recipe.splits import Split

Row = tuple[str, str, int, float]

IDS = st.text(max_size=6)
ROWS = st.lists(
    st.tuples(IDS, IDS, st.integers(-(2**63), 2**63 - 1), st.floats(width=32, allow_nan=False)), min_size=1, max_size=40
)
TIMES = st.lists(st.integers(0, 30), min_size=1, max_size=80)


def columns(rows: list[Row]) -> list[pa.Array]:
    types = (pa.string(), pa.string(), pa.int64(), pa.float32())
    return [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), types, strict=True)]


@settings(deadline=None)
@given(ROWS, st.randoms(), st.floats(0.01, 0.99), st.integers())
def test_random_split_depends_on_the_row_alone(
    rows: list[Row], random: Random, eval_fraction: float, seed: int
) -> None:
    is_eval = dict(zip(rows, random_split(columns(rows), eval_fraction, seed).tolist(), strict=True))
    shuffled = [*rows, *rows]
    random.shuffle(shuffled)
    again = random_split(columns(shuffled), eval_fraction, seed).tolist()
    assert [is_eval[row] for row in shuffled] == again


def test_random_split_is_pinned() -> None:
    """Models are compared across versions of Tandem, so the same rows must stay in the same splits."""
    rows = [(f"user {i}", f"item {i}é", 881250949 + i, 1.0 + i % 5) for i in range(24)]
    found = "".join("e" if row else "t" for row in random_split(columns(rows), 0.4, 7))
    assert found == "tetttetetettteettteeeett"


def test_random_split_meets_the_fraction_and_seeds_are_independent() -> None:
    rows = [(str(i % 300), str(i // 300), 1000 + i, 3.0) for i in range(60_000)]
    first, second = (random_split(columns(rows), 0.2, seed) for seed in (0, 1))
    for mask in (first, second):
        assert mask.mean() == pytest.approx(0.2, abs=0.01)
        for part in (mask[:30_000], mask[::2], mask[-3_000:]):
            assert part.mean() == pytest.approx(0.2, abs=0.03)
    assert (first & second).mean() == pytest.approx(0.04, abs=0.01)


@settings(deadline=None)
@given(TIMES, st.floats(0.01, 0.99))
def test_time_split_has_no_train_row_after_an_eval_row(times: list[int], eval_fraction: float) -> None:
    splitter = splitter_of(make_data(split={"kind": "time", "eval_fraction": eval_fraction}))
    rows = pa.table({"timestamp": pa.array(times, pa.int64())})
    is_eval = splitter.fit([splitter.summarize(rows)]).assign(rows)
    train, evaluated = (
        {time for time, late in zip(times, is_eval, strict=True) if late == side} for side in (False, True)
    )
    assert not train & evaluated
    if len(set(times)) > 1:
        assert max(train) < min(evaluated)
        # No other boundary is closer to the fraction.
        fractions = [np.mean(np.array(times) >= at) for at in sorted(set(times))[1:]]
        assert abs(is_eval.mean() - eval_fraction) == pytest.approx(min(abs(f - eval_fraction) for f in fractions))


@settings(deadline=None)
@given(st.lists(TIMES, min_size=3, max_size=3))
def test_timestamps_add_up_in_any_order(parts: list[list[int]]) -> None:
    summaries = [Timestamps.of(np.array(part)) for part in parts]
    together = Timestamps.of(np.concatenate(parts))
    for merged in (Timestamps.merge(summaries), Timestamps.merge([Timestamps.merge(summaries[:1:-1]), *summaries[:2]])):
        assert merged.starts.tolist() == together.starts.tolist()
        assert merged.counts.tolist() == together.counts.tolist()


def test_many_timestamps_are_counted_in_bounded_memory() -> None:
    times = np.random.default_rng(0).integers(0, 10**12, 600_000)
    summary = Timestamps.merge(Timestamps.of(part) for part in np.split(times, 12))
    assert len(summary.starts) <= splitters.SUMMARY_SIZE
    assert summary.counts.sum() == len(times)
    assert (times >= summary.cut(0.2)).mean() == pytest.approx(0.2, abs=1e-3)


# --- by user, and each user's last rows -------------------------------------------------------------------------------

USER_ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=40
)  # user, item, time


@settings(deadline=None)
@given(USER_ROWS, st.integers(1, 4))
def test_leave_last_n_takes_each_users_latest_distinct_rows(rows: list[tuple[int, int, int]], n: int) -> None:
    distinct = {row: number for number, row in enumerate(dict.fromkeys(rows))}
    users, _, times = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    is_eval = leave_last_n(users, times, np.array([distinct[row] for row in rows]), n)
    train, evaluated = ({row for row, late in zip(rows, is_eval, strict=True) if late == side} for side in (0, 1))
    assert not train & evaluated
    for user in set(users.tolist()):
        mine = [row for row in dict.fromkeys(reversed(rows)) if row[0] == user]
        late = [row for row in mine if row in evaluated]
        assert len(late) == (n if len(mine) > n else 0)
        # The reverse of file order, sorted by time from the latest: a stable sort keeps ties as they are.
        assert sorted(late) == sorted(sorted(mine, key=lambda row: -row[2])[: len(late)])


@settings(deadline=None)
@given(st.lists(IDS, min_size=1, max_size=40), st.floats(0.01, 0.99), st.integers())
def test_by_user_keeps_all_rows_of_a_user_in_one_split(users: list[str], eval_fraction: float, seed: int) -> None:
    is_eval = random_split([pa.array(users, pa.string())], eval_fraction, seed).tolist()
    assert len(dict(zip(users, is_eval, strict=True))) == len(set(zip(users, is_eval, strict=True)))


# --- splitters --------------------------------------------------------------------------------------------------------


def test_every_kind_has_a_splitter_and_a_sentence_in_the_model_card() -> None:
    sections = get_args(get_args(Split)[0])
    kinds = [get_args(section.model_fields["kind"].annotation)[0] for section in sections]
    assert list(SPLITTERS) == list(EVAL_SPLITS) == kinds


@pytest.mark.parametrize(
    ("section", "assigned"),
    [
        ({"kind": "random", "eval_fraction": 0.4, "seed": 7}, "tttttttttttteteeetttttte"),
        ({"kind": "by_user", "eval_fraction": 0.4, "seed": 7}, "tteeeettteeeettteeeettte"),
        ({"kind": "time", "eval_fraction": 0.4}, "tttetetetetettttetetetet"),
        ({"kind": "leave_last_n", "n": 2}, "tttttetetetettetttetetet"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_assignments_are_pinned(section: dict[str, Any], assigned: str) -> None:
    """As `test_random_split_is_pinned`, for every kind of split."""
    rows = pa.table({
        "user_id": [f"u{i * i % 7}" for i in range(24)],
        "item_id": [f"i{i * 5 % 11}" for i in range(24)],
        "timestamp": [1000 + i * 7 % 13 for i in range(24)],
        "rating": pa.array([1 + i % 5 for i in range(24)], pa.float32()),
    })  # fmt: skip
    splitter = splitter_of(make_data(split=section))
    is_eval = splitter.fit([splitter.summarize(rows)]).assign(rows)
    assert "".join("e" if late else "t" for late in is_eval) == assigned
