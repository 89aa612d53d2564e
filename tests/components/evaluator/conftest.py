"""Raw examples that say what a model is to answer, models that answer it, and numpy's opinion of them."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split
import numpy as np
import pytest
import tensorflow as tf

from recipe.columns import IS_POSITIVE
from recipe.evaluation import Gate

EXAMPLES = 400
USERS = 30
ITEMS = 200
LABEL = "stars"
TOP_K = (1, 5, 10, 50, 100)

Arrays = dict[str, np.ndarray]

# What a model answers that is worse, for each of these outputs.
RANKS = ("rank", "rank_unseen")


@dataclasses.dataclass(frozen=True)
class Rows:
    """The eval split: labels, raw columns, and what the model without any change answers."""

    label: np.ndarray
    gender: np.ndarray
    """object: `F`, `M` or None."""
    outputs: Arrays
    """What `evaluate` answers, by name."""

    def only(self, chosen: np.ndarray) -> Rows:
        outputs = {name: values[chosen] for name, values in self.outputs.items()}
        return Rows(self.label[chosen], self.gender[chosen], outputs)

    def worse(self, shift: float = 0.0, ranks_lost: int = 0) -> Rows:
        """As a model with these settings answers."""
        changed = {name: _lost(self.outputs[name], ranks_lost) for name in RANKS}
        changed["rating"] = self.outputs["rating"] + np.float32(shift)
        return dataclasses.replace(self, outputs=self.outputs | changed)

    def metrics(self, positive: np.ndarray | None = None, exclude_seen: bool = True) -> dict[str, float]:
        """Every metric, one example and one user at a time."""
        return self._metrics("", "rating", positive, exclude_seen)

    def baselines(self, positive: np.ndarray | None = None, exclude_seen: bool = True) -> dict[str, float]:
        """The same of popularity and means."""
        return self._metrics("popularity_", "mean_rating", positive, exclude_seen)

    def _metrics(self, prefix: str, rating: str, positive: np.ndarray | None, exclude_seen: bool) -> dict[str, float]:
        error = self.outputs[rating].astype(np.float64) - self.label
        found = {"rmse": float(np.sqrt(np.mean(error**2))), "mae": float(np.mean(np.abs(error)))}
        rows = self if positive is None else self.only(positive)
        outputs = rows.outputs
        if not len(rows.label):
            return found
        for suffix in ("", "_unseen"):
            rank = outputs[f"{prefix}rank{suffix}"]
            for k in TOP_K:
                found[f"top_{k}_accuracy{suffix}"] = float(np.mean([0 <= place < k for place in rank]))
        served = outputs[f"{prefix}rank_unseen" if exclude_seen else f"{prefix}rank"]
        places: dict[int, list[int]] = defaultdict(list)
        for user, place in zip(outputs["user_key"].tolist(), served.tolist(), strict=True):
            places[user].append(place)
        gains, recalls, firsts = [], [], []
        for own in places.values():
            gain = sum(1 / math.log2(place + 2) for place in own if 0 <= place < 10)
            ideal = sum(1 / math.log2(place + 2) for place in range(min(len(own), 10)))
            gains.append(min(1.0, gain / ideal))
            recalls.append(sum(0 <= place < 10 for place in own) / len(own))
            firsts.append(max([1 / (1 + place) for place in own if place >= 0], default=0.0))
        lists = outputs[f"{prefix}top_10_items"]
        recommended = {item for row in lists.tolist() for item in row if item}
        bias = [
            listed - math.log(1 + chosen)
            for listed, chosen in zip(
                outputs[f"{prefix}top_10_popularity"].tolist(), outputs["item_interactions"].tolist(), strict=True
            )
        ]
        return found | {
            "ndcg_10": float(np.mean(gains)),
            "recall_10": float(np.mean(recalls)),
            "mrr": float(np.mean(firsts)),
            "coverage_10": len(recommended) / ITEMS,
            "popularity_bias_10": float(np.mean(bias)),
        }

    def slice(self, name: str, value: str) -> np.ndarray:
        """bool: which rows belong to a slice, with the default thresholds."""
        outputs = self.outputs
        if name == "gender":
            return self.gender == value
        if name == "user_activity":
            known, share = outputs["user_interactions"] > 0, outputs["user_activity"]
            return {"new": ~known, "light": known & (share <= 0.5), "heavy": known & (share > 0.5)}[value]
        known, share = outputs["item_interactions"] > 0, outputs["item_popularity"]
        return {
            "cold": ~known,
            "tail": known & (share <= 0.5),
            "torso": known & (share > 0.5) & (share <= 0.8),
            "head": known & (share > 0.8),
        }[value]


def _lost(rank: Any, ranks: int) -> Any:
    """`rank` worsened, where there is one."""
    return np.where(rank >= 0, rank + ranks, rank)


def _rows() -> Rows:
    random = np.random.default_rng(5)
    label = random.integers(1, 6, EXAMPLES).astype(np.float32)
    user = random.integers(0, USERS, EXAMPLES)
    by_user = np.where(np.arange(USERS) < 6, 0, random.integers(1, 50, USERS))
    item_interactions = random.integers(0, 300, EXAMPLES) * (random.random(EXAMPLES) > 0.1)
    rank = random.integers(0, ITEMS, EXAMPLES)
    # Good for those it knows, poor for strangers.
    rank[by_user[user] > 0] //= 3
    rank[:3] = -1
    popular = random.integers(0, ITEMS, EXAMPLES)
    seen_ahead = random.integers(0, 8, EXAMPLES)
    # The first items come up most often, so that neither list covers the catalogue.
    often = 1 / np.arange(1, ITEMS + 1) ** 1.5
    lists = np.stack([random.choice(ITEMS, 10, replace=False, p=often / often.sum()) + 1 for _ in range(EXAMPLES)])
    lists[5, 7:] = 0
    return Rows(
        label=label,
        gender=random.choice(np.array(["F", "M", "M", None], object), EXAMPLES),
        outputs={
            "rating": (label + random.normal(0, 0.8, EXAMPLES)).astype(np.float32),
            "mean_rating": (label + random.normal(0, 1.0, EXAMPLES)).astype(np.float32),
            "rank": rank,
            "rank_unseen": np.where(rank < 0, -1, np.maximum(rank - seen_ahead, 0)),
            "top_10_items": lists,
            "top_10_popularity": random.uniform(0, 5, EXAMPLES).astype(np.float32),
            "popularity_rank": popular,
            "popularity_rank_unseen": np.maximum(popular - seen_ahead, 0),
            "popularity_top_10_items": np.tile(np.arange(1, 11), (EXAMPLES, 1)) + random.integers(0, 3, (EXAMPLES, 1)),
            "popularity_top_10_popularity": random.uniform(4, 6, EXAMPLES).astype(np.float32),
            "user_key": user * 10_000_000_019,
            "catalogue_size": np.full(EXAMPLES, ITEMS),
            "user_interactions": by_user[user],
            "user_activity": (by_user[user] / 50).astype(np.float32),
            "item_interactions": item_interactions,
            "item_popularity": (item_interactions / 300).astype(np.float32),
        },
    )


@pytest.fixture(scope="session")
def rows() -> Rows:
    return _rows()


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes rows as the eval split of an Examples artifact; `marks` are true for interactions."""

    def write(rows: Rows, marks: np.ndarray | None = None) -> Path:
        folder = tmp_path_factory.mktemp("examples")
        (folder / "Split-eval").mkdir()
        options = tf.io.TFRecordOptions(compression_type="GZIP")
        with tf.io.TFRecordWriter(str(folder / "Split-eval" / "data-00000-of-00001.gz"), options) as writer:
            for place in range(len(rows.label)):
                example = tf.train.Example()
                features = example.features.feature
                features[LABEL].float_list.value.append(rows.label[place])
                features["gender"].bytes_list.value.extend(
                    [] if rows.gender[place] is None else [rows.gender[place].encode()]
                )
                for name, values in rows.outputs.items():
                    value = np.atleast_1d(values[place])
                    if value.dtype.kind == "f":
                        features[name].float_list.value.extend(value.tolist())
                    else:
                        features[name].int64_list.value.extend(value.tolist())
                if marks is not None:
                    features[IS_POSITIVE].float_list.value.append(float(marks[place]))
                writer.write(example.SerializeToString())
        return folder

    return write


