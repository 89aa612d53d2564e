"""Queries of the exported model: calibration, sample users, and models that fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2

from commands.report import exported_model

COLUMNS = {"user_id": "user", "item_id": "item", "label": "stars", "timestamp": "time"}


def schema(*, negatives: bool = False) -> schema_pb2.Schema:
    found = schema_pb2.Schema()
    for name, kind in (("user", "BYTES"), ("item", "BYTES"), ("stars", "FLOAT"), ("time", "INT"), ("title", "BYTES"),
                       ("year", "INT")):  # fmt: skip
        found.feature.add(name=name, type=schema_pb2.FeatureType.Value(kind))
    if negatives:
        found.feature.add(name="is_positive", type=schema_pb2.FLOAT)
    return found


def write(folder: Path, split: str, rows: Sequence[dict[str, Any]]) -> str:
    """Examples as ExampleGen writes them; returns the artifact's place."""
    (folder / f"Split-{split}").mkdir(parents=True, exist_ok=True)
    place = str(folder / f"Split-{split}" / "data_tfrecord-00000-of-00001.gz")
    with tf.io.TFRecordWriter(place, "GZIP") as writer:
        for row in rows:
            example = tf.train.Example()
            for name, value in row.items():
                feature = example.features.feature[name]
                if isinstance(value, str):
                    feature.bytes_list.value.append(value.encode())
                elif isinstance(value, int):
                    feature.int64_list.value.append(value)
                else:
                    feature.float_list.value.append(value)
            writer.write(example.SerializeToString())
    return str(folder)


def row(user: str, item: str, stars: float, time: int = 0, **more: Any) -> dict[str, Any]:
    return {"user": user, "item": item, "stars": stars, "time": time, **more}


class Model:
    """A model whose answers the test knows."""

    def __init__(self, rating: Any = None, recommended: Sequence[Sequence[str]] = ()) -> None:
        self._rating, self._recommended = rating, recommended
        self.asked: list[str] = []

    def ratings(self, examples: Sequence[bytes]) -> np.ndarray:
        return np.array([self._rating(tf.train.Example.FromString(one)) for one in examples], float)

    def recommend(self, users: Sequence[str]) -> dict[str, np.ndarray]:
        self.asked = list(users)
        ids = [[item.encode() for item in items] for items in self._recommended]
        return {
            "item_ids": np.array(ids, object),
            "ratings": np.full((len(ids), len(ids[0])), 3.5),
            "title": np.array([[b"Title of " + item for item in items] for items in ids], object),
        }


def test_interactions_are_read_without_sampled_negatives(tmp_path: Path) -> None:
    uri = write(tmp_path, "train", [row("a", "x", 5.0, 7, is_positive=1.0), row("b", "y", 0.0, 8, is_positive=0.0)])
    found = exported_model.read_interactions(uri, "train", COLUMNS, schema(negatives=True))
    assert (
        found.users.tolist() == [b"a"]
        and found.items.tolist() == [b"x"]
        and found.labels.tolist() == [5.0]
        and found.is_whole
    )
    assert found.times is not None and found.times.tolist() == [7]
    timeless = exported_model.read_interactions(uri, "train", {**COLUMNS, "timestamp": None}, schema())
    assert timeless.times is None and timeless.items.tolist() == [b"x", b"y"]
    assert len(exported_model.read_interactions(uri, "eval", COLUMNS, schema()).users) == 0


def test_calibration_bins_predictions_by_count_and_compares_their_means(tmp_path: Path) -> None:
    uri = write(tmp_path, "eval", [row("a", "x", 1.0 + place % 5) for place in range(200)])
    model = Model(lambda example: example.features.feature["stars"].float_list.value[0] - 0.5)
    found = exported_model.calibration(model, uri, COLUMNS, schema())  # type: ignore[arg-type]
    assert found is not None
    assert found.counts.sum() == 200
    assert found.actual - found.predicted == pytest.approx(0.5)
    assert found.error == pytest.approx(0)
    assert found.residuals == pytest.approx(0.5)


def test_calibration_of_a_constant_model_is_one_bin(tmp_path: Path) -> None:
    uri = write(tmp_path, "eval", [row("a", "x", stars) for stars in (1.0, 5.0) * 50])
    found = exported_model.calibration(Model(lambda _: 3.0), uri, COLUMNS, schema())  # type: ignore[arg-type]
    assert found is not None
    assert (found.predicted.tolist(), found.actual.tolist(), found.counts.tolist()) == ([3.0], [3.0], [100])
    assert found.error == pytest.approx(1.96 * 2 / 10)


def test_calibration_ignores_nan_predictions(tmp_path: Path) -> None:
    uri = write(tmp_path, "eval", [row("a", "x", 4.0)] * 4)
    nothing = exported_model.calibration(Model(lambda _: float("nan")), uri, COLUMNS, schema())  # type: ignore[arg-type]
    assert nothing is None
    assert exported_model.calibration(Model(), write(tmp_path / "none", "eval", []), COLUMNS, schema()) is None  # type: ignore[arg-type]


def test_sample_users_have_highest_rated_and_chosen_items(tmp_path: Path) -> None:
    rows = [row(f"user{number:02}", f"item{place}", 3.0, place) for number in range(20) for place in range(number + 1)]
    rows += [row("user18", "best", 5.0, 1), row("user18", "latest best", 5.0, 9), row("user18", "best", 5.0, 2)]
    rows += [row("user19", "item0", 3.0)] * 5
    uri = write(tmp_path, "train", rows)
    write(tmp_path, "eval", [row("user18", "two", 4.0)])
    write(tmp_path, "catalogue", [{"item": "best", "title": "The Best", "year": 1999}, {"item": "latest best"}])
    train, chosen = (exported_model.read_interactions(uri, split, COLUMNS, schema()) for split in ("train", "eval"))
    titles = exported_model.read_display(uri, COLUMNS, ["title", "year"], schema())
    # What an item lacks is not shown as an empty text or a zero.
    assert titles == {b"best": ("The Best", "1999"), b"latest best": ()}
    model = Model(recommended=[["one", "two", ""]] * 4)
    heavy, typical, light, new_user = exported_model.sample_users(model, train, chosen, titles, ["title"])  # type: ignore[arg-type]
    assert model.asked == [user.user_id for user in (heavy, typical, light, new_user)]
    assert heavy.user_id == "user18" and heavy.interactions == 22
    assert heavy.interactions > typical.interactions > light.interactions > new_user.interactions == 0
    assert [item.item_id for item in heavy.liked[:2]] == ["latest best", "best"]
    assert [(item.item_id, item.display, item.chosen) for item in heavy.recommended] == [
        ("one", ("Title of one",), False), ("two", ("Title of two",), True)
    ]  # fmt: skip
    assert new_user.user_id == exported_model.NEW_USER and new_user.liked == ()
    assert not any(item.chosen for item in typical.recommended)


def test_missing_model_or_signature_is_an_error(tmp_path: Path) -> None:
    assert exported_model.servable(str(tmp_path)) is None
    with pytest.raises(exported_model.ModelUnavailable):
        exported_model.ExportedModel(str(tmp_path))
    module = tf.Module()
    double = tf.function(lambda x: {"y": 2 * x}, input_signature=[tf.TensorSpec([None], tf.float32)])
    tf.saved_model.save(module, str(tmp_path / "Format-Serving"), signatures={"double": double})
    path = exported_model.servable(str(tmp_path))
    assert path is not None
    with (
        exported_model.ExportedModel(path) as model,
        pytest.raises(exported_model.ModelUnavailable, match=r"no signature 'recommend'; signatures: .*double"),
    ):
        model.recommend(["a"])
