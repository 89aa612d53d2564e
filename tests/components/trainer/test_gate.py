"""A trained and exported model at the gate: what is measured is what is served, and what is broken is stopped.

The figures are checked against answers of `recommend` and `rate` alone, and against counts of the raw interactions.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from components.trainer.data.training_data import TrainingData
from components.trainer.export import ServedRecommender, save
from recipe.evaluation import METRICS, Gate

World = Any
Loaded = Any
Row = dict[str, Any]

CONTEXT = ("at", "age", "Plan", "moods", "height")
TOP_K = (1, 5, 10, 50, 100)

BEATS_POPULARITY = Gate(metric="top_10_accuracy_unseen", beats_baseline_by=0)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model as the Trainer exports it."""

    folder: Path
    """Of the Model artifact."""
    loaded: Loaded


Export = Callable[..., Exported]
Split = Callable[[Sequence[Row]], Path]


@pytest.fixture(scope="module")
def export(
    world: World, data: TrainingData, trained: Any, load: Callable[[Path], Loaded], tmp_path_factory: Any
) -> Export:
    """Exports the trained model; `spoil` changes the module before, and `vocabulary` the order of its ids."""

    def make(
        exclude_seen: bool = True,
        spoil: Callable[[ServedRecommender], None] = lambda served: None,
        vocabulary: Callable[[list[bytes]], list[bytes]] = lambda ids: ids,
    ) -> Exported:
        class Ids:
            """The output of Transform, read as a careless export would."""

            def __getattr__(self, name: str) -> Any:
                return getattr(world.transform_output, name)

            def vocabulary_by_name(self, name: str) -> list[bytes]:
                return vocabulary(world.transform_output.vocabulary_by_name(name))

        folder = tmp_path_factory.mktemp("exported")
        recipe = world.recipe(serving={"k": 1000, "exclude_seen": exclude_seen})
        served = ServedRecommender(trained[0], data, Ids(), recipe, world.schema)  # type: ignore[arg-type]
        spoil(served)
        save(served, str(folder / "Format-Serving"), world.users[:3], world.items[:2])
        return Exported(folder, load(folder / "Format-Serving"))

    return make


@pytest.fixture(scope="module")
def split(example: Callable[[Mapping[str, Any]], bytes], tmp_path_factory: pytest.TempPathFactory) -> Split:
    def write(rows: Sequence[Row]) -> Path:
        folder = tmp_path_factory.mktemp("examples")
        (folder / "Split-eval").mkdir()
        options = tf.io.TFRecordOptions(compression_type="GZIP")
        with tf.io.TFRecordWriter(str(folder / "Split-eval" / "data-00000-of-00001.gz"), options) as writer:
            for row in rows:
                writer.write(example(row))
        return folder

    return write


def _row(user: str, item: str, place: int, stars: float) -> Row:
    context = {
        "at": 880_000_000 + 7_000 * place,
        "age": 20 + place % 30,
        "Plan": "paid",
        "height": 1.7,
        "moods": "calm",
    }
    return {"customer": user, "item": item, "stars": stars, **context}


@pytest.fixture(scope="module")
def known_users(world: World) -> list[Row]:
    """Users of the train split with unseen items of their own group and high ratings."""
    random = np.random.default_rng(8)
    rows = []
    for place, user in enumerate(world.users):
        own = [item for item in world.items if item.startswith(user[:2]) and item not in world.seen(user)]
        for item in random.choice(own, 3, replace=False).tolist():
            rows.append(_row(user, item, place, 4.0 + place % 2))
    return rows


@pytest.fixture(scope="module")
def new_users() -> list[Row]:
    """New users, with items without interactions."""
    return [_row(f"new{place % 6}", f"cold{place:03}", place, 3.0) for place in range(24)]


