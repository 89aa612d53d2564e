"""The TFLite files in the LiteRT interpreter, compared with the SavedModel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from commands import tflite
from commands.cli import main

pytestmark = pytest.mark.slow

NOBODY, NOTHING = "nobody has this id", "nothing has this id"


def tandem(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["tandem", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def runner(path: Path, name: str) -> Any:
    return Interpreter(model_path=str(path)).get_signature_runner(name)


@pytest.fixture(scope="module")
def exported(all_items: Any, unseen_items: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By name: the SavedModel, and the folder of its files for a device."""
    found = {}
    for name, model in (("all_items", all_items), ("unseen_items", unseen_items)):
        out = tmp_path_factory.mktemp(name)
        tflite.export_tflite(model.path, out)
        found[name] = (model, out)
    return found


@pytest.mark.parametrize("name", ["all_items", "unseen_items"])
def test_each_user_gets_the_list_of_the_saved_model(world: Any, exported: dict[str, Any], name: str) -> None:
    """Seen items are excluded on the device if the model excludes them."""
    model, out = exported[name]
    users = [*world.users, NOBODY, ""]
    expected = model("recommend", user_id=users)
    recommend = runner(out / "top_k.tflite", "recommend")
    for row, user in enumerate(users):
        answer = recommend(user_id=np.array([user.encode()]))
        assert answer["item_ids"].shape == answer["scores"].shape == (1, 10)
        assert list(answer["item_ids"][0]) == list(expected["item_ids"][row, :10])
        np.testing.assert_allclose(answer["scores"][0], expected["scores"][row, :10], rtol=1e-5)


def test_each_pair_gets_the_rating_of_the_saved_model(world: Any, exported: dict[str, Any]) -> None:
    model, out = exported["all_items"]
    rate = runner(out / "rating.tflite", "rate")
    users, items = [*world.users[::3], NOBODY], [*world.items[::7], NOTHING]
    pairs = [(user, item) for user in users for item in items]
    expected = model("rate", user_id=[user for user, _ in pairs], item_id=[item for _, item in pairs])["rating"]
    found = [
        rate(user_id=np.array([user.encode()]), item_id=np.array([item.encode()]))["rating"] for user, item in pairs
    ]
    assert all(rating.shape == (1,) for rating in found)
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5)
    assert len(set(np.round(expected, 3))) > 20, "the ratings differ, so the test can fail"


def test_the_command_prints_size_and_latency(
    exported: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = exported["all_items"]
    assert tandem(monkeypatch, "export", "tflite", "--model", model.path, "--out", tmp_path / "phone", "--k", "3") == 0
    told = capsys.readouterr().out
    for line, file in zip(told.splitlines(), ("top_k.tflite", "rating.tflite"), strict=True):
        assert file in line and f"{(tmp_path / 'phone' / file).stat().st_size / 1e6:.2f} MB" in line and "µs" in line
    answer = runner(tmp_path / "phone" / "top_k.tflite", "recommend")(user_id=np.array([b"g0u00"]))
    assert answer["item_ids"].shape == (1, 3)


@pytest.mark.parametrize("wrong", ["_lists", "_cut"])
def test_a_file_with_other_outputs_is_not_written(
    exported: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    model, _ = exported["all_items"]
    right = getattr(tflite, wrong)

    def broken(*arguments: Any) -> Any:
        found = right(*arguments)
        if wrong == "_lists":
            ids, places, scores = found
            return ids, np.roll(places, 1, axis=0), scores
        return tflite.dataclasses.replace(found, of_users=[np.roll(part, 1, axis=0) for part in found.of_users])

    monkeypatch.setattr(tflite, wrong, broken)
    with pytest.raises(tflite.NotExportable, match=r"as in the SavedModel, got .* on the device"):
        tflite.export_tflite(model.path, tmp_path / "phone")
    assert not (tmp_path / "phone").exists()


def test_unsupported_models_are_an_error(
    exported: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = exported["all_items"]
    for folder, k, word in ((tmp_path, "10", "no saved_model.pb"), (model.path, "5000", "got 5000")):
        arguments = ("--model", folder, "--out", tmp_path / "phone", "--k", k)
        assert tandem(monkeypatch, "export", "tflite", *arguments) == 2
        assert word in capsys.readouterr().err
    assert not (tmp_path / "phone").exists()
