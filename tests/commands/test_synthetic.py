"""Synthetic data has the requested size and follows the ground truth; the upper bounds hold."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commands.synthetic import files, sampling
from commands.synthetic.files import write_synthetic
from commands.synthetic.ground_truth import PERIOD_SECONDS, PERIODS, SPAN_SECONDS, START, GroundTruth, SyntheticSpec
from commands.synthetic.oracle import rating_moments
from commands.synthetic.sampling import InteractionBlock, stream_interactions
from recipe import BadInput

NAMES = ["interactions.csv", "items.csv", "truth.json", "users.csv"]
SMALL = SyntheticSpec(users=600, items=400, interactions=24_000, clusters=8, seed=5)
LONG_TAIL = SyntheticSpec(users=60, items=4_000, interactions=4_000, clusters=5, drift=1, seed=2)

Floats = npt.NDArray[np.float64]


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def numbers(path: Path) -> npt.NDArray[np.int64]:
    return np.array(rows(path)[1:], dtype=np.int64)


def all_of(ground_truth: GroundTruth) -> InteractionBlock:
    blocks = list(stream_interactions(ground_truth))
    names = [field.name for field in dataclasses.fields(InteractionBlock)]
    return InteractionBlock(*(np.concatenate([getattr(block, name) for block in blocks]) for name in names))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "small"
    write_synthetic(SMALL, out)
    return out


# --- files ------------------------------------------------------------------------------------------------------------


def test_command_writes_the_dataset(tandem: Callable[..., Any], small: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "data"
    asked = ("--users", "600", "--items", "400", "--interactions", "24000", "--clusters", "8", "--seed", "5")
    done = tandem("data", "synthetic", *asked, "--out", out)
    assert done.code == 0, done.stderr
    assert [line.split(":")[0].strip() for line in done.stdout.splitlines()[1:]] == [
        "upper bound of top_100_accuracy", "upper bound of top_100_accuracy_unseen", "upper bound of rmse"
    ]  # fmt: skip
    assert sorted(path.name for path in out.parent.rglob("*")) == sorted(["data", *NAMES])
    assert {name: (out / name).read_bytes() for name in NAMES} == {name: (small / name).read_bytes() for name in NAMES}
    refused = tandem("data", "synthetic", "--out", out)
    assert (
        refused.code == 2 and "contains data of other arguments" in refused.stderr and "Traceback" not in refused.stderr
    )


def test_interactions_and_side_tables_fit(small: Path) -> None:
    assert [rows(small / name)[0] for name in NAMES if name.endswith(".csv")] == [
        ["user_id", "item_id", "rating", "timestamp"],
        ["item_id", "title", "year", "genres"],
        ["user_id", "age", "gender", "occupation"],
    ]
    users, items, ratings, times = numbers(small / "interactions.csv").T
    assert len(users) == 24_000
    assert len(set(zip(users.tolist(), items.tolist(), strict=True))) == len(users)
    assert [row[0] for row in rows(small / "users.csv")[1:]] == [str(user + 1) for user in range(600)]
    assert [row[0] for row in rows(small / "items.csv")[1:]] == [str(item + 1) for item in range(400)]
    assert users.min() >= 1 and users.max() <= 600 and items.min() >= 1 and items.max() <= 400
    assert set(ratings.tolist()) == {1, 2, 3, 4, 5}
    assert times.min() >= START and times.max() < START + SPAN_SECONDS
    assert times.max() - times.min() > 0.99 * SPAN_SECONDS
    assert (np.lexsort((times, users)) == np.arange(len(users))).all()


def test_seed_changes_the_data(small: Path, tmp_path: Path) -> None:
    write_synthetic(dataclasses.replace(SMALL, seed=6), tmp_path / "other")
    for name in NAMES:
        assert (small / name).read_bytes() != (tmp_path / "other" / name).read_bytes()
    mine, others = (numbers(folder / "interactions.csv") for folder in (small, tmp_path / "other"))
    assert np.corrcoef(*(np.bincount(table[:, 1], minlength=401) for table in (mine, others)))[0, 1] < 0.3


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_valid_arguments_give_complete_files(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    users, items = data.draw(st.integers(1, 40), "users"), data.draw(st.integers(4, 60), "items")
    arguments = SyntheticSpec(
        users,
        items,
        data.draw(st.integers(1, users * (items // 4)), "interactions"),
        data.draw(st.integers(0, 2**63), "seed"),
        data.draw(st.integers(1, items // 4), "clusters"),
        data.draw(st.floats(0, 1), "drift"),
        data.draw(st.sampled_from([0.0, 0.02, 0.5]), "broken"),
    )
    out = tmp_path_factory.mktemp("any") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sampling, "BLOCK_ROWS", data.draw(st.sampled_from([1, 16, sampling.BLOCK_ROWS]), "rows of a block")
        )
        truth = write_synthetic(arguments, out)
    lines = (out / "interactions.csv").read_bytes().splitlines()[1:]
    assert len(lines) == arguments.interactions + truth["rows"]["broken"]
    assert abs(truth["rows"]["broken"] - arguments.broken * len(lines)) <= 1
    assert sum(truth["broken"].values()) == truth["rows"]["broken"]
    whole = Counter(line for line in lines if line.count(b",") == 3)
    if not arguments.broken:
        pairs = [tuple(line.split(b",")[:2]) for line in whole]
        assert len(set(pairs)) == len(lines)
        # Counts are rounded so that the total is exact.
        assert max(Counter(user for user, _ in pairs).values()) <= items // 4 + 1
    for metric, best in truth["best"].items():
        assert (0 <= best["value"] < 2) if metric == "rmse" else (0 <= best["value"] <= 1)
    assert truth["best"]["rmse"]["value"] <= truth["best_without_time"]["rmse"]["value"] + 1e-12


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"users": 0}, "--users: expected at least 1, got 0"),
        ({"items": 3}, "--items: expected at least 4, got 3"),
        ({"interactions": 0}, "--interactions: expected at least 1, got 0"),
        ({"seed": -1}, "--seed: expected at least 0, got -1"),
        ({"clusters": 0}, "--clusters: expected at least 1, got 0"),
        ({"clusters": 101}, "--clusters: expected at most a quarter of the 400 items, got 101"),
        ({"interactions": 60_001}, "--interactions: expected at most 60,000, got 60,001: no user rates an item twice"),
        ({"drift": 1.1}, r"--drift: expected a number from 0 to 1, got 1\.1"),
        ({"drift": float("nan")}, "--drift: expected a number from 0 to 1, got nan"),
        ({"broken": 0.6}, r"--broken: expected a number from 0 to 0\.5, got 0\.6"),
    ],
)
def test_inconsistent_arguments_are_errors(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=told):
        write_synthetic(dataclasses.replace(SMALL, **changes), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_existing_files_of_the_same_arguments_are_kept(tmp_path: Path) -> None:
    arguments = SyntheticSpec(20, 20, 60, clusters=2)
    out = tmp_path / "data"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    truth = write_synthetic(arguments, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert sorted(before) == sorted([*NAMES, "notes.txt"])
    assert write_synthetic(arguments, out) == truth
    with pytest.raises(BadInput, match=r"contains data of other arguments: .*'seed': 0.*or set --out"):
        write_synthetic(dataclasses.replace(arguments, seed=1), out)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with (out / "users.csv").open("a") as stream:
        stream.write("21,3,F,baker\n")
    with pytest.raises(BadInput, match=r"users\.csv: expected \d+ bytes, got \d+"):
        write_synthetic(arguments, out)
    (out / "truth.json").write_text("[]")
    with pytest.raises(BadInput, match=r"truth\.json: not written by this command"):
        write_synthetic(arguments, out)
    (out / "truth.json").unlink()
    with pytest.raises(BadInput, match=r"got interactions\.csv, .* without truth\.json"):
        write_synthetic(arguments, out)
    with pytest.raises(BadInput, match="expected a folder, got a file"):
        write_synthetic(arguments, out / "notes.txt")


def test_failure_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(files, "find_upper_bounds", fail)
    with pytest.raises(OSError, match="no space left"):
        write_synthetic(SyntheticSpec(20, 20, 60, clusters=2), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_malformed_lines_are_inserted_between_valid_ones(small: Path, tmp_path: Path) -> None:
    truth = write_synthetic(dataclasses.replace(SMALL, broken=0.1), tmp_path / "data")
    good = (small / "interactions.csv").read_bytes().splitlines()
    lines = (tmp_path / "data" / "interactions.csv").read_bytes().splitlines()
    assert len(lines) - len(good) == truth["rows"]["broken"] == 2667
    more = Counter(lines)
    more.subtract(good)
    assert min(more.values()) == 0
    kept = iter(lines)
    assert all(line in kept for line in good)
    assert len(truth["broken"]) == 11 and min(truth["broken"].values()) > 150
    for name in ("items.csv", "users.csv"):
        assert (tmp_path / "data" / name).read_bytes() == (small / name).read_bytes()
    assert truth["best"] == json.loads((small / "truth.json").read_text())["best"]


MEMORY = """
import resource, sys
from pathlib import Path
from commands.synthetic import sampling
from commands.synthetic.files import write_synthetic
from commands.synthetic.ground_truth import SyntheticSpec
sampling.BLOCK_ROWS = 1 << 16
write_synthetic(SyntheticSpec(5_000, 4_000, int(sys.argv[1])), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for interactions in (150_000, 1_200_000):
        command = [sys.executable, "-c", MEMORY, str(interactions), str(tmp_path / str(interactions))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    # In MiB; the rows that came on top are 20 MiB as text and 40 more as the numbers of a block.
    assert peaks[1] - peaks[0] < 20, peaks


# --- the planted law --------------------------------------------------------------------------------------------------


class Law:
    """p(i | u, t), written down once more from the formula in ground_truth.py."""

    def __init__(self, ground_truth: GroundTruth) -> None:
        self.ground_truth, items = ground_truth, ground_truth.items
        self.weights = np.zeros((PERIODS, len(items.number)))
        for period, slot in np.ndindex(self.weights.shape):
            if math.floor(items.launch[slot]) <= period:
                age = max(period + 0.5 - items.launch[slot], 0)
                self.weights[period, slot] = items.weight[slot] * (0.1 + 0.9 * math.exp(-age / items.life[slot]))

    def chances(self, user: int, period: int) -> Floats:
        """Of each slot."""
        users, weights = self.ground_truth.users, self.weights[period]
        moved = users.shares[user, 0] * users.drift * (period + 0.5) / PERIODS
        taste = np.zeros(self.ground_truth.arguments.clusters)
        for home, share in zip(users.homes[user], users.shares[user] + [-moved, 0, 0, moved], strict=True):
            taste[home] += share
        found = np.zeros(len(weights))
        for cluster, share in enumerate(taste):
            own = self.ground_truth.items.cluster == cluster
            total = weights[own].sum()
            found[own] = (0.9 * share + 0.1 * total / weights.sum()) * weights[own] / total
        return found


@pytest.mark.parametrize("rounds", [30, 0], ids=["drawn again", "drawn among the rest"])
def test_users_choose_by_the_ground_truth_without_repeats(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_ROUNDS", rounds)
    ground_truth = GroundTruth.draw(SyntheticSpec(users=3_000, items=12, interactions=8_000, clusters=3, seed=1))
    found, law_of = all_of(ground_truth), Law(ground_truth)
    expected, seen, variance = np.zeros((3, 12)), np.zeros((3, 12)), np.zeros((3, 12))
    taken = np.zeros(12, bool)
    for row, user in enumerate(found.users.tolist()):
        place = row - int(np.searchsorted(found.users, user))
        taken &= place > 0
        law = np.where(taken, 0, law_of.chances(user, int(found.periods[row])))
        law /= law.sum()
        slot = int(found.slots[row])
        assert law[slot] > 0
        if place < 3:
            expected[place] += law
            variance[place] += law * (1 - law)
            seen[place, slot] += 1
        taken[slot] = True
    assert seen.sum(axis=1).min() > 1_000
    assert np.abs((seen - expected) / np.sqrt(variance)).max() < 4.5


def test_popularity_has_a_long_tail_and_so_has_activity() -> None:
    ground_truth = GroundTruth.draw(SyntheticSpec(users=5_000, items=5_000, interactions=250_000))
    items, users = np.zeros(5_000, int), ground_truth.users.counts
    for block in stream_interactions(ground_truth):
        items += np.bincount(block.slots, minlength=5_000)
    items = np.sort(items)[::-1]
    assert items[:500].sum() > 0.45 * items.sum()
    assert items[4_000:].sum() < 0.1 * items.sum()
    assert users.sum() == 250_000 and users.max() > 10 * np.median(users)
    assert users[np.argsort(-users)][:1_000].sum() > 0.45 * users.sum()


def test_items_launch_and_decay() -> None:
    ground_truth = GroundTruth.draw(SyntheticSpec(users=3_000, items=600, interactions=150_000, drift=0))
    found = all_of(ground_truth)
    launched = np.floor(ground_truth.items.launch).astype(int)[found.slots]
    age = found.periods - launched
    assert age.min() >= 0
    # Of the items that are launched in the first year: their share of all choices in each month of their lives.
    young = (launched >= 0) & (launched < 12) & (age < 12)
    total = np.bincount(found.periods, minlength=PERIODS)
    share = np.bincount(age[young], weights=1 / total[found.periods[young]], minlength=12)
    assert share[1] > 1.3 * share[6] > 1.3 * share[11]


@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_preferences_drift_by_the_argument(drift: float) -> None:
    ground_truth = GroundTruth.draw(SyntheticSpec(2_000, 2_000, 100_000, clusters=40, drift=drift))
    found = all_of(ground_truth)
    of_home = ground_truth.users.homes[found.users] == ground_truth.items.cluster[found.slots, None]
    early, late = found.periods < 4, found.periods >= PERIODS - 4
    first, last = of_home[:, 0], of_home[:, 3] & ~of_home[:, :3].any(axis=1)
    if drift:
        assert first[late].mean() < 0.4 * first[early].mean() and last[late].mean() > 4 * last[early].mean()
    else:
        assert abs(first[late].mean() - first[early].mean()) < 0.03 and last.mean() < 0.02


def test_some_side_features_correlate_with_preferences(small: Path) -> None:
    ground_truth = GroundTruth.draw(SMALL)
    cluster = np.empty(400, int)
    cluster[ground_truth.items.number - 1] = ground_truth.items.cluster
    home = ground_truth.users.homes[:, 0]

    def told(values: list[str], truth: npt.NDArray[Any]) -> float:
        """Share that guessing the commonest truth of each value gets right, above guessing without it."""
        right = sum(max(Counter(truth[np.array(values) == value].tolist()).values()) for value in set(values))
        return float((right - max(Counter(truth.tolist()).values())) / len(values))

    items, users = rows(small / "items.csv")[1:], rows(small / "users.csv")[1:]
    assert told([row[3].split("|")[0] for row in items], cluster) > 0.5
    assert told([row[3] for row in users], home) > 0.3
    assert told([row[2] for row in users], home) < 0.05
    assert 0.005 < np.mean([row[1] == "" for row in users]) < 0.06
    launched = {row[0]: int(row[2]) for row in items}
    for number, launch in zip(ground_truth.items.number.tolist(), ground_truth.items.launch.tolist(), strict=True):
        assert launched[str(number)] == 2023 + int(np.floor(launch / 12))


# --- the best figures -------------------------------------------------------------------------------------------------


def test_the_best_rmse_is_that_of_the_expected_rating() -> None:
    random = np.random.default_rng(0)
    means = np.array([0.3, 1.5, 2.9, 3.4, 5.2])
    simulated = np.clip(np.rint(means[:, None] + 0.7 * random.standard_normal((5, 200_000))), 1, 5)
    expected, variance = rating_moments(means)
    assert np.abs(simulated.mean(axis=1) - expected).max() < 0.01
    assert np.abs(simulated.var(axis=1) - variance).max() < 0.01


@pytest.mark.parametrize("arguments", [SMALL, LONG_TAIL], ids=["small", "long tail"])
def test_upper_bounds_are_those_of_the_ground_truth(arguments: SyntheticSpec, tmp_path: Path) -> None:
    """All rows are in the sample, so that figures without a random split must come out to the last digit."""
    truth = write_synthetic(arguments, tmp_path / "data")
    ground_truth = GroundTruth.draw(arguments)
    found, law_of = all_of(ground_truth), Law(ground_truth)
    assert truth["sample_rows"] == arguments.interactions and truth["sample_users"] == len(np.unique(found.users))
    _, item, rating, time = numbers(tmp_path / "data" / "interactions.csv").T
    assert (ground_truth.items.number[found.slots] == item).all()
    period = (time - START) // PERIOD_SECONDS
    in_eval = np.random.default_rng(1).random(len(item)) < 0.2
    hits, hits_without_time, unseen = np.zeros((3, len(item)), bool)
    for user in np.unique(found.users).tolist():
        own = np.flatnonzero(found.users == user)
        law = np.stack([law_of.chances(user, month) for month in range(PERIODS)])
        begin, end = int(ground_truth.users.joined[user]), int(ground_truth.users.left[user])
        active = [max(0, min(end, (month + 1) * PERIOD_SECONDS) - max(begin, month * PERIOD_SECONDS))
                  for month in range(PERIODS)]  # fmt: skip
        without_time = np.argsort(-(np.array(active) @ law))[:100]
        orders = np.argsort(-law, axis=1)
        for row in own.tolist():
            chosen, order = found.slots[row], orders[period[row]]
            hits[row] = chosen in order[:100]
            hits_without_time[row] = chosen in without_time
            known = found.slots[own[~in_eval[own] & (own != row)]]
            unseen[row] = chosen in order[: 100 + len(known)][~np.isin(order[: 100 + len(known)], known)][:100]
    best, without, popularity = truth["best"], truth["best_without_time"], truth["popularity"]
    assert best["top_100_accuracy"]["value"] == pytest.approx(hits.mean(), abs=1e-9)
    assert without["top_100_accuracy"]["value"] == pytest.approx(hits_without_time.mean(), abs=1e-9)
    # Another random split of the same rows.
    assert best["top_100_accuracy_unseen"]["value"] == pytest.approx(unseen.mean(), abs=0.015)
    assert hits.mean() > hits_without_time.mean() > popularity["top_100_accuracy"]["value"] + 0.05
    error = rating - rating_moments(found.means)[0]
    assert best["rmse"]["value"] == pytest.approx(np.sqrt(np.mean(error**2)), abs=0.02)
    assert 0 < best["rmse"]["standard_error"] < 0.03 and 0 < best["top_100_accuracy"]["standard_error"] < 0.04


def test_no_model_exceeds_the_upper_bounds(small: Path) -> None:
    """Counts of a user's clusters times an item's popularity, and damped means: they use what train tells alone."""
    truth = json.loads((small / "truth.json").read_text())
    ground_truth = GroundTruth.draw(SMALL)
    found = all_of(ground_truth)
    train = np.random.default_rng(2).random(len(found.users)) >= 0.2
    cluster = ground_truth.items.cluster
    popular = np.bincount(found.slots[train], minlength=SMALL.items) + 0.5
    liked = np.full((SMALL.users, SMALL.clusters), 0.2)
    np.add.at(liked, (found.users[train], cluster[found.slots[train]]), 1)
    scores = liked[:, cluster] * (popular / np.bincount(cluster, weights=popular)[cluster])
    scores[found.users[train], found.slots[train]] = -1
    test = np.flatnonzero(~train)
    mine = scores[found.users[test]]
    reached = np.mean((mine > mine[np.arange(len(test)), found.slots[test], None]).sum(axis=1) < 100)
    best, popularity = (truth[key]["top_100_accuracy_unseen"] for key in ("best", "popularity"))
    assert popularity["value"] + 0.1 < reached < best["value"] + 3 * best["standard_error"]
    rating = found.ratings.astype(float)
    mean = rating[train].mean()
    item = damped_means(found.slots, rating - mean, train)
    user = damped_means(found.users, rating - mean - item, train)
    rmse = np.sqrt(np.mean((rating - mean - item - user)[test] ** 2))
    best = truth["best"]["rmse"]
    assert best["value"] - 3 * best["standard_error"] < rmse < rating[test].std() - 0.1


def damped_means(keys: npt.NDArray[np.int64], values: Floats, train: npt.NDArray[np.bool_]) -> Floats:
    """For each row the mean of the values of the same key in train, as if five more of them were 0."""
    size = int(keys.max()) + 1
    sums = np.bincount(keys[train], weights=values[train], minlength=size)
    return np.asarray((sums / (np.bincount(keys[train], minlength=size) + 5))[keys])