@pytest.fixture(scope="module")
def followers(world: World) -> list[Row]:
    """Users of the train split who choose the most popular items."""
    counts = Counter(row["item"] for row in world.interactions)
    rows = []
    for place, user in enumerate(world.users):
        unseen = [item for item, _ in counts.most_common() if item not in world.seen(user)]
        other = [item for item in unseen if not item.startswith(user[:2])]
        rows += [_row(user, item, place, 4.0) for item in other[:2]]
    return rows


@pytest.fixture(scope="module")
def good(export: Export) -> Exported:
    return export()


def expected(
    world: World, model: Exported, every: Exported, rows: Sequence[Row]
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of the model and of its baselines, computed from responses and raw interactions."""
    counts = Counter(row["item"] for row in world.interactions)
    order = [value.decode() for value in world.transform_output.vocabulary_by_name("item_id")]
    popular = sorted(order, key=lambda item: -counts[item])
    mean = float(np.mean([row["stars"] for row in world.interactions]))
    item_off, user_off = defaultdict(list), defaultdict(list)
    for row in world.interactions:
        item_off[row["item"]].append(row["stars"] - mean)
    item_bias = {item: sum(off) / (len(off) + 10) for item, off in item_off.items()}
    for row in world.interactions:
        user_off[row["customer"]].append(row["stars"] - mean - item_bias[row["item"]])
    user_bias = {user: sum(off) / (len(off) + 10) for user, off in user_off.items()}

    ranked, baseline = [], []
    for row in rows:
        context = {name: [row[name]] for name in CONTEXT}
        seen = world.seen(row["customer"]) - {row["item"]}
        whole = [
            value.decode() for value in every.loaded("recommend", user_id=[row["customer"]], **context)["item_ids"][0]
        ]
        listed = [
            value.decode() for value in model.loaded("recommend", user_id=[row["customer"]], **context)["item_ids"][0]
        ]
        rating = model.loaded("rate", user_id=[row["customer"]], item_id=[row["item"]], **context)["rating"][0]
        means = mean + item_bias.get(row["item"], 0.0) + user_bias.get(row["customer"], 0.0)
        ranked.append((row, whole, [item for item in whole if item not in seen], listed[:10], float(rating)))
        unseen = [item for item in popular if item not in seen]
        first = [item for item in popular if item not in world.seen(row["customer"])][:10]
        baseline.append((row, popular, unseen, first, min(max(means, 1.0), 5.0)))
    return _measured(ranked, counts, len(order)), _measured(baseline, counts, len(order))


def _measured(answers: Sequence[Any], counts: Counter[str], catalogue: int) -> dict[str, float]:
    found = {}
    places: dict[str, list[int]] = defaultdict(list)
    for row, _, unseen, _, _ in answers:
        places[row["customer"]].append(unseen.index(row["item"]))
    for k in TOP_K:
        found[f"top_{k}_accuracy"] = float(np.mean([row["item"] in whole[:k] for row, whole, *_ in answers]))
        found[f"top_{k}_accuracy_unseen"] = float(np.mean([row["item"] in rest[:k] for row, _, rest, *_ in answers]))
    gains = [
        sum(1 / math.log2(place + 2) for place in own if place < 10)
        / sum(1 / math.log2(place + 2) for place in range(min(len(own), 10)))
        for own in places.values()
    ]
    found["ndcg_10"] = float(np.mean([min(gain, 1.0) for gain in gains]))
    found["recall_10"] = float(np.mean([np.mean([place < 10 for place in own]) for own in places.values()]))
    found["mrr"] = float(np.mean([1 / (1 + min(own)) for own in places.values()]))
    found["coverage_10"] = len({item for *_, first, _ in answers for item in first}) / catalogue
    listed = [np.mean([math.log1p(counts[item]) for item in first]) for *_, first, _ in answers]
    chosen = [math.log1p(counts[row["item"]]) for row, *_ in answers]
    found["popularity_bias_10"] = float(np.mean(listed) - np.mean(chosen))
    errors = np.array([rating - row["stars"] for row, *_, rating in answers])
    return found | {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.mean(np.abs(errors)))}


@pytest.mark.slow
def test_evaluated_lists_equal_served_lists(
    world: World,
    export: Export,
    good: Exported,
    split: Split,
    known_users: list[Row],
    new_users: list[Row],
    run_evaluator: Callable[..., Any],
) -> None:
    rows = [*known_users, *new_users]
    verdict = run_evaluator(good.folder, split(rows), [BEATS_POPULARITY]).verdict
    metrics, baselines = expected(world, good, export(exclude_seen=False), rows)
    assert set(metrics) == set(METRICS)
    assert verdict.metrics == pytest.approx(metrics, rel=1e-5)
    assert verdict.baselines == pytest.approx(baselines, rel=1e-5)
    assert verdict.examples == len(rows)


def test_a_good_model_is_blessed(
    good: Exported, split: Split, known_users: list[Row], run_evaluator: Callable[..., Any]
) -> None:
    evaluated = run_evaluator(good.folder, split(known_users), [BEATS_POPULARITY, Gate(metric="rmse", at_most=1.0)])
    assert evaluated.blessed, evaluated.verdict.failures()


def _shuffled_ids(ids: list[bytes]) -> list[bytes]:
    return [ids[place] for place in np.random.default_rng(1).permutation(len(ids))]


def _shuffle_vectors(served: ServedRecommender) -> None:
    (factors,) = served.ranker.index.variables
    factors.assign(tf.gather(factors, np.random.default_rng(1).permutation(factors.shape[1]), axis=1))


@pytest.mark.parametrize("broken", [pytest.param("ids", marks=pytest.mark.slow), "vectors"])
def test_a_model_with_shuffled_item_vectors_is_not_blessed(
    export: Export, split: Split, known_users: list[Row], run_evaluator: Callable[..., Any], broken: str
) -> None:
    model = export(vocabulary=_shuffled_ids) if broken == "ids" else export(spoil=_shuffle_vectors)
    evaluated = run_evaluator(model.folder, split(known_users), [BEATS_POPULARITY, Gate(metric="rmse", at_most=1.0)])
    assert not evaluated.blessed
    (failure,) = evaluated.verdict.failures()
    assert "top_10_accuracy_unseen: threshold ≥ " in str(failure)
    assert "(baseline, most popular items: 0." in str(failure)


def test_a_model_below_the_popularity_baseline_is_not_blessed(
    good: Exported, split: Split, followers: list[Row], run_evaluator: Callable[..., Any]
) -> None:
    gates = [Gate(metric="top_10_accuracy_unseen", at_least=10 / 130), BEATS_POPULARITY]
    evaluated = run_evaluator(good.folder, split(followers), gates)
    assert not evaluated.blessed
    (failure,) = evaluated.verdict.failures()
    assert failure.condition == "beats_baseline_by" and failure.reference > failure.measured
    assert str(failure) == (
        f"top_10_accuracy_unseen: threshold ≥ {failure.reference:.4f}, measured {failure.measured:.4f} "
        f"(baseline, most popular items: {failure.reference:.4f})"
    )


@pytest.mark.slow
def test_a_model_that_is_poor_on_new_users_is_not_blessed_with_a_gate_on_them(
    good: Exported, split: Split, known_users: list[Row], new_users: list[Row], run_evaluator: Callable[..., Any]
) -> None:
    average = Gate(metric="top_10_accuracy_unseen", at_least=0.3)
    new = Gate(metric="top_10_accuracy_unseen", at_least=0.3, slice={"user_activity": "new"})
    rows = split([*known_users, *new_users])
    assert run_evaluator(good.folder, rows, [average]).blessed
    evaluated = run_evaluator(good.folder, rows, [average, new])
    assert not evaluated.blessed
    (failure,) = evaluated.verdict.failures()
    assert failure.examples == len(new_users)
    assert str(failure).startswith(
        "top_10_accuracy_unseen where user_activity is new: threshold ≥ 0.3000, measured 0.0"
    )