@pytest.fixture(scope="session")
def split(rows: Rows, examples: Callable[..., Path]) -> Path:
    """All rows."""
    return examples(rows)


@pytest.fixture(scope="session")
def model(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports a model that answers what the example says, plus `shift`, and ranks that are `ranks_lost` worse.

    With `nan_rank`, the rating of the examples of that rank is not a number; outputs in `lacking` are not answered, and
    features in `other_types` are wanted as another type than the examples have.
    """

    def export(
        shift: float = 0.0,
        ranks_lost: int = 0,
        nan_rank: int = -9,
        lacking: Sequence[str] = (),
        other_types: Sequence[str] = (),
    ) -> Path:
        module = tf.Module()
        spec = {
            name: tf.io.FixedLenFeature(values.shape[1:], tf.float32 if values.dtype.kind == "f" else tf.int64)
            for name, values in rows.outputs.items()
        }
        spec |= {name: tf.io.FixedLenFeature([], tf.string) for name in other_types}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def evaluate(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
            answer = dict(tf.io.parse_example(serialized, spec))
            rating = tf.where(answer["rank"] == nan_rank, np.float32("nan"), answer["rating"] + shift)
            for name in RANKS:
                answer[name] = tf.where(answer[name] >= 0, answer[name] + ranks_lost, answer[name])
            for suffix in ("", "_unseen"):
                rank = answer[f"rank{suffix}"]
                for k in TOP_K:
                    answer[f"top_{k}{suffix}_hit"] = tf.cast((rank >= 0) & (rank < k), tf.float32)
            return {name: values for name, values in (answer | {"rating": rating}).items() if name not in lacking}

        folder = tmp_path_factory.mktemp("model")
        signatures = {"serving_default": evaluate, "evaluate": evaluate}
        tf.saved_model.save(module, str(folder / "Format-Serving"), signatures=signatures)
        return folder

    return export


@pytest.fixture(scope="session")
def evaluate(run_evaluator: Callable[..., Any], split: Path) -> Callable[..., Any]:
    """The executor on the whole split, or another one."""

    def run(
        candidate: Path, gates: Sequence[Gate], last: Path | None = None, split_: Path | None = None, **more: Any
    ) -> Any:
        return run_evaluator(candidate, split_ or split, gates, last, **more)

    return run
