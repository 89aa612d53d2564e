"""`tandem compare` on the real data: one table, one page, and a workdir whose runs never notice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
BOOKS = ROOT / "schemas" / "books"
DATA = ROOT / "tests" / "samples" / "books"

SMALL = "model: {embedding_dim: 8}\ntraining: {epochs: 2, batch_size: 32}\n"
HOPELESS = f"{SMALL}gates:\n  - {{metric: rmse, at_most: 0.001}}\n"
# The first epochs give ratings that are not numbers, later ones a loss that is none.
BROKEN = "model: {embedding_dim: 8}\ntraining: {epochs: 9, optimizer: {kind: adam, learning_rate: 1.0e+30}}\n"


@pytest.fixture(scope="module")
def schema_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The books with presets that train in a second."""
    folder = tmp_path_factory.mktemp("schemas") / "books"
    (folder / "presets").mkdir(parents=True)
    for name in ("recipe.yaml", "schema.pbtxt"):
        (folder / name).write_text((BOOKS / name).read_text())
    for name, text in (("small", SMALL), ("hopeless", HOPELESS), ("broken", BROKEN)):
        (folder / "presets" / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def run(schema_dir: Path, workdir: Path, tandem: Callable[..., Any]) -> Any:
    """A run of a preset that is blessed, before anything is compared."""
    outcome = tandem(
        "run", schema_dir, "--data", DATA, "--workdir", workdir, "--preset", "small", "--json",
        "--set", "gates=[{metric: rmse, at_most: 9, may_rise: 9}]",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    return outcome


def files(folder: Path) -> dict[str, int]:
    """Every file of a workdir that is not a comparison's, and when it changed."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in ("compare", ".lock")
    }


@pytest.fixture(scope="module")
def before(run: Any, workdir: Path) -> dict[str, int]:
    return files(workdir)


@pytest.fixture(scope="module")
def compared(before: Any, schema_dir: Path, workdir: Path, tandem: Callable[..., Any]) -> Any:
    outcome = tandem(
        "compare", "small", "broken", "hopeless", "--schema-dir", schema_dir, "--data", DATA, "--workdir", workdir,
        "--seeds", "2", "--json",
    )  # fmt: skip
    assert outcome.stdout, outcome.stderr
    return outcome


def test_a_run_says_which_preset_it_had(run: Any, workdir: Path) -> None:
    assert run.json["preset"] == "small"
    folder = workdir / "runs" / run.json["run_id"]
    assert json.loads((folder / "result.json").read_text())["preset"] == "small"
    assert json.loads((folder / "asked.json").read_text())["preset"] == "small"
    assert json.loads((folder / "recipe.json").read_text())["model"]["embedding_dim"] == 8


def test_every_preset_is_measured_with_every_seed(compared: Any) -> None:
    rows = {row["preset"]: row for row in compared.json["rows"] if row["error"] is None}
    assert list(rows) == ["small", "hopeless"]
    assert {tuple(row["seeds"]) for row in rows.values()} == {(0, 1)}
    assert all(row["spread"]["rmse"] > 0 and row["epochs"] == 2 and row["seconds"] > 0 for row in rows.values())
    # Without a gate between them they are the same model.
    assert rows["small"]["metrics"] == pytest.approx(rows["hopeless"]["metrics"])
    assert not rows["hopeless"]["passed"] and rows["hopeless"]["failed_gates"] == ["rmse"]


def test_the_curves_are_of_the_same_slice(compared: Any) -> None:
    answer = compared.json
    assert answer["validation"]["fraction"] == 0.05
    assert all(len(each["curves"]["validation_rmse"]) == 2 for each in answer["trained"] if each["error"] is None)
    assert Path(answer["plot"]).stat().st_size < 5_500_000


def test_what_was_transformed_or_trained_is_not_made_again(compared: Any, workdir: Path) -> None:
    assert not (workdir / "compare" / "artifacts" / "Transform").exists()
    # The hopeless preset is the small one with another gate: two seeds make two models.
    models = list((workdir / "compare" / "artifacts" / "Trainer" / "model").rglob("saved_model.pb"))
    assert len(models) == 2


def test_the_workdir_and_its_last_blessed_model_stay_as_they_were(
    compared: Any, before: Any, run: Any, schema_dir: Path, workdir: Path, tandem: Callable[..., Any]
) -> None:
    assert files(workdir) == before
    again = tandem(
        "run", schema_dir, "--data", DATA, "--workdir", workdir, "--preset", "small", "--json",
        "--set", "gates=[{metric: rmse, at_most: 9, may_rise: 9}]",
    )  # fmt: skip
    assert again.json["pushed_model"] == run.json["pushed_model"]
    assert again.json["last_blessed_metrics"]["rmse"] == pytest.approx(run.json["metrics"]["rmse"])


def test_a_preset_that_cannot_be_trained_does_not_stop_the_others(compared: Any) -> None:
    assert compared.code == 1
    row = compared.json["rows"][1]
    assert (row["preset"], row["passed"], row["metrics"]) == ("broken", False, {})
    assert "Trainer" in row["error"] and "Loss became NaN or infinite at step" in row["error"]
    assert "Traceback" not in compared.stderr


def test_without_curves_presets_are_trained_on_all_of_train(
    compared: Any, run: Any, schema_dir: Path, workdir: Path, tandem: Callable[..., Any]
) -> None:
    outcome = tandem(
        "compare", "small", "--schema-dir", schema_dir, "--data", DATA, "--workdir", workdir, "--no-curves", "--json"
    )  # fmt: skip
    assert outcome.json["rows"][0]["metrics"] == pytest.approx(run.json["metrics"])
    assert outcome.json["plot"] is None and outcome.json["validation"] is None
